// SPDX-License-Identifier: Apache-2.0

// Package docs has the tests of the documentation: what it names exists, and every page is in the index.
package docs
