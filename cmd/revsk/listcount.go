// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/revsk/revsk/inspect"
)

// What --count-by counts by.
const (
	byService = "service"
	byBackend = "backend"
	byNetNS   = "netns"
	byProcess = "process"
)

var countBys = []string{byService, byBackend, byNetNS, byProcess}

// countsDocument is the JSON output of list --count-by.
type countsDocument struct {
	header                 // revsk/socket-counts/v1
	By     string          `json:"by"` // service, backend, netns or process
	Counts []countDocument `json:"counts"`
}

type countDocument struct {
	Name string `json:"name"` // as in the table of sockets; with the protocol, of services and backends
	// Sockets is how many have tuples of it.
	Sockets int `json:"sockets"`
	// Connected is how many of them are connected by one.
	Connected int `json:"connected"`
}

// countSockets counts each socket once for each name that it has.
func countSockets(sockets iter.Seq2[inspect.Socket, error], by string, wanted *inspect.Filter) ([]countDocument, error) {
	counts := make(map[string]*countDocument)
	for s, err := range sockets {
		if err != nil {
			return nil, err
		}
		connected := make(map[string]bool) // by name
		for role, t := range s.Tuples() {
			if !wanted.WantsTuple(&s, role, t) {
				continue
			}
			var names []string
			switch by {
			case byService:
				names = []string{fmt.Sprintf("%v/%v", t.Service, s.Protocol)}
			case byBackend:
				names = []string{fmt.Sprintf("%v/%v", t.Peer, s.Protocol)}
			case byNetNS:
				names = []string{netnsText(s.NetNS)}
			case byProcess:
				for _, p := range s.Owners {
					names = append(names, processText(p))
				}
			}
			for _, name := range names {
				connected[name] = connected[name] || role == inspect.RoleConnected
			}
		}
		for name, is := range connected {
			c := counts[name]
			if c == nil {
				c = &countDocument{Name: name}
				counts[name] = c
			}
			c.Sockets++
			if is {
				c.Connected++
			}
		}
	}
	all := []countDocument{}
	for _, c := range counts {
		all = append(all, *c)
	}
	slices.SortFunc(all, func(a, b countDocument) int {
		return cmp.Or(-cmp.Compare(a.Sockets, b.Sockets), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}
