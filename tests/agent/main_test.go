// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/cilium/pkg/datapath/config"
	"github.com/cilium/cilium/pkg/option"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

const (
	// Where the agent looks for its cgroup and pins its maps and links.
	cgroupRoot = "/run/cilium/cgroupv2"
	mapsDir    = "/sys/fs/bpf/tc/globals"
	linksDir   = "/sys/fs/bpf/cilium/socketlb/links/cgroup"
)

// configuration is what of the agent's is changed in the tests.
type configuration struct {
	ipv4, ipv6, peer, health, bindProtection bool
}

// usual is the agent's default.
var usual = configuration{ipv4: true, ipv6: true, peer: true, bindProtection: true}

var logger = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) {
	os.Exit(sandbox.TestMain(func() int {
		code, err := run(m)
		if err != nil {
			fmt.Fprintf(os.Stderr, "tests/agent: %v\n", err)
			return 1
		}
		return code
	}))
}

func run(m *testing.M) (int, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return 0, err
	}
	source, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	// The agent's directories, in the sandbox's mount namespace.
	if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
		return 0, fmt.Errorf("mounting /run: %w", err)
	}
	option.Config.StateDir = "/run/cilium/state"
	for _, dir := range []string{option.Config.StateDir, mapsDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return 0, err
		}
	}
	if err := os.Chdir(option.Config.StateDir); err != nil { // it writes what it sets below the working directory
		return 0, err
	}
	if err := compile(source, filepath.Join(option.Config.StateDir, "bpf_sock.o")); err != nil {
		return 0, err
	}
	if err := attachTo(sandbox.Cgroup()); err != nil {
		return 0, err
	}
	if err := startServers(); err != nil {
		return 0, fmt.Errorf("starting servers: %w", err)
	}
	return m.Run(), nil
}

// attachTo makes a cgroup the one that the agent attaches to.
func attachTo(cgroup string) error {
	if err := unix.Unmount(cgroupRoot, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.MkdirAll(cgroupRoot, 0o700); err != nil {
		return err
	}
	return unix.Mount(cgroup, cgroupRoot, "", unix.MS_BIND, "")
}

// compile makes the object that the agent loads, with the constants that this release of it sets.
func compile(source, object string) error {
	known, err := ebpf.LoadCollectionSpec(filepath.Join(source, "../../internal/reference/reference_bpfel.o"))
	if err != nil {
		return err
	}
	constants, err := config.Map(usual.constants())
	if err != nil {
		return err
	}
	var header strings.Builder
	for name, value := range constants {
		if known.Variables["__config_"+name] != nil {
			continue
		}
		size, err := sizeOf(value)
		if err != nil {
			return fmt.Errorf("constant %s: %w", name, err)
		}
		fmt.Fprintf(&header, "volatile const __u8 __config_%s[%d] __attribute__((aligned(8))) = {};\n", name, size)
	}
	dir := filepath.Dir(object)
	if err := os.WriteFile(filepath.Join(dir, "constants.h"), []byte(header.String()), 0o600); err != nil {
		return err
	}
	out, err := exec.Command("clang-19", "-O2", "-g", "-Wall", "-Werror", "-mcpu=v3", "--target=bpf", "-I"+dir,
		"-I"+filepath.Join(source, "../../bpf/lib"), "-c", filepath.Join(source, "object.c"), "-o", object).CombinedOutput()
	if err != nil {
		return fmt.Errorf("compiling the agent's object: %w\n%s", err, out)
	}
	return nil
}

// sizeOf is how many bytes a constant takes.
func sizeOf(value any) (int, error) {
	var b bytes.Buffer
	err := binary.Write(&b, binary.NativeEndian, value)
	return b.Len(), err
}
