// SPDX-License-Identifier: Apache-2.0

// Package smoke proves that a machine is what the other suites expect: that its variant is really
// what it says, and that nothing which they take for granted is missing.
package smoke

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What this machine is. Of the kernel that a developer's machine runs, little can be demanded.
var (
	onMachine = os.Getenv("REVSK_VM") != ""
	variant   = os.Getenv("REVSK_VM_VARIANT")
)

func mounts(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	types := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		types[fields[1]] = fields[2]
	}
	return types
}

func TestMounts(t *testing.T) {
	if !onMachine {
		require.Contains(t, mounts(t), "/proc")
		return
	}
	want := map[string]string{
		"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs", "/run": "tmpfs",
		"/sys/fs/bpf": "bpf", "/sys/fs/cgroup": "cgroup2",
	}
	switch variant {
	case "nobpffs":
		delete(want, "/sys/fs/bpf")
		require.NotContains(t, mounts(t), "/sys/fs/bpf")
	case "hybrid":
		want["/sys/fs/cgroup"] = "tmpfs"
		want["/sys/fs/cgroup/unified"] = "cgroup2"
		want["/sys/fs/cgroup/net_cls"] = "cgroup"
	}
	for dir, fs := range want {
		require.Equal(t, fs, mounts(t)[dir], dir)
	}
}

func cgroup2Root(t *testing.T) string {
	t.Helper()
	for dir, fs := range mounts(t) {
		if fs == "cgroup2" {
			return dir
		}
	}
	require.Fail(t, "cgroup2 is not mounted")
	return ""
}

func TestLoadingAndAttachingToACgroup(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock())
	dir, err := os.MkdirTemp(cgroup2Root(t), "revsk-smoke-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.CGroupSockAddr,
		AttachType:   ebpf.AttachCGroupInet4Connect,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		License:      "GPL",
	})
	require.NoError(t, err)
	defer program.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: dir, Attach: ebpf.AttachCGroupInet4Connect, Program: program,
	})
	require.NoError(t, err)
	defer l.Close()
	info, err := l.Info()
	require.NoError(t, err)
	require.NotZero(t, info.ID)
}

func TestCreatingMaps(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock())
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	for _, spec := range []*ebpf.MapSpec{
		{Name: "smoke_array", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1},
		{Name: "smoke_lru", Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 16},
		{
			Name: "smoke_storage", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4,
			Flags: unix.BPF_F_NO_PREALLOC, Key: u32, Value: u32,
		},
	} {
		m, err := ebpf.NewMap(spec)
		require.NoError(t, err, spec.Name)
		require.NoError(t, m.Close())
	}
}

func TestSocketStorageFromUserSpace(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock())
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC, Key: u32, Value: u32,
	})
	require.NoError(t, err)
	defer m.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, m.Put(uint32(fd), uint32(7)))
	var value uint32
	require.NoError(t, m.Lookup(uint32(fd), &value))
	require.EqualValues(t, 7, value)
}

func TestPinning(t *testing.T) {
	if !onMachine || variant == "nobpffs" {
		return
	}
	require.NoError(t, rlimit.RemoveMemlock())
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(t, err)
	defer m.Close()
	path := filepath.Join("/sys/fs/bpf", "revsk_smoke")
	require.NoError(t, m.Pin(path))
	require.NoError(t, os.Remove(path))
}

func TestBTF(t *testing.T) {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	if variant == "nobtf" {
		require.ErrorIs(t, err, os.ErrNotExist)
		return
	}
	require.NoError(t, err)
	spec, err := btf.LoadKernelSpec()
	require.NoError(t, err)
	var sock *btf.Struct
	require.NoError(t, spec.TypeByName("sock", &sock))
}

func TestLoopback(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	client, err := net.Dial("udp4", server.LocalAddr().String())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("ping"))
	require.NoError(t, err)
	buf := make([]byte, 16)
	n, _, err := server.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, "ping", string(buf[:n]))
}

func TestIPv6(t *testing.T) {
	server, err := net.ListenPacket("udp6", "[::1]:0")
	if variant == "noipv6" {
		require.Error(t, err)
		_, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		require.ErrorIs(t, err, unix.EAFNOSUPPORT)
		return
	}
	require.NoError(t, err)
	require.NoError(t, server.Close())
}

func TestDestroyingAUDPSocket(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	client, err := net.Dial("udp4", server.LocalAddr().String())
	require.NoError(t, err)
	defer client.Close()
	testDestroying(t, unix.IPPROTO_UDP, client)
}

func TestDestroyingATCPSocket(t *testing.T) {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	client, err := net.Dial("tcp4", server.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	testDestroying(t, unix.IPPROTO_TCP, client)
}

func testDestroying(t *testing.T, protocol uint8, client net.Conn) {
	t.Helper()
	local, err := netip.ParseAddrPort(client.LocalAddr().String())
	require.NoError(t, err)
	remote, err := netip.ParseAddrPort(client.RemoteAddr().String())
	require.NoError(t, err)
	err = destroySocket(protocol, local, remote)
	if variant == "nodiag" {
		require.ErrorIs(t, err, unix.ENOENT)
		return
	}
	require.NoError(t, err)
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNABORTED)
}

func TestModules(t *testing.T) {
	if !onMachine {
		return
	}
	for _, name := range []string{"veth", "dummy", "sch_ingress", "cls_bpf"} {
		require.DirExists(t, filepath.Join("/sys/module", name))
	}
}
