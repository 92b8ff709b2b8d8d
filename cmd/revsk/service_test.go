// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
)

func TestServiceListDecodesEverything(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Equal(t, "SERVICE  REV-NAT  FLAGS  BACKENDS\n", p.run("service", "list").ok().stdout)
	golden(t, "services-none.json", p.run("service", "list", "-o", "json").ok().stdout)
	for _, line := range []string{
		"[fd00::1]:53/udp --backend [fd00:1::1]:53/terminating,[fd00:1::2]:53 --backend [fd00:1::3]:53/maintenance,[fd00:1::4]:53/quarantined",
		"10.96.0.1:80/tcp --backend 10.0.1.1:8080,10.0.1.2:8080 --affinity 300 --two-scopes",
		"10.96.0.1:80/tcp --scope internal --backend 10.0.1.2:8080 --algorithm maglev",
		"10.96.0.2:80/tcp --backend 10.0.1.1:8080 --l7-proxy 9000 --rev-nat 100",
		"10.96.0.3:80/tcp --no-backend --external-ip --load-balancer --routable",
		"10.96.0.4:7/udplite --no-backend --external-traffic-policy-local --internal-traffic-policy-local",
		"10.96.0.5:0/any --no-backend --local-redirect --dsr --l7-delegate",
		"10.96.0.6:80/tcp --no-backend --source-range --source-range-deny --algorithm random",
		"10.96.0.7:80/tcp --backend [fd00:1::1]:80 --nat-46x64",
		"0.0.0.0:30080/tcp --node-port --backend 10.0.1.1:8080",
		"127.0.0.1:8080/tcp --hostport --loopback --backend 10.0.1.1:8080",
	} {
		p.run(append([]string{"service", "add"}, strings.Fields(line)...)...).ok()
	}
	golden(t, "services.txt", p.run("service", "list").ok().stdout)
	golden(t, "services.json", p.run("service", "list", "-o", "json").ok().stdout)
}

// notices is standard error, of which a test awaits the first write.
type notices chan string

func (n notices) Write(p []byte) (int, error) {
	n <- string(p)
	return len(p), nil
}

func TestServiceWaitsForTheLockAndSaysSo(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	dir, err := os.Open(p.maps())
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	add := []string{"service", "add", "10.96.0.1:80/tcp", "--no-backend"}
	for _, args := range [][]string{add, {"service", "delete", "10.96.0.1:80/tcp"}} {
		for _, wait := range []string{"0s", "20ms"} {
			require.Contains(t, p.run(append(args, "--wait", wait)...).fails(exitFailed), "waiting for the lock of "+p.maps()+": locked by another process: "+
				"wait for the other process that writes services to finish, or use a longer --wait")
		}
	}

	stderr, done := make(notices, 10), make(chan int, 1)
	go func() { done <- run(t.Context(), &env{Stdout: io.Discard, Stderr: stderr}, p.args(add...)) }()
	require.Equal(t, "waiting for another process that is writing services: it has the lock of "+p.maps()+"\n", <-stderr)
	require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_UN))
	require.Equal(t, 0, <-done)

	require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	ctx, interrupt := context.WithCancel(t.Context())
	go func() { done <- run(ctx, &env{Stdout: io.Discard, Stderr: stderr}, p.args(add...)) }()
	require.Contains(t, <-stderr, "waiting for another process")
	interrupt()
	require.Equal(t, exitFailed, <-done)
}

func TestServiceListIsNoWiderThanATable(t *testing.T) {
	backends := []lbmap.Backend{
		{AddrPort: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"), State: lbmap.BackendMaintenance},
		{AddrPort: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:7777]:65535")},
	}
	services := []lbmap.Service{
		{Frontend: frontend(t, "10.96.0.1:80/tcp"), RevNat: 1, Backends: backends},
		{Frontend: frontend(t, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535/udplite/internal"), RevNat: 65535, Flags: 0xffff, Backends: backends},
	}
	var out strings.Builder
	require.NoError(t, printServices(&env{Stdout: &out}, services))
	golden(t, "services-wide.txt", out.String())
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, len(strings.TrimSpace(line)), tableWidth)
	}
}

func frontend(t *testing.T, text string) lbmap.Frontend {
	t.Helper()
	f, err := lbmap.ParseFrontend(text)
	require.NoError(t, err)
	return f
}

func TestErrorsAreJSONWhereThatWasAskedFor(t *testing.T) {
	p := newPlace(t)
	var doc api.Error
	r := p.run("service", "list", "-o", "json")
	message := r.fails(exitFailed)
	r.json(&doc)
	require.Equal(t, "revsk/error/v1", doc.Schema)
	require.Equal(t, "revsk: "+doc.Error, message)
	require.Equal(t, exitFailed, doc.ExitCode)
	require.NotEmpty(t, doc.Node)
	require.WithinDuration(t, time.Now(), doc.Time, time.Minute)

	r = p.run("service", "add", "nonsense", "--no-backend", "-o", "json")
	r.fails(exitUsage)
	r.json(&doc)
	require.Equal(t, exitUsage, doc.ExitCode)
	require.Empty(t, p.run("service", "list").stdout)
}

func TestBackendThatHasNoEntryIsShownByItsID(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80").ok()
	tables, err := lbmap.OpenTables(p.maps())
	require.NoError(t, err)
	defer tables.Close()
	require.NoError(t, tables.Backends4.Delete(uint32(1)))
	require.Contains(t, p.run("service", "list").ok().stdout, "id 1 (no entry)")
}

func TestServiceAddReplacesAndDelete(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	empty := state(t, p)
	add := func(args ...string) string {
		return p.run(append([]string{"service", "add", "10.96.0.1:80/tcp"}, args...)...).ok().stdout
	}
	require.Equal(t, "added 10.96.0.1:80/tcp with 1 backend and reverse-NAT index 1\n", add("--backend", "10.0.1.1:80"))
	require.Equal(t, "replaced 10.96.0.1:80/tcp with 2 backends and reverse-NAT index 1\n", add("--backend", "10.0.1.2:80,10.0.1.3:80"))
	require.Empty(t, add("--no-backend", "--quiet"))
	require.Equal(t, "deleted 10.96.0.1:80/tcp with 0 backends and reverse-NAT index 1\n",
		p.run("service", "delete", "10.96.0.1:80/tcp").ok().stdout)
	require.Equal(t, empty, state(t, p))
}

func TestServiceCommandsCanBeRepeated(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	for _, want := range []string{
		"added 10.96.0.1:80/tcp with 1 backend and reverse-NAT index 1\n",
		"already there: 10.96.0.1:80/tcp with 1 backend and reverse-NAT index 1\n",
	} {
		require.Equal(t, want, p.run("service", "add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80").ok().stdout)
	}
	for _, want := range []string{
		"deleted 10.96.0.1:80/tcp with 1 backend and reverse-NAT index 1\n",
		"nothing to delete: there is no service 10.96.0.1:80/tcp\n",
	} {
		require.Equal(t, want, p.run("service", "delete", "10.96.0.1:80/tcp").ok().stdout)
	}
	require.Equal(t, "nothing to delete: there is no service 10.96.0.1:80/tcp\n",
		p.run("service", "delete", "10.96.0.1:80/tcp", "--dry-run").ok().stdout)
	var change api.ServiceChange
	p.run("-o", "json", "service", "delete", "10.96.0.1:80/tcp").ok().json(&change)
	require.Equal(t, lbmap.ActionKeep, change.Action)
	require.Empty(t, change.Service.Backends)
}

func TestServiceChangesAsJSON(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	for _, step := range []struct {
		action lbmap.Action
		args   []string
	}{
		{"add", []string{"add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80"}},
		{"keep", []string{"add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80"}},
		{"replace", []string{"add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80", "--affinity", "9"}},
		{"delete", []string{"delete", "10.96.0.1:80/tcp"}},
	} {
		var change api.ServiceChange
		p.run(append([]string{"-o", "json", "service"}, step.args...)...).ok().json(&change)
		require.Equal(t, "revsk/service/v1", change.Schema)
		require.Equal(t, step.action, change.Action)
		require.False(t, change.DryRun)
		require.Equal(t, "10.96.0.1:80/tcp", change.Service.Frontend)
		require.Equal(t, "10.0.1.1:80", change.Service.Backends[0].Address)
	}
}

func TestDryRunOfServiceChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80", "--affinity", "9").ok()
	before := state(t, p)
	require.Equal(t, "would add 10.96.0.2:80/tcp with 1 backend and reverse-NAT index 2\n",
		p.run("service", "add", "10.96.0.2:80/tcp", "--backend", "10.0.1.2:80", "--dry-run").ok().stdout)
	require.Equal(t, "would replace 10.96.0.1:80/tcp with 0 backends and reverse-NAT index 1\n",
		p.run("service", "add", "10.96.0.1:80/tcp", "--no-backend", "--dry-run").ok().stdout)
	require.Equal(t, "would delete 10.96.0.1:80/tcp with 1 backend and reverse-NAT index 1\n",
		p.run("service", "delete", "10.96.0.1:80/tcp", "--dry-run").ok().stdout)
	p.run("service", "add", "10.96.0.2:80/tcp", "--no-backend", "--rev-nat", "1", "--dry-run").fails(exitFailed)
	require.Equal(t, before, state(t, p))
}

func TestServicesThatAreRefusedChangeNothing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80").ok()
	before := state(t, p)
	const form = "expected ADDR:PORT/PROTO, such as 10.0.0.1:80/tcp or [fd00::1]:53/udp: syntax error"
	const family = "wrong address family: use IPv4 backends for an IPv4 service and IPv6 backends for an IPv6 service"
	for _, test := range []struct {
		line, message string
		code          int
	}{
		{"add nonsense --no-backend", `service "nonsense": ` + form, 2},
		{"add 10.0.0.1/tcp --no-backend", `service "10.0.0.1/tcp": ` + form, 2},
		{"add 10.0.0.1:80 --no-backend", `service "10.0.0.1:80": ` + form, 2},
		{"add 10.0.0.1:65536/tcp --no-backend", `service "10.0.0.1:65536/tcp": ` + form, 2},
		{"add fd00::1:53/udp --no-backend", `service "fd00::1:53/udp": ` + form, 2},
		{"add 10.0.0.1:80/tpc --no-backend", `service "10.0.0.1:80/tpc": unknown protocol; ` + form, 2},
		{"add [::ffff:10.0.0.1]:80/tcp --no-backend", `service "[::ffff:10.0.0.1]:80/tcp": v4-mapped address, write it as 10.0.0.1; ` + form, 2},
		{"add 10.0.0.1:80/tcp/external --scope internal --no-backend", `service 10.0.0.1:80/tcp: --scope internal contradicts it`, 2},
		{"add 10.0.0.1:80/tcp --backend 10.0.0.2", `backend "10.0.0.2": expected ADDR:PORT, such as 10.0.1.1:8080 or [fd00:1::1]:53`, 2},
		{"add 10.0.0.1:80/tcp --backend [::ffff:10.0.0.2]:8", `backend "[::ffff:10.0.0.2]:8": v4-mapped address, write it as 10.0.0.2:8`, 2},
		{"add 10.0.0.1:80/tcp --backend 10.0.0.2:0", `backend "10.0.0.2:0": port 0 is not valid`, 2},
		{"add 10.0.0.1:80/tcp --backend 10.0.0.2:8/well", `backend "10.0.0.2:8/well": unknown state: use one of active, terminating, quarantined, maintenance`, 2},
		{"add 10.0.0.1:80/tcp --backend 10.0.0.2:8,[fd00::1]:8", `writing service 10.0.0.1:80/tcp: backend [fd00::1]:8: ` + family, 2},
		{"add [fd00::1]:80/tcp --backend 10.0.0.2:8", `writing service [fd00::1]:80/tcp: backend 10.0.0.2:8: ` + family, 2},
		{"add 10.0.0.1:80/tcp --backend 10.0.0.2:8,10.0.0.2:8", `writing service 10.0.0.1:80/tcp: backend 10.0.0.2:8 twice: invalid value`, 2},
		{"add 10.0.0.1:80/tcp --no-backend --affinity 16777216", `writing service 10.0.0.1:80/tcp: affinity timeout 4660h20m16s: expected whole seconds up to 4660h20m15s: invalid value`, 2},
		{"add 10.0.0.1:80/tcp --no-backend --l7-proxy 9 --affinity 1", `writing service 10.0.0.1:80/tcp: affinity timeout or algorithm with the flag l7-load-balancer: invalid value`, 2},
		{"add 10.0.0.1:80/tcp --no-backend --loopback", `--loopback needs --hostport`, 2},
		{"add 10.0.0.1:80/tcp --no-backend --hostport --l7-delegate", `--l7-delegate excludes --hostport`, 2},
		{"add 10.0.0.1:80/tcp --no-backend --rev-nat 1", `writing service 10.0.0.1:80/tcp: reverse-NAT index 1 belongs to 10.96.0.1:80/tcp: already in use: see revsk service list, and choose another or let revsk choose`, 1},
		{"delete nonsense", `service "nonsense": ` + form, 2},
	} {
		t.Run(strings.ReplaceAll(test.line, "/", "_"), func(t *testing.T) {
			r := p.run(append([]string{"service"}, strings.Fields(test.line)...)...)
			require.Equal(t, "revsk: "+test.message, result{t, r.code, r.stdout, r.stderr}.fails(test.code))
			require.Empty(t, r.stdout)
			require.Equal(t, before, state(t, p))
		})
	}
}

func TestAFullMapIsSaidAndChangesNothing(t *testing.T) {
	for _, name := range []string{lbmap.Services4Map, lbmap.Backends4Map, lbmap.RevNat4Map, lbmap.AffinityMatchMap} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			require.NoError(t, os.MkdirAll(p.maps(), 0o700))
			for _, other := range []string{lbmap.Services4Map, lbmap.Backends4Map, lbmap.RevNat4Map, lbmap.AffinityMatchMap} {
				spec := lbmap.MapSpec(other)
				if other == name {
					spec.MaxEntries = 2
				}
				pin(t, p, other, spec)
			}
			if name != lbmap.Services4Map {
				p.run("service", "add", "10.96.0.1:80/tcp", "--backend", "10.0.1.1:80", "--affinity", "1").ok()
			}
			if name == lbmap.RevNat4Map {
				p.run("service", "add", "10.96.0.3:80/tcp", "--no-backend").ok()
			}
			before := state(t, p)
			for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
				r := p.run("service", "add", "10.96.0.2:80/tcp", "--backend", "10.0.1.2:80,10.0.1.3:80", "--affinity", "1", dryRun)
				require.Equal(t, "revsk: writing service 10.96.0.2:80/tcp: writing "+name+": no room left: "+
					"delete services, or have the owner of the map make it larger", r.fails(exitFailed))
				require.Equal(t, before, state(t, p))
			}
		})
	}
}

// pin makes a map and pins it among those of the services.
func pin(t *testing.T, p place, name string, spec *ebpf.MapSpec) {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Pin(filepath.Join(p.maps(), name)))
}
