// SPDX-License-Identifier: Apache-2.0

// Package reference is the reference agent in tests: its own programs, or ours under their names,
// held by links that are pinned as it pins them or attached without a link.
package reference

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/loader"
)

// Agent is a running agent. Its programs are by the names that the reference gives them.
type Agent struct {
	Programs map[string]*ebpf.Program

	links    []link.Link
	attached []link.RawDetachProgramOptions
	closers  []func()
}

var attachTypes = map[string]ebpf.AttachType{
	"cil_sock4_recvmsg":     ebpf.AttachCGroupUDP4Recvmsg,
	"cil_sock6_recvmsg":     ebpf.AttachCGroupUDP6Recvmsg,
	"cil_sock4_getpeername": ebpf.AttachCgroupInet4GetPeername,
	"cil_sock6_getpeername": ebpf.AttachCgroupInet6GetPeername,
	"cil_sock_release":      ebpf.AttachCgroupInetSockRelease,
	"cil_sock4_connect":     ebpf.AttachCGroupInet4Connect,
	"cil_sock6_connect":     ebpf.AttachCGroupInet6Connect,
	"cil_sock4_sendmsg":     ebpf.AttachCGroupUDP4Sendmsg,
	"cil_sock6_sendmsg":     ebpf.AttachCGroupUDP6Sendmsg,
	"cil_sock4_post_bind":   ebpf.AttachCGroupInet4PostBind,
	"cil_sock6_post_bind":   ebpf.AttachCGroupInet6PostBind,
	"cil_sock4_pre_bind":    ebpf.AttachCGroupInet4Bind,
	"cil_sock6_pre_bind":    ebpf.AttachCGroupInet6Bind,
}

// Program makes a program of that name for a hook that lets everything pass. Each uses the maps.
func Program(name string, attach ebpf.AttachType, maps ...*ebpf.Map) (*ebpf.Program, error) {
	kind := ebpf.CGroupSockAddr
	switch attach {
	case ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind:
		kind = ebpf.CGroupSock
	}
	var code asm.Instructions
	for _, m := range maps {
		code = append(code, asm.LoadMapPtr(asm.R1, m.FD()))
	}
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: kind, AttachType: attach, License: "GPL",
		Instructions: append(code, asm.Mov.Imm(asm.R0, 1), asm.Return()),
	})
}

// Idle makes an agent with a program on every hook that lets everything pass. Each uses the maps.
func Idle(maps ...*ebpf.Map) (*Agent, error) {
	a := &Agent{Programs: make(map[string]*ebpf.Program)}
	for name, attach := range attachTypes {
		prog, err := Program(name, attach, maps...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("loading %s: %w", name, err), a.Close())
		}
		a.add(name, prog)
	}
	return a, nil
}

// IdleHash is Idle of programs that use the hash, which is pinned in the directory: as it is there, or anew
// with so many entries.
func IdleHash(mapsDir string, entries uint32) (*Agent, error) {
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, err
	}
	for name, m := range spec.Maps {
		if name != sock.SockMapCiliumLb4ReverseSk && name != sock.SockMapCiliumLb6ReverseSk {
			delete(spec.Maps, name)
			continue
		}
		m.MaxEntries = entries
	}
	holder := new(Agent)
	shared, err := holder.sharedMaps(spec, mapsDir)
	if err != nil {
		return nil, errors.Join(err, holder.Close())
	}
	a, err := Idle(slices.Collect(maps.Values(shared))...)
	return a, errors.Join(err, holder.Close())
}

// Hash makes an agent of our own programs that remembers in the hash alone, as the reference does. It uses
// the maps that are pinned in the directory, and pins those that are missing.
func Hash(mapsDir string) (*Agent, error) {
	o, err := Ours()
	if err != nil {
		return nil, err
	}
	return o.Agent(mapsDir, loader.DefaultFeatures())
}

// load makes an agent of the programs.
func load(spec *ebpf.CollectionSpec, mapsDir string) (_ *Agent, err error) {
	a := &Agent{Programs: make(map[string]*ebpf.Program)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	shared, err := a.sharedMaps(spec, mapsDir)
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, fmt.Errorf("loading the agent's programs: %w", err)
	}
	a.closers = append(a.closers, coll.Close)
	for name := range spec.Programs {
		a.add(name, coll.DetachProgram(name))
	}
	return a, nil
}

// sharedMaps opens, or makes and pins, the maps that belong to the load balancer.
func (a *Agent) sharedMaps(spec *ebpf.CollectionSpec, dir string) (map[string]*ebpf.Map, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	shared := make(map[string]*ebpf.Map)
	for name, mapSpec := range spec.Maps {
		if !strings.HasPrefix(name, "cilium_") {
			continue
		}
		mapSpec.Pinning = ebpf.PinNone // the library's way of it, which would refuse other sizes
		path := filepath.Join(dir, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			if m, err = ebpf.NewMap(mapSpec); err == nil {
				err = m.Pin(path)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", path, err)
		}
		a.closers = append(a.closers, func() { m.Close() })
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		mapSpec.MaxEntries, mapSpec.Flags = m.MaxEntries(), info.Flags
		shared[name] = m
	}
	return shared, nil
}

func (a *Agent) add(name string, prog *ebpf.Program) {
	a.Programs[name] = prog
	a.closers = append(a.closers, func() { prog.Close() })
}

// Without leaves out some programs, as an agent of another configuration would.
func (a *Agent) Without(names ...string) *Agent {
	for _, name := range names {
		delete(a.Programs, name)
	}
	return a
}

// Link attaches the programs to the cgroup by links, and pins those in the directory.
func (a *Agent) Link(cgroup, dir string) error {
	return a.LinkSome(cgroup, dir, slices.Collect(maps.Keys(a.Programs))...)
}

// LinkSome is Link of the programs with these names.
func (a *Agent) LinkSome(cgroup, dir string, names ...string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	target, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer target.Close()
	for _, name := range names {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(target.Fd()), Program: a.Programs[name], Attach: attachTypes[name]})
		if err != nil {
			return fmt.Errorf("linking %s: %w", name, err)
		}
		a.links = append(a.links, l)
		if err := l.Pin(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Update puts the programs into the links that are pinned in the directory, as the reference does when
// it starts again.
func (a *Agent) Update(dir string) error {
	return a.UpdateSome(dir, slices.Collect(maps.Keys(a.Programs))...)
}

// UpdateSome is Update of the programs with these names, in that order.
func (a *Agent) UpdateSome(dir string, names ...string) error {
	for _, name := range names {
		prog := a.Programs[name]
		l, err := link.LoadPinnedLink(filepath.Join(dir, name), nil)
		if err != nil {
			return err
		}
		a.links = append(a.links, l)
		if err := l.Update(prog); err != nil {
			return fmt.Errorf("updating the link of %s: %w", name, err)
		}
	}
	return nil
}

// Replace puts the programs into the place of revsk's own, whose links are pinned in the directory, and
// detaches those of hooks for which the agent has none.
func (a *Agent) Replace(dir string) error {
	wanted := make(map[string]*ebpf.Program)
	for name, prog := range a.Programs {
		wanted[linkOf(name)] = prog
	}
	if err := Exchange(dir, wanted); err != nil {
		return err
	}
	if len(wanted) > 0 {
		return fmt.Errorf("%s has no links for %v", dir, slices.Sorted(maps.Keys(wanted)))
	}
	return nil
}

// linkOf is the name that revsk gives to the link of the reference's program on the same hook.
func linkOf(name string) string {
	hook := strings.TrimPrefix(strings.TrimPrefix(name, "cil_"), "sock")
	family, call, _ := strings.Cut(hook, "_")
	if call == "pre_bind" {
		call = "bind"
	}
	return "revsk_" + call + family
}

// Exchange puts each program into the link that is pinned in the directory by its name, and detaches the links
// for which there is none. It leaves in the map the programs for which there is no link.
func Exchange(dir string, programs map[string]*ebpf.Program) error {
	links, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range links {
		l, err := link.LoadPinnedLink(filepath.Join(dir, file.Name()), nil)
		if err != nil {
			return err
		}
		if prog := programs[file.Name()]; prog != nil {
			err = l.Update(prog)
		} else {
			err = errors.Join(l.Detach(), l.Unpin())
		}
		delete(programs, file.Name())
		if err := errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("exchanging %s: %w", file.Name(), err)
		}
	}
	return nil
}

// Attach attaches the programs to the cgroup without links.
func (a *Agent) Attach(cgroup string, flags uint32) error {
	return a.AttachSome(cgroup, flags, slices.Collect(maps.Keys(a.Programs))...)
}

// AttachSome is Attach of the programs with these names, in that order.
func (a *Agent) AttachSome(cgroup string, flags uint32, names ...string) error {
	target, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() { target.Close() })
	for _, name := range names {
		at := link.RawDetachProgramOptions{Target: int(target.Fd()), Program: a.Programs[name], Attach: attachTypes[name]}
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: at.Target, Program: at.Program, Attach: at.Attach, Flags: flags,
		})
		if err != nil {
			return fmt.Errorf("attaching %s: %w", name, err)
		}
		a.attached = append(a.attached, at)
	}
	return nil
}

// DetachSome detaches what is on the hooks of the programs with these names, where programs are attached without links and
// alone: the kernel does not ask whose they are.
func (a *Agent) DetachSome(cgroup string, names ...string) error {
	target, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer target.Close()
	for _, name := range names {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{
			Target: int(target.Fd()), Program: a.Programs[name], Attach: attachTypes[name],
		})
		if err != nil {
			return fmt.Errorf("detaching %s: %w", name, err)
		}
	}
	return nil
}

// Unlink detaches the links, and leaves their pins. The programs can be linked again.
func (a *Agent) Unlink() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Detach(), l.Close())
	}
	a.links = nil
	return errors.Join(errs...)
}

// Exit closes everything as the end of its process does: what is pinned stays.
func (a *Agent) Exit() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	for _, f := range a.closers {
		f()
	}
	a.links, a.attached, a.closers = nil, nil, nil
	return errors.Join(errs...)
}

// Close detaches what is left of the agent on the cgroup. It leaves the pins. It may be called twice.
func (a *Agent) Close() error {
	errs := []error{a.Unlink()}
	for _, d := range a.attached {
		if err := link.RawDetachProgram(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, f := range a.closers {
		f()
	}
	a.attached, a.closers = nil, nil
	return errors.Join(errs...)
}
