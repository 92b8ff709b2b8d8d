// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
)

func newServiceListCommand(env *env) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List services with their flags and backends",
		Long: `Lists every service of both address families, sorted by address, with its flags,
its reverse-NAT index and its backends in the order of their slots. A backend that
is not active has its state beside it. A backend without an entry in the backend
map is shown by its id only.`,
		Example: `  revsk service list
  revsk service list -o json | jq '.services[] | select(.backends == [])'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tables, err := lbmap.OpenTables(env.mapsDir())
			if err != nil {
				return err
			}
			defer tables.Close()
			services, err := tables.Services(cmd.Context())
			if err != nil {
				return err
			}
			if env.json() {
				return env.printJSON(newServicesDocument(services))
			}
			return printServices(env, services)
		},
	}
}

func newServicesDocument(services []lbmap.Service) api.Services {
	doc := api.Services{Header: newHeader(api.ServicesSchema), Services: []api.Service{}}
	for _, s := range services {
		doc.Services = append(doc.Services, newServiceDocument(s))
	}
	return doc
}

func newServiceDocument(s lbmap.Service) api.Service {
	doc := api.Service{
		Frontend:        s.Frontend.String(),
		Address:         s.Frontend.AddrPort.Addr(),
		Port:            s.Frontend.AddrPort.Port(),
		Protocol:        s.Frontend.Protocol,
		Scope:           s.Frontend.Scope,
		RevNat:          s.RevNat,
		Flags:           []string{},
		AffinitySeconds: int64(s.AffinityTimeout / time.Second),
		Algorithm:       s.Algorithm.String(),
		L7ProxyPort:     s.L7ProxyPort,
		Backends:        []api.Backend{},
	}
	if s.Flags != 0 {
		doc.Flags = strings.Split(s.Flags.String(), ",")
	}
	for _, b := range s.Backends {
		bd := api.Backend{
			ID: b.ID, Protocol: b.Protocol, State: b.State.String(), Quarantined: b.Quarantined,
			ClusterID: b.ClusterID, Zone: b.Zone,
		}
		if b.AddrPort.IsValid() {
			bd.Address = b.AddrPort.String()
		}
		doc.Backends = append(doc.Backends, bd)
	}
	return doc
}

// If a table of services would be wider than tableWidth, flags are wrapped. If it still is, long services get a line of their
// own.
const (
	wrappedFlags = 22
	longService  = 24
)

func printServices(env *env, services []lbmap.Service) error {
	var t table
	for _, layout := range []struct{ flags, service int }{{}, {flags: wrappedFlags}, {wrappedFlags, longService}} {
		t = servicesTable(services, layout.flags, layout.service)
		if t.width() <= tableWidth {
			break
		}
	}
	return t.print(env.Stdout)
}

// servicesTable wraps flags at a width, and breaks the line after longer services; 0 does neither.
func servicesTable(services []lbmap.Service, flagsWidth, serviceWidth int) table {
	var t table
	t.row("SERVICE", "REV-NAT", "FLAGS", "BACKENDS")
	for _, s := range services {
		name := s.Frontend.String()
		if serviceWidth > 0 && len(name) > serviceWidth {
			t.line(name)
			name = " "
		}
		flags := wrap(flagsText(s), flagsWidth)
		backends := []string{"none"}
		if len(s.Backends) > 0 {
			backends = nil
			for _, b := range s.Backends {
				backends = append(backends, backendText(b))
			}
		}
		t.row(name, s.RevNat, flags[0], backends[0])
		for i := 1; i < max(len(flags), len(backends)); i++ {
			row := []string{"", "", "", ""}
			if i < len(flags) {
				row[2] = flags[i]
			}
			if i < len(backends) {
				row[3] = backends[i]
			}
			t.rows = append(t.rows, row)
		}
	}
	return t
}

// wrap breaks words that are separated by commas into lines of a width, where they fit; 0 does not.
func wrap(words string, width int) []string {
	if width == 0 {
		return []string{words}
	}
	var lines []string
	line := ""
	for word := range strings.SplitSeq(words, ",") {
		if line != "" && len(line)+len(word)+2 > width {
			lines = append(lines, line+",")
			line = ""
		}
		if line != "" {
			line += ","
		}
		line += word
	}
	return append(lines, line)
}

// flagsText is the flags with what belongs to them.
func flagsText(s lbmap.Service) string {
	if s.Flags == 0 && s.Algorithm == lbmap.AlgorithmDefault {
		return ""
	}
	var flags []string
	for _, f := range strings.Split(s.Flags.String(), ",") {
		switch {
		case s.Flags == 0:
			continue
		case f == lbmap.FlagAffinity.String():
			f = fmt.Sprintf("%s=%v", f, s.AffinityTimeout)
		case f == lbmap.FlagL7LoadBalancer.String():
			f = fmt.Sprintf("%s=%d", f, s.L7ProxyPort)
		}
		flags = append(flags, f)
	}
	if s.Algorithm != lbmap.AlgorithmDefault {
		flags = append(flags, s.Algorithm.String())
	}
	return strings.Join(flags, ",")
}

func backendText(b lbmap.Backend) string {
	if !b.AddrPort.IsValid() {
		return fmt.Sprintf("id %d (no entry)", b.ID)
	}
	var notes []string
	if b.State != lbmap.BackendActive {
		notes = append(notes, b.State.String())
	}
	if b.Quarantined && b.State != lbmap.BackendQuarantined {
		notes = append(notes, "quarantined")
	}
	if b.ClusterID != 0 {
		notes = append(notes, fmt.Sprintf("cluster %d", b.ClusterID))
	}
	if b.Zone != 0 {
		notes = append(notes, fmt.Sprintf("zone %d", b.Zone))
	}
	if notes == nil {
		return b.AddrPort.String()
	}
	return fmt.Sprintf("%v (%s)", b.AddrPort, strings.Join(notes, ", "))
}
