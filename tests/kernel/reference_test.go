// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/loader"
)

// With -reference, the programs of another agent's compiled object are tested in the place of mode legacy, by
// the same tests: that is how we know that the reference does what they say it does.

// referenceObject is the object, or nil.
var referenceObject *reference.Object

// usual are the features of the programs that are tested, unless a test asks for others.
func usual() loader.Features {
	if referenceObject == nil {
		return loader.DefaultFeatures()
	}
	return referenceObject.Features()
}

// runReference puts the reference's programs into the place of ours, which were loaded with the options.
func runReference(opts loader.Options) error {
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

// detachReference detaches them.
func detachReference(t *testing.T, opts loader.Options) {
	t.Helper()
	full, err := opts.WithDefaults()
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(full.PinsDir, "links")))
	awaitDetached(t, opts)
}

// newAgent makes an agent that keeps its state in the hash.
func newAgent(mapsDir string, f loader.Features) (*reference.Agent, error) {
	if referenceObject == nil {
		return reference.Hash(mapsDir)
	}
	return referenceObject.Agent(mapsDir, f)
}

// canHave reports whether the programs that are tested can have the features: a reference has those that it
// was compiled with.
func canHave(t *testing.T, f loader.Features) bool {
	t.Helper()
	if referenceObject == nil {
		return true
	}
	err := referenceObject.Supports(f)
	if err != nil {
		require.ErrorIs(t, err, reference.ErrCompiled)
		t.Logf("not with this reference: %v", err)
	}
	return err == nil
}

// Why a rule does not hold for the reference's programs, of Cilium 1.20.
const (
	noAnyProtocol  = "it looks services up by their protocol only (1.19 and newer)"
	alwaysAffinity = "affinity cannot be turned off (1.19 and newer)"
	touches        = "a new entry is looked up at once (1.20), so that the LRU takes it for one in use and evicts others first"
)

// counted checks that a counter has grown by one. The reference counts in maps of its own.
func (s *scene) counted(before, after uint64) {
	s.Helper()
	if referenceObject == nil {
		require.Equal(s, before+1, after, "what was counted")
	}
}

// leavesBehind tells of the reference's programs: without IPv6 they do not clean up after v4-mapped sockets.
func (s *scene) leavesBehind(ipv6 bool) bool {
	return referenceObject != nil && !referenceObject.IsOurs() && s.mapped && !ipv6
}
