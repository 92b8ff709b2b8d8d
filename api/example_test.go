// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/revsk/revsk/api"
)

// What revsk list -o jsonl prints has a socket on each line.
func ExampleSocket() {
	stdout := `{"protocol":"udp","family":"ipv4","state":"established","local":"10.0.0.5:40112","peer":"10.0.1.7:53",` +
		`"netns":{"inode":4026531840,"cookie":"1"},"cookie":"20481","inode":91823,` +
		`"connected":{"peer":"10.0.1.7:53","service":"10.96.0.10:53","rev_nat":4,"backend_id":9,"age_seconds":12,"migrated":false},` +
		`"sent":[],"processes":[{"pid":812,"command":"resolver"}]}` + "\n"

	for d := json.NewDecoder(strings.NewReader(stdout)); ; {
		var s api.Socket
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			log.Fatal(err)
		}
		if s.Connected != nil {
			fmt.Println(s.Processes[0].Command, "is connected to", s.Connected.Service, "by", s.Peer, "cookie", s.Cookie)
		}
	}
	// Output: resolver is connected to 10.96.0.10:53 by 10.0.1.7:53 cookie 20481
}

// A command that fails prints an error in place of its document: the header says which of the two it is.
func ExampleHeader() {
	stdout := []byte(`{"schema":"revsk/error/v1","time":"2026-11-27T18:00:00Z","node":"node-1","version":"v1.2.0",` +
		`"error":"not loaded: /sys/fs/bpf/revsk","exit_code":1}`)

	var h api.Header
	if err := json.Unmarshal(stdout, &h); err != nil {
		log.Fatal(err)
	}
	switch h.Schema {
	case api.StatusSchema:
		var s api.Status
		fmt.Println(json.Unmarshal(stdout, &s), s.Mode)
	case api.ErrorSchema:
		var e api.Error
		fmt.Println(json.Unmarshal(stdout, &e), h.Node, e.Error, e.ExitCode)
	}
	// Output: <nil> node-1 not loaded: /sys/fs/bpf/revsk 1
}
