// SPDX-License-Identifier: Apache-2.0

// Package panic has a test that takes process 1 down, and so the kernel.
package panic

import (
	"os"
	"syscall"
	"testing"
	"time"
)

func TestThatPanics(t *testing.T) {
	if os.Getenv("REVSK_VM") == "" {
		t.Fatal("only for a virtual machine")
	}
	// Process 1 is written in Go, whose runtime exits on this signal.
	if err := syscall.Kill(1, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}
