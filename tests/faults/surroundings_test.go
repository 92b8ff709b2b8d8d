// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

// surrounded is the role of a process that changes its surroundings, the first argument, and becomes the command in
// the others.
const surrounded = "surrounded"

func runSurrounded() error {
	what, command := os.Args[1], os.Args[2:]
	if n, ok := strings.CutPrefix(what, "files "); ok {
		limit, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			return err
		}
		// Of which three are open. By the kernel's call: Go's would remember the limit, and lift it again.
		rlimit := unix.Rlimit{Cur: limit, Max: limit}
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &rlimit, nil); err != nil {
			return err
		}
	}
	switch what {
	case "no /proc":
		// The sandbox's parent has mounted it in the first place: it is below other mounts.
		if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil {
			return err
		}
	case "hidepid":
		if err := unix.Mount("proc", "/proc", "proc", 0, "hidepid=2"); err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0); err != nil {
			return err
		}
	case "no BPF file system":
		if err := unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH); err != nil {
			return err
		}
	case "BPF file system read-only":
		if err := unix.Mount("", "/sys/fs/bpf", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return unix.Exec(command[0], command, slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, workerEnv) }))
}

// surroundings are what a command may find missing, and what its message then names. A command that nevertheless does
// what it is to do is right, too.
var surroundings = []struct {
	what  string
	names []string
}{
	{"files 20", []string{"open files"}},
	{"files 50", []string{"open files"}},
	{"files 100", []string{"open files"}},
	{"no /proc", []string{"/proc"}},
	{"no BPF file system", []string{"BPF file system", "mount one", "not loaded", "run revsk load"}},
	{"BPF file system read-only", []string{"read-only"}},
	{"hidepid", []string{"CAP_SYS_PTRACE"}},
}

// runIn runs a command of revsk in other surroundings.
func (n *node) runIn(what string, args ...string) outcome {
	n.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command("/proc/self/exe", append([]string{what, os.Getenv(binaryEnv)}, commandLine(args)...)...)
	cmd.Env = append(os.Environ(), workerEnv+"="+surrounded)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(n, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Where something is missing around it, each command does its work, or nothing, and names what is missing.
func TestSurroundings(t *testing.T) {
	until := time.Now().Add(*duration / 5)
	n := newNode(t)
	ends := make(map[string]int)
	for _, s := range scenarios {
		if only := *onlyScenario; only != "" && only != s.name || time.Now().After(until) {
			continue
		}
		r := n.record(s)
		for _, x := range surroundings {
			known := n.comeBack(s, r.before)
			o := n.runIn(x.what, s.args...)
			bad := func(format string, args ...any) {
				t.Errorf("%s, %s: %s\n\t%v", s.name, x.what, fmt.Sprintf(format, args...), o)
			}
			now, _ := n.look(known)
			fromBefore, fromAfter := difference(r.before, now), difference(r.after, now)
			kind := "refused"
			switch {
			case o.code == 0:
				kind = "done"
				if fromAfter != "" {
					bad("it says that it succeeded:\n\t%s", fromAfter)
				}
			case fromBefore != "":
				bad("it has changed something:\n\t%s", fromBefore)
			case !slices.ContainsFunc(x.names, func(name string) bool { return strings.Contains(o.stderr, name) }):
				bad("it does not name any of %q", x.names)
			}
			ends[kind]++
		}
	}
	figure(t, "surroundings", "%d commands: %s.", sum(ends), describeCounts(ends))
}

// The BPF file system goes away while a command works on it, and comes back: what runs is not concerned, and the same
// command again does what is left to do.
func TestFileSystemUnmountedUnderACommand(t *testing.T) {
	until := time.Now().Add(*duration / 5)
	n := newNode(t)
	const mounted = "/sys/fs/bpf"
	aside := t.TempDir()
	done := 0
	for part := range 4 {
		for _, name := range stoppable {
			if time.Now().After(until) && done > 0 {
				break
			}
			done++
			s := scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
			r := n.record(s)
			known := n.comeBack(s, r.before)
			var changing []position
			for _, p := range r.calls {
				if changes(p.kind) {
					changing = append(changing, p)
				}
			}
			at := changing[(len(changing)-1)*(part+1)/5]
			count := make(counter)
			met := false
			require.NoError(t, unix.Mount(mounted, aside, "", unix.MS_BIND, ""))
			o := n.intercept(func(c call) verdict {
				if !c.concerns() || count.next(c) != at {
					return verdict{}
				}
				met = true
				return verdict{last: true, during: func() { require.NoError(t, unix.Unmount(mounted, unix.MNT_DETACH)) }}
			}, s.args)
			if met {
				require.NoError(t, unix.Mount(aside, mounted, "", unix.MS_BIND, ""))
			}
			require.NoError(t, unix.Unmount(aside, unix.MNT_DETACH))
			what := fmt.Sprintf("%s, unmounted before %v: %v", s.name, at, o)
			now, _ := n.look(known)
			for _, x := range n.sockets {
				key := "socket " + x.name
				require.Contains(t, []string{r.before[key], r.after[key]}, now[key], what)
			}
			if o.code == 0 {
				require.Empty(t, difference(r.after, now), what)
				continue
			}
			require.NotContains(t, o.stderr, "panic", what)
			if difference(r.after, now) == "" {
				continue // but for what it could not tell
			}
			again := n.run(s.args...)
			require.Equal(t, 0, again.code, "%s\n\tthe same again: %v", what, again)
			now, _ = n.look(known)
			require.Empty(t, difference(r.after, now), what)
		}
	}
	figure(t, "unmounted", "%d times.", done)
}

// limitedCgroup makes a cgroup by which memory is limited, of the first version of cgroups or the second.
func limitedCgroup(t *testing.T) (dir, limit, usage string) {
	t.Helper()
	for _, c := range [][3]string{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"},
		{"/sys/fs/cgroup", "memory.max", "memory.current"},
	} {
		dir, err := os.MkdirTemp(c[0], filepath.Base(sandbox.Cgroup())+"-limited-")
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, c[1])); err != nil {
			require.NoError(t, os.Remove(dir))
			continue
		}
		held, err := os.Open(dir)
		require.NoError(t, err)
		require.NoError(t, unix.Flock(int(held.Fd()), unix.LOCK_SH)) // where others look for sandboxes that are gone
		t.Cleanup(func() {
			defer held.Close()
			require.Eventually(t, func() bool { return os.Remove(dir) == nil }, time.Minute, 10*time.Millisecond)
		})
		return dir, filepath.Join(dir, c[1]), filepath.Join(dir, c[2])
	}
	t.Fatal("there is no memory controller")
	return
}

func setLimit(t *testing.T, file string, bytes int) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, []byte(strconv.Itoa(bytes)), 0))
}

// runLimited runs a command in a cgroup.
func (n *node) runLimited(dir string, args ...string) outcome {
	n.Helper()
	script := `echo $$ > "$0/cgroup.procs" && exec "$@"`
	var stdout, stderr strings.Builder
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, dir, os.Getenv(binaryEnv)}, commandLine(args)...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(n, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// With too little memory a command is refused, or killed, and the node is as before or after, or such that the
// same command again succeeds.
func TestMemoryOfCommands(t *testing.T) {
	until := time.Now().Add(*duration / 5)
	n := newNode(t)
	dir, limit, _ := limitedCgroup(t)
	ends := make(map[string]int)
	for _, megabytes := range []int{16, 24, 32, 48, 20, 28, 40, 12, 64} {
		for _, name := range stoppable {
			if time.Now().After(until) && len(ends) > 0 {
				break
			}
			s := scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
			r := n.record(s)
			known := n.comeBack(s, r.before)
			setLimit(t, limit, megabytes<<20)
			o := n.runLimited(dir, s.args...)
			what := fmt.Sprintf("%s with %d MB: %v", s.name, megabytes, o)
			now, _ := n.look(known)
			for _, x := range n.sockets {
				key := "socket " + x.name
				require.Contains(t, []string{r.before[key], r.after[key]}, now[key], what)
			}
			switch o.code {
			case 0:
				ends["done"]++
				require.Empty(t, difference(r.after, now), what)
			case -1:
				ends["killed"]++
			default:
				ends["refused"]++
				require.Regexp(t, "memory", o.stderr, what)
				require.Empty(t, misleading(o.stderr, unix.ENOMEM), what)
			}
			if o.code != 0 && difference(r.after, now) != "" {
				again := n.run(s.args...)
				require.Equal(t, 0, again.code, "%s\n\tthe same again: %v", what, again)
				now, _ = n.look(known)
				require.Empty(t, difference(r.after, now), what)
			}
		}
	}
	figure(t, "memory of commands", "%d commands: %s.", sum(ends), describeCounts(ends))
}

// The memory of what sockets remember is charged to the cgroup of the first load. Where that has no more, a call
// of an application goes on or fails with ENOMEM, and is right if it goes on; sockets that are there keep what they have.
func TestMemoryOfSockets(t *testing.T) {
	n := newNode(t)
	bare(n)
	dir, limit, usage := limitedCgroup(t)
	require.Equal(t, 0, n.runLimited(dir, "load", "--legacy-entries", "1000").code)
	n.serve()
	n.openSockets()
	before := n.answers()
	b, err := os.ReadFile(usage)
	require.NoError(t, err)
	used, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	setLimit(t, limit, used+64<<10)
	t.Cleanup(func() { setLimit(t, limit, 1<<40) })
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	right, refused := 0, 0
	for range 1000 {
		s := &socket{domain: unix.AF_INET, connect: true}
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(s.fd)
		err = unix.Connect(s.fd, sockaddr.Of(s.domain, service4))
		switch {
		case err == nil:
			right++
			require.Equal(t, service4.String(), s.shows())
		default:
			refused++
			require.ErrorIs(t, err, unix.ENOMEM)
		}
	}
	require.Equal(t, before, n.answers(), "sockets that were there")
	b, err = os.ReadFile(usage)
	require.NoError(t, err)
	now, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	figure(t, "memory of sockets", "%d sockets connected, %d got ENOMEM; %s KB were used, 64 KB more were allowed, and %s KB were used in the end.", right, refused, thousands(used>>10), thousands(now>>10))
}
