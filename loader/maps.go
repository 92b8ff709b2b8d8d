// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/maplayout"
	"github.com/revsk/revsk/internal/probe"
)

const (
	mapConn     = sock.SockMapRevskConn
	mapConfig   = sock.SockMapRevskConfig
	mapMetrics  = sock.SockMapRevskMetrics
	mapReverse4 = sock.SockMapCiliumLb4ReverseSk
	mapReverse6 = sock.SockMapCiliumLb6ReverseSk
)

// ownMap tells the maps of this datapath from those that it shares with a load balancer.
func ownMap(name string) bool { return strings.HasPrefix(name, "revsk_") }

// compiled are the programs and maps as they are compiled in.
func (o Options) compiled() (*ebpf.CollectionSpec, error) {
	load := sock.LoadSock
	if o.build != nil {
		load = o.build
	}
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	return spec, nil
}

func (o Options) pinPath(name string) string {
	if ownMap(name) {
		return filepath.Join(o.PinsDir, name)
	}
	return filepath.Join(o.MapsDir, name)
}

// mapNames are those of the maps that are pinned: not of the constants of the programs, which are maps of
// each load.
func mapNames(specs map[string]*ebpf.MapSpec) []string {
	names := slices.Sorted(maps.Keys(specs))
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
}

// compiledMaps returns the maps of the compiled programs, which are not to be changed. To read the programs
// takes longer than to look at what runs.
var compiledMaps = sync.OnceValues(Options{}.readMaps)

func (o Options) compiledMaps() (map[string]*ebpf.MapSpec, error) {
	if o.build != nil {
		return o.readMaps()
	}
	return compiledMaps()
}

func (o Options) readMaps() (map[string]*ebpf.MapSpec, error) {
	spec, err := o.compiled()
	if err != nil {
		return nil, err
	}
	return spec.Maps, nil
}

// openMap opens a pinned map, with whatever size and flags it has, and adapts the spec to them.
// Returns an error wrapping [ErrLayout], or [os.ErrNotExist].
func openMap(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := openPinnedMap(path)
	if err != nil {
		return nil, err
	}
	if err := adapt(m, spec); err != nil {
		m.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// adapt makes the spec that of a map, if its layout is what the programs need.
func adapt(m *ebpf.Map, spec *ebpf.MapSpec) error {
	if err := checkLayout(m, spec); err != nil {
		return err
	}
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("reading its flags: %w", present(err))
	}
	spec.MaxEntries, spec.Flags = m.MaxEntries(), info.Flags
	return nil
}

// checkLayout compares what the programs rely on: type, sizes, and for the maps of this datapath,
// whose values are ours to define, every field of the value.
func checkLayout(m *ebpf.Map, spec *ebpf.MapSpec) error {
	if err := maplayout.Check(m, spec, ErrLayout); err != nil {
		return err
	}
	if !ownMap(spec.Name) || spec.Value == nil {
		return nil
	}
	handle, err := m.Handle()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: its value has no type information", ErrLayout)
	}
	if err != nil {
		return describe(fmt.Errorf("reading the type of its value: %w", present(err)))
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return fmt.Errorf("reading the type of its value: %w", err)
	}
	want := valueLayout(spec.Value)
	pinned, err := types.AnyTypesByName(spec.Value.TypeName())
	if err != nil && spec.Value.TypeName() != "" || len(pinned) > 0 && valueLayout(pinned[0]) != want {
		return fmt.Errorf("%w: the fields of its value differ, needed is %s", ErrLayout, want)
	}
	return nil
}

// valueLayout writes out names, offsets and sizes of the fields of a type.
func valueLayout(t btf.Type) string {
	var fields []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		fields = t.Members
	case *btf.Union:
		fields = t.Members
	case *btf.Array:
		return fmt.Sprintf("%d*%s", t.Nelems, valueLayout(t.Type))
	default:
		size, _ := btf.Sizeof(t)
		return fmt.Sprint(size)
	}
	var b strings.Builder
	for _, m := range fields {
		fmt.Fprintf(&b, "%s@%d:%s ", m.Name, m.Offset.Bytes(), valueLayout(m.Type))
	}
	return "{" + strings.TrimSpace(b.String()) + "}"
}

// openMaps opens those of the maps that the programs use which are pinned, with the sizes and flags that they
// have: the specs are adapted to them.
func openMaps(opts Options, specs map[string]*ebpf.MapSpec) (map[string]*ebpf.Map, error) {
	opened := make(map[string]*ebpf.Map)
	for _, name := range mapNames(specs) {
		m, err := openMap(opts.pinPath(name), specs[name])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			closeMaps(opened)
			return nil, err
		}
		if err == nil {
			opened[name] = m
		}
	}
	return opened, nil
}

func closeMaps(ms map[string]*ebpf.Map) {
	for _, m := range ms {
		m.Close()
	}
}

// openMapID opens a map by its id; nil if it is gone.
func openMapID(id ebpf.MapID) (*ebpf.Map, error) {
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, describe(fmt.Errorf("opening map %d: %w", id, err))
	}
	return m, nil
}

// isMap tells whether a map is what the spec describes: by type, sizes and the name, as far as the kernel
// keeps it: together they are different for each map of the programs. A map may have no name.
func isMap(m *ebpf.Map, spec *ebpf.MapSpec) (bool, error) {
	if maplayout.Check(m, spec, ErrLayout) != nil {
		return false, nil
	}
	info, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("reading about %v: %w", m, present(err))
	}
	return info.Name == "" || info.Name == kept(spec.Name), nil
}

// kept is what the kernel keeps of a name.
func kept(name string) string { return name[:min(unix.BPF_OBJ_NAME_LEN-1, len(name))] }

// describe says what a failure of the bpf system call means for an operator.
func describe(err error) error {
	var verifier *ebpf.VerifierError
	switch err = probe.Recheck(err); {
	case err == nil || transient(err):
		return err
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: needed is Linux 5.10 with CONFIG_CGROUP_BPF: %w", ErrNotSupported, err)
	case (errors.As(err, &verifier) || errors.Is(err, unix.EFAULT)) && lacking() != "":
		// It refuses to one what it accepts from another, and says EFAULT of some (revsk_release on Linux 6.18).
		return fmt.Errorf("%w %s: %w", ErrPermission, lacking(), err)
	case errors.As(err, &verifier):
		return fmt.Errorf("%w: the verifier refused a program: %w", ErrNotSupported, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
