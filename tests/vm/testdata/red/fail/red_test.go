// SPDX-License-Identifier: Apache-2.0

// Package fail has a test that fails, one that passes, and one that fails below.
package fail

import "testing"

func TestThatPasses(t *testing.T) {}

func TestThatFails(t *testing.T) { t.Fatal("as it should") }

func TestWithSubtests(t *testing.T) {
	t.Run("good", func(t *testing.T) {})
	t.Run("bad", func(t *testing.T) { t.Error("deep down") })
}
