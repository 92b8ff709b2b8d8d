// SPDX-License-Identifier: Apache-2.0

// Command progsize prints the size of each program of the datapath and the migration: instructions as
// compiled and, when run as root, as translated by the kernel, in bytes of machine code, and what the verifier walks:
// instructions, whose limit is 1,000,000, and states. With -json it writes what it has found of the running
// kernel into a file, in which the figures of other kernels stay.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/bpf/sock"
)

// size is what is known of a program. All but the first field is the kernel's.
type size struct {
	Compiled    int `json:"compiled"`
	Translated  int `json:"translated,omitempty"`
	MachineCode int `json:"machine_code,omitempty"`
	Verified    int `json:"verified,omitempty"`
	TotalStates int `json:"total_states,omitempty"`
	PeakStates  int `json:"peak_states,omitempty"`
}

// sizes are those of all programs, by name.
type sizes map[string]size

func main() {
	log.SetFlags(0)
	path := flag.String("json", "", "write what the running kernel says into this `file`")
	flag.Parse()
	root := os.Geteuid() == 0
	all, err := measure(root)
	if err != nil {
		log.Fatal(err)
	}
	print(os.Stdout, all)
	if *path == "" || !root {
		return
	}
	if err := record(*path, all); err != nil {
		log.Fatal(err)
	}
}

// measure loads all programs, if it may.
func measure(root bool) (sizes, error) {
	if root {
		if err := rlimit.RemoveMemlock(); err != nil {
			return nil, err
		}
	}
	all := make(sizes)
	for _, load := range []func() (*ebpf.CollectionSpec, error){sock.LoadSock, iter.LoadFill, iter.LoadDescriptor, iter.LoadFiles, iter.LoadQueued} {
		spec, err := load()
		if err != nil {
			return nil, err
		}
		if err := all.add(spec, root); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (all sizes) add(spec *ebpf.CollectionSpec, root bool) error {
	loaded := new(ebpf.Collection)
	if root {
		for _, m := range spec.Maps {
			if m.Type != ebpf.SkStorage {
				m.MaxEntries = min(m.MaxEntries, 4096)
			}
		}
		var err error
		loaded, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ESRCH) {
			loaded = new(ebpf.Collection) // a program that only newer kernels run
		} else if err != nil {
			return err
		}
		defer loaded.Close()
	}
	for name, program := range spec.Programs {
		s := size{Compiled: int(program.Instructions.Size() / asm.InstructionSize)}
		if prog := loaded.Programs[name]; prog != nil {
			info, err := prog.Info()
			if err != nil {
				return err
			}
			insns, err := info.Instructions()
			if err != nil {
				return err
			}
			jited, _ := info.JitedSize()
			verified, _ := info.VerifiedInstructions()
			s.Translated, s.MachineCode, s.Verified = int(insns.Size()/asm.InstructionSize), int(jited), int(verified)
			s.TotalStates, s.PeakStates = statistic(prog.VerifierLog, "total_states"), statistic(prog.VerifierLog, "peak_states")
		}
		all[name] = s
	}
	return nil
}

// statistic reads a number from the last line of the verifier's log: "processed 7 insns … total_states 2 peak_states 2".
func statistic(log, name string) int {
	found := regexp.MustCompile(name+` (\d+)`).FindAllStringSubmatch(log, -1)
	if len(found) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(found[len(found)-1][1])
	return n
}

func print(out io.Writer, all sizes) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "program\tcompiled\ttranslated\tmachine code\tverified\tstates\tat once\t")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		fmt.Fprintf(w, "%s\t%d\t", name, s.Compiled)
		if s.Translated != 0 {
			fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t", s.Translated, s.MachineCode, s.Verified, s.TotalStates, s.PeakStates)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

// kernel is the running kernel, as the file has it: 6.18.
func kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	release := unix.ByteSliceToString(u.Release[:])
	version := regexp.MustCompile(`^\d+\.\d+`).FindString(release)
	if version == "" {
		return "", fmt.Errorf("the kernel says that it is %q", release)
	}
	return version, nil
}

// recorded reads what a file has, by kernel.
func recorded(path string) (map[string]sizes, error) {
	kernels := make(map[string]sizes)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return kernels, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &kernels)
	}
	return kernels, err
}

func record(path string, all sizes) error {
	kernels, err := recorded(path)
	if err != nil {
		return err
	}
	version, err := kernel()
	if err != nil {
		return err
	}
	kernels[version] = all
	text, err := json.MarshalIndent(kernels, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
