// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
)

// listFlags say which tuples are listed.
type listFlags struct {
	service, backend, netns, protocol, state string
	pid                                      int
	gone                                     bool
}

func (l *listFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&l.service, "service", "", "only what goes to this `ADDR:PORT[/PROTO]`, as service list prints it")
	flags.StringVar(&l.backend, "backend", "", "only what goes to this `ADDR:PORT[/PROTO]`")
	flags.BoolVar(&l.gone, "gone", false, "only connections to backends that are not in the backend maps any more")
	flags.StringVar(&l.netns, "netns", "", "only sockets of this network namespace: `name` or inode number, as NETNS shows it")
	flags.IntVar(&l.pid, "pid", 0, "only sockets that the process with this `number` has open")
	flags.StringVar(&l.protocol, "protocol", "", "only sockets of this protocol: `tcp or udp`")
	flags.StringVar(&l.state, "state", "", "only sockets in this `state`, such as established, close-wait or unconnected")
}

// filter returns the filter for the reader of sockets. It also decides which tuples of a socket are listed.
func (l *listFlags) filter(ctx context.Context, env *env, reader *inspect.Reader) (f inspect.Filter, err error) {
	if l.protocol != "" {
		// ParseFrontend reads a protocol only with an address.
		p, err := lbmap.ParseFrontend("0.0.0.0:1/" + l.protocol)
		if err != nil {
			return f, usageError(fmt.Errorf("protocol %q: use tcp or udp", l.protocol))
		}
		f.Protocol = p.Protocol
	}
	inode, notInode := strconv.ParseUint(l.netns, 10, 32)
	if l.netns != "" && notInode == nil {
		f.NetNS = inode
	}
	if l.service != "" {
		frontend, err := parseService(l.service)
		if err != nil {
			return f, err
		}
		if f.Service, err = serviceFilter(ctx, env, frontend); err != nil {
			return f, err
		}
	}
	if l.backend != "" {
		b, err := parseService(l.backend)
		if err != nil {
			return f, err
		}
		f.Backends = inspect.NewBackendSet(inspect.Backend{AddrPort: b.AddrPort, Protocol: b.Protocol})
	}
	if l.gone {
		if l.backend != "" {
			return f, usageError(errors.New("--gone finds the backends: use it without --backend"))
		}
		gone, err := goneBackends(ctx, env, reader)
		if err != nil {
			return f, err
		}
		f.Backends, f.Connected = inspect.NewBackendSet(gone...), true
	}
	if l.state != "" || l.netns != "" && notInode != nil {
		f.Match = func(s *inspect.Socket) bool {
			return (l.state == "" || s.StateName() == l.state) && (l.netns == "" || notInode == nil || s.NetNS.Name == l.netns)
		}
	}
	return f, nil
}

// owns says whether the process of --pid has the socket open.
func (l *listFlags) owns(s *inspect.Socket) bool {
	return l.pid == 0 || slices.ContainsFunc(s.Owners, func(p inspect.Process) bool { return p.ID == l.pid })
}
