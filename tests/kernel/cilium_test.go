// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/standin"
	"github.com/revsk/revsk/loader"
)

// With -cilium, Cilium's own programs are tested in the place of mode legacy, by the same tests: that is how
// we know that the reference does what they say it does.

// runCilium puts Cilium's programs into the place of ours, which were loaded with the options.
func runCilium(opts loader.Options) error {
	full, err := opts.WithDefaults()
	if err != nil {
		return err
	}
	agent, err := newAgent(full.MapsDir, *full.Features)
	if err != nil {
		return err
	}
	return errors.Join(agent.Replace(filepath.Join(full.PinsDir, "links")), agent.Close())
}

// newAgent makes an agent that keeps its state in the hash.
func newAgent(mapsDir string, f loader.Features) (*standin.Agent, error) {
	if *ciliumSource == "" {
		return standin.Hash(mapsDir)
	}
	return standin.Cilium(context.Background(), *ciliumSource, mapsDir, f)
}

// Why a rule does not hold for Cilium's programs, of version 1.20.
const (
	noAnyProtocol  = "it looks services up by their protocol only (1.19 and newer)"
	alwaysAffinity = "affinity cannot be turned off (1.19 and newer)"
	touches        = "a new entry is looked up at once (1.20), so that the LRU takes it for one in use and evicts others first"
)

// counted checks that a counter has grown by one. Cilium counts in maps of its own.
func (s *scene) counted(before, after uint64) {
	s.Helper()
	if *ciliumSource == "" {
		require.Equal(s, before+1, after, "what was counted")
	}
}

// leavesBehind tells of Cilium's programs: without IPv6 they do not clean up after v4-mapped sockets.
func (s *scene) leavesBehind(ipv6 bool) bool { return *ciliumSource != "" && s.mapped && !ipv6 }
