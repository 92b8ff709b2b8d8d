// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestList(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Equal(t, "{\n  \"schema\": \"revsk/sockets/v1\",\n  \"sockets\": []\n}\n", p.run("list", "-o", "json").ok().stdout)

	connectUDP(t, p)
	unconnected := newSocket(t)
	unconnected.sendToServices(t, p, 5) // more than a socket has slots
	backend := listenTCP(t)
	p.run("service", "add", "192.0.2.1:80/tcp", "--backend", backend).ok()
	conn, err := net.Dial("tcp", "192.0.2.1:80")
	require.NoError(t, err)
	defer conn.Close()

	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	comm = bytes.TrimSpace(comm)
	table := p.run("list").ok().stdout
	require.Contains(t, table, fmt.Sprintf("%d/%s\n", os.Getpid(), comm))
	golden(t, "list.txt", replace(table,
		regexp.QuoteMeta(backend), "127.0.0.1:BACKEND",
		`(127\.0\.0\.1|0\.0\.0\.0):[0-9]{5}\b`, "$1:PORT",
		`\d+s +\d+ +\d+ +\d+/\S+`, "AGE NETNS COOKIE PID/COMMAND",
		` {2,}`, "  ",
	))
	golden(t, "list.json", replace(p.run("list", "-o", "json").ok().stdout,
		regexp.QuoteMeta(backend), "127.0.0.1:BACKEND",
		`"local": "[^"]*"`, `"local": "LOCAL"`,
		`"cookie": "\d+"`, `"cookie": "1"`,
		`"(cookie|inode|pid)": \d+`, `"$1": 1`,
		`"age_seconds": \d+`, `"age_seconds": 0`,
		`"command": "[^"]*"`, `"command": "COMMAND"`,
	))
}

func TestListInModeLegacySaysWhatItDoesNotShow(t *testing.T) {
	p := newPlace(t)
	p.load("--mode", "legacy").ok()
	r := p.run("list")
	require.Equal(t, 0, r.code)
	require.Contains(t, r.stderr, "mode is legacy")
	p.run("list", "--quiet").ok()
}

func TestProcessNamesCannotForgeOutput(t *testing.T) {
	require.Equal(t, "a?[2J b", printable("a\x1b[2J b"))
}
