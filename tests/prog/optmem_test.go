// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/revnat"
)

const optmemSetting = "/proc/sys/net/core/optmem_max"

// optmemMax is what sockets of this network namespace may have; before Linux 6.12 only the first
// namespace shows it.
func optmemMax(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(optmemSetting)
	if err != nil {
		return 20480
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	return n
}

// setOptmem sets it for the rest of the test; false where that cannot be done.
func setOptmem(t *testing.T, n int) bool {
	t.Helper()
	before := optmemMax(t)
	if os.WriteFile(optmemSetting, []byte(strconv.Itoa(n)), 0) != nil {
		return false
	}
	t.Cleanup(func() { _ = os.WriteFile(optmemSetting, []byte(strconv.Itoa(before)), 0) })
	return true
}

func raiseOptmem(t *testing.T) bool {
	t.Helper()
	return setOptmem(t, 131072)
}

// As many peers as the settings of net.core.optmem_max are to have room for, nothing evicted; and with a
// table that has grown as far as it may, and every other storage, there is room for a socket filter and control messages.
func TestFullTableLeavesRoomInOptmem(t *testing.T) {
	for _, v := range []struct{ optmem, reach, full int }{
		{20480, 150, 400},
		{24500, 150, 600}, // a third map would fit, but leave 300 bytes
		{131072, 1000, 2400},
	} {
		t.Run(strconv.Itoa(v.optmem), func(t *testing.T) {
			if optmemMax(t) != v.optmem && !setOptmem(t, v.optmem) {
				oldkernel.Skip(t, 6, 12, "net.core.optmem_max of its own in every network namespace")
			}
			classes, maps := revnat.TableLimits(v.optmem)
			h := load(t, options{
				constants: map[string]any{"table_classes": uint32(classes), "table_maps": uint32(maps)},
				programs:  []string{"connect", "sendmsg", "release", "find"},
			})
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) {
					s := newScene(t, h, f, false)
					s.connect(s.tuple(5000, 5000))
					s.connect(s.tuple(5001, 5001))
					s.sendToPeers(v.reach)
					if n := s.h.counts(t)[evicted]; n != 0 {
						t.Errorf("%d tuples evicted with %d peers", n, v.reach)
					}
					for n := v.reach + 1; n <= v.full; n++ {
						s.send(s.tuple(n, n))
					}
					if st := s.state(); st.maps != maps {
						t.Errorf("the table has %d maps, want %d", st.maps, maps)
					}
					if s.h.counts(t)[evicted] == 0 {
						t.Error("nothing was evicted: the table is not full")
					}
					s.usesOptmem()
				})
			}
		})
	}
}

// usesOptmem sends with 320 bytes of control messages, and attaches a filter.
func (x *subject) usesOptmem() {
	x.s.Helper()
	filter := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}
	if err := unix.SetsockoptSockFprog(x.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &filter}); err != nil {
		x.s.Errorf("attaching a filter: %v", err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if x.s.family.domain == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	var control []byte
	for len(control) < 320 {
		one := make([]byte, unix.CmsgSpace(4))
		header := (*unix.Cmsghdr)(unsafe.Pointer(&one[0]))
		header.Level, header.Type = int32(level), int32(option)
		header.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(one[unix.CmsgLen(0):], 64)
		control = append(control, one...)
	}
	to := sockaddr.Of(x.s.family.domain, netip.AddrPortFrom(x.s.family.loopback, 9))
	if err := unix.Sendmsg(x.fd, []byte("x"), control, to, 0); err != nil {
		x.s.Errorf("sending with %d bytes of control messages: %v", len(control), err)
	}
}
