// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
)

// serviceFlags are the flags of a service that can be set on the command line. "service list" shows all of them.
var serviceFlags = []struct {
	bit         lbmap.ServiceFlags
	name, usage string
}{
	{lbmap.FlagNodePort, "nodeport", "a NodePort service; ADDR is 0.0.0.0 or [::] for every address of the node"},
	{lbmap.FlagHostPort, "hostport", "a host port"},
	{lbmap.FlagLoopback, "loopback", "a host port on a loopback address; with --hostport"},
	{lbmap.FlagExternalIP, "external-ip", "the address is an external IP"},
	{lbmap.FlagLoadBalancer, "load-balancer", "the address is that of a load balancer"},
	{lbmap.FlagRoutable, "routable", "reachable from outside the cluster"},
	{lbmap.FlagExternalLocal, "external-traffic-policy-local", "external traffic policy local"},
	{lbmap.FlagInternalLocal, "internal-traffic-policy-local", "internal traffic policy local"},
	{lbmap.FlagTwoScopes, "two-scopes", "has an entry in each scope: add both"},
	{lbmap.FlagLocalRedirect, "local-redirect", "a local-redirect service"},
	{lbmap.FlagL7Delegate, "l7-delegate", "not translated, for the local L7 proxy; not with --hostport"},
	{lbmap.FlagNAT46x64, "nat-46x64", "backends are of the other address family"},
	{lbmap.FlagDSR, "dsr", "replies go to the client directly"},
	{lbmap.FlagSourceRange, "source-range", "clients are checked against source ranges"},
	{lbmap.FlagSourceRangeDeny, "source-range-deny", "the source ranges are those that are denied"},
}

var algorithms = []lbmap.Algorithm{lbmap.AlgorithmDefault, lbmap.AlgorithmRandom, lbmap.AlgorithmMaglev}

var backendStates = []lbmap.BackendState{
	lbmap.BackendActive, lbmap.BackendTerminating, lbmap.BackendQuarantined, lbmap.BackendMaintenance,
}

// listNames are the names of flags by the other names that "service list" prints.
var listNames = map[string]string{
	"node-port":        "nodeport",
	"host-port":        "hostport",
	"external-local":   "external-traffic-policy-local",
	"internal-local":   "internal-traffic-policy-local",
	"l7-load-balancer": "l7-proxy",
}

func listName(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if flag, ok := listNames[name]; ok {
		name = flag
	}
	return pflag.NormalizedName(name)
}

// serviceArgs is a service as the command line describes it.
type serviceArgs struct {
	backends   []string
	noBackends bool
	affinity   uint32 // seconds
	algorithm  string
	scope      string
	l7Proxy    uint16
	revNat     uint16
	flags      []bool // as serviceFlags
	given      *pflag.FlagSet
}

func newServiceAddCommand(env *env) *cobra.Command {
	var args serviceArgs
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "add ADDR:PORT/PROTO --backend ADDR:PORT[,ADDR:PORT...]",
		Short: "Add a service, or replace the one with this address",
		Long: `Writes a service with its backends. PROTO is tcp, udp, udplite, any or a number.
If the service exists, it is replaced; open connections keep their backend. The
hooks see either the old service or the new one.

Backends have the address family and the protocol of the service.
ADDR:PORT/STATE sets the state of a backend: active (the default), terminating,
quarantined or maintenance. A backend has one state for all services.

You can also use the names of flags that "service list" prints.

If anything about the service is wrong or does not fit, nothing is written.`,
		Example: `  revsk service add 10.96.0.1:80/tcp --backend 10.0.1.1:8080,10.0.1.2:8080
  revsk service add '[fd00::1]:53/udp' --backend '[fd00:1::1]:53' --affinity 300
  revsk service add 0.0.0.0:30080/tcp --nodeport --backend 10.0.1.1:8080
  revsk service add 10.96.0.1:80/tcp --no-backend      # rejects connections`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, addr []string) error {
			args.given = cmd.Flags()
			service, err := args.service(addr[0])
			if err != nil {
				return err
			}
			return runServiceAdd(cmd.Context(), env, service, dryRun, wait)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringSliceVar(&args.backends, "backend", nil, "backends as `ADDR:PORT`[/STATE], separated by commas or given repeatedly")
	flags.BoolVar(&args.noBackends, "no-backend", false, "the service has no backends: what goes to it is rejected")
	flags.Uint32Var(&args.affinity, "affinity", 0, "`seconds` for which a client keeps its backend after its last connection")
	addChoice(cmd, flags, &args.algorithm, words(algorithms), "algorithm", "", "how packets choose a backend: default, random or maglev; sockets ignore it")
	addChoice(cmd, flags, &args.scope, []string{"external", "internal"}, "scope", "", "external, or internal for clients within the cluster, which implies --two-scopes")
	flags.Uint16Var(&args.l7Proxy, "l7-proxy", 0, "`port` of the local L7 proxy that the service goes to")
	flags.Uint16Var(&args.revNat, "rev-nat", 0, "reverse-NAT `index`; 0: keep it, or take a free one")
	args.flags = make([]bool, len(serviceFlags))
	for i, f := range serviceFlags {
		flags.BoolVar(&args.flags[i], f.name, false, f.usage)
	}
	addDryRunFlag(flags, &dryRun)
	addServiceWaitFlag(flags, &wait)
	flags.SetNormalizeFunc(listName)
	cmd.MarkFlagsMutuallyExclusive("backend", "no-backend")
	cmd.MarkFlagsOneRequired("backend", "no-backend")
	return cmd
}

// service checks the arguments and returns the service that they describe.
func (a *serviceArgs) service(addr string) (lbmap.Service, error) {
	frontend, err := lbmap.ParseFrontend(addr)
	if err != nil {
		return lbmap.Service{}, err
	}
	s := lbmap.Service{Frontend: frontend, RevNat: a.revNat, L7ProxyPort: a.l7Proxy}
	for i, f := range serviceFlags {
		if a.flags[i] {
			s.Flags |= f.bit
		}
	}
	if s.Flags.Has(lbmap.FlagLoopback) {
		isLoopback, isDelegate := a.isSet("loopback"), a.isSet("l7-delegate")
		if isLoopback && !a.isSet("hostport") {
			return s, usageError(errors.New("--loopback needs --hostport"))
		}
		if isDelegate && a.isSet("hostport") {
			return s, usageError(errors.New("--l7-delegate excludes --hostport"))
		}
	}
	if a.scope != "" {
		scope, err := lbmap.ParseScope(a.scope)
		if err != nil {
			return s, err
		}
		if strings.Count(addr, "/") > 1 && scope != frontend.Scope {
			return s, usageError(fmt.Errorf("service %v: --scope %v contradicts it", frontend, scope))
		}
		s.Frontend.Scope = scope
	}
	if s.Frontend.Scope == lbmap.ScopeInternal {
		s.Flags |= lbmap.FlagTwoScopes
	}
	if a.affinity > 0 {
		s.Flags |= lbmap.FlagAffinity
		s.AffinityTimeout = time.Duration(a.affinity) * time.Second
	}
	if a.algorithm != "" {
		s.Algorithm = algorithms[slices.Index(words(algorithms), a.algorithm)]
	}
	if a.given.Changed("l7-proxy") {
		s.Flags |= lbmap.FlagL7LoadBalancer
	}
	for _, text := range a.backends {
		b, err := parseBackend(text, frontend.Protocol)
		if err != nil {
			return s, err
		}
		s.Backends = append(s.Backends, b)
	}
	return s, nil
}

func (a *serviceArgs) isSet(name string) bool {
	for i, f := range serviceFlags {
		if f.name == name {
			return a.flags[i]
		}
	}
	return false
}

func parseBackend(text string, protocol lbmap.Protocol) (lbmap.Backend, error) {
	addr, state, _ := strings.Cut(text, "/")
	b := lbmap.Backend{Protocol: protocol}
	var err error
	if b.AddrPort, err = netip.ParseAddrPort(addr); err != nil {
		return b, usageError(fmt.Errorf("backend %q: expected ADDR:PORT, such as 10.0.1.1:8080 or [fd00:1::1]:53", text))
	}
	if a := b.AddrPort.Addr(); a.Is4In6() {
		return b, usageError(fmt.Errorf("backend %q: v4-mapped address, write it as %v", text, netip.AddrPortFrom(a.Unmap(), b.AddrPort.Port())))
	}
	if b.AddrPort.Port() == 0 {
		return b, usageError(fmt.Errorf("backend %q: port 0 is not valid", text))
	}
	if state == "" {
		return b, nil
	}
	i := slices.Index(words(backendStates), state)
	if i < 0 {
		return b, usageError(fmt.Errorf("backend %q: unknown state: use one of %s", text, strings.Join(words(backendStates), ", ")))
	}
	b.State = backendStates[i]
	return b, nil
}

func words[T fmt.Stringer](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	return all
}

func runServiceAdd(ctx context.Context, env *env, service lbmap.Service, dryRun bool, wait time.Duration) error {
	writer, err := openServices(env, wait)
	if err != nil {
		return err
	}
	defer writer.Close()
	upsert := writer.Upsert
	if dryRun {
		upsert = writer.PlanUpsert
	}
	change, err := upsert(ctx, service)
	if err != nil {
		return err
	}
	return reportService(env, dryRun, change)
}

var actionDone = map[lbmap.Action]string{
	lbmap.ActionAdd: "added", lbmap.ActionReplace: "replaced", lbmap.ActionKeep: "already there:", lbmap.ActionDelete: "deleted",
}

func reportService(env *env, dryRun bool, change lbmap.Change) error {
	s := change.Service
	if env.json() {
		return env.printJSON(api.ServiceChange{Header: newHeader(api.ServiceChangeSchema), DryRun: dryRun, Action: change.Action, Service: newServiceDocument(s)})
	}
	does := actionDone[change.Action]
	if dryRun {
		does = "would " + string(change.Action)
	} else if env.quiet {
		return nil
	}
	_, err := fmt.Fprintf(env.Stdout, "%s %v with %s and reverse-NAT index %d\n",
		does, s.Frontend, count(len(s.Backends), "backend", "backends"), s.RevNat)
	return err
}
