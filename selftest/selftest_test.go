// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// programEnv makes the test binary a program that runs the selftest, as the command line does: outside
// in a sandbox, inside over and over until it is interrupted.
const (
	programEnv = "REVSK_SELFTEST_PROGRAM"
	outside    = "outside"
	inside     = "inside"
)

func TestMain(m *testing.M) {
	ChildMain()
	switch os.Getenv(programEnv) {
	case outside:
		os.Exit(programOutside())
	case inside:
		os.Exit(programInside())
	}
	os.Exit(sandbox.TestMain(m.Run))
}

func programOutside() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Setenv(programEnv, inside)
	code, err := sandbox.Run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func programInside() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := sandbox.Enter()
	fmt.Println(os.Getpid(), sandbox.Cgroup())
	for err == nil {
		_, err = Run(ctx, Options{Cgroup: sandbox.Cgroup()})
	}
	if ctx.Err() != nil {
		return interrupted()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

const exitInterrupted = 42

// interrupted looks for what an interrupted run has left in the sandbox.
func interrupted() int {
	left, err := filepath.Glob("/sys/fs/bpf/selftest-*")
	if err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left:", left, err)
		return 1
	}
	return exitInterrupted
}

func TestEveryCaseGoesAsItHasTo(t *testing.T) {
	r, err := Run(t.Context(), Options{Cgroup: sandbox.Cgroup()})
	require.NoError(t, err)
	left, err := filepath.Glob("/sys/fs/bpf/selftest-*")
	require.NoError(t, err)
	assert.Empty(t, left)
	text, err := json.MarshalIndent(r, "", "  ")
	require.NoError(t, err)
	t.Log(string(text))
	require.NoError(t, r.Verdict())
	assert.Empty(t, r.notSupported(), "this kernel can do everything")

	for _, c := range r.Cases {
		zeroed := strings.HasSuffix(c.Name, "-abort") && strings.HasPrefix(c.Name, "udp") ||
			strings.HasSuffix(c.Name, "-unspec-close")
		assert.Equal(t, zeroed, c.Storage.Zeroed, c.Name)
	}
}

func TestWithoutACgroupNothingIsAttached(t *testing.T) {
	_, err := Run(t.Context(), Options{})
	require.ErrorIs(t, err, loader.ErrInvalid)
}

func TestCases1To8AreThoseOfTheBugReport(t *testing.T) {
	leaking := map[int]bool{6: true, 8: true}
	for i, c := range testCases()[:8] {
		assert.Equal(t, i < 4, c.protocol == "TCP", c.name)
		assert.Equal(t, i/2%2 == 0, c.family == "IPv4", c.name)
		assert.Equal(t, i%2 == 0, c.kind == "Regular close", c.name)
		assert.Equal(t, leaking[i+1], c.legacy.after == 1, c.name)
	}
}

// The hooks of a parent cgroup run as well.
func TestBesideAnotherImplementationOnAParentCgroup(t *testing.T) {
	parent := sandbox.Cgroup()
	other, err := loader.Load(t.Context(), loader.Options{Cgroup: parent, LegacyMaxEntries: 100})
	require.NoError(t, err)
	defer func() {
		other.Close()
		require.NoError(t, loader.Unload(context.Background(), loader.Options{Cgroup: parent}, true))
	}()
	child := filepath.Join(parent, "child")
	require.NoError(t, os.Mkdir(child, 0o700))
	enter := func(cgroup string) {
		require.NoError(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0))
	}
	enter(child)
	defer func() {
		enter(parent)
		require.NoError(t, os.Remove(child))
	}()

	// The first eight are enough: this test is about the surroundings.
	cases, results := runSome(t, child, nil, 0, 8)
	for i, c := range cases {
		assert.Empty(t, c.wrong(legacyColumn, results[i].Legacy), c.name)
		assert.Empty(t, c.wrong(storageColumn, results[i].Storage.Cell), c.name)
	}
	counters, err := other.Counters()
	require.NoError(t, err)
	assert.Equal(t, loader.Counters{}, counters, "the other one has nothing to do with it")
}

func TestCasesThatNeedIPv6AreReportedWhereThereIsNone(t *testing.T) {
	none := notSupportedError("IPv6: switched off")
	// TCP and UDP of all kinds.
	cases, results := runSome(t, sandbox.Cgroup(), none, 3, 18)
	for i, c := range cases {
		if !c.needsIPv6() {
			assert.Empty(t, results[i].NotSupported, c.name)
			continue
		}
		assert.Equal(t, string(none), results[i].NotSupported, c.name)
		assert.Zero(t, results[i].Legacy, c.name)
		assert.Zero(t, results[i].Storage, c.name)
	}
}

// runSome runs some of the cases, if noIPv6 is set as if there were no IPv6.
func runSome(t *testing.T, cgroup string, noIPv6 error, from, to int) ([]testCase, []Case) {
	network, err := startNetwork(t.Context())
	require.NoError(t, err)
	defer network.close()
	if noIPv6 != nil {
		network.noIPv6 = noIPv6
	}
	cases := testCases()[from:to]
	results := make([]Case, len(cases))
	require.NoError(t, runCases(t.Context(), Options{Cgroup: cgroup, BPFFS: "/sys/fs/bpf"}, network, false, cases, results))
	return cases, results
}

func TestAKilledChildTellsWhatWentWrong(t *testing.T) {
	nobody := target{Protocol: unix.IPPROTO_TCP, Socket: unix.AF_INET, Count: 1, Service: netip.AddrPortFrom(service4, 1)}
	_, err := startHolder(t.Context(), []target{nobody})
	require.Error(t, err)
	assert.Contains(t, err.Error(), "child process: opening sockets: connect")
}

// program starts a selftest of its own and returns when it is in the middle of its work.
type program struct {
	cmd      *exec.Cmd
	pid      int // of the process inside
	cgroup   string
	programs []ebpf.ProgramID
}

func startProgram(t *testing.T) *program {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), programEnv+"="+outside)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	pid, cgroup, _ := strings.Cut(strings.TrimSpace(line), " ")
	p := &program{cmd: cmd, cgroup: cgroup}
	dir, err := os.Open(cgroup)
	require.NoError(t, err)
	defer dir.Close()
	p.pid, err = strconv.Atoi(pid)
	require.NoError(t, err)
	for deadline := time.Now().Add(time.Minute); len(p.programs) == 0; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "nothing was attached in time")
		// The last of the hooks to be attached.
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupUDP6Sendmsg})
		require.NoError(t, err, "the program has ended, and its cgroup")
		for _, attached := range r.Programs {
			p.programs = append(p.programs, attached.ID)
		}
	}
	time.Sleep(50 * time.Millisecond) // into the cases
	return p
}

// requireNothingLeft: programs are pinned in the sandbox's BPF file system and attached to its cgroup.
func (p *program) requireNothingLeft(t *testing.T) {
	t.Helper()
	require.NoDirExists(t, p.cgroup)
	p.requireNothingRuns(t)
}

func (p *program) requireNothingRuns(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, id := range p.programs {
			prog, err := ebpf.NewProgramFromID(id)
			if !errors.Is(err, os.ErrNotExist) {
				prog.Close()
				return false
			}
		}
		// A zombie is nobody's child that init has not waited for yet.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, time.Minute, 10*time.Millisecond)
}

func TestNothingIsLeftAfterSIGKILL(t *testing.T) {
	p := startProgram(t)
	require.NoError(t, unix.Kill(p.pid, unix.SIGKILL))
	require.Error(t, p.cmd.Wait())
	p.requireNothingLeft(t)
}

func TestNothingIsLeftAfterAnInterruption(t *testing.T) {
	p := startProgram(t)
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	_ = p.cmd.Wait()
	require.Equal(t, exitInterrupted, p.cmd.ProcessState.ExitCode())
	p.requireNothingLeft(t)
}

// But for an empty cgroup, which the next one removes in time.
func TestNothingRunsAfterSIGKILLOfTheProcessOutside(t *testing.T) {
	p := startProgram(t)
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()
	p.requireNothingRuns(t)
	// The kernel may take a moment to see that it is empty.
	require.Eventually(t, func() bool {
		err := os.Remove(p.cgroup)
		return err == nil || errors.Is(err, os.ErrNotExist) // another sandbox removes it, too
	}, time.Minute, 10*time.Millisecond)
}
