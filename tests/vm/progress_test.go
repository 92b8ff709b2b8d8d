// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/tests/vm/plan"
)

func TestASuiteThatTakesLongIsHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := testCollector(t)
		var heard []string
		c.log = func(format string, args ...any) { heard = append(heard, fmt.Sprintf(format, args...)) }
		say := func(text string) {
			require.NoError(t, c.event(t.Context(), plan.Event{Output: &plan.Output{Step: "tests/a", Text: text}}))
		}
		require.NoError(t, c.event(t.Context(), plan.Event{Boot: &plan.Boot{Release: "6.1.0"}}))
		say("\x16=== RUN   TestA\n\x16=== RUN   TestA/v4\n")
		time.Sleep(progressEvery - time.Second)
		say("\x16=== RUN   TestB\n")
		require.Empty(t, heard)
		time.Sleep(time.Second)
		say("what a test prints\n")
		require.Empty(t, heard)
		say("\x16=== RUN   TestC\n")
		say("\x16=== RUN   TestD\n")
		require.Equal(t, []string{"6.1: tests/a: 4 tests have begun in 1m0s, now TestC"}, heard)
	})
}
