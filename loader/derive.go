// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

// A takeover finds out the options of the agent's programs, so that ours do the same. The agent compiles some
// options into its programs, and sets others as constants when it loads them.

// agentFacts is what was found out.
type agentFacts struct {
	// real: the agent's programs translate. Of others nothing can be found out.
	real bool
	// constants are those of its programs, without the prefix of their names.
	constants map[string]uint64
	// defines are those of the header with which it compiled them; nil: there is none here.
	defines map[string]bool
	// hostOnly tells whether it translates in its own network namespace only; nil: that could not be found out.
	hostOnly *bool
}

// nodeConfig is the header, below the agent's directory of state.
const nodeConfig = "globals/node_config.h"

// lookAtAgent finds out about the agent's programs, where those are to be taken over for the first time.
func (o *observation) lookAtAgent(ctx context.Context) error {
	if !o.opts.Takeover || o.kept != nil || o.opts.Features != nil {
		return nil
	}
	facts := agentFacts{constants: make(map[string]uint64)}
	for i := range o.hooks {
		theirs := o.hooks[i].theirs()
		facts.real = facts.real || o.mapNamed(lbmap.Services4Map).usedBy(theirs) || o.mapNamed(lbmap.Services6Map).usedBy(theirs)
		for _, id := range theirs.maps {
			if err := addConstants(id, "__config_", facts.constants); err != nil {
				return err
			}
		}
	}
	o.agent = &facts
	if !facts.real {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(o.opts.AgentState, nodeConfig))
	switch {
	case err == nil:
		facts.defines = defines(string(text))
		hostOnly := facts.defines["ENABLE_SOCKET_LB_HOST_ONLY"]
		facts.hostOnly = &hostOnly
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	facts.hostOnly, err = o.tryHostOnly(ctx)
	return err
}

func (s *mapState) usedBy(p program) bool {
	return slices.ContainsFunc(s.used, func(use mapUse) bool { return slices.Contains(p.maps, use.id) })
}

// lookAtOwnFeatures finds out with which features programs of ours were loaded, where that is not kept
// because its pin was removed.
func (o *observation) lookAtOwnFeatures() error {
	if o.kept != nil || o.keptErr != nil {
		return nil
	}
	constants := make(map[string]uint64)
	for i := range o.hooks {
		if h := &o.hooks[i]; h.ours() {
			for _, id := range h.own().maps {
				if err := addConstants(id, constantPrefix, constants); err != nil {
					return err
				}
			}
		}
	}
	if len(constants) == 0 {
		return nil
	}
	f := DefaultFeatures()
	for field, value := range reflect.ValueOf(&f).Elem().Fields() {
		constant, ok := constants[field.Tag.Get("json")]
		switch {
		case !ok:
		case value.Kind() == reflect.Bool:
			value.SetBool(constant != 0)
		default:
			value.SetUint(constant)
		}
	}
	o.running = &f
	return nil
}

// addConstants adds the constants in a map, if it is one that holds those of a program, by their names
// without a prefix.
func addConstants(id ebpf.MapID, prefix string, all map[string]uint64) error {
	m, err := openMapID(id)
	if m == nil {
		return err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil || !strings.Contains(info.Name, ".rodata") {
		return err
	}
	handle, err := m.Handle()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return describe(fmt.Errorf("reading the types of map %d: %w", id, present(err)))
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return fmt.Errorf("reading the types of map %d: %w", id, err)
	}
	data, err := m.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("reading map %d: %w", id, err)
	}
	for typ, err := range types.All() {
		if err != nil {
			return err
		}
		section, ok := typ.(*btf.Datasec)
		if !ok || kept(section.Name) != info.Name && !strings.HasSuffix(info.Name, section.Name) {
			continue
		}
		for _, v := range section.Vars {
			variable, ok := v.Type.(*btf.Var)
			name, isConstant := "", false
			if ok {
				name, isConstant = strings.CutPrefix(variable.Name, prefix)
			}
			if end := int(v.Offset + v.Size); isConstant && v.Size <= 8 && end <= len(data) {
				var value [8]byte
				at := 0
				if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
					at = len(value) - int(v.Size)
				}
				copy(value[at:], data[v.Offset:end])
				all[name] = binary.NativeEndian.Uint64(value[:])
			}
		}
	}
	return nil
}

// defines are the macros that a C header defines.
func defines(header string) map[string]bool {
	all := make(map[string]bool)
	for line := bufio.NewScanner(strings.NewReader(header)); line.Scan(); {
		if words := strings.Fields(line.Text()); len(words) >= 2 && words[0] == "#define" {
			all[words[1]] = true
		}
	}
	return all
}

// apply sets those features that are known.
func (f *agentFacts) apply(o *observation, to *Features) {
	if !f.real {
		return
	}
	has := func(program string) bool {
		return slices.ContainsFunc(o.hooks, func(h hookState) bool { return h.reference == program && h.theirs().id != 0 })
	}
	to.IPv4 = has("cil_sock4_connect")
	to.IPv6 = slices.ContainsFunc(o.hooks, func(h hookState) bool { return o.mapNamed(lbmap.Services6Map).usedBy(h.theirs()) })
	to.NodePort = has("cil_sock4_post_bind") || has("cil_sock6_post_bind")
	to.HealthCheck = has("cil_sock4_pre_bind") || has("cil_sock6_pre_bind")
	if first, last := f.constants["nodeport_port_min"], f.constants["nodeport_port_max"]; first != 0 && first <= last {
		to.NodePortMin, to.NodePortMax = uint16(first), uint16(last)
	}
	if v, ok := f.constants["enable_lrp"]; ok {
		to.LocalRedirect = v != 0
	}
	if v, ok := f.constants["enable_no_service_endpoints_routable"]; ok {
		to.RejectNoBackend = v != 0
	}
	if f.constants["enable_jiffies"] != 0 {
		to.AffinityHz = uint32(f.constants["kernel_hz"])
	}
	if f.defines != nil {
		to.L7 = f.defines["ENABLE_L7_LB"]
		to.ExternalIPMitigation = !f.defines["DISABLE_EXTERNAL_IP_MITIGATION"]
	}
	if f.hostOnly != nil {
		to.HostNetnsOnly = *f.hostOnly
	}
}

// check returns an error wrapping [ErrFeaturesUnknown] if a feature that applications would notice could not
// be found out, and the options do not say it.
func (f *agentFacts) check(said []string) error {
	if !f.real || f.hostOnly != nil || slices.Contains(said, "host_netns_only") {
		return nil
	}
	return fmt.Errorf("%w: whether they translate in the host's network namespace only", ErrFeaturesUnknown)
}

// tryHostOnly finds out with sockets of this process whether the agent's programs translate in its own
// network namespace only: it connects a UDP socket to a service, which sends nothing, in this namespace and
// in a new one, and looks for what the programs have noted in the hash. It returns nil if there is no service
// to try, or neither socket is translated.
func (o *observation) tryHostOnly(ctx context.Context) (*bool, error) {
	list, err := lbmap.OpenTables(o.opts.MapsDir)
	if errors.Is(err, lbmap.ErrNoMap) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer list.Close()
	services, err := list.Services(ctx)
	if err != nil {
		return nil, err
	}
	hash, err := openPinnedMap(o.opts.pinPath(mapReverse4))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer hash.Close()
	for _, s := range services {
		if !s.Frontend.AddrPort.Addr().Is4() || s.Frontend.Protocol == lbmap.ProtocolTCP || len(s.Backends) == 0 || s.Frontend.AddrPort.Addr().IsUnspecified() {
			continue
		}
		here, err := isTranslated(s, hash)
		if err != nil {
			return nil, err
		}
		elsewhere, err := inNewNamespace(func() (bool, error) { return isTranslated(s, hash) })
		if err != nil {
			return nil, err
		}
		if here || elsewhere {
			hostOnly := !elsewhere
			return &hostOnly, nil
		}
	}
	return nil, nil
}

// isTranslated tells whether programs translate a socket that connects to a service.
func isTranslated(s lbmap.Service, hash *ebpf.Map) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return false, err
	}
	// In a namespace without routes it fails after the programs have run.
	_ = unix.Connect(fd, sockaddr.Of(unix.AF_INET, s.Frontend.AddrPort))
	translated := false
	for _, b := range s.Backends {
		if !b.AddrPort.Addr().Is4() {
			continue
		}
		key := lbmap.ReverseSKKey{Cookie: cookie, Backend: b.AddrPort}
		err := hash.Delete(key)
		for range 3 { // or an entry of no socket would be left
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				err = hash.Delete(key)
			}
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, fmt.Errorf("reading the hash: %w", err)
		}
		translated = translated || err == nil
	}
	return translated, nil
}

// inNewNamespace calls f in a network namespace that ends with it.
func inNewNamespace(f func() (bool, error)) (result bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("making a network namespace: %w", err)
			return
		}
		result, err = f()
	}()
	<-done
	return result, describe(err)
}
