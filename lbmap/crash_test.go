// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// small is the size of maps that are made over and over again.
const small = 64

func smallTables(t *testing.T) *Tables {
	entries := make(map[string]uint32)
	for name := range new(Tables).fields() {
		entries[name] = small
	}
	return newTables(t, entries)
}

// interruption is a call that may be killed, among services that have others of its backends.
type interruption struct {
	name   string
	before []Service
	call   func(t *testing.T, w *Writer) error
}

func interruptions(t testing.TB) []interruption {
	service := func(f string, flags ServiceFlags, addrs ...string) Service {
		return Service{Frontend: frontend(t, f), Flags: flags, Backends: backends(addrs...)}
	}
	upsert := func(s Service) func(*testing.T, *Writer) error {
		return func(t *testing.T, w *Writer) error {
			_, err := w.Upsert(t.Context(), s)
			return err
		}
	}
	other := service("10.0.0.9:80/tcp", FlagAffinity, "10.1.0.9:80", "10.1.0.3:80")
	standing := []Service{other, service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")}
	moved := service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.2:80", "10.1.0.4:80")
	moved.RevNat = 77
	changed := service("10.0.0.1:80/tcp", 0, "10.1.0.1:80", "10.1.0.9:80")
	changed.Backends[0].State = BackendTerminating
	translated := service("10.0.0.1:80/tcp", FlagNAT46x64, "[fd01::1]:80", "10.1.0.1:80")
	return []interruption{
		{"add", []Service{other}, upsert(service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.1:80", "10.1.0.3:80"))},
		{"add without backends", []Service{other}, upsert(service("10.0.0.1:80/tcp", 0))},
		{"add of IPv6", []Service{other}, upsert(service("[fd00::1]:80/tcp", FlagAffinity, "[fd01::1]:80", "[fd01::2]:80"))},
		{"add to another port", standing, upsert(service("10.0.0.1:80/udp", 0, "10.1.0.1:80"))},
		{"other backends", standing, upsert(service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.4:80", "10.1.0.5:80", "10.1.0.6:80"))},
		{"more backends", standing, upsert(service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80", "10.1.0.5:80"))},
		{"fewer backends", standing, upsert(service("10.0.0.1:80/tcp", FlagAffinity, "10.1.0.3:80"))},
		{"no backends", standing, upsert(service("10.0.0.1:80/tcp", 0))},
		{"another index", standing, upsert(moved)},
		{"another state", standing, upsert(changed)},
		{"other families", standing, upsert(translated)},
		{"delete", standing, func(t *testing.T, w *Writer) error {
			_, err := w.Delete(t.Context(), frontend(t, "10.0.0.1:80/tcp"))
			if errors.Is(err, ErrNotFound) {
				return nil // the call that was killed had come that far
			}
			return err
		}},
		{"sync", standing, func(t *testing.T, w *Writer) error {
			_, err := w.Sync(t.Context(), []Service{
				moved, service("10.0.0.2:80/tcp", FlagAffinity, "10.1.0.1:80", "10.1.0.7:80"),
				service("[fd00::1]:80/tcp", 0, "[fd01::1]:80"),
			})
			return err
		}},
	}
}

// stopAfter makes a Writer stop before its n-th system call that writes, as if its process were killed.
func stopAfter(w *Writer, n int) {
	w.beforeWrite = func() error {
		if n--; n < 0 {
			return errStopped
		}
		return nil
	}
}

func TestCallThatIsKilledIsFinishedByTheSameCall(t *testing.T) {
	for _, c := range interruptions(t) {
		t.Run(c.name, func(t *testing.T) {
			tables := smallTables(t)
			prepare := func() {
				_, err := NewWriter(tables).Sync(t.Context(), nil)
				require.NoError(t, err)
				require.Empty(t, contents(t, tables))
				for _, s := range c.before {
					upsert(t, tables, s)
				}
			}
			prepare()
			steps := 0
			w := NewWriter(tables)
			w.beforeWrite = func() error {
				steps++
				return nil
			}
			require.NoError(t, c.call(t, w))
			require.Greater(t, steps, 1)
			want := contents(t, tables)

			for n := range steps {
				prepare()
				w := NewWriter(tables)
				stopAfter(w, n)
				require.ErrorIs(t, c.call(t, w), errStopped)
				walkAll(t, tables)
				require.NoError(t, c.call(t, NewWriter(tables)), "after %d of %d steps", n, steps)
				require.Equal(t, want, contents(t, tables), "after %d of %d steps", n, steps)
			}
		})
	}
}

// Whatever comes after a call that was killed, a deletion leaves nothing of it.
func TestServiceThatWasKilledHalfWayCanBeDeleted(t *testing.T) {
	for _, c := range interruptions(t) {
		if c.name == "sync" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			tables := smallTables(t)
			for n := 0; ; n++ {
				for _, s := range c.before {
					upsert(t, tables, s)
				}
				w := NewWriter(tables)
				stopAfter(w, n)
				err := c.call(t, w)
				for _, f := range []string{"10.0.0.1:80/tcp", "10.0.0.1:80/udp", "10.0.0.9:80/tcp", "[fd00::1]:80/tcp"} {
					if err := deleteService(t, tables, frontend(t, f)); err != nil {
						require.ErrorIs(t, err, ErrNotFound)
					}
				}
				require.Empty(t, contents(t, tables), "after %d steps", n)
				if err == nil {
					break
				}
			}
		})
	}
}

// walkAll checks that programs find all slots and backends of every service.
func walkAll(t *testing.T, tables *Tables) {
	t.Helper()
	services, err := tables.Services(t.Context())
	require.NoError(t, err)
	for _, s := range services {
		require.NoError(t, walk(tables, s.Frontend), "%v", s.Frontend)
	}
}

const (
	killedDir  = "LBMAP_TEST_KILLED_DIR"
	killedCall = "LBMAP_TEST_KILLED_CALL"
	killedStep = "LBMAP_TEST_KILLED_STEP"
)

// TestKilledProcess is what is killed in the test below.
func TestKilledProcess(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		return // on its own there is nothing to do
	}
	n, err := strconv.Atoi(os.Getenv(killedStep))
	require.NoError(t, err)
	w, err := OpenWriter(dir)
	require.NoError(t, err)
	w.beforeWrite = func() error {
		if n--; n < 0 {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	for _, c := range interruptions(t) {
		if c.name == os.Getenv(killedCall) {
			require.NoError(t, c.call(t, w))
		}
	}
}

func TestProcessThatIsKilledLeavesNoLockAndNothingElse(t *testing.T) {
	dir := bpffs(t)
	tables := smallTables(t)
	for name, m := range tables.fields() {
		require.NoError(t, (*m).Pin(filepath.Join(dir, name)))
	}
	// It stays open, and notices what the other process has done.
	w, err := OpenWriter(dir)
	require.NoError(t, err)
	defer w.Close()
	for _, c := range interruptions(t) {
		if c.name != "add" && c.name != "other backends" && c.name != "sync" {
			continue
		}
		for n := 0; n < 20; n += 3 {
			_, err := w.Sync(t.Context(), nil)
			require.NoError(t, err)
			for _, s := range c.before {
				_, err := w.Upsert(t.Context(), s)
				require.NoError(t, err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
			cmd.Env = append(os.Environ(), killedDir+"="+dir, killedCall+"="+c.name, killedStep+"="+strconv.Itoa(n))
			out, err := cmd.CombinedOutput()
			if err != nil {
				status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
				require.True(t, ok && status.Signal() == syscall.SIGKILL, "%v: %s", err, out)
			}
			require.NoError(t, c.call(t, w))
			assertCurrent(t, w, fmt.Sprintf("%s, killed after %d steps", c.name, n))
		}
	}
	_, err = w.Sync(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, contents(t, tables))
}

// assertCurrent checks that what a Writer knows of the maps is what they have.
func assertCurrent(t *testing.T, w *Writer, about string) {
	t.Helper()
	is, err := readState(t.Context(), w.tables)
	require.NoError(t, err)
	require.NotNil(t, w.state, about)
	known := w.state
	for _, s := range []*state{is, known} {
		maps.DeleteFunc(s.entries, func(_ string, n int) bool { return n == 0 })
	}
	assert.Equal(t, is.entries, known.entries, about)
	for f, r := range is.records {
		assert.True(t, r.equal(known.records[f]), "%s: %v", about, f)
	}
	assert.Len(t, known.records, len(is.records), about)
	for _, fields := range [][2]any{
		{is.backends, known.backends}, {is.revNats, known.revNats}, {is.matches, known.matches}, {is.ids, known.ids},
		{is.addresses, known.addresses}, {is.refs, known.refs}, {is.indexUses, known.indexUses},
	} {
		if !reflect.DeepEqual(fields[0], fields[1]) {
			assert.Equal(t, fmt.Sprint(fields[0]), fmt.Sprint(fields[1]), about)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}
