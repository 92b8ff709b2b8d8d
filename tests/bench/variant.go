// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// Names of the variants.
const (
	floor       = "floor"
	legacyEmpty = "legacy, empty"
	legacyFull  = "legacy, full"
	dual        = "dual"
	mirror      = "mirror"
	storage     = "storage"
	foreign     = "reference, full" // the programs of another agent
	oneProtocol = "storage, no lookup for any protocol"
	// former is the build before this one, if it takes part: -objects former=FILE.o.
	former = "former"
)

// legacyEntries is the default size of the reference's hash.
const legacyEntries = 262144

// variant is one way to run the hooks, attached to a cgroup of its own.
type variant struct {
	name   string
	cgroup string
	dir    string // of its pins
	opts   loader.Options
	dp     *loader.Datapath // nil: the floor
	progs  map[string]*ebpf.Program
	links  []link.Link // the floor's, which nothing else keeps
	// full: the hash is kept full, as it is on a node whose hash leaks.
	full bool
}

type bench struct {
	variants []*variant
	servers  *servers
	report   *report
	stats    interface{ Close() error }
	made     int      // variants, of whatever kind
	inside   *variant // whose cgroup the process is in
}

// sharedMaps are written once for all variants.
var sharedMaps = []string{lbmap.Services4Map, lbmap.Services6Map, lbmap.Backends4Map, lbmap.Backends6Map, lbmap.IPCacheMap}

func newBench() (*bench, error) {
	b := &bench{report: newReport()}
	if err := setUpNetwork(); err != nil {
		return nil, fmt.Errorf("setting up the network: %w", err)
	}
	var err error
	if b.servers, err = startServers(); err != nil {
		return nil, fmt.Errorf("starting servers: %w", err)
	}
	if b.stats, err = ebpf.EnableStats(0 /* BPF_STATS_RUN_TIME */); err != nil {
		return nil, fmt.Errorf("enabling the kernel's statistics: %w", err)
	}
	if err := b.addFloor(); err != nil {
		return nil, err
	}
	features := loader.DefaultFeatures()
	protocolOnly := features
	protocolOnly.AnyProtocol = false
	for _, v := range []struct {
		name     string
		mode     loader.Mode
		features loader.Features
		full     bool
		replace  func(*variant) error
	}{
		{legacyEmpty, loader.ModeLegacy, features, false, nil},
		{legacyFull, loader.ModeLegacy, features, true, nil},
		{dual, loader.ModeDual, features, true, nil},
		// Its hash has nothing but what sockets hold.
		{mirror, loader.ModeMirror, features, false, nil},
		{storage, loader.ModeStorage, features, false, nil},
		{oneProtocol, loader.ModeStorage, protocolOnly, false, nil},
		{foreign, loader.ModeLegacy, features, true, (*variant).runReference},
	} {
		if *variants != "" && !slices.Contains(strings.Split(*variants, ";"), v.name) || v.name == foreign && *referenceFile == "" {
			continue
		}
		if err := b.add(v.name, v.mode, v.features, v.full, v.replace); err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
	}
	for object := range strings.SplitSeq(*objects, ",") {
		if name, file, ok := strings.Cut(object, "="); ok {
			replace := func(v *variant) error { return v.runBuild(file) }
			if err := b.add(name, loader.ModeStorage, features, false, replace); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return b, b.report.addPrograms(b.variant(storage))
}

func (b *bench) close() { b.stats.Close() }

func (b *bench) variant(name string) *variant {
	for _, v := range b.variants {
		if v.name == name {
			return v
		}
	}
	return nil
}

func (b *bench) newVariant(name string) (*variant, error) {
	b.made++
	v := &variant{name: name, cgroup: filepath.Join(sandbox.Cgroup(), strconv.Itoa(b.made))}
	return v, os.Mkdir(v.cgroup, 0o755)
}

func (b *bench) addFloor() error {
	v, err := b.newVariant(floor)
	if err != nil {
		return err
	}
	v.progs, v.links, err = attachFloor(v.cgroup)
	b.variants = append(b.variants, v)
	return err
}

// add loads a variant; replace, if any, puts other programs into the place of those loaded.
func (b *bench) add(name string, mode loader.Mode, features loader.Features, full bool, replace func(*variant) error) error {
	v, err := b.loadWith(name, mode, features, legacyEntries)
	if err != nil {
		return err
	}
	if replace != nil {
		if err := replace(v); err != nil {
			return err
		}
	}
	if err := v.openPrograms(); err != nil {
		return err
	}
	v.full = full
	if full {
		for _, f := range families {
			if err := v.leak(f, legacyEntries); err != nil {
				return err
			}
		}
	}
	b.variants = append(b.variants, v)
	return nil
}

// load makes a variant that is not one of those that take turns.
func (b *bench) load(name string, mode loader.Mode, entries uint32) (*variant, error) {
	return b.loadWith(name, mode, loader.DefaultFeatures(), entries)
}

func (b *bench) loadWith(name string, mode loader.Mode, features loader.Features, entries uint32) (*variant, error) {
	v, err := b.newVariant(name)
	if err != nil {
		return nil, err
	}
	maps := filepath.Join("/sys/fs/bpf", filepath.Base(v.cgroup), "maps")
	v.dir = filepath.Join("/sys/fs/bpf", filepath.Base(v.cgroup), "revsk")
	first := b.first()
	if first != nil {
		if err := os.MkdirAll(maps, 0o700); err != nil {
			return nil, err
		}
		for _, name := range sharedMaps {
			if err := pinAgain(first.dp.Map(name), filepath.Join(maps, name)); err != nil {
				return nil, err
			}
		}
	}
	v.opts = loader.Options{
		Cgroup: v.cgroup, MapsDir: maps, PinsDir: v.dir,
		Mode: &mode, Force: true, LegacyMaxEntries: entries, Features: &features,
	}
	if v.dp, err = loader.Load(context.Background(), v.opts); err != nil {
		return nil, err
	}
	if first == nil {
		return v, errors.Join(publish(v.dp), fillIPCache(v.dp))
	}
	return v, nil
}

// first is the variant whose services the others share.
func (b *bench) first() *variant {
	for _, v := range b.variants {
		if v.dp != nil {
			return v
		}
	}
	return nil
}

func pinAgain(m *ebpf.Map, path string) error {
	c, err := m.Clone()
	if err != nil {
		return err
	}
	defer c.Close()
	// A clone is not pinned, as far as the library knows.
	return c.Pin(path)
}

func (v *variant) linksDir() string { return filepath.Join(v.dir, "links") }

// openPrograms finds the programs behind the pinned links.
func (v *variant) openPrograms() error {
	v.progs = make(map[string]*ebpf.Program)
	for hook := range hookTypes {
		l, err := link.LoadPinnedLink(filepath.Join(v.linksDir(), "revsk_"+hook), nil)
		if err != nil {
			return err
		}
		info, err := l.Info()
		if err != nil {
			return err
		}
		if v.progs[hook], err = ebpf.NewProgramFromID(info.Program); err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

// runReference puts the reference's programs into the place of those loaded.
func (v *variant) runReference() error {
	object, err := reference.Open(*referenceFile)
	if err != nil {
		return err
	}
	agent, err := object.Agent(v.opts.MapsDir, object.Features())
	if err != nil {
		return err
	}
	return errors.Join(agent.Replace(v.linksDir()), agent.Close())
}

// runBuild puts another build of the programs into the place of those loaded.
func (v *variant) runBuild(object string) error {
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return err
	}
	precise, err := probe.PreciseVerifier()
	if err != nil {
		return err
	}
	mptcp, err := probe.MPTCP()
	if err != nil {
		return err
	}
	// What the loader finds out about this kernel, of which the build may not know all.
	for name, value := range map[string]bool{"cfg_set_retval": true, "cfg_imprecise_verifier": !precise, "cfg_mptcp": mptcp} {
		v, ok := spec.Variables[name]
		if !ok {
			continue
		}
		if err := v.Set(value); err != nil {
			return err
		}
	}
	replaced := make(map[string]*ebpf.Map)
	for name := range spec.Maps {
		// Its own maps may have other layouts. A configuration of its own is one of mode storage.
		if m := v.dp.Map(name); m != nil && !strings.HasPrefix(name, "revsk_") {
			replaced[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replaced})
	if err != nil {
		return err
	}
	defer coll.Close()
	for hook := range hookTypes {
		l, err := link.LoadPinnedLink(filepath.Join(v.linksDir(), "revsk_"+hook), nil)
		if err != nil {
			return err
		}
		if err := l.Update(coll.Programs["revsk_"+hook]); err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

// hash is the legacy map of a family.
func (v *variant) hash(f *family) *ebpf.Map {
	if f == ipv6 {
		return v.dp.Map(lbmap.ReverseSK6Map)
	}
	return v.dp.Map(lbmap.ReverseSK4Map)
}

// leak adds entries of sockets that do not exist, as leaks do.
func (v *variant) leak(f *family, n int) error {
	// Cookies that the kernel does not reach.
	cookie := func(key []byte) { binary.NativeEndian.PutUint64(key, 1<<63|rand.Uint64()) }
	var keys, values any
	if f == ipv6 {
		k := make([][lbmap.ReverseSKKey6Size]byte, n)
		for i := range k {
			cookie(k[i][:])
		}
		keys, values = k, make([][lbmap.ReverseSKValue6Size]byte, n)
	} else {
		k := make([][lbmap.ReverseSKKey4Size]byte, n)
		for i := range k {
			cookie(k[i][:])
		}
		keys, values = k, make([][lbmap.ReverseSKValue4Size]byte, n)
	}
	if _, err := v.hash(f).BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("filling the hash: %w", err)
	}
	return nil
}

// prepare restores what the hash is to be like: full, or empty.
func (v *variant) prepare(f *family, inserts int) error {
	if v.dp == nil {
		return nil
	}
	if v.full {
		return v.leak(f, inserts)
	}
	m := v.hash(f)
	key, err := m.NextKeyBytes(nil)
	for err == nil && key != nil {
		var next []byte
		if next, err = m.NextKeyBytes(key); err == nil {
			err = m.Delete(key)
		}
		key = next
	}
	if err != nil {
		return fmt.Errorf("emptying the hash: %w", err)
	}
	return nil
}

// enter moves the process to the variant's cgroup. Sockets stay in the cgroup they were opened in.
func (b *bench) enter(v *variant) error {
	if b.inside == v {
		return nil
	}
	err := os.WriteFile(filepath.Join(v.cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("entering the cgroup of %s: %w", v.name, err)
	}
	b.inside = v
	return settle()
}

// settle waits until the kernel has freed what sockets have left to it, whose cost and whose memory
// would otherwise be those of the next variant.
func settle() error {
	const global = 1 // MEMBARRIER_CMD_GLOBAL waits for a grace period
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		return fmt.Errorf("waiting for a grace period: %w", errno)
	}
	time.Sleep(10 * time.Millisecond) // the callbacks run after it
	return nil
}
