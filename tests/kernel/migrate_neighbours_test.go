// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// migrateLevel is the level of the calls by which migrate visits sockets.
const migrateLevel = 0x72657673

// interfere calls setsockopt as migrate does, on a socket that it visits.
func interfere(fd int) {
	for range 2 {
		go func() {
			value := strings.Repeat("\x00", 16)
			for {
				_ = unix.SetsockoptString(fd, migrateLevel, 0, value)
				_ = unix.SetsockoptString(fd, migrateLevel, 0, "")
			}
		}()
	}
}

// leftovers writes entries of a socket that it does not need any more.
func (s *scene) leftovers(x *socket, n int) {
	s.Helper()
	cookie := x.cookie()
	for i := range n {
		svc := &service{front: netip.AddrPortFrom(s.family.services, 53), revNat: 1}
		backend := netip.AddrPortFrom(sandbox.Numbered(s.backends, i%100), uint16(10000+i/100))
		s.putHash(cookie, backend, svc)
	}
}

// Whoever shares a socket with others may call setsockopt on it whenever it likes, also while it is visited.
func TestMigrateMindsNobodyElsesCalls(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_TCP)
		leftovers := scaled(5000)
		var shared []*socket
		for range 2 {
			x := s.socket()
			x.connect(s.service().front)
			x.disconnect() // it is in no table: every engine visits it by descriptor
			s.leftovers(x, leftovers)
			shared = append(shared, x)
		}
		// The next sockets in the order in which they are visited.
		s.protocol = unix.IPPROTO_UDP
		var victims []*socket
		for range scaled(500) {
			x := s.socket()
			x.connect(s.service().front)
			x.disconnect()
			victims = append(victims, x)
		}
		for _, x := range shared {
			s.spawn(errand{Inherited: true, Interfere: true}, x)
		}
		r := s.migrates(engine)
		assert.Equal(t, len(victims), r.MovedPeers, "%+v", r.Counts)
		lost := 0
		for _, x := range victims {
			if x.tuples() != 1 {
				lost++
			}
		}
		assert.Zero(t, lost, "sockets have lost what they need")
	})
}

// Calls of others are left alone, those with large values too, of which hooks are shown a part only.
func TestMigrateLeavesSocketOptionsAlone(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_TCP)
		// Something to do for the hook.
		x := s.socket()
		x.connect(s.service().front)
		x.disconnect()
		s.leftovers(x, scaled(20000))
		y := s.socket()
		var calls atomic.Int64
		done := make(chan error, 1)
		var stop atomic.Bool
		go func() {
			for value := int32(20000); ; value++ {
				// The kernel reads an int of it.
				option := make([]byte, 5000)
				option[0], option[1] = byte(value), byte(value>>8)
				if err := unix.SetsockoptString(y.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, string(option)); err != nil {
					done <- err
					return
				}
				calls.Add(1)
				if stop.Load() {
					done <- nil
					return
				}
			}
		}()
		for calls.Load() == 0 && len(done) == 0 {
		}
		_, err := migrate.Run(t.Context(), migrateOptions(engine))
		stop.Store(true)
		require.NoError(t, err)
		require.NoError(t, <-done, "setsockopt beside migrate")
	})
}

// attachSockopt attaches a program to the setsockopt hook, which says so of every call with this level, and
// allows the others.
func attachSockopt(t *testing.T, flags uint32, level, says int32) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "policy", Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 24, asm.Word), // bpf_sockopt.level
			asm.Mov.Imm(asm.R0, 1),
			asm.JNE.Imm(asm.R1, level, "out"),
			asm.Mov.Imm(asm.R0, says),
			asm.Return().WithSymbol("out"),
		},
	})
	require.NoError(t, err)
	defer prog.Close()
	cgroup, err := os.Open(sandbox.Cgroup())
	require.NoError(t, err)
	attach := link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: prog, Attach: ebpf.AttachCGroupSetsockopt, Flags: flags}
	require.NoError(t, link.RawAttachProgram(attach))
	detach, err := prog.Clone()
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: attach.Target, Program: detach, Attach: attach.Attach}))
		detach.Close()
		cgroup.Close()
	})
}

// A program that wants the setsockopt hook for itself alone is in the way of those sockets only that are
// reached by that hook.
func TestMigrateBesideAnExclusiveSockoptProgram(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		for name, flags := range map[string]uint32{"alone": 0, "may be overridden": unix.BPF_F_ALLOW_OVERRIDE} {
			t.Run(name, func(t *testing.T) {
				s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
				a := s.service()
				x, y := s.socket(), s.socket()
				x.connect(a.front)
				attachSockopt(t, flags, 0, 1)
				if engine == migrate.EngineIter {
					r := s.migrates(engine)
					assert.Equal(t, migrate.Counts{Entries: 1, MovedConn: 1}, r.Counts)
					s.rollsBack()
				}
				y.connect(a.front)
				y.disconnect() // in no table
				r, err := migrate.Run(t.Context(), migrateOptions(engine))
				require.ErrorIs(t, err, migrate.ErrUnresolved)
				assert.Equal(t, loader.ModeDual, r.Mode)
				assert.Equal(t, 2, s.hashEntries(), "entries are kept")
				require.NotEmpty(t, r.Unresolved)
				for _, u := range r.Unresolved {
					assert.Contains(t, u.Why, `("policy")`, "the program in the way")
				}
				if engine == migrate.EngineIter {
					assert.Equal(t, 1, r.Unknown)
				}
				s.connected(x, a)
				s.mayLeak = true
			})
		}
	})
}

// A program that denies socket options which it does not know does not undo what the hook has done.
func TestMigrateBesideAProgramThatDeniesUnknownOptions(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
		x := s.socket()
		var all []*service
		for range 5 {
			all = append(all, s.service())
			s.asksService(x, all[len(all)-1])
		}
		x.connect(all[0].front)
		x.disconnect() // in no table
		attachSockopt(t, unix.BPF_F_ALLOW_MULTI, migrateLevel, 0)
		err := unix.SetsockoptString(x.fd, migrateLevel, 0, "x")
		require.True(t, errors.Is(err, unix.EPERM), "%v", err)
		r := s.migrates(engine)
		assert.Equal(t, len(all), r.MovedPeers, "%+v", r.Counts)
		assert.Equal(t, len(all), x.tuples())
	})
}
