// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What a process started by runWith is, in beCommandEnv.
const (
	freshProcess  = "fresh"        // a command, with the limits that a login has
	memoryProbe   = "memory probe" // fails if maps count as locked memory
	pinProbe      = "pin probe"    // fails if it cannot open the pin in its argument
	usualMemlock  = 64 << 10       // bytes
	unprivilegedF = "/proc/sys/kernel/unprivileged_bpf_disabled"
)

// probed is the exit code for the answer that a kernel gives to a probe.
func probed(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, unix.EPERM):
		return exitFailed
	}
	panic(err)
}

func limitMemory(bytes uint64) {
	limit := unix.Rlimit{Cur: bytes, Max: bytes}
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &limit, nil); err != nil {
		panic(err)
	}
}

func probeMemory() int {
	limitMemory(0)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err == nil {
		err = m.Close()
	}
	return probed(err)
}

func probePin(path string) int {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		err = m.Close()
	}
	return probed(err)
}

// runWith runs a command line as root with no other capabilities than these. What is dropped must not
// be given back to this process, so a thread of its own goes before.
func runWith(t *testing.T, caps []privilege, environment string, args ...string) (r result) {
	t.Helper()
	attr := new(syscall.SysProcAttr)
	if environment == hidden {
		attr.Unshareflags = unix.CLONE_NEWNS
	}
	withOnly(t, caps, func() { r = runAs(t, environment, attr, args...) })
	return r
}

// withOnly calls a function that starts a process, which gets no other capabilities than these.
func withOnly(t *testing.T, caps []privilege, start func()) {
	t.Helper()
	keep := make(map[uintptr]bool)
	for _, c := range caps {
		keep[c.bit] = true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for bit := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, bit, 0, 0, 0) == nil; bit++ {
			if keep[bit] {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0); err != nil {
				t.Error(err)
			}
		}
		start()
	}()
	<-done
}

// neededHere leaves out what this kernel no longer asks for, as it says itself.
func neededHere(t *testing.T, p place, caps []privilege) []privilege {
	t.Helper()
	asked := map[privilege]bool{
		capResource:   runWith(t, []privilege{capBPF}, memoryProbe).code != 0,
		capOldDestroy: probeKernelFunction("bpf_sock_destroy") != nil,

		capOldBPF: p.isLoaded() && runWith(t, nil, pinProbe, filepath.Join(p.pins(), "revsk_config")).code != 0,
	}
	var needed []privilege
	for _, c := range caps {
		if c.before == "" || asked[c] {
			needed = append(needed, c)
		}
	}
	return needed
}

func (p place) isLoaded() bool {
	_, err := os.Stat(p.pins())
	return err == nil
}

// TestSmallestCapabilities runs every command with what its help says that it needs and not a
// capability more, and with each one of these less.
func TestSmallestCapabilities(t *testing.T) {
	setting, err := os.ReadFile(unprivilegedF)
	require.NoError(t, err)
	require.NotEqual(t, "0", strings.TrimSpace(string(setting)), "%s lets everybody do what is tested here", unprivilegedF)

	lines := map[string]string{
		"revsk load for a first load":              "load --legacy-entries 1000",
		"revsk load to replace what runs":          "load",
		"revsk load to take over, which migrates":  "load --takeover --quiet",
		"revsk unload":                             "unload",
		"revsk unload with --purge or --hand-back": "unload --purge --quiet",
		"revsk status":                             "status",
		"revsk mode to show it":                    "mode",
		"revsk mode to switch it":                  "mode dual",
		"revsk list":                               "list",
		"revsk terminate":                          "terminate 127.0.0.1:5353/udp --dry-run",
		"revsk migrate":                            "migrate",
		"revsk rollback":                           "rollback",
		"revsk service list":                       "service list",
		"revsk service add":                        "service add 192.0.2.9:80/tcp --no-backend",
		"revsk service delete":                     "service delete 192.0.2.8:80/tcp",
		"revsk features":                           "features --quiet",
		"revsk selftest":                           "selftest",
	}
	loaded := func(t *testing.T) place {
		t.Helper()
		p := newPlace(t)
		p.load().ok()
		for _, addr := range []string{"192.0.2.7", "192.0.2.8"} {
			p.run("service", "add", addr+":80/tcp", "--no-backend").ok()
		}
		return p
	}
	// Not loaded before the first load, which would have to take over from it.
	shared := sync.OnceValue(func() place { return loaded(t) })
	for _, command := range slices.SortedFunc(maps.Keys(privileges), ownPlaceFirst) {
		if command == "revsk agent" {
			continue // does not end by itself: see below
		}
		for _, n := range privileges[command] {
			title := strings.TrimSpace(command + " " + n.when)
			if title == toReachNamespaces {
				continue // are tested below
			}
			t.Run(title, func(t *testing.T) {
				require.Contains(t, lines, title)
				var p place
				switch {
				case n.when == "for a first load":
					p = newPlace(t)
				case strings.HasPrefix(n.when, "to take over"):
					p = newPlace(t)
					otherAgent(t, p)
				case command == "revsk load", command == "revsk unload", command == "revsk terminate":
					p = loaded(t)
				default:
					p = shared()
				}
				if command == "revsk terminate" {
					connectUDP(t, p)
				}
				args := p.args(strings.Fields(lines[title])...)
				before := state(t, p)
				caps := neededHere(t, p, n.caps)
				if command == "revsk terminate" {
					// A dry run destroys nothing; the test below does.
					caps = without(caps, capOldDestroy)
				}
				for i, c := range caps {
					fewer := append(append([]privilege{}, caps[:i]...), caps[i+1:]...)
					message := runWith(t, fewer, freshProcess, args...).fails(exitFailed)
					require.Contains(t, message, ": run as root, with "+describeNeeds(command), "without %s", c.name)
					require.Equal(t, before, state(t, p), "without %s", c.name)
				}
				runWith(t, caps, freshProcess, args...).ok()
			})
		}
	}
}

// ownPlaceFirst sorts commands: the one with a first load before all others, then those that have a datapath for
// themselves, since there is only one at a time.
func ownPlaceFirst(a, b string) int {
	rank := func(command string) int {
		switch command {
		case "revsk load":
			return 0
		case "revsk unload", "revsk terminate":
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

const (
	toReachNamespaces = "revsk terminate to reach the network namespaces of processes with more capabilities"
)

func TestListNamesProcessesThatHaveMoreCapabilities(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	connectUDP(t, p)
	r := runWith(t, neededHere(t, p, privileges["revsk list"][0].caps), freshProcess, p.args("list")...).ok()
	require.Contains(t, r.stdout, serviceAddr)
	require.Contains(t, r.stdout, fmt.Sprintf(" %d/", os.Getpid()))
}

func TestTerminateDestroysWithWhatItNeeds(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.1:5353").ok()
	s := newSocket(t)
	require.NoError(t, unix.Connect(s.fd, sockaddrOf(serviceAddr)))
	args := p.args("terminate", "127.0.0.1:5353/udp")
	caps := neededHere(t, p, privileges["revsk terminate"][0].caps)
	if slices.Contains(caps, capOldDestroy) {
		runWith(t, without(caps, capOldDestroy), freshProcess, args...).fails(exitPartly)
		require.Zero(t, s.error(t))
	}
	runWith(t, caps, freshProcess, args...).ok()
	require.Equal(t, unix.ECONNABORTED, s.error(t))
}

func without(caps []privilege, c privilege) []privilege {
	return slices.DeleteFunc(slices.Clone(caps), func(o privilege) bool { return o == c })
}

func TestTerminateReachesTheNamespacesOfProcessesThatItMayLookInto(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.1:5353").ok()
	s := connectInNewNetNS(t)
	without, with := privileges["revsk terminate"][0], privileges["revsk terminate"][1]
	args := p.args("terminate", "127.0.0.1:5353/udp")
	r := runWith(t, neededHere(t, p, without.caps), freshProcess, args...)
	require.Equal(t, "revsk: 1 socket could not be destroyed", r.fails(exitPartly))
	require.Zero(t, s.error(t))
	runWith(t, neededHere(t, p, with.caps), freshProcess, args...).ok()
	require.Equal(t, unix.ECONNABORTED, s.error(t))
}

// canGiveUp tells whether this is a build whose commands can give up capabilities: see [capability.Keep].
func canGiveUp() bool {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETUID, 0, 0, 0)
	return errno != unix.ENOTSUP
}

func TestEveryCommandSaysWhatItNeeds(t *testing.T) {
	known := make(map[string]bool)
	for cmd := range allCommands() {
		path := cmd.CommandPath()
		if cmd.HasSubCommands() || strings.HasPrefix(path, "revsk completion") || path == "revsk help" || path == "revsk version" {
			continue
		}
		known[path] = true
		require.NotEmpty(t, privileges[path], path)
		require.Contains(t, cmd.Long, privileges[path][0].String(), path)
	}
	for path := range privileges {
		require.True(t, known[path], "there is no command %s", path)
	}
}
