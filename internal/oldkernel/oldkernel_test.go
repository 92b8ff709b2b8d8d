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

func end(major, minor int) (s *spy) {
	s = new(spy)
	defer func() { _ = recover() }()
	Skip(s, major, minor, "magic")
	return s
}

func TestSkipsOnOlderKernelsOnly(t *testing.T) {
	assert.Equal(t, &spy{skipped: "requires Linux 999.1: magic"}, end(999, 1))
	assert.Equal(t, &spy{failed: "missing, though Linux has it since 5.10: magic"}, end(5, 10))
	assert.True(t, Before(t, 999, 0))
	assert.False(t, Before(t, 5, 10), "supported is 5.10 and newer")
}
