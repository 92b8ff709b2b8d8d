// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

// Workers are processes with applications' sockets, under the load. Each opens sockets without pause, one life of a
// socket after the other, and checks every answer. At the line "stop" it says what it has seen, and keeps some sockets
// until its standard input ends.

const (
	workerEnv  = "REVSK_FAULTS_WORKER"
	lingerers  = "lingerers" // holds sockets and waits to be killed
	churners   = "churners"
	exchangeFD = 3 // where workers pass sockets to each other; and the next, where they come out

	loadPort       = 7001
	loadServices   = 40
	loadBackends   = 4
	doomedService  = 0 // its sockets are terminated all the time
	keptSockets    = 40
	lingererAmount = 200
	answerTimeout  = time.Minute
)

func loadBackend(v6 bool, n int) netip.AddrPort {
	if v6 {
		return netip.MustParseAddrPort(fmt.Sprintf("[fd00:1::%d]:%d", n+1, loadPort))
	}
	return netip.MustParseAddrPort(fmt.Sprintf("127.1.0.%d:%d", n+1, loadPort))
}

func loadService(v6 bool, n int) netip.AddrPort {
	if v6 {
		return netip.MustParseAddrPort(fmt.Sprintf("[fd00:96::1:%d]:80", n+1))
	}
	return netip.MustParseAddrPort(fmt.Sprintf("10.96.1.%d:80", n+1))
}

// backendOf is the number of a service's backend. No two services that one socket uses have the same, since in mode
// legacy the later one would count for both.
func backendOf(service int) int {
	if service == doomedService {
		return 0
	}
	return 1 + service%(loadBackends-1)
}

// seen is what a worker has seen.
type seen struct {
	Lives   map[string]int `json:"lives"` // sockets by kind
	Answers int            `json:"answers"`
	Ended   int            `json:"ended"` // by terminate
	Wrong   []string       `json:"wrong"`
	Kept    []uint64       `json:"kept"` // cookies of sockets that are connected to a service
}

// life is what is done with one socket.
type life struct {
	*worker
	random *rand.Rand
	fd     int
	domain int
	mapped bool
	ring   *ring
}

type worker struct {
	stop    atomic.Bool
	answers atomic.Int64
	ended   atomic.Int64
	mu      sync.Mutex
	lives   map[string]int
	wrong   []string
	kept    []int
}

// kinds of lives, and how many of 100 there are of each.
var lives = []struct {
	name string
	odds int
	live func(*life) error
}{
	{"UDP connected", 30, (*life).datagram},
	{"UDP reconnected and disconnected", 16, (*life).reconnect},
	{"UDP unconnected", 14, (*life).send},
	{"UDP-Lite", 4, (*life).lite},
	{"TCP aborted", 17, (*life).abort},
	{"TCP closed", 6, (*life).stream},
	{"MPTCP", 4, (*life).multipath},
	{"passed by SCM_RIGHTS", 4, (*life).pass},
	{"io_uring", 5, (*life).uring},
}

func runWorker() error {
	w := &worker{lives: make(map[string]int)}
	var group sync.WaitGroup
	for i := range 3 {
		group.Go(func() { w.churn(uint64(i)) })
	}
	over, received := make(chan struct{}), make(chan struct{})
	go func() { defer close(received); w.receivePassed(over) }()
	group.Go(w.namespaces)
	group.Go(w.waitForTheEnd)
	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()
	w.stop.Store(true)
	group.Wait()
	close(over)
	<-received
	w.keep()
	s := seen{Lives: w.lives, Answers: int(w.answers.Load()), Ended: int(w.ended.Load()), Wrong: w.wrong}
	for _, fd := range w.kept {
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return err
		}
		s.Kept = append(s.Kept, cookie)
	}
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return err
	}
	for lines.Scan() {
	}
	return lines.Err()
}

func (w *worker) complain(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) < 10 {
		w.wrong = append(w.wrong, err.Error())
	}
}

func (w *worker) churn(seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(os.Getpid())))
	r, err := newRing()
	if err != nil {
		w.complain(err)
		return
	}
	defer r.close()
	counts := make(map[string]int)
	for !w.stop.Load() {
		n := random.IntN(100)
		i := 0
		for n >= lives[i].odds {
			n -= lives[i].odds
			i++
		}
		l := &life{worker: w, random: random, fd: -1, domain: unix.AF_INET, ring: r}
		switch random.IntN(4) {
		case 0:
			l.domain, l.mapped = unix.AF_INET6, true
		case 1:
			l.domain = unix.AF_INET6
		}
		err := lives[i].live(l)
		if l.fd >= 0 {
			unix.Close(l.fd)
		}
		if err != nil {
			w.complain(fmt.Errorf("%s: %w", lives[i].name, err))
		}
		counts[lives[i].name]++
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range counts {
		w.lives[name] += n
	}
}

func (l *life) v6() bool { return l.domain == unix.AF_INET6 && !l.mapped }

func (l *life) socket(kind, protocol int) (err error) {
	l.fd, err = unix.Socket(l.domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(answerTimeout))
	return unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (l *life) sockaddr(a netip.AddrPort) unix.Sockaddr {
	return sockaddr.Of(l.domain, a)
}

// service is any service but the one whose sockets are terminated.
func (l *life) service() int { return doomedService + 1 + l.random.IntN(loadServices-1) }

// other is a service with another backend.
func (l *life) other(than int) int {
	for {
		if n := l.service(); backendOf(n) != backendOf(than) {
			return n
		}
	}
}

func (l *life) connect(service int) error {
	return uninterrupted(func() error { return unix.Connect(l.fd, l.sockaddr(loadService(l.v6(), service))) })
}

// uninterrupted repeats a call that a signal of the Go runtime has interrupted.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// shown checks the peer that the application sees.
func (l *life) shown(service int) error {
	sa, err := unix.Getpeername(l.fd)
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	l.answers.Add(1)
	if want, got := loadService(l.v6(), service), sockaddr.AddrPort(sa); got != want {
		return fmt.Errorf("%v: getpeername shows %v", want, got)
	}
	return nil
}

// heard receives an answer, and checks whose it is.
func (l *life) heard(service int, question string, fromService bool) error {
	var buf [64]byte
	var n int
	var sa unix.Sockaddr
	err := uninterrupted(func() (err error) { n, sa, err = unix.Recvfrom(l.fd, buf[:], 0); return err })
	if err != nil {
		return fmt.Errorf("recvfrom: %w", err)
	}
	l.answers.Add(1)
	if string(buf[:n]) != question {
		return fmt.Errorf("%q answers %q", buf[:n], question)
	}
	if want, got := loadService(l.v6(), service), sockaddr.AddrPort(sa); fromService && got != want {
		return fmt.Errorf("%v: the answer is from %v", want, got)
	}
	return nil
}

func (l *life) question() string { return strconv.FormatUint(l.random.Uint64(), 36) }

func (l *life) talk(service int, datagram bool) error {
	q := l.question()
	if err := uninterrupted(func() error { _, err := unix.Write(l.fd, []byte(q)); return err }); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return l.heard(service, q, datagram)
}

func (l *life) ask(service int) error {
	q := l.question()
	err := uninterrupted(func() error {
		return unix.Sendto(l.fd, []byte(q), 0, l.sockaddr(loadService(l.v6(), service)))
	})
	if err != nil {
		return fmt.Errorf("sendto: %w", err)
	}
	return l.heard(service, q, true)
}

func (l *life) datagram() error {
	if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	s := l.service()
	err := l.connect(s)
	if err == nil {
		err = l.shown(s)
	}
	if err == nil && l.random.IntN(2) == 0 {
		err = l.talk(s, true)
	}
	if err == nil {
		err = l.shown(s)
	}
	return err
}

func (l *life) reconnect() error {
	if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	a := l.service()
	b := l.other(a)
	if err := l.connect(a); err != nil {
		return err
	}
	if err := l.connect(b); err != nil {
		return err
	}
	if err := l.shown(b); err != nil {
		return err
	}
	if err := l.talk(b, true); err != nil {
		return err
	}
	if err := sockaddr.Disconnect(l.fd); err != nil {
		return fmt.Errorf("connect(AF_UNSPEC): %w", err)
	}
	if _, err := unix.Getpeername(l.fd); !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("getpeername of a disconnected socket: %w", err)
	}
	return nil
}

func (l *life) send() error {
	if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	a := l.service()
	if err := l.ask(a); err != nil {
		return err
	}
	if l.random.IntN(4) == 0 {
		b := l.other(a)
		return l.ask(b)
	}
	return nil
}

func (l *life) lite() error {
	l.mapped, l.domain = false, unix.AF_INET
	if err := l.socket(unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE); err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil // the kernel has none any more
		}
		return err
	}
	return l.ask(l.service())
}

func (l *life) stream() error {
	if err := l.socket(unix.SOCK_STREAM, 0); err != nil {
		return err
	}
	s := l.service()
	return l.streamTo(s)
}

func (l *life) streamTo(s int) error {
	if err := l.connect(s); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := l.shown(s); err != nil {
		return err
	}
	return l.talk(s, false)
}

func (l *life) abort() error {
	if err := l.socket(unix.SOCK_STREAM, 0); err != nil {
		return err
	}
	s := l.service()
	err := l.connect(s)
	if err == nil {
		err = l.shown(s)
	}
	if err := unix.SetsockoptLinger(l.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return err
}

const protocolMPTCP = 262

func (l *life) multipath() error {
	err := l.socket(unix.SOCK_STREAM, protocolMPTCP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	} else if err != nil {
		return err
	}
	s := l.service()
	if err := l.connect(s); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// getpeername of such a socket shows the backend: docs/differences.md says so.
	return l.talk(s, false)
}

// pass sends a connected socket to another worker, or to itself, and closes it while it is in flight.
func (l *life) pass() error {
	if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
		return err
	}
	s := l.service()
	if err := l.connect(s); err != nil {
		return err
	}
	message := fmt.Sprintf("%d %t %d", l.domain, l.mapped, s)
	return uninterrupted(func() error { return unix.Sendmsg(exchangeFD, []byte(message), unix.UnixRights(l.fd), nil, 0) })
}

// receivePassed receives what workers pass, until this one passes nothing more and nothing is left: of several workers the last
// to end leaves no socket in flight.
func (w *worker) receivePassed(over <-chan struct{}) {
	for {
		fds := []unix.PollFd{{Fd: exchangeFD + 1, Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if n > 0 {
			w.receiveOne()
			continue
		}
		select {
		case <-over:
			if err == nil {
				return
			}
		default:
		}
	}
}

func (w *worker) receiveOne() {
	var b [32]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, noob, _, _, err := unix.Recvmsg(exchangeFD+1, b[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return // another was faster
	}
	messages, err := unix.ParseSocketControlMessage(oob[:noob])
	if err != nil || len(messages) != 1 {
		w.complain(errors.New("a message without a socket"))
		return
	}
	passed, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		w.complain(err)
		return
	}
	defer unix.Close(passed[0])
	l := &life{worker: w, random: rand.New(rand.NewPCG(rand.Uint64(), 0)), fd: passed[0]}
	var s int
	if _, err := fmt.Sscanf(string(b[:n]), "%d %t %d", &l.domain, &l.mapped, &s); err != nil {
		w.complain(err)
		return
	}
	if err := errors.Join(l.shown(s), l.talk(s, true)); err != nil {
		w.complain(fmt.Errorf("received by SCM_RIGHTS: %w", err))
	}
}

// namespaces makes network namespaces with sockets and lets them go, of which some are passed out.
func (w *worker) namespaces() {
	for i := 0; !w.stop.Load(); i++ {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends, and the namespace with it
			done <- w.inNamespace()
		}()
		if err := <-done; err != nil {
			w.complain(fmt.Errorf("in a namespace: %w", err))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (w *worker) inNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := sandbox.LoopbackUp(); err != nil {
		return err
	}
	for s := 1; s < 6; s++ {
		l := &life{worker: w, domain: unix.AF_INET}
		if err := l.socket(unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		defer unix.Close(l.fd)
		if err := errors.Join(l.connect(s), l.shown(s)); err != nil {
			return err
		}
	}
	w.mu.Lock()
	w.lives["in namespaces of their own"] += 5
	w.mu.Unlock()
	return nil
}

// waitForTheEnd has sockets that are connected to the service whose sockets are terminated, and waits until they are.
func (w *worker) waitForTheEnd() {
	for i := 0; !w.stop.Load(); i++ {
		l := &life{worker: w, domain: unix.AF_INET}
		if i%4 < 2 {
			l.domain = unix.AF_INET6
		}
		kind := unix.SOCK_DGRAM
		if i%2 == 0 {
			kind = unix.SOCK_STREAM
		}
		if err := l.untilTheEnd(kind); err != nil {
			w.complain(fmt.Errorf("waiting for the end: %w", err))
		}
		unix.Close(l.fd)
	}
}

func (l *life) untilTheEnd(kind int) error {
	if err := l.socket(kind, 0); err != nil {
		return err
	}
	if err := l.connect(doomedService); err != nil && !ended(err) {
		return err
	} else if ended(err) {
		l.ended.Add(1)
		return nil
	}
	for !l.stop.Load() {
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 200); n <= 0 {
			continue
		}
		_, err := unix.Read(l.fd, make([]byte, 1))
		if !ended(err) {
			return fmt.Errorf("read: %w", err)
		}
		l.ended.Add(1)
		return nil
	}
	return nil
}

// ended tells whether a call fails because the socket was terminated.
func ended(err error) bool {
	return errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ENOTCONN)
}

// keep leaves sockets open that are connected to services.
func (w *worker) keep() {
	random := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	for i := range keptSockets {
		l := &life{worker: w, random: random, domain: unix.AF_INET}
		if i%2 == 0 {
			l.domain = unix.AF_INET6
		}
		kind := unix.SOCK_DGRAM
		if i%4 < 2 {
			kind = unix.SOCK_STREAM
		}
		s := l.service()
		if err := l.socket(kind, 0); err != nil {
			w.complain(err)
		} else if err := errors.Join(l.connect(s), l.shown(s)); err != nil {
			w.complain(fmt.Errorf("kept: %w", err))
		}
		w.kept = append(w.kept, l.fd)
	}
}

// runLingerer opens sockets, says so and waits to be killed.
func runLingerer() error {
	w := new(worker)
	for i := range lingererAmount {
		l := &life{worker: w, random: rand.New(rand.NewPCG(uint64(i), uint64(os.Getpid()))), domain: unix.AF_INET}
		kind := unix.SOCK_DGRAM
		if i%2 == 0 {
			kind = unix.SOCK_STREAM
		}
		s := l.service()
		if err := l.socket(kind, 0); err != nil {
			return err
		}
		if err := errors.Join(l.connect(s), l.shown(s)); err != nil {
			return err
		}
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// add adds what another worker has seen.
func (s *seen) add(o seen) {
	if s.Lives == nil {
		s.Lives = make(map[string]int)
	}
	for name, n := range o.Lives {
		s.Lives[name] += n
	}
	s.Answers += o.Answers
	s.Ended += o.Ended
	s.Wrong = append(s.Wrong, o.Wrong...)
	s.Kept = append(s.Kept, o.Kept...)
}

func (s *seen) describe() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.Lives)) {
		parts = append(parts, thousands(s.Lives[name])+" "+name)
	}
	return strings.Join(parts, ", ")
}
