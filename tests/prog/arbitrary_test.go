// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"errors"
	"flag"
	"iter"
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/revnat"
)

var arbitraryRuns = flag.Int("arbitrary.runs", 10_000, "how many runs there are on storage with arbitrary contents")

// Where the tuples are in a value.
const (
	tupleSize   = int(unsafe.Sizeof(harnessRevskTuple{}))
	peersTuples = 8
	tableTuples = 56
)

// storages are the maps with values on sockets, and where in a value tuples begin.
func storages() map[string]int {
	all := map[string]int{harnessMapRevskConn: 0, harnessMapRevskFormer: 0, harnessMapRevskPeers: peersTuples}
	for _, m := range revnat.TableMaps() {
		all[m.Name] = tableTuples
	}
	return all
}

// tuplesIn are the offsets of the tuples in a value, of which the first is given.
func tuplesIn(value []byte, first int) iter.Seq[int] {
	end := len(value)
	switch first {
	case 0:
		end = min(end, tupleSize)
	case peersTuples:
		end = min(end, peersTuples+3*tupleSize)
	}
	return func(yield func(int) bool) {
		for at := first; at+tupleSize <= end && yield(at); at += tupleSize {
		}
	}
}

// arbitrary makes storage and arguments of any contents, more often than not with tuples of a few peers.
type arbitrary struct {
	*rand.Rand
	family family
}

func (r arbitrary) fill(b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func (r arbitrary) peer() netip.AddrPort    { return r.family.backend(r.IntN(6)) }
func (r arbitrary) service() netip.AddrPort { return r.family.service(r.IntN(6)) }

func (r arbitrary) tuple() (w harnessRevskTuple) {
	b := (*[tupleSize]byte)(unsafe.Pointer(&w))[:]
	r.fill(b)
	if r.IntN(8) > 0 {
		age := w.Age
		w = tuple{peer: r.peer(), service: r.service(), revNat: uint16(r.IntN(6)), flags: w.Flags,
			backendID: w.BackendId, time: firstTime + w.Time%(2*answerTime)}.wire()
		w.Age = age
	}
	switch r.IntN(16) {
	case 0:
		b[r.IntN(len(b))] ^= byte(r.Uint32())
	case 1:
		w.PeerPort = 0
	case 2:
		w.Time = r.Uint32()
	}
	return w
}

// value is one of a storage map.
func (r arbitrary) value(size, tuples int) []byte {
	v := make([]byte, size)
	if r.IntN(4) > 0 {
		r.fill(v)
	} else { // small numbers in the heads
		for i := range v[:min(size, 200)] {
			v[i] = byte(r.IntN(4) * r.IntN(6))
		}
	}
	if r.IntN(8) == 0 {
		return v
	}
	for at := range tuplesIn(v, tuples) {
		if r.IntN(3) > 0 {
			t := r.tuple()
			copy(v[at:], (*[tupleSize]byte)(unsafe.Pointer(&t))[:])
		} else if r.IntN(2) == 0 {
			clear(v[at : at+tupleSize])
		}
	}
	return v
}

func value(t *testing.T, m *ebpf.Map, x *socket) []byte {
	t.Helper()
	var v []byte
	if err := m.Lookup(uint32(x.fd), &v); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return v
}

// withoutAges clears what reads may write.
func withoutAges(all map[string][]byte) map[string][]byte {
	age := int(unsafe.Offsetof(harnessRevskTuple{}.Age))
	for name, b := range all {
		for at := range tuplesIn(b, storages()[name]) {
			b[at+age] = 0
		}
	}
	return all
}

// Whatever is in a socket's storage, and whatever a call is about: the functions end; a read answers only what a tuple
// on that socket says of that peer, and writes nothing but ages; a call goes on or fails with an errno; and no other socket's storage changes.
func TestArbitraryStorage(t *testing.T) {
	programs := []string{"connect", "connect_direct", "sendmsg", "sendmsg_direct", "source", "peername", "release", "find"}
	reads := map[string]bool{"source": true, "peername": true, "find": true}
	for _, v := range []struct {
		name   string
		family family
		tcp    bool
	}{{"UDP IPv4", ipv4, false}, {"UDP IPv6", ipv6, false}, {"UDP v4-mapped", v4mapped, false}, {"TCP IPv4", ipv4, true}} {
		t.Run(v.name, func(t *testing.T) {
			h := load(t, options{programs: programs})
			r := arbitrary{rand.New(rand.NewPCG(*randomSeed, 1)), v.family}
			s := &scene{T: t, h: h, family: v.family, now: firstTime}
			x, other := s.open(v.tcp), s.open(v.tcp)
			s.subject = x
			defer x.socket.close()
			defer other.socket.close()
			for n := range 4 { // of six
				s.serve(n)
			}
			write := func(of *socket) {
				for name, tuples := range storages() {
					m := h.m(name)
					switch r.IntN(4) {
					case 0:
						if err := m.Delete(uint32(of.fd)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
							t.Fatal(err)
						}
					case 1:
					default:
						// Not all tables of a socket fit into what it may have.
						_ = m.Put(uint32(of.fd), r.value(int(m.ValueSize()), tuples))
					}
				}
			}
			look := func(of *socket) map[string][]byte {
				all := make(map[string][]byte)
				for name := range storages() {
					all[name] = value(t, h.m(name), of)
				}
				return all
			}
			says := func(peer, service harnessHarnessEndpoint) bool {
				for name, tuples := range storages() {
					b := value(t, h.m(name), x.socket)
					for at := range tuplesIn(b, tuples) {
						w := (*harnessRevskTuple)(unsafe.Pointer(&b[at]))
						if w.Peer.Bytes == peer.Addr.Bytes && w.PeerPort == peer.Port &&
							w.Service.Bytes == service.Addr.Bytes && w.ServicePort == service.Port {
							return true
						}
					}
				}
				return false
			}
			answers, succeeded := 0, 0
			var before map[string][]byte
			var current mode
			for run := range *arbitraryRuns / 4 {
				if run%512 == 0 {
					write(other.socket)
					before = look(other.socket)
				}
				if run%16 == 0 {
					write(x.socket)
					current = []mode{storage, storage, storage, mirror, dual, legacy}[r.IntN(6)]
					h.setConfig(t, current, uint32(r.IntN(2*firstTime)))
				}
				in := x.input()
				in.Tuple, in.Address = r.tuple(), wireEndpoint(r.peer())
				switch r.IntN(8) {
				case 0:
					r.fill(in.Address.Addr.Bytes[:])
				case 1:
					in.Address.Port = uint16(r.Uint32())
				case 2:
					in.Protocol, in.Datagram = uint8(r.Uint32()), uint8(r.IntN(2))
				}
				program := programs[r.IntN(len(programs))]
				var unread map[string][]byte
				if reads[program] && program != "find" && current == storage && r.IntN(8) == 0 {
					unread = withoutAges(look(x.socket))
				}
				out := h.run(t, program, in)
				if unread != nil {
					for name, now := range withoutAges(look(x.socket)) {
						if was := unread[name]; !bytes.Equal(was, now) {
							t.Fatalf("run %d, %s: a read has changed %s from %x to %x", run, program, name, was, now)
						}
					}
				}
				switch {
				case reads[program] && out.Result == 1:
					answers++
					service := out.Address
					if program == "find" {
						service.Addr.Bytes, service.Port = out.Tuple.Service.Bytes, out.Tuple.ServicePort
					}
					if current == storage && !says(in.Address, service) {
						t.Fatalf("run %d, %s: %v is said to be of %v: no tuple says that", run, program,
							addrPort(in.Address.Addr.Bytes, in.Address.Port), addrPort(service.Addr.Bytes, service.Port))
					}
				case reads[program]:
					if out.Result != 0 {
						t.Fatalf("run %d, %s: returned %d", run, program, out.Result)
					}
				case out.Result > 0 || out.Result < -4095:
					t.Fatalf("run %d, %s: returned %d", run, program, out.Result)
				case out.Result == 0 && (program == "connect" || program == "sendmsg"):
					succeeded++
				}
				if run%512 == 511 {
					for name, was := range before {
						if now := value(t, h.m(name), other.socket); !bytes.Equal(was, now) {
							t.Fatalf("run %d: another socket's %s was %x, is %x", run, name, was, now)
						}
					}
				}
			}
			t.Logf("%d reads were answered, %d connects and sends went on", answers, succeeded)
			if answers < *arbitraryRuns/200 || succeeded < *arbitraryRuns/200 {
				t.Error("too few to mean anything")
			}
		})
	}
}
