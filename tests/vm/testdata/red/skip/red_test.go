// SPDX-License-Identifier: Apache-2.0

// Package skip has tests that skip, with and without a right to.
package skip

import "testing"

func TestThatMay(t *testing.T) { t.Skip("requires Linux 99.0") }

func TestThatIsTooLate(t *testing.T) { t.Skip("requires Linux 5.4") }

func TestThatMustNot(t *testing.T) { t.Skip("not today") }
