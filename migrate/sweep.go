// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/netns"
)

// sweeper visits the sockets of entries.
type sweeper struct {
	engine       Engine // not EngineAuto
	mayChange    bool   // of the engine, if the kernel refuses it
	dryRun       bool
	cgroup       string
	replacements map[string]*ebpf.Map
	backends     []backendKey // sockets connected to them without an entry are counted
	progress     func(done, total int)

	passes       int
	withoutEntry map[backendKey]int
}

// sweep visits the sockets of the entries, until another pass finds nothing new, and sets their fates.
func (s *sweeper) sweep(ctx context.Context, entries []*entry) error {
	p, err := s.load(entries)
	if err != nil {
		return err
	}
	defer p.Close()
	stop := s.watch(p)
	defer stop()
	for last := len(entries) + 1; ; {
		if err := s.pass(ctx, p); err != nil {
			return err
		}
		s.passes++
		if s.passes == 1 && len(s.backends) > 0 && s.engine == EngineIter {
			// Another pass would count the same sockets again.
			if s.withoutEntry, err = p.withoutEntry(); err != nil {
				return err
			}
		}
		open, err := p.judge(s.dryRun)
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

// check finds out whether the kernel runs the engine, before anything is changed.
func (s *sweeper) check() error {
	p, err := s.load(nil)
	if err != nil {
		return err
	}
	p.Close()
	return nil
}

// reader returns a sweeper on the same maps that changes nothing, with that engine if the kernel has it.
func (s *sweeper) reader(engine Engine) *sweeper {
	return &sweeper{engine: engine, mayChange: true, dryRun: true, cgroup: s.cgroup, replacements: s.replacements}
}

func (s *sweeper) load(entries []*entry) (*programs, error) {
	p, err := loadPrograms(s.programOptions(), entries)
	if err != nil && refused(err) && s.engine == EngineIter && s.mayChange {
		s.engine = EnginePidfd
		p, err = loadPrograms(s.programOptions(), entries)
	}
	if err != nil {
		return nil, engineError(s.engine, err)
	}
	return p, nil
}

func (s *sweeper) programOptions() programOptions {
	return programOptions{engine: s.engine, dryRun: s.dryRun, backends: s.backends, replacements: s.replacements}
}

// watch reports progress until it is stopped.
func (s *sweeper) watch(p *programs) (stop func()) {
	judged := p.Variables[iter.FillVarRevskJudged]
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
func (s *sweeper) pass(ctx context.Context, p *programs) error {
	if s.engine == EnginePidfd {
		return s.passByDescriptor(ctx, p)
	}
	if err := passTables(ctx, p); err != nil {
		return fmt.Errorf("visiting the sockets of network namespaces: %w", err)
	}
	if err := passFiles(ctx, p); err != nil {
		return fmt.Errorf("visiting the sockets of processes: %w", err)
	}
	if s.dryRun {
		return nil
	}
	return s.visitFilesOnly(ctx, p)
}

// passTables runs the iterators over the protocols' tables, in each network namespace.
func passTables(ctx context.Context, p *programs) error {
	var tables []*link.Iter
	for _, name := range []string{iter.FillProgFillTcp, iter.FillProgFillUdp} {
		it, err := bpfiter.Attach(p.Programs[name], nil)
		if err != nil {
			return err
		}
		defer it.Close()
		tables = append(tables, it)
	}
	return eachNamespace(ctx, func() error {
		for _, it := range tables {
			if _, err := bpfiter.Run(ctx, it); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachNamespace calls f on a thread that is in the namespace, for each network namespace.
func eachNamespace(ctx context.Context, f func() error) error {
	namespaces, err := netns.All(ctx)
	if err != nil {
		return err
	}
	defer namespaces.Close()
	for _, ns := range namespaces {
		if err := ns.Do(f); err != nil {
			return fmt.Errorf("network namespace %d: %w", ns.Inode, err)
		}
	}
	return nil
}

func passFiles(ctx context.Context, p *programs) error {
	_, err := bpfiter.RunProgram(ctx, p.Programs[iter.FillProgFindFiles], nil)
	return err
}

// visitFilesOnly visits by descriptor the sockets that are in a file table but in no protocol table, and those
// whose table has to grow.
func (s *sweeper) visitFilesOnly(ctx context.Context, p *programs) error {
	var met uint64
	if err := p.Variables[iter.FillVarRevskFilesOnly].Get(&met); err != nil {
		return fmt.Errorf("reading whether there are sockets in no table: %w", err)
	}
	if met == 0 {
		return nil
	}
	if err := p.readSockets(); err != nil {
		return err
	}
	var d *descriptors
	for _, cookie := range p.cookies {
		socket := p.sockets[cookie]
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
