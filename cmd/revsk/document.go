// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"time"
)

// header is what a JSON document begins with.
type header struct {
	Schema string `json:"schema"` // revsk/NAME/vN
	// Time is when the document was made.
	Time time.Time `json:"time"`
	// Node is the host name of the machine.
	Node string `json:"node"`
	// Version is that of revsk.
	Version string `json:"version"`
}

func newHeader(schema string) header {
	// Without a name there is no more to say than that.
	node, _ := os.Hostname()
	return header{schema, time.Now().UTC().Truncate(time.Millisecond), node, readVersion().Version}
}

// errorDocument is what a command that fails prints with -o json, unless it has printed a document of its
// own, which then says what was done.
type errorDocument struct {
	header        // revsk/error/v1
	Error  string `json:"error"`
	// ExitCode is that of the process.
	ExitCode int `json:"exit_code"`
}
