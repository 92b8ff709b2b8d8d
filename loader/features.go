// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/cilium/ebpf"
)

// Features are what is optional in the datapath. They are constants to the verifier, which removes
// the branches of what is off.
type Features struct {
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
	// HostNetnsCookie is SO_NETNS_COOKIE of the host's network namespace; 0: the kernel's
	// initial one.
	HostNetnsCookie uint64 `json:"host_netns_cookie"`
	// HostNetnsOnly translates in the host's network namespace only.
	HostNetnsOnly bool `json:"host_netns_only"`
	// NodePort looks up NodePort and HostPort services by port, on the node's addresses.
	NodePort bool `json:"nodeport"`
	// NodePortMin and NodePortMax are the first and last port of the NodePort range.
	NodePortMin uint16 `json:"nodeport_min"`
	NodePortMax uint16 `json:"nodeport_max"`
	// ProtocolDifferentiation looks services up by protocol first.
	ProtocolDifferentiation bool `json:"protocol_differentiation"`
	// AnyProtocol looks for a service of any protocol where there is none of the protocol. Without
	// ProtocolDifferentiation there are no others.
	AnyProtocol bool `json:"any_protocol"`
	// ExternalIPMitigation leaves external IPs alone that are not this host's.
	ExternalIPMitigation bool `json:"external_ip_mitigation"`
	// RejectNoBackend rejects what goes to a service without backends, with EHOSTUNREACH.
	RejectNoBackend bool `json:"reject_no_backend"`
	// SessionAffinity keeps the clients of a network namespace to one backend.
	SessionAffinity bool `json:"session_affinity"`
	// AffinityHz is the number of ticks per second of the kernel (CONFIG_HZ) where the agent's clock is in
	// jiffies: the entries of affinity are in its unit then. 0: it is in seconds, as by default.
	AffinityHz uint32 `json:"affinity_hz"`
	// LocalRedirect honours the skip entries of local-redirect services.
	LocalRedirect bool `json:"local_redirect"`
	// L7 knows services of an L7 load balancer.
	L7 bool `json:"l7"`
	// HealthCheck leaves sockets with SO_MARK 0x0d00 untranslated.
	HealthCheck bool `json:"health_check"`
}

// DefaultFeatures are those of the reference agent's defaults.
func DefaultFeatures() Features {
	return Features{
		IPv4: true, IPv6: true,
		NodePort: true, NodePortMin: 30000, NodePortMax: 32767,
		ProtocolDifferentiation: true,
		AnyProtocol:             true,
		ExternalIPMitigation:    true,
		RejectNoBackend:         true,
		SessionAffinity:         true,
		LocalRedirect:           true,
		L7:                      true,
	}
}

// constants gives each feature the name of its constant in bpf/lib/config.h: that in JSON, after a prefix.
func (f Features) constants() map[string]any {
	all := make(map[string]any)
	for field, value := range reflect.ValueOf(f).Fields() {
		all[constantPrefix+field.Tag.Get("json")] = value.Interface()
	}
	return all
}

const constantPrefix = "cfg_"

// check returns an error wrapping [ErrInvalid] for features with which nothing would be translated, or not
// what is meant.
func (f Features) check() error {
	if !f.IPv4 && !f.IPv6 {
		return fmt.Errorf("%w: neither IPv4 nor IPv6", ErrInvalid)
	}
	if f.NodePort && (f.NodePortMin == 0 || f.NodePortMin > f.NodePortMax) {
		return fmt.Errorf("%w: NodePort range %d-%d", ErrInvalid, f.NodePortMin, f.NodePortMax)
	}
	return nil
}

// keptState is what is kept with the datapath beside its maps: as JSON in the only entry of an array. Another
// array takes its place with every change, so that nobody reads half of one.
type keptState struct {
	Features
	// AgentLinks is the directory in which another agent had pinned its links when they were taken over.
	AgentLinks string `json:"agent_links,omitempty"`
	// LoadedBy is the version of the program that loaded last.
	LoadedBy string `json:"loaded_by,omitempty"`
}

const (
	mapFeatures  = "revsk_features"
	featuresSize = 1024
)

// Differences are the features in which f is not as other, each as NAME=VALUE with the name that it has
// in JSON.
func (f Features) Differences(other Features) []string {
	var all []string
	others := reflect.ValueOf(other)
	for field, value := range reflect.ValueOf(f).Fields() {
		if value.Interface() != others.FieldByIndex(field.Index).Interface() {
			all = append(all, fmt.Sprintf("%s=%v", field.Tag.Get("json"), value.Interface()))
		}
	}
	return all
}

// readKept returns what is kept with the datapath; nil if nothing is yet. Returns an error wrapping [ErrNotAPin] or [ErrLayout] if
// what is there is something else.
func readKept(opts Options) (*keptState, error) {
	path := opts.pinPath(mapFeatures)
	m, err := openPinnedMap(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if m.Type() != ebpf.Array || m.ValueSize() != featuresSize {
		return nil, fmt.Errorf("%s: %w: it does not hold features", path, ErrLayout)
	}
	state := &keptState{Features: DefaultFeatures()}
	text, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, describe(fmt.Errorf("reading %s: %w", path, present(err)))
	}
	if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), state); err != nil {
		return nil, fmt.Errorf("%s: %w: it does not hold features: %w", path, ErrLayout, err)
	}
	return state, nil
}
