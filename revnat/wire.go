// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/revsk/revsk/lbmap"
)

func encode(what string, size int, put func([]byte) error) ([]byte, error) {
	b := make([]byte, size)
	if err := put(b); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", what, err)
	}
	return b, nil
}

func decode[T any](what string, size int, data []byte, into *T, get func(*T, []byte) error) error {
	if len(data) != size {
		return fmt.Errorf("decoding %s: %d bytes, not %d: %w", what, len(data), size, lbmap.ErrLength)
	}
	var v T
	if err := get(&v, data); err != nil {
		return fmt.Errorf("decoding %s: %w", what, err)
	}
	*into = v
	return nil
}

// putEndpoint writes ep into bytes that are zero.
func putEndpoint(addr, port []byte, ep netip.AddrPort) error {
	a := ep.Addr()
	switch {
	case ep == netip.AddrPort{}:
		return nil
	case !a.IsValid():
		return fmt.Errorf("port %d without an address: %w", ep.Port(), lbmap.ErrFamily)
	case a.Is4In6():
		return fmt.Errorf("%v is v4-mapped, give it as %v: %w", a, a.Unmap(), lbmap.ErrFamily)
	case a.Zone() != "":
		return fmt.Errorf("%v has a zone: %w", a, lbmap.ErrFamily)
	}
	wire := a.As16()
	copy(addr, wire[:])
	binary.BigEndian.PutUint16(port, ep.Port())
	return nil
}

func getEndpoint(addr, port []byte) netip.AddrPort {
	ep := netip.AddrPortFrom(
		netip.AddrFrom16([16]byte(addr)).Unmap(),
		binary.BigEndian.Uint16(port),
	)
	if ep == netip.AddrPortFrom(netip.IPv6Unspecified(), 0) {
		return netip.AddrPort{}
	}
	return ep
}

func zero(b []byte) error {
	for _, c := range b {
		if c != 0 {
			return lbmap.ErrPadding
		}
	}
	return nil
}
