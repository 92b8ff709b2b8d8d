// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

var revskPath string

func TestMain(m *testing.M) {
	os.Exit(sandbox.TestMain(func() int {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "tests/clients: %v\n", err)
			return 1
		}
		code := m.Run()
		printTables()
		return code
	}))
}

func setUp() (err error) {
	if revskPath, err = filepath.Abs("../../bin/revsk"); err != nil {
		return err
	}
	// Named network namespaces of the sandbox's own.
	if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	if err := setUpNetwork(); err != nil {
		return err
	}
	return output(revsk("load", "--mode", "storage"))
}

// revsk is the command, in the sandbox.
func revsk(args ...string) *exec.Cmd {
	return exec.Command(revskPath, append([]string{"--cgroup", sandbox.Cgroup()}, args...)...)
}

// output runs a command, whose error has what it has printed.
func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func setMode(t *testing.T, mode string) {
	t.Helper()
	require.NoError(t, output(revsk("mode", mode, "--force")))
}

// setService writes a service with this backend, or without one.
func setService(t *testing.T, service, backend string) {
	t.Helper()
	args := []string{"service", "add", service, "--no-backend"}
	if backend != "" {
		args = []string{"service", "add", service, "--backend", backend}
	}
	require.NoError(t, output(revsk(args...)))
}

// setServices is setService for several.
func setServices(t *testing.T, services []string, backend string) {
	t.Helper()
	for _, s := range services {
		_, port, _ := strings.Cut(strings.Split(s, "/")[0], ":")
		b := ""
		if backend != "" {
			b = backend + ":" + port
		}
		setService(t, s, b)
	}
}

// table is printed after the tests.
type table struct {
	title string
	rows  [][]string
}

var tables []*table

func newTable(title string, columns ...string) *table {
	t := &table{title: title, rows: [][]string{columns}}
	tables = append(tables, t)
	return t
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func printTables() {
	for _, t := range tables {
		fmt.Printf("\n%s\n\n", t.title)
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, row := range t.rows {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		w.Flush()
	}
	fmt.Println()
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
