// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"

	"github.com/revsk/revsk/loader"
)

// toMirror ends in mode mirror: each entry of the hash is on its socket, and the hash has what sockets hold.
func (m *migration) toMirror(ctx context.Context, mode loader.Mode) error {
	hash := &rollback{worker: m.worker, written: make(map[hashKey]written)}
	defer func() { m.filled = hash.report }()
	if err := m.do(stepList, func() error { return hash.listFits(ctx) }); err != nil {
		return err
	}
	if mode == loader.ModeStorage {
		// The hooks have not looked after the hash: what sockets hold is the truth.
		err := m.do(stepOutdated, func() error { return hash.deleteOutdated(ctx) })
		m.deleted = hash.report.Outdated
		if err != nil {
			return err
		}
		if err := m.switchTo(stepDual, loader.ModeDual); err != nil {
			return err
		}
	} else {
		if err := m.moveAll(ctx); err != nil {
			return err
		}
		if err := m.do(stepDelete, func() error { return m.deleteEntries(ctx) }); err != nil {
			return err
		}
	}
	if err := m.do(stepWrite, func() error { return hash.reconcile(ctx) }); err != nil {
		return err
	}
	return m.switchTo(stepMirror, loader.ModeMirror)
}
