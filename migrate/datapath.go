// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	bpf "github.com/revsk/revsk/bpf/iter"
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
	reader    *inspect.Reader // nil: not opened yet
}

// openDatapath checks that there is all that a migration or a rollback needs, and changes nothing.
func openDatapath(ctx context.Context, opts loader.Options, log *slog.Logger) (_ *datapath, err error) {
	dp, err := loader.OpenLocked(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dp.Unlock()
			dp.Close()
		}
	}()
	d := &datapath{Locked: dp, hash: hash{v4: dp.Map(lbmap.ReverseSK4Map), v6: dp.Map(lbmap.ReverseSK6Map)}}
	if d.hash.v4 == nil || d.hash.v6 == nil {
		return nil, fmt.Errorf("%s: %w", opts.MapsDir, ErrNoHash)
	}
	for _, m := range []*ebpf.Map{d.hash.v4, d.hash.v6} {
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		if info.Frozen() {
			return nil, fmt.Errorf("%s: %w", info.Name, lbmap.ErrFrozen) // entries could be moved, and none deleted
		}
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
	if d.reader != nil {
		d.reader.Close()
	}
	d.Unlock()
	return d.Close()
}

// programMaps are the maps of the datapath that the programs work on.
func (d *datapath) programMaps() map[string]*ebpf.Map {
	maps := make(map[string]*ebpf.Map)
	for _, name := range []string{
		bpf.FillMapRevskConn, bpf.FillMapRevskFormer, bpf.FillMapRevskPeers, bpf.FillMapRevskMetrics,
		bpf.FillMapRevskConfig, bpf.FillMapCiliumLb4ReverseSk, bpf.FillMapCiliumLb6ReverseSk,
	} {
		maps[name] = d.Map(name)
	}
	for _, t := range revnat.TableMaps() {
		maps[t.Name] = d.Map(t.Name)
	}
	return maps
}

// sockets lists what sockets hold. The programs are loaded once.
func (d *datapath) sockets(ctx context.Context) iter.Seq2[inspect.Socket, error] {
	return func(yield func(inspect.Socket, error) bool) {
		if d.reader == nil {
			r, err := inspect.Open(d.InspectMaps(), inspect.Options{SkipOwners: true, Reuse: true})
			if err != nil {
				yield(inspect.Socket{}, err)
				return
			}
			d.reader = r
		}
		d.reader.Sockets(ctx, inspect.Filter{})(yield)
	}
}

// eachTuple calls f with the entries that the hash would have of what sockets hold, of a connection of an MPTCP socket, too.
func (d *datapath) eachTuple(ctx context.Context, f func(hashKey, hashValue) error) error {
	return d.visitTuples(ctx, true, f)
}

// eachForHash is eachTuple of what the hash should have.
func (d *datapath) eachForHash(ctx context.Context, f func(hashKey, hashValue) error) error {
	return d.visitTuples(ctx, false, f)
}

func (d *datapath) visitTuples(ctx context.Context, subflows bool, f func(hashKey, hashValue) error) error {
	for s, err := range d.sockets(ctx) {
		if err != nil {
			return err
		}
		for t := range tuples(&s) {
			if t.Subflow && !subflows {
				continue
			}
			key, value := ofTuple(s.Cookie, t)
			if err := f(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// tuples are those of a socket, one for each peer. Of a peer that it has sent to and is connected to as well, the hash
// has one entry: the send was later.
func tuples(s *inspect.Socket) iter.Seq[*revnat.Tuple] {
	return func(yield func(*revnat.Tuple) bool) {
		sent := func(t *revnat.Tuple) bool {
			_, found := slices.BinarySearchFunc(s.Peers, t.Peer, func(p revnat.Tuple, peer netip.AddrPort) int { return p.Peer.Compare(peer) })
			return found
		}
		for i := range s.Peers {
			if !yield(&s.Peers[i]) {
				return
			}
		}
		if s.Conn != nil && !sent(s.Conn) && !yield(s.Conn) {
			return
		}
		if s.Former != nil && !sent(s.Former) && (s.Conn == nil || s.Conn.Peer != s.Former.Peer) {
			yield(s.Former)
		}
	}
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
