// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

var stayDuration = flag.Duration("stay.duration", 0, "how long revsk stays beside another agent: everything happens at least once; 0: some of it does")

// stay is a datapath beside another agent on a node where sockets ask without pause: old ones that live all the time, and
// new ones.
type stay struct {
	*testing.T
	random *rand.Rand
	agents [2]*reference.Agent // the one that runs, and the one that it is when it has restarted
	opts   loader.Options
	names  []string

	answers answers
	enough  atomic.Bool
	// excused: the agent's own programs have lost what they knew, and answers are wrong until ours are back.
	excused atomic.Bool
	missed  atomic.Int64 // wrong answers then
}

// What can happen. Each begins and ends with our programs in all places, in mode mirror.
var stayEvents = map[string]func(*stay){
	"the agent restarts": func(s *stay) {
		s.restart()
		s.takeOver()
	},
	"the agent puts some of its programs back, in any order": func(s *stay) {
		s.random.Shuffle(len(s.names), func(i, j int) { s.names[i], s.names[j] = s.names[j], s.names[i] })
		for _, name := range s.names[:1+s.random.IntN(len(s.names))] {
			require.NoError(s, s.agents[0].UpdateSome(agentLinks, name))
			time.Sleep(2 * time.Millisecond)
		}
		s.takeOver()
	},
	"the agent is reconfigured, and as before": func(s *stay) {
		some := []string{"cil_sock4_getpeername", "cil_sock6_getpeername", "cil_sock6_post_bind"}
		for _, name := range some {
			require.NoError(s, os.Remove(filepath.Join(agentLinks, name)))
		}
		rest := slices.DeleteFunc(slices.Clone(s.names), func(name string) bool { return slices.Contains(some, name) })
		require.NoError(s, s.agents[0].UpdateSome(agentLinks, rest...))
		s.takeOver()
		require.NoError(s, s.agents[0].LinkSome(sandbox.Cgroup(), agentLinks, some...))
		s.takeOver()
	},
	"the agent is off, and on again": func(s *stay) {
		require.NoError(s, os.RemoveAll(agentLinks))
		time.Sleep(50 * time.Millisecond)
		s.problem(loader.ProblemAgentOff)
		require.NoError(s, s.agents[0].Link(sandbox.Cgroup(), agentLinks))
		s.problem(loader.ProblemBeside)
		s.takeOver()
	},
	"handed back, and taken over": func(s *stay) {
		require.NoError(s, loader.HandBack(context.Background(), s.opts))
		s.takeOver()
	},
	"revsk is upgraded, and downgraded": func(s *stay) {
		for _, l7 := range []bool{false, true} {
			opts := s.opts
			opts.Takeover, opts.TakeoverLinks = false, ""
			opts.ChangeFeatures = func(f *loader.Features) { f.L7 = l7 }
			dp, err := loader.Load(context.Background(), opts)
			require.NoError(s, err)
			require.NoError(s, dp.Close())
		}
	},
	"a takeover is killed": func(s *stay) {
		s.restart()
		s.killed("takeover")
		s.takeOver()
	},
	"a hand-back is killed": func(s *stay) {
		s.killed("hand-back")
		s.takeOver()
	},
	"a load is killed": func(s *stay) {
		s.killed("load")
		s.takeOver()
	},
	"the agent makes its hash anew, and restarts": func(s *stay) {
		full, err := s.opts.WithDefaults()
		require.NoError(s, err)
		s.excused.Store(true)
		for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
			require.NoError(s, os.Remove(filepath.Join(full.MapsDir, name)))
		}
		for i := range s.agents {
			s.agents[i] = s.newAgent(full.MapsDir)
		}
		s.restart()
		dp, err := loader.Load(context.Background(), s.opts)
		require.NoError(s, err)
		require.NoError(s, dp.Close())
		s.settle()
		s.excused.Store(false)
		s.takeOver()
	},
}

func (s *stay) newAgent(mapsDir string) *reference.Agent {
	agent, err := newAgent(mapsDir, usual())
	require.NoError(s, err)
	s.Cleanup(func() { require.NoError(s, agent.Close()) })
	return agent
}

// restart is what the agent does when it starts again: other programs, in the same links.
func (s *stay) restart() {
	s.agents[0], s.agents[1] = s.agents[1], s.agents[0]
	require.NoError(s, s.agents[0].Update(agentLinks))
}

// takeOver is revsk load --takeover.
func (s *stay) takeOver() {
	dp, err := loader.Load(context.Background(), s.opts)
	require.NoError(s, err)
	require.NoError(s, dp.Close())
	mirror := loader.ModeMirror
	r, err := migrate.Run(context.Background(), migrate.Options{Loader: s.opts, To: &mirror})
	require.NoError(s, err, "%+v", r)
	require.Equal(s, mirror, r.Mode)
}

// problem checks what the status says.
func (s *stay) problem(code string) {
	dp, err := loader.Open(s.opts)
	require.NoError(s, err)
	defer dp.Close()
	status, err := dp.Status()
	require.NoError(s, err)
	require.True(s, slices.ContainsFunc(status.Problems, func(p loader.Problem) bool { return p.Code == code }), "%s: %v", code, status.Problems)
}

// settle waits until every worker has asked once more.
func (s *stay) settle() {
	for until := s.answers.peers.Load() + 3000; s.answers.peers.Load() < until && !s.Failed(); time.Sleep(time.Millisecond) {
	}
}

const stayEnv = "REVSK_KERNEL_TEST_STAY"

// runStayChild is a process that changes the datapath, and is killed at some time.
func runStayChild() int {
	ctx := context.Background()
	opts := stayOptions()
	var err error
	switch os.Getenv(stayEnv) {
	case "takeover":
		var dp *loader.Datapath
		if dp, err = loader.Load(ctx, opts); err == nil {
			dp.Close()
			mirror := loader.ModeMirror
			_, err = migrate.Run(ctx, migrate.Options{Loader: opts, To: &mirror})
		}
	case "hand-back":
		err = loader.HandBack(ctx, opts)
	case "load":
		opts.Takeover, opts.TakeoverLinks = false, ""
		_, err = loader.Load(ctx, opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func stayOptions() loader.Options {
	opts := takeoverOptions()
	opts.Takeover = true
	opts.Wait = -1
	return opts
}

// killed does something in another process that is killed within the time that it takes.
func (s *stay) killed(what string) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stayEnv+"="+what)
	cmd.Stderr = os.Stderr
	require.NoError(s, cmd.Start())
	most := 5 * time.Second
	if what == "hand-back" {
		most = 200 * time.Millisecond
	}
	time.Sleep(time.Duration(s.random.Int64N(int64(most))))
	require.NoError(s, cmd.Process.Kill())
	_ = cmd.Wait()
}

// old is a socket that asks as long as the stay lasts.
type old struct {
	*scene
	service *service
	socket  *socket
	sends   bool // without being connected
}

func (o *old) ask() error {
	if o.sends {
		if err := o.socket.trySendTo(o.service.front, "question"); err != nil {
			return err
		}
		return o.socket.hears(o.service)
	}
	if err := o.socket.shows(o.service); err != nil || !o.datagram() {
		return err
	}
	if err := o.socket.trySend("question"); err != nil {
		return err
	}
	return o.socket.hears(o.service)
}

// work has the old sockets ask in turn, and now and then a new one lives its life.
func (s *stay) work(olds []*old, lives []func() error, first int) {
	for i := first; !s.enough.Load(); i++ {
		o := olds[i%len(olds)]
		err := o.ask()
		if err == nil {
			s.answers.peers.Add(1)
		}
		if err == nil && i%50 == 0 {
			err = lives[i/50%len(lives)]()
		}
		switch {
		case err == nil:
		case s.excused.Load():
			s.missed.Add(1)
		default:
			s.answers.wrong.Add(1)
			s.Log(err)
		}
	}
}

// Whatever the other agent does, and whatever is killed, applications get their answers from the services.
func TestStayBesideAnotherAgent(t *testing.T) {
	s := &stay{T: t, opts: stayOptions()}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s.random = rand.New(rand.NewPCG(seed, 0))
	s.agents[0] = otherAgent(t)
	full, err := s.opts.WithDefaults()
	require.NoError(t, err)
	s.agents[1] = s.newAgent(full.MapsDir)
	s.names = slices.Sorted(maps.Keys(s.agents[0].Programs))
	require.NoError(t, s.agents[0].Link(sandbox.Cgroup(), agentLinks))
	t.Cleanup(func() {
		opts := s.opts
		opts.Force = true
		if err := loader.HandBack(context.Background(), opts); !errors.Is(err, loader.ErrNotLoaded) {
			require.NoError(t, err)
		}
	})

	const workers = 3
	olds := make([][]*old, workers)
	var lives []func() error
	n := 0
	for sc := range everyKind(t, loader.ModeLegacy) {
		sc.mayLeak = true // the other agent's hooks leave entries behind
		for range 3 {
			a := sc.service()
			lives = append(lives, func() error { return sc.askAsConnected(a, &s.answers) })
			if sc.datagram() {
				lives = append(lives, func() error { return sc.askAsSender(a, &s.answers) })
			}
			for i := range 6 {
				o := &old{scene: sc, service: a, sends: sc.datagram() && i%2 == 1}
				if o.socket, err = newSocket(sc.family, sc.protocol); err == nil && !o.sends {
					err = o.socket.tryConnect(a.front)
				}
				require.NoError(t, err)
				if !sc.datagram() {
					require.NoError(t, unix.SetsockoptLinger(o.socket.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
				}
				t.Cleanup(o.socket.close)
				olds[n%workers] = append(olds[n%workers], o)
				n++
			}
		}
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { s.work(olds[i], lives, i) })
	}
	defer wg.Wait()
	defer s.enough.Store(true)

	happened := make(map[string]int)
	events := len(stayEvents)
	if *stayDuration == 0 {
		events = 3
	}
	s.takeOver()
	for start := time.Now(); len(happened) == 0 || time.Since(start) < *stayDuration; {
		for _, event := range s.shuffled()[:events] {
			before := s.answers.wrong.Load()
			began := time.Now()
			stayEvents[event](s)
			happened[event]++
			t.Logf("%-55s %6.1f s, %d wrong", event, time.Since(began).Seconds(), s.answers.wrong.Load()-before)
		}
	}
	s.enough.Store(true)
	wg.Wait()
	t.Logf("%d old sockets and %d new ones, %d answers, %d wrong; %d more while the agent's own programs had lost their hash; %v",
		n, s.answers.sockets.Load(), s.answers.peers.Load()+s.answers.sources.Load(), s.answers.wrong.Load(), s.missed.Load(), happened)
	assert.Zero(t, s.answers.wrong.Load(), "answers that were not translated")
}

func (s *stay) shuffled() []string {
	all := slices.Sorted(maps.Keys(stayEvents))
	s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}
