// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"time"

	"github.com/revsk/revsk/api"
)

func newHeader(schema string) api.Header {
	// If the name cannot be read, the document has none.
	node, _ := os.Hostname()
	return api.Header{Schema: schema, Time: time.Now().UTC().Truncate(time.Millisecond), Node: node, Version: readVersion().Version}
}
