// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/revnat"
)

var (
	// ErrNotSupported is returned on a kernel that cannot run the iterators: it is older than 5.9,
	// or was built without its BTF.
	ErrNotSupported = errors.New("kernel has no iterator over socket storage (needs Linux 5.9 with BTF)")

	// ErrNoMap is returned when a call needs a map that [Maps] does not have.
	ErrNoMap = errors.New("map is missing")

	// ErrIncomplete is returned when sockets were left out that are there: the largest buffer was
	// too small, or there were more than the kernel visits in one go.
	ErrIncomplete = errors.New("not every socket was seen")
)

// Maps are the maps that hold what sockets remember. The caller keeps and closes them.
type Maps struct {
	Conn   *ebpf.Map // revsk_conn
	Former *ebpf.Map // revsk_former
	Peers  *ebpf.Map // revsk_peers
	// Tables are the maps of [revnat.TableMaps], in that order.
	Tables []*ebpf.Map
	// Config is revsk_config, which says what mode the hooks are in. Only [Terminate] needs it.
	Config *ebpf.Map
	// Hash4 and Hash6 are cilium_lb{4,6}_reverse_sk. Only [Terminate] uses them, in the modes dual and mirror; nil:
	// it does not look there.
	Hash4, Hash6 *ebpf.Map
}

// MapsOf returns the maps of a datapath: byName is loader's Datapath.Map, for example.
func MapsOf(byName func(name string) *ebpf.Map) Maps {
	maps := Maps{
		Conn:   byName(sock.SockMapRevskConn),
		Former: byName(sock.SockMapRevskFormer),
		Peers:  byName(sock.SockMapRevskPeers),
		Config: byName(sock.SockMapRevskConfig),
		Hash4:  byName(sock.SockMapCiliumLb4ReverseSk),
		Hash6:  byName(sock.SockMapCiliumLb6ReverseSk),
	}
	for _, t := range revnat.TableMaps() {
		maps.Tables = append(maps.Tables, byName(t.Name))
	}
	return maps
}

// tuples are the maps that hold tuples, by name; nil for one that is missing.
func (m Maps) tuples() map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{sock.SockMapRevskConn: m.Conn, sock.SockMapRevskFormer: m.Former, sock.SockMapRevskPeers: m.Peers}
	for i, t := range revnat.TableMaps() {
		all[t.Name] = nil
		if i < len(m.Tables) {
			all[t.Name] = m.Tables[i]
		}
	}
	return all
}

// hold says which map is missing of those that hold tuples.
func (m Maps) hold() error { return need(m.tuples()) }

func need(maps map[string]*ebpf.Map) error {
	for name, m := range maps {
		if m == nil {
			return fmt.Errorf("%s: %w", name, ErrNoMap)
		}
	}
	return nil
}

// loadError adds ErrNotSupported to what loading or attaching an iterator returned.
func loadError(err error) error {
	err = probe.Recheck(err)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}
