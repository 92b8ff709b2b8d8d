// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// Applications ask for the peer of their sockets and receive datagrams without pause while the datapath
// takes over from another agent, loses its hooks to it, takes them over once more, and hands them back.
// They never see a backend's address.
func TestTakeoverWithoutGap(t *testing.T) {
	for _, test := range []struct {
		name    string
		anchor  func(*reference.Agent) error
		restart func(*reference.Agent) error // puts the agent's programs back; nil: it cannot
	}{
		{
			"links",
			func(a *reference.Agent) error { return a.Link(sandbox.Cgroup(), agentLinks) },
			func(a *reference.Agent) error { return a.Update(agentLinks) },
		},
		{
			"attached beside others",
			func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), unix.BPF_F_ALLOW_MULTI) },
			nil,
		},
		{
			"attached so that cgroups below may override",
			func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), unix.BPF_F_ALLOW_OVERRIDE) },
			func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), unix.BPF_F_ALLOW_OVERRIDE) },
		},
		{
			"attached alone",
			func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), 0) },
			func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), 0) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			agent := otherAgent(t)
			require.NoError(t, test.anchor(agent))
			gapless(t, func() {
				takeOver(t)
				if test.restart != nil {
					require.NoError(t, test.restart(agent))
					takeOver(t)
				}
				require.NoError(t, loader.HandBack(context.Background(), takeoverOptions()))
			})
		})
	}
}

// agentLinks is where the other agent pins its links.
const agentLinks = "/sys/fs/bpf/agent/links"

// awaitDetached waits for links that are pinned no longer: the kernel detaches them a moment later.
func awaitDetached(t *testing.T, opts loader.Options) {
	t.Helper()
	require.Eventually(t, func() bool {
		runs, err := loader.AgentRuns(opts)
		return err == nil && !runs
	}, patience, tick)
}

// otherAgent makes an agent that keeps its state in the hash, in the place of our hooks: they are back when
// the test ends.
func otherAgent(t *testing.T) *reference.Agent {
	t.Helper()
	require.NoError(t, loader.Unload(context.Background(), options(), false))
	t.Cleanup(func() {
		reload(t, options())
		// The agent may have made maps anew.
		require.NoError(t, datapath.Close())
		var err error
		datapath, err = loader.Open(options())
		require.NoError(t, err)
	})
	full, err := options().WithDefaults()
	require.NoError(t, err)
	agent, err := newAgent(full.MapsDir, usual())
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, agent.Close())
		require.NoError(t, os.RemoveAll("/sys/fs/bpf/agent"))
		awaitDetached(t, options())
	})
	return agent
}

func takeoverOptions() loader.Options {
	opts := options()
	opts.PinsDir = "/sys/fs/bpf/takeover"
	opts.TakeoverLinks = agentLinks
	return opts
}

func takeOver(t *testing.T) {
	t.Helper()
	dp, err := loader.Load(context.Background(), takeoverOptions())
	require.NoError(t, err)
	defer dp.Close()
	status, err := dp.Status()
	require.NoError(t, err)
	require.True(t, status.Complete())
	require.Equal(t, loader.ModeDual, status.Mode)
}

// The whole way of an upgrade, and back: the hash of another agent has what live sockets need, our hooks
// take over, it is moved to the sockets and back to the hash, and the other agent gets its hooks back. The
// sockets ask all the time, and are always answered by their services.
func TestUpgradeAndBack(t *testing.T) {
	agent := otherAgent(t)
	require.NoError(t, agent.Link(sandbox.Cgroup(), agentLinks))
	c := newCrowd(t)
	c.mayLeak = true // the other agent leaves entries behind
	storage := loader.ModeStorage
	opts := migrate.Options{Loader: takeoverOptions(), To: &storage}
	want := int64(scaled(200_000))
	cycles := 0
	answers := c.poll(func(answers *atomic.Int64) {
		for ; answers.Load() < want || cycles < 2; cycles++ {
			takeOver(t)
			r, err := migrate.Run(t.Context(), opts)
			require.NoError(t, err, "%+v", r)
			require.Equal(t, loader.ModeStorage, r.Mode)
			require.Equal(t, c.tuples, r.MovedConn+r.MovedPeers+r.Present, "%+v", r)
			require.Zero(t, legacyCount(t))

			back, err := migrate.Rollback(t.Context(), migrate.RollbackOptions{Loader: opts.Loader})
			require.NoError(t, err, "%+v", back)
			require.Zero(t, back.Missing)
			require.Equal(t, c.tuples, legacyCount(t))
			require.NoError(t, loader.HandBack(t.Context(), opts.Loader))
		}
	})
	t.Logf("%d answers, all from the service, during %d cycles of takeover, migration, rollback, handing back", answers, cycles)
}

// In mode mirror the other agent may start again at any time: it puts its programs back one by one, in any order, and
// may stop half way. Whichever programs run, sockets that live and new ones see their services; and so they do when
// our hooks take over again, and when the agent has its hooks back for good.
func TestMirrorBesideTheOwnerOfTheHooks(t *testing.T) {
	agent := otherAgent(t)
	require.NoError(t, agent.Link(sandbox.Cgroup(), agentLinks))
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	names := slices.Sorted(maps.Keys(agent.Programs))
	opts := takeoverOptions()
	mirror, dual := loader.ModeMirror, loader.ModeDual
	opts.Mode = &dual
	gapless(t, func() {
		for range 2 {
			dp, err := loader.Load(context.Background(), opts)
			require.NoError(t, err)
			require.NoError(t, dp.Close())
			r, err := migrate.Run(context.Background(), migrate.Options{Loader: takeoverOptions(), To: &mirror})
			require.NoError(t, err, "%+v", r)
			require.Equal(t, mirror, r.Mode)
			random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names[:1+random.IntN(len(names))] {
				require.NoError(t, agent.UpdateSome(agentLinks, name))
				time.Sleep(2 * time.Millisecond)
			}
		}
		takeOver := opts
		takeOver.Mode = nil
		dp, err := loader.Load(context.Background(), takeOver)
		require.NoError(t, err)
		require.NoError(t, dp.Close())
		require.NoError(t, loader.HandBack(context.Background(), opts))
	})
}

// gapless repeats the cycle until applications have got enough answers, every one of them translated.
func gapless(t *testing.T, cycle func()) {
	const applications = 2
	leastAnswers, leastCycles := int64(scaled(200000)), scaled(3)
	var count answers
	var lives []func() error
	for s := range everyKind(t, loader.ModeLegacy) {
		s.mayLeak = true // the other agent's hooks leave entries behind
		a := s.service()
		lives = append(lives, func() error { return s.askAsConnected(a, &count) })
		if s.datagram() {
			lives = append(lives, func() error { return s.askAsSender(a, &count) })
		}
	}
	var enough atomic.Bool
	var wg sync.WaitGroup
	for first := range applications {
		wg.Go(func() {
			for i := first; !enough.Load(); i++ {
				if err := lives[i%len(lives)](); err != nil {
					count.wrong.Add(1)
					t.Log(err)
				}
			}
		})
	}
	defer wg.Wait()
	defer enough.Store(true)
	cycles := 0
	for cycles < leastCycles || count.peers.Load()+count.sources.Load() < leastAnswers {
		cycle()
		cycles++
	}
	enough.Store(true)
	wg.Wait()
	t.Logf("%d cycles beside %d answers of getpeername and %d of recvfrom on %d sockets, %d of them wrong",
		cycles, count.peers.Load(), count.sources.Load(), count.sockets.Load(), count.wrong.Load())
	assert.Zero(t, count.wrong.Load(), "answers that were not translated")
}

// answers counts what applications got.
type answers struct {
	sockets, peers, sources, wrong atomic.Int64
}

// lifetime is how often a socket asks before it makes way for another: some are older than a change of
// hooks, some younger.
const lifetime = 400

// askAsConnected is the life of a socket that connects to a service.
func (s *scene) askAsConnected(a *service, count *answers) error {
	x, err := newSocket(s.family, s.protocol)
	if err != nil {
		return err
	}
	defer x.close()
	count.sockets.Add(1)
	if err := x.tryConnect(a.front); err != nil {
		return err
	}
	if !s.datagram() {
		// As connectOnce does.
		if err := unix.SetsockoptLinger(x.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	for i := range lifetime {
		if err := x.shows(a); err != nil {
			return err
		}
		count.peers.Add(1)
		if !s.datagram() || i%4 != 0 {
			continue
		}
		if err := x.trySend("question"); err != nil {
			return err
		}
		if err := x.hears(a); err != nil {
			return err
		}
		count.sources.Add(1)
	}
	return nil
}

// askAsSender is the life of a socket that sends to a service without connecting to it.
func (s *scene) askAsSender(a *service, count *answers) error {
	x, err := newSocket(s.family, s.protocol)
	if err != nil {
		return err
	}
	defer x.close()
	count.sockets.Add(1)
	for range lifetime / 4 {
		if err := x.trySendTo(a.front, "question"); err != nil {
			return err
		}
		if err := x.hears(a); err != nil {
			return err
		}
		count.sources.Add(1)
	}
	return nil
}

// hears receives, and checks the source.
func (x *socket) hears(a *service) error {
	_, from, err := x.tryReceive(0)
	if err != nil {
		return fmt.Errorf("receiving from %v: %w", a.front, err)
	}
	if from != a.front {
		return fmt.Errorf("received from %v, sent to %v", from, a.front)
	}
	return nil
}
