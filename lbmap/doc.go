// SPDX-License-Identifier: Apache-2.0

// Package lbmap holds Go types of the BPF maps in which Cilium keeps its
// services, and reads and writes services through them.
//
// The layout is that of Cilium's pinned maps; the documentation of each type
// names the map that it is a key or a value of. A control plane owns these
// maps. revsk only reads them, apart from the service command and the tests,
// which fill them where no control plane does.
//
// # Types
//
// Every key and value implements [encoding.BinaryMarshaler] and
// [encoding.BinaryUnmarshaler], so that it can be passed to an [ebpf.Map]
// directly. One type serves the IPv4 and the IPv6 map: encoding takes the
// family from the address, decoding from the number of bytes. Ports,
// reverse-NAT indexes and every other number are plain Go numbers; their byte
// order in the map (host or network) is the concern of this package alone.
//
// An IPv4 address is always a plain one. A v4-mapped IPv6 address
// (::ffff:10.0.0.1), or one with a zone, is refused with [ErrFamily] in both
// directions.
//
// A value that was decoded encodes to the same bytes again. So bytes that no
// field holds must be zero; a decoder refuses others with [ErrPadding], and input
// of another length with [ErrLength].
//
// # Services
//
// A [Service] is spread over many entries of several maps. [Tables] reads
// services, a [Writer] writes them: one by one with [Writer.Upsert] and
// [Writer.Delete], or all at once with [Writer.Sync].
package lbmap
