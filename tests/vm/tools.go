// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// neededTools are the programs that booting a kernel needs, with their Debian packages.
var neededTools = []struct{ program, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"xz", "xz-utils"},
	{"dpkg", "dpkg"},
}

// ensureTools installs what is missing.
func ensureTools(ctx context.Context, log func(string, ...any)) error {
	var programs, packages []string
	for _, t := range neededTools {
		if _, err := exec.LookPath(t.program); err != nil {
			programs, packages = append(programs, t.program), append(packages, t.pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	missing := strings.Join(programs, ", ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("%s not found, and no apt-get to install it with: install QEMU for x86-64, xz and dpkg",
			missing)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s not found: run apt-get install %s as root", missing, strings.Join(packages, " "))
	}
	log("installing %s", strings.Join(packages, " "))
	env := append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	install := append([]string{"install", "-y", "-q", "--no-install-recommends"}, packages...)
	_, err := output(ctx, env, "apt-get", install...)
	if err == nil {
		return nil
	}
	// A fresh machine has no package lists, an old one has stale lists.
	if _, updateErr := output(ctx, env, "apt-get", "update", "-q"); updateErr != nil {
		return errors.Join(fmt.Errorf("installing %s: %w", missing, err), updateErr)
	}
	if _, err := output(ctx, env, "apt-get", install...); err != nil {
		return fmt.Errorf("installing %s: %w", missing, err)
	}
	return nil
}

// chooseAccel says how QEMU shall run the machine. A device /dev/kvm alone proves nothing: inside a
// virtual machine it may open, and even make machines, without a processor that could run them.
func chooseAccel(asked string) (string, error) {
	if asked != "auto" {
		if !slices.Contains([]string{"kvm", "tcg"}, asked) {
			return "", fmt.Errorf("-accel %s: there are auto, kvm and tcg", asked)
		}
		return asked, nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil
	}
	f.Close()
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "tcg", nil
	}
	if !hasVirtualisation(string(cpus)) {
		return "tcg", nil
	}
	return "kvm", nil
}

// hasVirtualisation looks for the processor's flags in the text of /proc/cpuinfo.
func hasVirtualisation(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if strings.HasPrefix(line, "flags") {
			flags := strings.Fields(line)
			return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
		}
	}
	return false
}
