// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// server serves the agent's pages at an address that may change.
type server struct {
	handler http.Handler
	address string
	http    *http.Server
}

// noListen is the address with which nothing is served.
const noListen = "off"

// listen changes the address. If it fails, the server stays at the former one.
func (s *server) listen(address string) error {
	if address == s.address {
		return nil
	}
	var l net.Listener
	if address != noListen {
		var err error
		if l, err = listenAt(address); err != nil {
			return fmt.Errorf("listening at %s (--listen): %w", address, err)
		}
	}
	s.close()
	s.address = address
	if l != nil {
		// Whoever may connect is not trusted with more than this.
		s.http = &http.Server{
			Handler: s.handler, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		}
		go s.http.Serve(&bounded{Listener: l})
	}
	return nil
}

// mostConnections is how many clients are served at once. Each takes a file descriptor, which the agent's work needs, too.
const mostConnections = 64

// bounded is a listener with at most so many connections. A new one ends the oldest: clients that are slow keep nobody away.
type bounded struct {
	net.Listener
	mu   sync.Mutex
	open []*boundedConn // the oldest first
}

type boundedConn struct {
	net.Conn
	of *bounded
}

func (l *bounded) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &boundedConn{c, l}
	l.mu.Lock()
	var oldest *boundedConn
	if len(l.open) == mostConnections {
		oldest = l.open[0]
	}
	l.open = append(l.open, conn)
	l.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return conn, nil
}

func (c *boundedConn) Close() error {
	c.of.mu.Lock()
	c.of.open = slices.DeleteFunc(c.of.open, func(open *boundedConn) bool { return open == c })
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func listenAt(address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return net.Listen("tcp", address)
	}
	// An agent that was killed leaves its socket behind: remove it, unless another process listens there.
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, errors.New("another process listens there")
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	return l, err
}

func (s *server) close() {
	if s.http != nil {
		s.http.Close()
		s.http = nil
	}
}
