// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/socketlb"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// begin starts the agent, with services, and stops it when the test ends.
func begin(t *testing.T, c configuration) {
	t.Helper()
	require.NoError(t, c.start())
	t.Cleanup(func() { require.NoError(t, socketlb.Disable(logger)) })
	publish(t)
}

// linked are the agent's pinned links, by name, and the programs in them.
func linked(t *testing.T) map[string]link.Info {
	t.Helper()
	files, err := os.ReadDir(linksDir)
	if !errors.Is(err, os.ErrNotExist) { // the agent may remove the directory
		require.NoError(t, err)
	}
	all := make(map[string]link.Info)
	for _, f := range files {
		l, err := link.LoadPinnedLink(filepath.Join(linksDir, f.Name()), nil)
		require.NoError(t, err)
		info, err := l.Info()
		require.NoError(t, err)
		require.NoError(t, l.Close())
		all[f.Name()] = *info
	}
	return all
}

// translates checks that sockets of every kind know their services.
func translates(t *testing.T) {
	t.Helper()
	for _, k := range kinds() {
		fd, err := k.open()
		require.NoError(t, err)
		ok, err := k.ask(fd)
		require.NoError(t, err)
		require.True(t, ok, "%s, stream %v, connected %v", k.name, k.stream, k.connected)
		require.NoError(t, unix.Close(fd))
	}
}

func TestStart(t *testing.T) {
	begin(t, usual)
	require.Len(t, linked(t), 11)
	translates(t)
}

// The programs are others then, in the same links.
func TestRestart(t *testing.T) {
	begin(t, usual)
	c := newCrowd(t)
	before := linked(t)
	require.Zero(t, c.during("five restarts", func() {
		for range 5 {
			require.NoError(t, usual.start())
		}
	}))
	after := linked(t)
	require.Len(t, after, len(before))
	for name := range before {
		require.Equal(t, before[name].ID, after[name].ID, "the link of %s", name)
		require.NotEqual(t, before[name].Program, after[name].Program, "the program %s", name)
	}
}

// Programs that a new configuration wants are attached, those that it does not want are detached.
func TestReconfigure(t *testing.T) {
	begin(t, usual)
	for _, test := range []struct {
		name   string
		change func(*configuration)
		links  int
	}{
		{"health checks", func(c *configuration) { c.health = true }, 13},
		{"no getpeername", func(c *configuration) { c.peer = false }, 9},
		{"no bind protection", func(c *configuration) { c.bindProtection = false }, 9},
		{"no IPv6: IPv6 sockets may still use IPv4", func(c *configuration) { c.ipv6 = false }, 11},
		{"no IPv4", func(c *configuration) { c.ipv4 = false }, 6},
		{"as usual", func(*configuration) {}, 11},
	} {
		c := usual
		test.change(&c)
		require.NoError(t, c.start(), test.name)
		require.Len(t, linked(t), test.links, test.name)
	}
	translates(t)
}

func TestDisable(t *testing.T) {
	begin(t, usual)
	require.NoError(t, socketlb.Disable(logger))
	require.Empty(t, linked(t))
	attached := func() bool {
		cgroup, err := os.Open(sandbox.Cgroup())
		require.NoError(t, err)
		defer cgroup.Close()
		got, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
		require.NoError(t, err)
		return len(got.Programs) > 0
	}
	require.Eventually(t, func() bool { return !attached() }, time.Minute, 10*time.Millisecond)
	require.NoError(t, usual.start())
	require.True(t, attached())
	translates(t)
}

// The maps are gone with the links: the agent makes new ones.
func TestStartAfterBPFFSWasWiped(t *testing.T) {
	begin(t, usual)
	require.NoError(t, os.RemoveAll("/sys/fs/bpf/cilium"))
	require.NoError(t, os.RemoveAll(mapsDir))
	require.NoError(t, os.MkdirAll(mapsDir, 0o700)) // as the agent does, before it loads anything
	require.NoError(t, usual.start())
	publish(t)
	require.Len(t, linked(t), 11)
	translates(t)
}

// Links outlive the cgroup that they are on. The agent attaches to the cgroup that is there now.
func TestStartOnADyingCgroup(t *testing.T) {
	dying := filepath.Join(sandbox.Cgroup(), "dying")
	require.NoError(t, os.Mkdir(dying, 0o700))
	require.NoError(t, attachTo(dying))
	begin(t, usual)
	require.NoError(t, os.Remove(dying))
	require.NoError(t, attachTo(sandbox.Cgroup()))
	require.NoError(t, usual.start())
	for name, info := range linked(t) {
		require.NotZero(t, info.Cgroup().CgroupId, "the cgroup of %s", name)
	}
	translates(t)
}
