// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// site is where in the code of a command a call is made: the return addresses on the stack, the innermost first.
type site string

// innermost is a site without the outer calls, by which each command comes to what commands have in common.
func (s site) innermost() site { return s[:min(len(s), 12*8)] }

func (s site) addresses() (all []uint64) {
	for b := []byte(s); len(b) >= 8; b = b[8:] {
		all = append(all, binary.NativeEndian.Uint64(b))
	}
	return all
}

// in tells whether a function whose name begins so is on the stack.
func (s site) in(prefix string) bool {
	return slices.ContainsFunc(s.addresses(), func(addr uint64) bool { return strings.HasPrefix(code().function(addr), prefix) })
}

// String names the innermost functions of ours.
func (s site) String() string {
	var names []string
	for _, addr := range s.addresses() {
		if name, ours := strings.CutPrefix(code().function(addr), "github.com/revsk/revsk/"); ours && len(names) < 4 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " < ")
}

// siteOf returns where a thread is that waits in a system call. Go saves the frame pointer of the caller just below
// each return address, and 0 at the end.
func siteOf(tid uint32) site {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
	fields := strings.Fields(string(b))
	if err != nil || len(fields) != 9 {
		return ""
	}
	var sp uint64
	if _, err := fmt.Sscanf(fields[7], "0x%x", &sp); err != nil {
		return ""
	}
	stack := memoryAt(tid, sp, 16<<10)
	word := func(at uint64) uint64 {
		if at+8 > uint64(len(stack)) {
			return 0
		}
		return binary.NativeEndian.Uint64(stack[at:])
	}
	// The innermost frame pointer from which the others can be reached.
	for first := uint64(0); first < uint64(len(stack)); first += 8 {
		all := binary.NativeEndian.AppendUint64(nil, word(0)) // of the function that has no frame
		for at := first; code().has(word(at + 8)); {
			all = binary.NativeEndian.AppendUint64(all, word(at+8))
			saved := word(at)
			if saved == 0 && len(all) > 2*8 {
				return site(all)
			}
			if saved <= sp+at || saved%8 != 0 {
				break
			}
			at = saved - sp
		}
	}
	return ""
}

// program is the code of the command line.
type program struct {
	from, to  uint64
	functions []elf.Symbol
}

var code = sync.OnceValue(func() *program {
	f, err := elf.Open(os.Getenv(binaryEnv))
	if err != nil {
		panic(err)
	}
	defer f.Close()
	text := f.Section(".text")
	symbols, err := f.Symbols()
	if err != nil {
		panic(err)
	}
	slices.SortFunc(symbols, func(a, b elf.Symbol) int { return cmp.Compare(a.Value, b.Value) })
	return &program{text.Addr, text.Addr + text.Size, symbols}
})

func (p *program) has(addr uint64) bool { return p.from <= addr && addr < p.to }

func (p *program) function(addr uint64) string {
	i, _ := slices.BinarySearchFunc(p.functions, addr, func(s elf.Symbol, a uint64) int { return cmp.Compare(s.Value, a) })
	if i == 0 {
		return ""
	}
	return p.functions[i-1].Name
}
