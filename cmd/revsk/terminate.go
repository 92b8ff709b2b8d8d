// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/lbmap"
)

// terminateArgs are the arguments and flags.
type terminateArgs struct {
	backends []inspect.Backend
	allGone  bool
	service  lbmap.Frontend // the zero value: every one
	dryRun   bool
}

func newTerminateCommand(env *env) *cobra.Command {
	var args terminateArgs
	var service string
	cmd := &cobra.Command{
		Use:   "terminate {ADDR:PORT/PROTO... | --all-gone}",
		Short: "Destroy the sockets that are connected to a backend that is gone",
		Long: `Destroys sockets that are connected to a backend through a service, in all network
namespaces. Applications then get an error instead of waiting for a backend that
is gone: their next call fails with ECONNABORTED, or with EDESTADDRREQ if
it sends a datagram. PROTO is tcp or udp, or any for both.

Only sockets that are connected now, and through a service, are destroyed.
Sockets that have only sent datagrams to the backend, have disconnected or
connected elsewhere, or are connected to the backend's own address are left alone.

--all-gone destroys the sockets of every backend that is not in the backend maps
any more, for example after a control plane has crashed. It is refused while the
maps have no backend at all. Let the control plane write its services first: a
backend that it has not written yet looks gone.

First stop new connections to the backend (service add, or the control plane).
Otherwise a socket can connect to it again at once.

  OUTCOME  destroyed; failed, with the reason; or left: disconnected or
           reconnected before it could be destroyed

-o json also says the local address and the cookie of each socket.

Exits with 0 if no socket is connected to the backend any more, even if none was,
and with 3 if some could not be destroyed. Refuses in mode legacy, whose hash does
not prove that a socket is connected. If only the hash knows the service of a
connected socket, as before a migration, it says so and exits with 3.`,
		Example: `  revsk terminate 10.0.1.7:53/udp --dry-run
  revsk terminate 10.0.1.7:53/udp 10.0.1.7:53/tcp
  revsk terminate '[fd00:1::7]:443/tcp' --service '[fd00::1]:443'
  revsk terminate --all-gone -o json | jq -r '.sockets[] | .processes[].command'`,
		Args: func(_ *cobra.Command, words []string) error {
			if len(words) == 0 && !args.allGone {
				return errors.New("name the backends, or use --all-gone")
			}
			if len(words) > 0 && args.allGone {
				return errors.New("--all-gone finds the backends: do not name any")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, words []string) error {
			for _, w := range words {
				b, err := lbmap.ParseFrontend(w)
				if err != nil || b.Scope != lbmap.ScopeExternal {
					return usageError(fmt.Errorf("backend %q: expected ADDR:PORT/PROTO, such as 10.0.1.7:53/udp or [fd00:1::7]:443/tcp", w))
				}
				args.backends = append(args.backends, inspect.Backend{AddrPort: b.AddrPort, Protocol: b.Protocol})
			}
			if service != "" {
				var err error
				if args.service, err = parseService(service); err != nil {
					return err
				}
			}
			return runTerminate(cmd.Context(), env, args)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&service, "service", "", "only connections to this `ADDR:PORT[/PROTO]`, as service list prints it")
	flags.BoolVar(&args.allGone, "all-gone", false, "every backend that is not in the backend maps any more")
	addDryRunFlag(flags, &args.dryRun)
	return cmd
}

// parseService reads a service with or without a protocol.
func parseService(text string) (lbmap.Frontend, error) {
	f, err := lbmap.ParseFrontend(text)
	if err != nil && !strings.Contains(text, "/") {
		f, err = lbmap.ParseFrontend(text + "/" + lbmap.ProtocolAny.String())
	}
	if err != nil {
		return f, usageError(fmt.Errorf("service %q: expected ADDR:PORT or ADDR:PORT/PROTO, such as 10.96.0.1:53 or [fd00::1]:443/tcp", text))
	}
	return f, nil
}

func runTerminate(ctx context.Context, env *env, args terminateArgs) error {
	dp, err := env.openToInspect()
	if err != nil {
		return err
	}
	defer dp.Close()
	t, err := inspect.OpenTerminator(dp.InspectMaps(), inspect.Options{})
	if err != nil {
		return err
	}
	defer t.Close()
	if args.allGone {
		if args.backends, err = goneBackends(ctx, env, t); err != nil {
			return err
		}
	}
	service, err := serviceFilter(ctx, env, args.service)
	if err != nil {
		return err
	}
	report, err := t.Terminate(ctx, inspect.TerminateOptions{Backends: args.backends, Service: service, DryRun: args.dryRun})
	unmigrated := errors.Is(err, inspect.ErrUnmigrated)
	if err != nil && !unmigrated {
		if n := report.Count(inspect.OutcomeDestroyed); n > 0 {
			return exitError{exitPartly, fmt.Errorf("%w (%s destroyed before)", err, count(n, "socket was", "sockets were"))}
		}
		return err
	}
	if len(report.Sockets) == 0 && !unmigrated {
		services, err := servicesIfThere(ctx, env)
		if err == nil {
			err = refuseServices(args.backends, services)
		}
		if err != nil {
			return err
		}
	}
	now, clockErr := kclock.Monotonic()
	if clockErr != nil {
		return clockErr
	}
	if env.json() {
		doc, docErr := newTerminateDocument(args, report, now)
		if docErr != nil {
			return docErr
		}
		err = errors.Join(err, env.printJSON(doc))
	} else {
		err = errors.Join(err, printTerminated(env, args.dryRun, report))
	}
	if err != nil {
		return err
	}
	if n := report.Count(inspect.OutcomeFailed); n > 0 {
		return exitError{exitPartly, fmt.Errorf("%s could not be destroyed", count(n, "socket", "sockets"))}
	}
	return nil
}

// servicesIfThere returns the services, or none if their maps do not exist.
func servicesIfThere(ctx context.Context, env *env) ([]lbmap.Service, error) {
	tables, err := lbmap.OpenTables(env.mapsDir())
	if errors.Is(err, lbmap.ErrNoMap) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer tables.Close()
	return tables.Services(ctx)
}

// serviceFilter returns the filter for connections to a service. A service with the address 0.0.0.0 or [::] has every
// address with its port that no other service has: only then all services are read.
func serviceFilter(ctx context.Context, env *env, service lbmap.Frontend) (inspect.ServiceFilter, error) {
	filter := inspect.ServiceFilter{AddrPort: service.AddrPort, Protocol: service.Protocol}
	if !service.AddrPort.IsValid() || !service.AddrPort.Addr().IsUnspecified() {
		return filter, nil
	}
	services, err := servicesIfThere(ctx, env)
	for _, s := range services {
		if s.Frontend.AddrPort.Port() == service.AddrPort.Port() && !s.Frontend.AddrPort.Addr().IsUnspecified() {
			filter.Except = append(filter.Except, s.Frontend.AddrPort)
		}
	}
	return filter, err
}

// refuseServices returns an error if what was named as a backend is a service, and no backend.
func refuseServices(backends []inspect.Backend, services []lbmap.Service) error {
	for _, b := range backends {
		is := func(addr netip.AddrPort, protocol lbmap.Protocol) bool {
			return b.AddrPort == addr && (b.Protocol == protocol || b.Protocol == lbmap.ProtocolAny || protocol == lbmap.ProtocolAny)
		}
		isService := slices.ContainsFunc(services, func(s lbmap.Service) bool { return is(s.Frontend.AddrPort, s.Frontend.Protocol) })
		isBackend := slices.ContainsFunc(services, func(s lbmap.Service) bool {
			return slices.ContainsFunc(s.Backends, func(b lbmap.Backend) bool { return is(b.AddrPort, b.Protocol) })
		})
		if isService && !isBackend {
			return usageError(fmt.Errorf("%v is a service: name its backends, which revsk service list shows, and use --service %v", b, b))
		}
	}
	return nil
}

// connections is an [inspect.Reader] or [inspect.Terminator].
type connections interface {
	ConnectedBackends(context.Context) ([]inspect.Backend, error)
}

func goneBackends(ctx context.Context, env *env, of connections) ([]inspect.Backend, error) {
	// Connections first: a backend that is added meanwhile must not look gone.
	connected, err := of.ConnectedBackends(ctx)
	if err != nil {
		return nil, err
	}
	tables, err := lbmap.OpenTables(env.mapsDir())
	if err != nil {
		return nil, err
	}
	defer tables.Close()
	return inspect.GoneBackends(ctx, connected, tables)
}

func printTerminated(env *env, dryRun bool, report inspect.Report) error {
	if len(report.Sockets) > 0 {
		var t table
		t.row("PROTO", "STATE", "BACKEND", "SERVICE", "NETNS", "PROCESS", "OUTCOME")
		for _, s := range report.Sockets {
			outcome := string(s.Outcome)
			if s.Err != nil {
				outcome += ": " + oneLine(s.Err.Error())
			}
			t.row(s.Socket.Protocol, s.Socket.StateName(), s.Connection.Peer, s.Connection.Service,
				netnsText(s.Socket.NetNS), ownersText(s.Socket.Owners, false), outcome)
		}
		if err := t.print(env.Stdout); err != nil {
			return err
		}
	}
	does, n := "destroyed", report.Count(inspect.OutcomeDestroyed)
	if dryRun {
		does, n = "would destroy", report.Count(inspect.OutcomeFound)
	} else if env.quiet {
		return nil
	}
	_, err := fmt.Fprintf(env.Stdout, "%s %s\n", does, count(n, "socket", "sockets"))
	return err
}

func newTerminateDocument(args terminateArgs, report inspect.Report, now time.Duration) (api.Terminate, error) {
	doc := api.Terminate{
		Header:     newHeader(api.TerminateSchema),
		DryRun:     args.dryRun,
		Mechanism:  report.Mechanism,
		Backends:   []string{},
		Destroyed:  report.Count(inspect.OutcomeDestroyed),
		Left:       report.Count(inspect.OutcomeLeft),
		Failed:     report.Count(inspect.OutcomeFailed),
		Unmigrated: report.Unmigrated,
		Sockets:    []api.TerminatedSocket{},
	}
	slices.SortFunc(args.backends, inspect.Backend.Compare)
	for _, b := range args.backends {
		doc.Backends = append(doc.Backends, b.String())
	}
	if args.service.AddrPort.IsValid() {
		doc.Service = strings.TrimSuffix(args.service.String(), "/"+lbmap.ProtocolAny.String())
	}
	for _, t := range report.Sockets {
		s := api.TerminatedSocket{Outcome: string(t.Outcome)}
		if err := json.Unmarshal(appendSocket(nil, &t.Socket, now, &inspect.Filter{}), &s.Socket); err != nil {
			return doc, err
		}
		if t.Err != nil {
			s.Error = oneLine(t.Err.Error())
		}
		doc.Sockets = append(doc.Sockets, s)
	}
	return doc, nil
}
