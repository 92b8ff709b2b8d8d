// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/revsk/revsk/loader"

// Schemas of the documents of revsk status, of revsk mode, and of the commands that change the datapath.
const (
	StatusSchema  = "revsk/status/v1"
	ModeSchema    = "revsk/mode/v1"
	ChangesSchema = "revsk/changes/v1"
)

// Status is the JSON output of status.
type Status struct {
	Header
	Kernel  string `json:"kernel"` // release, as of uname
	Cgroup  string `json:"cgroup"`
	PinsDir string `json:"pins_dir"`
	MapsDir string `json:"maps_dir"`
	// Complete: every hook is attached.
	Complete bool `json:"complete"`
	// LiveTuples is Counters.Live.
	LiveTuples int64 `json:"live_tuples"`
	// Hash is what the hash lacks of what sockets hold; only with --compare.
	Hash *loader.HashDifference `json:"hash,omitempty"`
	loader.Status
}

// Changes is the JSON output of the commands that change the datapath.
type Changes struct {
	Header
	DryRun  bool            `json:"dry_run"`
	Changes []loader.Change `json:"changes"`
	// Status is what runs afterwards; not after a dry run, nor after unload.
	Status *Status `json:"status,omitempty"`
}

// Mode is the output of revsk mode.
type Mode struct {
	Header
	Mode loader.Mode `json:"mode"`
}
