// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// Several threads use one socket. The hooks of the kernel's connect run before the kernel connects,
// in another order perhaps; whatever comes of it, the application sees services.
func TestThreadsOnOneSocket(t *testing.T) {
	type act = func(s *scene, x *socket, all []*service) error
	connect := func(_ *scene, x *socket, all []*service) error { return x.tryConnect(pick(all).front) }
	peername := func(s *scene, x *socket, all []*service) error {
		peer, err := x.tryPeername()
		if err == nil && !isService(all, peer) && !isTorn(all, peer) && !s.mistaken() {
			err = fmt.Errorf("getpeername shows %v", peer)
		}
		return err
	}
	send := func(_ *scene, x *socket, all []*service) error { return x.trySendTo(pick(all).front, "question") }
	sendConnected := func(s *scene, x *socket, _ []*service) error {
		err := x.trySend(connectedPayload)
		if s.mapped && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL)) {
			// The kernel's own, without hooks too: it has read half of a connection, whose destination is not
			// yet stored, or whose port is no longer.
			return nil
		}
		return err
	}
	receive := func(s *scene, x *socket, all []*service) error {
		reply, from, err := x.tryReceive(unix.MSG_DONTWAIT)
		if err == nil && !isService(all, from) && !misled(reply, from) && !s.mistaken() {
			err = fmt.Errorf("received %q from %v", reply, from)
		}
		return err
	}
	disconnect := func(_ *scene, x *socket, _ []*service) error { return x.tryDisconnect() }

	for _, test := range []struct {
		name    string
		threads []act
	}{
		{"connect: getpeername never shows a backend", []act{connect, connect, connect, peername}},
		{"send and receive: no answer is from a backend", []act{send, send, receive}},
		{"connect, send, receive, disconnect: no backend shows", []act{
			connect, connect, send, receive, peername, disconnect,
		}},
		{"connect, send with and without an address, receive, disconnect: no backend shows", []act{
			connect, connect, send, sendConnected, receive, peername, disconnect,
		}},
	} {
		hold(t, udp, rule{name: test.name, play: func(s *scene) {
			s.mayLeak = s.mode == legacy
			var all []*service
			for range 7 {
				all = append(all, s.service())
			}
			all = append(all, s.serviceTo(all[0].backend), s.serviceTo(s.unreachable()))
			x := s.socket()
			assert.NoError(s, inThreads(scaledDuration(500*time.Millisecond), len(test.threads), func(i int) error {
				err := test.threads[i](s, x, all)
				if expected(err) {
					err = nil
				}
				return err
			}))
		}})
	}
}

// mistaken tells whether the sendmsg hook has taken a send without an address for one to a backend's own. It
// runs for such a send by a v4-mapped socket only, with the peer that the kernel has read without a lock: if
// another thread has connected the socket elsewhere since, or disconnected it, nothing tells the two apart.
func (s *scene) mistaken() bool {
	return s.mapped && s.mode != legacy && s.counters().DroppedDirect > s.before.DroppedDirect
}

// inThreads calls f in several threads for as long as said, or until one of them fails.
func inThreads(d time.Duration, n int, f func(i int) error) error {
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			for !stop.Load() && errs[i] == nil {
				errs[i] = f(i)
				if errs[i] != nil {
					stop.Store(true)
				}
			}
		})
	}
	for deadline := time.Now().Add(d); time.Now().Before(deadline) && !stop.Load(); {
		time.Sleep(tick)
	}
	stop.Store(true)
	wg.Wait()
	return errors.Join(errs...)
}

// expected is an error of a socket that several threads use, one of whose services cannot be reached.
func expected(err error) bool {
	for _, e := range []error{
		unix.EAGAIN,       // nothing to receive
		unix.ENOTCONN,     // getpeername of a disconnected socket
		unix.ECONNABORTED, // the socket was destroyed
		unix.ENOENT,       // the socket to be destroyed has another peer now
		unix.EDESTADDRREQ, // send by a disconnected socket
		unix.ENETUNREACH,  // the service that cannot be reached
		unix.ECONNREFUSED, // IPv6: the address of a connect that is about to fail, with the port before
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// connectedPayload is what is sent without an address.
const connectedPayload = "connected"

// misled is the answer of a server that nobody has asked: the kernel reads address and port of a
// connection without a lock when it sends, so a connect at that moment can make a peer of the address
// of one service's backend and the port of another's.
func misled(reply string, from netip.AddrPort) bool {
	payload, at := split(reply)
	return payload == connectedPayload && from == at
}

// isTorn tells an address that is half of one connection and half of another: before Linux 6.2 the
// kernel's getpeername reads it without the lock of the socket. It is no backend's.
func isTorn(all []*service, at netip.AddrPort) bool {
	addr, port := at.Addr().IsUnspecified(), false
	for _, svc := range all {
		if svc.backend == at {
			return false
		}
		addr = addr || svc.backend.Addr() == at.Addr()
		port = port || svc.backend.Port() == at.Port()
	}
	return addr && port
}

func pick(all []*service) *service { return all[rand.IntN(len(all))] }

func isService(all []*service, at netip.AddrPort) bool {
	for _, svc := range all {
		if svc.front == at {
			return true
		}
	}
	return false
}
