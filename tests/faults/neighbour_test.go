// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

// A neighbour is a process of nobody's that does what it is told to, a line each, and says what came of it.

const (
	neighbour  = "neighbour"
	intruder   = "intruder" // what a neighbour starts in namespaces of its own
	named      = "named"
	forked     = "forked" // what a neighbour forks
	nobody     = 65534
	neighbours = 2
)

// deed is something that a neighbour does.
type deed struct {
	Do       string `json:"do"`
	Slot     int    `json:"slot"` // of the socket
	Domain   int    `json:"domain,omitempty"`
	Kind     int    `json:"kind,omitempty"`
	Protocol int    `json:"protocol,omitempty"`
	To       string `json:"to,omitempty"`
	Payload  string `json:"payload,omitempty"`
	Level    int    `json:"level,omitempty"`
	Option   int    `json:"option,omitempty"`
	Size     int    `json:"size,omitempty"`
}

// result is what came of it.
type result struct {
	Errno   unix.Errno `json:"errno,omitempty"`
	Address string     `json:"address,omitempty"`
	Payload string     `json:"payload,omitempty"`
	Count   int        `json:"count,omitempty"`
}

func runNeighbour() error {
	fds := make(map[int]int)
	lines := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var d deed
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			return err
		}
		var r result
		if err := d.do(fds, &r); err != nil && !errors.As(err, &r.Errno) {
			return fmt.Errorf("%s: %w", lines.Bytes(), err)
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (d *deed) do(fds map[int]int, r *result) (err error) {
	fd, domain := fds[d.Slot], d.Domain
	var to unix.Sockaddr
	if d.To != "" {
		to = sockaddr.Of(domain, netip.MustParseAddrPort(d.To))
	}
	switch d.Do {
	case "open":
		fd, err := unix.Socket(domain, d.Kind|unix.SOCK_CLOEXEC, d.Protocol)
		if err != nil {
			return err
		}
		fds[d.Slot] = fd
		tv := unix.NsecToTimeval(int64(answerTimeout))
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	case "close":
		delete(fds, d.Slot)
		return unix.Close(fd)
	case "dup":
		other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds[d.Slot] = other
		return unix.Close(fd)
	case "connect":
		return uninterrupted(func() error { return unix.Connect(fd, to) })
	case "disconnect":
		return sockaddr.Disconnect(fd)
	case "peer":
		sa, err := unix.Getpeername(fd)
		if err != nil {
			return err
		}
		r.Address = sockaddr.AddrPort(sa).String()
	case "ask":
		if err := uninterrupted(func() error { return unix.Sendto(fd, []byte(d.Payload), 0, to) }); err != nil {
			return err
		}
		var buf [64]byte
		var n int
		var sa unix.Sockaddr
		if err := uninterrupted(func() (err error) { n, sa, err = unix.Recvfrom(fd, buf[:], 0); return err }); err != nil {
			return err
		}
		r.Payload = string(buf[:n])
		if sa != nil {
			r.Address = sockaddr.AddrPort(sa).String()
		}
	case "setsockopt":
		return unix.SetsockoptString(fd, d.Level, d.Option, strings.Repeat("\x01", d.Size))
	case "give":
		return unix.Sendmsg(exchangeFD, []byte{0}, unix.UnixRights(fd), nil, 0)
	case "take":
		var b [1]byte
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(exchangeFD, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			return err
		}
		passed, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		fds[d.Slot] = passed[0]
	case "fork":
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{workerEnv + "=" + forked}
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(mustDup(fd)), "socket")}
		defer cmd.ExtraFiles[0].Close()
		return cmd.Run()
	case "crowd":
		return crowd(d, r)
	case "intrude":
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{workerEnv + "=" + intruder}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	default:
		return fmt.Errorf("unknown deed %q", d.Do)
	}
	return nil
}

func mustDup(fd int) int {
	other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return other
}

// crowd takes of what all share as much as it can: many sockets that send to many services.
func crowd(d *deed, r *result) error {
	for range d.Size {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range loadServices {
			err := unix.Sendto(fd, nil, unix.MSG_DONTWAIT, sockaddr.Of(unix.AF_INET, loadService(false, i)))
			if err == nil {
				r.Count++
			}
		}
	}
	return nil
}

// runIntruder does in namespaces of its own, where it is root, what nobody else can: it forges datagrams.
func runIntruder() error {
	if err := sandbox.LoopbackUp(); err != nil {
		return err
	}
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	packet, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(packet)
	defer unix.Close(raw)
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(udp)
	for i := range loadServices {
		_ = unix.Connect(udp, sockaddr.Of(unix.AF_INET, loadService(false, i)))
		for port := 30000; port < 30050; port++ {
			datagram := []byte{byte(loadPort >> 8), byte(loadPort & 0xff), byte(port >> 8), byte(port & 0xff), 0, 8, 0, 0}
			_ = unix.Sendto(raw, datagram, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 1, 0, byte(i%loadBackends + 1)}})
		}
		// From port 0, which nobody can send from otherwise.
		ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 127, 1, 0, 1, 127, 0, 0, 1, 0, 0, 0x75, 0x30, 0, 8, 0, 0}
		_ = unix.Sendto(packet, ip, 0, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: 1})
	}
	return nil
}

// neighbourProcess is a neighbour, as the test has it.
type neighbourProcess struct {
	cmd    *exec.Cmd
	in     *json.Encoder
	closer func()
	out    *bufio.Reader
	stderr bytes.Buffer
}

// startNeighbours starts processes that can pass sockets to each other.
func startNeighbours(t require.TestingT) (all [neighbours]*neighbourProcess) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	for i := range all {
		p := new(neighbourProcess)
		exchange := os.NewFile(uintptr(pair[i]), "exchange")
		p.cmd = exec.Command("/proc/self/exe")
		p.cmd.Env = append(os.Environ(), workerEnv+"="+neighbour)
		p.cmd.ExtraFiles = []*os.File{exchange}
		p.cmd.Stderr = &p.stderr
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		stdin, err := p.cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := p.cmd.StdoutPipe()
		require.NoError(t, err)
		p.in, p.out = json.NewEncoder(stdin), bufio.NewReader(stdout)
		p.closer = func() { stdin.Close() }
		require.NoError(t, p.cmd.Start())
		exchange.Close()
		all[i] = p
	}
	return all
}

func (p *neighbourProcess) end() {
	p.closer()
	_ = p.cmd.Wait()
}

// do lets the neighbour do something.
func (p *neighbourProcess) do(t require.TestingT, d deed) (r result) {
	require.NoError(t, p.in.Encode(d))
	line, err := p.out.ReadBytes('\n')
	require.NoError(t, err, "%+v: %s", d, &p.stderr)
	require.NoError(t, json.Unmarshal(line, &r))
	return r
}

// Of names of processes and addresses in maps nothing gets into the output that forges a line, a cell or a control
// sequence.
func TestNamesForgeNothing(t *testing.T) {
	n := newNode(t)
	loaded(n)
	names := []string{"a\nTCP", "\x1b[2J\x1b[1;1H", "x  tcp  y", "1/a,2/b", "\u202etxt", "\"},{\"", "\xff\xfe", "a\tb\rc", "ünï😀"}
	for _, name := range names {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), workerEnv+"="+named, namedEnv+"="+fmt.Sprintf("%x", name))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(stdout).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "ready\n", line)
		defer func() { stdin.Close(); _ = cmd.Wait() }()
	}
	o := n.run("list")
	require.Equal(t, 0, o.code, o)
	table := strings.Split(strings.TrimSuffix(o.stdout, "\n"), "\n")
	require.Len(t, table, 1+len(names)+len(n.sockets), "a line each: %s", o.stdout)
	header := len(strings.Fields(table[0]))
	for _, line := range table[1:] {
		require.Len(t, strings.Fields(line), header, "%q", line)
		for _, c := range line {
			require.True(t, c >= ' ' && c != 0x7f && (c < 0x80 || c > 0x9f) && c != '\u202e', "%q", line)
		}
	}
	for _, format := range []string{"json", "jsonl"} {
		o := n.run("list", "-o", format)
		require.Equal(t, 0, o.code, o)
		for _, c := range o.stdout {
			require.True(t, c == '\n' || c >= ' ' && c != 0x7f && (c < 0x80 || c > 0x9f) && c != '\u202e', "%q", o.stdout)
		}
		decoder := json.NewDecoder(strings.NewReader(o.stdout))
		documents := 0
		for decoder.More() {
			var document any
			require.NoError(t, decoder.Decode(&document))
			documents++
		}
		if format == "jsonl" {
			require.Equal(t, len(names)+len(n.sockets), documents)
		} else {
			require.Equal(t, 1, documents)
		}
	}
}

const namedEnv = "REVSK_FAULTS_NAME"

// runNamed is a process of that name with a socket.
func runNamed() error {
	var name string
	if _, err := fmt.Sscanf(os.Getenv(namedEnv), "%x", &name); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr.Of(unix.AF_INET, service4)); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}
