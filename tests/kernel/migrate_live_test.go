// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// crowd is connected sockets of all kinds, and unconnected ones that talk to several services.
type crowd struct {
	*scene
	tuples    int // that they have
	connected []*socket
	to        []*service
	senders   []*socket
	all       [][]*service // of the senders
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
	c := &crowd{scene: s}
	for _, f := range families {
		if f.domain == unix.AF_INET6 && !haveIPv6 {
			continue
		}
		for _, protocol := range either {
			s.family, s.protocol = f, protocol
			x, svc := s.socket(), s.service()
			x.connect(svc.front)
			c.connected, c.to = append(c.connected, x), append(c.to, svc)
			c.tuples++
			if !s.datagram() {
				continue
			}
			y := s.socket()
			var all []*service
			for range 6 {
				all = append(all, s.service())
				s.asksService(y, all[len(all)-1])
			}
			c.senders, c.all = append(c.senders, y), append(c.all, all)
			c.tuples += len(all)
		}
	}
	require.Equal(t, c.tuples, legacyCount(t))
	return c
}

// check looks at every answer that the sockets can get, once.
func (c *crowd) check() error {
	for i, x := range c.connected {
		if err := x.shows(c.to[i]); err != nil {
			return err
		}
	}
	for i, y := range c.senders {
		for _, svc := range c.all[i] {
			if err := asked(y, svc, "question"); err != nil {
				return err
			}
		}
	}
	return nil
}

// poll has every socket ask without pause while f runs, and returns how many answers there were. Each has
// to name the service.
func (c *crowd) poll(f func(answers *atomic.Int64)) int64 {
	c.Helper()
	var stop atomic.Bool
	var answers atomic.Int64
	errs := make(chan error, len(c.connected)+len(c.senders))
	var wg sync.WaitGroup
	ask := func(once func() (int64, error)) {
		wg.Go(func() {
			for !stop.Load() {
				n, err := once()
				if err != nil {
					errs <- err
					return
				}
				answers.Add(n)
			}
		})
	}
	for i, x := range c.connected {
		ask(func() (int64, error) {
			for range 100 {
				if err := x.shows(c.to[i]); err != nil {
					return 0, err
				}
			}
			return 100, nil
		})
	}
	for i, y := range c.senders {
		ask(func() (int64, error) {
			for _, svc := range c.all[i] {
				if err := asked(y, svc, "question"); err != nil {
					return 0, err
				}
			}
			return int64(len(c.all[i])), nil
		})
	}
	f(&answers)
	stop.Store(true)
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(c, err)
	}
	return answers.Load()
}

func TestMigrateLeavesNoGap(t *testing.T) {
	c := newCrowd(t)
	engines := []migrate.Engine{migrate.EnginePidfd}
	if _, err := migrate.Run(t.Context(), migrateOptions(migrate.EngineIter)); err == nil {
		engines = append(engines, migrate.EngineIter) // in turn
	}
	c.rollsBack()
	want := int64(scaled(1_000_000))
	cycles := 0
	answers := c.poll(func(answers *atomic.Int64) {
		for ; answers.Load() < want || cycles < 2; cycles++ {
			reload(t, options())
			c.migrates(engines[cycles%len(engines)])
			reload(t, options())
			c.rollsBack()
		}
	})
	t.Logf("%d answers, all from the service, during %d cycles of load, migrate, load, rollback", answers, cycles)
	c.mayLeak = true
}

// Sockets that turn elsewhere while they are visited end with what the hooks have written last.
// Between reading the hash and visiting the sockets the applications go on. What they turn away from meanwhile is in neither
// state any more, and stays so.
func TestMigrateRevivesNothing(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		a, b := s.service(), s.service()
		x, y, z := s.socket(), s.socket(), s.socket()
		x.connect(a.front)
		y.connect(a.front)
		s.asksService(z, b)
		opts := migrateOptions(engine)
		played := false
		opts.Progress = func(p migrate.Progress) {
			if p.Step != "visit sockets" || played {
				return
			}
			played = true
			// In both states, and in the hash alone.
			x.connect(a.front)
			x.connect(a.backend)
			y.connect(a.backend)
			s.asksService(z, b)
			s.asks(z, b.backend, b.backend, b.backend)
		}
		r, err := migrate.Run(s.Context(), opts)
		require.NoError(s, err, "%+v", r)
		require.True(s, played)
		assert.Equal(s, 3, r.Ended, "%+v", r)
		same(s, a.backend, x.peername(), "getpeername")
		same(s, a.backend, y.peername(), "getpeername")
		s.asks(z, b.backend, b.backend, b.backend)
	})
}

// The hash has one entry of a peer, which says what the socket has sent last. What hooks have stored says more, and stays.
func TestMigrateLeavesWhatHooksHaveStored(t *testing.T) {
	migratingIPv4(t, unix.IPPROTO_UDP, func(s *scene, engine migrate.Engine) {
		s.setMode(loader.ModeDual)
		a := s.service()
		b := s.serviceTo(a.backend)
		x := s.socket()
		x.connect(a.front)
		q := s.question()
		x.sendTo(b.front, q)
		conn, sent := *x.conn(), x.peers().Tuples()
		r := s.migrates(engine)
		assert.Equal(s, migrate.Counts{Entries: 1, Present: 1}, r.Counts)
		assert.Equal(s, conn, *x.conn())
		assert.Equal(s, sent, x.peers().Tuples())
		same(s, a.front, x.peername(), "getpeername")
		s.heard(x, q, a.backend, b.front)
	})
}

func TestMigrateLosesAgainstLiveHooks(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		a, b := s.service(), s.service()
		other := s.serviceTo(a.backend) // the same backend by another name
		var xs []*socket
		for range 16 {
			x := s.socket()
			x.connect(a.front)
			xs = append(xs, x)
		}
		for range *repeats {
			for _, x := range xs {
				x.connect(a.front)
			}
			last := make([]netip.AddrPort, len(xs))
			errs := make([]error, len(xs))
			var stop atomic.Bool
			var wg sync.WaitGroup
			for i, x := range xs {
				wg.Go(func() {
					choices := []struct{ connect, shows netip.AddrPort }{
						{a.front, a.front}, {b.front, b.front}, {other.front, other.front},
						{a.backend, a.backend}, {b.backend, b.backend},
					}
					for !stop.Load() && errs[i] == nil {
						c := choices[rand.IntN(len(choices))]
						errs[i] = x.tryConnect(c.connect)
						last[i] = c.shows
						time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
					}
				})
			}
			r, err := migrate.Run(s.Context(), migrateOptions(engine))
			stop.Store(true)
			wg.Wait()
			require.NoError(s, err, "%+v", r)
			s.addUp(r.Counts)
			for i, x := range xs {
				require.NoError(s, errs[i])
				same(s, last[i], x.peername(), "getpeername")
			}
			s.rollsBack()
			for i, x := range xs {
				same(s, last[i], x.peername(), "getpeername after a rollback")
			}
		}
		s.mayLeak = true // in the hash, as ever in legacy mode
	})
}

// A worker is this executable as a process that migrates or rolls back.
const workerEnv = "REVSK_KERNEL_TEST_WORKER"

type work struct {
	Rollback bool
	Engine   migrate.Engine
}

func workerRole() string { return os.Getenv(workerEnv) }

func runWorker() int {
	var w work
	err := json.Unmarshal([]byte(workerRole()), &w)
	if err == nil {
		err = w.do()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (w work) do() error {
	if w.Rollback {
		_, err := migrate.Rollback(context.Background(), rollbackOptions())
		return err
	}
	_, err := migrate.Run(context.Background(), migrateOptions(w.Engine))
	return err
}

func (s *scene) startWorker(w work) *exec.Cmd {
	s.Helper()
	role, err := json.Marshal(w)
	require.NoError(s, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerEnv+"="+string(role))
	cmd.Stderr = os.Stderr
	require.NoError(s, cmd.Start())
	return cmd
}

func TestMigrateKilled(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		c := newCrowd(t)
		c.leak(100)
		// How long they take: a kill comes at any moment of that.
		took := make(map[bool]time.Duration)
		for _, back := range []bool{false, true} {
			start := time.Now()
			require.NoError(t, c.startWorker(work{back, engine}).Wait())
			took[back] = time.Since(start)
		}
		killed, done := 0, 0
		for range *repeats {
			for _, back := range []bool{false, true} {
				w := work{back, engine}
				cmd := c.startWorker(w)
				time.Sleep(rand.N(took[back] * 11 / 10))
				_ = cmd.Process.Kill()
				if cmd.Wait() == nil {
					done++ // it was faster
				} else {
					killed++
				}
				require.NoError(t, c.check(), "after a kill")
				require.NoError(t, w.do(), "the run after the kill")
				require.NoError(t, c.check(), "after the run after the kill")
				held := 0
				for _, x := range c.sockets {
					held += x.tuples()
				}
				if back {
					require.Equal(t, c.tuples, legacyCount(t), "entries, each once")
				} else {
					require.Equal(t, c.tuples, held, "tuples, each once")
					require.Zero(t, legacyCount(t))
				}
			}
		}
		t.Logf("%d killed, %d had come to their end before", killed, done)
		assert.Positive(t, killed)
		c.mayLeak = true
	})
}
