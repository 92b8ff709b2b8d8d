// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf/rlimit"
)

// shared is the collection of every test that needs no other constants or map
// sizes. Loading it is most of what a test costs.
var shared *harness

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	before, err := openFiles()
	if err != nil {
		return fail("reading the open files: %v", err)
	}

	if err := rlimit.RemoveMemlock(); err != nil {
		return fail("these tests need root and a kernel that runs BPF programs: %v", err)
	}
	if shared, err = loadPrograms(options{}); err != nil {
		return fail("these tests need root and a kernel that runs BPF programs: %v", err)
	}
	code := m.Run()
	shared.close()

	after, err := openFiles()
	if err != nil {
		return fail("reading the open files: %v", err)
	}
	if len(after) != len(before) && code == 0 {
		return fail("the tests have left files open: before %v, after %v", before, after)
	}
	return code
}

func fail(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, "tests/prog: "+format+"\n", args...)
	return 1
}

// openFiles returns the BPF objects and sockets that the process has open.
func openFiles() ([]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		// The descriptor of the directory itself is gone by now.
		target, err := os.Readlink(dir + "/" + entry.Name())
		if err == nil && (strings.HasPrefix(target, "anon_inode:bpf") || strings.HasPrefix(target, "socket:")) {
			files = append(files, target)
		}
	}
	return files, nil
}
