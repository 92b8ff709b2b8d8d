// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

func newListCommand(env *env) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the sockets that talk to a service",
		Long: `Lists every socket that holds a tuple, in all network namespaces: what it is
connected to and, for datagram sockets, whom it has sent to. A socket has a line
for each.

  PEER      the backend, as the kernel sees it
  SERVICE   the address that the application used
  HOW       connected; former (a datagram socket was connected before); or sent
  AGE       since it connected, connected elsewhere, or last sent; - if unknown
  NETNS     name as of "ip netns", or inode number
  PROCESS   every process that has the socket open, as PID/COMMAND

Programs go on meanwhile: sockets that come or go may be listed or not. What is
kept in the legacy maps (modes dual and legacy) is not listed.`,
		Example: `  revsk list
  revsk list -o json | jq '.sockets[].connected.service'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env) },
	}
}

func runList(ctx context.Context, env *env) error {
	dp, _, err := env.open()
	if err != nil {
		return err
	}
	defer dp.Close()
	if err := unlimitMemory(); err != nil {
		return err
	}
	mode, err := dp.Mode()
	if err != nil {
		return err
	}
	sockets, err := inspect.Sockets(ctx, inspectMaps(dp), inspect.Options{})
	if err != nil {
		return err
	}
	if mode == loader.ModeLegacy && !env.quiet {
		fmt.Fprintln(env.Stderr, "mode is legacy: sockets that connect now are in the legacy maps, and not listed")
	}
	now, err := kclock.Monotonic()
	if err != nil {
		return err
	}
	if env.json() {
		return env.printJSON(newSocketsDocument(sockets, now))
	}
	return printSockets(env, sockets, now)
}

func inspectMaps(dp *loader.Datapath) inspect.Maps {
	return inspect.MapsOf(dp.Map)
}

// age is the time since that of the tuple; false if it is unknown.
func age(t revnat.Tuple, now time.Duration) (time.Duration, bool) {
	return max(0, (now - t.Time).Truncate(time.Second)), t.Time != 0
}

func ageText(t revnat.Tuple, now time.Duration) string {
	if age, known := age(t, now); known {
		return age.String()
	}
	return "-"
}

func printSockets(env *env, sockets []inspect.Socket, now time.Duration) error {
	var t table
	t.row("PROTO", "STATE", "LOCAL", "PEER", "SERVICE", "REV-NAT", "HOW", "AGE", "NETNS", "COOKIE", "PROCESS")
	for _, s := range sockets {
		row := func(how string, tuple revnat.Tuple) {
			t.row(s.Protocol, s.State, s.Local, tuple.Peer, tuple.Service, tuple.RevNATIndex, how,
				ageText(tuple, now), netnsText(s.NetNS), cookieText(s.Cookie), ownersText(s.Owners))
		}
		if s.Conn != nil {
			row("connected", *s.Conn)
		}
		if s.Former != nil {
			row("former", *s.Former)
		}
		for _, p := range s.Peers {
			row("sent", p)
		}
	}
	return t.print(env.Stdout)
}

func netnsText(ns inspect.NetNS) string {
	if ns.Name != "" {
		return ns.Name
	}
	return strconv.FormatUint(ns.Inode, 10)
}

func cookieText(cookie uint64) string {
	if cookie == 0 {
		return ""
	}
	return strconv.FormatUint(cookie, 10)
}

func ownersText(owners []inspect.Process) string {
	var texts []string
	for _, p := range owners {
		texts = append(texts, fmt.Sprintf("%d/%s", p.ID, printable(p.Command)))
	}
	return strings.Join(texts, ",")
}

// printable is for text that a process chose for itself.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// socketsDocument is the JSON output of list.
type socketsDocument struct {
	Schema  string           `json:"schema"` // revsk/sockets/v1
	Sockets []socketDocument `json:"sockets"`
}

// socketDocument is a socket in JSON output.
type socketDocument struct {
	Protocol lbmap.Protocol `json:"protocol"`
	Family   string         `json:"family"` // ipv4 or ipv6
	State    string         `json:"state"`
	Local    string         `json:"local"` // ADDR:PORT
	// Peer is what the kernel has the socket connected to; missing if it is not connected.
	Peer      string            `json:"peer,omitempty"`
	NetNS     netnsDocument     `json:"netns"`
	Cookie    uint64            `json:"cookie,string"` // a number too large for many readers of JSON
	Inode     uint64            `json:"inode"`
	Connected *tupleDocument    `json:"connected"`
	Former    *tupleDocument    `json:"former,omitempty"` // of a datagram socket that has connected elsewhere
	Sent      []tupleDocument   `json:"sent"`
	Processes []processDocument `json:"processes"`
}

type netnsDocument struct {
	Inode  uint64 `json:"inode"`
	Cookie uint64 `json:"cookie"`
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

func newSocketsDocument(sockets []inspect.Socket, now time.Duration) socketsDocument {
	doc := socketsDocument{Schema: "revsk/sockets/v1", Sockets: []socketDocument{}}
	for _, s := range sockets {
		doc.Sockets = append(doc.Sockets, newSocketDocument(s, now))
	}
	return doc
}

func newSocketDocument(s inspect.Socket, now time.Duration) socketDocument {
	d := socketDocument{
		Protocol:  s.Protocol,
		Family:    s.Family.String(),
		State:     s.State.String(),
		Local:     s.Local.String(),
		NetNS:     netnsDocument(s.NetNS),
		Cookie:    s.Cookie,
		Inode:     s.Inode,
		Sent:      []tupleDocument{},
		Processes: []processDocument{},
	}
	if s.Peer.IsValid() {
		d.Peer = s.Peer.String()
	}
	if s.Conn != nil {
		connected := newTupleDocument(*s.Conn, now)
		d.Connected = &connected
	}
	if s.Former != nil {
		former := newTupleDocument(*s.Former, now)
		d.Former = &former
	}
	for _, p := range s.Peers {
		d.Sent = append(d.Sent, newTupleDocument(p, now))
	}
	for _, p := range s.Owners {
		d.Processes = append(d.Processes, processDocument{p.ID, p.Command})
	}
	return d
}

func newTupleDocument(t revnat.Tuple, now time.Duration) tupleDocument {
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
