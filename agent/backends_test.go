// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/lbmap"
)

// terminator is that of an agent whose other loops do not run. Nothing is loaded.
func (n *node) terminator() (*terminator, Termination) {
	n.Helper()
	a, err := New(n.options())
	require.NoError(n, err)
	a.ctx = n.Context()
	t := newTerminator(a)
	n.Cleanup(t.maps.close)
	return t, a.options().Termination
}

var (
	goes4  = netip.MustParseAddrPort("10.0.0.1:53")
	stays4 = netip.MustParseAddrPort("10.0.0.2:53")
	goes6  = netip.MustParseAddrPort("[2001:db8::1]:53")
)

func udp(at netip.AddrPort) inspect.Backend {
	return inspect.Backend{AddrPort: at, Protocol: lbmap.ProtocolUDP}
}

func service6(backends ...netip.AddrPort) lbmap.Service {
	s := service(0, lbmap.ProtocolUDP, backends...)
	s.Frontend.AddrPort = netip.MustParseAddrPort("[2001:db8::100]:53")
	return s
}

// A read that fails takes nothing away from the next one: neither what has changed, nor that the maps are others.
func TestAReadThatFailsIsMadeGoodForByTheNext(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4), service6(goes6))
	term, _ := n.terminator()
	m := &term.maps
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := m.read(canceled, nil, true)
	require.Error(t, err)
	set, anew, err := m.read(t.Context(), nil, true)
	require.NoError(t, err)
	require.True(t, anew)
	require.Len(t, set, 3)

	n.services(service(1, lbmap.ProtocolUDP, stays4), service6(goes6))
	broken := m.digest[1]
	require.NoError(t, broken.Close())
	_, _, err = m.read(t.Context(), nil, true)
	require.Error(t, err)
	m.digest[1] = nil
	set, anew, err = m.read(t.Context(), nil, true)
	require.NoError(t, err)
	require.False(t, anew)
	require.Equal(t, backendSet{udp(stays4): true, udp(goes6): true}, set)
}

// Between two digests a backend that leaves is noticed by the kernel's count, one that another takes the place of by the next
// digest, or at once if it is asked closely.
func TestBackendsAreCountedBetweenDigests(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4), service6(goes6))
	term, _ := n.terminator()
	m := &term.maps
	read := func(closely bool) backendSet {
		t.Helper()
		m.cost = time.Hour
		set, _, err := m.read(t.Context(), nil, closely)
		require.NoError(t, err)
		return set
	}
	require.Len(t, read(false), 3)
	if _, counted, err := m.digest[0].Entries(); !counted {
		oldkernel.Skip(t, 6, 6, fmt.Sprint("no count of a map's entries: ", err))
	}
	require.Nil(t, read(false))
	n.services(service(1, lbmap.ProtocolUDP, stays4), service6(goes6))
	require.Equal(t, backendSet{udp(stays4): true, udp(goes6): true}, read(false))
	n.services(service(1, lbmap.ProtocolUDP, goes4), service6(goes6))
	begin := time.Now()
	require.Nil(t, read(false))
	require.Less(t, time.Since(begin), mostRestCounted)
	require.Equal(t, backendSet{udp(goes4): true, udp(goes6): true}, read(true))
	n.services(service(1, lbmap.ProtocolUDP, stays4), service6(goes6))
	awaits(t, "the next digest", mostRestCounted+time.Second, func() bool {
		return maps.Equal(read(false), backendSet{udp(stays4): true, udp(goes6): true})
	})
}

// When the owner of the maps was restarted they have to come to rest again, however long they were at rest before.
func TestMapsSettleAfterARestartOfTheirOwner(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4))
	term, opts := n.terminator()
	opts.Settle, opts.MaxShare = time.Minute, 1
	term.turn(t.Context(), opts)
	term.changed, term.settling = term.changed.Add(-time.Hour), term.settling.Add(-time.Hour)
	term.turn(t.Context(), opts)
	require.Zero(t, term.settling)

	k := newKeeper(term.a)
	k.seen, k.moving = 1, 1 // what it saw last was something else
	k.turn(t.Context())
	require.False(t, term.a.view.looked, "it waits until that has ended")
	n.services(service(1, lbmap.ProtocolUDP, stays4))
	term.turn(t.Context(), opts)
	require.Contains(t, term.gone, udp(goes4))
	require.Equal(t, heldSettling, term.held)
	term.changed, term.settling = term.changed.Add(-time.Hour), term.settling.Add(-time.Hour)
	term.turn(t.Context(), opts)
	require.Empty(t, term.held)
}

// Without its map nothing says which backends of a family are there: none of them counts as gone, until there is a map again.
func TestAFamilyWithoutItsMap(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4), service6(goes6))
	term, opts := n.terminator()
	term.turn(t.Context(), opts)
	require.Len(t, term.present, 3)

	pin := filepath.Join(n.loader().MapsDir, lbmap.Backends6Map)
	require.NoError(t, os.Rename(pin, pin+"_away"))
	term.turn(t.Context(), opts)
	require.Len(t, term.present, 2)
	term.a.update(func(v *view) { v.backends.missing = []inspect.Backend{udp(goes6)} })
	term.turn(t.Context(), opts)
	require.Empty(t, term.gone)
	require.Empty(t, term.recent)
	surveyor := newSurveyor(term.a)
	missing, err := surveyor.missing(t.Context(), term.a.options(), []inspect.Backend{udp(goes6), udp(goes4), udp(netip.MustParseAddrPort("10.9.9.9:53"))})
	require.NoError(t, err)
	require.Equal(t, []inspect.Backend{udp(netip.MustParseAddrPort("10.9.9.9:53"))}, missing)

	require.NoError(t, os.Rename(pin+"_away", pin))
	term.turn(t.Context(), opts)
	require.Len(t, term.present, 3)
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4), service6())
	term.turn(t.Context(), opts)
	require.Contains(t, term.gone, udp(goes6))
}

// Where nothing is loaded nothing can be ended. What has left is not remembered for ever, nor held against what leaves later.
func TestWhatCannotBeEndedIsForgotten(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, goes4, stays4))
	term, opts := n.terminator()
	opts.Settle, opts.Grace, opts.MaxShare = time.Nanosecond, time.Nanosecond, 1
	term.turn(t.Context(), opts)
	n.services(service(1, lbmap.ProtocolUDP, stays4))
	term.turn(t.Context(), opts)
	term.turn(t.Context(), opts)
	require.Contains(t, term.gone, udp(goes4), "for a while it is tried again")
	long := time.Now().Add(-2 * leftToSurveys)
	term.gone[udp(goes4)], term.recent[udp(goes4)] = long, long
	term.next = time.Time{}
	term.turn(t.Context(), opts)
	require.Empty(t, term.gone)
	term.turn(t.Context(), opts)
	require.Empty(t, term.recent)
}

// Streams to backends that have long been gone, which nobody ends, are not held against the sockets that are to be ended.
func TestOnlyWhatCanBeEndedIsAdopted(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	n.services(service(1, lbmap.ProtocolUDP, stays4))
	term, opts := n.terminator()
	term.turn(t.Context(), opts)
	tcp := inspect.Backend{AddrPort: goes4, Protocol: lbmap.ProtocolTCP}
	missing := []inspect.Backend{tcp, udp(goes4)}
	term.a.update(func(v *view) { v.backends.missing = missing })
	term.turn(t.Context(), opts)
	require.NotContains(t, term.gone, tcp)
	require.NotContains(t, term.recent, tcp)
	require.Contains(t, term.gone, udp(goes4))
	term.a.update(func(v *view) { v.backends.missing = missing })
	opts.Protocols = TerminateAll
	term.turn(t.Context(), opts)
	require.Contains(t, term.gone, tcp)
}

// A service whose sockets go to an L7 proxy comes and goes without a change of the backend maps. What one survey says of it may be
// over when the next one begins.
func TestProxyOfAServiceThatIsAwayForAMoment(t *testing.T) {
	n := newNode(t)
	n.newOwner()
	proxy := netip.MustParseAddrPort("127.0.0.1:9999")
	tcp := func(at netip.AddrPort) inspect.Backend {
		return inspect.Backend{AddrPort: at, Protocol: lbmap.ProtocolTCP}
	}
	l7 := service(2, lbmap.ProtocolTCP, stays4)
	l7.Flags, l7.L7ProxyPort = lbmap.FlagL7LoadBalancer, proxy.Port()
	term, opts := n.terminator()
	s := newSurveyor(term.a)
	missing := func() []inspect.Backend {
		gone, err := s.missing(t.Context(), Options{Loader: n.loader(), Termination: opts}, []inspect.Backend{tcp(proxy), tcp(goes4)})
		require.NoError(t, err)
		return gone
	}
	with, without := []lbmap.Service{service(1, lbmap.ProtocolUDP, stays4), l7}, []lbmap.Service{service(1, lbmap.ProtocolUDP, stays4)}
	for range 2 {
		n.services(without...)
		require.Equal(t, []inspect.Backend{tcp(goes4)}, missing())
		n.services(with...)
		require.Equal(t, []inspect.Backend{tcp(goes4)}, missing())
	}
	n.services(without...)
	missing()
	require.Equal(t, []inspect.Backend{tcp(goes4), tcp(proxy)}, missing())
}
