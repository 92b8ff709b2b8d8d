// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// hide leaves the socket in the file table of one thread only. It returns how it comes back to the others.
func hide(x *socket) (show func() error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	hidden, wanted, sent := make(chan error), make(chan struct{}), make(chan error)
	var keep func()
	keep = func() {
		runtime.LockOSThread() // never unlocked: the thread is no other goroutine's
		if unix.Gettid() == unix.Getpid() {
			go keep() // by another thread than that which has the files of the process
			select {}
		}
		hidden <- unix.Unshare(unix.CLONE_FILES)
		<-wanted
		sent <- unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(x.fd), nil, 0)
		select {}
	}
	go keep()
	if err := errors.Join(<-hidden, unix.Close(x.fd)); err != nil {
		panic(err)
	}
	return sync.OnceValue(func() error {
		close(wanted)
		if err := <-sent; err != nil {
			return err
		}
		buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(pair[1], buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == nil && n == 0 {
			err = errors.New("no descriptor in the message")
		}
		return err
	})
}

// An entry is deleted only if no way of looking for its socket finds it.
func TestMigrateKeepsWhatOneWayFinds(t *testing.T) {
	if oldkernel.Before(t, 5, 17) {
		oldkernel.Skip(t, 5, 17, "two ways to find the files of a thread")
	}
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
		x := s.socket()
		x.connect(s.service().front)
		s.leak(3)
		x.disconnect() // in no table of its protocol either
		c := s.spawn(errand{Inherited: true, Hide: true}, x)
		x.close()
		r, err := migrate.Run(t.Context(), migrateOptions(engine))
		require.ErrorIs(t, err, migrate.ErrUnresolved)
		assert.Equal(t, migrate.Counts{Entries: 4, Leaked: 3, Unknown: 1}, r.Counts)
		assert.Equal(t, 4, s.hashEntries())
		assert.Equal(t, loader.ModeDual, r.Mode)
		s.checks(c) // which shows it
		r = s.migrates(engine)
		assert.Equal(t, migrate.Counts{Entries: 4, MovedPeers: 1, Leaked: 3}, r.Counts)
	})
}

// A socket that is closed while it is visited has ended, with all that was to be moved to it.
func TestMigrateWhileSocketsAreClosed(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		for range *repeats {
			s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
			var all []*socket
			for range 6 {
				x := s.socket()
				x.connect(s.service().front)
				s.leftovers(x, scaled(500))
				all = append(all, x)
			}
			entries := s.hashEntries()
			var first sync.Once
			var closing sync.WaitGroup
			opts := migrateOptions(engine)
			opts.BeforeStep = func(step string) error {
				if step == "visit sockets" {
					first.Do(func() {
						closing.Go(func() {
							for _, x := range all {
								x.close()
							}
						})
					})
				}
				return nil
			}
			r, err := migrate.Run(t.Context(), opts)
			closing.Wait()
			require.NoError(t, err, "%+v", r)
			assert.Equal(t, loader.ModeStorage, r.Mode)
			assert.Equal(t, entries, r.Entries)
			assert.Zero(t, r.Unknown, "%+v", r.Counts)
			s.end()
		}
	})
}

// What is left of mode legacy is not said to have ended, only because the mode is storage already.
func TestMigrateInModeStorageTellsLeakedFromEnded(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
		x, y := s.socket(), s.socket()
		a := s.service()
		x.connect(a.front)
		y.connect(a.front)
		s.leak(3)
		s.setMode(loader.ModeStorage)
		x.connect(a.front) // now it holds it
		plan := s.hashEntries()
		r := s.migrates(engine)
		assert.Equal(t, migrate.Counts{Entries: plan, Present: 1, Ended: 1, Leaked: 3}, r.Counts)
		assert.Equal(t, plan, r.Deleted)
	})
}

// It could not be reached, and is closed before the second look: nobody needs its entry, and nothing is left to be done.
func TestMigrateASocketWhoseFilesAreGoneHasEnded(t *testing.T) {
	if !haveHelper(t, ebpf.CGroupSock, asm.FnLoop) {
		oldkernel.Skip(t, 5, 17, "bpf_loop, and an iterator over Unix sockets")
	}
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		holdIn(t, legacy, unix.IPPROTO_UDP, func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.disconnect()
			receiver := inFlight(s, x)
			opts := migrateOptions(engine)
			opts.BeforeStep = func(step string) error {
				if step == "confirm leaks" {
					x.fd = received(s, receiver)[0]
					return unix.Close(x.fd)
				}
				return nil
			}
			r, err := migrate.Run(s.Context(), opts)
			require.NoError(s, err)
			assert.Equal(s, migrate.Counts{Entries: 1, Ended: 1}, r.Counts)
			assert.Equal(s, loader.ModeStorage, r.Mode)
			assert.Zero(s, s.hashEntries())
		})
	})
}
