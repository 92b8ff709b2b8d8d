// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// rule is a rule of the datapath, and a scene that shows that it holds.
type rule struct {
	name string
	play func(s *scene)
}

// kind is a kind of sockets that rules hold for.
type kind struct {
	name string
	tcp  bool
}

var (
	datagrams = kind{name: "UDP"}
	streams   = kind{name: "TCP", tcp: true}
)

// holdFor plays each rule with sockets of these kinds, of every family.
func holdFor(t *testing.T, kinds []kind, rules ...rule) {
	t.Helper()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, k := range kinds {
				for _, f := range families {
					t.Run(k.name+" "+f.name, func(t *testing.T) {
						r.play(newScene(t, shared, f, k.tcp))
					})
				}
			}
		})
	}
}

func holdForAll(t *testing.T, rules ...rule) {
	t.Helper()
	holdFor(t, []kind{streams, datagrams}, rules...)
}

func holdForDatagrams(t *testing.T, rules ...rule) {
	t.Helper()
	holdFor(t, []kind{datagrams}, rules...)
}

func holdForStreams(t *testing.T, rules ...rule) {
	t.Helper()
	holdFor(t, []kind{streams}, rules...)
}

// scene is a socket with what it talks to. At the end of the test it checks that
// nothing is unaccounted for.
type scene struct {
	*testing.T
	*subject
	h        *harness
	family   family
	subjects []*subject
	mode     mode
	now      uint32 // what the clock shows
	mayLeak  bool   // legacy entries may be left when all sockets are released
	// byProtocol puts services for each protocol where a rule says any.
	byProtocol bool
}

// Times, in the unit of a tuple's.
const (
	firstTime  = 1000
	answerTime = 280 // how long an answer can be expected
)

// subject is one of the sockets of a scene.
type subject struct {
	*socket
	s          *scene
	dead       bool // released
	isRejected bool // what it calls, by another program
}

func newScene(t *testing.T, h *harness, f family, tcp bool) *scene {
	t.Helper()
	s := &scene{T: t, h: h, family: f, now: firstTime}
	t.Cleanup(s.end)
	s.subject = s.open(tcp)
	return s
}

func (s *scene) open(tcp bool) *subject {
	s.Helper()
	x := &subject{socket: openSocket(s.T, s.family, tcp), s: s}
	s.subjects = append(s.subjects, x)
	return x
}

// another opens another socket of the same kind.
func (s *scene) another() *subject {
	s.Helper()
	return s.open(s.tcp)
}

func (s *scene) end() {
	defer s.h.reset(s.T)
	defer func() {
		for _, x := range s.subjects {
			x.socket.close()
		}
	}()
	if s.Failed() {
		return
	}
	s.balance()
	for _, x := range s.subjects {
		if !x.dead {
			x.release()
		}
	}
	s.balance()
	if left := len(s.hash()); left != 0 && !s.mayLeak {
		s.Errorf("the legacy maps hold %d entries of released sockets", left)
	}
}

// balance checks that every tuple ever stored is accounted for.
func (s *scene) balance() {
	s.Helper()
	live := 0
	for _, x := range s.subjects {
		if !x.dead {
			live += x.state().tuples()
		}
	}
	c := s.h.counts(s.T)
	gone := c[released] + c[droppedDirect] + c[droppedReplaced] + c[evicted]
	if c[stored] != gone+live {
		s.Errorf("%d tuples live, %d gone, of those counted: %v", live, gone, c)
	}
}

func (s *scene) setMode(m mode) {
	s.Helper()
	s.mode = m
	s.h.setMode(s.T, m)
}

// setMark makes what sockets remember from up to this time doubtful, as of a load after a time without hooks.
func (s *scene) setMark(mark uint32) {
	s.Helper()
	s.h.setConfig(s.T, s.mode, mark)
}

func (s *scene) protocol() uint8 {
	if s.tcp {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// tuple is what a socket remembers that was sent to a backend of a service.
func (s *scene) tuple(service, backend int) tuple {
	return tuple{
		peer:      s.family.backend(backend),
		service:   s.family.service(service),
		revNat:    uint16(service),
		backendID: uint32(backend),
		time:      s.now,
	}
}

// input is what every program needs to find the socket.
func (x *subject) input() harnessHarnessInput {
	in := harnessHarnessInput{
		Packet:          x.packet,
		SocketCookie:    x.cookie,
		NetnsCookie:     hostNetns,
		HostNetnsCookie: hostNetns,
		Protocol:        x.s.protocol(),
	}
	in.Tuple.Time = x.s.now
	if x.v6 {
		in.PacketIsV6 = 1
	}
	if x.isRejected {
		in.Rejected = 1
	}
	if x.tcp {
		in.PacketIsTcp = 1
	} else {
		in.Datagram = 1
	}
	return in
}

// Cookies of network namespaces, as the programs are told.
const (
	hostNetns  = 4711
	otherNetns = 815
)

func (x *subject) withTuple(program string, t tuple) harnessHarnessOutput {
	x.s.Helper()
	in := x.input()
	in.Tuple = t.wire()
	return x.s.h.run(x.s.T, program, in)
}

func (x *subject) withAddress(program string, a netip.AddrPort) harnessHarnessOutput {
	x.s.Helper()
	in := x.input()
	in.Address = wireEndpoint(a)
	return x.s.h.run(x.s.T, program, in)
}

// connect is a connect that was translated; it must succeed.
func (x *subject) connect(t tuple) {
	x.s.Helper()
	if err := x.tryConnect(t); err != 0 {
		x.s.Fatalf("connect to %v: %v", t, err)
	}
}

func (x *subject) tryConnect(t tuple) unix.Errno {
	x.s.Helper()
	return errno(x.withTuple("connect", t))
}

// connectDirect is a connect that was not translated.
func (x *subject) connectDirect(a netip.AddrPort) {
	x.s.Helper()
	x.withAddress("connect_direct", a)
}

// send is a sendmsg that was translated; it must succeed.
func (x *subject) send(tuples ...tuple) {
	x.s.Helper()
	for _, t := range tuples {
		if err := x.trySend(t); err != 0 {
			x.s.Fatalf("send to %v: %v", t, err)
		}
	}
}

func (x *subject) trySend(t tuple) unix.Errno {
	x.s.Helper()
	return errno(x.withTuple("sendmsg", t))
}

// sendDirect is a sendmsg that was not translated.
func (x *subject) sendDirect(a netip.AddrPort) {
	x.s.Helper()
	x.withAddress("sendmsg_direct", a)
}

// source is what recvmsg reports for a datagram from a; a itself if it is left
// alone.
func (x *subject) source(a netip.AddrPort) netip.AddrPort {
	x.s.Helper()
	return reported(a, x.withAddress("source", a))
}

// peername is what getpeername reports for the actual peer a.
func (x *subject) peername(a netip.AddrPort) netip.AddrPort {
	x.s.Helper()
	return reported(a, x.withAddress("peername", a))
}

func reported(a netip.AddrPort, out harnessHarnessOutput) netip.AddrPort {
	if out.Result == 0 {
		return a
	}
	return addrPort(out.Address.Addr.Bytes, out.Address.Port)
}

func (x *subject) wantSource(from, want netip.AddrPort) {
	x.s.Helper()
	if got := x.source(from); got != want {
		x.s.Errorf("a datagram from %v is reported as from %v, want %v", from, got, want)
	}
}

func (x *subject) wantPeername(peer, want netip.AddrPort) {
	x.s.Helper()
	if got := x.peername(peer); got != want {
		x.s.Errorf("getpeername for %v reports %v, want %v", peer, got, want)
	}
}

// release is the release hook for a socket that the kernel says is connected to
// an address that the socket has no tuple for.
func (x *subject) release() {
	x.s.Helper()
	x.releaseWith(x.s.family.backend(unusedNumber))
}

// unusedNumber is that of a backend and a service that no scene has.
const unusedNumber = 0xffff

// releaseWith is the release hook for a socket with dst left of its destination.
func (x *subject) releaseWith(dst netip.AddrPort) {
	x.s.Helper()
	x.withAddress("release", dst)
	x.dead = true
}

// state is what a socket holds.
type state struct {
	conn, former *tuple
	slots        [slots]tuple
	table        []tuple // by peer
	// whether there is storage for slots, which may be empty
	hasPeers bool
	class    int // of the table
	maps     int // how many the table has
	places   map[netip.AddrPort]string
}

const slots = 3

func (st state) peers() []tuple {
	var all []tuple
	for _, t := range st.slots {
		if t != (tuple{}) {
			all = append(all, t)
		}
	}
	return append(all, st.table...)
}

func (st state) tuples() int {
	n := len(st.peers())
	for _, t := range []*tuple{st.conn, st.former} {
		if t != nil {
			n++
		}
	}
	return n
}

func (st state) String() string {
	text := func(t *tuple) string {
		if t == nil {
			return "none"
		}
		return t.String()
	}
	return fmt.Sprintf("conn: %s; former: %s; slots: %v; table: %v; storage for peers: %v; class %d, %d maps",
		text(st.conn), text(st.former), st.slots, st.table, st.hasPeers, st.class, st.maps)
}

// state reads what the socket holds, past the library, and checks that it is
// sound.
func (x *subject) state() state {
	x.s.Helper()
	st, err := x.s.h.read(x.socket)
	if err != nil {
		x.s.Fatalf("the socket's state is not sound: %v", err)
	}
	return st
}

// harnessConnHasFormer is REVSK_CONN_HAS_FORMER.
const harnessConnHasFormer = 1

// stored looks up what a socket has in a storage map.
func (h *harness) stored(name string, fd int, value any) (bool, error) {
	err := h.m(name).Lookup(uint32(fd), value)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return false, fmt.Errorf("reading %s: %w", name, err)
}

func (h *harness) read(sock *socket) (state, error) {
	var st state
	var conn harnessRevskConnValue
	found, err := h.stored(harnessMapRevskConn, sock.fd, &conn)
	if err != nil {
		return st, err
	}
	if found && conn.Tuple.PeerPort != 0 {
		t := fromWire(conn.Tuple)
		st.conn = &t
	}
	hasFormer := conn.Bits&harnessConnHasFormer != 0
	if found && st.conn == nil && (conn.Bits == 0 || conn.Tuple != (harnessRevskTuple{})) {
		return st, fmt.Errorf("conn has neither a tuple nor bits: %+v", conn)
	}
	var former harnessRevskFormerValue
	if found, err = h.stored(harnessMapRevskFormer, sock.fd, &former); err != nil {
		return st, err
	}
	if found != hasFormer {
		return st, fmt.Errorf("conn says that there is a former one: %v; there is: %v", hasFormer, found)
	}
	if found {
		t := fromWire(former.Tuple)
		st.former = &t
	}
	var p harnessRevskPeersValue
	if st.hasPeers, err = h.stored(harnessMapRevskPeers, sock.fd, &p); err != nil || !st.hasPeers {
		return st, err
	}
	places := make(map[netip.AddrPort]string)
	st.places = places
	for i, w := range p.Slots {
		if w.PeerPort == 0 {
			if w != (harnessRevskTuple{}) {
				return st, fmt.Errorf("slot %d is free but not empty: %v", i, fromWire(w))
			}
			continue
		}
		if i >= int(p.SlotsTried) {
			return st, fmt.Errorf("slot %d is in use, but the hooks look at %d only", i, p.SlotsTried)
		}
		t := fromWire(w)
		place := fmt.Sprintf("slot %d", i)
		if other, twice := places[t.peer]; twice {
			return st, fmt.Errorf("peer %v is in %s and in %s", t.peer, other, place)
		}
		places[t.peer] = place
		st.slots[i] = t
	}
	return st, h.readTables(sock, p, &st, places)
}

// readTables reads the tables of a socket, and checks that every tuple is where its hash says.
func (h *harness) readTables(sock *socket, p harnessRevskPeersValue, st *state, places map[netip.AddrPort]string) error {
	st.class = int(p.TableClass)
	if p.TableVersion%2 != 0 {
		return fmt.Errorf("the version of the tables is %d, as if tuples were moving", p.TableVersion)
	}
	for _, m := range revnat.TableMaps() {
		value := make([]byte, m.ValueSize)
		found, err := h.stored(m.Name, sock.fd, &value)
		if err != nil {
			return err
		}
		number := 0
		wanted := m.Class == st.class
		if m.Class == revnat.TableClasses {
			fmt.Sscanf(m.Name, "revsk_tab_8k_%d", &number)
			wanted = wanted && p.TableMaps&(1<<number) != 0
		}
		if found != wanted {
			return fmt.Errorf("%s: there is a table: %v, should be: %v", m.Name, found, wanted)
		}
		if !found {
			continue
		}
		st.maps++
		tuples := value[56 : 56+m.Tuples()*48]
		for i, b := range value {
			if (i < 56 || i >= 56+m.Tuples()*48) && b != 0 {
				return fmt.Errorf("%s: byte %d is not 0", m.Name, i)
			}
		}
		for i := range m.Tuples() {
			var w harnessRevskTuple
			if _, err := binary.Decode(tuples[i*48:(i+1)*48], binary.NativeEndian, &w); err != nil {
				return err
			}
			if w == (harnessRevskTuple{}) {
				continue
			}
			t := fromWire(w)
			place := fmt.Sprintf("%s, position %d", m.Name, i)
			hash := peerHash(t.peer)
			first, second := hash, hash^(hash>>8|1)
			if mask := uint32(m.Tuples()/4 - 1); uint32(i)/4 != first&mask && uint32(i)/4 != second&mask {
				return fmt.Errorf("%s: not a bucket of %v", place, t)
			}
			if m.Class == revnat.TableClasses && mapOf(p.TableMaps, hash) != number {
				return fmt.Errorf("%s: not the map of %v", place, t)
			}
			if other, twice := places[t.peer]; twice {
				return fmt.Errorf("peer %v is in %s and in %s", t.peer, other, place)
			}
			places[t.peer] = place
			st.table = append(st.table, t)
		}
	}
	if len(st.table) != int(p.TableCount) {
		return fmt.Errorf("there are %d tuples in tables, not %d", len(st.table), p.TableCount)
	}
	slices.SortFunc(st.table, byPeer)
	return nil
}

// peerHash is peer_hash of table.h.
func peerHash(peer netip.AddrPort) uint32 {
	a := peer.Addr().As16()
	first, last := binary.NativeEndian.Uint64(a[:8]), binary.NativeEndian.Uint64(a[8:])
	x := last ^ ((first^first>>32)+uint64(net16(peer.Port())))*0x9e3779b97f4a7c15
	x ^= x >> 32
	return uint32(x * 0xd6e8feb86659fd93 >> 32)
}

// mapOf is which of the maps of the last class has a hash: the one that was made for most of its bits.
func mapOf(maps uint16, hash uint32) int {
	n := int(hash >> 16 & 15)
	for _, bits := range []int{15, 7, 3, 1} {
		if maps&(1<<(n&bits)) != 0 {
			return n & bits
		}
	}
	return 0
}

func byPeer(a, b tuple) int { return a.peer.Compare(b.peer) }

func (x *subject) wantConn(want tuple) {
	x.s.Helper()
	switch got := x.state().conn; {
	case got == nil:
		x.s.Errorf("conn is empty, want %v", want)
	case *got != want:
		x.s.Errorf("conn is %v, want %v", *got, want)
	}
}

func (x *subject) wantNoConn() {
	x.s.Helper()
	if got := x.state().conn; got != nil {
		x.s.Errorf("conn is %v, want none", *got)
	}
}

// wantFormer compares the former connection; none: there is to be none.
func (x *subject) wantFormer(want ...tuple) {
	x.s.Helper()
	var got []tuple
	if t := x.state().former; t != nil {
		got = append(got, *t)
	}
	if !slices.Equal(got, want) {
		x.s.Errorf("the former connection is %v, want %v", got, want)
	}
}

// wantPeers compares the tuples in slots and table, wherever they are.
func (x *subject) wantPeers(want ...tuple) {
	x.s.Helper()
	got := x.state().peers()
	slices.SortFunc(got, byPeer)
	slices.SortFunc(want, byPeer)
	if !slices.Equal(got, want) {
		x.s.Errorf("peers are %v, want %v", got, want)
	}
}

// wantSlots compares the slots in their order; a zero tuple is a free slot.
func (x *subject) wantSlots(want ...tuple) {
	x.s.Helper()
	var all [slots]tuple
	copy(all[:], want)
	if got := x.state().slots; got != all {
		x.s.Errorf("slots are %v, want %v", got, all)
	}
}

// wantTable compares the tuples in the table, in any order.
func (x *subject) wantTable(want ...tuple) {
	x.s.Helper()
	slices.SortFunc(want, byPeer)
	if got := x.state().table; !slices.Equal(got, want) {
		x.s.Errorf("the table has %v, want %v", got, want)
	}
}

// unchangedBy checks that play leaves what the socket holds as it is.
func (x *subject) unchangedBy(what string, play func()) {
	x.s.Helper()
	before := x.state()
	play()
	x.unchangedSince(before, what)
}

func (x *subject) unchangedSince(before state, what string) {
	x.s.Helper()
	if after := x.state(); !reflect.DeepEqual(after, before) {
		x.s.Errorf("%s has changed the socket from\n%v\nto\n%v", what, before, after)
	}
}

// counted compares all counters since the scene began.
func (s *scene) counted(want counts) {
	s.Helper()
	if got := s.h.counts(s.T); !maps.Equal(got, want) {
		s.Errorf("counted %v, want %v", got, want)
	}
}

// hashEntry is an entry of a legacy map, byte by byte.
type hashEntry struct{ m, key, value string }

// hash returns the contents of both legacy maps.
func (s *scene) hash() []hashEntry {
	s.Helper()
	var all []hashEntry
	for _, name := range []string{harnessMapCiliumLb4ReverseSk, harnessMapCiliumLb6ReverseSk} {
		for key, value := range rawEntries(s.T, s.h.m(name)) {
			all = append(all, hashEntry{name, key, value})
		}
	}
	return all
}

// hashEntry is what the legacy maps hold of t: the layout of Cilium, written out.
func (x *subject) hashEntry(t tuple) hashEntry {
	peer, service := t.peer.Addr().AsSlice(), t.service.Addr().AsSlice()
	key := binary.NativeEndian.AppendUint64(nil, x.cookie)
	key = append(key, peer...)
	key = binary.BigEndian.AppendUint16(key, t.peer.Port())
	value := binary.BigEndian.AppendUint16(service, t.service.Port())
	value = binary.BigEndian.AppendUint16(value, t.revNat)
	if t.peer.Addr().Is4() {
		key = append(key, 0, 0)
		return hashEntry{harnessMapCiliumLb4ReverseSk, string(key), string(value)}
	}
	key = append(key, 0, 0, 0, 0, 0, 0)
	return hashEntry{harnessMapCiliumLb6ReverseSk, string(key), string(value)}
}

// wantHash compares the legacy maps with what they hold of tuples of x.
func (x *subject) wantHash(tuples ...tuple) {
	x.s.Helper()
	var want []hashEntry
	for _, t := range tuples {
		want = append(want, x.hashEntry(t))
	}
	byKey := func(a, b hashEntry) int { return slices.Compare([]byte(a.key), []byte(b.key)) }
	got := x.s.hash()
	slices.SortFunc(got, byKey)
	slices.SortFunc(want, byKey)
	if !slices.Equal(got, want) {
		x.s.Errorf("the legacy maps hold %x, want %x", got, want)
	}
}

// putHash puts the entry for t into the legacy map.
func (x *subject) putHash(t tuple) {
	x.s.Helper()
	e := x.hashEntry(t)
	must(x.s.T, x.s.h.m(e.m).Put([]byte(e.key), []byte(e.value)))
}

// familyMap returns the name of the map for addresses like a.
func familyMap(a netip.Addr, name4, name6 string) string {
	if a.Is4() {
		return name4
	}
	return name6
}

func (h *harness) servicesFor(a netip.Addr) *ebpf.Map {
	return h.m(familyMap(a, harnessMapCiliumLb4ServicesV2, harnessMapCiliumLb6ServicesV2))
}

// serve creates the services with these numbers: for any protocol, with a backend.
func (s *scene) serve(services ...int) {
	s.Helper()
	for _, n := range services {
		s.putService(n, lbmap.ServiceValue{Count: 1, RevNat: uint16(n)})
	}
}

func (s *scene) putService(n int, value lbmap.ServiceValue) {
	s.Helper()
	key := lbmap.ServiceKey{AddrPort: s.family.service(n)}
	must(s.T, s.h.servicesFor(key.AddrPort.Addr()).Put(key, value))
}

func (s *scene) deleteService(n int) {
	s.Helper()
	key := lbmap.ServiceKey{AddrPort: s.family.service(n)}
	must(s.T, s.h.servicesFor(key.AddrPort.Addr()).Delete(key))
}
