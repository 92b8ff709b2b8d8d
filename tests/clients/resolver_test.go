// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// flap is how long a service has no backend.
const flap = 300 * time.Millisecond

// nameServer answers when it is told to.
type nameServer struct {
	net.PacketConn
	queries chan func() // each answers one
}

func newNameServer(t *testing.T, addr string) *nameServer {
	t.Helper()
	s := &nameServer{queries: make(chan func(), 1000)}
	require.NoError(t, inBackends(func() (err error) {
		s.PacketConn, err = net.ListenPacket("udp4", addr)
		return err
	}))
	t.Cleanup(func() { s.Close() })
	go func() {
		defer close(s.queries)
		for {
			buf := make([]byte, 512)
			n, from, err := s.ReadFrom(buf)
			if err != nil {
				return
			}
			s.queries <- func() { s.answer(buf[:n], from) }
		}
	}()
	return s
}

func (s *nameServer) answer(query []byte, to net.Addr) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return
	}
	m.Response, m.Additionals = true, nil
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
		Body:   &dnsmessage.AResource{A: netip.MustParseAddr("192.0.2.1").As4()},
	}}
	packed, err := m.Pack()
	if err == nil {
		_, _ = s.WriteTo(packed, to)
	}
}

// Node's resolver (c-ares) takes an answer only from the address that it has asked: what arrives while the service
// has no backend must still come from the service.
func TestResolver(t *testing.T) {
	const n, service = 30, "10.96.0.10:53/udp"
	results := newTable(fmt.Sprintf("node's resolver (c-ares), %d queries in flight while the service has no backend for %v:", n, flap),
		"MODE", "ANSWERS LOST", "SENT AGAIN", "LAST ANSWER AFTER")
	for _, mode := range []string{"storage", "mirror", "legacy"} {
		t.Run(mode, func(t *testing.T) {
			setMode(t, mode)
			appear(t, backendA)
			server := newNameServer(t, backendA+":53")
			setService(t, service, backendA+":53")

			node := exec.Command("node", "testdata/resolver.js", "10.96.0.10:53", strconv.Itoa(n))
			out, err := node.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, node.Start())
			answers := make(chan time.Time, n)
			go func() {
				defer close(answers)
				for lines := bufio.NewScanner(out); lines.Scan(); {
					if lines.Text() == "answer" {
						answers <- time.Now()
					}
				}
			}()
			var held []func()
			for range n {
				held = append(held, <-server.queries)
			}
			setService(t, service, "")
			begin := time.Now()
			for _, answer := range held {
				answer()
			}
			answered, last := 0, begin
			if mode != "legacy" { // node receives them before the service has a backend again
				for at := range answers {
					if answered, last = answered+1, at; answered == n {
						break
					}
				}
			}
			time.Sleep(flap)
			if mode == "legacy" {
				require.Eventually(t, allRead, time.Minute, 10*time.Millisecond, "node reads its answers")
			}
			setService(t, service, backendA+":53")
			again := make(chan int)
			go func() {
				asked := 0
				for answer := range server.queries {
					asked++
					answer()
				}
				again <- asked
			}()

			for at := range answers {
				answered, last = answered+1, at
			}
			require.NoError(t, node.Wait())
			require.NoError(t, server.Close())
			asked := <-again
			results.add(mode, fmt.Sprintf("%d of %d", min(asked, n), n), strconv.Itoa(asked), milliseconds(last.Sub(begin)))
			if mode == "legacy" {
				require.Positive(t, asked, "the hash is to show the backend while the service has none")
				return
			}
			require.Zero(t, asked, "queries sent again")
			require.Equal(t, n, answered)
		})
	}
}

// allRead tells whether no socket of this namespace that is connected to a name server has something to read.
func allRead() bool {
	list, err := os.ReadFile("/proc/self/net/udp")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(list)) {
		// sl local_address rem_address st tx_queue:rx_queue …
		if f := strings.Fields(line); strings.HasSuffix(f[2], ":0035") && !strings.HasSuffix(f[4], ":00000000") {
			return false
		}
	}
	return true
}
