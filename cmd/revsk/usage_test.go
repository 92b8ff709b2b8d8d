// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

func TestWrongUsageExitsWith2AndSaysWhatIsMeant(t *testing.T) {
	for line, message := range map[string]string{
		"statis":                              `unknown command "statis", did you mean status?: see revsk --help`,
		"nonsense":                            `unknown command "nonsense": see revsk --help`,
		"service ad":                          `unknown command "ad", did you mean add?: see revsk service --help`,
		"service":                             `service needs a command: add, delete or list: see revsk service --help`,
		"load now":                            `unknown command "now" for "revsk load": see revsk load --help`,
		"load --mode both":                    `invalid argument "both" for "--mode" flag: use one of storage, mirror, dual, legacy: see revsk load --help`,
		"load --nodeport-range 2-1":           `invalid argument "2-1" for "--nodeport-range" flag: expected FIRST-LAST, such as 30000-32767: see revsk load --help`,
		"load --legacy-entries -1":            `invalid argument "-1" for "--legacy-entries" flag: strconv.ParseUint: parsing "-1": invalid syntax: see revsk load --help`,
		"load --nonsense":                     `unknown flag: --nonsense: see revsk load --help`,
		"migrate --engine bpf":                `invalid argument "bpf" for "--engine" flag: use one of auto, iter, pidfd: see revsk migrate --help`,
		"migrate now":                         `unknown command "now" for "revsk migrate": see revsk migrate --help`,
		"rollback --engine iter":              `unknown flag: --engine: see revsk rollback --help`,
		"mode both":                           `invalid argument "both" for "revsk mode": see revsk mode --help`,
		"mode dual legacy":                    `accepts at most 1 arg(s), received 2: see revsk mode --help`,
		"status -o yaml":                      `invalid argument "yaml" for "-o, --output" flag: use one of table, wide, json: see revsk status --help`,
		"status -v --quiet":                   `if any flags in the group [verbose quiet] are set none of the others can be; [quiet verbose] were all set: see revsk status --help`,
		"service delete":                      `accepts 1 arg(s), received 0: see revsk service delete --help`,
		"terminate":                           `name the backends, or use --all-gone: see revsk terminate --help`,
		"terminate 1.2.3.4:5/tcp --all-gone":  `--all-gone finds the backends: do not name any: see revsk terminate --help`,
		"service add 1.2.3.4:5/tcp":           `at least one of the flags in the group [backend no-backend] is required: see revsk service add --help`,
		"service add --backend 1.2.3.4:5":     `accepts 1 arg(s), received 0: see revsk service add --help`,
		"service add 1.2.3.4:5/tcp --scope x": `invalid argument "x" for "--scope" flag: use one of external, internal: see revsk service add --help`,
	} {
		t.Run(line, func(t *testing.T) {
			r := runCommand(t, strings.Fields(line)...)
			require.Equal(t, "revsk: "+message, r.fails(exitUsage))
			require.Empty(t, r.stdout)
		})
	}
}

func TestWithoutACommandItHelps(t *testing.T) {
	require.Contains(t, runCommand(t).ok().stdout, "Available Commands:")
}

func TestExplainKnowsEveryErrorOfTheLibraries(t *testing.T) {
	for err, code := range map[error]int{
		loader.ErrNotLoaded: 1, loader.ErrLocked: 1, loader.ErrLayout: 1, loader.ErrNoBPFFS: 1,
		loader.ErrNoCgroup2: 1, loader.ErrPermission: 1, loader.ErrNotSupported: 4,
		loader.ErrForeignLink: 1, loader.ErrExclusive: 1, loader.ErrUnsafeMode: 1,

		lbmap.ErrLayout: 1, lbmap.ErrNoMap: 1, lbmap.ErrFull: 1, lbmap.ErrInUse: 1, lbmap.ErrNotFound: 1,
		lbmap.ErrSyntax: 2, lbmap.ErrFamily: 2, lbmap.ErrInvalid: 2,

		inspect.ErrNotSupported: 4, inspect.ErrIncomplete: 1, inspect.ErrNoMap: 1,
		inspect.ErrNoProof: 1, inspect.ErrNoBackends: 1, inspect.ErrCannotDestroy: 4,

		migrate.ErrUnresolved: 3, migrate.ErrEngine: 4, migrate.ErrNoHash: 1, migrate.ErrLayout: 1,
		migrate.ErrIncomplete: 1, migrate.ErrProcesses: 1, migrate.ErrDoesNotFit: 1,

		unix.EPERM: 1, unix.EACCES: 1, unix.ENOMEM: 1, errors.New("anything else"): 1,
	} {
		text, got := explain("revsk load", fmt.Errorf("doing something: %w", errors.Join(err, errors.New("and failing to undo it"))))
		require.Equal(t, code, got, "%v", err)
		require.NotContains(t, text, "\n")
		require.Contains(t, text, "; and failing to undo it")
	}
}

// errWriter is a file system that is full.
type errWriter struct{}

func (errWriter) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	for _, line := range []string{
		"--help", "version", "version -o json", "status", "status -o json", "mode", "list", "list -o json",
		"service list", "service list -o json", "features", "load --dry-run", "unload --dry-run",
		"migrate --dry-run", "migrate --dry-run -o json", "migrate", "migrate -o json", "rollback --dry-run", "rollback", "rollback -o json",
	} {
		var stderr strings.Builder
		code := run(context.Background(), &env{Stdout: errWriter{}, Stderr: &stderr}, p.args(strings.Fields(line)...))
		require.Equal(t, exitFailed, code, line)
		require.Contains(t, stderr.String(), "no space left on device", line)
	}
}

func TestVersion(t *testing.T) {
	require.Regexp(t, `^revsk \S+.* go1\.\d+`, runCommand(t, "version").ok().stdout)
	var v api.Version
	runCommand(t, "version", "-o", "json").ok().json(&v)
	require.Equal(t, "revsk/version/v1", v.Schema)
	require.NotEmpty(t, v.Version)
}

func TestVerboseSaysWhatIsDone(t *testing.T) {
	p := newPlace(t)
	r := p.load("-v")
	require.Equal(t, 0, r.code)
	require.Contains(t, r.stderr, `step="attach revsk_connect4"`)
}
