// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// ring is an io_uring with room for one request at a time, of which this process waits for the end. There is no
// maintained Go package for it, and these tests need three of its operations.
type ring struct {
	fd           int
	memory, sqes []byte
	sqTail       *uint32
	sqMask       uint32
	sqArray      unsafe.Pointer
	cqHead       *uint32
	cqTail       *uint32
	cqMask       uint32
	cqes         unsafe.Pointer
}

// uringParams is struct io_uring_params of linux/io_uring.h, with the offsets in it.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sqHead, sqTail, sqMask, sqEntriesAt, sqFlags, sqDropped, sqArray, _    uint32
	_                                                                      uint64
	cqHead, cqTail, cqMask, cqEntriesAt, cqOverflow, cqCQEs, cqFlags, _    uint32
	_                                                                      uint64
}

// submission is struct io_uring_sqe.
type submission struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off           uint64
	addr          uint64
	len           uint32
	opFlags       uint32
	userData      uint64
	_             [3]uint64
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	res      int32
	flags    uint32
}

const (
	uringOffSQEs    = 0x10000000
	uringOpSendmsg  = 9
	uringOpRecvmsg  = 10
	uringOpConnect  = 16
	uringGetEvents  = 1
	uringSingleMmap = 1
)

func newRing() (*ring, error) {
	var p uringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	if p.features&uringSingleMmap == 0 {
		return nil, fmt.Errorf("io_uring: features %x", p.features)
	}
	size := max(int(p.sqArray+p.sqEntries*4), int(p.cqCQEs)+int(p.cqEntries)*int(unsafe.Sizeof(completion{})))
	memory, err := unix.Mmap(int(fd), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap of the rings: %w", err)
	}
	sqes, err := unix.Mmap(int(fd), uringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(submission{})),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap of the submissions: %w", err)
	}
	at := func(off uint32) unsafe.Pointer { return unsafe.Pointer(&memory[off]) }
	return &ring{
		fd: int(fd), memory: memory, sqes: sqes,
		sqTail: (*uint32)(at(p.sqTail)), sqMask: *(*uint32)(at(p.sqMask)), sqArray: at(p.sqArray),
		cqHead: (*uint32)(at(p.cqHead)), cqTail: (*uint32)(at(p.cqTail)), cqMask: *(*uint32)(at(p.cqMask)), cqes: at(p.cqCQEs),
	}, nil
}

func (r *ring) close() {
	_ = unix.Munmap(r.memory)
	_ = unix.Munmap(r.sqes)
	_ = unix.Close(r.fd)
}

// do submits a request and waits for its end.
func (r *ring) do(s submission) (int, error) {
	tail := *r.sqTail
	i := tail & r.sqMask
	*(*submission)(unsafe.Pointer(&r.sqes[uintptr(i)*unsafe.Sizeof(s)])) = s
	*(*uint32)(unsafe.Add(r.sqArray, i*4)) = i
	atomic.StoreUint32(r.sqTail, tail+1)
	submit := uintptr(1)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, uringGetEvents, 0, 0)
		if errno == 0 {
			submit -= n
		} else if errno != unix.EINTR {
			return 0, fmt.Errorf("io_uring_enter: %w", errno)
		}
		head := *r.cqHead
		if submit > 0 || head == atomic.LoadUint32(r.cqTail) {
			continue
		}
		c := *(*completion)(unsafe.Add(r.cqes, uintptr(head&r.cqMask)*unsafe.Sizeof(completion{})))
		atomic.StoreUint32(r.cqHead, head+1)
		if c.res < 0 {
			return 0, unix.Errno(-c.res)
		}
		return int(c.res), nil
	}
}

// uring is a life of a datagram socket by io_uring.
func (l *life) uring() error {
	if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	s := 1 + l.random.IntN(loadServices-1)
	to := loadService(l.v6(), s)
	q := []byte(l.question())
	var pinned runtime.Pinner // what the kernel has the addresses of
	defer pinned.Unpin()
	raw := new(unix.RawSockaddrInet6)
	pinned.Pin(raw)
	size := uint32(unix.SizeofSockaddrInet4)
	if l.domain == unix.AF_INET6 {
		size = unix.SizeofSockaddrInet6
		*raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16(), Port: bits.ReverseBytes16(to.Port())}
	} else {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		*a = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4(), Port: bits.ReverseBytes16(to.Port())}
	}
	buf := make([]byte, 64)
	iov := []unix.Iovec{{Base: &q[0], Len: uint64(len(q))}, {Base: &buf[0], Len: uint64(len(buf))}}
	message := func(i int) *unix.Msghdr { return &unix.Msghdr{Iov: &iov[i], Iovlen: 1} }
	out, in, source := message(0), message(1), new(unix.RawSockaddrInet6)
	for _, p := range []any{&q[0], &buf[0], &iov[0], out, in, source} {
		pinned.Pin(p)
	}
	connected := l.random.IntN(2) == 0
	if connected {
		if _, err := l.ring.do(submission{opcode: uringOpConnect, fd: int32(l.fd), addr: uint64(uintptr(unsafe.Pointer(raw))), off: uint64(size)}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if err := l.shown(s); err != nil {
			return err
		}
	} else {
		out.Name, out.Namelen = (*byte)(unsafe.Pointer(raw)), size
	}
	if _, err := l.ring.do(submission{opcode: uringOpSendmsg, fd: int32(l.fd), addr: uint64(uintptr(unsafe.Pointer(out))), len: 1}); err != nil {
		return fmt.Errorf("sendmsg: %w", err)
	}
	in.Name, in.Namelen = (*byte)(unsafe.Pointer(source)), unix.SizeofSockaddrInet6
	n, err := l.ring.do(submission{opcode: uringOpRecvmsg, fd: int32(l.fd), addr: uint64(uintptr(unsafe.Pointer(in))), len: 1})
	if err != nil {
		return fmt.Errorf("recvmsg: %w", err)
	}
	l.answers.Add(1)
	if string(buf[:n]) != string(q) {
		return fmt.Errorf("%q answers %q", buf[:n], q)
	}
	var from unix.Sockaddr = &unix.SockaddrInet6{Addr: source.Addr, Port: int(bits.ReverseBytes16(source.Port))}
	if source.Family == unix.AF_INET {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(source))
		from = &unix.SockaddrInet4{Addr: a.Addr, Port: int(bits.ReverseBytes16(a.Port))}
	}
	if got := sockaddr.AddrPort(from); got != to {
		return fmt.Errorf("%v: the answer is from %v", to, got)
	}
	return nil
}
