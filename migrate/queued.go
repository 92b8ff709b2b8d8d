// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"encoding/binary"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/lbmap"
)

// seeQueued notes the datagram sockets that are in flight in a message, in no file table and perhaps in no
// other. Their entries are not leaked, but nobody can reach them until the message is received. A
// stream that is in no table is connected to nobody.
//
// Kernels without an iterator over Unix sockets, or without bpf_loop (5.17), cannot tell.
func (x *socketEntries) seeQueued(ctx context.Context) error {
	var programs iter.QueuedPrograms
	if err := iter.LoadQueuedObjects(&programs, &ebpf.CollectionOptions{Cache: bpfiter.Types}); err != nil {
		if refused(err) {
			return nil
		}
		return probe.Recheck(err)
	}
	defer programs.Close()
	it, err := bpfiter.Attach(programs.ListQueued, nil)
	if err != nil {
		return err
	}
	defer it.Close()
	return eachNamespace(ctx, never, func() error {
		const size = 16 // struct revsk_queued_socket
		for r, err := range bpfiter.Records(ctx, it, size) {
			if err != nil {
				return err
			}
			cookie := binary.NativeEndian.Uint64(r[0:8])
			family := binary.NativeEndian.Uint16(r[8:10])
			protocol := lbmap.Protocol(binary.NativeEndian.Uint16(r[10:12]))
			number, ok := x.number(cookie)
			if ok && !x.sightings()[number].seen && protocol != lbmap.ProtocolTCP {
				x.sightings()[number] = sighting{seen: true, family: family, protocol: protocol}
			}
		}
		return nil
	})
}
