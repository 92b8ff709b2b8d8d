// SPDX-License-Identifier: Apache-2.0

package kclock

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const childEnv = "REVSK_KCLOCK_CHILD"

func TestMain(m *testing.M) {
	if err := rlimit.RemoveMemlock(); err != nil {
		panic(err)
	}
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	for _, clock := range clocks {
		now, err := clock.read()
		if err != nil {
			panic(err)
		}
		fmt.Println(now)
	}
}

var clocks = []struct {
	id   int32
	read func() (time.Duration, error)
}{{unix.CLOCK_MONOTONIC, Monotonic}, {unix.CLOCK_BOOTTIME, Boot}}

func clock(t *testing.T, id int32) time.Duration {
	t.Helper()
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(id, &ts))
	return time.Duration(ts.Nano())
}

func TestTheyAreTheClocksOfTheKernel(t *testing.T) {
	for _, c := range clocks {
		now, err := c.read()
		require.NoError(t, err)
		assert.InDelta(t, clock(t, c.id), now, float64(time.Minute))
	}
}

func TestATimeNamespaceDoesNotChangeThem(t *testing.T) {
	cmd := exec.Command("unshare", "--fork", "--time", "--monotonic", "1000000", "--boottime", "2000000", os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	lines := strings.Fields(string(out))
	require.Len(t, lines, len(clocks))
	for i, c := range clocks {
		now, err := time.ParseDuration(lines[i])
		require.NoError(t, err)
		assert.InDelta(t, clock(t, c.id), now, float64(time.Minute))
	}
}
