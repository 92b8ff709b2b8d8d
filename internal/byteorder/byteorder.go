// SPDX-License-Identifier: Apache-2.0

// Package byteorder converts numbers that programs keep in network byte order.
package byteorder

import "encoding/binary"

// Net16 converts between host and network byte order, either way.
func Net16(v uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	return binary.BigEndian.Uint16(b[:])
}
