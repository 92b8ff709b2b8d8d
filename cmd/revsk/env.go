// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/loader"
)

// The values of --output.
const (
	outputTable = "table"
	outputWide  = "wide" // a table that may be wider than usual
	outputJSON  = "json"
	outputLines = "jsonl" // of list only
)

// env is what a command gets from its surroundings, so that tests can run commands in this process.
type env struct {
	Stdout, Stderr io.Writer

	output         string // one of these
	quiet, verbose bool

	// Where things are; empty means the default.
	cgroup, bpffs, maps, pins string

	giveUp func(command string) error // the privileges that a command does not need; nil: it keeps them

	running bool // a command's own work has begun: its errors are not about its usage
}

// logger writes to Stderr what the libraries do: only problems, unless asked for more.
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

// openToInspect is open for commands that read the sockets with programs of their own. It says so if what sockets hold may
// be outdated.
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

// unlimitMemory lets this process make maps: kernels before 5.11 count them as locked memory.
func unlimitMemory() error {
	if err := rlimit.RemoveMemlock(); err != nil {
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

// stickyWriter remembers that a write failed, for output whose errors nobody looks at, and that there was
// one.
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
