// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/netns"
)

// visitor visits the sockets of entries, and has programs move the entries onto them.
type visitor struct {
	engine    Engine // not EngineAuto
	mayChange bool   // of the engine, if the kernel refuses it or a process keeps a socket locked
	log       *slog.Logger
	cgroup    string
	datapath  map[string]*ebpf.Map
	progress  func(done, total int)

	programs *programs // nil: not loaded yet
	passes   int
}

// load loads the programs, with room for so many entries at once: which the kernel may refuse, before anything is
// changed.
func (s *visitor) load(room int) (err error) {
	s.programs, err = loadPrograms(s.engine, s.datapath, room)
	if err != nil && refused(err) && s.engine == EngineIter && s.mayChange {
		s.engine = EnginePidfd
		s.programs, err = loadPrograms(s.engine, s.datapath, room)
	}
	if err != nil {
		return engineError(s.engine, err)
	}
	return nil
}

func (s *visitor) close() {
	if s.programs != nil {
		s.programs.close()
	}
}

// visitRoom is for how many entries programs are loaded at first.
const visitRoom = 1 << 17

// visit visits the sockets of the entries, until another pass finds nothing new, and sets their results.
func (s *visitor) visit(ctx context.Context, entries []*entry) error {
	if len(entries) > s.programs.room() {
		s.close()
		if err := s.load(len(entries)); err != nil {
			return err
		}
	}
	p := s.programs
	if err := p.take(entries); err != nil {
		return err
	}
	stop := sync.OnceFunc(s.watch(p))
	defer stop()
	for last := len(entries) + 1; ; {
		err := s.pass(ctx, p)
		if errors.Is(err, blocked.ErrLocked) && s.engine == EngineIter && s.mayChange {
			stop()
			return s.visitOtherwise(ctx, entries, err)
		}
		if err != nil {
			return err
		}
		s.passes++
		open, err := p.judge()
		if err != nil || open == 0 || open == last {
			return err
		}
		last = open
		// Between two passes: what is received after this look the next one finds in a file table.
		if err := p.seeQueued(ctx); err != nil {
			return fmt.Errorf("looking for sockets in flight: %w", err)
		}
	}
}

// visitOtherwise visits the sockets by descriptor, where an iterator waits for one that a process keeps locked.
func (s *visitor) visitOtherwise(ctx context.Context, entries []*entry, locked error) error {
	s.log.Warn("visiting sockets by descriptor from here on", "error", locked)
	// What the iterator meets when it goes on has no entries any more.
	if err := s.programs.takeBack(); err != nil {
		return err
	}
	room := s.programs.room()
	s.close()
	s.engine = EnginePidfd
	if err := s.load(room); err != nil {
		return err
	}
	return s.visit(ctx, entries)
}

// watch reports progress until it is stopped.
func (s *visitor) watch(p *programs) (stop func()) {
	collection := p.iterators
	if collection == nil {
		collection = p.descriptors
	}
	judged := collection.Variables[iter.FillVarRevskJudged]
	if s.progress == nil || judged == nil {
		return func() {}
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	report := func() {
		var n uint64
		if judged.Get(&n) == nil {
			s.progress(int(n), len(p.entries))
		}
	}
	go func() {
		defer close(stopped)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				report()
				return
			case <-tick.C:
				report()
			}
		}
	}()
	return func() {
		close(done)
		<-stopped
	}
}

// pass visits every socket that the engine can reach once.
func (s *visitor) pass(ctx context.Context, p *programs) error {
	if s.engine == EnginePidfd {
		return s.passByDescriptor(ctx, p)
	}
	all := false
	enough := func() (_ bool, err error) {
		all, err = p.allJudged()
		return all, err
	}
	err := runInNamespaces(ctx, enough, p.iterators.Programs[iter.FillProgFillTcp], p.iterators.Programs[iter.FillProgFillUdp])
	if err != nil {
		return fmt.Errorf("visiting the sockets of network namespaces: %w", err)
	}
	if all {
		return nil
	}
	if _, err := bpfiter.RunProgram(ctx, p.iterators.Programs[iter.FillProgFindFiles], nil); err != nil {
		return fmt.Errorf("visiting the sockets of processes: %w", err)
	}
	return s.visitFilesOnly(ctx, p)
}

// runInNamespaces runs iterators over the protocols' tables, in each network namespace until enough says so.
func runInNamespaces(ctx context.Context, enough func() (bool, error), programs ...*ebpf.Program) error {
	var iterators []*link.Iter
	for _, program := range programs {
		it, err := bpfiter.Attach(program, nil)
		if err != nil {
			return err
		}
		defer it.Close()
		iterators = append(iterators, it)
	}
	return eachNamespace(ctx, enough, func() error {
		for _, it := range iterators {
			if err := bpfiter.Visit(ctx, it); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachNamespace calls f on a thread that is in the namespace, for each network namespace until enough says so.
func eachNamespace(ctx context.Context, enough func() (bool, error), f func() error) error {
	for ns, err := range netns.Each(ctx) {
		if err != nil {
			return err
		}
		if err := ns.Do(f); err != nil {
			return fmt.Errorf("network namespace %d: %w", ns.Inode, err)
		}
		if done, err := enough(); err != nil || done {
			return err
		}
	}
	return nil
}

// never is enough.
func never() (bool, error) { return false, nil }

// visitFilesOnly visits by descriptor the sockets that are in a file table but in no protocol table, and those
// whose table has to grow.
func (s *visitor) visitFilesOnly(ctx context.Context, p *programs) error {
	var met uint64
	if err := p.iterators.Variables[iter.FillVarRevskFilesOnly].Get(&met); err != nil {
		return engineError(s.engine, fmt.Errorf("reading whether there are sockets in no table: %w", err))
	}
	if met == 0 {
		return nil
	}
	if err := p.readStates(); err != nil {
		return err
	}
	var d *descriptors
	for number, cookie := range p.cookies {
		socket := &p.states[number]
		if !isLeftToDescriptors(socket) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if d == nil {
			d = newDescriptors(p, s.cgroup)
			defer d.close()
		}
		fd, err := d.get(int(socket.Pid), int(socket.Fd))
		if err != nil {
			continue // closed since, or not ours to see
		}
		err = d.visitIf(fd, cookie, socket)
		unix.Close(fd)
		if err != nil && !errors.Is(err, errNotReached) {
			return err
		}
	}
	return nil
}

func isLeftToDescriptors(s *iter.FillRevskImportSocket) bool {
	const file = iter.FillRevskSeenREVSK_SEEN_FILE
	seen := iter.FillRevskSeen(s.Seen)
	return seen == file || seen&file != 0 && seen&iter.FillRevskSeenREVSK_SEEN_WITHOUT_ROOM != 0
}
