// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// Less usual ways to connect and to send.
func TestOtherWaysToConnect(t *testing.T) {
	hold(t, tcp,
		rule{name: "without blocking", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			require.NoError(s, unix.SetNonblock(x.fd, true))
			if err := x.tryConnect(a.front); err != nil {
				require.ErrorIs(s, err, unix.EINPROGRESS)
			}
			fds := []unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLOUT}}
			require.NoError(s, retry(func() error { _, err := unix.Poll(fds, int(patience.Milliseconds())); return err }))
			require.NoError(s, unix.SetNonblock(x.fd, false))
			s.connected(x, a)
		}},
		rule{name: "by a send with MSG_FASTOPEN", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.question()
			require.NoError(s, retry(func() error {
				return unix.Sendto(x.fd, []byte(q), unix.MSG_FASTOPEN, x.sockaddr(a.front))
			}))
			s.heard(x, q, a.backend, a.front)
			s.connected(x, a)
		}},
		rule{name: "to another service after one refused", play: func(s *scene) {
			refuses, a := s.serviceTo(s.nowhere()), s.service()
			x := s.socket()
			require.ErrorIs(s, x.tryConnect(refuses.front), unix.ECONNREFUSED)
			x.connect(a.front)
			s.connected(x, a)
			if s.mode != legacy {
				assert.Equal(s, 1, x.tuples())
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to the same service after it refused", play: func(s *scene) {
			a := s.serviceTo(s.nowhere())
			x := s.socket()
			require.ErrorIs(s, x.tryConnect(a.front), unix.ECONNREFUSED)
			a.backend = s.backendAt(0)
			s.publish(a)
			x.connect(a.front)
			s.connected(x, a)
			s.mayLeak = s.mode == legacy
		}},
	)
}

// An IPv6 datagram socket takes IPv4 addresses as such, too. Streams do not.
func TestIPv4AddressOnAnIPv6Socket(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			s := newScene(t, mode, v4mapped, unix.IPPROTO_UDP)
			s.mayLeak = mode == legacy
			a, x, y := s.service(), s.socket(), s.socket()
			require.NoError(t, unix.Connect(x.fd, ipv4.sockaddr(a.front)))
			s.connected(x, a)
			q := s.question()
			require.NoError(t, retry(func() error { return unix.Sendto(y.fd, []byte(q), 0, ipv4.sockaddr(a.front)) }))
			s.heard(y, q, a.backend, a.front)
		})
	}
}

// Of protocols other than TCP, UDP and UDP-Lite only ping sockets have these hooks, since Linux 6.1.
func TestOtherProtocolsAreLeftAlone(t *testing.T) {
	setSysctl(t, "/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
	for _, f := range []family{ipv4, ipv6} {
		protocol := unix.IPPROTO_ICMP
		if f.domain == unix.AF_INET6 {
			protocol = unix.IPPROTO_ICMPV6
		}
		t.Run("ping "+f.name, func(t *testing.T) {
			s := newScene(t, loader.ModeStorage, f, protocol)
			a := s.publishMany(1)[0] // for any protocol
			fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
			require.NoError(t, err)
			defer unix.Close(fd)
			assert.ErrorIs(t, unix.Connect(fd, f.sockaddr(netip.AddrPortFrom(a.front.Addr(), 53))), unix.ENETUNREACH)
			assert.Equal(t, s.before.Translated, s.counters().Translated)
		})
	}
}
