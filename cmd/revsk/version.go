// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
)

func newVersionCommand(env *env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of revsk",
		Long:    "Shows the version of revsk, the revision that it was built from, and the Go version.",
		Example: `  revsk version -o json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if env.json() {
				v.Header = newHeader(api.VersionSchema)
				return env.printJSON(v)
			}
			_, err := fmt.Fprintln(env.Stdout, "revsk", versionText(v), v.Go)
			return err
		},
	}
}

// versionText is the version with the revision that it was built from.
func versionText(v api.Version) string {
	if v.Revision == "" {
		return v.Version
	}
	return v.Version + " (" + v.Revision + ")"
}

func readVersion() api.Version {
	v := api.Version{Header: api.Header{Version: "(devel)"}, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	changed := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				changed = "+"
			}
		}
	}
	if v.Revision != "" {
		v.Revision += changed
	}
	return v
}
