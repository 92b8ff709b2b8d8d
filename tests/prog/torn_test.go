// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// Who reads a storage value under its lock sees the tuple before a change or the
// tuple after it, never half of each.
func TestNoTornTuple(t *testing.T) {
	const duration, changes = 2 * time.Second, 2000
	s := newScene(t, shared, ipv6, false)
	a := tuple{
		peer: ipv6.backend(1), service: netip.MustParseAddrPort("[aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa]:43690"),
		revNat: 0xaaaa, backendID: 0xaaaaaaaa, time: 0xaaaaaaaa,
	}
	// What the program makes of a.
	b := a
	b.service = netip.MustParseAddrPort("[5555:5555:5555:5555:5555:5555:5555:5555]:21845")
	b.revNat, b.backendID, b.time = 0x5555, 0x55555555, 0x55555555
	s.connect(a)
	s.send(a)

	stop := make(chan struct{})
	var readers sync.WaitGroup
	reads := make([]map[tuple]int, 2)
	for i, read := range []func() (harnessRevskTuple, error){
		func() (harnessRevskTuple, error) {
			var v harnessRevskConnValue
			err := s.h.m(harnessMapRevskConn).LookupWithFlags(uint32(s.fd), &v, ebpf.LookupLock)
			return v.Tuple, err
		},
		func() (harnessRevskTuple, error) {
			var v harnessRevskPeersValue
			err := s.h.m(harnessMapRevskPeers).LookupWithFlags(uint32(s.fd), &v, ebpf.LookupLock)
			return v.Slots[0], err
		},
	} {
		reads[i] = make(map[tuple]int)
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				w, err := read()
				if err != nil {
					t.Error(err)
					return
				}
				got := fromWire(w)
				got.flags = 0
				reads[i][got]++
			}
		})
	}
	in := s.input()
	in.Tuple = a.wire()
	must(t, s.h.coll.Variables["input"].Set(&in))
	for end := time.Now().Add(duration); time.Now().Before(end); {
		ret, err := s.h.coll.Programs["run_flip"].Run(&ebpf.RunOptions{Data: make([]byte, 14), Repeat: changes})
		if err != nil || ret != done {
			t.Errorf("the program returned %d, %v", ret, err)
			break
		}
	}
	close(stop)
	readers.Wait()

	for i, name := range []string{"conn", "slot"} {
		t.Logf("%s: %d reads of one tuple, %d of the other", name, reads[i][a], reads[i][b])
		if reads[i][a] == 0 || reads[i][b] == 0 {
			t.Errorf("%s: the readers have not seen both tuples", name)
		}
		delete(reads[i], a)
		delete(reads[i], b)
		if len(reads[i]) != 0 {
			t.Errorf("%s: torn tuples, and how often they were read: %v", name, reads[i])
		}
	}
}
