// SPDX-License-Identifier: Apache-2.0

package lbmap

import "errors"

var (
	// ErrLength is returned by decoders for input that is not as long as the
	// key or value in either family.
	ErrLength = errors.New("wrong length")

	// ErrPadding is returned by decoders for input with a bit set where the
	// layout has padding. Encoding what had been decoded would lose that bit.
	ErrPadding = errors.New("padding is not zero")

	// ErrFamily is returned for an address that is missing, v4-mapped, has a
	// zone, or is of another family than its service.
	ErrFamily = errors.New("wrong address family")

	// ErrInvalid is returned for a value that the maps cannot hold, such as an
	// affinity timeout with a fraction of a second.
	ErrInvalid = errors.New("invalid value")

	// ErrSyntax is returned by the Parse functions and text decoders.
	ErrSyntax = errors.New("syntax error")

	// ErrFull is returned when a map, or the range of reverse-NAT indexes, has
	// no room left.
	ErrFull = errors.New("no room left")

	// ErrInUse is returned for a reverse-NAT index that belongs to another
	// service, and for a backend id that belongs to another backend.
	ErrInUse = errors.New("already in use")

	// ErrNotFound is returned when an entry to read or remove does not exist.
	ErrNotFound = errors.New("not found")

	// ErrClosed is returned by methods of [Tables] or a [Writer] that is nil or
	// closed.
	ErrClosed = errors.New("already closed")

	// ErrLocked is returned when a [Writer] has waited as long as
	// [Writer.LimitWait] says for another process that writes.
	ErrLocked = errors.New("locked by another process")

	// ErrConflict is returned when a map changes under a [Writer] repeatedly: another
	// program writes it without a Writer.
	ErrConflict = errors.New("something else writes the same map")

	// ErrFrozen is returned when another process has frozen a map with BPF_MAP_FREEZE: nobody can write to it any more.
	ErrFrozen = errors.New("map of the load balancer is frozen")

	// ErrNoMap is returned when a call needs a map that [Tables] does not have.
	ErrNoMap = errors.New("map is missing")

	// ErrLayout is returned for a map whose type, key size or value size is not
	// the one in [MapSpec].
	ErrLayout = errors.New("map has another layout")
)
