// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/internal/sandbox"
)

// These tests load programs, attach them to a cgroup of their own and open sockets in it.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		holdSocket()
	}
	if text := os.Getenv(manyEnv); text != "" {
		holdMany(text)
	}
	os.Exit(sandbox.TestMain(func() int { return run(m) }))
}

func run(m *testing.M) int {
	if err := rlimit.RemoveMemlock(); err != nil {
		fmt.Fprintln(os.Stderr, "the tests of package inspect need memory for BPF maps:", err)
		return 1
	}
	before := leftOpen()
	code := m.Run()
	if hooks, err := loadHooks(); err == nil {
		hooks.coll.Close()
	}
	for _, f := range leftOpen() {
		if !slices.Contains(before, f) {
			fmt.Fprintln(os.Stderr, "left open by the tests:", f)
			code = 1
		}
	}
	return code
}

// leftOpen returns what this process has open of the kind that the tests open.
func leftOpen() []string {
	var files []string
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		// The runtime of Go has an event poll of its own.
		if strings.HasPrefix(target, "socket:") ||
			strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "anon_inode:[event") {
			files = append(files, target)
		}
	}
	return files
}
