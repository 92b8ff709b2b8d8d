// SPDX-License-Identifier: Apache-2.0

// Package clients runs real programs through services: what they do when a service has no backend for
// a moment, and when its backend is gone for good. It prints tables, and fails where a figure is wrong.
// `make test-clients` installs the programs and runs it. It is a module of its own, because of wireguard.
package clients
