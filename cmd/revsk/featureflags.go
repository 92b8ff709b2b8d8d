// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/revsk/revsk/loader"
)

// addFeatureFlags adds a flag for every optional feature of the datapath. The defaults are those of f.
func addFeatureFlags(flags *pflag.FlagSet, f *loader.Features) {
	for _, feature := range []struct {
		value *bool
		name  string
		usage string
	}{
		{&f.IPv4, "ipv4", "translate IPv4"},
		{&f.IPv6, "ipv6", "translate IPv6"},
		{&f.HostNetnsOnly, "host-netns-only", "translate in the host's network namespace only"},
		{&f.NodePort, "nodeport", "look up NodePort and HostPort services on this node's addresses"},
		{&f.ProtocolDifferentiation, "protocol-differentiation", "look services up by protocol first"},
		{&f.AnyProtocol, "any-protocol", "if no service has the protocol, look for one of any protocol"},
		{&f.ExternalIPMitigation, "external-ip-mitigation", "do not translate external IPs that are not this host's"},
		{&f.RejectNoBackend, "reject-no-backend", "reject calls to a service without backends, instead of not translating them"},
		{&f.SessionAffinity, "session-affinity", "keep the clients of a network namespace at one backend, for services with session affinity"},
		{&f.LocalRedirect, "local-redirect", "honour the skip entries of local-redirect services"},
		{&f.L7, "l7", "handle services of an L7 load balancer"},
		{&f.HealthCheck, "health-check", "do not translate sockets of health checkers (SO_MARK 0x0d00)"},
	} {
		flags.BoolVar(feature.value, feature.name, *feature.value, feature.usage)
	}
	flags.Var(&portRange{&f.NodePortMin, &f.NodePortMax}, "nodeport-range", "first and last `port` of NodePort services")
	flags.Uint32Var(&f.AffinityHz, "affinity-hz", f.AffinityHz,
		"`ticks` of the kernel per second, if the agent's clock counts jiffies; 0: it counts seconds")
	flags.Uint64Var(&f.HostNetnsCookie, "host-netns-cookie", f.HostNetnsCookie,
		"`cookie` (SO_NETNS_COOKIE) of the host's network namespace; 0: the kernel's first one")
}

// changeFeatures applies the flags that were given to the features.
func changeFeatures(given *pflag.FlagSet, f *loader.Features) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	addFeatureFlags(flags, f)
	given.Visit(func(flag *pflag.Flag) {
		if flags.Lookup(flag.Name) != nil {
			// The value was parsed before.
			_ = flags.Set(flag.Name, flag.Value.String())
		}
	})
}

// saidFeatures are the features whose flags were given, by their names in JSON.
func saidFeatures(given *pflag.FlagSet) (said []string) {
	given.Visit(func(flag *pflag.Flag) { said = append(said, strings.ReplaceAll(flag.Name, "-", "_")) })
	return said
}

// portRange is the value of a flag, such as 30000-32767.
type portRange struct {
	first, last *uint16
}

func (r *portRange) String() string {
	if r.first == nil {
		return ""
	}
	return fmt.Sprintf("%d-%d", *r.first, *r.last)
}

func (r *portRange) Type() string { return "range" }

func (r *portRange) Set(s string) error {
	first, last, ok := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if !ok || errA != nil || errB != nil || a == 0 || a > b {
		return fmt.Errorf("expected FIRST-LAST, such as 30000-32767")
	}
	*r.first, *r.last = uint16(a), uint16(b)
	return nil
}
