// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

func newStatusCommand(env *env) *cobra.Command {
	var compare bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is attached, the maps and the counters",
		Long: `Shows the mode, the hooks, how full the maps are, and the problems.

-o wide also shows the program on every hook, all maps with their number of
entries, and the counters since the first load. "stored" is always the sum of
"released", both "dropped", "evicted", and the tuples that live sockets hold.

A hook is "off" if the feature that needs it is off. For a hook that was taken
over from another agent, -o wide shows the agent's program, which revsk unload
--hand-back puts back, and whether the agent has attached its own program again.

Lists problems, each with its code and the command that mends it, and explains
them on standard error. Exits with 3 if there is one. While another process is
changing the datapath, a problem may pass by itself.

--compare also reads every socket, and says how many of the tuples on sockets are
missing in the legacy maps. In mode mirror there should be none.`,
		Example: `  revsk status
  revsk status -o wide
  revsk status --compare
  revsk status -o json | jq .counters`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dp, opts, err := env.open()
			if err != nil {
				return err
			}
			defer dp.Close()
			status, err := readStatus(opts, dp)
			if err != nil {
				return err
			}
			if compare {
				if err := status.compare(cmd.Context(), dp); err != nil {
					return err
				}
			}
			if env.json() {
				err = env.printJSON(status)
			} else {
				err = status.print(env.Stdout, env.output == outputWide)
			}
			if err != nil {
				return err
			}
			return status.err()
		},
	}
	addChoice(cmd, cmd.Flags(), &env.output, []string{outputTable, outputWide, outputJSON}, "output", "o", "output format")
	cmd.Flags().BoolVar(&compare, "compare", false, "read every socket, and count the tuples that the legacy maps lack")
	return cmd
}

// statusDocument is what status prints.
type statusDocument struct{ api.Status }

// compare adds how many tuples of live sockets the legacy maps lack.
func (s *statusDocument) compare(ctx context.Context, dp *loader.Datapath) error {
	d, problem, err := dp.CompareHash(ctx)
	s.Hash = &d
	if problem != nil {
		s.Problems = append(s.Problems, *problem)
	}
	return err
}

func readStatus(opts loader.Options, dp *loader.Datapath) (statusDocument, error) {
	s, err := dp.Status()
	return statusDocument{api.Status{
		Header:     newHeader(api.StatusSchema),
		Kernel:     kernelRelease(),
		Cgroup:     opts.Cgroup,
		PinsDir:    opts.PinsDir,
		MapsDir:    opts.MapsDir,
		Complete:   s.Complete(),
		LiveTuples: s.Counters.Live(),
		Status:     s,
	}}, err
}

// err is an error with the problems and the commands that mend them; nil if there is none.
func (s statusDocument) err() error {
	if len(s.Problems) == 0 {
		return nil
	}
	var all []string
	for _, p := range s.Problems {
		switch {
		case p.Passes:
			p.Text += " (another process is changing the datapath)"
		case p.Mend != "":
			p.Text += ": run " + p.Mend
		}
		all = append(all, p.Text)
	}
	return exitError{exitPartly, errors.New(strings.Join(all, "; "))}
}

// print prints what fits on a screen, or everything if wide.
func (s statusDocument) print(w io.Writer, wide bool) error {
	var general, problems table
	general.row("mode", s.Mode)
	general.row("cgroup", s.Cgroup)
	general.row("kernel", s.Kernel)
	general.row("tuples on live sockets", s.LiveTuples)
	features := "defaults"
	if changed := s.Features.Differences(loader.DefaultFeatures()); len(changed) > 0 {
		features = strings.Join(changed, " ")
	}
	general.row("features", features)
	general.row("loaded by revsk", s.LoadedBy)
	if s.Hash != nil {
		general.row("legacy maps lack", fmt.Sprintf("%d of %d tuples, and have another service for %d", s.Hash.Missing, s.Hash.Tuples, s.Hash.Others))
	}

	problems.row("PROBLEM", "MENDED BY")
	for _, p := range s.Problems {
		problems.row(p.Code, p.Mend)
	}
	if wide {
		return printSections(w, general, problems, s.hooks(), s.maps(), s.counters())
	}
	general.row("hooks", s.hooksInALine())
	for _, row := range s.fill() {
		general.row(row...)
	}
	return printSections(w, general, problems)
}

// hooksInALine counts the hooks by their state, and names those with a problem.
func (s statusDocument) hooksInALine() string {
	var attached, takenOver, off int
	var back, missing []string
	for _, h := range s.Hooks {
		switch {
		case h.Attached:
			attached++
			if h.TakenOver != nil {
				takenOver++
			}
		case takenBack(h):
			back = append(back, hookName(h))
		case h.Optional:
			off++
		default:
			missing = append(missing, hookName(h))
		}
	}
	line := fmt.Sprintf("%d attached", attached)
	if takenOver > 0 {
		line += fmt.Sprintf(" (%d taken over)", takenOver)
	}
	if off > 0 {
		line += fmt.Sprintf(", %d off", off)
	}
	if len(missing) > 0 {
		line += ", missing: " + strings.Join(missing, " ")
	}
	if len(back) > 0 {
		line += ", taken back: " + strings.Join(back, " ")
	}
	return line
}

// fill has a row for each legacy map, and one for the fullest other map.
func (s statusDocument) fill() (rows [][]any) {
	percent := func(m loader.MapStatus) float64 { return 100 * float64(m.Entries) / float64(m.MaxEntries) }
	var fullest loader.MapStatus
	for _, m := range s.Maps {
		row := func(name string) []any {
			return []any{name, fmt.Sprintf("%.0f %% full (%d of %d)", percent(m), m.Entries, m.MaxEntries)}
		}
		switch {
		case m.Entries < 0:
		case m.Name == lbmap.ReverseSK4Map || m.Name == lbmap.ReverseSK6Map:
			rows = append(rows, row(m.Name))
		case fullest.Name == "" || percent(m) > percent(fullest):
			fullest = m
		}
	}
	if fullest.Name != "" {
		rows = append(rows, []any{"fullest other map", fmt.Sprintf("%s, %.0f %%", fullest.Name, percent(fullest))})
	}
	return rows
}

func (s statusDocument) hooks() (hooks table) {
	head := []any{"HOOK", "PROGRAM ID", "TAG", "LOADED"}
	if slices.ContainsFunc(s.Hooks, func(h loader.HookStatus) bool { return h.TakenOver != nil }) {
		head = append(head, "TAKEN OVER FROM")
	}
	hooks.row(head...)
	for _, h := range s.Hooks {
		hooks.row(hookRow(h)...)
	}
	return hooks
}

// largeTables is the prefix of the maps that tables are split over. They do not differ, so one row stands for all of them.
const largeTables = "revsk_tab_8k_"

func (s statusDocument) maps() (maps table) {
	maps.row("MAP", "TYPE", "ENTRIES", "SIZE", "PIN")
	folded := false
	for _, m := range s.Maps {
		entries, size := "", ""
		if m.Entries >= 0 {
			entries = fmt.Sprint(m.Entries)
		}
		if m.MaxEntries > 0 {
			size = fmt.Sprint(m.MaxEntries)
		}
		if strings.HasPrefix(m.Name, largeTables) {
			if folded {
				continue
			}
			folded = true
			m.Name, m.Pin = largeTables+"*", filepath.Join(filepath.Dir(m.Pin), largeTables+"*")
		}
		maps.row(m.Name, m.Type, entries, size, m.Pin)
	}
	return maps
}

func (s statusDocument) counters() (counters table) {
	counters.row("COUNTER", "VALUE")
	values := reflect.ValueOf(s.Counters)
	for field, value := range values.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		counters.row(strings.ReplaceAll(name, "_", " "), value.Uint())
	}
	return counters
}

// hookRow is a row of the table of hooks.
func hookRow(h loader.HookStatus) []any {
	row := []any{hookName(h)}
	switch {
	case h.Attached && h.LoadedAt.IsZero():
		row = append(row, h.ProgramID, h.Tag, "")
	case h.Attached:
		row = append(row, h.ProgramID, h.Tag, h.LoadedAt.Local().Format(time.DateTime))
	case takenBack(h):
		row = append(row, fmt.Sprintf("%d, not ours", h.TakenOver.BackID), "", "")
	case h.Optional:
		return append(row, "off")
	default:
		return append(row, "missing")
	}
	if h.TakenOver == nil {
		return row
	}
	held := "link"
	if !h.TakenOver.Link {
		held = "no link"
	}
	return append(row, fmt.Sprintf("%s (%d, %s)", h.TakenOver.Program, h.TakenOver.ProgramID, held))
}

func takenBack(h loader.HookStatus) bool { return h.TakenOver != nil && h.TakenOver.BackID != 0 }

func hookName(h loader.HookStatus) string { return strings.TrimPrefix(h.Program, "revsk_") }

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
