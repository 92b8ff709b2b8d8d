// SPDX-License-Identifier: Apache-2.0

// Command bench measures what the hooks cost: an application's calls, memory, migrations. It prints tables
// and writes docs/benchmarks.json; docs/benchmarks.md says how to read them. Needs root.
//
// Machines are noisy, so nothing is measured by itself: each variant of the hooks (modes, and an empty
// program as the floor) is attached to a cgroup of its own, the process goes round the cgroups, and
// what is reported of two variants is the median of their ratios in each round.
package main
