// SPDX-License-Identifier: Apache-2.0

package migrate

import "encoding/binary"

// networkOrder converts between host and network byte order, either way.
func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}
