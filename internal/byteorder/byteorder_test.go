// SPDX-License-Identifier: Apache-2.0

package byteorder

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNet16(t *testing.T) {
	var wire [2]byte
	binary.NativeEndian.PutUint16(wire[:], Net16(0x1234))
	assert.Equal(t, [2]byte{0x12, 0x34}, wire)
	assert.Equal(t, uint16(0x1234), Net16(Net16(0x1234)))
}
