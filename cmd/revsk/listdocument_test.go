// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

func TestASocketIsWrittenAsItsTypeSays(t *testing.T) {
	sockets := append(someSockets(20, false), someSockets(20, true)...)
	for i := range sockets {
		s := &sockets[i]
		tuple := func(n int) *revnat.Tuple {
			c := *s.Conn
			c.RevNATIndex, c.Migrated = uint16(n), n%2 == 0
			return &c
		}
		switch i % 5 {
		case 0:
			s.Peer = s.Local // connected elsewhere
		case 1:
			s.Former = tuple(3)
			s.Former.Peer = s.Local
		case 2:
			s.Conn.Time = 0
			s.Peers = []revnat.Tuple{*tuple(1), *tuple(2)}
		case 3:
			s.Owners = append(s.Owners, inspect.Process{ID: 2, Command: "\"\\<\u2028\x00é"})
			s.NetNS.Name = "a \"b\""
		case 4:
			*s = inspect.Socket{Protocol: lbmap.ProtocolUDP, Family: inspect.IPv4, State: inspect.StateClose, Local: s.Local, Peers: s.Peers}
		}
		written := appendSocket(nil, s, 200*revnat.TimeUnit, &inspect.Filter{})
		var typed api.Socket
		d := json.NewDecoder(bytes.NewReader(written))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(&typed), "%s", written)
		again, err := json.Marshal(typed)
		require.NoError(t, err)
		require.JSONEq(t, string(again), string(written))
		require.Equal(t, len(again), len(written), "%s", written)
	}
}

func BenchmarkWriteSockets(b *testing.B) {
	sockets := someSockets(10000, false)
	for b.Loop() {
		require.NoError(b, writeSockets(bufio.NewWriter(io.Discard), each(sockets), 0, &inspect.Filter{}))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(sockets)), "ns/socket")
}
