// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"iter"
	"net/netip"
	"strconv"
	"time"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/revnat"
)

// writeLines writes a document for each socket, on a line of its own.
func writeLines(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter) error {
	return writeDocuments(out, sockets, now, wanted, "", "", "\n")
}

// writeSockets writes one document with a line for each socket, while it reads the sockets.
func writeSockets(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter) error {
	head, err := json.MarshalIndent(newHeader(api.SocketsSchema), "", "  ")
	if err != nil {
		return err
	}
	// The header without its closing brace.
	if _, err := out.WriteString(string(head[:len(head)-2]) + ",\n  \"sockets\": ["); err != nil {
		return err
	}
	if err := writeDocuments(out, sockets, now, wanted, "\n    ", ",", ""); err != nil {
		return err
	}
	_, err = out.WriteString("\n  ]\n}\n")
	return err
}

// writeDocuments writes each socket, with the given text before and after each, and between two of them.
func writeDocuments(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter, before, between, after string) error {
	first := true
	var line []byte
	for s, err := range sockets {
		if err != nil {
			return err
		}
		line = line[:0]
		if !first {
			line = append(line, between...)
		}
		first = false
		line = append(line, before...)
		line = append(appendSocket(line, &s, now, wanted), after...)
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// appendSocket adds an [api.Socket], with the tuples that are wanted. encoding/json would take several times as long, which
// matters with hundreds of thousands of sockets.
func appendSocket(b []byte, s *inspect.Socket, now time.Duration, wanted *inspect.Filter) []byte {
	b = append(b, `{"protocol":"`...)
	b = append(b, s.Protocol.String()...)
	b = append(b, `","family":"`...)
	b = append(b, s.Family.String()...)
	b = append(b, `","state":"`...)
	b = append(b, s.StateName()...)
	b = append(b, `","local":`...)
	b = appendAddrPort(b, s.Local)
	if s.Peer.IsValid() {
		b = append(b, `,"peer":`...)
		b = appendAddrPort(b, s.Peer)
	}
	b = append(b, `,"netns":{"inode":`...)
	b = strconv.AppendUint(b, s.NetNS.Inode, 10)
	b = append(b, `,"cookie":"`...)
	b = strconv.AppendUint(b, s.NetNS.Cookie, 10)
	b = append(b, '"')
	if s.NetNS.Name != "" {
		b = append(b, `,"name":`...)
		b = appendText(b, s.NetNS.Name)
	}
	b = append(b, `},"cookie":"`...)
	b = strconv.AppendUint(b, s.Cookie, 10)
	b = append(b, `","inode":`...)
	b = strconv.AppendUint(b, s.Inode, 10)
	b = append(b, `,"connected":`...)
	var connected, disconnected, former *revnat.Tuple
	for role, t := range s.Tuples() {
		if !wanted.WantsTuple(s, role, t) {
			continue
		}
		switch role {
		case inspect.RoleConnected:
			connected = t
		case inspect.RoleDisconnected:
			disconnected = t
		case inspect.RoleFormer:
			former = t
		}
	}
	b = appendTuple(b, connected, now)
	if disconnected != nil {
		b = appendTuple(append(b, `,"disconnected":`...), disconnected, now)
	}
	if former != nil {
		b = appendTuple(append(b, `,"former":`...), former, now)
	}
	b = append(b, `,"sent":[`...)
	separator := ""
	for i := range s.Peers {
		if t := &s.Peers[i]; wanted.WantsTuple(s, inspect.RoleSent, t) {
			b = appendTuple(append(b, separator...), t, now)
			separator = ","
		}
	}
	b = append(b, `],"processes":[`...)
	for i, p := range s.Owners {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"pid":`...)
		b = strconv.AppendInt(b, int64(p.ID), 10)
		b = append(b, `,"command":`...)
		b = append(appendText(b, p.Command), '}')
	}
	return append(b, "]}"...)
}

// appendTuple adds an [api.Tuple], or null.
func appendTuple(b []byte, t *revnat.Tuple, now time.Duration) []byte {
	if t == nil {
		return append(b, "null"...)
	}
	b = append(b, `{"peer":`...)
	b = appendAddrPort(b, t.Peer)
	b = append(b, `,"service":`...)
	b = appendAddrPort(b, t.Service)
	b = append(b, `,"rev_nat":`...)
	b = strconv.AppendUint(b, uint64(t.RevNATIndex), 10)
	b = append(b, `,"backend_id":`...)
	b = strconv.AppendUint(b, uint64(t.BackendID), 10)
	b = append(b, `,"age_seconds":`...)
	if age, known := age(t, now); known {
		b = strconv.AppendInt(b, int64(age/time.Second), 10)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"migrated":`...)
	return append(strconv.AppendBool(b, t.Migrated), '}')
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	return append(a.AppendTo(append(b, '"')), '"')
}

// appendText adds a text that a process has chosen for itself, as a JSON string.
func appendText(b []byte, s string) []byte {
	quoted, err := json.Marshal(printable(s))
	if err != nil {
		panic(err) // every string can be encoded
	}
	return append(b, quoted...)
}
