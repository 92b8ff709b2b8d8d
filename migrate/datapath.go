// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

// datapath is the loaded one, locked, and its hash.
type datapath struct {
	*loader.Locked
	hash hash
	// takenOver tells that hooks were taken over from another agent, which uses the hash.
	takenOver bool
}

// openDatapath checks that there is all that a migration or a rollback needs, and changes nothing.
func openDatapath(ctx context.Context, opts loader.Options, log *slog.Logger) (_ *datapath, err error) {
	dp, err := loader.Open(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dp.Close()
		}
	}()
	d := &datapath{hash: hash{v4: dp.Map(lbmap.ReverseSK4Map), v6: dp.Map(lbmap.ReverseSK6Map)}}
	if d.hash.v4 == nil || d.hash.v6 == nil {
		return nil, fmt.Errorf("%s: %w", opts.MapsDir, ErrNoHash)
	}
	hooks, err := dp.Hooks()
	if err != nil {
		return nil, err
	}
	d.takenOver = isTakenOver(hooks)
	if err := checkHooks(hooks); err != nil {
		return nil, err
	}
	if err := checkProcesses(log); err != nil {
		return nil, err
	}
	if d.Locked, err = dp.Lock(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// isTakenOver tells whether hooks were taken over from another agent.
func isTakenOver(hooks []loader.HookStatus) bool {
	return slices.ContainsFunc(hooks, func(h loader.HookStatus) bool { return h.TakenOver != nil })
}

func checkHooks(hooks []loader.HookStatus) error {
	var missing []string
	for _, h := range hooks {
		if h.TakenOver != nil && h.TakenOver.BackID != 0 {
			return fmt.Errorf("%s: %w: program %d", h.Program, loader.ErrTakenBack, h.TakenOver.BackID)
		}
		if !h.Attached && !h.Optional {
			missing = append(missing, h.Program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s", ErrIncomplete, strings.Join(missing, ", "))
	}
	return nil
}

func (d *datapath) close() error {
	d.Unlock()
	return d.Close()
}

// programMaps are the maps of the datapath that the programs work on.
func (d *datapath) programMaps() map[string]*ebpf.Map {
	maps := make(map[string]*ebpf.Map)
	for _, name := range []string{
		iter.FillMapRevskConn, iter.FillMapRevskFormer, iter.FillMapRevskPeers, iter.FillMapRevskMetrics,
		iter.FillMapCiliumLb4ReverseSk, iter.FillMapCiliumLb6ReverseSk,
	} {
		maps[name] = d.Map(name)
	}
	for _, t := range revnat.TableMaps() {
		maps[t.Name] = d.Map(t.Name)
	}
	return maps
}

// sockets lists what sockets hold.
func (d *datapath) sockets(ctx context.Context, owners bool) ([]inspect.Socket, error) {
	return inspect.Sockets(ctx, inspect.MapsOf(d.Map), inspect.Options{SkipOwners: !owners})
}

// tuples returns the entries that the hash would have of what sockets hold. Of a peer that a socket has
// sent to and is connected to as well, the hash has one: the send was later.
func tuples(sockets []inspect.Socket) map[hashKey]hashValue {
	all := make(map[hashKey]hashValue, len(sockets))
	for i := range sockets {
		s := &sockets[i]
		for _, t := range []*revnat.Tuple{s.Former, s.Conn} {
			if t != nil {
				key, value := ofTuple(s.Cookie, t)
				all[key] = value
			}
		}
		for j := range s.Peers {
			key, value := ofTuple(s.Cookie, &s.Peers[j])
			all[key] = value
		}
	}
	return all
}

// openServices reads the services of a node. Returns an error wrapping [lbmap.ErrNoMap].
func openServices(ctx context.Context, dir string) (services, []lbmap.Service, error) {
	tables, err := lbmap.OpenTables(dir)
	if err != nil {
		return nil, nil, err
	}
	s, all, err := readServices(ctx, tables)
	return s, all, errors.Join(err, tables.Close())
}
