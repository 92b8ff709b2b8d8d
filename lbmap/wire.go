// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// hostOrder is the byte order of numbers in the maps that are not in network order.
var hostOrder = binary.NativeEndian

// byteOrder is what [binary.NativeEndian] and the two fixed orders have in
// common. The exported methods always use the native one for numbers in host
// order; tests use the fixed ones, to read a dump made on another machine.
type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// writer appends the fields of a key or value in the order of its C struct. It
// keeps the first error, so that callers check once, at the end.
type writer struct {
	order byteOrder
	buf   []byte
	err   error
}

func (w *writer) u8(v uint8)      { w.buf = append(w.buf, v) }
func (w *writer) host16(v uint16) { w.buf = w.order.AppendUint16(w.buf, v) }
func (w *writer) host32(v uint32) { w.buf = w.order.AppendUint32(w.buf, v) }
func (w *writer) host64(v uint64) { w.buf = w.order.AppendUint64(w.buf, v) }
func (w *writer) net16(v uint16)  { w.buf = binary.BigEndian.AppendUint16(w.buf, v) }
func (w *writer) pad(n int)       { w.buf = append(w.buf, make([]byte, n)...) }

// addr appends the 4 or 16 bytes of a.
func (w *writer) addr(a netip.Addr) {
	w.fail(checkAddr(a))
	w.buf = append(w.buf, a.AsSlice()...)
}

// fail records err unless an earlier one is recorded already.
func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// reader takes the fields of a key or value in the order of its C struct. Its
// input has been checked to be long enough.
type reader struct {
	order byteOrder
	buf   []byte
	err   error
}

func (r *reader) take(n int) []byte {
	b := r.buf[:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) u8() uint8      { return r.take(1)[0] }
func (r *reader) host16() uint16 { return r.order.Uint16(r.take(2)) }
func (r *reader) host32() uint32 { return r.order.Uint32(r.take(4)) }
func (r *reader) host64() uint64 { return r.order.Uint64(r.take(8)) }
func (r *reader) net16() uint16  { return binary.BigEndian.Uint16(r.take(2)) }

func (r *reader) pad(n int) {
	for _, b := range r.take(n) {
		if b != 0 {
			r.fail(ErrPadding)
		}
	}
}

// addr takes an address of n bytes, 4 or 16.
func (r *reader) addr(n int) netip.Addr {
	a, _ := netip.AddrFromSlice(r.take(n))
	r.fail(checkAddr(a))
	return a
}

// fail records err unless an earlier one is recorded already.
func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// encode returns the bytes that write produces, or its error with what as a
// prefix.
func encode(what string, order byteOrder, write func(*writer)) ([]byte, error) {
	w := writer{order: order}
	write(&w)
	if w.err != nil {
		return nil, fmt.Errorf("encoding %s: %w", what, w.err)
	}
	return w.buf, nil
}

// decode sets into to what read makes of data, which must have one of the
// sizes. After an error into is unchanged.
func decode[T any](
	what string, order byteOrder, data []byte, into *T, read func(*reader) T, sizes ...int,
) error {
	if !slices.Contains(sizes, len(data)) {
		return fmt.Errorf("decoding %s: %d bytes, not one of %v: %w", what, len(data), sizes, ErrLength)
	}
	r := reader{order: order, buf: data}
	v := read(&r)
	if r.err != nil {
		return fmt.Errorf("decoding %s: %w", what, r.err)
	}
	*into = v
	return nil
}

// checkAddr returns an error unless a is a plain IPv4 or IPv6 address.
func checkAddr(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("no address: %w", ErrFamily)
	case a.Is4In6():
		return fmt.Errorf("%v is v4-mapped, give it as %v: %w", a, a.Unmap(), ErrFamily)
	case a.Zone() != "":
		return fmt.Errorf("%v has a zone: %w", a, ErrFamily)
	}
	return nil
}

// addrSize returns the size of the address in a key or value of the given
// size, which is v6Size in the IPv6 map.
func addrSize(size, v6Size int) int {
	if size == v6Size {
		return 16
	}
	return 4
}
