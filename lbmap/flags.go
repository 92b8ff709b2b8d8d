// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"strings"
)

// ServiceFlags are the two flag bytes of a value of
// cilium_lb{4,6}_services_v2: flags in the low byte, flags2 in the high one.
//
// Two bits of flags2 mean one thing or another depending on where they are:
//
//   - [FlagLoopback] with [FlagHostPort], else [FlagL7Delegate];
//   - [FlagSourceRangeDeny] in slot 0, else [FlagQuarantined].
//
// The flags of a [Service] are those of slot 0.
type ServiceFlags uint16

// The flags of a service.
const (
	FlagExternalIP      ServiceFlags = 1 << iota // the address is an external IP
	FlagNodePort                                 // a node port
	FlagExternalLocal                            // external traffic policy local
	FlagHostPort                                 // a host port
	FlagAffinity                                 // session affinity
	FlagLoadBalancer                             // a load balancer address
	FlagRoutable                                 // reachable from outside the cluster
	FlagSourceRange                              // clients are checked against source ranges
	FlagLocalRedirect                            // local redirect
	FlagNAT46x64                                 // backends are of the other address family
	FlagL7LoadBalancer                           // goes to the local L7 proxy's port
	FlagLoopback                                 // with FlagHostPort: a host port on a loopback address
	FlagInternalLocal                            // internal traffic policy local
	FlagTwoScopes                                // has an entry in each scope
	FlagSourceRangeDeny                          // in slot 0: the source ranges are those denied
	FlagDSR                                      // replies go to the client directly

	// FlagL7Delegate is the bit of FlagLoopback in a service that is not a host
	// port: the service is left to the local L7 proxy as it is.
	FlagL7Delegate = FlagLoopback

	// FlagQuarantined is the bit of FlagSourceRangeDeny in a slot other than 0:
	// the backend has failed its health check.
	FlagQuarantined = FlagSourceRangeDeny
)

// notInSlots is what the slots of a service do not inherit from slot 0.
// In them the bit of FlagSourceRangeDeny would read as quarantined.
const notInSlots = FlagSourceRange | FlagSourceRangeDeny

// Has says whether all of the given bits are set.
func (f ServiceFlags) Has(bits ServiceFlags) bool { return f&bits == bits }

// IsLoopback says whether this is a host port on a loopback address.
func (f ServiceFlags) IsLoopback() bool { return f.Has(FlagLoopback | FlagHostPort) }

// IsL7Delegate says whether the service is left to the local L7 proxy.
func (f ServiceFlags) IsL7Delegate() bool { return f.Has(FlagL7Delegate) && !f.Has(FlagHostPort) }

// flagNames is in the order of the bits. The two bits with two meanings appear
// with the meaning that they have in slot 0 of a host port.
var flagNames = []struct {
	flag ServiceFlags
	name string
}{
	{FlagExternalIP, "external-ip"},
	{FlagNodePort, "node-port"},
	{FlagExternalLocal, "external-local"},
	{FlagHostPort, "host-port"},
	{FlagAffinity, "affinity"},
	{FlagLoadBalancer, "load-balancer"},
	{FlagRoutable, "routable"},
	{FlagSourceRange, "source-range"},
	{FlagLocalRedirect, "local-redirect"},
	{FlagNAT46x64, "nat-46x64"},
	{FlagL7LoadBalancer, "l7-load-balancer"},
	{FlagLoopback, loopbackName},
	{FlagInternalLocal, "internal-local"},
	{FlagTwoScopes, "two-scopes"},
	{FlagSourceRangeDeny, "source-range-deny"},
	{FlagDSR, "dsr"},
}

const (
	loopbackName    = "loopback"
	l7DelegateName  = "l7-delegate"
	quarantinedName = "quarantined"
	noFlagsName     = "none"
)

// String returns the names of all flags of slot 0 of a service, separated by
// commas, or "none".
func (f ServiceFlags) String() string { return f.names(false) }

// SlotString is String for the flags of a slot other than 0.
func (f ServiceFlags) SlotString() string { return f.names(true) }

func (f ServiceFlags) names(slot bool) string {
	var names []string
	for _, n := range flagNames {
		switch {
		case !f.Has(n.flag):
		case n.flag == FlagL7Delegate && f.IsL7Delegate():
			names = append(names, l7DelegateName)
		case n.flag == FlagQuarantined && slot:
			names = append(names, quarantinedName)
		default:
			names = append(names, n.name)
		}
	}
	if names == nil {
		return noFlagsName
	}
	return strings.Join(names, ",")
}

// ParseServiceFlags reads what [ServiceFlags.String] returns, in any order. The
// empty string is no flags. "loopback" needs "host-port" beside it, and
// "l7-delegate" excludes it, because the two share a bit.
//
// Returns an error wrapping [ErrSyntax].
func ParseServiceFlags(s string) (ServiceFlags, error) {
	if s == "" || s == noFlagsName {
		return 0, nil
	}
	var f ServiceFlags
	var loopback, delegate bool
	for name := range strings.SplitSeq(s, ",") {
		bit, err := parseFlag(name)
		if err != nil {
			return 0, err
		}
		f |= bit
		loopback = loopback || name == loopbackName
		delegate = delegate || name == l7DelegateName
	}
	if loopback && !f.Has(FlagHostPort) {
		return 0, fmt.Errorf("service flags %q: loopback needs host-port: %w", s, ErrSyntax)
	}
	if delegate && f.Has(FlagHostPort) {
		return 0, fmt.Errorf("service flags %q: l7-delegate excludes host-port: %w", s, ErrSyntax)
	}
	return f, nil
}

func parseFlag(name string) (ServiceFlags, error) {
	if name == l7DelegateName {
		return FlagL7Delegate, nil
	}
	known := []string{l7DelegateName}
	for _, n := range flagNames {
		if name == n.name {
			return n.flag, nil
		}
		known = append(known, n.name)
	}
	return 0, fmt.Errorf("service flag %q: expected one of %s: %w", name, strings.Join(known, ", "), ErrSyntax)
}

// MarshalText returns the same as [ServiceFlags.String].
func (f ServiceFlags) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText does the same as [ParseServiceFlags].
func (f *ServiceFlags) UnmarshalText(text []byte) error {
	v, err := ParseServiceFlags(string(text))
	if err == nil {
		*f = v
	}
	return err
}
