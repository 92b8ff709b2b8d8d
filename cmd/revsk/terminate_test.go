// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
)

// terminated is what terminate prints, without what differs from run to run.
func terminated(text string) string {
	return replace(text,
		`127\.0\.0\.1:[0-9]{5}\b`, "127.0.0.1:PORT",
		`\d+ +\d+/\S+`, "NETNS PID/COMMAND",
		` {2,}`, "  ",
	)
}

func terminatedJSON(text string) string {
	return replace(text,
		`"local": "[^"]*"`, `"local": "LOCAL"`,
		`"mechanism": "[^"]*"`, `"mechanism": "MECHANISM"`,
		`"cookie": "\d+"`, `"cookie": "1"`,
		`"(cookie|inode|pid)": \d+`, `"$1": 1`,
		`"age_seconds": \d+`, `"age_seconds": 0`,
		`"command": "[^"]*"`, `"command": "COMMAND"`,
	)
}

func (s socket) error(t *testing.T) unix.Errno {
	t.Helper()
	code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	require.NoError(t, err)
	return unix.Errno(code)
}

func TestTerminate(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	connected := connectUDP(t, p)
	sent := newSocket(t)
	require.NoError(t, unix.Sendto(sent.fd, []byte("x"), 0, sockaddrOf(serviceAddr)))
	before := state(t, p)

	const backend = "127.0.0.1:5353/udp"
	golden(t, "terminate-dry-run.txt", terminated(p.run("terminate", backend, "--dry-run").ok().stdout))
	require.Equal(t, "destroyed 0 sockets\n", p.run("terminate", backend, "--service", "192.0.2.1:54").ok().stdout)
	require.Equal(t, "destroyed 0 sockets\n", p.run("terminate", "127.0.0.1:5353/tcp", "127.0.0.2:5353/udp").ok().stdout)
	require.Zero(t, connected.error(t))

	golden(t, "terminate.txt", terminated(p.run("terminate", backend).ok().stdout))
	require.Equal(t, unix.ECONNABORTED, connected.error(t))
	require.Zero(t, sent.error(t))
	require.Equal(t, before, state(t, p), "pins and what is attached")

	require.Equal(t, "destroyed 0 sockets\n", p.run("terminate", backend).ok().stdout)
	require.Empty(t, p.run("terminate", backend, "--quiet").ok().stdout)
}

func TestTerminateJSON(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	s := connectUDP(t, p)
	var doc api.Terminate
	p.run("terminate", "-o", "json", "127.0.0.1:5353/any").ok().json(&doc)
	require.Equal(t, 1, doc.Destroyed)
	require.Equal(t, []string{"127.0.0.1:5353/any"}, doc.Backends)

	require.NoError(t, unix.Connect(s.fd, sockaddrOf(serviceAddr)))
	golden(t, "terminate.json", terminatedJSON(
		p.run("terminate", "-o", "json", "[::1]:1/tcp", "127.0.0.1:5353/udp", "--service", serviceAddr).ok().stdout))
	golden(t, "terminate-none.json", p.run("terminate", "-o", "json", "127.0.0.1:5353/udp").ok().stdout)
}

func TestTerminateUnderstandsWhatServiceListPrints(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	for _, service := range []string{"0.0.0.0:30953/udp", "192.0.2.3:30953/udp"} {
		p.run("service", "add", service, "--backend", "127.0.0.1:5353", "--nodeport").ok()
	}
	tables, err := lbmap.OpenTables(p.maps())
	require.NoError(t, err)
	defer tables.Close()
	require.NoError(t, tables.UpsertIPCache(netip.MustParsePrefix("192.0.2.50/32"), lbmap.IPCacheValue{Identity: lbmap.IdentityHost}))
	byNodePort, byOther := newSocket(t), newSocket(t)
	require.NoError(t, unix.Connect(byNodePort.fd, sockaddrOf("192.0.2.50:30953")))
	require.NoError(t, unix.Connect(byOther.fd, sockaddrOf("192.0.2.3:30953")))
	const backend = "127.0.0.1:5353/udp"
	for service, n := range map[string]string{
		"0.0.0.0:30953/tcp": "0 sockets", "[::]:30953/udp": "0 sockets", "0.0.0.0:30954/udp": "0 sockets",
		"0.0.0.0:30953": "1 socket", "0.0.0.0:30953/udp": "1 socket", "192.0.2.50:30953": "1 socket", "192.0.2.3:30953/udp": "1 socket",
	} {
		require.Regexp(t, "(?m)^would destroy "+n+"$", p.run("terminate", backend, "--service", service, "--dry-run").ok().stdout, service)
	}
	p.run("terminate", backend, "--service", "0.0.0.0:30953/udp").ok()
	require.Equal(t, unix.ECONNABORTED, byNodePort.error(t))
	require.Zero(t, byOther.error(t))
}

func TestTerminateOfAServiceSaysThatItIsOne(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	s := connectUDP(t, p)
	for _, protocol := range []string{"/udp", "/any"} {
		require.Equal(t, "revsk: "+serviceAddr+protocol+" is a service: name its backends, which revsk service list shows, and use --service "+serviceAddr+protocol,
			p.run("terminate", serviceAddr+protocol).fails(exitUsage))
	}
	require.Zero(t, s.error(t))
}

func TestTerminateAllGone(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	gone := connectUDP(t, p)
	p.run("service", "add", "192.0.2.2:53/udp", "--backend", "127.0.0.2:5353").ok()
	kept := newSocket(t)
	require.NoError(t, unix.Connect(kept.fd, sockaddrOf("192.0.2.2:53")))

	require.Equal(t, "would destroy 0 sockets\n", p.run("terminate", "--all-gone", "--dry-run").ok().stdout)
	p.run("service", "delete", serviceAddr+"/udp").ok()
	require.Regexp(t, "(?m)^would destroy 1 socket$", p.run("terminate", "--all-gone", "--dry-run").ok().stdout)
	require.Regexp(t, "(?m)^destroyed 1 socket$", p.run("terminate", "--all-gone").ok().stdout)
	require.Equal(t, unix.ECONNABORTED, gone.error(t))
	require.Zero(t, kept.error(t))

	p.run("service", "delete", "192.0.2.2:53/udp").ok()
	require.Regexp(t, ": the maps have no backends: have the control plane write its services first, or name the backends$",
		p.run("terminate", "--all-gone").fails(exitFailed))
	require.Zero(t, kept.error(t))
}

func TestTerminateInModeLegacyIsRefused(t *testing.T) {
	p := newPlace(t)
	p.load("--mode", "legacy").ok()
	for _, args := range [][]string{{"127.0.0.1:5353/udp"}, {"127.0.0.1:5353/udp", "--dry-run"}, {"--all-gone"}} {
		require.Equal(t, "revsk: terminating connections: mode legacy keeps no proof of a connection: "+
			"use revsk mode dual; sockets that connect from then on can be told apart",
			p.run(append([]string{"terminate"}, args...)...).fails(exitFailed))
	}
}

// A socket in flight, in a network namespace that nothing else keeps.
func TestTerminateSaysWhatCouldNotBeDestroyed(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.1:5353").ok()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	s := connectInNewNetNS(t)
	require.NoError(t, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(s.fd), nil, 0))
	s.close(t)
	for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
		r := p.run("terminate", "127.0.0.1:5353/udp", dryRun)
		require.Equal(t, "revsk: 1 socket could not be destroyed", r.fails(exitPartly))
		require.Regexp(t, `(?m) failed: no way into its network namespace$`, r.stdout)
	}
	var doc api.Terminate
	r := p.run("terminate", "127.0.0.1:5353/udp", "-o", "json")
	r.fails(exitPartly)
	r.json(&doc)
	require.Equal(t, 1, doc.Failed)
	require.Equal(t, string(inspect.OutcomeFailed), doc.Sockets[0].Outcome)
	require.Equal(t, inspect.ErrUnreachable.Error(), doc.Sockets[0].Error)
}

// connectInNewNetNS returns a socket that is connected to the service of connectUDP, in a network namespace that nothing else keeps.
func connectInNewNetNS(t *testing.T) (s socket) {
	t.Helper()
	inNewNetNS(t, func() error {
		if err := sandbox.LoopbackUp(); err != nil {
			return err
		}
		s = newSocket(t)
		return unix.Connect(s.fd, sockaddrOf(serviceAddr))
	})
	return s
}

// inNewNetNS runs f on a thread of its own in a new network namespace.
func inNewNetNS(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	require.NoError(t, <-done)
}

func TestTerminateRefusesWhatIsNoBackend(t *testing.T) {
	for _, arg := range []string{"127.0.0.1:5353", "127.0.0.1/udp", "[::ffff:127.0.0.1]:1/udp", "127.0.0.1:1/udp/internal", "x"} {
		require.Regexp(t, `^revsk: backend ".*": expected ADDR:PORT/PROTO, such as `, runCommand(t, "terminate", arg).fails(exitUsage), arg)
	}
	for _, arg := range []string{"192.0.2.1", "192.0.2.1:53/http", "[::ffff:192.0.2.1]:53"} {
		require.Regexp(t, `^revsk: service ".*": expected ADDR:PORT or ADDR:PORT/PROTO, such as `,
			runCommand(t, "terminate", "127.0.0.1:1/udp", "--service", arg).fails(exitUsage), arg)
	}
}
