// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/revsk/revsk/revnat"
)

// Defaults of net.core.optmem_max in bytes: before Linux 6.12, where it is one for all network namespaces,
// and since, where each has its own.
const (
	optmemMaxBefore = 20480
	optmemMaxOfEach = 131072
)

// tableLimits says how far the table of a socket may grow: see [revnat.TableLimits]. The setting that this
// process sees counts, though no more of it than network namespaces have that nobody has changed. Without
// one this is an older kernel, and not its first network namespace.
func tableLimits(log *slog.Logger) (classes, maps uint32) {
	optmem := optmemMaxBefore
	if b, err := os.ReadFile("/proc/sys/net/core/optmem_max"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			optmem = min(n, optmemMaxOfEach)
		}
	}
	c, m := revnat.TableLimits(optmem)
	log.Debug("how far tables may grow", "optmem_max", optmem, "class", c, "maps", m)
	return uint32(c), uint32(m)
}
