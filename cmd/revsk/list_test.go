// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
)

func TestList(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Empty(t, sockets(p.run("list", "-o", "json").ok()))
	require.Empty(t, p.run("list", "-o", "jsonl").ok().stdout)

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
		`\d+s +\d+ +\d+/\S+`, "AGE NETNS PID/COMMAND",
		` {2,}`, "  ",
	))
	golden(t, "list-wide.txt", replace(p.run("list", "-o", "wide").ok().stdout,
		regexp.QuoteMeta(backend), "127.0.0.1:BACKEND",
		`(127\.0\.0\.1|0\.0\.0\.0):[0-9]{5}\b`, "$1:PORT",
		`\d+s +no +\d+ +\d+ +\d+ +\d+/\S+`, "AGE no NETNS COOKIE INODE PID/COMMAND",
		` {2,}`, "  ",
	))
	golden(t, "list.json", replace(p.run("list", "-o", "json").ok().stdout,
		regexp.QuoteMeta(backend), "127.0.0.1:BACKEND",
		`"local":"[^"]*"`, `"local":"LOCAL"`,
		`"cookie":"\d+"`, `"cookie":"1"`,
		`"(inode|pid)":\d+`, `"$1":1`,
		`"age_seconds":\d+`, `"age_seconds":0`,
		`"command":"[^"]*"`, `"command":"COMMAND"`,
		// They are in no order.
		`(?s)(\n    \{"protocol":"udp".*?),?(\n    \{"protocol":"tcp".*?\]\}),?`, "$2,$1",
		`(?s)(\n    \{"protocol":"udp"[^\n]*"connected":\{[^\n]*?),?(\n    \{"protocol":"udp"[^\n]*"connected":null[^\n]*?\]\}),?\n  \]`, "$2,$1\n  ]",
	))
	whole := sockets(p.run("list", "-o", "json").ok())
	require.Len(t, whole, 3)
	require.Len(t, strings.Split(strings.TrimSpace(p.run("list", "-o", "jsonl").ok().stdout), "\n"), 3)
}

// sockets are those of a document.
func sockets(r result) []api.Socket {
	r.t.Helper()
	var doc struct {
		api.Header
		Sockets []api.Socket `json:"sockets"`
	}
	require.NoError(r.t, json.Unmarshal([]byte(r.stdout), &doc))
	require.Equal(r.t, "revsk/sockets/v1", doc.Schema)
	require.False(r.t, doc.Time.IsZero())
	require.NotNil(r.t, doc.Sockets)
	return doc.Sockets
}

// Only what the kernel has a socket connected to is a connection.
func TestListSaysWhatIsConnectedNow(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	s := connectUDP(t, p)
	require.NotNil(t, sockets(p.run("list", "-o", "json").ok())[0].Connected)

	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	require.Zero(t, errno)
	doc := sockets(p.run("list", "-o", "json").ok())[0]
	require.Nil(t, doc.Connected)
	require.Equal(t, serviceAddr, doc.Disconnected.Service)
	require.Equal(t, "unconnected", doc.State)
	require.Regexp(t, `(?m)^udp +unconnected .* disconnected `, p.run("list").ok().stdout)
}

func TestListFilters(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	connectUDP(t, p) // 192.0.2.1:53, 127.0.0.1:5353
	newSocket(t).sendToServices(t, p, 5)
	for args, want := range map[string]struct{ sockets, tuples int }{
		"":                                      {2, 6},
		"--service 192.0.2.1:53":                {1, 1},
		"--service 192.0.2.12:53/udp":           {1, 1},
		"--service 192.0.2.12:53/tcp":           {0, 0},
		"--backend 127.0.0.1:5353/udp":          {1, 1},
		"--backend 127.0.0.14:5353":             {1, 1},
		"--state established":                   {1, 1},
		"--state unconnected":                   {1, 5},
		"--protocol udp":                        {2, 6},
		"--protocol tcp":                        {0, 0},
		"--netns 1":                             {0, 0},
		"--netns nosuch":                        {0, 0},
		"--pid 1":                               {0, 0},
		fmt.Sprintf("--pid %d", os.Getpid()):    {2, 6},
		"--gone":                                {0, 0},
		"--service 192.0.2.12:53 --state close": {0, 0},
	} {
		flags := strings.Fields(args)
		tuples := 0
		all := sockets(p.run(append([]string{"list", "-o", "json"}, flags...)...).ok())
		for _, s := range all {
			tuples += len(s.Sent)
			if s.Connected != nil {
				tuples++
			}
		}
		require.Equal(t, want.sockets, len(all), args)
		require.Equal(t, want.tuples, tuples, args)
		lines := strings.Count(p.run(append([]string{"list"}, flags...)...).ok().stdout, "\n")
		require.Equal(t, 1+want.tuples, lines, args)
	}
	require.Equal(t, exitUsage, p.run("list", "--protocol", "icmp").code)

	require.Equal(t, "SERVICE          SOCKETS  CONNECTED\n192.0.2.1:53/udp  1        1\n",
		strings.ReplaceAll(p.run("list", "--count-by", "service", "--state", "established").ok().stdout, "SERVICE           ", "SERVICE          "))
	var counts api.SocketCounts
	require.NoError(t, json.Unmarshal([]byte(p.run("list", "--count-by", "process", "-o", "json").ok().stdout), &counts))
	require.Len(t, counts.Counts, 1)
	require.Equal(t, 2, counts.Counts[0].Sockets)
	require.Equal(t, 1, counts.Counts[0].Connected)

	p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.99:5353").ok()
	gone := sockets(p.run("list", "--gone", "-o", "json").ok())
	require.Len(t, gone, 1)
	require.Equal(t, "127.0.0.1:5353", gone[0].Connected.Peer)
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
	require.Equal(t, "a?b", printable("a\u202eb"))
	s := inspect.Socket{Owners: []inspect.Process{{ID: 1, Command: "a  2/x,3/\u202ey"}}}
	require.Equal(t, "1/a??2/x?3/?y", ownersText(s.Owners, true))
	require.Contains(t, string(appendSocket(nil, &s, 0, &inspect.Filter{})), `"command":"a  2/x,3/?y"`)
}
