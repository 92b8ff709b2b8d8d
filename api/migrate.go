// SPDX-License-Identifier: Apache-2.0

package api

import (
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// Schemas of the documents of revsk migrate and revsk rollback.
const (
	MigratePlanSchema    = "revsk/migrate-plan/v1"
	MigrateReportSchema  = "revsk/migrate-report/v1"
	RollbackReportSchema = "revsk/rollback-report/v1"
)

// MigratePlan is the JSON output of migrate --dry-run.
type MigratePlan struct {
	Header
	// Mode of revsk; missing if it is not loaded.
	Mode   *loader.Mode   `json:"mode,omitempty"`
	Engine migrate.Engine `json:"engine"`
	To     loader.Mode    `json:"to"` // the mode in which a migration would end
	// Counts are by what a migration would do with the entries.
	Counts        migrate.Counts `json:"counts"`
	LeakedPercent float64        `json:"leaked_percent"`
	Live          []LiveCount    `json:"live"`
	Maps          []MapFill      `json:"maps"`
	// WithoutEntry are sockets that are connected to a service's backend and have no entry for it. In
	// mode storage the hooks write none.
	WithoutEntry []BackendCount `json:"without_entry"`
	// WithoutEntrySockets is their sum.
	WithoutEntrySockets int            `json:"without_entry_sockets"`
	Leaks               []ServiceCount `json:"leaks"` // most first
	Seconds             float64        `json:"seconds"`
	Steps               []Step         `json:"steps"`
}

// LiveCount is a number of entries that sockets need.
type LiveCount struct {
	Protocol lbmap.Protocol `json:"protocol"`
	Family   string         `json:"family"` // of the socket: ipv4 or ipv6
	// Connected to the backend of the entry; else it has sent to it.
	Connected bool `json:"connected"`
	Entries   int  `json:"entries"`
}

// MapFill says how full a legacy map is.
type MapFill struct {
	Name       string  `json:"name"`
	Entries    int     `json:"entries"`
	MaxEntries int     `json:"max_entries"`
	Percent    float64 `json:"percent"`
}

// BackendCount is a number of sockets of a backend.
type BackendCount struct {
	Backend  string         `json:"backend"` // ADDR:PORT
	Protocol lbmap.Protocol `json:"protocol"`
	Sockets  int            `json:"sockets"`
}

// ServiceCount is a number of entries of a service.
type ServiceCount struct {
	Service string `json:"service"` // ADDR:PORT
	RevNat  uint16 `json:"rev_nat"`
	Entries int    `json:"entries"`
}

// MigrateReport is the JSON output of migrate.
type MigrateReport struct {
	Header
	// Complete: it came to its end, and every entry is accounted for.
	Complete bool           `json:"complete"`
	To       loader.Mode    `json:"to"`   // the mode in which it was to end
	Mode     loader.Mode    `json:"mode"` // afterwards
	Engine   migrate.Engine `json:"engine"`
	Counts   migrate.Counts `json:"counts"`
	Deleted  int            `json:"deleted"` // from the hash
	Written  int            `json:"written"` // to the hash, of what sockets hold, for mode mirror
	Missing  int            `json:"missing"` // from the hash, for want of room
	Rounds   int            `json:"rounds"`  // how often the hash was read
	Passes   int            `json:"passes"`  // how often sockets were visited
	// Unresolved are the first 100 of the entries that count as unknown.
	Unresolved []Unresolved `json:"unresolved"`
	Seconds    float64      `json:"seconds"`
	Steps      []Step       `json:"steps"`
}

// Unresolved is an entry, or what should be one, that could not be moved.
type Unresolved struct {
	Cookie  uint64 `json:"cookie,string"` // a number too large for many readers of JSON
	Backend string `json:"backend"`       // ADDR:PORT
	Service string `json:"service"`       // ADDR:PORT
	RevNat  uint16 `json:"rev_nat"`
	Reason  string `json:"reason"`
}

// Step is a part of the work.
type Step struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// RollbackReport is the JSON output of rollback.
type RollbackReport struct {
	Header
	DryRun bool `json:"dry_run"`
	// Complete: it came to its end; what is missing then was forced.
	Complete bool        `json:"complete"`
	Mode     loader.Mode `json:"mode"` // afterwards
	// Tuples are those that sockets held at the beginning, one for each socket and backend.
	Tuples  int `json:"tuples"`
	Written int `json:"written"` // to the hash
	Present int `json:"present"` // there already
	Removed int `json:"removed"` // written, but the socket was closed meanwhile
	// Outdated entries were deleted: of a hash that nobody had looked after.
	Outdated   int          `json:"outdated"`
	Missing    int          `json:"missing"` // from the hash, for want of room
	Passes     int          `json:"passes"`  // how often hash and sockets were compared
	Maps       []MapFill    `json:"maps"`    // with the tuples that are to go there
	Unresolved []Unresolved `json:"unresolved"`
	Seconds    float64      `json:"seconds"`
	Steps      []Step       `json:"steps"`
}
