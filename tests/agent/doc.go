// SPDX-License-Identifier: Apache-2.0

// Package agent tests revsk beside the Go code of a real agent: Cilium's package socketlb, which attaches, updates
// and detaches the programs of its socket load balancer. The programs are our own, under the names that it
// looks for.
//
// It is a module of its own, so that nobody else gets its dependencies. make test-agent runs it with two
// releases; cilium-1.19.mod is for the older one, with the build tag cilium119.
package agent
