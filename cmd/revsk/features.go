// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
)

func newFeaturesCommand(env *env) *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel can do, and what needs it",
		Long: `Tries every kernel feature that revsk uses, and shows whether it is available, what
needs it, and the first kernel that has it. Changes nothing on the machine. The
version of the kernel does not decide: distributions add features to older
kernels, and leave others out.

Exits with 4 if a feature is missing that revsk cannot work without.`,
		Example: `  revsk features
  revsk features -o json | jq -r '.features[] | select(.available|not) | .name'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			doc, err := probeFeatures(env)
			if err != nil {
				return err
			}
			if env.json() {
				err = env.printJSON(doc)
			} else {
				err = doc.print(env)
			}
			if err != nil {
				return err
			}
			return doc.err()
		},
	}
}

// featuresDocument is what features prints.
type featuresDocument struct{ api.Features }

func probeFeatures(env *env) (featuresDocument, error) {
	doc := featuresDocument{api.Features{Header: newHeader(api.FeaturesSchema), Kernel: kernelRelease()}}
	if err := unlimitMemory(); err != nil {
		return doc, err
	}
	for _, f := range features(env) {
		err := f.probe()
		if isPermission(err) {
			return doc, fmt.Errorf("probing for %s: %w: %w", f.name, loader.ErrPermission, err)
		}
		fd := api.Feature{
			Name: f.name, Available: err == nil, Required: f.required, NeededFor: f.neededFor, Since: f.since,
		}
		if err != nil && !errors.Is(err, errMissing) {
			fd.Reason = oneLine(err.Error())
		}
		doc.Features.Features = append(doc.Features.Features, fd)
	}
	return doc, nil
}

func (d featuresDocument) print(env *env) error {
	var t table
	t.row("FEATURE", "AVAILABLE", "NEEDED FOR", "SINCE")
	for _, f := range d.Features.Features {
		available := "yes"
		if !f.Available && f.Required {
			available = "no, required"
		} else if !f.Available {
			available = "no"
		}
		t.row(f.Name, available, f.NeededFor, f.Since)
	}
	if _, err := fmt.Fprintf(env.Stdout, "kernel %s\n\n", d.Kernel); err != nil {
		return err
	}
	if err := t.print(env.Stdout); err != nil {
		return err
	}
	for _, f := range d.Features.Features {
		if f.Reason != "" && !env.quiet {
			fmt.Fprintf(env.Stderr, "%s: %s\n", f.Name, f.Reason)
		}
	}
	return nil
}

func (d featuresDocument) err() error {
	for _, f := range d.Features.Features {
		if f.Required && !f.Available {
			if f.Reason != "" {
				return exitError{exitNotSupported, fmt.Errorf("revsk cannot run here: %s: %s", f.Name, f.Reason)}
			}
			return exitError{exitNotSupported, fmt.Errorf("revsk cannot run here: the kernel has no %s (since: %s)", f.Name, f.Since)}
		}
	}
	return nil
}
