// SPDX-License-Identifier: Apache-2.0

// Package hang has a test that never ends.
package hang

import "testing"

func TestThatHangs(t *testing.T) { select {} }
