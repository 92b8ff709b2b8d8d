// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/attached"
)

// observation is what there is of a datapath, and around it. Making one changes nothing.
type observation struct {
	opts  Options
	mode  Mode
	hooks []hookObservation // in the order of hooks
	maps  []mapObservation  // sorted by name
	// unsafe is why the directories of the pins cannot be trusted; nil: they can.
	unsafe error
}

// hookObservation is what there is on one hook.
type hookObservation struct {
	hook
	// link tells whether the link of this datapath is pinned, and dead whether it is attached to nothing.
	link, dead bool
	// removed tells that the link is attached to a cgroup that was removed.
	removed bool
	// saved is the program that was replaced in a takeover; the zero occupant if none was.
	saved occupant
	// own is the program in the link, or in the place, of this datapath: ours, or another agent's that
	// has taken its hook back. The zero occupant: there is none.
	own occupant
	// ours tells whether own is a program of ours.
	ours bool
	// others are the further programs of load balancers for sockets that run on the hook: on the cgroup, and
	// on those above and below it where they share a map with this datapath.
	others []attachment
}

// attachment is a program that is attached to a cgroup.
type attachment struct {
	occupant
	cgroup string
	maps   []ebpf.MapID
}

func (a attachment) String() string { return fmt.Sprintf("%v on %s", a.occupant, a.cgroup) }

// mapObservation is a map of the datapath.
type mapObservation struct {
	name, pin string
	pinned    ebpf.MapID   // 0: nothing is pinned there
	used      []ebpf.MapID // by the programs of this datapath, sorted
	// entries and size tell how full it is; 0: they are not known.
	entries, size int
}

// conflicts tells whether a program does the same as ours, so that only one of them may run. What another
// agent has on a hook that no feature of ours needs is about binding, and stays.
func (ho *hookObservation) conflicts(a attachment) bool {
	return (ho.isReference(a.occupant) || isOurs(a.occupant)) && (ho.remembers() || ho.ours)
}

// observe looks at everything there is.
func observe(opts Options) (*observation, error) {
	o := &observation{opts: opts}
	for _, dir := range []string{opts.PinsDir, opts.MapsDir} {
		if err := checkDirs(dir); errors.Is(err, ErrUnsafeDir) {
			o.unsafe = err
		} else if err != nil {
			return nil, err
		}
	}
	if err := o.observeMaps(); err != nil {
		return nil, err
	}
	for _, h := range hooks {
		ho, err := o.observeHook(h)
		if err != nil {
			return nil, err
		}
		o.hooks = append(o.hooks, ho)
	}
	if err := o.observeAround(); err != nil {
		return nil, err
	}
	return o, o.observeUse()
}

// observeMaps looks at the pins of the maps.
func (o *observation) observeMaps() error {
	spec, err := sock.LoadSock()
	if err != nil {
		return fmt.Errorf("reading the compiled programs: %w", err)
	}
	for _, name := range mapNames(spec) {
		if !pinnable(name) {
			continue
		}
		mo := mapObservation{name: name, pin: o.opts.pinPath(name)}
		if err := mo.look(); err != nil {
			return err
		}
		if name == mapConfig && mo.pinned != 0 {
			if o.mode, err = readMode(mo.pin); err != nil {
				return err
			}
		}
		o.maps = append(o.maps, mo)
	}
	return nil
}

func (mo *mapObservation) look() error {
	m, err := openPinnedMap(mo.pin)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer m.Close()
	mo.pinned, err = mapID(m)
	return err
}

func readMode(path string) (Mode, error) {
	m, err := openPinnedMap(path)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	var cfg sock.SockRevskConfigValue
	if err := m.Lookup(uint32(0), &cfg); err != nil {
		return 0, fmt.Errorf("reading the mode: %w", err)
	}
	return Mode(cfg.Mode), nil
}

// observeHook looks at what is on a hook of the datapath's own cgroup.
func (o *observation) observeHook(h hook) (hookObservation, error) {
	ho := hookObservation{hook: h}
	s, err := findSeat(o.opts, h)
	if err != nil {
		return ho, err
	}
	defer s.Close()
	ho.link = s.link != nil
	ho.dead = ho.link && !s.live()
	if ho.dead {
		if _, ho.removed, err = onRemovedCgroup(s.link); err != nil {
			return ho, err
		}
	}
	ho.saved, ho.own, ho.ours = s.formerly, s.now, s.ours()
	found, err := queryOwn(o.opts, h)
	if err != nil {
		return ho, err
	}
	for _, id := range found.IDs {
		if id == s.now.id {
			continue
		}
		a, err := describeAttachment(id, o.opts.Cgroup)
		if err != nil {
			return ho, err
		}
		if ho.conflicts(a) {
			ho.others = append(ho.others, a)
		}
	}
	return ho, nil
}

// observeUse finds out which maps the programs of this datapath use.
func (o *observation) observeUse() error {
	spec, err := sock.LoadSock()
	if err != nil {
		return fmt.Errorf("reading the compiled programs: %w", err)
	}
	seen := make(map[ebpf.MapID]bool)
	for _, ho := range o.hooks {
		if ho.own.id == 0 {
			continue
		}
		used, err := mapsOf(ho.own.id)
		if err != nil {
			return err
		}
		for _, id := range used {
			if seen[id] {
				continue
			}
			seen[id] = true
			if err := o.noteUse(id, spec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *observation) noteUse(id ebpf.MapID, spec *ebpf.CollectionSpec) error {
	m, err := openMapID(id)
	if m == nil {
		return err
	}
	defer m.Close()
	for i := range o.maps {
		same, err := isMap(m, spec.Maps[o.maps[i].name])
		if err != nil {
			return err
		}
		if same {
			o.maps[i].used = append(o.maps[i].used, id)
			slices.Sort(o.maps[i].used)
		}
	}
	return nil
}

// observeAround looks for programs above and below the cgroup that share a map with this datapath: each would
// see the addresses that the other has translated.
func (o *observation) observeAround() error {
	shared := make(map[ebpf.MapID]bool)
	for _, mo := range o.maps {
		if mo.pinned != 0 {
			shared[mo.pinned] = true
		}
	}
	cgroups, err := cgroupsAround(o.opts.Cgroup)
	if err != nil {
		return err
	}
	for _, dir := range cgroups {
		for i := range o.hooks {
			ho := &o.hooks[i]
			found, err := attached.To(dir, ho.hook.attach)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
				break // removed meanwhile, or no cgroup
			}
			if err != nil {
				return describe(err)
			}
			for _, id := range found.IDs {
				a, err := describeAttachment(id, dir)
				if err != nil {
					return err
				}
				if ho.conflicts(a) && slices.ContainsFunc(a.maps, func(id ebpf.MapID) bool { return shared[id] }) {
					ho.others = append(ho.others, a)
				}
			}
		}
	}
	return nil
}

// cgroupsAround are the cgroups above and below one.
func cgroupsAround(cgroup string) ([]string, error) {
	dir, err := filepath.Abs(cgroup)
	if err != nil {
		return nil, err
	}
	var all []string
	for above := filepath.Dir(dir); ; above = filepath.Dir(above) {
		magic, err := fsMagic(above)
		if err != nil {
			return nil, err
		}
		if magic != unix.CGROUP2_SUPER_MAGIC {
			break
		}
		all = append(all, above)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && path != dir {
			all = append(all, path)
		}
		return nil
	})
	return all, err
}

func describeAttachment(id ebpf.ProgramID, cgroup string) (attachment, error) {
	o, err := describeProgram(id)
	if err != nil || o.id == 0 {
		return attachment{}, err
	}
	used, err := mapsOf(id)
	return attachment{o, cgroup, used}, err
}
