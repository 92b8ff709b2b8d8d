// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// The hostile are processes of nobody's beside a running agent. A backend goes meanwhile: the socket of a bystander has to end in
// time, and what stays must not notice.

const (
	hostileEnv     = childEnv + "_HOSTILE"
	hostileTextEnv = hostileEnv + "_TEXT"
	hostileExecEnv = hostileEnv + "_EXEC"
	nobody         = 65534
	// inTime is how long a socket may last after its backend went, on a machine that is busy. It takes 1.5 s on one that is not.
	inTime = 10 * time.Second
	// mostGrown is by how many MiB an agent may grow while it ends sockets.
	mostGrown = 20
)

// hostileDeeds are what hostile processes do. They say that they are ready by one byte, and go on until their input ends.
var hostileDeeds = map[string]func() error{
	"name":       doName,
	"in flight":  doInFlight,
	"send":       doSend,
	"storm":      doStorm,
	"descriptor": doDescriptors,
	"thread":     doThread,
	"leaderless": doLeaderless,
	"wander":     doWander,
	"exec":       doExec,
	"share":      doShare,
	"hoard":      doHoard,
}

func init() {
	if os.Getenv(hostileEnv) != "" {
		runtime.LockOSThread() // the main thread, which doLeaderless ends
	}
}

func runHostile() int {
	limit := unix.Rlimit{Cur: 20_000, Max: 20_000}
	err := errors.Join(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit), hostileDeeds[os.Getenv(hostileEnv)]())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// hostile starts a process, and waits until it is ready. Alone: in a user and a network namespace of its own.
func (n *node) hostile(deed, text string, alone bool, files ...*os.File) (end func()) {
	n.Helper()
	cmd := n.command(hostileProcess)
	cmd.Env = append(cmd.Env, hostileEnv+"="+deed, hostileTextEnv+"="+fmt.Sprintf("%x", text))
	cmd.Stdout, cmd.ExtraFiles = nil, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if alone {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{NoSetGroups: true}, // root there, and nobody here
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		}
	}
	in, err := cmd.StdinPipe()
	require.NoError(n, err)
	out, err := cmd.StdoutPipe()
	require.NoError(n, err)
	n.launch(cmd)
	_, err = io.ReadFull(out, make([]byte, 1))
	require.NoError(n, err, "%s: %q", deed, text)
	end = func() { in.Close(); _ = cmd.Wait() }
	n.Cleanup(end)
	return end
}

// hostileText is what the process was told.
func hostileText() string {
	var text []byte
	_, _ = fmt.Sscanf(os.Getenv(hostileTextEnv), "%x", &text)
	return string(text)
}

func untilTheEnd() {
	fmt.Print(".")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// The services of the tests.
var (
	calm   = front(1, lbmap.ProtocolUDP) // its backend stays
	doomed = front(2, lbmap.ProtocolUDP) // its backend goes
	shared = front(3, lbmap.ProtocolUDP) // of its two backends one goes
)

// connected is a socket that is connected to a service.
func connected(f lbmap.Frontend) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.Connect(fd, sockaddr.Of(unix.AF_INET, f.AddrPort))
	}
	return fd, err
}

func doName() error {
	if _, err := connected(doomed); err != nil {
		return err
	}
	// As prctl(PR_SET_NAME) does for the main thread.
	if err := os.WriteFile("/proc/self/comm", []byte(hostileText()), 0); err != nil {
		return err
	}
	untilTheEnd()
	return nil
}

const inFlight = 50

// doInFlight leaves sockets where no process has them open: in the queues of two sockets that are in each other's queue, and in
// that of one that another socket keeps.
func doInFlight() error {
	for range 5 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		for i := range pair {
			fd, err := connected(doomed)
			if err == nil {
				err = unix.Sendmsg(pair[i], []byte{0}, unix.UnixRights(fd, pair[i], pair[1-i]), nil, 0)
			}
			if err != nil {
				return err
			}
			_ = unix.Close(fd)
		}
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := sendSockets(pair[0]); err != nil {
		return err
	}
	untilTheEnd()
	return nil
}

func sendSockets(to int) error {
	for range inFlight {
		fd, err := connected(doomed)
		if err == nil {
			err = unix.Sendmsg(to, []byte{0}, unix.UnixRights(fd), nil, 0)
		}
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
	}
	return nil
}

// doSend sends sockets of a network namespace that goes with the process, but for them.
func doSend() error {
	if err := errors.Join(sandbox.LoopbackUp(), sendSockets(3)); err != nil {
		return err
	}
	untilTheEnd()
	return nil
}

// doStorm makes processes with a socket each. Of this process they only call the kernel.
func doStorm() error {
	signal.Ignore(syscall.SIGCHLD) // nobody waits for them
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: shared.AddrPort.Addr().As4()}
	*(*[2]byte)(unsafe.Pointer(&to.Port)) = [2]byte{byte(shared.AddrPort.Port() >> 8), byte(shared.AddrPort.Port())}
	life := unix.NsecToTimespec(int64(300 * time.Millisecond))
	fmt.Print(".")
	begin := time.Now()
	made := 0
	for tick := time.NewTicker(5 * time.Millisecond); time.Since(begin) < 5*time.Second; made++ {
		<-tick.C
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			fd, _, _ := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
			_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&life)), 0, 0)
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	fmt.Fprintln(os.Stderr, made, "processes")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// doDescriptors has 10,000 descriptors of one socket.
func doDescriptors() error {
	fd, err := connected(doomed)
	for range 10_000 {
		if err == nil {
			_, err = unix.Dup(fd)
		}
	}
	if err != nil {
		return err
	}
	untilTheEnd()
	return nil
}

// doThread has sockets in a thread that shares its files with no other: /proc/PID/fd does not have them.
func doThread() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FILES)
		for range 5 {
			if err == nil {
				_, err = connected(doomed)
			}
		}
		result <- err
		select {}
	}()
	if err := <-result; err != nil {
		return err
	}
	untilTheEnd()
	return nil
}

// doLeaderless goes on without its main thread, so that /proc has no files of it.
func doLeaderless() error {
	go func() {
		for range 5 {
			if _, err := connected(doomed); err != nil {
				os.Exit(1)
			}
		}
		time.Sleep(100 * time.Millisecond) // the main thread ends
		untilTheEnd()
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // not raw: others are to run
	return nil
}

// doWander leaves sockets in network namespaces that no thread is in any more, and goes on to others.
func doWander() error {
	ended, ready := make(chan struct{}), make(chan error)
	for range 3 {
		go wander(ended, ready)
		if err := <-ready; err != nil {
			return err
		}
	}
	untilTheEnd()
	close(ended)
	return nil
}

func wander(ended <-chan struct{}, ready chan<- error) {
	runtime.LockOSThread()
	for made := 0; ; made++ {
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), sandbox.LoopbackUp())
		if err == nil {
			_, err = connected(shared)
		}
		if made == 5 || err != nil {
			ready <- err
		}
		select {
		case <-ended:
			return
		case <-time.After(100 * time.Millisecond):
		}
		if made > 30 || err != nil {
			<-ended
			return
		}
	}
}

// doExec begins anew all the time, with the sockets that it has.
func doExec() error {
	round, _ := strconv.Atoi(os.Getenv(hostileExecEnv))
	if _, err := connected(shared); err != nil && round == 0 {
		return err
	}
	if round == 0 {
		fmt.Print(".")
	}
	if round >= 30 {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return nil
	}
	if err := os.Setenv(hostileExecEnv, strconv.Itoa(round+1)); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

const (
	sharers = 600
	sharing = 900
)

// doShare has many sockets open in many processes: so many as the agent ends at once, at most.
func doShare() error {
	signal.Ignore(syscall.SIGCHLD)
	for range sharing {
		if _, err := connected(doomed); err != nil {
			return err
		}
	}
	for range sharers {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			// Until the parent ends.
			_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
			for {
				_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}
	}
	untilTheEnd()
	return nil
}

// attacked is a node with an agent and bystanders.
type attacked struct {
	*node
	stays, goes netip.AddrPort
	on          [2]*client // the backend that stays, and the one that goes
	local       string     // of the first
}

func newAttacked(n *node) *attacked {
	n.Helper()
	a := &attacked{node: n, stays: n.backend("127.0.0.1"), goes: n.backend("127.0.0.2")}
	n.services(
		lbmap.Service{Frontend: calm, Backends: udpBackends(a.stays)},
		lbmap.Service{Frontend: doomed, Backends: udpBackends(a.goes)},
		lbmap.Service{Frontend: shared, Backends: udpBackends(a.stays, a.goes)},
	)
	a.on = [2]*client{n.client(calm), n.client(doomed)}
	for _, c := range a.on {
		require.NoError(n, c.asks())
	}
	a.local = a.on[0].LocalAddr().String()
	return a
}

// newAttackedChild is the same with an agent in a process of its own.
func newAttackedChild(t *testing.T) (*attacked, *exec.Cmd) {
	t.Helper()
	n := newNode(t)
	agent := n.loadedChild()
	return newAttacked(n), agent
}

func udpBackends(all ...netip.AddrPort) (backends []lbmap.Backend) {
	for _, b := range all {
		backends = append(backends, lbmap.Backend{AddrPort: b, Protocol: lbmap.ProtocolUDP})
	}
	return backends
}

// lose lets the backend go, and checks what becomes of the bystanders.
func (a *attacked) lose() {
	a.Helper()
	a.services(
		lbmap.Service{Frontend: calm, Backends: udpBackends(a.stays)},
		lbmap.Service{Frontend: doomed},
		lbmap.Service{Frontend: shared, Backends: udpBackends(a.stays)},
	)
	took := awaits(a, "the socket of the bystander ends", inTime, a.on[1].isEnded)
	a.Logf("the socket of the bystander ended %v after its backend went", took.Round(time.Millisecond))
	a.unharmed()
}

// unharmed requires that the socket on the backend that stays works, and is the same.
func (a *attacked) unharmed() {
	a.Helper()
	require.NoError(a, a.on[0].asks())
	require.Equal(a, a.local, a.on[0].LocalAddr().String())
}

// accounted waits until each socket that is connected to the backend that went was reported.
func (a *attacked) accounted(r *running) {
	a.Helper()
	maps := a.maps()
	awaits(a, "every socket is ended or reported", soon, func() bool {
		failed := make(map[inspect.SocketID]bool)
		for _, e := range eventsOf[SocketTerminated](r) {
			if e.Outcome == inspect.OutcomeFailed {
				failed[e.Socket.ID()] = true
			}
		}
		return !slices.ContainsFunc(a.onGone(maps), func(s inspect.Socket) bool { return !failed[s.ID()] })
	})
}

// maps are those of the datapath that is loaded.
func (a *attacked) maps() inspect.Maps {
	a.Helper()
	dp, err := loader.Open(a.loader())
	require.NoError(a, err)
	a.Cleanup(func() { dp.Close() })
	return dp.InspectMaps()
}

// onGone are the sockets that are connected to the backend that went.
func (a *attacked) onGone(maps inspect.Maps) []inspect.Socket {
	a.Helper()
	all, err := inspect.Sockets(a.Context(), maps, inspect.Options{SkipOwners: true})
	require.NoError(a, err)
	return slices.DeleteFunc(all, func(s inspect.Socket) bool {
		c := s.Connection()
		return c == nil || c.Peer != a.goes
	})
}

// counted requires that the metrics count what was reported, and that no socket was reported twice.
func (a *attacked) counted(r *running) (n map[inspect.Outcome]int) {
	a.Helper()
	awaits(a, "metrics and events agree", soon, func() bool {
		n = make(map[inspect.Outcome]int)
		cookies := make(map[uint64]bool)
		for _, e := range eventsOf[SocketTerminated](r) {
			n[e.Outcome]++
			require.False(a, cookies[e.Socket.Cookie] && e.Outcome != inspect.OutcomeFailed, "twice: %+v", e)
			cookies[e.Socket.Cookie] = true
		}
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		for kind, counted := range r.tally.terminations {
			if kind.protocol == lbmap.ProtocolUDP && counted != n[kind.outcome] {
				return false // it is being told
			}
		}
		return r.view.backends.gone == 0
	})
	return n
}

var forgedNames = []string{
	"a\nlevel=ERROR", "\" level=ERROR", "a\" b=\"c", "\x1b[2J\x1b[1;1H", "\xff\xfe\x80", "x\\\"},{\"a\":\"", "a\tb\rc\x7f",
	"\u009b2J", "\u202etxt", "sshd(1) x", "\n# EOF\nrevsk 1", "}\n{\"level\":1}", "ünï😀",
}

// What the log and the metrics have of processes with names that they have chosen for that.
func TestHostileNames(t *testing.T) {
	for format, handler := range map[string]func(io.Writer) slog.Handler{
		"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		t.Run(format, func(t *testing.T) {
			n := newNode(t)
			opts := n.options()
			var log bytes.Buffer
			opts.Logger = slog.New(handler(&log))
			r := n.start(opts)
			r.ready()
			a := newAttacked(n)
			for _, name := range forgedNames {
				n.hostile("name", name, false)
			}
			settled(r)
			a.lose()
			awaits(t, "all are ended", soon, func() bool { return len(eventsOf[SocketTerminated](r)) == len(forgedNames)+1 })
			requireNothingForged(t, r)
			require.NoError(t, r.stop())

			lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
			require.Len(t, lines, len(r.events), "one for each event")
			seen := 0
			for i, e := range r.events {
				requirePrintable(t, lines[i])
				_, message, attrs := e.Line()
				keys, values := logFields(t, format, lines[i])
				want := []string{slog.TimeKey, slog.LevelKey, slog.MessageKey}
				for _, attr := range attrs {
					want = append(want, attr.Key)
				}
				require.Equal(t, want, keys, lines[i])
				require.Equal(t, message, values[slog.MessageKey])
				if e, ok := e.(SocketTerminated); ok && len(e.Socket.Owners) == 1 {
					seen++
					require.Regexp(t, `^[^ ()]*\(`+strconv.Itoa(e.Socket.Owners[0].ID)+`\)$`, values["process"], "one process")
				}
			}
			require.Equal(t, len(forgedNames)+1, seen)
		})
	}
}

// requirePrintable requires that nothing of a line controls a terminal.
func requirePrintable(t *testing.T, line string) {
	t.Helper()
	for _, c := range line {
		require.True(t, strconv.IsPrint(c) && c != '\ufffd', "%q in %q", c, line)
	}
}

// logFields are the fields of a line of a log, as one reads it who takes nothing for granted.
func logFields(t *testing.T, format, line string) (keys []string, values map[string]string) {
	t.Helper()
	values = make(map[string]string)
	add := func(key, value string) { keys, values[key] = append(keys, key), value }
	if format == "json" {
		d := json.NewDecoder(strings.NewReader(line))
		open, err := d.Token()
		require.NoError(t, err, line)
		require.Equal(t, json.Delim('{'), open)
		for d.More() {
			key, err := d.Token()
			require.NoError(t, err, line)
			value, err := d.Token()
			require.NoError(t, err, line)
			add(key.(string), fmt.Sprint(value))
		}
		_, err = d.Token()
		require.NoError(t, err, line)
		require.False(t, d.More(), line)
		return keys, values
	}
	for rest := line; rest != ""; rest = strings.TrimPrefix(rest, " ") {
		key, value, ok := strings.Cut(rest, "=")
		require.True(t, ok, line)
		if quoted, err := strconv.QuotedPrefix(value); err == nil {
			rest = value[len(quoted):]
			value, err = strconv.Unquote(quoted)
			require.NoError(t, err)
		} else {
			value, _, _ = strings.Cut(value, " ")
			rest = strings.TrimPrefix(rest, key+"="+value)
		}
		add(key, value)
	}
	return keys, values
}

// requireNothingForged requires that the page of the metrics has what the agent says, and nothing else.
func requireNothingForged(t *testing.T, r *running) {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(r))
	w := httptest.NewRecorder()
	r.Handler(registry).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	require.Equal(t, 200, w.Code)
	body := w.Body.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, f := range families {
		known[f.name] = true
	}
	for name, f := range parsed {
		require.True(t, known[name], name)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				require.Regexp(t, `^[-a-z0-9_.:]+$`, l.GetValue(), name)
			}
		}
	}
	for line := range strings.Lines(body) {
		requirePrintable(t, strings.TrimSuffix(line, "\n"))
	}
}

// Sockets that no process has open, or not yet.
func TestHostileSocketsInFlight(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.SurveyEvery = time.Minute // which tells again what cannot be ended
	r := n.start(opts)
	r.ready()
	a := newAttacked(n)
	n.hostile("in flight", "", false)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(pair[1])
	to := os.NewFile(uintptr(pair[0]), "to")
	end := n.hostile("send", "", true, to)
	to.Close()
	end() // its sockets are in the queue of the other end
	settled(r)
	a.lose()
	a.accounted(r)
	outcomes := a.counted(r)
	t.Log(outcomes)
	require.GreaterOrEqual(t, outcomes[inspect.OutcomeDestroyed], 1+inFlight)
	require.Equal(t, inFlight, outcomes[inspect.OutcomeFailed])
	for _, e := range eventsOf[SocketTerminated](r) {
		if e.Outcome == inspect.OutcomeFailed {
			require.ErrorIs(t, e.Err, inspect.ErrUnreachable)
		}
	}
	// Surveys find what cannot be ended again and again. It counts, but is said once.
	opts.SurveyEvery = 100 * time.Millisecond
	require.NoError(t, r.Configure(opts))
	awaits(t, "another attempt", time.Minute, func() bool {
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		return r.tally.terminations[terminationKind{inspect.OutcomeFailed, lbmap.ProtocolUDP}] >= 2*inFlight
	})
	said := 0
	for _, e := range eventsOf[SocketTerminated](r) {
		if e.Outcome == inspect.OutcomeFailed {
			said++
		}
	}
	require.Equal(t, inFlight, said)
	a.unharmed()
}

// Processes come and go faster than they can be looked at.
func TestHostileStormOfProcesses(t *testing.T) {
	a, agent := newAttackedChild(t)
	time.Sleep(4 * time.Second) // the maps settle
	before := residentMiB(t, agent.Process.Pid)
	a.hostile("storm", "", false)
	time.Sleep(2 * time.Second)
	a.lose()
	time.Sleep(2 * time.Second)
	a.bounded(agent, before)
}

// bounded requires that the agent has not grown.
func (a *attacked) bounded(agent *exec.Cmd, before int) {
	a.Helper()
	after := memoryMiB(a.T, agent.Process.Pid, "VmHWM")
	a.Logf("the agent had %d MiB before, and %d MiB at most since", before, after)
	if !withRaceDetector() {
		require.Less(a, after, before+mostGrown)
	}
}

// Processes whose files and namespaces /proc does not show, or shows differently each time.
func TestHostileToThoseWhoLook(t *testing.T) {
	for _, test := range []struct {
		deed  string
		alone bool
	}{{"descriptor", false}, {"thread", false}, {"leaderless", false}, {"exec", false}, {"wander", true}} {
		t.Run(test.deed, func(t *testing.T) {
			n := newNode(t)
			r := n.start(n.options())
			r.ready()
			a := newAttacked(n)
			settled(r)
			n.hostile(test.deed, "", test.alone)
			a.lose()
			a.accounted(r)
			t.Log(a.counted(r))
			a.unharmed()
		})
	}
}

const hoarded = 5_000 // takes 5 s at the default of Termination.Rate

func doHoard() error {
	for range hoarded {
		if _, err := connected(doomed); err != nil {
			return err
		}
	}
	untilTheEnd()
	return nil
}

// Who has many sockets on a backend that goes makes nobody wait: of each process as many are ended as of any other.
func TestHostileHoard(t *testing.T) {
	n := newNode(t)
	r := n.start(n.options())
	r.ready()
	a := newAttacked(n)
	n.hostile("hoard", "", false)
	settled(r)
	a.lose()
	require.Greater(t, len(a.onGone(a.maps())), hoarded/2, "it was the turn of the bystander before")
	a.accounted(r)
	t.Log(a.counted(r))
}

// Many processes have the same sockets open: what is known of a socket does not grow with them.
func TestHostileSharersOfSockets(t *testing.T) {
	a, agent := newAttackedChild(t)
	a.hostile("share", "", false)
	time.Sleep(4 * time.Second) // the maps settle
	before := residentMiB(t, agent.Process.Pid)
	a.lose()
	time.Sleep(3 * time.Second)
	a.bounded(agent, before)
}
