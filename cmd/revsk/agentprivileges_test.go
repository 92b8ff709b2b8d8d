// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// runningAgent is a process that is an agent.
type runningAgent struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr syncBuffer
	done   chan struct{} // closed when it has ended
}

// startAgent starts an agent with some capabilities, or with all if they are nil. It goes when the test ends.
func startAgent(t *testing.T, p place, given []privilege) *runningAgent {
	t.Helper()
	a := &runningAgent{t: t, done: make(chan struct{})}
	a.cmd = exec.Command("/proc/self/exe", p.args("agent", "--listen", "off", "--terminate-settle", "100ms", "--terminate-grace", "10ms",
		"--terminate-max-share", "100", "--survey-every", "1s", "--legacy-entries", "1000")...)
	a.cmd.Env = append(os.Environ(), beCommandEnv+"="+freshProcess)
	a.cmd.Stderr = &a.stderr
	start := func() { require.NoError(t, a.cmd.Start()) }
	if given == nil {
		start()
	} else {
		withOnly(t, given, start)
	}
	go func() { _ = a.cmd.Wait(); close(a.done) }()
	t.Cleanup(func() { _ = a.cmd.Process.Kill(); <-a.done })
	return a
}

func (a *runningAgent) awaits(what string, is func() bool) {
	a.t.Helper()
	require.Eventually(a.t, is, time.Minute, 20*time.Millisecond, "%s: %v", what, &a.stderr)
}

// says waits for words in its log.
func (a *runningAgent) says(pattern string) {
	a.t.Helper()
	words := regexp.MustCompile(pattern)
	a.awaits("says "+pattern, func() bool { return words.MatchString(a.stderr.String()) })
}

func (p place) mode() string { return strings.Fields(p.run("mode").ok().stdout)[0] }

// The agent works with what its help says that it needs: it loads, moves entries, and ends sockets in another network
// namespace. Of what it is given beyond that it keeps nothing.
func TestSmallestCapabilitiesOfTheAgent(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", "192.0.2.7:80/tcp", "--backend", "127.0.0.1:80").ok()
	for title, given := range map[string][]privilege{"what it needs": privileges["revsk agent"][0].caps, "all": nil} {
		t.Run(title, func(t *testing.T) {
			p.run("mode", "dual").ok()
			p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.1:5353").ok()
			a := startAgent(t, p, given)
			a.awaits("it migrates", func() bool { return p.mode() == "storage" })
			s := connectInNewNetNS(t)
			p.run("service", "delete", serviceAddr+"/udp").ok()
			a.awaits("it ends the socket", func() bool { return s.error(t) == unix.ECONNABORTED })

			var want uint64 = 1 << unix.CAP_DAC_READ_SEARCH
			if given != nil {
				want = 0
			}
			for _, n := range privileges["revsk agent"] {
				for _, c := range n.caps {
					want |= 1 << c.bit
				}
			}
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
			require.NoError(t, err)
			require.NotEmpty(t, threads)
			for _, file := range threads {
				b, err := os.ReadFile(file)
				if errors.Is(err, os.ErrNotExist) {
					continue // a thread that has ended
				}
				require.NoError(t, err)
				if canGiveUp() {
					require.Contains(t, string(b), "NoNewPrivs:\t1\n")
					require.Contains(t, string(b), fmt.Sprintf("CapPrm:\t%016x\n", want))
					require.Contains(t, string(b), fmt.Sprintf("CapInh:\t%016x\n", 0))
				}
			}
			require.NoError(t, a.cmd.Process.Signal(unix.SIGTERM))
			<-a.done
			require.True(t, a.cmd.ProcessState.Success(), &a.stderr)
			require.NotContains(t, a.stderr.String(), "level=ERROR")
		})
	}
}

// deployed are the capabilities that a file of the deployment grants.
func deployed(t *testing.T, file, pattern string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", file))
	require.NoError(t, err)
	found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, found, file)
	names := regexp.MustCompile(`[A-Z_]+`).FindAllString(found[len(found)-1][1], -1) // the last one is that of an agent
	for i := range names {
		names[i] = "CAP_" + strings.TrimPrefix(names[i], "CAP_")
	}
	slices.Sort(names)
	return names
}

// heldByAnotherUser gives a socket to a process of another user, and returns the inode of its network namespace.
func heldByAnotherUser(t *testing.T, s socket) (netNS uint64) {
	t.Helper()
	fd, err := unix.IoctlRetInt(s.fd, unix.SIOCGSKNS)
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.NoError(t, unix.Close(fd))
	theirs, err := unix.Dup(s.fd)
	require.NoError(t, err)
	file := os.NewFile(uintptr(theirs), "socket")
	cmd := exec.Command("sleep", "infinity")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	require.NoError(t, file.Close())
	s.close(t)
	return st.Ino
}

// Of what the deployment grants an agent nothing is superfluous: without one capability the agent refuses to start, or says what
// it cannot do. All else works.
func TestAgentWithoutOneCapability(t *testing.T) {
	granted := deployed(t, "systemd/revsk-agent.service", `(?m)^CapabilityBoundingSet=(.*)$`)
	require.Equal(t, granted, deployed(t, "helm/revsk/templates/daemonset.yaml", `add: \[(.*)\]`))

	capSearch := privilege{bit: unix.CAP_DAC_READ_SEARCH, name: "CAP_DAC_READ_SEARCH"}
	all := append(slices.Clone(privileges["revsk agent"][0].caps), capSearch)
	for _, lacking := range all {
		require.Contains(t, granted, lacking.name)
	}
	require.Len(t, granted, len(all))

	for _, lacking := range all {
		t.Run(lacking.name, func(t *testing.T) {
			p := newPlace(t)
			p.load().ok()
			p.run("service", "add", "192.0.2.7:80/tcp", "--backend", "127.0.0.1:80").ok()
			// Only the hash knows of the first socket.
			p.run("mode", "legacy").ok()
			entry := connectUDP(t, p)
			p.run("mode", "dual").ok()
			needed := slices.Contains(neededHere(t, p, []privilege{lacking}), lacking)
			a := startAgent(t, p, without(all, lacking))
			if lacking == capAdmin || lacking == capResource && needed {
				<-a.done
				require.Equal(t, exitFailed, a.cmd.ProcessState.ExitCode())
				require.Regexp(t, `(?m)^revsk: .*: run as root, with .*`+lacking.name, a.stderr.String())
				return
			}

			migrates := lacking != capPtrace
			if migrates {
				a.awaits("it migrates", func() bool { return p.mode() == "storage" })
			} else {
				a.says(`step=migrate error=.* no CAP_SYS_PTRACE`)
			}

			here := newSocket(t)
			require.NoError(t, unix.Connect(here.fd, sockaddrOf(serviceAddr)))
			there := connectInNewNetNS(t)
			netNS := heldByAnotherUser(t, connectInNewNetNS(t))
			p.run("service", "delete", serviceAddr+"/udp").ok()
			ends := func(what string, s socket, may bool) {
				t.Helper()
				if may {
					a.awaits(what+" ends", func() bool { return s.error(t) == unix.ECONNABORTED })
				}
			}
			ends("the socket", here, lacking.bit != capNetAdmin.bit || probeKernelFunction("bpf_sock_destroy") == nil)
			ends("the socket of the entry", entry, migrates)
			ends("the socket in another network namespace", there, lacking == capSearch || lacking == capResource)
			outcome := fmt.Sprintf(`outcome=%%s .* process=sleep\(\d+\) netns=%d .*%%s`, netNS)
			if lacking == capResource {
				a.says(fmt.Sprintf(outcome, "destroyed", ""))
			} else {
				a.says(fmt.Sprintf(outcome, "failed", "no way into its network namespace without "+lacking.name))
			}
		})
	}
}
