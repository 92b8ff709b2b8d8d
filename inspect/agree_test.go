// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockdiag"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Two other ways to the same: socket diagnosis, which ss shows, and the maps looked up by the descriptor of a socket.
func TestEachSocketIsAsDiagnosisAndLookupsByDescriptorHaveIt(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		four, six := d.addServices(t, 0, 6, false), d.addServices(t, 100, 6, true)
		mine := make(map[uint64]*testSocket)
		for i := range 30 {
			family, services := IPv4, four
			if i%2 == 1 {
				family, services = IPv6, six
			}
			s := open(t, family, lbmap.ProtocolUDP)
			switch i % 5 {
			case 0, 1:
				s.connect(t, services[i%6].front)
			case 2:
				s.send(t, services[:1+i%6]...)
			case 3:
				s.connect(t, services[0].front)
				s.connect(t, services[1].front)
				s.send(t, services[2:]...)
			case 4:
				s.connect(t, services[0].front)
				s.disconnect(t)
			}
			mine[s.inode(t)] = s
		}
		all, err := list(t.Context(), d.Maps, Options{}, v)
		require.NoError(t, err)
		require.Len(t, all, len(mine))
		diagnosed := make(map[uint64]sockdiag.Socket)
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			sockets, err := sockdiag.List(family, unix.IPPROTO_UDP, 0)
			require.NoError(t, err)
			for _, s := range sockets {
				diagnosed[uint64(s.Inode)] = s
			}
		}
		for _, s := range all {
			own := mine[s.Inode]
			require.NotNil(t, own)
			cookie, err := unix.GetsockoptUint64(own.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			require.NoError(t, err)
			assert.Equal(t, cookie, s.Cookie)

			// Diagnosis has what is bound; a socket that is not connected any more may have lost its port.
			if same, ok := diagnosed[s.Inode]; ok {
				assert.Equal(t, same.Cookie, s.Cookie)
				if s.Peer.IsValid() {
					assert.Equal(t, same.Remote, s.Peer)
				} else {
					assert.Zero(t, same.Remote.Port(), "is not connected")
				}
				assert.Equal(t, same.Local, s.Local)
			} else {
				assert.False(t, s.Peer.IsValid())
			}

			var conn revnat.ConnValue
			assert.Equal(t, found(t, d.Conn.Lookup(uint32(own.fd), &conn)) && conn.Tuple.Peer.Port() != 0, s.Conn != nil)
			if s.Conn != nil {
				assert.Equal(t, conn.Tuple, *s.Conn)
			}
			var former revnat.FormerValue
			assert.Equal(t, found(t, d.Former.Lookup(uint32(own.fd), &former)), s.Former != nil)
			if s.Former != nil {
				assert.Equal(t, former.Tuple, *s.Former)
			}
			var peers revnat.PeersValue
			if found(t, d.Peers.Lookup(uint32(own.fd), &peers)) {
				tuples := peers.Tuples()
				if peers.TableClass == 1 {
					table, err := d.Tables[0].LookupBytes(uint32(own.fd))
					require.NoError(t, err)
					const header = 56
					more, err := revnat.DecodeTable(table[header:][:8*revnat.TupleSize])
					require.NoError(t, err)
					tuples = append(tuples, more...)
				}
				slices.SortFunc(tuples, comparePeers)
				assert.Equal(t, tuples, s.Peers)
			} else {
				assert.Empty(t, s.Peers)
			}
		}
	})
}

func found(t *testing.T, err error) bool {
	t.Helper()
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false
	}
	require.NoError(t, err)
	return true
}
