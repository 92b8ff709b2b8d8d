// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
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
			return fmt.Errorf("listening at %s: %w", address, err)
		}
	}
	s.close()
	s.address = address
	if l != nil {
		s.http = &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
		go s.http.Serve(l)
	}
	return nil
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
