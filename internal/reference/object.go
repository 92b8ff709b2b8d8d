// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../../bpf/lib" -target bpfel,bpfeb -go-package reference -output-stem reference -no-global-types Reference reference.c

// ErrCompiled is returned when an object was compiled without a feature that is asked for, or with one that
// is not.
var ErrCompiled = errors.New("compiled for other features")

// Object is what a compiler has made of the programs of an agent.
type Object struct {
	name string
	spec *ebpf.CollectionSpec
	// defines are what the compiler was told, where that is known.
	defines map[string]string
}

// Open reads the compiled object of an agent: on a node the agent's own bpf_sock.o. What else it was compiled
// with is read from globals/node_config.h in the same directory, where the agent writes it. Without that
// file it is taken to be the default.
func Open(file string) (*Object, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the reference's object: %w", err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s is not a compiled BPF object: %w", file, err)
	}
	o := &Object{name: file, spec: spec}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("%s is not the socket load balancer of a reference that is known: %w", file, err)
	}
	header, err := os.ReadFile(filepath.Join(filepath.Dir(file), "globals", "node_config.h"))
	if errors.Is(err, os.ErrNotExist) {
		return o, nil
	}
	o.defines = defines(string(header))
	return o, err
}

// Ours is the object of our own programs under the reference's names.
func Ours() (*Object, error) {
	spec, err := LoadReference()
	if err != nil {
		return nil, err
	}
	return &Object{name: "our own programs", spec: spec}, nil
}

// IsOurs reports whether the programs are our own.
func (o *Object) IsOurs() bool { return o.spec.Variables["cfg_ipv4"] != nil }

// check looks for what tells the object from others, and from those of releases with other maps.
func (o *Object) check() error {
	if o.spec.Programs["cil_sock4_connect"] == nil && o.spec.Programs["cil_sock6_connect"] == nil {
		return errors.New("it has neither of the programs cil_sock4_connect and cil_sock6_connect")
	}
	for name, prog := range o.spec.Programs {
		if attach, ok := attachTypes[name]; ok && prog.AttachType != attach {
			return fmt.Errorf("program %s is for %v, not %v", name, prog.AttachType, attach)
		}
	}
	if o.spec.Maps[lbmap.ReverseSK4Map] == nil && o.spec.Maps[lbmap.ReverseSK6Map] == nil {
		return fmt.Errorf("it has neither of the maps %s and %s", lbmap.ReverseSK4Map, lbmap.ReverseSK6Map)
	}
	known, err := LoadReference()
	if err != nil {
		return err
	}
	for name, want := range known.Maps {
		m := o.spec.Maps[name]
		if m != nil && strings.HasPrefix(name, "cilium_") && (m.KeySize != want.KeySize || m.ValueSize != want.ValueSize) {
			return fmt.Errorf("map %s has keys of %d bytes and values of %d, not %d and %d",
				name, m.KeySize, m.ValueSize, want.KeySize, want.ValueSize)
		}
	}
	for name := range constants(loader.Features{}) {
		if o.spec.Variables[name] == nil {
			return fmt.Errorf("it has no constant %s", name)
		}
	}
	return nil
}

// constants are what the reference's agent sets when it loads its programs.
func constants(f loader.Features) map[string]any {
	return map[string]any{
		"__config_enable_lrp":                           f.LocalRedirect,
		"__config_enable_no_service_endpoints_routable": f.RejectNoBackend,
		"__config_nodeport_port_min":                    f.NodePortMin,
		"__config_nodeport_port_max":                    f.NodePortMax,
	}
}

// ownConstants are, in our own programs, in the place of what a compiler is told.
func ownConstants(f loader.Features) map[string]any {
	return map[string]any{
		"cfg_ipv4":                     f.IPv4,
		"cfg_ipv6":                     f.IPv6,
		"cfg_host_netns_cookie":        f.HostNetnsCookie,
		"cfg_host_netns_only":          f.HostNetnsOnly,
		"cfg_nodeport":                 f.NodePort,
		"cfg_protocol_differentiation": f.ProtocolDifferentiation,
		"cfg_external_ip_mitigation":   f.ExternalIPMitigation,
		"cfg_session_affinity":         f.SessionAffinity,
		"cfg_l7":                       f.L7,
		"cfg_health_check":             f.HealthCheck,
		"cfg_set_retval":               features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil,
	}
}

// compiled are the features that the object has, with those of f that are set when it is loaded.
//
// Features that Cilium 1.20 cannot turn off are on: session affinity and protocol differentiation.
func (o *Object) compiled(f loader.Features) loader.Features {
	if o.IsOurs() {
		return f
	}
	c := loader.DefaultFeatures()
	c.IPv4 = o.spec.Programs["cil_sock4_connect"] != nil
	c.IPv6 = o.spec.Maps[lbmap.Services6Map] != nil
	c.NodePort = o.spec.Programs["cil_sock4_post_bind"] != nil || o.spec.Programs["cil_sock6_post_bind"] != nil
	c.HealthCheck = o.spec.Programs["cil_sock4_pre_bind"] != nil || o.spec.Programs["cil_sock6_pre_bind"] != nil
	if o.defines != nil {
		has := func(name string) bool { _, ok := o.defines[name]; return ok }
		c.L7 = has("ENABLE_L7_LB")
		c.HostNetnsOnly = has("ENABLE_SOCKET_LB_HOST_ONLY")
		c.ExternalIPMitigation = !has("DISABLE_EXTERNAL_IP_MITIGATION")
	}
	c.LocalRedirect, c.RejectNoBackend = f.LocalRedirect, f.RejectNoBackend
	c.NodePortMin, c.NodePortMax = f.NodePortMin, f.NodePortMax
	return c
}

// Features are the default, but for what the object was compiled with.
func (o *Object) Features() loader.Features { return o.compiled(loader.DefaultFeatures()) }

// Supports returns an error wrapping [ErrCompiled] if the object cannot have these features.
func (o *Object) Supports(f loader.Features) error {
	var differ []string
	want, have := reflect.ValueOf(f), reflect.ValueOf(o.compiled(f))
	for i := range want.NumField() {
		if w, h := want.Field(i).Interface(), have.Field(i).Interface(); w != h {
			differ = append(differ, fmt.Sprintf("%s is %v, not %v", want.Type().Field(i).Name, h, w))
		}
	}
	if differ != nil {
		return fmt.Errorf("%s: %w: %s", o.name, ErrCompiled, strings.Join(differ, ", "))
	}
	return nil
}

// Agent makes an agent of the object's programs. It uses the maps that are pinned in the directory, and
// pins those that are missing.
func (o *Object) Agent(mapsDir string, f loader.Features) (*Agent, error) {
	if err := o.Supports(f); err != nil {
		return nil, err
	}
	spec := o.spec.Copy()
	for name := range spec.Programs {
		if _, ok := attachTypes[name]; !ok || !attached(name, f) {
			delete(spec.Programs, name)
		}
	}
	set := constants(f)
	if o.IsOurs() {
		for name, value := range ownConstants(f) {
			set[name] = value
		}
	}
	for name, value := range set {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("%s: constant %s: %w", o.name, name, err)
		}
	}
	return load(spec, mapsDir)
}

// attached reports whether an agent with these features attaches the program.
func attached(name string, f loader.Features) bool {
	switch {
	case strings.HasSuffix(name, "_pre_bind"):
		return f.HealthCheck
	case strings.HasSuffix(name, "_post_bind"):
		return f.NodePort
	}
	return true
}

// defines reads the macros of a C header that have no parameters.
func defines(header string) map[string]string {
	all := make(map[string]string)
	for line := range strings.Lines(header) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "#define "); ok {
			name, value, _ := strings.Cut(strings.TrimSpace(rest), " ")
			all[name] = strings.TrimSpace(value)
		}
	}
	return all
}
