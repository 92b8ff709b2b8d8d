// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/loader"
)

// The values of --output.
const (
	outputTable = "table"
	outputWide  = "wide" // a table that may be wider than usual
	outputJSON  = "json"
	outputLines = "jsonl" // of list only
)

// env is what a command uses of its process. Tests give it another one, and run commands in theirs.
type env struct {
	Stdout, Stderr io.Writer

	output         string // one of these
	quiet, verbose bool

	// Where things are; empty means the default.
	cgroup, bpffs, maps, pins string

	giveUp func(command string) error // gives up the capabilities that the command does not need; nil: keep all

	running bool // the arguments are valid and the work has begun: errors are not about usage
}

// logger writes the messages of the libraries to Stderr: warnings and errors; all with --verbose, errors only with --quiet.
func (e *env) logger() *slog.Logger {
	level := slog.LevelWarn
	if e.verbose {
		level = slog.LevelDebug
	} else if e.quiet {
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(e.Stderr, &slog.HandlerOptions{Level: level}))
}

func (e *env) mapsDir() string {
	if e.maps != "" {
		return e.maps
	}
	return filepath.Join(e.bpffs, "tc", "globals")
}

func (e *env) pinsDir() string {
	if e.pins != "" {
		return e.pins
	}
	return filepath.Join(e.bpffs, "revsk")
}

// options returns the loader's options for the places that the global flags name.
func (e *env) options() (loader.Options, error) {
	return loader.Options{
		Cgroup:  e.cgroup,
		MapsDir: e.mapsDir(),
		PinsDir: e.pinsDir(),
		Version: versionText(readVersion()),
		Logger:  e.logger(),
	}.WithDefaults()
}

// open opens the datapath that is loaded.
func (e *env) open() (*loader.Datapath, loader.Options, error) {
	opts, err := e.options()
	if err != nil {
		return nil, opts, err
	}
	dp, err := loader.Open(opts)
	return dp, opts, err
}

// openToInspect opens the datapath for commands that read sockets by BPF programs of their own. It prints a warning if what
// sockets hold may be outdated.
func (e *env) openToInspect() (*loader.Datapath, error) {
	dp, _, err := e.open()
	if err != nil {
		return nil, err
	}
	if err := unlimitMemory(); err != nil {
		return nil, errors.Join(err, dp.Close())
	}
	back, err := dp.TakenBack()
	if err != nil && !errors.Is(err, loader.ErrPermission) {
		return nil, errors.Join(err, dp.Close())
	}
	if back > 0 {
		fmt.Fprintf(e.Stderr, "another agent's programs run on %s: what sockets hold may be outdated until revsk load --takeover\n",
			count(int64(back), "hook", "hooks"))
	}
	return dp, nil
}

// unlimitMemory lifts the limit of locked memory, which kernels before 5.11 apply to maps.
func unlimitMemory() error {
	if err := probe.AllowMaps(); err != nil {
		return fmt.Errorf("%w: %w", loader.ErrPermission, err)
	}
	return nil
}

func (e *env) json() bool { return e.output == outputJSON || e.output == outputLines }

// printJSON writes a document, indented, to Stdout.
func (e *env) printJSON(doc any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

// stickyWriter remembers the first error, which some callers ignore, and whether anything was written.
type stickyWriter struct {
	io.Writer
	err     error
	written bool
}

func (w *stickyWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.written = w.written || n > 0
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}
