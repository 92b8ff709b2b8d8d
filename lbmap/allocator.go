// SPDX-License-Identifier: Apache-2.0

package lbmap

import "container/heap"

// allocator hands out the lowest free number from 1 to last, in a time that does not depend on how many
// are taken. The caller knows which ones are in use.
type allocator struct {
	last uint32
	// below is the number up to which all are in use, or in freed.
	below uint32
	freed numbers
	known map[uint32]bool // those in freed
}

func newAllocator(last uint32) *allocator {
	return &allocator{last: last, known: make(map[uint32]bool)}
}

// take returns a number that is not in use, or 0 if there is none.
func (a *allocator) take(inUse func(uint32) bool) uint32 {
	for len(a.freed) > 0 {
		n := heap.Pop(&a.freed).(uint32)
		delete(a.known, n)
		if !inUse(n) {
			return n
		}
	}
	for a.below < a.last {
		a.below++
		if !inUse(a.below) {
			return a.below
		}
	}
	return 0
}

// release makes a number available again.
func (a *allocator) release(n uint32) {
	if n == 0 || n > a.below || a.known[n] {
		return
	}
	a.known[n] = true
	heap.Push(&a.freed, n)
}

// numbers is a heap with the lowest number on top.
type numbers []uint32

func (h numbers) Len() int           { return len(h) }
func (h numbers) Less(i, j int) bool { return h[i] < h[j] }
func (h numbers) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *numbers) Push(n any)        { *h = append(*h, n.(uint32)) }
func (h *numbers) Pop() any {
	n := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return n
}
