// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IPCacheKey is a key of cilium_ipcache_v2, 24 bytes in both families: a prefix
// of addresses. The map finds the longest prefix that holds an address.
type IPCacheKey struct {
	Prefix netip.Prefix
	// ClusterID is 0 for the own cluster.
	ClusterID uint16
}

const (
	// ipcacheFixedBits is how much of a key counts as prefix before the
	// address: cluster id, padding and family.
	ipcacheFixedBits = 32

	ipcacheFamily4 = 1
	ipcacheFamily6 = 2
)

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [ErrFamily], or [ErrInvalid] for a prefix length
// that does not fit the address.
func (k IPCacheKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k IPCacheKey) encode(order byteOrder) ([]byte, error) {
	return encode("ipcache key", order, func(w *writer) {
		addr := k.Prefix.Addr()
		if addr.IsValid() && !k.Prefix.IsValid() {
			w.fail(fmt.Errorf("prefix length: %w", ErrInvalid))
		}
		w.host32(uint32(ipcacheFixedBits + k.Prefix.Bits()))
		w.host16(k.ClusterID)
		w.pad(1)
		if addr.Is4() {
			w.u8(ipcacheFamily4)
			w.addr(addr)
			w.pad(12)
		} else {
			w.u8(ipcacheFamily6)
			w.addr(addr)
		}
	})
}

// UnmarshalBinary reads a key from the map.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily], or
// [ErrInvalid] for a prefix length that does not fit the family.
func (k *IPCacheKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *IPCacheKey) decode(order byteOrder, data []byte) error {
	return decode("ipcache key", order, data, k, func(r *reader) (v IPCacheKey) {
		bits := r.host32()
		v.ClusterID = r.host16()
		r.pad(1)
		var addr netip.Addr
		switch family := r.u8(); family {
		case ipcacheFamily4:
			addr = r.addr(4)
			r.pad(12)
		case ipcacheFamily6:
			addr = r.addr(16)
		default:
			r.fail(fmt.Errorf("family %d: %w", family, ErrFamily))
			return v
		}
		if bits < ipcacheFixedBits || bits > uint32(ipcacheFixedBits+addr.BitLen()) {
			r.fail(fmt.Errorf("prefix length %d: %w", bits, ErrInvalid))
			return v
		}
		v.Prefix = netip.PrefixFrom(addr, int(bits)-ipcacheFixedBits)
		return v
	}, IPCacheKeySize)
}

// IPCacheValue is a value of cilium_ipcache_v2, 24 bytes: what is known of the
// addresses in a prefix.
type IPCacheValue struct {
	// Identity is the security identity.
	Identity uint32
	// Tunnel is the address of the node to send to, or the zero Addr. It is
	// IPv6 if and only if Flags has [IPCacheIPv6Tunnel].
	Tunnel netip.Addr
	// Key is the number of an encryption key.
	Key   uint8
	Flags IPCacheFlags
}

// The identities that decide whether an address is one of this node.
const (
	IdentityHost          = 1
	IdentityRemoteNode    = 6
	IdentityAPIServerNode = 7 // a remote node, too
	// IdentityScopeRemoteNode is in the high byte of the identities of remote nodes that have one each.
	IdentityScopeRemoteNode = 0x02000000
)

// IPCacheFlags are the flags of a value of cilium_ipcache_v2.
type IPCacheFlags uint8

// The flags of an ipcache entry.
const (
	IPCacheSkipTunnel    IPCacheFlags = 1 << iota // packets are not encapsulated
	IPCacheHasTunnel                              // Tunnel is set
	IPCacheIPv6Tunnel                             // Tunnel is an IPv6 address
	IPCacheRemoteCluster                          // the addresses are in another cluster
)

// MarshalBinary returns the value as it is in the map.
//
// Returns an error wrapping [ErrFamily] for a tunnel address that does not fit
// the flags.
func (v IPCacheValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v IPCacheValue) encode(order byteOrder) ([]byte, error) {
	return encode("ipcache value", order, func(w *writer) {
		w.host32(v.Identity)
		switch v6 := v.Flags&IPCacheIPv6Tunnel != 0; {
		case !v.Tunnel.IsValid():
			w.pad(16)
		case v.Tunnel.Is6() != v6:
			w.fail(fmt.Errorf("tunnel %v and flags %#x: %w", v.Tunnel, uint8(v.Flags), ErrFamily))
		default:
			w.addr(v.Tunnel)
			w.pad(16 - v.Tunnel.BitLen()/8)
		}
		w.pad(2)
		w.u8(v.Key)
		w.u8(uint8(v.Flags))
	})
}

// UnmarshalBinary reads a value from the map.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (v *IPCacheValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *IPCacheValue) decode(order byteOrder, data []byte) error {
	return decode("ipcache value", order, data, v, func(r *reader) (v IPCacheValue) {
		v.Identity = r.host32()
		tunnel := reader{order: order, buf: r.take(16)}
		r.pad(2)
		v.Key = r.u8()
		v.Flags = IPCacheFlags(r.u8())

		size := 4
		if v.Flags&IPCacheIPv6Tunnel != 0 {
			size = 16
		}
		if addr := tunnel.addr(size); !addr.IsUnspecified() {
			v.Tunnel = addr
		}
		tunnel.pad(len(tunnel.buf))
		r.fail(tunnel.err)
		return v
	}, IPCacheValueSize)
}

// UpsertIPCache sets what is known of the addresses in a prefix of the own
// cluster. To give the node's own address the host identity:
//
//	t.UpsertIPCache(netip.MustParsePrefix("192.0.2.1/32"), lbmap.IPCacheValue{Identity: lbmap.IdentityHost})
//
// Returns an error wrapping [ErrNoMap], [ErrFamily] or [ErrFull].
func (t *Tables) UpsertIPCache(prefix netip.Prefix, v IPCacheValue) error {
	return put(IPCacheMap, t.IPCache, ipcacheKey(prefix), v)
}

// RemoveIPCache undoes [Tables.UpsertIPCache] for the very same prefix.
//
// Returns an error wrapping [ErrNoMap], [ErrFamily] or [ErrNotFound].
func (t *Tables) RemoveIPCache(prefix netip.Prefix) error {
	return remove(IPCacheMap, t.IPCache, ipcacheKey(prefix))
}

// ipcacheKey masks the prefix: the kernel would keep the bits behind it.
func ipcacheKey(prefix netip.Prefix) IPCacheKey { return IPCacheKey{Prefix: prefix.Masked()} }
