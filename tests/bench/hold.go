// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/childproc"
)

// A holder is this program as another process that opens sockets in the cgroup of a variant and holds
// them: a process cannot have more than RLIMIT_NOFILE.
const (
	holderEnv     = "REVSK_BENCH_HOLDER"
	holderSockets = 19000
	firstPort     = 2000
)

// errand is what a holder is to do. Its sockets are of IPv4 and UDP, with an address of the holder's
// own, since a network namespace has only so many ports.
type errand struct {
	Number  int // of the holder
	Sockets int
	Sends   bool // instead of connecting
	Mixed   bool // every tenth sends, the others connect
	Direct  bool // to backends: for the floor
}

func runHolder(role string) error {
	var e errand
	if err := json.Unmarshal([]byte(role), &e); err != nil {
		return err
	}
	fds := make([]int, e.Sockets)
	if err := (&kit{}).try(func(*kit) { e.open(fds) }); err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(e.remember(fds))
	}
	return nil
}

func (e errand) at(i int) netip.AddrPort {
	if e.Direct {
		return ipv4.backend(i % serviceCount)
	}
	return ipv4.service(i % serviceCount)
}

func (e errand) open(fds []int) {
	local := netip.AddrFrom4([4]byte{127, 3, byte(e.Number), 1})
	for i := range fds {
		fds[i] = openSocket(unix.AF_INET, unix.IPPROTO_UDP)
		// Not those that the kernel gives to sockets without an address.
		bindTo(fds[i], newAddress(netip.AddrPortFrom(local, uint16(firstPort+i))))
		if e.sends(i) {
			sendTo(fds[i], newAddress(e.at(i)))
		} else {
			connect(fds[i], newAddress(e.at(i)))
		}
	}
}

// sends says of a socket whether it sends instead of connecting.
func (e errand) sends(i int) bool { return e.Sends || e.Mixed && i%10 == 0 }

// remember counts the sockets that are still connected to their service.
func (e errand) remember(fds []int) int {
	n := 0
	for i, fd := range fds {
		if e.sends(i) {
			continue
		}
		var peer address
		getpeername(fd, &peer)
		if peer.addrPort() == e.at(i) {
			n++
		}
	}
	return n
}

// holders are the processes that hold sockets together.
type holders struct {
	all []*holder
}

type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// hold has so many sockets opened in the cgroup of a variant, one process after the other.
func (v *variant) hold(sockets int, sends bool) (*holders, error) {
	hs := new(holders)
	if err := hs.add(v, sockets, sends); err != nil {
		return nil, errors.Join(err, hs.kill())
	}
	return hs, nil
}

// add has more of them opened.
func (hs *holders) add(v *variant, sockets int, sends bool) error {
	return hs.open(v, sockets, errand{Sends: sends})
}

// open has sockets opened that do what e says.
func (hs *holders) open(v *variant, sockets int, e errand) error {
	for sockets > 0 {
		e.Sockets, e.Direct = min(sockets, holderSockets), v.dp == nil
		holdersMade++
		e.Number = holdersMade % 256
		h, err := v.start(e)
		if err != nil {
			return fmt.Errorf("holding sockets: %w", err)
		}
		hs.all = append(hs.all, h)
		sockets -= e.Sockets
	}
	return nil
}

// holdersMade is how many there have been. Fewer than 256 live at the same time.
var holdersMade int

func (v *variant) start(e errand) (*holder, error) {
	role, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(v.cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	h := &holder{cmd: exec.Command("/proc/self/exe")}
	h.cmd.Env = append(os.Environ(), holderEnv+"="+string(role))
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out = bufio.NewReader(out)
	if err := childproc.Start(h.cmd); err != nil {
		return nil, err
	}
	if line, err := h.out.ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("the holder says %q: %w", line, err), h.kill())
	}
	return h, nil
}

func (h *holder) kill() error {
	_ = h.cmd.Process.Kill()
	err := h.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// remember counts the sockets that are still connected to their service.
func (hs *holders) remember() (int, error) {
	total := 0
	for _, h := range hs.all {
		if _, err := h.in.Write([]byte("\n")); err != nil {
			return 0, err
		}
		line, err := h.out.ReadString('\n')
		if err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// kill ends the holders one after the other; the kernel closes their sockets.
func (hs *holders) kill() error {
	var errs []error
	for _, h := range hs.all {
		errs = append(errs, h.kill())
	}
	return errors.Join(errs...)
}

// killTimed is kill, and returns the time that it takes until they are gone, and the CPU time that
// the kernel needs for it.
func (hs *holders) killTimed() (wall, cpu time.Duration, err error) {
	before := make([]time.Duration, len(hs.all))
	for i, h := range hs.all {
		before[i] = systemTime(h.cmd.Process.Pid)
	}
	start := time.Now()
	for i, h := range hs.all {
		if err := h.kill(); err != nil {
			return 0, 0, err
		}
		cpu += h.cmd.ProcessState.SystemTime() - before[i]
	}
	return time.Since(start), cpu, nil
}

// systemTime is that of a running process until now, to a hundredth of a second.
func systemTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	ticks, _ := strconv.Atoi(fields[12]) // stime, the 15th of all
	return time.Duration(ticks) * 10 * time.Millisecond
}
