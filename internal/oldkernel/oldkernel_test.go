// SPDX-License-Identifier: Apache-2.0

package oldkernel

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

// spy notes how a test ends.
type spy struct {
	testing.TB
	failed, skipped string
}

func (s *spy) Helper()                          {}
func (s *spy) Skipf(format string, args ...any) { s.skipped = fmt.Sprintf(format, args...) }
func (s *spy) Fatalf(format string, args ...any) {
	if s.failed = fmt.Sprintf(format, args...); s.failed != "" {
		panic(s)
	}
}

func end(test func(testing.TB)) (s *spy) {
	s = new(spy)
	defer func() { _ = recover() }()
	test(s)
	return s
}

func TestSkipsOnOlderKernelsOnly(t *testing.T) {
	since := func(major, minor int) *spy {
		return end(func(t testing.TB) { Skip(t, major, minor, "magic") })
	}
	assert.Equal(t, &spy{skipped: "requires Linux 999.1: magic"}, since(999, 1))
	assert.Equal(t, &spy{failed: "missing, though Linux has it since 5.10: magic"}, since(5, 10))
	assert.True(t, Before(t, 999, 0))
	assert.False(t, Before(t, 5, 10), "supported is 5.10 and newer")
}

func TestSkipsWhereTheKernelHasNoneOnly(t *testing.T) {
	with := func(file string) *spy {
		return end(func(t testing.TB) { SkipWithout(t, "magic", Has(t, file)) })
	}
	assert.Equal(t, &spy{skipped: "requires magic"}, with("/proc/sys/net/magic"))
	assert.Equal(t, &spy{failed: "does not work, though this kernel has it: magic"}, with("/proc/sys/net"))
}
