// SPDX-License-Identifier: Apache-2.0

// Package faults has the tests of what must not happen whatever fails, whoever is killed and whoever else is on the
// machine. They run the command line as it is installed. docs/reliability.md has what they do and their figures.
package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/internal/sandbox"
)

var (
	duration = flag.Duration("faults.duration", 15*time.Second, "for how long each of the tests makes faults")
	document = flag.String("faults.document", "", "write the figures into this file")

	onlyScenario = flag.String("faults.scenario", "", "make faults of this command only")

	seed = flag.Uint64("faults.seed", 1, "which faults are made where not all of them are")
)

// binaryEnv names the command line that was built for the tests.
const binaryEnv = "REVSK_FAULTS_BINARY"

// roles are what the test binary is where it is started as another process.
var roles = map[string]func() error{
	churners:   runWorker,
	lingerers:  runLingerer,
	neighbour:  runNeighbour,
	intruder:   runIntruder,
	named:      runNamed,
	hostile:    runHostile,
	forked:     func() error { return nil },
	surrounded: runSurrounded,
	limited:    runLimited,
}

func TestMain(m *testing.M) {
	if os.Getenv(launcherEnv) != "" {
		fmt.Fprintln(os.Stderr, launch())
		os.Exit(125)
	}
	if role := os.Getenv(workerEnv); role != "" {
		if err := roles[role](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if !sandbox.Inside() {
		dir, err := os.MkdirTemp("", "revsk-faults-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary := filepath.Join(dir, "revsk")
		build := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "../../cmd/revsk")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building revsk: %v\n%s", err, out)
			return 1
		}
		os.Setenv(binaryEnv, binary)
	}
	return sandbox.TestMain(func() int {
		if err := rlimit.RemoveMemlock(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := os.Mkdir(bpffs, 0o700); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := startServers(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	})
}
