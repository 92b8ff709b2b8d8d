// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestGCRemovesWhatASocketLeftThatClosedUnseen(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	living, closed := newSocket(t), newSocket(t)
	living.sendToServices(t, p, 5)
	closed.sendToServices(t, p, 6)
	p.run("unload").ok()
	require.NoError(t, unix.Close(closed.fd))
	p.load().ok()
	before := state(t, p)

	require.Equal(t, "would remove 3 entries of closed sockets\n", p.run("gc", "--dry-run").ok().stdout)
	require.Equal(t, before, state(t, p))
	require.Equal(t, "removed 3 entries of closed sockets\n", p.run("gc").ok().stdout)
	require.Equal(t, "{\n  \"schema\": \"revsk/gc/v1\",\n  \"dry_run\": false,\n  \"removed\": 0\n}\n", p.run("gc", "-o", "json").ok().stdout)
	require.Empty(t, p.run("gc", "--quiet").ok().stdout)

	var status statusDocument
	p.run("status", "-o", "json").ok().json(&status)
	for _, m := range status.Maps {
		if m.Name == "revsk_overflow" {
			require.Equal(t, 2, m.Entries) // of the socket that lives
		}
	}
}
