// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"

	"github.com/revsk/revsk/internal/sockdiag"
)

// confirmAttempts is how often a socket is visited again that one look has found and another has not.
const confirmAttempts = 3

// confirm makes sure that nothing counts as leaked by one look alone. By another way than the sockets were
// visited it looks for those of leaked entries; and for those that could not be reached, which may have been closed
// since. Only what neither way finds is leaked, or has ended. What one of them finds is visited again.
func (m *migration) confirm(ctx context.Context) error {
	leaked, unknown := withFate(m.entries, FateLeaked), withFate(m.entries, FateUnknown)
	for range confirmAttempts {
		found, err := m.found(ctx, leaked)
		if err != nil {
			return err
		}
		closed, err := m.notFound(ctx, unknown)
		if err != nil {
			return err
		}
		if len(found) == 0 && len(closed) == 0 {
			return nil
		}
		if err := m.sweeper.sweep(ctx, append(found, closed...)); err != nil {
			return err
		}
		for _, e := range withFate(closed, FateLeaked) {
			e.fate = FateEnded
		}
		leaked, unknown = withFate(found, FateLeaked), withFate(found, FateUnknown)
	}
	for _, e := range leaked {
		e.fate, e.why = FateUnknown, "its socket is found by one of two ways only"
	}
	return nil
}

func withFate(entries []*entry, fate Fate) []*entry {
	var some []*entry
	for _, e := range entries {
		if e.fate == fate {
			some = append(some, e)
		}
	}
	return some
}

// found returns the entries that the other way does not call leaked.
func (m *migration) found(ctx context.Context, entries []*entry) ([]*entry, error) {
	return m.lookAgain(ctx, entries, func(other Fate) bool { return other != FateLeaked })
}

// notFound returns the entries that the other way calls leaked.
func (m *migration) notFound(ctx context.Context, entries []*entry) ([]*entry, error) {
	return m.lookAgain(ctx, entries, func(other Fate) bool { return other == FateLeaked })
}

// lookAgain returns the entries of which the other way says what is asked for.
func (m *migration) lookAgain(ctx context.Context, entries []*entry, wanted func(Fate) bool) ([]*entry, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	looks := make([]*entry, len(entries))
	for i, e := range entries {
		looks[i] = &entry{key: e.key, value: e.value, stale: e.stale, origin: e}
	}
	if err := m.sweepOtherWay(ctx, looks); err != nil {
		return nil, err
	}
	var some []*entry
	for _, look := range looks {
		if wanted(look.fate) {
			some = append(some, look.origin)
		}
	}
	return some, nil
}

// sweepOtherWay says what becomes of entries by an engine that changes nothing: the one that does not visit
// the sockets, if the kernel has it.
func (m *migration) sweepOtherWay(ctx context.Context, entries []*entry) error {
	if m.sweeper.engine == EnginePidfd {
		return m.sweeper.reader(EngineIter).sweep(ctx, entries) // or EnginePidfd, where that is refused
	}
	err := m.sweeper.reader(EnginePidfd).sweep(ctx, entries)
	if errors.Is(err, sockdiag.ErrNotSupported) {
		err = m.sweeper.reader(EngineIter).sweep(ctx, entries)
	}
	return err
}
