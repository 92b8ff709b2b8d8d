// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/revsk/revsk/loader"
)

// ErrFailed is returned by [Report.Verdict] when a cell is not as it has to be.
var ErrFailed = errors.New("selftest failed")

// Report is what the selftest found. The zero one is of no case.
type Report struct {
	Kernel string // release, as of uname
	Cases  []Case // sorted by ID
}

// Case is one way for sockets to end, under both modes.
type Case struct {
	ID       int    `json:"id"`
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Family   string `json:"family"`
	Type     string `json:"type"`
	// NotSupported says why the case could not be run here. Legacy and Storage are zero then.
	NotSupported string      `json:"not_supported,omitempty"`
	Legacy       Cell        `json:"legacy"`
	Storage      StorageCell `json:"storage"`
}

// Cell is the outcome of a case under one mode.
type Cell struct {
	// Cleaned says that there was state before, and nothing is left of it after.
	Cleaned bool `json:"cleaned"`
	// Before is what the maps held when the sockets were about to end, of this case's services:
	// entries of the hash, or tuples on sockets. A case that changes its connection first (connects
	// elsewhere, disconnects) has done so by then.
	Before int `json:"before"`
	// After is what they held when the last descriptor was closed.
	After int `json:"after"`
	// Live is set in cases with more sockets than the hash has room for: what became of the
	// sockets while they were alive, at the time of Before.
	Live *Live `json:"live,omitempty"`
	// Error says why the case could not be carried through. The numbers do not count then.
	Error string `json:"error,omitempty"`
}

// Live tells how many live sockets still know the address of the service they connected to.
type Live struct {
	Sockets int `json:"sockets"`
	// KnowService is for how many of them getpeername returns the service's address.
	KnowService int `json:"know_service"`
}

// StorageCell is the outcome of a case under mode storage.
type StorageCell struct {
	Cell
	// Zeroed says that the release hook saw a destination that the kernel had zeroed, address or
	// port: the key by which the hash would have been searched.
	Zeroed bool `json:"zeroed"`
}

// column is one of the two cells of a case.
type column int

const (
	legacyColumn column = iota
	storageColumn
)

// Verdict returns nil if every case that could be run went as it has to: cleaned up under storage, and
// cleaned up or leaking under legacy as is known of each case. Otherwise the error wraps [ErrFailed], also
// if cases are missing, or [loader.ErrNotSupported] if not a single case could be run.
func (r *Report) Verdict() error {
	if problems := r.problems(); len(problems) > 0 {
		return fmt.Errorf("%w: %s", ErrFailed, strings.Join(problems, "; "))
	}
	if len(r.Cases) == len(r.notSupported()) {
		return fmt.Errorf("%w: no case could be run", loader.ErrNotSupported)
	}
	return nil
}

func (r *Report) notSupported() []Case {
	var cases []Case
	for _, c := range r.Cases {
		if c.NotSupported != "" {
			cases = append(cases, c)
		}
	}
	return cases
}

// problems says where the report differs from what is known of each case.
func (r *Report) problems() []string {
	var problems []string
	known := knownCases()
	for _, c := range r.Cases {
		t, ok := known[c.Name]
		if !ok {
			problems = append(problems, c.Name+" is not a case, or there twice")
			continue
		}
		delete(known, c.Name)
		if c.NotSupported != "" {
			continue
		}
		if wrong := t.wrong(legacyColumn, c.Legacy); wrong != "" {
			problems = append(problems, fmt.Sprintf("%s under legacy %s", c.Name, wrong))
		}
		if wrong := t.wrong(storageColumn, c.Storage.Cell); wrong != "" {
			problems = append(problems, fmt.Sprintf("%s under storage %s", c.Name, wrong))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		problems = append(problems, name+" is missing")
	}
	return problems
}

func knownCases() map[string]testCase {
	known := make(map[string]testCase)
	for _, t := range testCases() {
		known[t.name] = t
	}
	return known
}

// wrong says what is not as it has to be in a cell; "" if nothing.
func (t testCase) wrong(col column, c Cell) string {
	want := t.want(col)
	switch {
	case c.Error != "":
		return "could not be carried through: " + c.Error
	case c.Cleaned != (c.Before > 0 && c.After == 0):
		return fmt.Sprintf("says cleaned: %v with %d before and %d after", c.Cleaned, c.Before, c.After)
	case c.Before == 0:
		return "stored nothing"
	case want.before > 0 && c.Before != want.before:
		return fmt.Sprintf("stored %d and not %d", c.Before, want.before)
	case c.After != want.after:
		return fmt.Sprintf("left %d of %d, and not %d", c.After, c.Before, want.after)
	case t.live == 0:
		return ""
	case c.Live == nil || c.Live.Sockets != t.live:
		return fmt.Sprintf("does not have its %d sockets", t.live)
	case col == storageColumn && c.Live.KnowService != t.live:
		return fmt.Sprintf("made %d of %d sockets forget their service", t.live-c.Live.KnowService, t.live)
	case col == legacyColumn && c.Live.KnowService >= t.live:
		return "made no socket forget its service, in a hash that is too small for them"
	}
	return ""
}
