// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/revsk/revsk/lbmap"
)

func TestServiceFilterTellsConnectionsApart(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		filter ServiceFilter
		want   bool
	}{
		{ServiceFilter{}, true},
		{ServiceFilter{AddrPort: at("10.0.0.1:53")}, true},
		{ServiceFilter{AddrPort: at("10.0.0.1:53"), Protocol: lbmap.ProtocolUDP}, true},
		{ServiceFilter{AddrPort: at("10.0.0.1:53"), Protocol: lbmap.ProtocolTCP}, false},
		{ServiceFilter{AddrPort: at("10.0.0.1:54")}, false},
		{ServiceFilter{AddrPort: at("10.0.0.2:53")}, false},
		{ServiceFilter{AddrPort: at("0.0.0.0:53")}, true},
		{ServiceFilter{AddrPort: at("0.0.0.0:54")}, false},
		{ServiceFilter{AddrPort: at("[::]:53")}, false},
		{ServiceFilter{AddrPort: at("0.0.0.0:53"), Except: []netip.AddrPort{at("10.0.0.1:53")}}, false},
		{ServiceFilter{AddrPort: at("10.0.0.1:53"), Except: []netip.AddrPort{at("10.0.0.1:53")}}, true},
	} {
		assert.Equal(t, c.want, c.filter.Matches(at("10.0.0.1:53"), lbmap.ProtocolUDP), "%+v", c.filter)
	}
}
