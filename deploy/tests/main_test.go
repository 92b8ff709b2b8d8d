// SPDX-License-Identifier: Apache-2.0

package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/revsk/revsk/internal/sandbox"
)

func cgroup() string { return sandbox.Cgroup() }

// TestMain builds the command, and runs the tests in a sandbox.
func TestMain(m *testing.M) {
	os.Exit(sandbox.TestMain(func() int {
		dir, err := os.MkdirTemp("", "revsk-deploy-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		revsk = filepath.Join(dir, "revsk")
		build := exec.Command("go", "build", "-trimpath", "-o", revsk, "./cmd/revsk")
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building revsk: %v\n%s", err, text)
			return 1
		}
		return m.Run()
	}))
}
