// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/childproc"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// program is the id of our program on a hook; 0 if there is none, or while hooks change and that cannot be told.
func (n *node) program(hook string) uint32 {
	dp, err := loader.Open(n.loader())
	if err != nil {
		return 0
	}
	defer dp.Close()
	hooks, err := dp.Hooks()
	if err != nil {
		n.Log(err)
	}
	for _, h := range hooks {
		if h.Program == "revsk_"+hook && h.Attached {
			return h.ProgramID
		}
	}
	return 0
}

// allOurs tells whether another agent's programs are back on no hook. While hooks change that may not be known.
func (n *node) allOurs() bool {
	dp, err := loader.Open(n.loader())
	if err != nil {
		return false
	}
	defer dp.Close()
	back, err := dp.TakenBack()
	return err == nil && back == 0
}

// Whatever is taken away is there again a moment later.
func TestLostHooksComeBack(t *testing.T) {
	n := newNode(t)
	r := n.start(n.options())
	r.ready()
	require.Len(t, eventsOf[Loaded](r), 1)
	pins := n.loader().PinsDir

	require.NoError(t, os.Remove(filepath.Join(pins, "links", "revsk_connect4")))
	took := awaits(t, "the hook is there again", soon, func() bool { return n.program("connect4") != 0 && len(eventsOf[Loaded](r)) >= 2 })
	t.Logf("a link whose pin was removed: there again after %v", took)

	loads := len(eventsOf[Loaded](r))
	require.NoError(t, loader.Unload(t.Context(), n.loader(), false))
	took = awaits(t, "loaded again", soon, func() bool { return len(eventsOf[Loaded](r)) > loads && n.program("connect4") != 0 })
	t.Logf("unloaded: loaded again after %v", took)
	r.ready()

	// The service maps are made anew.
	opts := n.loader()
	require.NoError(t, os.Remove(filepath.Join(opts.MapsDir, lbmap.Backends4Map)))
	before := n.program("connect4")
	spec := lbmap.MapSpec(lbmap.Backends4Map)
	spec.Name, spec.Pinning = "", ebpf.PinNone
	m, err := ebpf.NewMap(spec)
	require.NoError(t, err)
	require.NoError(t, m.Pin(filepath.Join(opts.MapsDir, lbmap.Backends4Map)))
	require.NoError(t, m.Close())
	awaits(t, "ours use the new map", soon, func() bool { p := n.program("connect4"); return p != 0 && p != before })
	r.ready()
	require.NoError(t, r.stop())
	require.NotZero(t, n.program("connect4"), "an agent that is stopped leaves the datapath running")
}

// Another agent's programs run when ours starts, and come back as often as it is restarted. Applications notice nothing.
func TestOwnerRestarts(t *testing.T) {
	n := newNode(t)
	owner, c := n.owned()
	opts := n.options()
	opts.Poll = 0 // the default
	opts.Loader.Takeover = true
	r := n.start(opts)
	r.inMode(loader.ModeMirror)
	r.ready()
	require.Len(t, eventsOf[TookOver](r), 1)
	for restart := 1; restart <= 3; restart++ {
		before := len(eventsOf[TookOver](r))
		require.NoError(t, owner.Update(n.links()))
		// The agent may see the first of the programs before the last is back, and take over twice.
		took := awaits(t, "taken over again", soon, func() bool { return len(eventsOf[TookOver](r)) > before && n.allOurs() })
		all := eventsOf[TookOver](r)
		last := all[len(all)-1]
		t.Logf("restart %d: taken over again after %v; the owner's programs ran for %v of it, as the agent has seen; load %v",
			restart, took, last.OwnerRan, last.Duration)
		r.inMode(loader.ModeMirror)
	}
	require.GreaterOrEqual(t, len(eventsOf[OwnerReturned](r)), 3)
	r.ready()
	require.NoError(t, r.stop())
	c.allRight()
	require.NoError(t, loader.HandBack(t.Context(), n.loader()))
}

// The other agent's programs are attached beside ours, since it was not there when ours were loaded.
func TestOwnerStartsBesideUs(t *testing.T) {
	n := newNode(t)
	dp, err := loader.Load(t.Context(), n.loader())
	require.NoError(t, err)
	require.NoError(t, dp.Close())
	opts := n.options()
	opts.Loader.Takeover = true
	r := n.start(opts)
	r.ready()
	n.owner()
	// The agent may see the first of the programs before the last is there.
	awaits(t, "taken over", soon, func() bool { return len(eventsOf[TookOver](r)) >= 1 })
	r.inMode(loader.ModeMirror)
	r.ready()
	require.NoError(t, r.stop())
	require.NoError(t, loader.HandBack(t.Context(), n.loader()))
}

func TestWithoutBeingToldNothingIsTakenOver(t *testing.T) {
	n := newNode(t)
	owner := n.owner()
	r := n.start(n.options())
	awaits(t, "it says so", soon, func() bool { return len(eventsOf[Failed](r)) > 0 })
	require.ErrorIs(t, eventsOf[Failed](r)[0].Err, loader.ErrAgentRuns)
	require.ErrorContains(t, r.Ready(), "another agent's program is attached")
	require.NoError(t, r.Alive())
	time.Sleep(3 * time.Second)
	require.Len(t, eventsOf[Failed](r), 1, "an error is said once")
	require.NoError(t, owner.Close())
	require.NoError(t, os.RemoveAll(n.links()))
	r.ready()
}

func TestOwnerLeaves(t *testing.T) {
	for policy, attached := range map[OwnerPolicy]bool{OwnerStay: true, OwnerHandBack: false, OwnerUnload: false} {
		t.Run(string(policy), func(t *testing.T) {
			n := newNode(t)
			owner := n.owner()
			n.services(service(1, lbmap.ProtocolUDP, n.backend("127.0.0.1"))) // tells where the owner translates
			opts := n.options()
			opts.Loader.Takeover, opts.WhenOwnerLeaves, opts.patience = true, policy, time.Second
			r := n.start(opts)
			r.inMode(loader.ModeMirror)
			r.ready()
			require.NoError(t, os.RemoveAll(n.links()))
			require.NoError(t, owner.Exit())
			if attached {
				time.Sleep(3 * time.Second)
				require.NotZero(t, n.program("connect4"))
				require.NoError(t, r.Ready())
			} else {
				awaits(t, "let go", soon, func() bool { return len(eventsOf[GaveBack](r)) == 1 })
				require.Equal(t, policy, eventsOf[OwnerLeft](r)[0].Policy)
				require.Zero(t, n.program("connect4"))
				r.ready()
			}
			// It is there again.
			if !attached {
				n.owner()
				awaits(t, "taken over again", soon, func() bool { return len(eventsOf[TookOver](r)) >= 2 })
				r.inMode(loader.ModeMirror)
				r.ready()
			}
			require.NoError(t, r.stop())
		})
	}
}

// While it is not known yet whether the owner is only being restarted, all else goes on: what is lost comes back, and the hash gets
// what it lacks.
func TestAllElseGoesOnWhileItWaitsForTheOwner(t *testing.T) {
	n := newNode(t)
	owner := n.owner()
	s := service(1, lbmap.ProtocolUDP, n.backend("127.0.0.1"))
	n.services(s)
	opts := n.options()
	opts.Loader.Takeover, opts.WhenOwnerLeaves, opts.patience = true, OwnerHandBack, time.Hour
	opts.RefillEvery = 100 * time.Millisecond
	r := n.start(opts)
	r.inMode(loader.ModeMirror)
	r.ready()
	c := n.client(s.Frontend)
	require.NoError(t, os.RemoveAll(n.links()))
	require.NoError(t, owner.Exit())
	awaits(t, "the owner is away", soon, func() bool { return r.Ready() != nil })

	loads := len(eventsOf[Loaded](r))
	require.NoError(t, os.Remove(filepath.Join(n.loader().PinsDir, "links", "revsk_connect4")))
	awaits(t, "the hook is there again", soon, func() bool { return n.program("connect4") != 0 && len(eventsOf[Loaded](r)) > loads })
	hash, err := ebpf.LoadPinnedMap(filepath.Join(n.loader().MapsDir, lbmap.ReverseSK4Map), nil)
	require.NoError(t, err)
	defer hash.Close()
	require.Equal(t, 1, n.emptied(hash))
	awaits(t, "the entry is there again", soon, func() bool { return n.emptied(hash) == 1 })
	require.Empty(t, eventsOf[OwnerLeft](r))
	require.NoError(t, c.asks())
	require.NoError(t, r.stop())
}

// emptied empties the hash, and returns how many entries it had.
func (n *node) emptied(hash *ebpf.Map) (entries int) {
	n.Helper()
	var all [][]byte
	var key, value []byte
	for it := hash.Iterate(); it.Next(&key, &value); {
		all = append(all, slices.Clone(key))
	}
	for _, key := range all {
		require.NoError(n, hash.Delete(key))
	}
	return len(all)
}

func TestHandsBackOnStop(t *testing.T) {
	n := newNode(t)
	owner := n.owner()
	back := n.backend("127.0.0.1")
	s := service(1, lbmap.ProtocolUDP, back)
	n.services(s)
	c := n.newCrowd(s.Frontend)
	opts := n.options()
	opts.Loader.Takeover, opts.OnStop = true, StopHandBack
	r := n.start(opts)
	r.inMode(loader.ModeMirror)
	require.NoError(t, r.stop())
	runs, err := loader.AgentRuns(n.loader())
	require.NoError(t, err)
	require.True(t, runs)
	require.NoDirExists(t, n.loader().PinsDir)
	c.allRight()
	require.NoError(t, owner.Close())
}

func TestTheSecondOnANodeWaits(t *testing.T) {
	n := newNode(t)
	first := n.start(n.options())
	first.ready()
	second := n.start(n.options())
	awaits(t, "the second waits", soon, func() bool { return len(eventsOf[Waiting](second)) == 1 })
	require.ErrorContains(t, second.Ready(), "another agent runs")
	third := n.start(n.options())
	awaits(t, "the third waits", soon, func() bool { return len(eventsOf[Waiting](third)) == 1 })
	require.NoError(t, third.stop(), "it need not wait for the others")
	require.Empty(t, eventsOf[Started](third))
	// However long it has waited, it is alive when it begins.
	alive := make(chan error, 1)
	second.mu.Lock()
	second.onEvent = func(e Event) {
		if _, ok := e.(Started); ok {
			alive <- second.Alive()
		}
	}
	second.mu.Unlock()
	second.Agent.mu.Lock()
	second.beats[loopDatapath] = time.Now().Add(-2 * stuckAfter)
	second.Agent.mu.Unlock()
	require.NoError(t, second.Alive())
	require.NoError(t, first.stop())
	require.NoError(t, <-alive)
	second.ready()
	require.NoError(t, second.stop())
	require.NoDirExists(t, lockDir(n.loader().PinsDir))
}

// A migration that fails is tried again, and what the hash has not taken is not forgotten.
func TestWhatTheHashLacksIsNotForgotten(t *testing.T) {
	n := newNode(t)
	a, err := New(n.options())
	require.NoError(t, err)
	a.ctx = t.Context()
	k := newKeeper(a)
	status := loader.Status{Mode: loader.ModeMirror}
	require.False(t, k.refillDue(status), "it begins with what is there")
	status.Counters.HashNotWritten++
	k.nextRefill = time.Now()
	require.True(t, k.refillDue(status))
	more, well := k.migrate(t.Context(), status)
	require.False(t, more || well, "nothing is loaded")
	require.True(t, k.refillDue(status))
}

// An agent that is stopped before it has begun leaves nothing.
func TestStoppedBeforeItBegins(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		require.NoError(t, Run(ctx, n.options()))
		require.NoDirExists(t, lockDir(n.loader().PinsDir))
		require.NoDirExists(t, n.loader().PinsDir)
	}
}

// childEnv names the directory of the node for a process that is an agent.
const childEnv = "REVSK_TEST_AGENT"

func runChild() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	dir := os.Getenv(childEnv)
	n := &node{dir: dir}
	opts := n.options()
	frugal()
	switch os.Getenv(childEnv + "_OPTIONS") {
	case optionsTakeover:
		opts.Loader.Takeover = true
	case optionsDefault:
		opts = Options{Loader: n.loader(), AuditEvery: -1}
	case holdSockets:
		return runHolder()
	case hostileProcess:
		return runHostile()
	}
	if err := Run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// The options of an agent in a process of its own.
const (
	optionsTakeover = "takeover"
	optionsDefault  = "default"
	// holdSockets is for a process that is no agent, but holds sockets.
	holdSockets = "hold"
	// hostileProcess is for one of nobody's.
	hostileProcess = "hostile"
)

// child starts an agent in a process of its own.
func (n *node) child(options string) *exec.Cmd {
	n.Helper()
	cmd := n.command(options)
	n.launch(cmd)
	return cmd
}

// loadedChild starts one with default options, and waits until it has loaded the datapath.
func (n *node) loadedChild() *exec.Cmd {
	n.Helper()
	agent := n.child(optionsDefault)
	awaits(n.T, "loaded", soon, func() bool { return n.program("connect4") != 0 && n.mode() == loader.ModeStorage })
	return agent
}

// launch starts a process that ends with the test at the latest, however the test ends.
func (n *node) launch(cmd *exec.Cmd) {
	n.Helper()
	require.NoError(n, childproc.Start(cmd))
	n.Cleanup(func() { _ = cmd.Process.Kill() })
}

func (n *node) command(options string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+n.dir, childEnv+"_OPTIONS="+options)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

var killTime = flag.Duration("agent.kills", 12*time.Second, "for how long the agent is killed again and again")

// The agent is killed at random moments, while the owner restarts at others. What it has left undone the next one does.
func TestKilledAtAnyMoment(t *testing.T) {
	n := newNode(t)
	owner, c := n.owned()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kills, restarts := 0, 0
	for end := time.Now().Add(*killTime); time.Now().Before(end); kills++ {
		agent := n.child(optionsTakeover)
		time.Sleep(100*time.Millisecond + time.Duration(random.IntN(2900))*time.Millisecond)
		require.NoError(t, agent.Process.Kill())
		_ = agent.Wait()
		if random.IntN(2) == 0 {
			restarts++
			require.NoError(t, owner.Update(n.links()))
		}
	}
	t.Logf("%d kills, %d restarts of the owner", kills, restarts)
	opts := n.options()
	opts.Loader.Takeover = true
	r := n.start(opts)
	r.inMode(loader.ModeMirror)
	r.ready()
	c.allRight()
	require.NoError(t, r.stop())
	require.NoError(t, loader.HandBack(t.Context(), n.loader()))
}

func TestOptionsThatMeanNothingAreRefused(t *testing.T) {
	dual := loader.ModeDual
	for name, opts := range map[string]Options{
		"mode":   {Loader: loader.Options{Mode: &dual}},
		"to":     {To: &dual},
		"owner":  {WhenOwnerLeaves: "go"},
		"stop":   {OnStop: "run"},
		"end":    {Termination: Termination{Protocols: "sctp"}},
		"active": {Termination: Termination{States: []lbmap.BackendState{lbmap.BackendActive}}},
		"share":  {Termination: Termination{MaxShare: 2}},
		"grace":  {Termination: Termination{Grace: -1}},
	} {
		_, err := New(opts)
		require.ErrorIs(t, err, ErrInvalid, name)
	}
}

func TestConfigureOfAnAgentThatRuns(t *testing.T) {
	n := newNode(t)
	r := n.start(n.options())
	r.ready()
	opts := n.options()
	opts.Loader.PinsDir = filepath.Join(n.dir, "elsewhere")
	require.ErrorIs(t, r.Configure(opts), ErrInvalid)

	features := loader.DefaultFeatures()
	features.NodePort = false
	opts = n.options()
	opts.Loader.Features = &features
	require.NoError(t, r.Configure(opts))
	awaits(t, "loaded anew", soon, func() bool {
		dp, err := loader.Open(n.loader())
		if err != nil {
			return false
		}
		defer dp.Close()
		s, err := dp.Status()
		return err == nil && !s.Features.NodePort
	})
}

// What a log has of it: one line an event.
func TestEventsAreOneLine(t *testing.T) {
	n := newNode(t)
	r := n.start(n.options())
	r.ready()
	require.NoError(t, r.stop())
	for _, e := range r.events {
		_, message, attrs := e.Line()
		require.NotContains(t, message, "\n")
		for _, a := range attrs {
			require.NotContains(t, a.Value.String(), "\n")
		}
		require.Equal(t, strings.TrimSpace(message), message)
	}
}

// What fails again and again is said once, and counted.
func TestAFailureIsSaidOnce(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.SurveyEvery = 200 * time.Millisecond
	r := n.start(opts)
	r.ready()
	pin := filepath.Join(n.loader().PinsDir, "revsk_conn")
	away := filepath.Join(n.dir, "away")
	require.NoError(t, os.Rename(pin, away))
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, other.Pin(pin))
	for _, step := range []string{stepLook, stepSurvey} {
		// A survey rests in proportion to the time that the last one took which succeeded.
		awaits(t, step+" fails three times", 5*time.Minute, func() bool {
			r.Agent.mu.Lock()
			defer r.Agent.mu.Unlock()
			return r.tally.errors[step] >= 3
		})
		said := 0
		for _, e := range eventsOf[Failed](r) {
			if e.Step == step {
				said++
			}
		}
		require.Equal(t, 1, said, step)
	}
	require.NoError(t, r.stop())
	require.NoError(t, os.Remove(pin))
	require.NoError(t, os.Rename(away, pin))
}
