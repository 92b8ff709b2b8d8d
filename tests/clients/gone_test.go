// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// silence is how long nobody tells the programs that their backend is gone.
const silence = 2 * time.Second

// A service has no backend for a moment, and later its backend is gone for good. Programs without a timeout wait for it
// until `revsk terminate` ends their connections; then they find the new backend. Other connections go on.
func TestBackendGone(t *testing.T) {
	for _, mode := range []string{"storage", "mirror", "legacy"} {
		t.Run(mode, func(t *testing.T) {
			pairs, ports := startScene(t, mode)
			replaced := services(replacedAddr)

			flapped := time.Now()
			setServices(t, replaced, "")
			time.Sleep(flap)
			setServices(t, replaced, backendA)
			time.Sleep(flap)

			disappear(t, backendA)
			setServices(t, replaced, backendB)
			gone := time.Now()
			time.Sleep(silence)

			terminated := time.Now()
			var backends []string
			for _, port := range servicePorts {
				backends = append(backends, backendA+":"+port)
			}
			err := output(revsk(append([]string{"terminate"}, backends...)...))
			if mode == "legacy" {
				require.ErrorContains(t, err, "legacy")
				time.Sleep(silence)
			} else {
				require.NoError(t, err)
			}
			results := newTable(fmt.Sprintf("mode %s: the backend of a service is gone; revsk terminate %v later:", mode, silence),
				"PROGRAM", "PEER AFTER A FLAP", "UNTIL THEN", "ITS ERROR", "ANSWERED AGAIN", "OTHER CONNECTION")
			seeBackend := 0
			for _, p := range pairs {
				seen := report(t, results, mode, p, ports[p.bystander], flapped, gone, terminated)
				if strings.HasPrefix(seen, backendA) {
					seeBackend++
				}
			}
			if mode == "legacy" {
				assert.Positive(t, seeBackend, "the hash is to show the backend after the service had none")
			} else {
				assert.Zero(t, seeBackend, "programs that see the backend")
			}
		})
	}
}

// startScene starts servers at two backends and the programs that ask them, and returns these with the local ports of the bystanders.
func startScene(t *testing.T, mode string) (pairs []pair, ports map[*socket]string) {
	t.Helper()
	setMode(t, mode)
	appear(t, backendA)
	appear(t, backendB)
	serve(t, backendA, "A")
	serve(t, backendB, "B")
	for backend, name := range map[string]string{backendA: "A", backendB: "B"} {
		require.NoError(t, waitFor(time.Minute, func() bool {
			redis(backend+":6379", "SET name "+name)
			return redis(backend+":6379", "GET name") == name
		}))
	}
	setServices(t, services(replacedAddr), backendA)
	setServices(t, services(bystanderAddr), backendB)
	pairs = startPrograms(t)
	begin := time.Now()
	for _, p := range pairs {
		for s, backend := range map[*socket]string{p.replaced: "A", p.bystander: "B"} {
			require.NoError(t, waitFor(time.Minute, func() bool {
				_, ok := s.answer(begin, backend)
				return ok
			}), "%s asks %s", s.program, backend)
		}
	}
	ports = make(map[*socket]string)
	for _, p := range pairs {
		e, _ := p.bystander.answer(begin, "B")
		ports[p.bystander] = e.local
	}
	return pairs, ports
}

// With an agent nobody has to do anything.
func TestBackendGoneWithAgent(t *testing.T) {
	for _, mode := range []string{"storage", "mirror"} {
		t.Run(mode, func(t *testing.T) {
			pairs, ports := startScene(t, mode)
			page := "unix:" + t.TempDir() + "/agent"
			run(t, revsk("agent", "--terminate", "all", "--terminate-settle", "500ms", "--listen", page), io.Discard)
			require.NoError(t, waitFor(time.Minute, func() bool { return knowsBackends(page) }))
			time.Sleep(time.Second) // the maps come to rest

			disappear(t, backendA)
			gone := time.Now()
			setServices(t, services(replacedAddr), backendB)
			results := newTable(fmt.Sprintf("mode %s: the backend of a service is gone; revsk agent runs:", mode),
				"PROGRAM", "ANSWERED AGAIN", "OTHER CONNECTION")
			for _, p := range pairs {
				name := p.replaced.program
				require.NoError(t, waitFor(time.Minute, func() bool { _, ok := p.replaced.answer(gone, "B"); return ok }), name)
				e, _ := p.replaced.answer(gone, "B")
				for _, e := range p.bystander.since(gone) {
					require.Equal(t, ports[p.bystander], e.local, "%s, beside: %s", name, e.err)
				}
				results.add(name, "after "+milliseconds(e.at.Sub(gone)), "keeps its port")
			}
		})
	}
}

// knowsBackends tells whether the agent has read the backends, and is right.
func knowsBackends(page string) bool {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", strings.TrimPrefix(page, "unix:"))
	}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://agent/metrics")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return err == nil && strings.Contains(string(text), "\nrevsk_backends 8\n") && strings.Contains(string(text), "\nrevsk_ready 1\n")
}

// report checks what has become of two connections, and returns the peer that the program has seen.
func report(t *testing.T, results *table, mode string, p pair, port string, flapped, gone, terminated time.Time) (seen string) {
	t.Helper()
	name := p.replaced.program
	seen = "-" // it does not say
	for _, e := range p.replaced.since(flapped) {
		if e.at.Before(gone) {
			assert.Empty(t, e.err, "%s, while the service has no backend", name)
			if e.peer != "" && !strings.HasPrefix(seen, backendA) {
				seen = e.peer
			}
		}
	}
	meanwhile := "waits"
	for _, e := range p.replaced.since(gone.Add(silence / 2)) {
		if e.at.Before(terminated) {
			meanwhile = "has an answer: " + e.backend + e.err
		}
	}
	assert.Equal(t, "waits", meanwhile, name)

	stays := "keeps its port"
	for _, e := range p.bystander.since(flapped) {
		if e.local != port {
			stays = "lost: " + e.err
		}
	}
	assert.Equal(t, "keeps its port", stays, name)

	if mode == "legacy" {
		_, again := p.replaced.answer(terminated, "B")
		assert.False(t, again, "%s is answered again in mode legacy", name)
		results.add(name, seen, meanwhile, "none: terminate refuses", fmt.Sprintf("not within %v", silence), stays)
		return seen
	}
	notices, again := "none: it asks again", "never"
	if assert.NoError(t, waitFor(time.Minute, func() bool { _, ok := p.replaced.answer(terminated, "B"); return ok }), name) {
		e, _ := p.replaced.answer(terminated, "B")
		again = "after " + milliseconds(e.at.Sub(terminated))
	}
	if i := slices.IndexFunc(p.replaced.since(terminated), func(e event) bool { return e.err != "" }); i >= 0 {
		notices = p.replaced.since(terminated)[i].err
	}
	results.add(name, seen, meanwhile, notices, again, stays)
	return seen
}

// waitFor waits until something is so.
func waitFor(limit time.Duration, so func() bool) error {
	for end := time.Now().Add(limit); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("not so within %v", limit)
		}
	}
	return nil
}
