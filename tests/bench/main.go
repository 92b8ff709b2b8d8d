// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/internal/sandbox"
)

var (
	jsonPath      = flag.String("json", "", "write the results to this file")
	tablesPath    = flag.String("tables", "", "write the results to this file, as Markdown")
	fromPath      = flag.String("from", "", "show the results in this file, written with -json, and measure nothing; -json and -tables write them again")
	rounds        = flag.Int("rounds", 60, "rounds of the sections that have many; the others have fewer in proportion")
	most          = flag.Int("sockets", 400000, "live sockets of a variant, at most; 400,000 take minutes and 2 GB")
	only          = flag.String("sections", "", "only these, separated by commas")
	scenes        = flag.String("scenes", "", "of the section hooks only these, separated by commas: connected, life, unconnected, stranger, ordinary")
	variants      = flag.String("variants", "", "only these, separated by semicolons; the floor is always there")
	check         = flag.Bool("check", false, "fail if a figure that must be reached is missed by more than the noise")
	referenceFile = flag.String("reference", "", "measure the programs in this compiled object of another agent (a node's bpf_sock.o) too")
	verbose       = flag.Bool("v", false, "print what migrate and rollback say of their steps")
	objects       = flag.String("objects", "", "measure these builds of the programs in mode storage too: NAME=FILE.o,...")
)

// section measures one kind of thing and adds the results to the report.
type section struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var sections = []section{
	{"hooks", benchHooks},
	{"peers", benchPeers},
	{"contention", benchContention},
	{"scale", benchScale},
	{"memory", benchMemory},
	{"optmem", benchOptmem},
	{"loss", benchLoss},
	{"passes", benchPasses},
	{"commands", benchCommands},
}

func sectionNames() []string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if role := os.Getenv(holderEnv); role != "" {
		if err := runHolder(role); err != nil {
			log.Fatal(err)
		}
		return
	}
	if os.Getenv(measuredEnv) != "" {
		if err := measure(); err != nil {
			log.Fatal(err)
		}
		return
	}
	flag.Parse()
	if *fromPath != "" {
		if err := show(*fromPath); err != nil {
			log.Fatal(err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if !sandbox.Inside() {
		code, err := sandbox.Run(ctx, os.Args[1:]...)
		if err != nil {
			log.Fatal(err)
		}
		os.Exit(code)
	}
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	wanted := strings.Split(*only, ",")
	if *only == "" {
		wanted = sectionNames()
	}
	for _, name := range wanted {
		if !slices.Contains(sectionNames(), name) {
			return fmt.Errorf("there is no section %q: there are %s", name, strings.Join(sectionNames(), ", "))
		}
	}
	if err := sandbox.Enter(); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	// What is measured is not to be interrupted; what is done to all sockets at once needs memory.
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(1 << 30)

	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()
	for _, s := range sections {
		if !slices.Contains(wanted, s.name) {
			continue
		}
		log.Printf("%s (load %s)", s.name, thisMachine().Load)
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		runtime.GC()
		// What there is, lest a section that fails take the others with it.
		if *jsonPath != "" {
			if err := b.report.write(*jsonPath); err != nil {
				return err
			}
		}
	}
	if err := b.report.show(); err != nil {
		return err
	}
	if *check {
		err = errors.Join(err, b.report.check())
	}
	return err
}

// show shows the results in a file.
func show(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	r := new(report)
	if err := json.Unmarshal(b, r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if *jsonPath != "" {
		if err := r.write(*jsonPath); err != nil {
			return err
		}
	}
	return r.show()
}
