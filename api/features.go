// SPDX-License-Identifier: Apache-2.0

package api

import "github.com/revsk/revsk/selftest"

// Schemas of the documents of revsk features, revsk version and revsk selftest.
const (
	SelftestSchema = "revsk/selftest/v1"
	FeaturesSchema = "revsk/features/v1"
	VersionSchema  = "revsk/version/v1"
)

// Features is the JSON output of features.
type Features struct {
	Header
	Kernel   string    `json:"kernel"` // release, as of uname
	Features []Feature `json:"features"`
}

// Feature is what a kernel may have.
type Feature struct {
	Name      string `json:"name"`
	Available bool   `json:"available"`
	// Required: revsk load fails without it.
	Required  bool   `json:"required"`
	NeededFor string `json:"needed_for"`
	Since     string `json:"since"` // the first kernel, or the option of its configuration
	// Reason it is not available, if that is known.
	Reason string `json:"reason,omitempty"`
}

// Version is the JSON output of version.
type Version struct {
	Header
	Revision string `json:"revision,omitempty"` // of git, with "+" behind it if files were changed
	Go       string `json:"go"`
}

// Selftest is the JSON output of selftest.
type Selftest struct {
	Header
	Kernel string          `json:"kernel"` // release, as of uname
	Cases  []selftest.Case `json:"cases"`  // sorted by ID
}
