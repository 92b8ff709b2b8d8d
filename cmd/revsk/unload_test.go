// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/internal/sandbox"
)

func TestUnloadKeepsTheMaps(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Equal(t, "detached from "+sandbox.Cgroup()+", maps kept in "+p.pins()+"\n", p.run("unload").ok().stdout)
	require.FileExists(t, filepath.Join(p.pins(), "revsk_conn"))
	require.NoDirExists(t, filepath.Join(p.pins(), "links"))
	require.Equal(t, "nothing was attached\n", p.run("unload").ok().stdout)
}

func TestUnloadPurgeSaysWhatItDoesToLiveSockets(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	conn := connectUDP(t, p)
	before := state(t, p)

	r := p.run("unload", "--purge", "--dry-run")
	require.Equal(t, 0, r.code)
	require.Equal(t, "live sockets would forget 1 service address: they show those of backends from now on\n", r.stderr)
	require.Equal(t, before, state(t, p))
	require.Equal(t, serviceAddr, conn.peer(t))

	r = p.run("unload", "--purge")
	require.Equal(t, 0, r.code)
	require.Equal(t, "live sockets forgot 1 service address: they show those of backends from now on\n", r.stderr)
	require.Equal(t, "detached from "+sandbox.Cgroup()+", maps removed from "+p.pins()+"\n", r.stdout)
	require.NoDirExists(t, p.pins())
	require.FileExists(t, filepath.Join(p.maps(), "cilium_lb4_services_v2"))
	p.load().ok()
	require.NotEqual(t, serviceAddr, conn.peer(t))
}

func TestDryRunOfUnloadSaysWhatUnloadDoes(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	before := state(t, p)
	var plan, done api.Changes
	p.run("unload", "--purge", "--dry-run", "-o", "json").ok().json(&plan)
	golden(t, "unload-dry-run.txt", stable(p, p.run("unload", "--purge", "--dry-run").ok().stdout))
	require.Equal(t, before, state(t, p))
	p.run("unload", "--purge", "-o", "json").ok().json(&done)
	require.Equal(t, plan.Changes, done.Changes)
}

func TestUnloadThatFailsChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	foreign := unpin(t, p, "recvmsg4")
	require.NoError(t, os.Mkdir(foreign, 0o700))
	before := state(t, p)
	p.run("unload").fails(exitFailed)
	require.Equal(t, before, state(t, p))
	require.NoError(t, os.Remove(foreign))
	p.run("unload").ok()
}
