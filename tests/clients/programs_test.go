// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// event is an answer or an error that a program has had from a service.
type event struct {
	at          time.Time
	backend     string // of an answer: who has answered
	local, peer string // of an answer: port, and address of the service as the program sees it; empty if unknown
	err         string
}

// socket is a socket of a program, and those that it opens in its place.
type socket struct {
	program string
	mu      sync.Mutex
	events  []event
}

func (s *socket) add(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.at = time.Now()
	s.events = append(s.events, e)
}

// since returns the events from a time on.
func (s *socket) since(from time.Time) []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.events {
		if !e.at.Before(from) {
			return append([]event(nil), s.events[i:]...)
		}
	}
	return nil
}

// answer returns the first answer of a backend from a time on.
func (s *socket) answer(from time.Time, backend string) (event, bool) {
	for _, e := range s.since(from) {
		if e.backend == backend {
			return e, true
		}
	}
	return event{}, false
}

// pair is two sockets of one kind: the backend of one's service goes, that of the other stays.
type pair struct{ replaced, bystander *socket }

func newPair(program string) pair { return pair{&socket{program: program}, &socket{program: program}} }

const (
	replacedAddr  = "10.96.0.1"
	bystanderAddr = "10.96.0.2"
)

var servicePorts = []string{"7000/udp", "7000/tcp", "8080/tcp", "6379/tcp"}

// services are those of an address.
func services(addr string) (all []string) {
	for _, port := range servicePorts {
		all = append(all, addr+":"+port)
	}
	return all
}

// startPrograms starts all that use the services.
func startPrograms(t *testing.T) (all []pair) {
	t.Helper()
	classes := t.TempDir()
	require.NoError(t, output(exec.Command("javac", "-d", classes, "testdata/Client.java")))
	all = append(all, startClient(t, "node dgram", "node net", "node", "testdata/client.js")...)
	all = append(all, startClient(t, "Python asyncio datagrams", "Python asyncio streams", "python3", "testdata/client.py")...)
	all = append(all, startClient(t, "Java DatagramSocket", "Java SocketChannel", "java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classes, "Client")...)

	run(t, exec.Command("haproxy", "-f", "testdata/haproxy.cfg"), io.Discard)
	run(t, exec.Command("nginx", "-p", ".", "-c", "testdata/nginx.conf"), io.Discard)
	all = append(all, askProxy(t, "haproxy", http.MethodGet, 8081), askProxy(t, "haproxy", http.MethodPost, 8083),
		askProxy(t, "nginx", http.MethodGet, 8085), askProxy(t, "nginx", http.MethodPost, 8087))

	redis := newPair("redis replica")
	startReplica(t, redis.replaced, 7001, replacedAddr)
	startReplica(t, redis.bystander, 7002, bystanderAddr)
	return append(all, redis)
}

// startClient starts a client from testdata with a socket for each service and protocol.
func startClient(t *testing.T, udp, tcp string, command ...string) []pair {
	t.Helper()
	datagrams, streams := newPair(udp), newPair(tcp)
	sockets := map[string]*socket{
		"udp/" + replacedAddr + ":7000":  datagrams.replaced,
		"udp/" + bystanderAddr + ":7000": datagrams.bystander,
		"tcp/" + replacedAddr + ":7000":  streams.replaced,
		"tcp/" + bystanderAddr + ":7000": streams.bystander,
	}
	for target := range sockets {
		command = append(command, target)
	}
	in, out := io.Pipe()
	run(t, exec.Command(command[0], command[1:]...), out)
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			target, rest, _ := strings.Cut(lines.Text(), " ")
			s := sockets[target]
			if s == nil {
				t.Errorf("%s says %q", command[0], lines.Text())
				return
			}
			if err, is := strings.CutPrefix(rest, "error "); is {
				s.add(event{err: err})
			} else if f := strings.Fields(rest); len(f) == 4 {
				s.add(event{backend: f[1], local: f[2], peer: f[3]})
			}
		}
	}()
	return []pair{datagrams, streams}
}

// askProxy asks a proxy again and again, at this port and the next.
func askProxy(t *testing.T, program, method string, port int) pair {
	p := newPair(program + " " + method)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	for s, port := range map[*socket]int{p.replaced: port, p.bystander: port + 1} {
		client := &http.Client{Transport: &http.Transport{}}
		t.Cleanup(client.CloseIdleConnections)
		go func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond):
					s.add(page(client, method, port))
				}
			}
		}()
	}
	return p
}

func page(client *http.Client, method string, port int) event {
	request, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		return event{err: err.Error()}
	}
	response, err := client.Do(request)
	if errors.Is(err, io.EOF) {
		return event{err: "its client's connection is closed"}
	}
	if err != nil {
		return event{err: err.Error()}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return event{err: err.Error()}
	}
	if response.StatusCode != http.StatusOK {
		return event{err: fmt.Sprintf("its client gets %d", response.StatusCode)}
	}
	name, local, _ := strings.Cut(string(body), " ")
	return event{backend: name, local: local}
}

// startReplica starts a replica of the redis at an address, and looks what it is like again and again.
func startReplica(t *testing.T, s *socket, port int, master string) {
	t.Helper()
	run(t, exec.Command("redis-server", "--port", strconv.Itoa(port), "--save", "", "--dir", t.TempDir(), "--replicaof", master, "6379"), io.Discard)
	done, addr := make(chan struct{}), fmt.Sprintf("127.0.0.1:%d", port)
	t.Cleanup(func() { close(done) })
	go func() {
		wasUp := false
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			info := redis(addr, "INFO replication")
			up := strings.Contains(info, "master_link_status:up")
			if wasUp && !up {
				s.add(event{err: "link to the master is down"})
			}
			wasUp = up
			// The master pings every second; what it said before is no news.
			if !up || !strings.Contains(info, "master_last_io_seconds_ago:0") {
				continue
			}
			e := event{backend: strings.TrimSpace(redis(addr, "GET name"))}
			for _, f := range strings.Fields(redis(addr, "CLIENT LIST TYPE master")) {
				if addr, is := strings.CutPrefix(f, "laddr="); is {
					_, e.local, _ = net.SplitHostPort(addr)
				} else if addr, is := strings.CutPrefix(f, "addr="); is {
					e.peer = addr
				}
			}
			s.add(e)
		}
	}()
}

// redis returns the text with which a redis answers a command; the empty string if it does not.
func redis(addr, command string) string {
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "%s\r\n", command)
	r := bufio.NewReader(c)
	first, _ := r.ReadString('\n')
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(first, "$")))
	if err != nil || n < 0 {
		return ""
	}
	text := make([]byte, n)
	_, _ = io.ReadFull(r, text)
	return string(text)
}
