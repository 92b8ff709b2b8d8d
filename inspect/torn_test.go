// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Two services share a backend, so that a socket that turns from one to the other has its tuple
// changed in place, again and again, while it is read.
func TestNoTupleIsHalfAnOldOneAndHalfANewOne(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		backend := netip.MustParseAddrPort("127.0.0.1:20000")
		a := d.addSharing(t, netip.MustParseAddrPort("10.96.0.1:4369"), backend, 0x1111)
		b := d.addSharing(t, netip.MustParseAddrPort("11.127.255.254:8738"), backend, 0x2222)

		stop := make(chan struct{})
		var writer sync.WaitGroup
		defer writer.Wait()
		defer close(stop)
		connected, sending := open(t, IPv4, lbmap.ProtocolUDP), open(t, IPv4, lbmap.ProtocolUDP)
		writer.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, s := range []service{a, b} {
					assert.NoError(t, unix.Connect(connected.fd, connected.sockaddr(s.front)))
					assert.NoError(t, sending.sendTo(s.front))
				}
			}
		})

		r, err := openReader(d.Maps, Options{SkipOwners: true}, []variant{v})
		require.NoError(t, err)
		defer r.Close()
		seen := make(map[revnat.Tuple]int)
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			for s, err := range r.Sockets(t.Context(), Filter{}) {
				require.NoError(t, err)
				for _, tuple := range s.Tuples() {
					tuple.Time, tuple.Age = 0, 0
					seen[*tuple]++
				}
			}
		}
		want := map[revnat.Tuple]bool{}
		for _, s := range []service{a, b} {
			want[*s.tuple()] = true
			want[*s.tuple()] = true
		}
		t.Log(seen)
		for tuple := range seen {
			assert.True(t, want[tuple], "torn: %+v", tuple)
		}
		assert.Len(t, seen, len(want), "every tuple is seen")
	})
}

// addSharing adds a service whose backend other services may have too.
func (d *datapath) addSharing(t testing.TB, front, backend netip.AddrPort, index uint16) service {
	t.Helper()
	s := service{front: front, backend: backend, index: index, backendID: 7}
	_, err := lbmap.NewWriter(&d.tables).Upsert(t.Context(), lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: front, Protocol: lbmap.ProtocolUDP},
		RevNat:   index,
		Backends: []lbmap.Backend{{ID: s.backendID, AddrPort: backend, Protocol: lbmap.ProtocolUDP}},
	})
	require.NoError(t, err)
	return s
}
