// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// Header is what a document begins with.
type Header struct {
	Schema string `json:"schema"` // revsk/NAME/vN
	// Time is when the document was made.
	Time time.Time `json:"time"`
	// Node is the host name of the machine.
	Node string `json:"node"`
	// Version is that of revsk.
	Version string `json:"version"`
}

// ErrorSchema is the schema of [Error].
const ErrorSchema = "revsk/error/v1"

// Error is what a command that fails prints with -o json, unless it has printed a document of its
// own, which then says what was done.
type Error struct {
	Header
	Error string `json:"error"`
	// ExitCode is that of the process.
	ExitCode int `json:"exit_code"`
}
