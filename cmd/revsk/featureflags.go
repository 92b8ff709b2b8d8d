// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/revsk/revsk/loader"
)

// addFeatureFlags gives every optional feature of the datapath its flag. What f holds is the default.
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
		{&f.AnyProtocol, "any-protocol", "look for a service of any protocol where there is none of the protocol"},
		{&f.ExternalIPMitigation, "external-ip-mitigation", "leave external IPs alone that are not this host's"},
		{&f.RejectNoBackend, "reject-no-backend", "reject what goes to a service without backends, rather than leave it alone"},
		{&f.SessionAffinity, "session-affinity", "keep the clients of a network namespace to one backend, for services that ask for it"},
		{&f.LocalRedirect, "local-redirect", "honour the skip entries of local-redirect services"},
		{&f.L7, "l7", "know services of an L7 load balancer"},
		{&f.HealthCheck, "health-check", "leave health checkers' sockets (SO_MARK 0x0d00) alone"},
	} {
		flags.BoolVar(feature.value, feature.name, *feature.value, feature.usage)
	}
	flags.Var(&portRange{&f.NodePortMin, &f.NodePortMax}, "nodeport-range", "first and last `port` of NodePort services")
	flags.Uint32Var(&f.AffinityHz, "affinity-hz", f.AffinityHz,
		"ticks of the kernel per second, if the agent's `clock` is in jiffies; 0: its clock is in seconds")
	flags.Uint64Var(&f.HostNetnsCookie, "host-netns-cookie", f.HostNetnsCookie,
		"SO_NETNS_COOKIE of the host's network `namespace`; 0: the kernel's first one")
}

// changeFeatures applies the flags that were given to the features.
func changeFeatures(given *pflag.FlagSet, f *loader.Features) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	addFeatureFlags(flags, f)
	given.Visit(func(flag *pflag.Flag) {
		if flags.Lookup(flag.Name) != nil {
			// It was understood once.
			_ = flags.Set(flag.Name, flag.Value.String())
		}
	})
}

// saidFeatures are the features whose flags were given, by their names in JSON.
func saidFeatures(given *pflag.FlagSet) (said []string) {
	given.Visit(func(flag *pflag.Flag) { said = append(said, strings.ReplaceAll(flag.Name, "-", "_")) })
	return said
}

// portRange is a flag like 30000-32767.
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
