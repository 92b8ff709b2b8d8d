// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/attached"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

var update = flag.Bool("update", false, "write what commands print into testdata")

// In a process started by runAs one of these says that it is to be the command line.
const (
	beCommandEnv   = "REVSK_TEST_COMMAND"
	withoutCgroup2 = "without cgroup2"
	hidden         = "where processes of others are hidden"
	inContainer    = "in a container" // sees its own part of the cgroup hierarchy and, where they are its own, its processes
)

func TestMain(m *testing.M) {
	switch os.Getenv(beCommandEnv) {
	case "":
		os.Exit(sandbox.TestMain(m.Run))
	case memoryProbe:
		os.Exit(probeMemory())
	case pinProbe:
		os.Exit(probePin(os.Args[1]))
	case freshProcess:
		limitMemory(usualMemlock)
	case withoutCgroup2:
		if err := unmountCgroup2(); err != nil {
			panic(err)
		}
	case hidden:
		if err := hideProcesses(); err != nil {
			panic(err)
		}
	case inContainer:
		if err := enterContainer(); err != nil {
			panic(err)
		}
	}
	main()
}

// enterContainer mounts what a container has: its part of the cgroup hierarchy, and /proc, in which processes of others
// are hidden.
func enterContainer() error {
	if err := unmountCgroup2(); err != nil {
		return err
	}
	if err := os.MkdirAll(containerCgroup, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", containerCgroup, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mounting cgroup2: %w", err)
	}
	return hideProcesses()
}

// hideProcesses hides processes from whoever lacks a capability that they have, and CAP_SYS_PTRACE.
func hideProcesses() error { return unix.Mount("proc", "/proc", "proc", 0, "hidepid=2") }

// containerCgroup is where a container has its part of the cgroup hierarchy.
const containerCgroup = "/tmp/revsk-test-cgroup"

// unmountCgroup2 leaves no cgroup2 in this process's mount namespace, which must be its own.
func unmountCgroup2() error {
	for {
		path, err := loader.FindCgroup2()
		if err != nil {
			return nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
}

// place is where the commands of one test work.
type place struct {
	t   *testing.T
	dir string // on the BPF file system
}

// newPlace returns a place where nothing is loaded; what is loaded there goes when the test ends.
func newPlace(t *testing.T) place {
	p := place{t, filepath.Join("/sys/fs/bpf", strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()))}
	require.NoError(t, os.Mkdir(p.dir, 0o700))
	t.Cleanup(func() {
		if _, err := os.Stat(p.pins()); err == nil {
			require.Equal(t, 0, p.run("unload", "--force", "--quiet").code)
		}
		require.NoError(t, os.RemoveAll(p.dir))
		// The kernel detaches a link that is pinned no longer a moment later: the next test is to see none.
		require.Eventually(t, func() bool {
			for _, ids := range programs(t) {
				if ids != "[]" {
					return false
				}
			}
			return true
		}, time.Minute, time.Millisecond, "a hook outlived its pin")
	})
	return p
}

func (p place) pins() string { return filepath.Join(p.dir, "revsk") }
func (p place) maps() string { return filepath.Join(p.dir, "tc", "globals") }

// args adds the flags that say where to work. What follows may say otherwise.
func (p place) args(args ...string) []string {
	return append([]string{"--cgroup", sandbox.Cgroup(), "--bpffs", p.dir}, args...)
}

// run runs a command line in this process.
func (p place) run(args ...string) result {
	p.t.Helper()
	return runCommand(p.t, p.args(args...)...)
}

// load loads with small maps.
func (p place) load(args ...string) result {
	p.t.Helper()
	return p.run(append([]string{"load", "--legacy-entries", "1000"}, args...)...)
}

// result is what a command line did.
type result struct {
	t              *testing.T
	code           int
	stdout, stderr string
}

func runCommand(t *testing.T, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), &env{Stdout: &stdout, Stderr: &stderr}, args)
	requireDocuments(t, args, stdout.String())
	return newResult(t, code, stdout.String(), stderr.String())
}

// progressLine is what a command that takes long on a busy machine logs.
var progressLine = regexp.MustCompile(`(?m)^time=\S+ level=INFO msg=progress .*\n`)

func newResult(t *testing.T, code int, stdout, stderr string) result {
	return result{t, code, stdout, progressLine.ReplaceAllString(stderr, "")}
}

// ok requires that all went well, without a message.
func (r result) ok() result {
	r.t.Helper()
	require.Equal(r.t, 0, r.code, "stderr: %s", r.stderr)
	require.Empty(r.t, r.stderr)
	return r
}

// fails requires an exit code and exactly one line of error, which is returned.
func (r result) fails(code int) string {
	r.t.Helper()
	require.Equal(r.t, code, r.code, "stderr: %s", r.stderr)
	require.Regexp(r.t, `^revsk: [^\n]+\n$`, r.stderr)
	return strings.TrimSuffix(r.stderr, "\n")
}

// json decodes the standard output, of which every field must be known.
func (r result) json(into any) {
	r.t.Helper()
	d := json.NewDecoder(strings.NewReader(r.stdout))
	d.DisallowUnknownFields()
	require.NoError(r.t, d.Decode(into), r.stdout)
	require.False(r.t, d.More())
}

// document leaves out of a document what differs each time.
func document(text string) string {
	return replace(text,
		`"time": "[^"]*"`, `"time": "TIME"`,
		`"node": "[^"]+"`, `"node": "NODE"`,
		`"version": "[^"]+"`, `"version": "VERSION"`,
	)
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	text = document(text)
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run the test with -update, and look at what it writes")
	require.Equal(t, string(want), text)
}

// state is everything that a command could change: pins with what they hold, and attached programs.
func state(t *testing.T, p place) map[string]string {
	t.Helper()
	all := make(map[string]string)
	require.NoError(t, filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		all[path] = pinned(t, path)
		return nil
	}))
	maps.Copy(all, programs(t))
	return all
}

// programs are those on the hooks.
func programs(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for hook, attach := range map[string]ebpf.AttachType{
		"connect4":     ebpf.AttachCGroupInet4Connect,
		"connect6":     ebpf.AttachCGroupInet6Connect,
		"sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
		"sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
		"recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername,
		"getpeername6": ebpf.AttachCgroupInet6GetPeername,
		"sock_release": ebpf.AttachCgroupInetSockRelease,
		"post_bind4":   ebpf.AttachCGroupInet4PostBind,
		"post_bind6":   ebpf.AttachCGroupInet6PostBind,
		"bind4":        ebpf.AttachCGroupInet4Bind,
		"bind6":        ebpf.AttachCGroupInet6Bind,
	} {
		programs, err := attached.To(sandbox.Cgroup(), attach)
		require.NoError(t, err)
		all[hook] = fmt.Sprint(programs.IDs)
	}
	return all
}

// unpin removes the pin of a hook's link, whose path it returns, and waits until the kernel has detached that.
func unpin(t *testing.T, p place, hook string) string {
	t.Helper()
	pin := filepath.Join(p.pins(), "links", "revsk_"+hook)
	require.NoError(t, os.Remove(pin))
	require.Eventually(t, func() bool { return programs(t)[hook] == "[]" }, time.Minute, time.Millisecond)
	return pin
}

func pinned(t *testing.T, path string) string {
	t.Helper()
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		info, err := l.Info()
		require.NoError(t, err)
		return fmt.Sprintf("link %d to program %d", info.ID, info.Program)
	}
	if prog, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer prog.Close()
		info, err := prog.Info()
		require.NoError(t, err)
		id, _ := info.ID()
		return fmt.Sprintf("program %d", id)
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: false})
	require.NoError(t, err)
	defer m.Close()
	info, err := m.Info()
	require.NoError(t, err)
	id, _ := info.ID()
	if m.Type() != ebpf.Hash && m.Type() != ebpf.LRUHash && m.Type() != ebpf.Array {
		return fmt.Sprintf("map %d", id)
	}
	contents := make(map[string]string)
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		contents[fmt.Sprintf("%x", key)] = fmt.Sprintf("%x", value)
	}
	require.NoError(t, it.Err())
	var entries []string
	for _, key := range slices.Sorted(maps.Keys(contents)) {
		entries = append(entries, key+"="+contents[key])
	}
	return fmt.Sprintf("map %d: %s", id, strings.Join(entries, " "))
}
