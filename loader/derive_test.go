// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// configured starts an agent whose programs translate, with these features, and without some of its programs.
func configured(t *testing.T, change func(*loader.Features), without ...string) *reference.Agent {
	t.Helper()
	f := loader.DefaultFeatures()
	change(&f)
	own, err := reference.Ours()
	require.NoError(t, err)
	a, err := own.Agent(mapsDir, f)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	require.NoError(t, a.Without(without...).Link(sandbox.Cgroup(), foreignLinks))
	return a
}

// hostOnly are the features of an agent for which this network namespace is that of the host.
func hostOnly(t *testing.T) func(*loader.Features) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	require.NoError(t, err)
	return func(f *loader.Features) { f.HostNetnsOnly, f.HostNetnsCookie = true, cookie }
}

func TestATakeoverFindsOutHowTheAgentIsConfigured(t *testing.T) {
	defaults := loader.DefaultFeatures()
	for name, test := range map[string]struct {
		agent func(*loader.Features)
		// want changes the defaults.
		want func(*loader.Features)
	}{
		"as usual": {func(*loader.Features) {}, func(*loader.Features) {}},
		"constants": {func(f *loader.Features) {
			f.NodePortMin, f.NodePortMax, f.LocalRedirect, f.RejectNoBackend = 31000, 31999, false, false
		}, func(f *loader.Features) {
			f.NodePortMin, f.NodePortMax, f.LocalRedirect, f.RejectNoBackend = 31000, 31999, false, false
		}},
		"programs": {func(f *loader.Features) { f.NodePort, f.HealthCheck = false, true },
			func(f *loader.Features) { f.NodePort, f.HealthCheck = false, true }},
		"the host's network namespace only": {hostOnly(t), func(f *loader.Features) { f.HostNetnsOnly = true }},
	} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			configured(t, test.agent)
			addService(t)
			before := entries(t)
			want := defaults
			test.want(&want)
			s := mustLoad(t, takeover())
			require.Equal(t, want, s.Features)
			require.Equal(t, before, entries(t), "what was tried leaves nothing")
			require.NoError(t, loader.HandBack(t.Context(), options()))
		})
	}
}

// An agent that is configured to leave getpeername alone does not have programs there. Ours are in links of
// their own, stay there when the agent starts again, and go when it has its hooks back.
func TestAnAgentWithoutGetpeername(t *testing.T) {
	cleanUp(t)
	a := configured(t, func(*loader.Features) {}, "cil_sock4_getpeername", "cil_sock6_getpeername")
	addService(t)
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(serviceAddr)))
	require.NoError(t, err)
	defer conn.Close()
	theirs, backend := attached(t), peer(t, conn)
	require.NotEqual(t, serviceAddr, backend)

	s := mustLoad(t, takeover())
	require.Equal(t, loader.DefaultFeatures(), s.Features)
	require.True(t, s.Complete())
	require.Empty(t, s.Problems)
	for _, h := range s.Hooks {
		require.Equal(t, h.Attached && !strings.Contains(h.Program, "getpeername"), h.TakenOver != nil, h.Program)
	}
	require.Equal(t, serviceAddr, peer(t, conn))

	require.NoError(t, a.Update(foreignLinks))
	dp, err := loader.Open(options())
	require.NoError(t, err)
	defer dp.Close()
	s = status(t, dp)
	require.Len(t, s.Problems, 1)
	require.Equal(t, loader.ProblemTakenBack, s.Problems[0].Code)
	require.NotContains(t, s.Problems[0].Text, "getpeername")
	require.Equal(t, serviceAddr, peer(t, conn))

	require.Empty(t, mustLoad(t, takeover()).Problems)
	require.NoError(t, loader.HandBack(t.Context(), options()))
	require.Equal(t, theirs, attached(t))
	require.Equal(t, backend, peer(t, conn))
}

// entries is how many the hash has.
func entries(t *testing.T) int {
	t.Helper()
	n := 0
	m, err := ebpf.LoadPinnedMap(mapsDir+"/cilium_lb4_reverse_sk", nil)
	require.NoError(t, err)
	defer m.Close()
	for key, err := m.NextKeyBytes(nil); key != nil; key, err = m.NextKeyBytes(key) {
		require.NoError(t, err)
		n++
	}
	return n
}

// Without a service there is nothing to try, and applications would notice.
func TestATakeoverAsksForWhatItCannotFindOut(t *testing.T) {
	cleanUp(t)
	configured(t, func(*loader.Features) {})
	requireRefused(t, loader.ErrFeaturesUnknown, func() error { return loadAndClose(t, takeover()) })
	_, err := loader.PlanLoad(t.Context(), takeover())
	require.ErrorIs(t, err, loader.ErrFeaturesUnknown)

	said := takeover()
	said.Said = []string{"host_netns_only"}
	said.ChangeFeatures = func(f *loader.Features) { f.HostNetnsOnly = true }
	require.True(t, mustLoad(t, said).Features.HostNetnsOnly)
	require.True(t, mustLoad(t, takeover()).Features.HostNetnsOnly, "it is kept")
}

func TestATakeoverReadsTheAgentsHeader(t *testing.T) {
	cleanUp(t)
	state := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(state, "globals"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(state, "globals", "node_config.h"),
		[]byte("#define ENABLE_SOCKET_LB_HOST_ONLY 1\n#define DISABLE_EXTERNAL_IP_MITIGATION\n"), 0o600))
	configured(t, func(*loader.Features) {})
	opts := takeover()
	opts.AgentState = state
	f := mustLoad(t, opts).Features
	require.True(t, f.HostNetnsOnly)
	require.False(t, f.ExternalIPMitigation)
	require.False(t, f.L7)
}
