// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"slices"

	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/internal/sockdiag"
)

// confirmAttempts is how often a socket is visited again that one look has found and another has not.
const confirmAttempts = 3

// confirm makes sure that nothing counts as leaked by one look alone. By another way than the sockets were
// visited it looks for those of leaked entries; and for those that could not be reached, which may have been closed
// since. Only what neither way finds is leaked, or has ended. What one of them finds is visited again.
func (m *migration) confirm(ctx context.Context) error {
	leaked, unknown := withResult(m.entries, ResultLeaked), withResult(m.entries, ResultUnknown, ResultNoRoom)
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
		if err := m.visitor.visit(ctx, append(found, closed...)); err != nil {
			return err
		}
		for _, e := range withResult(closed, ResultLeaked) {
			e.result = ResultEnded
		}
		leaked, unknown = withResult(found, ResultLeaked), withResult(found, ResultUnknown, ResultNoRoom)
	}
	for _, e := range leaked {
		e.result, e.why = ResultUnknown, "its socket is found by one of two ways only"
	}
	return nil
}

func withResult(entries []*entry, wanted ...Result) []*entry {
	var some []*entry
	for _, e := range entries {
		if slices.Contains(wanted, e.result) {
			some = append(some, e)
		}
	}
	return some
}

// found returns the entries that the other way does not call leaked.
func (m *migration) found(ctx context.Context, entries []*entry) ([]*entry, error) {
	return m.lookAgain(ctx, entries, func(other Result) bool { return other != ResultLeaked })
}

// notFound returns the entries that the other way calls leaked.
func (m *migration) notFound(ctx context.Context, entries []*entry) ([]*entry, error) {
	return m.lookAgain(ctx, entries, func(other Result) bool { return other == ResultLeaked })
}

// lookAgain returns the entries of which the other way says what is asked for.
func (m *migration) lookAgain(ctx context.Context, entries []*entry, wanted func(Result) bool) ([]*entry, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	looks := make([]*entry, len(entries))
	for i, e := range entries {
		looks[i] = &entry{key: e.key, value: e.value, stale: e.stale, origin: e}
	}
	err := m.lookTheOtherWay(ctx, looks)
	if errors.Is(err, blocked.ErrLocked) {
		// What cannot be looked for has not been found, and is not known to be gone.
		for _, look := range looks {
			look.result = ResultUnknown
		}
	} else if err != nil {
		return nil, err
	}
	var some []*entry
	for _, look := range looks {
		if wanted(look.result) {
			some = append(some, look.origin)
		}
	}
	return some, nil
}

// lookTheOtherWay says what becomes of entries by the engine that does not visit the sockets, if the kernel has it.
func (m *migration) lookTheOtherWay(ctx context.Context, entries []*entry) error {
	if m.visitor.engine == EnginePidfd {
		return (&looker{engine: EngineIter}).look(ctx, entries) // or EnginePidfd, where that is refused
	}
	err := (&looker{engine: EnginePidfd}).look(ctx, entries)
	if errors.Is(err, sockdiag.ErrNotSupported) {
		err = (&looker{engine: EngineIter}).look(ctx, entries)
	}
	return err
}
