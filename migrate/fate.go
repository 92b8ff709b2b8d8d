// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/lbmap"
)

// Fate is what has become of an entry of the hash, or in a plan, what would. Every entry has one.
type Fate uint8

const (
	// FateUnknown: its socket may be alive but could not be reached, or had no room for it. The
	// entry is kept.
	FateUnknown Fate = iota
	// FateConn: moved to revsk_conn or revsk_former, its socket being connected to the backend.
	FateConn
	// FatePeers: moved to revsk_peers or a table: its socket has sent to the backend, or
	// was connected to it before.
	FatePeers
	// FatePresent: its socket had a tuple for the backend already.
	FatePresent
	// FateStale: its socket lives, and is not connected to the backend, but its service is gone, has no
	// backends, or has another reverse-NAT index by now.
	FateStale
	// FateLeaked: there is no such socket, or it is a stream that is no longer connected to the backend.
	FateLeaked
	// FateEnded: the application has closed the socket since the entry was read, or turned to the
	// backend itself.
	FateEnded

	fates
)

var fateNames = [fates]string{
	FateUnknown: "unknown",
	FateConn:    "moved_conn",
	FatePeers:   "moved_peers",
	FatePresent: "present",
	FateStale:   "stale",
	FateLeaked:  "leaked",
	FateEnded:   "ended",
}

// String returns the name that the JSON reports use.
func (f Fate) String() string {
	if f < fates {
		return fateNames[f]
	}
	return fmt.Sprintf("fate(%d)", uint8(f))
}

// Counts are numbers of entries by what has become of them. Their sum is Entries.
type Counts struct {
	Entries    int `json:"entries"`
	MovedConn  int `json:"moved_conn"`
	MovedPeers int `json:"moved_peers"`
	Present    int `json:"present"`
	Stale      int `json:"stale"`
	Leaked     int `json:"leaked"`
	Ended      int `json:"ended"`
	Unknown    int `json:"unknown"`
}

func countFates(entries []*entry) Counts {
	c := Counts{Entries: len(entries)}
	fields := [fates]*int{
		FateUnknown: &c.Unknown,
		FateConn:    &c.MovedConn,
		FatePeers:   &c.MovedPeers,
		FatePresent: &c.Present,
		FateStale:   &c.Stale,
		FateLeaked:  &c.Leaked,
		FateEnded:   &c.Ended,
	}
	for _, e := range entries {
		*fields[e.fate]++
	}
	return c
}

// entry is an entry of the hash and what is known of its socket.
type entry struct {
	key   hashKey
	value hashValue
	stale bool

	fate Fate
	why  string // FateUnknown: for the report

	origin *entry // of a second look

	// Of the socket, if it was seen.
	family   uint16
	protocol lbmap.Protocol
}

// isMoved tells that its socket holds it.
func (e *entry) isMoved() bool {
	return e.fate == FateConn || e.fate == FatePeers || e.fate == FatePresent
}

// isOver tells that no socket needs it.
func (e *entry) isOver() bool {
	return e.fate == FateStale || e.fate == FateLeaked || e.fate == FateEnded
}

// judge translates what a program says of an entry whose socket it has visited. Returns false if none
// has.
func (e *entry) judge(f iter.FillRevskFate) bool {
	e.why = ""
	switch f {
	case iter.FillRevskFateREVSK_FATE_CONN:
		e.fate = FateConn
	case iter.FillRevskFateREVSK_FATE_PEERS:
		e.fate = FatePeers
	case iter.FillRevskFateREVSK_FATE_PRESENT:
		e.fate = FatePresent
	case iter.FillRevskFateREVSK_FATE_ENDED:
		e.fate = FateEnded
	case iter.FillRevskFateREVSK_FATE_DISCONNECTED:
		e.fate = FateLeaked
	case iter.FillRevskFateREVSK_FATE_STALE:
		e.fate = FateStale
	case iter.FillRevskFateREVSK_FATE_NO_MEMORY:
		e.fate, e.why = FateUnknown, "no memory for it (net.core.optmem_max)"
	case iter.FillRevskFateREVSK_FATE_CONFLICT:
		e.fate, e.why = FateUnknown, "storage has a connection to another backend"
	default:
		return false
	}
	return true
}

// judgeUnvisited decides about an entry whose socket no program has visited. seen is nil if the socket
// was not seen anywhere either.
func (e *entry) judgeUnvisited(seen *sighting, dryRun bool) {
	switch {
	case seen == nil:
		e.fate = FateLeaked
	case !dryRun:
		e.fate, e.why = FateUnknown, "its socket could not be reached"
	case e.key.backend() == seen.remote:
		e.fate = FateConn
	case e.stale:
		e.fate = FateStale
	case seen.protocol == lbmap.ProtocolTCP:
		e.fate = FateLeaked
	default:
		e.fate = FatePeers
	}
}

// sighting is what the kernel says of a socket that was seen, but not visited by a program.
type sighting struct {
	family   uint16
	protocol lbmap.Protocol
	remote   netip.AddrPort // the zero value: not connected, or not known
}
