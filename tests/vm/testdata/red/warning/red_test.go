// SPDX-License-Identifier: Apache-2.0

// Package warning has the kernel say what it says on a warning.
package warning

import (
	"os"
	"testing"
)

func TestThatWarns(t *testing.T) {
	if os.Getenv("REVSK_VM") == "" {
		t.Fatal("only for a virtual machine")
	}
	message := []byte("<4>WARNING: CPU: 0 PID: 1 at net/red.c:1 red+0x1/0x2\n")
	if err := os.WriteFile("/dev/kmsg", message, 0); err != nil {
		t.Fatal(err)
	}
}
