// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a change of the programs does to a rule's entry is to be noticed with it, and not by the next run of all rules.
func TestRulesAreBrokenWhereTheirTextsAre(t *testing.T) {
	names := make(map[string]bool)
	for _, r := range rules {
		b, err := os.ReadFile(filepath.Join("../../bpf", r.file))
		if err != nil {
			t.Error(err)
		} else if n := strings.Count(string(b), r.old); n != 1 {
			t.Errorf("%s: %q is in %s %d times, not once", r.name, r.old, r.file, n)
		}
		if r.test == "" || names[r.name] {
			t.Errorf("%s: names no test, or is there twice", r.name)
		}
		names[r.name] = true
	}
}
