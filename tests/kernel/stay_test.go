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
	"regexp"
	"slices"
	"strconv"
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

var (
	stayDuration = flag.Duration("stay.duration", 0, "how long revsk stays beside another agent at least: everything happens often; 0: some of it happens once")
	staySeed     = flag.Uint64("stay.seed", 0, "what decides what happens in which order; 0: chance")
)

// owner is how the other agent attaches its programs.
type owner struct {
	name  string
	links bool
	flags uint32 // without links
}

// stay is a datapath beside another agent on a node where sockets ask without pause: old ones that live all the time, and
// new ones.
type stay struct {
	*testing.T
	owner
	random *rand.Rand
	agents [2]*reference.Agent // the one that runs, and the one that it is when it has restarted
	opts   loader.Options
	names  []string // of the agent's programs

	answers answers
	enough  atomic.Bool
	// excused: programs that know the sockets are not attached, or others beside ours, so that answers can be wrong until ours are back.
	excused atomic.Bool
	missed  atomic.Int64 // wrong answers then
	// Linux loses about one datagram in ten millions on its way to an open socket, with and without BPF programs: connect
	// moves a socket to another list, and a search that has just come to this socket goes on in that list. The datagram counts
	// as one to a port that nobody has (NoPorts of Udp in /proc/net/snmp).
	lost    atomic.Int64 // such datagrams, after which an application waited in vain
	unfound atomic.Int64 // NoPorts a moment ago
	kills   int          // of processes that were not through
	// took is how long each step has taken the last time.
	took map[string]time.Duration
}

// event is what can happen, and how often it does at least in the long form. Each begins and ends with our programs in all
// places, in mode mirror.
type event struct {
	name   string
	least  int
	happen func(*stay)
}

var stayEvents = []event{
	{"the agent restarts", 20, func(s *stay) {
		s.swap()
		s.start(s.names...)
		s.takeOver()
	}},
	{"the agent puts some of its programs back, in any order", 10, func(s *stay) {
		for _, name := range s.someNames() {
			s.start(name)
			time.Sleep(2 * time.Millisecond)
		}
		s.takeOver()
	}},
	{"the agent is reconfigured, and as before", 5, func(s *stay) {
		some := []string{"cil_sock4_getpeername", "cil_sock6_getpeername", "cil_sock6_post_bind"}
		s.stop(some...)
		s.start(s.namesBut(some)...)
		s.takeOver()
		s.startAgain(some...)
		s.takeOver()
	}},
	{"the agent is off, and on again", 3, func(s *stay) {
		s.stop(s.names...)
		if s.links {
			s.problem(loader.ProblemAgentOff)
		} else if !s.beside() {
			s.problem(loader.ProblemNotAttached)
		}
		s.load()
		s.startAgain(s.names...)
		s.takeOver()
	}},
	{"the agent is killed while it turns itself off, and starts", 3, func(s *stay) {
		some := s.someNames()
		s.stop(some...)
		s.load()
		s.swap()
		s.startAgain(some...)
		s.start(s.namesBut(some)...)
		s.takeOver()
	}},
	{"handed back, and taken over", 10, func(s *stay) {
		s.handBack()
		s.takeOver()
	}},
	{"revsk is upgraded, and downgraded", 3, func(s *stay) {
		for _, l7 := range []bool{false, true} {
			opts := s.opts
			opts.Takeover, opts.TakeoverLinks = false, ""
			opts.ChangeFeatures = func(f *loader.Features) { f.L7 = l7 }
			dp, err := loader.Load(context.Background(), opts)
			require.NoError(s, err)
			require.NoError(s, dp.Close())
		}
	}},
	{"a takeover is killed", 5, func(s *stay) {
		s.swap()
		s.start(s.names...)
		s.killed("load", s.took["load"])
		s.takeOver()
	}},
	{"a migration is killed", 5, func(s *stay) {
		dp, err := loader.Open(s.opts)
		require.NoError(s, err)
		require.NoError(s, dp.SetMode(context.Background(), loader.ModeDual, false))
		require.NoError(s, dp.Close())
		s.killed("migrate", s.took["migrate"])
		s.takeOver()
	}},
	{"a hand-back is killed", 5, func(s *stay) {
		s.killed("hand-back", s.took["hand-back"])
		s.takeOver()
	}},
	{"an upgrade is killed", 5, func(s *stay) {
		s.killed("upgrade", s.took["load"])
		s.takeOver()
	}},
	{"the agent makes its hash anew, and restarts", 3, func(s *stay) {
		full, err := s.opts.WithDefaults()
		require.NoError(s, err)
		for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
			require.NoError(s, os.Remove(filepath.Join(full.MapsDir, name)))
		}
		for i := range s.agents {
			s.agents[i] = s.newAgent(full.MapsDir)
		}
		s.excused.Store(true)
		s.start(s.names...)
		s.takeOver()
	}},
}

func (s *stay) newAgent(mapsDir string) *reference.Agent {
	agent, err := newAgent(mapsDir, usual())
	require.NoError(s, err)
	s.Cleanup(func() { require.NoError(s, agent.Close()) })
	return agent
}

// swap makes the agent another process, with programs of its own.
func (s *stay) swap() { s.agents[0], s.agents[1] = s.agents[1], s.agents[0] }

// beside tells whether the agent's programs do not come in the place of ours, but beside them: each then sees what the other has
// translated.
func (s *stay) beside() bool { return s.flags&unix.BPF_F_ALLOW_MULTI != 0 }

// start is what the agent does with some of its programs when it starts: it updates the links that are pinned, and makes those that are
// not. Without links it attaches them.
func (s *stay) start(names ...string) {
	s.excused.Store(s.excused.Load() || s.beside())
	for _, name := range names {
		var err error
		if !s.links {
			err = s.agents[0].AttachSome(sandbox.Cgroup(), s.flags, name)
		} else if _, missing := os.Lstat(filepath.Join(agentLinks, name)); missing != nil {
			err = s.agents[0].LinkSome(sandbox.Cgroup(), agentLinks, name)
		} else {
			err = s.agents[0].UpdateSome(agentLinks, name)
		}
		require.NoError(s, err)
	}
}

// stop is what the agent does with programs that it has no use for any more. Without links it detaches what is there, be it ours;
// beside others the kernel detaches its own only, which ours have replaced.
func (s *stay) stop(names ...string) {
	switch {
	case s.beside():
	case s.links:
		for _, name := range names {
			require.NoError(s, os.Remove(filepath.Join(agentLinks, name)))
		}
	default:
		s.excused.Store(true)
		require.NoError(s, s.agents[0].DetachSome(sandbox.Cgroup(), names...))
	}
}

// startAgain is start of programs that the agent had stopped. They run beside ours; where the kernel does not attach them there, because
// ours have links by then, ours go first.
func (s *stay) startAgain(names ...string) {
	if s.links || s.beside() {
		s.start(names...)
		s.problem(loader.ProblemBeside)
		return
	}
	require.ErrorIs(s, s.agents[0].AttachSome(sandbox.Cgroup(), s.flags, names[0]), unix.EPERM)
	s.excused.Store(true)
	s.handBack()
	s.start(names...)
}

// load is revsk load --takeover.
func (s *stay) load() {
	defer s.timed("load")()
	dp, err := loader.Load(context.Background(), s.opts)
	require.NoError(s, err)
	require.NoError(s, dp.Close())
	s.excused.Store(false)
}

// handBack is revsk unload --hand-back.
func (s *stay) handBack() {
	defer s.timed("hand-back")()
	require.NoError(s, loader.HandBack(context.Background(), s.opts))
}

// timed notes how long a step takes, until the function that it returns is called.
func (s *stay) timed(step string) func() {
	began := time.Now()
	return func() { s.took[step] = time.Since(began) }
}

// takeOver is the command revsk load --takeover, which migrates, too.
func (s *stay) takeOver() {
	s.load()
	defer s.timed("migrate")()
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

// namesBut are those of all of the agent's programs but some.
func (s *stay) namesBut(some []string) []string {
	return slices.DeleteFunc(slices.Clone(s.names), func(name string) bool { return slices.Contains(some, name) })
}

// someNames are those of some of the agent's programs, in any order.
func (s *stay) someNames() []string {
	all := slices.Clone(s.names)
	s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+s.random.IntN(len(all))]
}

const stayEnv = "REVSK_KERNEL_TEST_STAY"

// runStayChild is a process that changes the datapath, and is killed at some time.
func runStayChild() int {
	ctx := context.Background()
	opts := stayOptions()
	var err error
	switch os.Getenv(stayEnv) {
	case "migrate":
		mirror := loader.ModeMirror
		_, err = migrate.Run(ctx, migrate.Options{Loader: opts, To: &mirror})
	case "hand-back":
		err = loader.HandBack(ctx, opts)
	case "upgrade":
		opts.Takeover, opts.TakeoverLinks = false, ""
		_, err = loader.Load(ctx, opts)
	case "load":
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

// killed does a step in another process that is killed within about the time that it takes.
func (s *stay) killed(step string, took time.Duration) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stayEnv+"="+step)
	cmd.Stderr = os.Stderr
	require.NoError(s, cmd.Start())
	time.Sleep(time.Duration(s.random.Int64N(int64(took + 100*time.Millisecond))))
	require.NoError(s, cmd.Process.Kill())
	_ = cmd.Wait()
	if !cmd.ProcessState.Exited() {
		s.kills++
	}
}

// old is a socket that asks as long as the stay lasts: what it is connected to, or two services that it sends to.
type old struct {
	*scene
	socket *socket
	peer   *service // nil: it is not connected
	others [2]*service
	asked  int
}

func (o *old) ask() error {
	o.asked++
	if other := o.others[o.asked/4%2]; o.peer == nil || o.datagram() && o.asked%4 == 0 {
		err := o.socket.trySendTo(other.front, "question")
		if err == nil && o.peer == nil { // the kernel drops the answer to a socket that is connected elsewhere
			err = o.socket.hears(other)
		}
		if err != nil || o.peer == nil {
			return err
		}
	}
	if err := o.socket.shows(o.peer); err != nil || !o.datagram() {
		return err
	}
	if err := o.socket.trySend("question"); err != nil {
		return err
	}
	return o.socket.hears(o.peer)
}

// olds opens the sockets of a scene that live all the time.
func (s *stay) olds(sc *scene) (all []*old) {
	services := []*service{sc.service(), sc.service(), sc.service()}
	for i := range 18 {
		o := &old{scene: sc, others: [2]*service{services[(i+1)%3], services[(i+2)%3]}}
		var err error
		connected := !sc.datagram() || sc.protocol == unix.IPPROTO_UDP && i%2 == 0 // connect has no hook for UDP-Lite
		if o.socket, err = newSocket(sc.family, sc.protocol); err == nil && connected {
			o.peer = services[i%3]
			err = o.socket.tryConnect(o.peer.front)
		}
		require.NoError(s, err)
		s.Cleanup(o.socket.close)
		if !sc.datagram() {
			require.NoError(s, unix.SetsockoptLinger(o.socket.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		}
		all = append(all, o)
	}
	return all
}

// work has the old sockets ask in turn, and now and then a new one lives its life.
func (s *stay) work(olds []*old, lives []func() error, first int) {
	for i := first; !s.enough.Load(); i++ {
		excused, began, unfound := s.excused.Load(), time.Now(), s.unfound.Load()
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
		case excused || s.excused.Load():
			s.missed.Add(1)
		case errors.Is(err, unix.EAGAIN) && unfoundDatagrams(s.T) > unfound:
			s.lost.Add(1)
			s.Logf("%s, protocol %d, after %v: the kernel did not find the socket of a datagram: %v", o.name, o.protocol, time.Since(began), err)
		default:
			s.answers.wrong.Add(1)
			s.Logf("%s, protocol %d, after %v: %v", o.name, o.protocol, time.Since(began), err)
		}
	}
}

// Whatever the other agent does, and whatever is killed, applications get their answers from the services.
func TestStayBesideAnotherAgent(t *testing.T) {
	for _, o := range []owner{
		{name: "links", links: true},
		{name: "attached so that cgroups below may override", flags: unix.BPF_F_ALLOW_OVERRIDE},
		{name: "attached alone"},
		{name: "attached beside others", flags: unix.BPF_F_ALLOW_MULTI},
	} {
		if o.links || *stayDuration != 0 {
			t.Run(o.name, func(t *testing.T) { stayBeside(t, o) })
		}
	}
}

func stayBeside(t *testing.T, owner owner) {
	s := &stay{T: t, owner: owner, opts: stayOptions(), took: map[string]time.Duration{"hand-back": 200 * time.Millisecond}}
	seed := *staySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	s.random = rand.New(rand.NewPCG(seed, 0))
	if *scale < 100 { // to load programs takes a slow machine minutes
		s.opts.Programs = new(loader.Programs)
		defer func() { require.NoError(t, s.opts.Programs.Close()) }()
	}
	s.agents[0] = otherAgent(t)
	full, err := s.opts.WithDefaults()
	require.NoError(t, err)
	s.agents[1] = s.newAgent(full.MapsDir)
	s.names = slices.Sorted(maps.Keys(s.agents[0].Programs))
	s.start(s.names...)
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
	protocols := either
	if haveUDPLite(t) {
		protocols = append(slices.Clone(either), unix.IPPROTO_UDPLITE)
	}
	for sc := range everyKind(t, loader.ModeLegacy, protocols...) {
		sc.mayLeak = true // the other agent's hooks leave entries behind
		for _, o := range s.olds(sc) {
			olds[n%workers] = append(olds[n%workers], o)
			n++
		}
		for _, a := range sc.services {
			if sc.protocol != unix.IPPROTO_UDPLITE {
				lives = append(lives, func() error { return sc.askAsConnected(a, &s.answers) })
			}
			if sc.datagram() {
				lives = append(lives, func() error { return sc.askAsSender(a, &s.answers) })
			}
		}
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { s.work(olds[i], lives, i) })
	}
	wg.Go(func() {
		for ; !s.enough.Load(); time.Sleep(100 * tick) {
			s.unfound.Store(unfoundDatagrams(t))
		}
	})
	defer wg.Wait()
	defer s.enough.Store(true)

	s.takeOver()
	happened := make(map[string]int)
	start := time.Now()
	enough := func() bool {
		return *stayDuration == 0 || time.Since(start) >= *stayDuration && s.total() >= int64(scaled(10_000_000))
	}
	for once := false; !once || !enough(); once = true {
		for _, e := range s.schedule() {
			if once && enough() {
				break
			}
			before, began := s.answers.wrong.Load(), time.Now()
			e.happen(s)
			happened[e.name]++
			t.Logf("%-57s %6.1f s, %d wrong", e.name, time.Since(began).Seconds(), s.answers.wrong.Load()-before)
		}
	}
	s.enough.Store(true)
	wg.Wait()
	t.Logf("%v: %d old sockets and %d new ones, %d answers, %d wrong; %d more while programs that know the sockets were not attached, or others beside them; "+
		"%d datagrams lost by the kernel; %d processes killed; %v",
		time.Since(start).Round(time.Second), n, s.answers.sockets.Load(), s.total(), s.answers.wrong.Load(), s.missed.Load(), s.lost.Load(), s.kills, happened)
	assert.Zero(t, s.answers.wrong.Load(), "answers that were not translated")
	assert.LessOrEqual(t, s.lost.Load(), 2+s.total()/1_000_000, "datagrams that the kernel lost: more than it does by itself")
}

// unfoundDatagrams is how many datagrams came for which the kernel found no socket.
func unfoundDatagrams(t *testing.T) (n int64) {
	for file, pattern := range map[string]string{
		"/proc/thread-self/net/snmp":  `(?m)^Udp(?:Lite)?: \d+ (\d+)`,
		"/proc/thread-self/net/snmp6": `(?m)^Udp(?:Lite)?6NoPorts\s+(\d+)`,
	} {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) { // no IPv6
			continue
		}
		assert.NoError(t, err)
		for _, found := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			count, err := strconv.ParseInt(string(found[1]), 10, 64)
			assert.NoError(t, err)
			n += count
		}
	}
	return n
}

func (s *stay) total() int64 { return s.answers.peers.Load() + s.answers.sources.Load() }

// schedule is what happens, in any order.
func (s *stay) schedule() []event {
	var all []event
	for _, e := range stayEvents {
		times := scaled(e.least)
		if *stayDuration == 0 {
			times = 1
		}
		all = append(all, slices.Repeat([]event{e}, times)...)
	}
	s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if *stayDuration == 0 {
		return all[:2]
	}
	return all
}
