// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
)

// oneCleanLine checks an error that quotes what was typed: it is one line without control characters.
func oneCleanLine(t *testing.T, err error) {
	t.Helper()
	text, _ := explain("revsk service add", err)
	require.Equal(t, printable(text), text)
}

func FuzzParseService(f *testing.F) {
	for _, s := range []string{"10.96.0.1:53", "10.96.0.1:53/udp", "[fd00::1]:443/tcp", "10.96.0.1", "/", "a\nb", "\x1b[2J", "[fe80::1%\u202e]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseService(s)
		if err != nil {
			oneCleanLine(t, err)
			return
		}
		again, err := parseService(v.String())
		require.NoError(t, err)
		require.Equal(t, v, again)
	})
}

func FuzzParseBackend(f *testing.F) {
	for _, s := range []string{"10.0.1.1:8080", "[fd00:1::1]:53/terminating", "10.0.1.1:0", "[::ffff:10.0.0.1]:1", "x/y/z", "10.0.1.1:1/\n", "\x9b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := parseBackend(s, lbmap.ProtocolTCP)
		if err != nil {
			oneCleanLine(t, err)
			return
		}
		require.True(t, b.AddrPort.IsValid() && b.AddrPort.Port() != 0 && !b.AddrPort.Addr().Is4In6())
	})
}

// The name of a process is one cell of a table, and valid JSON that says nothing else.
func FuzzProcessName(f *testing.F) {
	for _, s := range []string{"node", "a\nb", "\x1b[2J", "1/a,2/b", "a  b", "\u202e", "\"},{\"", "\xff\xfe", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s := inspect.Socket{Owners: []inspect.Process{{ID: 1, Command: name}}}
		cell := ownersText(s.Owners, true)
		require.Equal(t, printable(cell), cell)
		require.NotContains(t, cell, " ")
		require.NotContains(t, cell, ",")
		require.True(t, strings.HasPrefix(cell, "1/"))
		text := appendSocket(nil, &s, 0, new(inspect.Filter))
		require.True(t, utf8.Valid(text))
		var document struct {
			Processes []struct {
				PID     int
				Command string
			}
		}
		require.NoError(t, json.Unmarshal(text, &document))
		require.Len(t, document.Processes, 1)
		require.Equal(t, printable(document.Processes[0].Command), document.Processes[0].Command)
	})
}
