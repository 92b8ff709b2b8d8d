// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

var (
	stressDuration = flag.Duration("stress.duration", 60*time.Second, "how long the stress test runs")
	repeats        = flag.Int("repeats", 3, "how often tests of chance are repeated: kills, races")
	referenceFile  = flag.String("reference", "", "test the programs in this compiled object of another agent (a node's bpf_sock.o) in the place of mode legacy")
	scale          = flag.Int("scale", 100, "size of the large tests, in percent; for slow machines")
)

// scaled is n, or less of it on a machine that was said to be slow.
func scaled(n int) int { return max(1, n*min(*scale, 100)/100) }

func scaledDuration(d time.Duration) time.Duration { return d * time.Duration(min(*scale, 100)) / 100 }

// What all tests share.
var (
	datapath *loader.Datapath
	tables   *lbmap.Tables
	services *lbmap.Writer
	haveIPv6 bool
)

// Sizes that a test can fill.
const (
	legacyEntries = 32768
)

func options() loader.Options {
	f := usual()
	return loader.Options{
		Cgroup:           sandbox.Cgroup(),
		Features:         &f,
		LegacyMaxEntries: legacyEntries,
	}
}

func TestMain(m *testing.M) {
	if childRole() != "" {
		os.Exit(runChild())
	}
	if os.Getenv(stayEnv) != "" {
		os.Exit(runStayChild())
	}
	if workerRole() != "" {
		os.Exit(runWorker())
	}
	os.Exit(sandbox.TestMain(func() int {
		code, err := run(m)
		if err != nil {
			fmt.Fprintf(os.Stderr, "tests/kernel: %v\n", err)
			return 1
		}
		return code
	}))
}

func run(m *testing.M) (int, error) {
	flag.Parse()
	if *referenceFile != "" {
		var err error
		if referenceObject, err = reference.Open(*referenceFile); err != nil {
			return 0, err
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return 0, err
	}
	if err := setUpNetwork(); err != nil {
		return 0, fmt.Errorf("setting up the network: %w", err)
	}
	var err error
	if datapath, err = loader.Load(context.Background(), options()); err != nil {
		return 0, err
	}
	defer datapath.Close()
	full, err := options().WithDefaults()
	if err != nil {
		return 0, err
	}
	if referenceObject != nil {
		modes = []loader.Mode{legacy}
		if err := runReference(options()); err != nil {
			return 0, err
		}
	}
	if tables, err = lbmap.OpenTables(full.MapsDir); err != nil {
		return 0, err
	}
	defer tables.Close()
	if services, err = lbmap.OpenWriter(full.MapsDir); err != nil {
		return 0, err
	}
	defer services.Close()
	if err := startServers(); err != nil {
		return 0, fmt.Errorf("starting servers: %w", err)
	}
	return m.Run(), nil
}
