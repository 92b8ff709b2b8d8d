// SPDX-License-Identifier: Apache-2.0

// Package plan is what the host asks a machine to run, and what the machine answers. The host writes
// a [Plan] into the initramfs; the machine's init writes one [Event] a line to its second serial port.
package plan

import "time"

// Path is where the plan lies in the initramfs.
const Path = "/plan.json"

// A Plan is one boot of one machine.
type Plan struct {
	Variant       string   // name of the variant, handed to the steps in REVSK_VM_VARIANT
	HybridCgroups bool     // version 1 controllers beside cgroup2 on /sys/fs/cgroup/unified
	NoBPFFS       bool     // leave /sys/fs/bpf unmounted
	HideBTF       bool     // put an empty file system over /sys/kernel/btf
	Modules       []string // paths in the initramfs, each after those it depends on
	Steps         []Step
}

// A Step is one program that is run to its end.
type Step struct {
	Name    string
	Test    bool // a test binary: its two outputs are one stream, as in go test
	Dir     string
	Argv    []string
	Env     []string
	Timeout time.Duration // after which its whole process group is killed
}

// An Event is one line of a machine's answer. Exactly one of its pointers is set.
type Event struct {
	Boot   *Boot   `json:"boot,omitempty"`   // the machine is set up
	Output *Output `json:"output,omitempty"` // a step has written something
	Exit   *Exit   `json:"exit,omitempty"`   // a step has ended
	Fatal  *string `json:"fatal,omitempty"`  // the machine cannot go on
	Done   *Done   `json:"done,omitempty"`   // every step has ended
}

// Boot describes the machine.
type Boot struct {
	Release string  // of uname
	Uptime  float64 // seconds from the start of the kernel
	Taint   uint64  // /proc/sys/kernel/tainted before the first step
}

// Output is part of what a step wrote: a line with its newline, or the rest at the end.
type Output struct {
	Step   string
	Stderr bool // never of a test, where the streams are one
	Text   string
}

// Exit is the end of a step.
type Exit struct {
	Step    string
	Code    int    // of exit, -1 when it was killed or never started
	Error   string // what went wrong besides the code, such as "killed after 5m30s"
	Seconds float64
}

// Done is the end of the plan.
type Done struct {
	Taint uint64 // /proc/sys/kernel/tainted after the last step
}
