// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	kernel "github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/internal/sockdiag"
	"github.com/revsk/revsk/loader"
)

// feature is a feature of the kernel that revsk uses.
type feature struct {
	name      string
	required  bool
	neededFor string
	since     string
	// probe returns nil if the kernel has the feature, errMissing if not, and another error if there is more to say.
	probe func() error
}

// errMissing is returned when the kernel does not have a feature, and there is no more to say.
var errMissing = errors.New("not available")

// features are all of them; those that others depend on come first.
func features(env *env) []feature {
	const everything = "everything"
	all := []feature{
		{"cgroup2", true, everything, "4.5", func() error { return probeCgroup2(env) }},
		{"bpffs", true, "pins", "4.4", func() error { return probeBPFFS(env.bpffs) }},
		{"btf", true, "socket storage, list", "CONFIG_DEBUG_INFO_BTF", probeBTF},
		{"sk_storage map", true, "mode storage", "5.2", func() error { return mapType(ebpf.SkStorage) }},
		{"lru_hash map", true, "modes dual and legacy", "4.10", func() error { return mapType(ebpf.LRUHash) }},
		{"cgroup link", true, "attaching", "5.7", probeCgroupLink},
	}
	for _, h := range []struct {
		name, since string
		prog        ebpf.ProgramType
		attach      ebpf.AttachType
	}{
		{"connect4", "4.17", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect},
		{"connect6", "4.17", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect},
		{"sendmsg4", "4.18", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", "4.18", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg},
		{"recvmsg4", "5.2", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", "5.2", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", "5.8", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", "5.8", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet6GetPeername},
		{"sock_release", "5.9", ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease},
		{"post_bind4", "4.17", ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind},
		{"post_bind6", "4.17", ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind},
		{"bind4", "4.17", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Bind},
		{"bind6", "4.17", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Bind},
	} {
		all = append(all, feature{h.name + " hook", true, everything, h.since, func() error {
			prog, err := loadProbe(&ebpf.ProgramSpec{Type: h.prog, AttachType: h.attach}, 1)
			return closeProbe(prog, err)
		}})
	}
	return append(all, []feature{
		{"sk_storage_get in sock_addr hooks", true, "mode storage", "5.3",
			func() error { return helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet) }},
		{"sk_storage_get in sock_release", true, "mode storage", "5.9",
			func() error { return helper(ebpf.CGroupSock, asm.FnSkStorageGet) }},
		{"bpf_get_netns_cookie", true, "session affinity, --host-netns-only", "5.7",
			func() error { return helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie) }},
		{"bpf_loop", false, "migrate: sockets in flight", "5.17",
			func() error { return helper(ebpf.CGroupSock, asm.FnLoop) }},
		{"bpf_set_retval", false, "error codes of rejected calls", "5.18",
			func() error { return helper(ebpf.CGroupSockAddr, asm.FnSetRetval) }},
		{"precise verifier", false, "cheaper connects to no service", "6.8", probePreciseVerifier},
		{"ringbuf map", false, "list", "5.8", func() error { return mapType(ebpf.RingBuf) }},
		{"bpf_sk_storage iterator", false, "list", "5.9", func() error { return probeIterator("bpf_sk_storage_map") }},
		{"task_file iterator", false, "migrate --engine iter: sockets that are in no table", "5.8",
			func() error { return probeIterator("task_file") }},
		{"unix iterator", false, "migrate: sockets in flight in a message, with bpf_loop", "5.15",
			func() error { return probeIterator("unix") }},
		{"bpf_sock_destroy", false, "terminate and migrate --engine iter, under the lock of the socket", "6.5", func() error { return probeKernelFunction("bpf_sock_destroy") }},
		{"sock_destroy by sock_diag", false, "selftest, terminate without bpf_sock_destroy", "4.5, CONFIG_INET_DIAG_DESTROY", probeSockDestroy},
		{"network namespaces", false, "selftest", "CONFIG_NET_NS", func() error { return probeFile("/proc/self/ns/net") }},
		{"ipv6", false, "IPv6 services", "CONFIG_IPV6", func() error { return probeFile("/proc/net/if_inet6") }},
	}...)
}

// probePreciseVerifier: see [probe.PreciseVerifier].
func probePreciseVerifier() error {
	precise, err := probe.PreciseVerifier()
	if err == nil && !precise {
		return errMissing
	}
	return err
}

func isPermission(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// missing turns what the probes of the BPF library return for "no" into errMissing.
func missing(err error) error {
	err = probe.Recheck(err)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return errMissing
	}
	return err
}

func mapType(t ebpf.MapType) error { return missing(kernel.HaveMapType(t)) }

func helper(prog ebpf.ProgramType, fn asm.BuiltinFunc) error {
	have, err := probe.Helper(prog, fn)
	if err == nil && !have {
		return errMissing
	}
	return missing(err)
}

func probeCgroup2(env *env) error {
	if env.cgroup == "" {
		_, err := loader.FindCgroup2()
		return err
	}
	return probeFS(env.cgroup, unix.CGROUP2_SUPER_MAGIC)
}

func probeBPFFS(dir string) error { return probeFS(dir, unix.BPF_FS_MAGIC) }

func probeFS(dir string, magic int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if int64(st.Type) != magic {
		return fmt.Errorf("%s is another file system", dir)
	}
	return nil
}

func probeBTF() error {
	_, err := btf.LoadKernelSpec()
	return missing(err)
}

func probeFile(path string) error {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return errMissing
	}
	return err
}

// loadProbe loads a program that only returns a value.
func loadProbe(spec *ebpf.ProgramSpec, value int32) (*ebpf.Program, error) {
	spec.License = "Dual BSD/GPL"
	spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, value), asm.Return()}
	prog, err := ebpf.NewProgram(spec)
	if errors.Is(err, unix.EINVAL) {
		return nil, errMissing
	}
	return prog, missing(err)
}

func closeProbe(prog *ebpf.Program, err error) error {
	if err != nil {
		return err
	}
	return prog.Close()
}

// probeCgroupLink attaches to a descriptor that is not open. A kernel with cgroup links says so (EBADF); an older one refuses
// before it looks at the descriptor.
func probeCgroupLink() error {
	const hook = ebpf.AttachCGroupInet4Connect
	prog, err := loadProbe(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: hook}, 1)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: maxDescriptor, Program: prog, Attach: hook})
	switch {
	case errors.Is(err, unix.EBADF):
		return nil
	case errors.Is(err, unix.EINVAL):
		return errMissing
	case err == nil:
		return errors.Join(errors.New("a link to nothing was made"), l.Close())
	}
	return missing(err)
}

// maxDescriptor is above what any limit of open files allows.
const maxDescriptor = 1<<31 - 1

func probeIterator(name string) error {
	prog, err := loadProbe(&ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: name}, 0)
	if errors.Is(err, btf.ErrNotFound) {
		err = errMissing
	}
	return closeProbe(prog, err)
}

// probeKernelFunction looks for a function that programs can call.
func probeKernelFunction(name string) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return missing(err)
	}
	var function *btf.Func
	if err := kernel.TypeByName(name, &function); errors.Is(err, btf.ErrNotFound) {
		return errMissing
	} else if err != nil {
		return err
	}
	return nil
}

// probeSockDestroy destroys a socket of its own.
func probeSockDestroy() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A bound socket can be found without being connected, and no attached program translates its address.
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	err = sockdiag.Destroy(sockdiag.Socket{
		Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Cookie: cookie,
		Local: sockaddr.AddrPort(name),
	})
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("the kernel has no socket diagnosis: load the modules inet_diag, tcp_diag and udp_diag")
	}
	if errors.Is(err, sockdiag.ErrNotSupported) {
		return errMissing
	}
	return err
}
