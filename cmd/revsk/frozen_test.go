// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

// Where another process has frozen a map, every command that would write to it says so, and changes nothing.
func TestFrozenMaps(t *testing.T) {
	freeze := func(t *testing.T, path string) {
		t.Helper()
		m, err := ebpf.LoadPinnedMap(path, nil)
		require.NoError(t, err)
		defer m.Close()
		require.NoError(t, m.Freeze())
	}
	for name, refused := range map[string][][]string{
		lbmap.Services4Map: {
			{"service", "add", "192.0.2.9:53/udp", "--backend", "127.0.0.1:5353"}, {"service", "delete", serviceAddr + "/udp"},
		},
		lbmap.Backends4Map:  {{"service", "add", "192.0.2.9:53/udp", "--backend", "127.0.0.9:5353"}},
		lbmap.ReverseSK4Map: {{"migrate"}, {"rollback"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.load("--quiet").ok()
			s := connectUDP(t, p)
			p.run("mode", "dual", "--quiet").ok()
			freeze(t, filepath.Join(p.maps(), name))
			services := p.run("service", "list").ok().stdout
			for _, args := range refused {
				require.Regexp(t, "frozen: have the agent that owns the map make it anew; ", p.run(args...).fails(exitFailed), "%v", args)
				require.Equal(t, services, p.run("service", "list").ok().stdout)
				require.Contains(t, p.run("mode").ok().stdout, "dual")
				require.Equal(t, serviceAddr, s.peer(t))
			}
			require.Regexp(t, "another process has frozen the map .*"+name, p.run("status").fails(exitPartly))
		})
	}
}
