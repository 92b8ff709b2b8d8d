// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/mapdigest"
	"github.com/revsk/revsk/lbmap"
)

// backendMaps reads the maps of backends, when they have changed.
type backendMaps struct {
	dir    string
	inodes [2]uint64 // of the pins; 0: there is none
	tables *lbmap.Tables
	digest [2]*mapdigest.Reader // nil: the map is not there
	cost   time.Duration        // of a digest

	// What was read last. A read that fails changes nothing of it.
	anew    bool // nothing was, of these maps
	at      time.Time
	entries [2]uint64 // 0 where the kernel does not count them
	last    [2]mapdigest.Digest
	states  []lbmap.BackendState
}

var backendMapNames = [2]string{lbmap.Backends4Map, lbmap.Backends6Map}

// backendSet are the backends that are there. One of any protocol is there for each.
type backendSet map[inspect.Backend]bool

func (s backendSet) has(b inspect.Backend) bool {
	return s[b] || s[inspect.Backend{AddrPort: b.AddrPort, Protocol: lbmap.ProtocolAny}]
}

// How long at most it may take until a digest is read again: a little less than two or four times the default of Options.Poll. The
// first is, with the grace period, little enough for sockets to end within 1.5 s. The second is for where the kernel counts the
// backends: only one that has left while another came can go unnoticed for so long.
const (
	mostRest        = 850 * time.Millisecond
	mostRestCounted = 1750 * time.Millisecond
)

// restFor is how many times longer than an effort is rested after it.
const restFor = 500

// read returns the backends, or nil if they are as before. Anew says that the maps are others than before. Closely says that what is
// there is to be known for sure: else it may be older, by as long as it rests between two digests.
func (m *backendMaps) read(ctx context.Context, states []lbmap.BackendState, closely bool) (set backendSet, anew bool, err error) {
	if err := m.open(); err != nil {
		return nil, false, err
	}
	begin := time.Now()
	entries, counted, err := m.count()
	if err != nil {
		return nil, false, err
	}
	most := mostRest
	if counted {
		most = mostRestCounted
	}
	same := !m.anew && slices.Equal(states, m.states)
	if same && !closely && entries == m.entries && begin.Sub(m.at) < min(restFor*m.cost, most) {
		return nil, false, nil
	}
	now, err := m.digests(ctx)
	if err != nil {
		return nil, false, err
	}
	m.cost = time.Since(begin)
	if !same || now != m.last {
		if set, err = readBackends(ctx, m.tables, states); err != nil {
			return nil, false, err
		}
		anew = m.anew
	}
	m.anew, m.at, m.entries, m.last, m.states = false, begin, entries, now, states
	return set, anew, nil
}

// count returns how many backends each map has, if the kernel counts them.
func (m *backendMaps) count() (n [2]uint64, counted bool, err error) {
	for i, r := range m.digest {
		if r == nil {
			continue
		}
		if n[i], counted, err = r.Entries(); !counted || err != nil {
			return n, false, err
		}
	}
	return n, counted, nil
}

func (m *backendMaps) digests(ctx context.Context) (all [2]mapdigest.Digest, err error) {
	for i, r := range m.digest {
		if r == nil {
			continue
		}
		if all[i], err = r.Read(ctx); err != nil {
			return all, err
		}
	}
	return all, nil
}

// lacks tells whether the family of a backend has no map, so that nothing says whether the backend is there.
func (m *backendMaps) lacks(b inspect.Backend) bool {
	return m.tables != nil && lacksFamily(m.tables, b)
}

func lacksFamily(t *lbmap.Tables, b inspect.Backend) bool {
	if b.AddrPort.Addr().Is4() {
		return t.Backends4 == nil
	}
	return t.Backends6 == nil
}

func readBackends(ctx context.Context, tables *lbmap.Tables, states []lbmap.BackendState) (backendSet, error) {
	all, err := tables.Backends(ctx)
	if err != nil {
		return nil, err
	}
	set := make(backendSet, len(all))
	for _, b := range all {
		if !slices.Contains(states, b.State) {
			set[inspect.Backend{AddrPort: b.AddrPort, Protocol: b.Protocol}] = true
		}
	}
	return set, nil
}

// open opens the maps that are pinned, if they are others than those that are open.
func (m *backendMaps) open() error {
	var now [2]uint64
	for i, name := range backendMapNames {
		var st unix.Stat_t
		if err := unix.Stat(m.dir+"/"+name, &st); err == nil {
			now[i] = st.Ino
		} else if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s/%s: %w", m.dir, name, err)
		}
	}
	if m.tables != nil && now == m.inodes {
		return nil
	}
	m.close()
	tables, err := lbmap.OpenTables(m.dir)
	if err != nil {
		return err
	}
	m.tables, m.inodes, m.anew = tables, now, true
	if tables.Backends4 != nil {
		m.digest[0], err = mapdigest.Open(tables.Backends4)
	}
	if tables.Backends6 != nil && err == nil {
		m.digest[1], err = mapdigest.Open(tables.Backends6)
	}
	if err != nil {
		m.close()
		return err
	}
	return nil
}

func (m *backendMaps) close() {
	for i, r := range m.digest {
		if r != nil {
			r.Close()
			m.digest[i] = nil
		}
	}
	m.tables.Close()
	m.tables = nil
}

// isMissing tells whether there are no maps of services yet.
func isMissing(err error) bool {
	return errors.Is(err, lbmap.ErrNoMap) || errors.Is(err, os.ErrNotExist)
}

// endable are the protocols of the sockets that can be connected to a backend of this one.
func endable(p lbmap.Protocol, which Protocols) []lbmap.Protocol {
	var all []lbmap.Protocol
	if p == lbmap.ProtocolUDP || p == lbmap.ProtocolAny {
		all = append(all, lbmap.ProtocolUDP)
	}
	if which == TerminateAll && (p == lbmap.ProtocolTCP || p == lbmap.ProtocolAny) {
		all = append(all, lbmap.ProtocolTCP)
	}
	return all
}

// losses is how many parts of the cluster have gone with some backends: all backends of an address are one, if none of them is
// left, as of a pod that has ended.
func losses(gone map[inspect.Backend]time.Time, left backendSet) int {
	stay := make(map[netip.Addr]bool)
	for b := range left {
		stay[b.AddrPort.Addr()] = true
	}
	ended := make(map[netip.Addr]bool)
	ports := make(map[netip.AddrPort]bool)
	for b := range gone {
		if stay[b.AddrPort.Addr()] {
			ports[b.AddrPort] = true
		} else {
			ended[b.AddrPort.Addr()] = true
		}
	}
	return len(ended) + len(ports)
}
