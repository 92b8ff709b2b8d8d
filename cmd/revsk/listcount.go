// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
)

// The values of --count-by.
const (
	byService = "service"
	byBackend = "backend"
	byNetNS   = "netns"
	byProcess = "process"
)

var countBys = []string{byService, byBackend, byNetNS, byProcess}

// countSockets counts each socket once under each of its names.
func countSockets(sockets iter.Seq2[inspect.Socket, error], by string, wanted *inspect.Filter) ([]api.SocketCount, error) {
	counts := make(map[string]*api.SocketCount)
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
				c = &api.SocketCount{Name: name}
				counts[name] = c
			}
			c.Sockets++
			if is {
				c.Connected++
			}
		}
	}
	all := []api.SocketCount{}
	for _, c := range counts {
		all = append(all, *c)
	}
	slices.SortFunc(all, func(a, b api.SocketCount) int {
		return cmp.Or(-cmp.Compare(a.Sockets, b.Sockets), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}
