// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
)

// changing are command lines that would change something, and those that read what is loaded.
var (
	changing = []string{
		"load", "load --dry-run", "unload", "unload --purge", "mode dual", "migrate", "rollback",
		"terminate 127.0.0.1:80/tcp", "terminate --all-gone",
		"service add 10.96.0.1:80/tcp --no-backend", "service delete 10.96.0.1:80/tcp",
	}
	reading = []string{"status", "mode", "list", "service list", "migrate --dry-run"}
)

func TestNothingLoadedIsSaid(t *testing.T) {
	p := newPlace(t)
	before := state(t, p)
	for _, line := range []string{"status", "mode", "mode dual", "list", "terminate --all-gone", "unload", "unload --purge"} {
		require.Equal(t, "revsk: "+p.pins()+": not loaded: run revsk load first, or name the place with --bpffs or --pins",
			p.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	for _, line := range []string{"service list", "service delete 10.96.0.1:80/tcp", "service add 10.96.0.1:80/tcp --no-backend"} {
		require.Regexp(t, "map is missing: run revsk load, which creates the maps, or name their directory with --maps$",
			p.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	require.Equal(t, before, state(t, p))
}

func TestNoBPFFSIsSaid(t *testing.T) {
	dir := t.TempDir()
	p := newPlace(t)
	before := state(t, p)
	for _, line := range []string{"load", "load --dry-run"} {
		require.Equal(t, "revsk: "+dir+"/revsk: not a BPF file system: mount one (mount -t bpf bpf /sys/fs/bpf), or name one with --bpffs",
			p.run(append([]string{"--bpffs", dir}, strings.Fields(line)...)...).fails(exitFailed))
	}
	for _, line := range append(changing, reading...) {
		p.run(append([]string{"--bpffs", dir}, strings.Fields(line)...)...).fails(exitFailed)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, before, state(t, p))
}

func TestNoCgroup2IsSaid(t *testing.T) {
	dir := t.TempDir()
	p := newPlace(t)
	before := state(t, p)
	missing := filepath.Join(dir, "missing")
	for cgroup, message := range map[string]string{
		dir: "cgroup " + dir + ": no cgroup2 hierarchy: " +
			"mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or name a directory of one with --cgroup",
		missing: missing + ": no such cgroup: make it, or name another with --cgroup",
	} {
		for _, line := range []string{"load", "load --dry-run"} {
			require.Equal(t, "revsk: "+message, p.run(append([]string{"--cgroup", cgroup}, strings.Fields(line)...)...).fails(exitFailed))
		}
	}
	require.Equal(t, before, state(t, p))
}

func TestNoCgroup2MountIsSaid(t *testing.T) {
	p := newPlace(t)
	before := state(t, p)
	for _, line := range []string{"load", "load --dry-run", "unload", "status"} {
		r := runAs(t, withoutCgroup2, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS},
			append([]string{"--bpffs", p.dir}, strings.Fields(line)...)...)
		require.Equal(t, "revsk: no cgroup2 hierarchy: "+
			"mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or name a directory of one with --cgroup", r.fails(exitFailed))
	}
	require.Equal(t, before, state(t, p))
}

// In a container with its own namespaces of cgroups, mounts and processes, each command does what it does elsewhere, or says
// why not. The cgroup is the container's.
func TestInAContainer(t *testing.T) {
	t.Cleanup(func() { os.Remove(containerCgroup) })
	p := newPlace(t)
	p.load("--quiet").ok()
	connectUDP(t, p)
	container := func(line string) result {
		attr := &syscall.SysProcAttr{
			Cloneflags:   unix.CLONE_NEWPID,
			Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP,
		}
		return runAs(t, inContainer, attr, append([]string{"--bpffs", p.dir}, strings.Fields(line)...)...)
	}
	const notRoot = " is the root of a cgroup namespace: only sockets of processes in it are translated$"
	require.Regexp(t, "^revsk: "+containerCgroup+notRoot, container("status").fails(exitPartly))
	for _, line := range []string{"mode", "service list", "features --quiet", "load --dry-run", "unload --dry-run", "mode dual --dry-run"} {
		require.Zero(t, container(line).code, "%s: %s", line, container(line).stderr)
	}
	r := container("list")
	require.Zero(t, r.code)
	require.Contains(t, r.stdout, serviceAddr, "what sockets hold is read from the sockets, whosever they are")
	require.NotContains(t, r.stdout, filepath.Base(os.Args[0]), "its process is not one of the container's")
	r = container("migrate --dry-run")
	require.Zero(t, r.code)
	require.Contains(t, r.stderr, "processes outside this pid namespace are not seen")
	r = container("load")
	require.Zero(t, r.code)
	require.Contains(t, r.stderr, "only sockets of processes in it are translated")
	p.run("status").ok()
}

// Where processes are hidden (hidepid), too. They are not from CAP_SYS_PTRACE.
func TestWhereProcessesAreHidden(t *testing.T) {
	p := newPlace(t)
	otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	s := connectUDP(t, p)
	run := func(line string, caps ...privilege) result {
		return runWith(t, append(caps, capAdmin, capNetAdmin, capResource), hidden, p.args(strings.Fields(line)...)...)
	}
	before := state(t, p)
	for _, line := range []string{"status", "mode", "service list", "features --quiet", "load --dry-run", "unload --hand-back --dry-run", "mode dual --dry-run"} {
		run(line).ok()
	}
	require.Contains(t, run("list").ok().stdout, serviceAddr)
	for _, line := range []string{"migrate", "migrate --dry-run", "rollback", "rollback --dry-run", "load --takeover"} {
		require.Regexp(t, "descriptors of other processes cannot be read: no CAP_SYS_PTRACE: run as root, with CAP_", run(line).fails(exitFailed), line)
	}
	require.Equal(t, before, state(t, p))
	for _, line := range []string{"migrate --dry-run", "migrate", "load --takeover --quiet"} {
		require.Empty(t, run(line, capPtrace).ok().stderr, line)
	}
	run("terminate 127.0.0.1:5353/udp").ok()
	require.Equal(t, unix.ECONNABORTED, s.error(t))
	run("unload --hand-back").ok()
}

func TestNotRootIsSaid(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	before := state(t, p)
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	for _, line := range append([]string{"features"}, append(changing, reading...)...) {
		r := runAs(t, "nobody", nobody, p.args(strings.Fields(line)...)...)
		require.Regexp(t, ": run as root, with .*CAP_", r.fails(exitFailed), line)
		require.Equal(t, 1, strings.Count(r.stderr, "run as root"), line)
	}
	require.Equal(t, before, state(t, p))
}

// Who only reads needs to write nothing.
func TestReadOnlyBPFFS(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	remount := func(flags uintptr) { require.NoError(t, unix.Mount("bpf", dir, "", unix.MS_REMOUNT|flags, "")) }
	p := place{t, dir}
	p.load("--quiet").ok()
	t.Cleanup(func() { p.run("unload", "--purge", "--quiet").ok() })
	connectUDP(t, p)
	remount(unix.MS_RDONLY)
	defer remount(0)
	for _, line := range reading {
		p.run(strings.Fields(line)...).ok()
	}
	require.Contains(t, p.run("list").ok().stdout, serviceAddr)
	require.Regexp(t, `(?m)^connect4 +\d+ `, p.run("status", "-o", "wide").ok().stdout)
	for _, line := range []string{"load", "load --dry-run", "unload", "mode dual", "service add 10.96.0.1:80/tcp --no-backend"} {
		require.Regexp(t, "read-only file system: mount it read-write", p.run(strings.Fields(line)...).fails(exitFailed), line)
	}
}

func TestPinnedMapOfAnotherLayoutIsRefused(t *testing.T) {
	foreign := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 5, MaxEntries: 1}
	t.Run("of sockets", func(t *testing.T) {
		p := newPlace(t)
		p.load().ok()
		path := filepath.Join(p.pins(), "revsk_peers")
		require.NoError(t, os.Remove(path))
		m, err := ebpf.NewMap(foreign)
		require.NoError(t, err)
		defer m.Close()
		require.NoError(t, m.Pin(path))
		before := state(t, p)
		for _, line := range []string{"load", "load --dry-run", "status", "mode dual", "list", "terminate 127.0.0.1:80/tcp"} {
			message := p.run(strings.Fields(line)...).fails(exitFailed)
			require.Regexp(t, "^revsk: "+path+": pinned map has another layout: .*: "+
				"use the release that made it, or name other directories with --maps and --pins$", message, line)
			require.Equal(t, before, state(t, p), line)
		}
	})
	t.Run("of services", func(t *testing.T) {
		p := newPlace(t)
		require.NoError(t, os.MkdirAll(p.maps(), 0o700))
		pin(t, p, lbmap.Services4Map, foreign)
		before := state(t, p)
		for _, line := range []string{"load", "load --dry-run", "service list", "service add 10.96.0.1:80/tcp --no-backend"} {
			message := p.run(strings.Fields(line)...).fails(exitFailed)
			require.Contains(t, message, lbmap.Services4Map, line)
			require.Contains(t, message, "another layout: ", line)
			require.Contains(t, message, ": use the release that made it, or ", line)
			require.Equal(t, before, state(t, p), line)
		}
	})
}

func TestAnotherProgramAttachedExclusivelyIsSaid(t *testing.T) {
	parent := filepath.Join(sandbox.Cgroup(), "parent")
	child := filepath.Join(parent, "child")
	require.NoError(t, os.MkdirAll(child, 0o755))
	t.Cleanup(func() {
		require.NoError(t, os.Remove(child))
		require.NoError(t, os.Remove(parent))
	})
	prog, err := loadProbe(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect}, 1)
	require.NoError(t, err)
	defer prog.Close()
	const exclusive = "another program is attached exclusively.*: find it with bpftool cgroup tree, and detach it or use another --cgroup$"
	overrides := map[bool]string{
		true: exclusive,
		// The kernel would attach ours, and not run that one any more.
		false: `a program of a cgroup above would be switched off: .* \(program \d+\) on ` + parent +
			": load on its cgroup with --cgroup, or have it attached with BPF_F_ALLOW_MULTI$",
	}
	for _, where := range []string{parent, child} {
		for _, test := range []struct {
			name    string
			flags   uint32
			refused string
		}{
			{"alone", 0, exclusive},
			{"override", unix.BPF_F_ALLOW_OVERRIDE, overrides[where == child]},
			{"multi", unix.BPF_F_ALLOW_MULTI, ""},
		} {
			t.Run(filepath.Base(where)+" "+test.name, func(t *testing.T) {
				dir, err := os.Open(where)
				require.NoError(t, err)
				defer dir.Close()
				attachment := link.RawAttachProgramOptions{
					Target: int(dir.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect, Flags: test.flags,
				}
				require.NoError(t, link.RawAttachProgram(attachment))
				defer func() {
					require.NoError(t, link.RawDetachProgram(link.RawDetachProgramOptions{
						Target: int(dir.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect,
					}))
				}()
				p := newPlace(t)
				before := state(t, p)
				for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
					r := p.load("--cgroup", child, dryRun, "--quiet")
					if test.refused == "" {
						r.ok()
						continue
					}
					require.Regexp(t, test.refused, r.fails(exitFailed))
					require.Equal(t, before, state(t, p))
				}
				if test.refused == "" {
					p.run("unload", "--cgroup", child).ok()
				}
			})
		}
	}
}

// runAs runs a command line in a process of its own, which finds out from the environment what it is.
func runAs(t *testing.T, environment string, attr *syscall.SysProcAttr, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), beCommandEnv+"="+environment)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return newResult(t, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String())
}
