// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/mapdigest"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

var weekTime = flag.Duration("agent.week", 0, "how long the week of a node's life takes; 0: everything happens once")

// week is a node on which a lot happens.
type week struct {
	*node
	owner    *reference.Agent
	agent    *exec.Cmd
	random   *rand.Rand
	services []lbmap.Service // the first two are those of the crowd
	clients  []*client       // of the others, one each
	backends int             // made so far
	leaks    int
}

const (
	weekServices = 40
	crowdOnly    = 2 // of the services
	mostGrow     = 8 // MiB that the memory of the agent may differ by
	mostMore     = 2 // descriptors
)

// A week of a node's life, beside another agent: roll-outs, restarts of both agents and of the control plane, leaks and floods.
// No answer is wrong, nothing ends that lives on, what is gone ends, and the agent does not grow.
//
// make test-week lets it last for minutes.
func TestWeekOfANode(t *testing.T) {
	w := &week{node: newNode(t)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w.random = rand.New(rand.NewPCG(seed, 0))
	w.owner = w.node.owner()
	for i := range weekServices {
		p := lbmap.ProtocolUDP
		if i == 1 {
			p = lbmap.ProtocolTCP
		}
		w.services = append(w.services, service(i, p, w.newBackend()))
	}
	w.node.services(w.services...)
	c := w.newCrowd(w.services[0].Frontend, w.services[1].Frontend)
	for _, s := range w.services[crowdOnly:] {
		w.clients = append(w.clients, w.client(s.Frontend))
	}
	w.startAgent()
	events := []struct {
		name string
		do   func()
		n    int
	}{
		{"roll-outs", w.rollOut, 0},
		{"restarts of the owner", w.restartOwner, 0},
		{"restarts of the control plane", w.restartControlPlane, 0},
		{"leaks", w.leaksALot, 0},
		{"floods", w.flood, 0},
		{"restarts of the agent", w.restartAgent, 0},
	}
	restarts := &events[len(events)-1]
	begin := time.Now()
	var resident, files int // when the agent has seen some of everything
	if *weekTime == 0 {
		for i := range events {
			events[i].do()
			events[i].n++
		}
	}
	for time.Since(begin) < *weekTime {
		if time.Since(begin) > *weekTime/2 && files == 0 {
			for _, e := range events[:len(events)-1] {
				e.do()
			}
			resident, files = w.size()
		}
		e := &events[w.random.IntN(len(events))]
		if e == restarts && files > 0 {
			continue // one agent lives through the second half
		}
		e.do()
		e.n++
	}
	for _, e := range events {
		t.Logf("%d %s", e.n, e.name)
	}
	w.awaitRight()
	for i, c := range w.clients {
		require.NoError(t, c.asks(), "service %d", crowdOnly+i)
	}
	w.awaitClean()
	if files > 0 {
		nowResident, nowFiles := w.size()
		t.Logf("the agent: %d MiB and %d files after the first half, %d MiB and %d files at the end", resident, files, nowResident, nowFiles)
		require.LessOrEqual(t, nowResident, resident+mostGrow)
		require.LessOrEqual(t, nowFiles, files+mostMore)
	}
	w.stopAgent(syscall.SIGTERM)
	c.allRight()
	require.NoError(t, loader.HandBack(t.Context(), w.loader()))
}

func (w *week) newBackend() netip.AddrPort {
	w.backends++
	return w.backend(fmt.Sprintf("127.0.%d.%d", 1+w.backends>>8, w.backends&0xff))
}

func (w *week) startAgent() {
	w.agent = w.child(optionsTakeover)
	w.awaitRight()
}

func (w *week) stopAgent(by syscall.Signal) {
	require.NoError(w, w.agent.Process.Signal(by))
	_ = w.agent.Wait()
}

// awaitRight waits until our programs are on all hooks, and everything has moved onto the sockets.
func (w *week) awaitRight() {
	w.Helper()
	awaits(w, "right", soon, func() bool {
		dp, err := loader.Open(w.loader())
		if err != nil {
			return false
		}
		defer dp.Close()
		back, err := dp.TakenBack()
		mode, modeErr := dp.Mode()
		return err == nil && modeErr == nil && back == 0 && mode == loader.ModeMirror
	})
}

// rollOut replaces the backend of a service. The socket on the former one ends, and no other.
func (w *week) rollOut() {
	i := crowdOnly + w.random.IntN(weekServices-crowdOnly)
	w.services[i] = service(i, lbmap.ProtocolUDP, w.newBackend())
	w.node.services(w.services...)
	c := w.clients[i-crowdOnly]
	awaits(w, "the socket ends", soon, c.isEnded)
	c.Close()
	w.clients[i-crowdOnly] = w.client(w.services[i].Frontend)
}

func (w *week) restartOwner() {
	require.NoError(w, w.owner.Update(w.links()))
	w.awaitRight()
}

// restartControlPlane takes most services away, for longer than a backend may be gone. Nothing ends.
func (w *week) restartControlPlane() {
	w.node.services(w.services[:crowdOnly]...)
	time.Sleep(700 * time.Millisecond)
	w.node.services(w.services...)
	time.Sleep(700 * time.Millisecond)
	for i, c := range w.clients {
		require.NoError(w, c.asks(), "service %d", crowdOnly+i)
	}
}

func (w *week) leaksALot() {
	w.leaks++
	w.leak(byte(w.leaks), 100)
}

// flood opens many sockets at once, and closes them.
func (w *week) flood() {
	var all []net.Conn
	for i := range 500 {
		f := w.services[i%weekServices].Frontend
		conn, err := net.Dial(f.Protocol.String(), f.AddrPort.String())
		require.NoError(w, err)
		all = append(all, conn)
	}
	for _, conn := range all {
		conn.Close()
	}
}

func (w *week) restartAgent() {
	w.stopAgent([]syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[w.random.IntN(2)])
	w.startAgent()
}

// size is the memory in MiB and the number of descriptors of the agent while nothing happens: the least of some looks.
func (w *week) size() (resident, files int) {
	w.Helper()
	w.awaitRight()
	resident, files = math.MaxInt, math.MaxInt
	for range 8 {
		time.Sleep(250 * time.Millisecond)
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.agent.Process.Pid))
		require.NoError(w, err)
		resident, files = min(resident, residentMiB(w.T, w.agent.Process.Pid)), min(files, len(open))
	}
	return resident, files
}

// awaitClean waits until what is leaked does not fill the hash.
func (w *week) awaitClean() {
	w.Helper()
	hash, err := ebpf.LoadPinnedMap(filepath.Join(w.loader().MapsDir, lbmap.ReverseSK4Map), nil)
	require.NoError(w, err)
	defer hash.Close()
	awaits(w, "the hash is not full", soon, func() bool {
		n, err := mapdigest.Count(w.Context(), hash)
		require.NoError(w, err)
		return n < uint64(hash.MaxEntries())*8/10
	})
}
