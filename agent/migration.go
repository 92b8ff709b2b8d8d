// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// mostUnresolved is the longest time between two migrations that cannot move everything.
const mostUnresolved = 10 * time.Minute

// refillDue tells whether the hash may lack something that sockets hold, in mode mirror: it has not taken something, or has
// fewer entries than there are tuples.
func (k *keeper) refillDue(s loader.Status) bool {
	now := time.Now()
	if k.nextRefill.IsZero() {
		k.nextRefill = now.Add(k.a.options().RefillEvery)
		k.notWritten = s.Counters.HashNotWritten
		return false
	}
	if now.Before(k.nextRefill) {
		return false
	}
	k.nextRefill = now.Add(k.a.options().RefillEvery)
	entries := int64(0)
	for _, m := range s.Maps {
		if isHash(m.Name) {
			entries += int64(m.Entries)
		}
	}
	return s.Counters.HashNotWritten != k.notWritten || entries < s.Counters.Live()
}

// migrate moves what is only in the hash onto the sockets, and in mode mirror puts back what the hash lacks.
func (k *keeper) migrate(ctx context.Context, s loader.Status) (more, well bool) {
	if time.Now().Before(k.nextMigrate) {
		return false, true
	}
	opts := k.a.options()
	opts.Loader.Logger = k.a.warnings()
	report, err := migrate.Run(ctx, migrate.Options{
		Loader: opts.Loader, To: opts.To, Logger: opts.Loader.Logger,
		Progress: func(migrate.Progress) { k.a.beat(loopDatapath) },
	})
	if ctx.Err() != nil {
		return false, false
	}
	if err == nil || errors.Is(err, migrate.ErrUnresolved) {
		k.notWritten = s.Counters.HashNotWritten
		k.nextRefill = time.Now().Add(opts.RefillEvery)
	} else {
		k.nextRefill = time.Now() // in the next turn, again
	}
	if report != nil {
		k.a.count(func(t *tally) { t.migration(report, err) })
		if err == nil || errors.Is(err, migrate.ErrUnresolved) {
			k.a.happen(Migrated{report, err})
		}
	}
	if errors.Is(err, migrate.ErrUnresolved) {
		k.unresolved = min(max(2*k.unresolved, opts.LookEvery), mostUnresolved)
		k.nextMigrate = time.Now().Add(k.unresolved)
		return false, true // they are where they were, and still read
	}
	if errors.Is(err, loader.ErrTakenBack) || errors.Is(err, loader.ErrStale) {
		return false, false // the owner has been faster: the next turn sees it
	}
	if !k.a.outcome(stepMigrate, err) {
		return false, false
	}
	// A hash that is full of live sockets stays so, until there are fewer.
	k.unresolved, k.nextMigrate = 0, time.Now().Add(opts.LookEvery)
	if s.Mode == loader.ModeDual {
		k.nextMigrate = time.Time{}
	}
	return true, true
}

// warnings is a logger for the libraries: what they do is an event of the agent's.
func (a *Agent) warnings() *slog.Logger {
	return slog.New(atLeast{a.options().Logger.Handler(), slog.LevelWarn})
}

// atLeast is a handler for records of a level and above.
type atLeast struct {
	slog.Handler
	level slog.Level
}

func (h atLeast) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level && h.Handler.Enabled(ctx, level)
}

func (h atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(attrs), h.level}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
