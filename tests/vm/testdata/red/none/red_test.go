// SPDX-License-Identifier: Apache-2.0

// Package none has a test file and no test.
package none
