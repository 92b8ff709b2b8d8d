// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Writer writes services. It reads the maps once and then knows which backend
// ids and reverse-NAT indexes are free and which backends are in use, so that a
// call takes the same time among ten services and among ten thousand.
//
// A Writer is safe for use by several goroutines. Any number of Writers, in any
// number of processes, may write the maps that are pinned in a directory: they
// take turns (flock(2) on the directory), and each notices what others have
// written. A Writer notices programs that write the maps without one, such as a
// control plane, only where the two collide; see [ErrConflict].
//
// The hooks see either the old service or the new one, with all its backends:
// a call writes backends before the slots that refer to them, and slots before
// slot 0, which counts them; then it removes what is no longer used. After an
// error the maps are as before. If the process is killed at any moment, the same
// call for the same service finishes the work and leaves nothing behind.
type Writer struct {
	dir      string        // "" if the maps are not pinned
	turn     chan struct{} // holds a value while a call is at work
	patience patience

	// The fields below belong to the running call.
	tables  *Tables
	state   *state // nil: to be read
	version version
	closed  bool

	// beforeWrite is called before each system call that writes; for tests.
	beforeWrite func() error
}

// OpenWriter opens the maps pinned in a directory, usually
// /sys/fs/bpf/tc/globals, as [OpenTables] does.
//
// Returns an error wrapping [ErrNoMap] or [ErrLayout].
func OpenWriter(dir string) (*Writer, error) {
	w := &Writer{dir: dir, turn: make(chan struct{}, 1)}
	var err error
	if w.tables, err = OpenTables(dir); err != nil {
		return nil, err
	}
	return w, nil
}

// NewWriter returns a Writer for maps that are not pinned, or that nothing else
// writes: other Writers do not notice it. The maps still belong to the caller.
func NewWriter(t *Tables) *Writer { return &Writer{turn: make(chan struct{}, 1), tables: t} }

// LimitWait makes each call fail with an error wrapping [ErrLocked] which has waited so long for other processes that
// write. If waiting is not nil, a call tells it when it has waited for a second. Without LimitWait a call waits as long
// as its context lasts. Not to be called beside other calls.
func (w *Writer) LimitWait(limit time.Duration, waiting func()) {
	w.patience = patience{limit, waiting}
}

// Close waits for running calls, and closes the maps that [OpenWriter] has
// opened. Closing nil, or twice, does nothing.
func (w *Writer) Close() error {
	if w == nil {
		return nil
	}
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	if w.closed {
		return nil
	}
	w.closed = true
	w.state = nil
	if w.dir == "" {
		return nil
	}
	return w.tables.Close()
}

// attempts is how often a call starts again because a map has changed under it.
const attempts = 3

// do makes a plan and, with write, carries it out. It says whether there is anything to write.
//
// If prepare fails with a state that was read before, do reads the maps again and calls it once more.
func (w *Writer) do(ctx context.Context, write bool, prepare func(*plan) error) (changes bool, err error) {
	if w == nil {
		return false, ErrClosed
	}
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-w.turn }()
	if w.closed {
		return false, ErrClosed
	}
	if w.dir == "" {
		return w.doLocked(ctx, nil, write, prepare)
	}
	l, err := acquire(ctx, w.dir, w.patience)
	if err != nil {
		return false, err
	}
	defer l.release()
	return w.doLocked(ctx, l, write, prepare)
}

func (w *Writer) doLocked(ctx context.Context, l *lock, write bool, prepare func(*plan) error) (bool, error) {
	if l != nil {
		if err := w.reopen(l); err != nil {
			return false, err
		}
	}
	for attempt := 1; ; attempt++ {
		read := w.state == nil
		if read {
			var err error
			if w.state, err = readState(ctx, w.tables); err != nil {
				w.state = nil
				return false, err
			}
		}
		p := newPlan(w.state, w.tables)
		groups, err := p.prepare(prepare)
		if err != nil {
			p.revert()
			if read {
				return false, err
			}
			w.state = nil // what is read anew may allow it, or explain it
			continue
		}
		if !write {
			p.revert()
			return len(groups) > 0, nil
		}
		err = w.write(ctx, l, groups)
		if err == nil {
			p.release()
			return len(groups) > 0, nil
		}
		p.revert()
		if !errors.Is(err, errChanged) {
			return false, err
		}
		w.state = nil
		if attempt == attempts {
			return false, fmt.Errorf("%w: %w", ErrConflict, err)
		}
	}
}

// reopen opens the maps again if the pins may have changed, and marks them to be read again if entries may have
// changed.
func (w *Writer) reopen(l *lock) error {
	v, err := l.version()
	if err != nil || v == w.version {
		return err
	}
	tables, err := OpenTables(w.dir)
	if err != nil {
		return err
	}
	old := w.tables
	w.tables, w.state, w.version = tables, nil, v
	return old.Close()
}

// prepare returns what has to be written.
func (p *plan) prepare(prepare func(*plan) error) ([]group, error) {
	if err := prepare(p); err != nil {
		return nil, err
	}
	p.collect()
	groups, err := p.groups(true)
	if err == nil && p.fit(groups) != nil {
		// The room that the log takes may be what is missing.
		if groups, err = p.groups(false); err == nil {
			err = p.fit(groups)
		}
	}
	return groups, err
}

// errChanged: an entry has changed since it was read.
var errChanged = errors.New("an entry has changed meanwhile")

// write writes entries in their order. After an error the maps are as before.
func (w *Writer) write(ctx context.Context, l *lock, groups []group) error {
	if len(groups) == 0 {
		return nil
	}
	if l != nil {
		var err error
		if w.version, err = l.outdate(); err != nil {
			return err
		}
	}
	for i, g := range groups {
		n, err := w.writeGroup(ctx, g)
		if err == nil {
			continue
		}
		if errors.Is(err, errStopped) {
			return err
		}
		undone := w.undo(group{name: g.name, ops: g.ops[:n]})
		for _, g := range slices.Backward(groups[:i]) {
			undone = errors.Join(undone, w.undo(g))
		}
		if undone != nil {
			w.state = nil
		}
		return errors.Join(err, undone)
	}
	return nil
}

// errStopped is what a test makes beforeWrite return to stop a call as a kill would.
var errStopped = errors.New("stopped")

const (
	// fewest is the number of entries from which on one system call writes them all. For single entries
	// the kernel checks whether they exist.
	fewest = 16
	// most is how many entries one system call writes.
	most = 4096
)

// writeGroup returns how many entries are written.
func (w *Writer) writeGroup(ctx context.Context, g group) (done int, err error) {
	m := w.tables.named(g.name)
	for done < len(g.ops) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		if w.beforeWrite != nil {
			if err := w.beforeWrite(); err != nil {
				return done, err
			}
		}
		n := 0
		if len(g.ops) < fewest {
			if err = writeOne(m, &g.ops[done]); err == nil {
				n = 1
			}
		} else {
			n, err = writeMany(m, g.name, g.ops[done:min(done+most, len(g.ops))])
		}
		done += n
		if err != nil {
			return done, writeError(g.name, m, err)
		}
	}
	return done, nil
}

func writeOne(m *ebpf.Map, o *op) error {
	var err error
	switch {
	case o.new.n == 0:
		err = m.Delete(o.key.slice())
	case o.old.n == 0:
		err = m.Update(o.key.slice(), o.new.slice(), ebpf.UpdateNoExist)
	default:
		err = m.Update(o.key.slice(), o.new.slice(), ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyExist) || errors.Is(err, ebpf.ErrKeyNotExist) {
		return errChanged
	}
	return err
}

// writeMany returns how many entries are written.
func writeMany(m *ebpf.Map, name string, ops []op) (n int, err error) {
	in := bulkOf(name)
	keys := make([]byte, 0, len(ops)*int(m.KeySize()))
	values := make([]byte, 0, len(ops)*int(m.ValueSize()))
	for i := range ops {
		keys = append(keys, ops[i].key.slice()...)
		values = append(values, ops[i].new.slice()...)
	}
	if len(values) == 0 {
		n, err = in.remove(m, keys)
	} else {
		n, err = in.put(m, keys, values)
	}
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		err = errChanged
	case errors.Is(err, unix.ENOMEM) && n > 0:
		err = nil // the kernel fills up its reserve between system calls
	}
	return n, err
}

// undo restores the former entries, last change first. After an error it goes on, to restore as much as
// possible.
func (w *Writer) undo(g group) error {
	m := w.tables.named(g.name)
	var errs []error
	for i := range slices.Backward(g.ops) {
		o := &g.ops[i]
		var err error
		if o.old.n == 0 {
			if err = m.Delete(o.key.slice()); errors.Is(err, ebpf.ErrKeyNotExist) {
				err = nil
			}
		} else {
			err = m.Put(o.key.slice(), o.old.slice())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("undoing: %w", writeError(g.name, m, err)))
		}
	}
	return errors.Join(errs...)
}
