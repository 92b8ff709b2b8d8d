// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"iter"
	"time"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// writeLines writes a document a line.
func writeLines(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter) error {
	return writeDocuments(out, sockets, now, wanted, "", "")
}

// writeSockets writes one document, with one line for each socket, while the sockets are read.
func writeSockets(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter) error {
	head, err := json.MarshalIndent(newHeader("revsk/sockets/v1"), "", "  ")
	if err != nil {
		return err
	}
	// Without the brace at the end.
	if _, err := out.WriteString(string(head[:len(head)-2]) + ",\n  \"sockets\": ["); err != nil {
		return err
	}
	if err := writeDocuments(out, sockets, now, wanted, "\n    ", ","); err != nil {
		return err
	}
	_, err = out.WriteString("\n  ]\n}\n")
	return err
}

// writeDocuments writes each socket after before, and between two of them between; without any they end
// with their lines.
func writeDocuments(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter, before, between string) error {
	first := true
	for s, err := range sockets {
		if err != nil {
			return err
		}
		line, err := json.Marshal(newSocketDocument(&s, now, wanted))
		if err != nil {
			return err
		}
		if !first {
			out.WriteString(between)
		}
		first = false
		out.WriteString(before)
		out.Write(line)
		if before == "" {
			out.WriteByte('\n')
		}
		// It remembers the errors of all of these.
		if _, err := out.Write(nil); err != nil {
			return err
		}
	}
	return nil
}

// socketDocument is a socket in JSON output. Cookies are strings: many readers of JSON have no numbers so large.
type socketDocument struct {
	Protocol lbmap.Protocol `json:"protocol"`
	Family   string         `json:"family"` // ipv4 or ipv6
	// State is the kernel's; of a datagram socket established or unconnected.
	State string `json:"state"`
	Local string `json:"local"` // ADDR:PORT
	// Peer is what the kernel has the socket connected to; missing if it is not connected.
	Peer      string         `json:"peer,omitempty"`
	NetNS     netnsDocument  `json:"netns"`
	Cookie    uint64         `json:"cookie,string"`
	Inode     uint64         `json:"inode"`
	Connected *tupleDocument `json:"connected"`
	// Disconnected is what it was connected to last; the kernel has it connected elsewhere, or not at all.
	Disconnected *tupleDocument    `json:"disconnected,omitempty"`
	Former       *tupleDocument    `json:"former,omitempty"` // of a datagram socket that has connected elsewhere
	Sent         []tupleDocument   `json:"sent"`
	Processes    []processDocument `json:"processes"`
}

type netnsDocument struct {
	Inode  uint64 `json:"inode"`
	Cookie uint64 `json:"cookie,string"`
	Name   string `json:"name,omitempty"`
}

// tupleDocument says that what goes to Service goes to Peer.
type tupleDocument struct {
	Peer       string `json:"peer"`    // ADDR:PORT
	Service    string `json:"service"` // ADDR:PORT
	RevNat     uint16 `json:"rev_nat"`
	BackendID  uint32 `json:"backend_id"`
	AgeSeconds *int64 `json:"age_seconds"` // null: unknown
	Migrated   bool   `json:"migrated"`
}

type processDocument struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

func newSocketDocument(s *inspect.Socket, now time.Duration, wanted *inspect.Filter) socketDocument {
	d := socketDocument{
		Protocol:  s.Protocol,
		Family:    s.Family.String(),
		State:     s.StateName(),
		Local:     s.Local.String(),
		NetNS:     netnsDocument{s.NetNS.Inode, s.NetNS.Cookie, printable(s.NetNS.Name)},
		Cookie:    s.Cookie,
		Inode:     s.Inode,
		Sent:      []tupleDocument{},
		Processes: []processDocument{},
	}
	if s.Peer.IsValid() {
		d.Peer = s.Peer.String()
	}
	for role, tuple := range s.Tuples() {
		if !wanted.WantsTuple(s, role, tuple) {
			continue
		}
		t := newTupleDocument(tuple, now)
		switch role {
		case inspect.RoleConnected:
			d.Connected = &t
		case inspect.RoleDisconnected:
			d.Disconnected = &t
		case inspect.RoleFormer:
			d.Former = &t
		case inspect.RoleSent:
			d.Sent = append(d.Sent, t)
		}
	}
	for _, p := range s.Owners {
		d.Processes = append(d.Processes, processDocument{p.ID, printable(p.Command)})
	}
	return d
}

func newTupleDocument(t *revnat.Tuple, now time.Duration) tupleDocument {
	d := tupleDocument{
		Peer:      t.Peer.String(),
		Service:   t.Service.String(),
		RevNat:    t.RevNATIndex,
		BackendID: t.BackendID,
		Migrated:  t.Migrated,
	}
	if age, known := age(t, now); known {
		seconds := int64(age / time.Second)
		d.AgeSeconds = &seconds
	}
	return d
}
