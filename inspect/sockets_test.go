// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/lbmap"
)

// eachVariant runs a test with the programs that take the lock of a value, where the kernel has what
// they need, and with those that do without.
func eachVariant(t *testing.T, f func(t *testing.T, v variant)) {
	t.Run("locked", func(t *testing.T) {
		if oldkernel.Before(t, 5, 12) {
			oldkernel.Skip(t, 5, 12, "iterators that take the lock of a value")
		}
		f(t, lockedVariant)
	})
	t.Run("unlocked", func(t *testing.T) { f(t, unlockedVariant) })
}

// list reads with these programs.
func list(ctx context.Context, maps Maps, opts Options, v variant) ([]Socket, error) {
	r, err := openReader(maps, opts, []variant{v})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.sorted(ctx, Filter{})
}

func TestListsConnectedSocketsOfEveryKindAndNamespace(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		names := t.TempDir()
		front4, front6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")
		back4, back6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")

		var sockets []*testSocket
		var services []service
		inNamespace := func(first int) {
			for i, kind := range []struct {
				family      Family
				protocol    lbmap.Protocol
				front, back netip.Addr
			}{
				{IPv4, lbmap.ProtocolTCP, front4, back4},
				{IPv4, lbmap.ProtocolUDP, front4, back4},
				{IPv6, lbmap.ProtocolTCP, front6, back6},
				{IPv6, lbmap.ProtocolUDP, front6, back6},
				{IPv6, lbmap.ProtocolTCP, front4, back4}, // v4-mapped
				{IPv6, lbmap.ProtocolUDP, front4, back4},
			} {
				backend := netip.AddrPortFrom(kind.back, uint16(20000+first+i))
				if kind.protocol == lbmap.ProtocolTCP {
					l := open(t, kind.family, kind.protocol)
					l.listen(t, backend)
				}
				svc := d.addServiceFor(t, first+i, kind.front, backend, kind.protocol)
				s := open(t, kind.family, kind.protocol)
				s.connect(t, svc.front)
				sockets = append(sockets, s)
				services = append(services, svc)
			}
		}
		inNamespace(0)
		inNetNS(t, func() { inNamespace(100) })
		inNetNS(t, func() {
			nameNetNS(t, names, "green")
			inNamespace(200)
		})

		got, err := list(t.Context(), d.Maps, Options{NetNSDir: names}, v)
		require.NoError(t, err)
		var want []Socket
		for i, s := range sockets {
			e := s.expected(t, &services[i])
			if i >= 12 {
				e.NetNS.Name = "green"
			}
			want = append(want, e)
		}
		if v.peers == unlockedVariant.peers {
			// Only TCP sockets have not got a cookie by then: UDP sockets' backends are chosen by it.
			for i := range want {
				if want[i].Protocol == lbmap.ProtocolTCP {
					want[i].Cookie = 0
				}
			}
		}
		assertSockets(t, want, got)
		assert.True(t, slices.IsSortedFunc(got, compareSockets))
	})
}

func TestListsEveryPeerOfAnUnconnectedSocket(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		four := d.addServices(t, 0, 40, false)
		six := d.addServices(t, 100, 40, true)
		var want []Socket
		for _, n := range []int{1, 2, 3, 4, 5, 40} {
			s := open(t, IPv4, lbmap.ProtocolUDP)
			s.send(t, four[:n]...)
			want = append(want, s.expected(t, nil, four[:n]...))

			s = open(t, IPv6, lbmap.ProtocolUDP)
			s.send(t, six[:n]...)
			s.send(t, four[40-n:]...) // v4-mapped
			want = append(want, s.expected(t, nil, slices.Concat(four[40-n:], six[:n])...))
		}
		got, err := list(t.Context(), d.Maps, Options{}, v)
		require.NoError(t, err)
		assertSockets(t, want, got)
	})
}

func TestListsEveryPeerOfALargeTable(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		services := d.addServices(t, 0, 200, false)
		r, err := openReader(d.Maps, Options{}, []variant{v})
		require.NoError(t, err)
		defer r.Close()
		small, large := open(t, IPv4, lbmap.ProtocolUDP), open(t, IPv4, lbmap.ProtocolUDP)
		small.send(t, services[0])
		large.connect(t, services[0].front)
		for _, n := range []int{50, 100, 200} {
			large.send(t, services[1:n]...)
			want := []Socket{small.expected(t, nil, services[0]), large.expected(t, &services[0], services[1:n]...)}
			got, err := r.sorted(t.Context(), Filter{})
			require.NoError(t, err)
			assertSorted(t, d.Maps, Options{}, v, got)
			assertSockets(t, want, got)
		}
	})
}

func TestListsOneSocketForItsConnectionAndItsPeers(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		services := d.addServices(t, 0, 6, false)
		s := open(t, IPv4, lbmap.ProtocolUDP)
		s.connect(t, services[0].front)
		s.send(t, services[1:]...)
		got, err := list(t.Context(), d.Maps, Options{}, v)
		require.NoError(t, err)
		assertSockets(t, []Socket{s.expected(t, &services[0], services[1:]...)}, got)
	})
}

func TestListsNoSocketWithoutATuple(t *testing.T) {
	d := newDatapath(t)
	svc := d.addService(t, 0, false, lbmap.ProtocolUDP)

	open(t, IPv4, lbmap.ProtocolUDP)
	open(t, IPv4, lbmap.ProtocolUDP).connect(t, svc.backend)
	dropped := open(t, IPv4, lbmap.ProtocolUDP)
	dropped.send(t, svc)
	got, err := Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assert.Len(t, got, 1)

	require.NoError(t, dropped.sendTo(svc.backend))
	got, err = Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assert.Empty(t, got, "the storage is there, but empty")
}

func TestADisconnectedSocketHasNoPeer(t *testing.T) {
	for _, family := range []Family{IPv4, IPv6} {
		t.Run(family.String(), func(t *testing.T) {
			d := newDatapath(t)
			svc := d.addService(t, 0, family == IPv6, lbmap.ProtocolUDP)
			s := open(t, family, lbmap.ProtocolUDP)
			s.connect(t, svc.front)
			s.disconnect(t)

			got, err := Sockets(t.Context(), d.Maps, Options{})
			require.NoError(t, err)
			want := s.expected(t, &svc)
			want.State, want.Peer = StateClose, netip.AddrPort{}
			assertSockets(t, []Socket{want}, got)
		})
	}
}

func TestAClosedSocketThatStillSendsIsListedWithoutOwner(t *testing.T) {
	d := newDatapath(t)
	svc := d.addService(t, 0, false, lbmap.ProtocolTCP)
	l := open(t, IPv4, lbmap.ProtocolTCP)
	l.listen(t, svc.backend)
	s := open(t, IPv4, lbmap.ProtocolTCP)
	s.connect(t, svc.front)
	want := s.expected(t, &svc)
	s.fill(t)
	s.closeAtOnce(t)

	got, err := Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	want.State, want.Inode, want.Owners = State(unix.BPF_TCP_FIN_WAIT1), 0, nil
	assertSockets(t, []Socket{want}, got)
}

func TestOwnersAreAllProcessesThatHaveTheSocketOpen(t *testing.T) {
	d := newDatapath(t)
	svc := d.addService(t, 0, false, lbmap.ProtocolUDP)
	s := open(t, IPv4, lbmap.ProtocolUDP)
	s.connect(t, svc.front)
	want := s.expected(t, &svc)
	child := startChild(t, s)
	another := process(t, child.Process.Pid)
	want.Owners = append(want.Owners, another)
	// The child has the lower number where the numbers have begun anew in between.
	slices.SortFunc(want.Owners, func(a, b Process) int { return cmp.Compare(a.ID, b.ID) })

	got, err := Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assertSockets(t, []Socket{want}, got)

	s.close()
	want.Owners = []Process{another}
	got, err = Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assertSockets(t, []Socket{want}, got)

	want.Owners = nil
	got, err = Sockets(t.Context(), d.Maps, Options{SkipOwners: true})
	require.NoError(t, err)
	assertSockets(t, []Socket{want}, got)
}

func TestABufferThatIsTooSmallLosesNothing(t *testing.T) {
	allowFiles(t, 4000)
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		services := d.addServices(t, 0, 2, false)
		var want []Socket
		for range 2500 {
			s := open(t, IPv4, lbmap.ProtocolUDP)
			s.connect(t, services[0].front)
			s.send(t, services[1])
			want = append(want, s.expected(t, &services[0], services[1]))
		}
		got, err := list(t.Context(), d.Maps, Options{BufferSize: 1}, v)
		require.NoError(t, err)
		assertSorted(t, d.Maps, Options{BufferSize: 1, Reuse: true}, v, got)
		assertSockets(t, want, got)

		// All of them do not fit at once.
		p, err := loadDump(d.Maps, bufferFor(1), []variant{v})
		require.NoError(t, err)
		defer p.close()
		require.NoError(t, p.want(&Filter{}))
		_, more, err := p.dump(t.Context(), part{0, math.MaxUint32})
		require.NoError(t, err)
		assert.NotZero(t, more)
		// How many bytes are missing tells how wide a part can be.
		r := &Reader{programs: p}
		width := r.fitting(part{0, math.MaxUint32}, len(p.buffer)+int(more))
		assert.Greater(t, width, uint64(wholeRange/16))
		_, more, err = p.dump(t.Context(), part{0, uint32(width / 4 * 3)})
		require.NoError(t, err)
		assert.Zero(t, more, "missing of %d bytes", len(p.buffer))
	})
}

func TestAReaderReadsAsOftenAsOneLikes(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		services := d.addServices(t, 0, 5, false)
		r, err := openReader(d.Maps, Options{}, []variant{v})
		require.NoError(t, err)
		var want []Socket
		for range 3 {
			s := open(t, IPv4, lbmap.ProtocolUDP)
			s.send(t, services...)
			want = append(want, s.expected(t, nil, services...))
			got, err := r.sorted(t.Context(), Filter{})
			require.NoError(t, err)
			assertSockets(t, want, got)
		}
		for range r.Sockets(t.Context(), Filter{}) {
			for _, err := range r.Sockets(t.Context(), Filter{}) {
				assert.ErrorIs(t, err, ErrInUse)
			}
			assert.ErrorIs(t, r.Close(), ErrInUse)
			break
		}
		require.NoError(t, r.Close())
		for _, r := range []*Reader{r, nil} {
			_, err = r.sorted(t.Context(), Filter{})
			assert.ErrorIs(t, err, ErrInUse)
			assert.ErrorIs(t, r.Close(), ErrInUse)
		}
	})
}

func TestAFilterSaysWhichSocketsAreWanted(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		svc := d.addServices(t, 0, 1, false)[0]
		here := open(t, IPv4, lbmap.ProtocolUDP)
		here.connect(t, svc.front)
		var there *testSocket
		inNetNS(t, func() {
			there = open(t, IPv4, lbmap.ProtocolUDP)
			there.send(t, svc)
		})
		r, err := openReader(d.Maps, Options{}, []variant{v})
		require.NoError(t, err)
		defer r.Close()
		for _, c := range []struct {
			name   string
			filter Filter
			want   []*testSocket
		}{
			{"namespace", Filter{NetNS: here.netns.Inode}, []*testSocket{here}},
			{"another namespace", Filter{NetNS: there.netns.Inode}, []*testSocket{there}},
			{"protocol", Filter{Protocol: lbmap.ProtocolUDP}, []*testSocket{here, there}},
			{"another protocol", Filter{Protocol: lbmap.ProtocolTCP}, nil},
			{"match", Filter{Match: func(s *Socket) bool { return s.Conn != nil }}, []*testSocket{here}},
			{"none", Filter{}, []*testSocket{here, there}},
		} {
			got, err := r.sorted(t.Context(), c.filter)
			require.NoError(t, err)
			var inodes, want []uint64
			for _, s := range got {
				inodes = append(inodes, s.Inode)
			}
			for _, s := range c.want {
				want = append(want, s.inode(t))
			}
			assert.ElementsMatch(t, want, inodes, c.name)
		}
	})
}

func TestTenThousandSocketsAreListedInSeconds(t *testing.T) {
	const n = 10_000
	limit := 10 * time.Second
	if os.Getenv("REVSK_VM") != "" {
		limit *= 10 // an emulated machine
	}
	allowFiles(t, n+1000)
	eachVariant(t, func(t *testing.T, v variant) {
		d := newDatapath(t)
		svc := d.addService(t, 0, false, lbmap.ProtocolUDP)
		for range n {
			s := open(t, IPv4, lbmap.ProtocolUDP)
			s.connect(t, svc.front)
		}
		for _, opts := range []Options{{SkipOwners: true}, {}} {
			start := time.Now()
			got, err := list(t.Context(), d.Maps, opts, v)
			took := time.Since(start)
			require.NoError(t, err)
			assert.Len(t, got, n)
			assert.Less(t, took, limit)
			t.Logf("%d sockets in %v, skipping owners: %v", n, took, opts.SkipOwners)
		}
	})
}

func TestSocketsReturnsItsErrors(t *testing.T) {
	d := newDatapath(t)
	for _, maps := range []Maps{
		{},
		{Former: d.Former, Peers: d.Peers, Tables: d.Tables},
		{Conn: d.Conn, Peers: d.Peers, Tables: d.Tables},
		{Conn: d.Conn, Former: d.Former, Tables: d.Tables},
		{Conn: d.Conn, Former: d.Former, Peers: d.Peers},
	} {
		_, err := Sockets(t.Context(), maps, Options{})
		assert.ErrorIs(t, err, ErrNoMap)
	}
	_, err := Sockets(t.Context(), Maps{Conn: d.Peers, Former: d.Former, Peers: d.Conn, Tables: d.Tables}, Options{})
	assert.ErrorIs(t, err, ebpf.ErrMapIncompatible)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Sockets(ctx, d.Maps, Options{})
	assert.ErrorIs(t, err, context.Canceled)
}

// allowFiles raises the limit of open files of this process.
func allowFiles(t testing.TB, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Cur < n {
		limit.Cur, limit.Max = n, max(n, limit.Max)
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit), "allowing %d files", n)
	}
}

// childEnv makes the test binary a process that only keeps what it was started with.
const childEnv = "REVSK_INSPECT_TEST_CHILD"

func holdSocket() {
	// Until the test closes the other end.
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

// startChild starts a process that has sockets open until the test ends.
func startChild(t testing.TB, sockets ...*testSocket) *exec.Cmd {
	t.Helper()
	var files []*os.File
	for _, s := range sockets {
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		file := os.NewFile(uintptr(fd), "socket")
		defer file.Close()
		files = append(files, file)
	}
	program, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.ExtraFiles = files
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		require.NoError(t, cmd.Wait())
	})
	return cmd
}
