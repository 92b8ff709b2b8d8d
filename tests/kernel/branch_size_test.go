// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

const instructionSize = 8

// sizes are the numbers of instructions of the programs after the verifier.
func sizes(t *testing.T, programs map[string]hookup) map[string]int {
	t.Helper()
	n := make(map[string]int)
	for name, h := range programs {
		info, err := h.program.Info()
		require.NoError(t, err)
		size, err := info.TranslatedSize()
		require.NoError(t, err)
		n[name] = size / instructionSize
	}
	return n
}

// What is off costs nothing: the verifier removes it. Not so the families, which share their code: with
// one of them off there is a comparison of the address.
func TestBranchSizes(t *testing.T) {
	everything := all(t)
	everything.HostNetnsOnly = true
	withFeatures(t, everything)
	on := sizes(t, programsFor(t, everything))
	sum := func(n map[string]int) (total int) {
		// Of the programs that every set of features has.
		for name := range on {
			if !strings.Contains(name, "bind") {
				total += n[name]
			}
		}
		return total
	}
	line := func(what string, n map[string]int) {
		t.Logf("%-32s connect4 %5d, connect6 %5d, sendmsg4 %5d, getpeername4 %5d; %2d programs; all but bind %6d", what,
			n["revsk_connect4"], n["revsk_connect6"], n["revsk_sendmsg4"], n["revsk_getpeername4"], len(n), sum(n))
	}
	line("everything on", on)
	for _, c := range []struct {
		name string
		off  func(f *loader.Features)
	}{
		{"IPv4", func(f *loader.Features) { f.IPv4 = false }},
		{"IPv6", func(f *loader.Features) { f.IPv6 = false }},
		{"HostNetnsOnly", func(f *loader.Features) { f.HostNetnsOnly = false }},
		{"NodePort", func(f *loader.Features) { f.NodePort = false }},
		{"ProtocolDifferentiation", func(f *loader.Features) { f.ProtocolDifferentiation = false }},
		{"AnyProtocol", func(f *loader.Features) { f.AnyProtocol = false }},
		{"ExternalIPMitigation", func(f *loader.Features) { f.ExternalIPMitigation = false }},
		{"SessionAffinity", func(f *loader.Features) { f.SessionAffinity = false }},
		{"LocalRedirect", func(f *loader.Features) { f.LocalRedirect = false }},
		{"L7", func(f *loader.Features) { f.L7 = false }},
		{"HealthCheck", func(f *loader.Features) { f.HealthCheck = false }},
	} {
		f := everything
		c.off(&f)
		off := sizes(t, programsFor(t, f))
		line(c.name+" off", off)
		for _, name := range []string{"revsk_connect4", "revsk_connect6"} {
			if strings.HasPrefix(c.name, "IPv") {
				assert.LessOrEqual(t, off[name], on[name]+1, "instructions of %s without %s", name, c.name)
			} else {
				assert.Less(t, off[name], on[name], "instructions of %s without %s", name, c.name)
			}
		}
		if missing := len(on) - len(off); missing > 0 {
			gone := slices.DeleteFunc(slices.Sorted(maps.Keys(on)), func(name string) bool { return off[name] > 0 })
			t.Log("    not attached: " + strings.Join(gone, ", "))
		}
	}
	// One of two answers, not a branch: to reject takes less than to look at the traffic policies.
	f := everything
	f.RejectNoBackend = false
	line("RejectNoBackend off", sizes(t, programsFor(t, f)))
	least := none(t)
	line(fmt.Sprintf("nothing but %d families", 2), sizes(t, programsFor(t, least)))
}
