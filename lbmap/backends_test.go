// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBackendsAreThoseOfBothFamiliesWhetherServicesHaveThemOrNot(t *testing.T) {
	tables := newTables(t, nil)
	four := BackendValue{AddrPort: netip.MustParseAddrPort("10.0.0.1:80"), Protocol: ProtocolTCP, State: BackendTerminating}
	six := BackendValue{AddrPort: netip.MustParseAddrPort("[fd00::1]:53"), Protocol: ProtocolUDP, Zone: 3}
	require.NoError(t, tables.Backends4.Put(uint32(1), four))
	require.NoError(t, tables.Backends6.Put(uint32(1), six))
	backends, err := tables.Backends(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, []BackendValue{four, six}, backends)

	tables.Backends4.Close()
	tables.Backends4 = nil
	backends, err = tables.Backends(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []BackendValue{six}, backends)
}
