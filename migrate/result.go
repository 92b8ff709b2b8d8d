// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/lbmap"
)

// Result is what has become of an entry of the hash, or in a plan, what would. Every entry has one.
type Result uint8

const (
	// ResultUnknown: its socket may be alive but could not be reached. The entry is kept.
	ResultUnknown Result = iota
	// ResultConn: moved to revsk_conn or revsk_former, its socket being connected to the backend.
	ResultConn
	// ResultPeers: moved to revsk_peers or a table: its socket has sent to the backend, or
	// was connected to it before.
	ResultPeers
	// ResultPresent: its socket had a tuple for the backend already.
	ResultPresent
	// ResultStale: its socket lives, and is not connected to the backend, but its service is gone, has no
	// backends, or has another reverse-NAT index by now.
	ResultStale
	// ResultLeaked: there is no such socket, or it is a stream that is no longer connected to the backend.
	ResultLeaked
	// ResultEnded: the application has closed the socket since the entry was read, or turned to the
	// backend itself.
	ResultEnded
	// ResultNoRoom: its socket has no memory for it: net.core.optmem_max says how much each has. The entry
	// is kept.
	ResultNoRoom

	results
)

var resultNames = [results]string{
	ResultUnknown: "unknown",
	ResultConn:    "moved_conn",
	ResultPeers:   "moved_peers",
	ResultPresent: "present",
	ResultStale:   "stale",
	ResultLeaked:  "leaked",
	ResultEnded:   "ended",
	ResultNoRoom:  "no_room",
}

// String returns the name that the JSON reports use.
func (r Result) String() string {
	if r < results {
		return resultNames[r]
	}
	return fmt.Sprintf("result(%d)", uint8(r))
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
	NoRoom     int `json:"no_room"`
}

func countResults(entries []*entry) Counts {
	c := Counts{Entries: len(entries)}
	fields := [results]*int{
		ResultUnknown: &c.Unknown,
		ResultConn:    &c.MovedConn,
		ResultPeers:   &c.MovedPeers,
		ResultPresent: &c.Present,
		ResultStale:   &c.Stale,
		ResultLeaked:  &c.Leaked,
		ResultEnded:   &c.Ended,
		ResultNoRoom:  &c.NoRoom,
	}
	for _, e := range entries {
		*fields[e.result]++
	}
	return c
}

// isMoved tells that its socket holds it.
func (e *entry) isMoved() bool {
	return e.result == ResultConn || e.result == ResultPeers || e.result == ResultPresent
}

// isOver tells that no socket needs it.
func (e *entry) isOver() bool {
	return e.result == ResultStale || e.result == ResultLeaked || e.result == ResultEnded
}

// isKept tells that a socket may need it, which does not hold it.
func (e *entry) isKept() bool { return e.result == ResultUnknown || e.result == ResultNoRoom }

// visitResults are the results of entries by what a program says of them.
var visitResults = map[iter.FillRevskResult]struct {
	Result
	why string
}{
	iter.FillRevskResultREVSK_RESULT_CONN:         {ResultConn, ""},
	iter.FillRevskResultREVSK_RESULT_PEERS:        {ResultPeers, ""},
	iter.FillRevskResultREVSK_RESULT_PRESENT:      {ResultPresent, ""},
	iter.FillRevskResultREVSK_RESULT_ENDED:        {ResultEnded, ""},
	iter.FillRevskResultREVSK_RESULT_DISCONNECTED: {ResultLeaked, ""},
	iter.FillRevskResultREVSK_RESULT_STALE:        {ResultStale, ""},
	iter.FillRevskResultREVSK_RESULT_NO_ROOM:      {ResultNoRoom, "its socket has no room for it (net.core.optmem_max)"},
	iter.FillRevskResultREVSK_RESULT_CONFLICT:     {ResultUnknown, "storage has a connection to another backend"},
}

// judge translates what a program says of an entry whose socket it has visited. Returns false if none
// has.
func (e *entry) judge(f iter.FillRevskResult) bool {
	e.why = ""
	v, visited := visitResults[f]
	if visited {
		e.result, e.why = v.Result, v.why
	}
	return visited
}

// judgeSeen decides by where the socket was seen what a visit would do.
func (e *entry) judgeSeen(seen sighting) {
	e.family, e.protocol = seen.family, seen.protocol
	switch {
	case !seen.seen:
		e.result = ResultLeaked
	case e.held:
		e.result = ResultPresent
	case e.key.backend() == seen.remote:
		e.result = ResultConn
	case e.stale:
		e.result = ResultStale
	case seen.protocol == lbmap.ProtocolTCP:
		e.result = ResultLeaked
	default:
		e.result = ResultPeers
	}
}

// judgeUnvisited decides about an entry whose socket no program has visited.
func (e *entry) judgeUnvisited(seen bool) {
	if seen {
		e.result, e.why = ResultUnknown, "its socket could not be reached"
	} else {
		e.result = ResultLeaked
	}
}
