// SPDX-License-Identifier: Apache-2.0

// Command progsize prints the size of each program of the datapath and of the migration: instructions as compiled and, when run as
// root, as translated by the kernel, in bytes of machine code, and as walked by the verifier, whose
// limit is 1,000,000.
package main

import (
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/bpf/sock"
)

func main() {
	log.SetFlags(0)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "program\tcompiled\ttranslated\tmachine code\tverified\t")
	for _, load := range []func() (*ebpf.CollectionSpec, error){sock.LoadSock, iter.LoadFill} {
		spec, err := load()
		if err != nil {
			log.Fatal(err)
		}
		printSizes(w, spec)
	}
	w.Flush()
}

func printSizes(w io.Writer, spec *ebpf.CollectionSpec) {
	var err error
	var loaded *ebpf.Collection
	if os.Geteuid() == 0 {
		for _, m := range spec.Maps {
			if m.Type != ebpf.SkStorage {
				m.MaxEntries = min(m.MaxEntries, 64)
			}
		}
		if loaded, err = ebpf.NewCollection(spec); err != nil {
			log.Fatal(err)
		}
		defer loaded.Close()
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		fmt.Fprintf(w, "%s\t%d\t", name, spec.Programs[name].Instructions.Size()/asm.InstructionSize)
		if loaded != nil {
			info, err := loaded.Programs[name].Info()
			if err != nil {
				log.Fatal(err)
			}
			insns, err := info.Instructions()
			if err != nil {
				log.Fatal(err)
			}
			jited, _ := info.JitedSize()
			verified, _ := info.VerifiedInstructions()
			fmt.Fprintf(w, "%d\t%d\t%d\t", insns.Size()/asm.InstructionSize, jited, verified)
		}
		fmt.Fprintln(w)
	}
}
