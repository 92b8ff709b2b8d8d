// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

const (
	seccompProfile = "../../deploy/seccomp/revsk-agent.json"
	agentDocument  = "../../docs/agent.md"
)

// systemCalls are the numbers of the system calls of this machine, by name, as golang.org/x/sys has them.
func systemCalls(t *testing.T) map[string]int {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	require.NoError(t, err)
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+runtime.GOARCH+".go"))
	require.NoError(t, err)
	numbers := make(map[string]int)
	for _, m := range regexp.MustCompile(`SYS_(\w+)\s+= (\d+)`).FindAllStringSubmatch(string(source), -1) {
		n, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		numbers[strings.ToLower(m[1])] = n
	}
	return numbers
}

// allowedCalls are the system calls that the profile allows.
func allowedCalls(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(seccompProfile)
	require.NoError(t, err)
	var profile struct {
		Syscalls []struct {
			Names  []string
			Action string
		}
	}
	require.NoError(t, json.Unmarshal(b, &profile))
	require.Len(t, profile.Syscalls, 1)
	require.Equal(t, "SCMP_ACT_ALLOW", profile.Syscalls[0].Action)
	return profile.Syscalls[0].Names
}

// documentedFiles are the patterns of the table of files in the document.
func documentedFiles(t *testing.T) *regexp.Regexp {
	t.Helper()
	b, err := os.ReadFile(agentDocument)
	require.NoError(t, err)
	_, table, found := strings.Cut(string(b), "<!-- files -->")
	require.True(t, found)
	table, _, found = strings.Cut(table, "<!-- end of files -->")
	require.True(t, found)
	var patterns []string
	for _, m := range regexp.MustCompile("(?m)^\\| (`.*?`(?:, `.*?`)*) \\|").FindAllStringSubmatch(table, -1) {
		for _, path := range strings.Split(m[1], ", ") {
			pattern := regexp.QuoteMeta(strings.Trim(path, "`"))
			pattern = strings.NewReplacer(`\*\*`, `.*`, `\*`, `[^/]*`, `BPFFS`, regexp.QuoteMeta(bpffs), `CGROUP`, regexp.QuoteMeta(sandbox.Cgroup())).Replace(pattern)
			patterns = append(patterns, pattern)
		}
	}
	require.NotEmpty(t, patterns)
	return regexp.MustCompile("^(?:" + strings.Join(patterns, "|") + ")$")
}

// The unit of systemd allows the same system calls as the profile.
func TestProfilesAreTheSame(t *testing.T) {
	b, err := os.ReadFile("../../deploy/systemd/revsk-agent.service")
	require.NoError(t, err)
	m := regexp.MustCompile(`(?m)^SystemCallFilter=((?:.*\\\n)*.*)$`).FindStringSubmatch(string(b))
	require.NotNil(t, m)
	require.Equal(t, allowedCalls(t), strings.Fields(strings.ReplaceAll(m[1], "\\\n", " ")))
}

// An agent that does everything that agents do asks for no system call that its seccomp profile does not allow, and
// for no file that docs/agent.md does not name.
func TestAgentAsksForNoMore(t *testing.T) {
	numbers := systemCalls(t)
	names := make(map[int]string)
	for name, number := range numbers {
		names[number] = name
	}
	var allowed []string
	allowedNames := allowedCalls(t)
	for _, name := range allowedNames {
		if number, known := numbers[name]; known {
			allowed = append(allowed, strconv.Itoa(number))
		}
	}
	files := documentedFiles(t)

	n := newNode(t)
	n.clean()
	n.startAgent()
	n.openSockets()
	const leaving = "10.96.0.8:53"
	n.must("service", "add", leaving+"/udp", "--backend", "127.0.0.8:53")
	stranger := inOtherNamespace(t, func(fd int) error {
		return unix.Connect(fd, sockaddr.Of(unix.AF_INET, netip.MustParseAddrPort(leaving)))
	})
	dir := t.TempDir()
	config, listen := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "agent.sock")
	require.NoError(t, os.WriteFile(config, []byte("log: json\n"), 0o600))

	var mu sync.Mutex
	pid := 0
	asked := make(map[string]bool) // what it was not to ask for
	decide := func(c call) verdict {
		mu.Lock()
		defer mu.Unlock()
		if pid == 0 && (c.kind == "" || c.path == os.Getenv(binaryEnv)) {
			return verdict{} // the launcher becomes the agent
		}
		if name := names[int(c.nr)]; !slices.Contains(allowedNames, name) {
			asked["system call "+name] = true
		}
		if pid == 0 {
			pid = int(c.pid)
		}
		if strings.HasPrefix(c.path, "/") && c.kind != "read" && c.kind != "getdents" && !strings.HasPrefix(c.path, dir) && c.path != os.Getenv(binaryEnv) && !files.MatchString(c.path) {
			asked["file "+c.path+" of "+c.kind] = true
		}
		return verdict{}
	}
	ended := make(chan outcome, 1)
	go func() {
		o, err := intercept(context.Background(), decide, []string{allowedEnv + "=" + strings.Join(allowed, " ")}, os.Getenv(binaryEnv),
			commandLine([]string{"agent", "--takeover", "--takeover-links", linksDir, "--on-stop", "hand-back", "--terminate", "all", "--config", config, "--listen", "unix:" + listen,
				"--survey-every", "1s", "--refill-every", "1s", "--look-every", "1s", "--terminate-settle", "100ms", "--terminate-max-share", "100"})...)
		if err != nil {
			o = outcome{code: -2, stderr: err.Error()}
		}
		ended <- o
	}()
	wait := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
			select {
			case o := <-ended:
				t.Fatalf("%s: it has ended: %v", what, o)
			default:
			}
			require.True(t, time.Now().Before(deadline), what)
		}
	}
	page := func(path string) string {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", listen)
		}}}
		response, err := client.Get("http://agent" + path)
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return string(text)
	}
	ready := func() bool {
		return strings.HasPrefix(n.run("mode").stdout, "mirror") && page("/readyz") == "ok\n"
	}
	wait("taken over and migrated", ready)
	require.Contains(t, page("/metrics"), "\nrevsk_takeovers_total 1\n")
	require.NoError(t, n.agent.Update(linksDir))
	wait("taken over again", func() bool { return strings.Contains(page("/metrics"), "\nrevsk_takeovers_total 2\n") && ready() })
	n.must("service", "delete", leaving+"/udp")
	wait("a socket in another namespace is ended", func() bool {
		code, err := unix.GetsockoptInt(stranger, unix.SOL_SOCKET, unix.SO_ERROR)
		require.NoError(t, err)
		return unix.Errno(code) == unix.ECONNABORTED
	})
	require.NoError(t, os.WriteFile(config, []byte("terminate: udp\n"), 0o600))
	require.NoError(t, unix.Kill(pid, unix.SIGHUP))
	wait("another survey", func() bool { return strings.Contains(page("/metrics"), "revsk_survey_timestamp_seconds ") })
	require.NoError(t, unix.Kill(pid, unix.SIGTERM))
	o := <-ended
	require.Equal(t, 0, o.code, "%v", o)
	require.NoDirExists(t, pinsDir, "handed back")

	var all []string
	for what := range asked {
		all = append(all, what)
	}
	slices.Sort(all)
	require.Empty(t, all, strings.Join(all, "\n"))
}

// inOtherNamespace makes a datagram socket in a network namespace that nothing else keeps.
func inOtherNamespace(t *testing.T, use func(fd int) error) int {
	t.Helper()
	fd, err := -1, error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = sandbox.LoopbackUp(); err != nil {
			return
		}
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = use(fd)
		}
	}()
	<-done
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

var capabilities = map[string]int{
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_BPF": unix.CAP_BPF, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_PERFMON": unix.CAP_PERFMON,
	"CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
}

// When a command asks the kernel for the first thing about BPF, but for what the BPF library asks before main, it has no capabilities but those that its help names,
// and two by which it looks at the files and processes of others.
func TestCommandsGiveUpCapabilities(t *testing.T) {
	n := newNode(t)
	loaded(n)
	for _, line := range []string{"status", "list", "service add 10.96.0.9:80/tcp --backend 10.1.0.1:80", "service list", "mode dual", "load", "migrate",
		"terminate --all-gone", "rollback", "unload"} {
		var allowed uint64 = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_SYS_PTRACE
		command := words(line)
		if command[0] == "service" {
			command = command[:2]
		} else {
			command = command[:1]
		}
		help := n.run(append(command, "--help")...).stdout
		for _, name := range regexp.MustCompile(`CAP_[A-Z_]+`).FindAllString(help, -1) {
			require.Contains(t, capabilities, name)
			allowed |= 1 << capabilities[name]
		}
		seen := false
		o := n.intercept(func(c call) verdict {
			if !strings.HasPrefix(c.kind, "bpf ") || c.site.in("github.com/cilium/ebpf/rlimit.init") {
				return verdict{}
			}
			seen = true
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
			if err != nil {
				t.Error(err)
			}
			m := regexp.MustCompile(`CapPrm:\t([0-9a-f]+)\n`).FindSubmatch(status)
			held, err := strconv.ParseUint(string(m[1]), 16, 64)
			if err != nil || held&^allowed != 0 {
				t.Errorf("%s: has %x, not only %x", line, held, allowed)
			}
			return verdict{last: true}
		}, words(line))
		require.Equal(t, 0, o.code, "%s: %v", line, o)
		require.True(t, seen, line)
	}
}
