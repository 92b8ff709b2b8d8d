// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/proc"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// population is sockets of all kinds, with entries in the hash, and what is to become of these.
type population struct {
	*scene
	want  migrate.Counts
	asked int // peers that a check sends to
	// checks are that sockets still say what they said.
	checks []func()
	free   []func() // before the checks after the migration
}

// kind changes the kind of the scene's sockets.
func (z *population) kind(f family, protocol int) {
	z.scene.family, z.scene.protocol = f, protocol
}

// here runs a check with the kind of sockets that there is now.
func (z *population) here(check func()) {
	f, protocol := z.scene.family, z.scene.protocol
	z.checks = append(z.checks, func() {
		z.kind(f, protocol)
		check()
	})
}

func (z *population) check() {
	z.Helper()
	for _, c := range z.checks {
		c()
	}
}

func (z *population) conn(n int)   { z.want.MovedConn += n; z.want.Entries += n }
func (z *population) peers(n int)  { z.want.MovedPeers += n; z.want.Entries += n }
func (z *population) leaked(n int) { z.want.Leaked += n; z.want.Entries += n }

// populate makes the sockets that every engine reaches.
func (z *population) populate() {
	for _, f := range families {
		if f.domain == unix.AF_INET6 && !haveIPv6 {
			continue
		}
		z.kind(f, unix.IPPROTO_TCP)
		z.streams()
		z.kind(f, unix.IPPROTO_UDP)
		z.datagrams()
		z.owners()
	}
	z.kind(ipv4, unix.IPPROTO_UDPLITE)
	z.udpLite()
	z.kind(ipv4, unix.IPPROTO_UDP)
	z.namespaces()
	z.kind(ipv4, unix.IPPROTO_UDP)
}

func (z *population) streams() {
	s := z.scene
	a := s.service()
	established := s.socket()
	established.connect(a.front)
	z.conn(1)
	z.here(func() { s.connected(established, a) })

	// A listener of our own, that does what it is told.
	listener := s.socket()
	listener.bind(netip.AddrPortFrom(sandbox.Numbered(s.plain, 3), 0))
	require.NoError(s, unix.Listen(listener.fd, 4))
	own := s.serviceTo(listener.sockname())
	accept := func() int {
		fd, _, err := unix.Accept(listener.fd)
		require.NoError(s, err)
		return fd
	}
	shows := func(x *socket) func() {
		return func() { same(s, own.front, x.peername(), "getpeername") }
	}

	closeWait := s.socket()
	closeWait.connect(own.front)
	require.NoError(s, unix.Close(accept()))
	s.waitFor("CLOSE_WAIT", func() bool { return closeWait.state() == unix.BPF_TCP_CLOSE_WAIT })
	z.conn(1)
	z.here(shows(closeWait))

	finWait := s.socket()
	finWait.connect(own.front)
	other := accept()
	s.Cleanup(func() { unix.Close(other) })
	require.NoError(s, unix.Shutdown(finWait.fd, unix.SHUT_WR))
	s.waitFor("FIN_WAIT2", func() bool { return finWait.state() == unix.BPF_TCP_FIN_WAIT2 })
	z.conn(1)
	z.here(shows(finWait))

	// The queue of a listener is full: the next one stays in SYN_SENT until there is room.
	full := s.socket()
	full.bind(netip.AddrPortFrom(sandbox.Numbered(s.plain, 4), 0))
	require.NoError(s, unix.Listen(full.fd, 0))
	busy := s.serviceTo(full.sockname())
	filler := s.socket()
	filler.connect(busy.front)
	z.conn(1)
	var waiting *socket
	for range 8 {
		x := s.socket()
		require.NoError(s, unix.SetNonblock(x.fd, true))
		if err := x.tryConnect(busy.front); !errors.Is(err, unix.EINPROGRESS) {
			require.NoError(s, err)
		}
		z.conn(1)
		time.Sleep(10 * time.Millisecond)
		if x.state() == unix.BPF_TCP_SYN_SENT {
			waiting = x
			break
		}
	}
	require.NotNil(s, waiting, "a socket in SYN_SENT")
	z.free = append(z.free, func() {
		require.Equal(s, unix.BPF_TCP_SYN_SENT, waiting.state(), "still waiting")
		go func() {
			for {
				fd, _, err := unix.Accept(full.fd)
				if err != nil {
					return
				}
				unix.Close(fd)
			}
		}()
		s.waitFor("a connection", func() bool { return waiting.state() != unix.BPF_TCP_SYN_SENT })
		same(s, busy.front, waiting.peername(), "getpeername")
	})

	disconnected := s.socket()
	disconnected.connect(s.service().front)
	disconnected.disconnect()
	z.leaked(1)
}

func (z *population) datagrams() {
	s := z.scene
	a, b := s.service(), s.service()
	connected := s.socket()
	connected.connect(a.front)
	connected.sendTo(b.front, "to another")
	z.conn(1)
	z.peers(1)
	z.here(func() { s.connected(connected, a) })

	for _, n := range []int{1, 5, 50} {
		x := s.socket()
		var all []*service
		for range n {
			svc := s.service()
			all = append(all, svc)
			s.asksService(x, svc)
		}
		z.peers(n)
		z.asked += n
		z.here(func() {
			for _, svc := range all {
				s.asksService(x, svc)
			}
		})
	}

	// What they were connected to may have answered before.
	disconnected := s.socket()
	disconnected.connect(a.front)
	disconnected.disconnect()
	z.peers(1)
	z.here(func() {
		_, err := disconnected.tryPeername()
		require.ErrorIs(s, err, unix.ENOTCONN)
	})
	if haveDestroy(s.T) {
		aborted := s.socket()
		aborted.connect(a.front)
		aborted.abort(aborted.sockname(), s.actualPeer(aborted))
		z.peers(1)
	}

	reconnected := s.socket()
	reconnected.connect(a.front)
	q := s.queue(reconnected, a.front)
	reconnected.connect(b.front)
	z.conn(1)
	z.peers(1)
	// Received once, after the move.
	z.free = append(z.free, func() {
		s.heard(reconnected, q, a.backend, a.front)
		s.connected(reconnected, b)
	})
}

// owners are sockets that others have than who made them.
func (z *population) owners() {
	s := z.scene
	a := s.service()

	dup := s.socket()
	dup.connect(a.front)
	fd, err := unix.FcntlInt(uintptr(dup.fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(s, err)
	require.NoError(s, unix.Close(dup.fd))
	dup.fd = fd
	z.conn(1)
	z.here(func() { s.connected(dup, a) })

	passed := s.socket()
	passed.connect(a.front)
	c := s.spawn(errand{Inherited: true, Connect: a.front}, passed)
	passed.close()
	z.conn(1)
	z.here(func() { s.checks(c) })
}

func (z *population) udpLite() {
	s := z.scene
	if x, err := newSocket(s.family, s.protocol); err != nil {
		s.Log("this kernel has no UDP-Lite")
		return
	} else {
		x.close()
	}
	backend := s.bound(1)
	a := s.serviceTo(backend.sockname())
	x := s.socket()
	x.sendTo(a.front, "question")
	z.peers(1)
	_, client := backend.receive()
	backend.sendTo(client, "before")
	backend.sendTo(client, "after")
	_, from := x.receive()
	same(s, a.front, from, "source")
	z.free = append(z.free, func() {
		payload, from := x.receive()
		assert.Equal(s, "after", payload)
		same(s, a.front, from, "source")
	})
}

// namespaces are sockets of five other network namespaces, of a process in another namespace of
// processes, and one whose network namespace no process is in.
func (z *population) namespaces() {
	s := z.scene
	a := s.service()
	errands := []errand{
		{Namespaces: unix.CLONE_NEWNET | unix.CLONE_NEWPID},
		{Namespaces: unix.CLONE_NEWNET},
		{Namespaces: unix.CLONE_NEWNET},
		{Namespaces: unix.CLONE_NEWNET},
		{Namespaces: unix.CLONE_NEWPID},
	}
	for _, e := range errands {
		e.Sockets, e.Connect = 3, a.front
		c := s.spawn(e, nil)
		z.conn(3)
		z.here(func() { s.checks(c) })
	}

	c := s.spawn(errand{Namespaces: unix.CLONE_NEWNET, Sockets: 1, Connect: a.front}, nil)
	orphan := s.takeSocket(c)
	c.kill()
	z.conn(1)
	z.here(func() { same(s, a.front, orphan.peername(), "getpeername") })
}

// takeSocket gets the only socket of a child.
func (s *scene) takeSocket(c *child) *socket {
	s.Helper()
	pidfd, err := unix.PidfdOpen(c.cmd.Process.Pid, 0)
	require.NoError(s, err)
	defer unix.Close(pidfd)
	for fd, target := range proc.Files(c.cmd.Process.Pid) {
		if _, ok := proc.Inode(target, "socket"); !ok {
			continue
		}
		taken, err := unix.PidfdGetfd(pidfd, fd, 0)
		require.NoError(s, err)
		x := &socket{T: s.T, family: s.family, protocol: s.protocol, fd: taken}
		s.sockets = append(s.sockets, x)
		return x
	}
	s.Fatal("the child has no socket")
	return nil
}

// state is that of a stream, as TCP_INFO has it.
func (x *socket) state() int {
	x.Helper()
	info, err := unix.GetsockoptTCPInfo(x.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	require.NoError(x, err)
	return int(info.State)
}

func (s *scene) waitFor(what string, happened func() bool) {
	s.Helper()
	require.Eventually(s, happened, patience, tick, "waiting for %s", what)
}

func TestMigrateEveryKindOfSocket(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
		z := &population{scene: s}
		z.populate()
		leaks := scaled(10000)
		s.leak(leaks)
		z.leaked(leaks)
		z.check()
		require.Equal(s, z.want.Entries, legacyCount(t), "entries in the hash")

		plan, err := migrate.MakePlan(t.Context(), planOptions(engine))
		require.NoError(t, err)
		assert.Equal(t, z.want, plan.Counts, "the plan")
		live := 0
		for _, l := range plan.Live {
			live += l.Entries
		}
		assert.Equal(t, z.want.MovedConn+z.want.MovedPeers, live, "live entries by kind: %+v", plan.Live)

		r := s.migrates(engine)
		assert.Equal(t, z.want, r.Counts, "the migration")
		assert.Equal(t, z.want.Entries, r.Deleted)
		t.Logf("%d entries: %+v, %d passes, %v", r.Entries, r.Counts, r.Passes, r.Steps)
		for _, f := range z.free {
			f()
		}
		z.check()

		// And back: to the hash goes what sockets hold, which is all that was moved.
		back := s.rollsBack()
		assert.Equal(t, z.want.MovedConn+z.want.MovedPeers, back.Tuples)
		assert.Equal(t, back.Tuples, back.Written)
		assert.Equal(t, back.Tuples, legacyCount(t))
		z.check()

		// Once more: storage still has what was not written again in mode legacy.
		again := s.migrates(engine)
		assert.Equal(t, migrate.Counts{Entries: back.Tuples, MovedPeers: z.asked, Present: back.Tuples - z.asked}, again.Counts)
		z.check()
	})
}

// A socket in a message that nobody has received yet is in no file table.
func TestMigrateInFlight(t *testing.T) {
	migrating(t, either, func(s *scene, engine migrate.Engine) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		receiver := inFlight(s, x)

		r, err := migrate.Run(s.Context(), migrateOptions(engine))
		if engine == migrate.EngineIter {
			require.NoError(s, err)
			assert.Equal(s, migrate.Counts{Entries: 1, MovedConn: 1}, r.Counts)
		} else {
			// Out of reach: kept in the hash, which is still read.
			require.ErrorIs(s, err, migrate.ErrUnresolved)
			assert.Equal(s, migrate.Counts{Entries: 1, Unknown: 1}, r.Counts)
			assert.Equal(s, loader.ModeDual, r.Mode)
			assert.Equal(s, 1, s.hashEntries())
			require.Len(s, r.Unresolved, 1)
			assert.Equal(s, a.backend, r.Unresolved[0].Key.Backend)
		}
		x.fd = received(s, receiver)[0]
		s.connected(x, a)
	})
}

// Disconnected, and so in no table of its protocol either, it cannot be reached; but it is not leaked.
func TestMigrateInFlightAndDisconnected(t *testing.T) {
	if !haveHelper(t, ebpf.CGroupSock, asm.FnLoop) {
		oldkernel.Skip(t, 5, 17, "bpf_loop, and an iterator over Unix sockets")
	}
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		x.disconnect()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(s, err)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		// Not the first message, nor the only descriptor in it.
		require.NoError(s, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(pair[0]), nil, 0))
		require.NoError(s, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(pair[1], x.fd), nil, 0))
		require.NoError(s, unix.Close(x.fd))

		plan, err := migrate.MakePlan(s.Context(), planOptions(engine))
		require.NoError(s, err)
		assert.Zero(s, plan.Leaked)
		r, err := migrate.Run(s.Context(), migrateOptions(engine))
		require.ErrorIs(s, err, migrate.ErrUnresolved)
		assert.Equal(s, migrate.Counts{Entries: 1, Unknown: 1}, r.Counts)
		assert.Equal(s, 1, s.hashEntries())

		unix.Close(received(s, pair[1])[0])
		fds := received(s, pair[1])
		unix.Close(fds[0])
		x.fd = fds[1]
		r = s.migrates(engine)
		assert.Equal(s, migrate.Counts{Entries: 1, MovedPeers: 1}, r.Counts)
		assert.Equal(s, 1, x.tuples())
	})
}

// inFlight closes the socket, which is then only in a message that receiver has not received yet.
func inFlight(s *scene, x *socket) (receiver int) {
	s.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(s, err)
	s.Cleanup(func() { require.NoError(s, errors.Join(unix.Close(pair[0]), unix.Close(pair[1]))) })
	require.NoError(s, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(x.fd), nil, 0))
	require.NoError(s, unix.Close(x.fd))
	return pair[1]
}

// received are the descriptors in a message.
func received(s *scene, from int) []int {
	s.Helper()
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(8))
	_, n, _, _, err := unix.Recvmsg(from, buf, oob, unix.MSG_CMSG_CLOEXEC)
	require.NoError(s, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	require.NoError(s, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	require.NoError(s, err)
	return fds
}

// Sockets that have lost their entry, which only a plan finds.
func TestPlanCountsConnectionsWithoutEntry(t *testing.T) {
	migrating(t, either, func(s *scene, engine migrate.Engine) {
		// An address of its own: the plan is about every network namespace.
		backend := s.socket()
		backend.bind(netip.AddrPortFrom(sandbox.Numbered(s.plain, 5), 0))
		if !s.datagram() {
			require.NoError(s, unix.Listen(backend.fd, 4))
		}
		a := s.serviceTo(backend.sockname())
		x, evicted := s.socket(), s.socket()
		x.connect(a.front)
		evicted.connect(a.front)
		key := lbmap.ReverseSKKey{Cookie: evicted.cookie(), Backend: a.backend}
		require.NoError(s, legacyMap(a.backend).Delete(key))
		plan, err := migrate.MakePlan(s.Context(), planOptions(engine))
		require.NoError(s, err)
		assert.Equal(s, []migrate.BackendCount{{Backend: a.backend, Protocol: lbmap.Protocol(s.protocol), Sockets: 1}}, plan.WithoutEntry)
	})
}

// A socket has lost its entry if two looks say so. One that connects while a plan is made, or is closed then, has not.
func TestPlanCountsNoSocketThatConnectsMeanwhile(t *testing.T) {
	for _, protocol := range either {
		migratingIPv4(t, protocol, func(s *scene, engine migrate.Engine) {
			backend := s.socket()
			backend.bind(netip.AddrPortFrom(sandbox.Numbered(s.plain, 6), 0))
			if !s.datagram() {
				require.NoError(s, unix.Listen(backend.fd, 4096))
			}
			a := s.serviceTo(backend.sockname())
			lost := s.socket()
			lost.connect(a.front)
			require.NoError(s, legacyMap(a.backend).Delete(lbmap.ReverseSKKey{Cookie: lost.cookie(), Backend: a.backend}))
			if engine == migrate.EngineIter {
				// By its descriptor a socket gets a cookie.
				s.socket().connect(a.backend)
			}
			busy := s.connectsAllTheTime(a, backend)
			for range 5 {
				plan, err := migrate.MakePlan(s.Context(), planOptions(engine))
				require.NoError(s, err)
				require.Equal(s, []migrate.BackendCount{{Backend: a.backend, Protocol: lbmap.Protocol(s.protocol), Sockets: 1}}, plan.WithoutEntry)
			}
			s.Logf("%d sockets have connected meanwhile", busy())
		})
	}
}

// connectsAllTheTime connects sockets to a service, of which the last few are open. Stopped, it says how many. At a backend that accepts
// streams nobody else does.
func (s *scene) connectsAllTheTime(svc *service, backend *socket) (stop func() int) {
	var stopped atomic.Bool
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		open := make([][]*socket, 32)
		connect := func() error {
			x, err := newSocket(s.family, s.protocol)
			if err != nil {
				return err
			}
			open[n%len(open)] = []*socket{x}
			if err := x.tryConnect(svc.front); err != nil || s.datagram() {
				return err
			}
			fd, _, err := unix.Accept4(backend.fd, unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			open[n%len(open)] = []*socket{x, {fd: fd}}
			return unix.SetsockoptLinger(x.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // no TIME_WAIT
		}
		for ; !stopped.Load(); n++ {
			time.Sleep(200 * time.Microsecond) // others want the processor, too
			closeAll(open[n%len(open)])
			if !assert.NoError(s, connect()) {
				break
			}
		}
		for _, some := range open {
			closeAll(some)
		}
	})
	stop = sync.OnceValue(func() int { stopped.Store(true); wg.Wait(); return n })
	s.Cleanup(func() { stop() })
	return stop
}

func closeAll(all []*socket) {
	for _, x := range all {
		x.close()
	}
}

// The connection of an MPTCP socket keeps its service for termination, but it is not counted, and no rollback puts it back into the hash: nobody would
// remove it from there.
func TestMigrateConnectionOfAnMPTCPSocket(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		if engine == migrate.EnginePidfd {
			return // it has no descriptor
		}
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				needFamily(t, f)
				s := newScene(t, legacy, f, unix.IPPROTO_TCP)
				x := s.mptcpSocket()
				defer x.close()
				a := s.service()
				x.connect(a.front)
				require.Equal(s, 1, s.hashEntries())
				before := s.counters()
				assert.Equal(s, migrate.Counts{Entries: 1, MovedConn: 1}, s.migrates(engine).Counts)
				assert.Equal(s, before.Stored, s.counters().Stored)
				s.rollsBack()
				assert.Zero(s, s.hashEntries())
			})
		}
	})
}
