// SPDX-License-Identifier: Apache-2.0

// Package revnat has Go types of what sockets remember: the reverse-NAT tuple, the values of the maps
// revsk_conn, revsk_former and revsk_peers, and the tables of sockets with many peers.
//
// The layouts are those of bpf/lib/tuple.h and bpf/lib/table.h. The maps are pinned and outlive
// the programs, so a layout never changes under its name.
//
// The maps are BPF_MAP_TYPE_SK_STORAGE (Linux 5.2; revsk needs 5.10): a key is a descriptor of the socket, as a
// uint32, in the process that has it open. Package inspect reads the sockets of all processes.
//
// # Types
//
// Every type implements [encoding.BinaryMarshaler] and [encoding.BinaryUnmarshaler], so that it can
// be passed to an [ebpf.Map] directly. Ports and reverse-NAT indexes (network byte order in the map)
// and cookies, ids and times (the machine's byte order) are plain Go numbers.
//
// IPv4 is a plain IPv4 [netip.Addr]; in the map it is a v4-mapped IPv6 address (::ffff:a.b.c.d). A
// v4-mapped netip address, or one with a zone, is not encoded: the map cannot tell it from IPv4. The
// unspecified address with port 0, which is how the map says "none", is the zero [netip.AddrPort].
//
// What decodes encodes to the same bytes again. Flags and padding that the layout does not know must
// therefore be zero, and so must the place of the spin lock, which the kernel never copies: a value
// with others is refused, because another version of revsk has written it.
//
// The types are plain values: several goroutines can read one, and only one can change it.
package revnat
