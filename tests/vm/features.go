// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// featuresSchema is the form of revsk features -o json that is understood here.
const featuresSchema = "revsk/features/v1"

// exitUnsupported is the command's exit code where revsk cannot run.
const exitUnsupported = 4

// A feature is what a kernel can or cannot do, as the command found by trying.
type feature struct {
	Name      string `json:"name"`
	Available bool   `json:"available"`
	NeededFor string `json:"needed_for"`
	Since     string `json:"since"` // the first kernel that has it
}

func parseFeatures(raw []byte) ([]feature, error) {
	var doc struct {
		Schema   string    `json:"schema"`
		Features []feature `json:"features"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("reading its answer: %w", err)
	}
	if doc.Schema != featuresSchema {
		return nil, fmt.Errorf("schema %q, not %q", doc.Schema, featuresSchema)
	}
	return doc.Features, nil
}

// missingFeatures names those that a kernel lacks though it is new enough.
func missingFeatures(features []feature, booted series) []string {
	var names []string
	for _, f := range features {
		since, err := parseSeries(strings.TrimPrefix(f.Since, "v"))
		if err == nil && !f.Available && !booted.less(since) {
			names = append(names, f.Name)
		}
	}
	return names
}
