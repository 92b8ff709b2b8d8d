// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

// leak adds entries to the hash that belong to no socket. No two calls have the same seed.
func (n *node) leak(seed byte, entries int) {
	n.Helper()
	hash, err := ebpf.LoadPinnedMap(filepath.Join(n.loader().MapsDir, lbmap.ReverseSK4Map), nil)
	require.NoError(n, err)
	defer hash.Close()
	for i := range entries {
		key := [lbmap.ReverseSKKey4Size]byte{0: byte(i), 1: byte(i >> 8), 2: seed, 7: 0x7f, 8: 127, 11: 1, 13: 53}
		require.NoError(n, hash.Put(key, [lbmap.ReverseSKValue4Size]byte{10, 96, 0, 1, 0, 53}))
	}
}

// An audit says what uses up the hash of another agent. It loads, attaches, pins, deletes and ends nothing, and is in nobody's
// way.
func TestAnAuditMeasuresAndChangesNothing(t *testing.T) {
	const leaked = 50
	n := newNode(t)
	_, c := n.owned()
	goes := n.backend("127.0.0.2")
	s := service(3, lbmap.ProtocolUDP, goes)
	_, err := n.writer.Upsert(t.Context(), s)
	require.NoError(t, err)
	onGone := n.client(s.Frontend)
	n.leak(0, leaked)
	f, err := newFingerprinter()
	require.NoError(t, err)
	before, err := f.take(n.loader())
	require.NoError(t, err)

	opts := n.options()
	opts.AuditOnly, opts.AuditEvery, opts.Termination.Protocols = true, time.Second, TerminateAll
	opts.Loader.Takeover = true
	idle, err := New(opts)
	require.NoError(t, err)
	require.Error(t, idle.Ready(), "before the first audit")
	r := n.start(opts)
	r.ready()
	_, err = n.writer.Delete(t.Context(), s.Frontend)
	require.NoError(t, err)
	awaits(t, "three audits", soon, func() bool { return len(eventsOf[Audited](r)) >= 3 })
	for _, e := range eventsOf[Audited](r) {
		require.GreaterOrEqual(t, e.Plan.Leaked, leaked)
		require.Greater(t, e.Plan.Entries, e.Plan.Leaked, "sockets that ask have entries, too")
	}
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(r))
	count, err := testutil.GatherAndCount(registry, "revsk_hash_entries", "revsk_map_entries", "revsk_audit_timestamp_seconds")
	require.NoError(t, err)
	require.Greater(t, count, 5)
	require.NoError(t, r.stop())

	now, err := f.take(n.loader())
	require.NoError(t, err)
	require.Equal(t, before, now, "programs and pins are as they were")
	require.NoDirExists(t, n.loader().PinsDir)
	require.NoDirExists(t, lockDir(n.loader().PinsDir))
	require.False(t, onGone.isEnded())
	last := eventsOf[Audited](r)[len(eventsOf[Audited](r))-1].Plan
	require.GreaterOrEqual(t, last.Leaked, leaked, "what is leaked stays")
	for _, e := range r.events {
		_, line, _ := e.Line()
		require.True(t, line == "started" || line == "audited", strings.TrimSpace(line))
	}
	c.allRight()
}
