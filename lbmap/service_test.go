// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAffinityTimeoutHas24BitsAndTheAlgorithm8(t *testing.T) {
	var v ServiceValue
	require.NoError(t, v.SetAffinity(0x010203*time.Second, 0xa4))
	assert.Equal(t, uint32(0xa4010203), v.Union)
	assert.Equal(t, 0x010203*time.Second, v.AffinityTimeout())
	assert.Equal(t, Algorithm(0xa4), v.Algorithm())

	require.NoError(t, v.SetAffinity(MaxAffinityTimeout, AlgorithmMaglev))
	assert.Equal(t, uint32(0x02ffffff), v.Union)
	assert.Equal(t, MaxAffinityTimeout, v.AffinityTimeout())

	for _, timeout := range []time.Duration{
		MaxAffinityTimeout + time.Second, -time.Second, 1500 * time.Millisecond, math.MaxInt64,
	} {
		require.ErrorIs(t, v.SetAffinity(timeout, 0), ErrInvalid)
	}
	assert.Equal(t, uint32(0x02ffffff), v.Union)
}

func TestL7ProxyPortIsInNetworkOrderInTheLowHalf(t *testing.T) {
	var v ServiceValue
	v.SetL7ProxyPort(0x1f90)
	assert.Equal(t, uint16(0x1f90), v.L7ProxyPort())

	data, err := v.MarshalBinary()
	require.NoError(t, err)
	union := binary.NativeEndian.Uint32(data)
	assert.Zero(t, union>>16)
	assert.Equal(t, []byte{0x1f, 0x90}, binary.NativeEndian.AppendUint16(nil, uint16(union)))
}

func TestServiceFlagsHaveTheBitsOfBothBytes(t *testing.T) {
	for flag, want := range map[ServiceFlags]uint16{
		FlagExternalIP: 1, FlagNodePort: 2, FlagExternalLocal: 4, FlagHostPort: 8,
		FlagAffinity: 16, FlagLoadBalancer: 32, FlagRoutable: 64, FlagSourceRange: 128,
		FlagLocalRedirect: 1 << 8, FlagNAT46x64: 2 << 8, FlagL7LoadBalancer: 4 << 8, FlagLoopback: 8 << 8,
		FlagInternalLocal: 16 << 8, FlagTwoScopes: 32 << 8, FlagSourceRangeDeny: 64 << 8, FlagDSR: 128 << 8,
	} {
		assert.Equal(t, want, uint16(flag), flag.String())
	}
	assert.Equal(t, FlagLoopback, FlagL7Delegate)
	assert.Equal(t, FlagSourceRangeDeny, FlagQuarantined)
}

func TestServiceFlagsNameEveryFlagByItsContext(t *testing.T) {
	for _, c := range []struct {
		flags      ServiceFlags
		want, slot string
	}{
		{0, "none", "none"},
		{FlagNodePort | FlagAffinity | FlagDSR, "node-port,affinity,dsr", "node-port,affinity,dsr"},
		{FlagLoopback, "l7-delegate", "l7-delegate"},
		{FlagHostPort | FlagLoopback, "host-port,loopback", "host-port,loopback"},
		{FlagSourceRangeDeny, "source-range-deny", "quarantined"},
		{
			0xffff,
			"external-ip,node-port,external-local,host-port,affinity,load-balancer,routable,source-range," +
				"local-redirect,nat-46x64,l7-load-balancer,loopback,internal-local,two-scopes,source-range-deny,dsr",
			"external-ip,node-port,external-local,host-port,affinity,load-balancer,routable,source-range," +
				"local-redirect,nat-46x64,l7-load-balancer,loopback,internal-local,two-scopes,quarantined,dsr",
		},
	} {
		assert.Equal(t, c.want, c.flags.String())
		assert.Equal(t, c.slot, c.flags.SlotString())
	}
	assert.True(t, (FlagHostPort | FlagLoopback).IsLoopback())
	assert.False(t, (FlagHostPort | FlagLoopback).IsL7Delegate())
	assert.True(t, FlagL7Delegate.IsL7Delegate())
	assert.False(t, FlagL7Delegate.IsLoopback())

	for f := range 1 << 16 {
		parsed, err := ParseServiceFlags(ServiceFlags(f).String())
		require.NoError(t, err)
		require.Equal(t, ServiceFlags(f), parsed)
	}
}

func TestParseServiceFlagsRefuses(t *testing.T) {
	for _, s := range []string{
		"loopback", "node-port,loopback", "host-port,l7-delegate", "nodeport", "node-port,", ",", "none,none", "quarantined",
	} {
		_, err := ParseServiceFlags(s)
		require.ErrorIs(t, err, ErrSyntax, s)
	}
	f, err := ParseServiceFlags("")
	require.NoError(t, err)
	assert.Zero(t, f)
}

func TestProtocolAndScopeNames(t *testing.T) {
	for s, want := range map[string]Protocol{
		"tcp": 6, "UDP": 17, "udplite": 136, "any": 0, "6": 6, "132": 132, "255": 255,
	} {
		p, err := ParseProtocol(s)
		require.NoError(t, err)
		assert.Equal(t, want, p)
	}
	for _, s := range []string{"", "sctp!", "256", "-1", "+6", "tcp "} {
		_, err := ParseProtocol(s)
		require.ErrorIs(t, err, ErrSyntax, s)
		_, err = ParseScope(s)
		require.ErrorIs(t, err, ErrSyntax, s)
	}
	for i := range 256 {
		p, err := ParseProtocol(Protocol(i).String())
		require.NoError(t, err)
		assert.Equal(t, Protocol(i), p)
		s, err := ParseScope(Scope(i).String())
		require.NoError(t, err)
		assert.Equal(t, Scope(i), s)
	}
	assert.Equal(t, "internal", ScopeInternal.String())
	assert.Equal(t, "maglev", AlgorithmMaglev.String())
	assert.Equal(t, "7", Algorithm(7).String())
	assert.Equal(t, "terminating", BackendTerminating.String())
	assert.Equal(t, "9", BackendState(9).String())
}

func TestParseFrontend(t *testing.T) {
	for s, want := range map[string]Frontend{
		"10.0.0.1:80/tcp":              {addrPort("10.0.0.1:80"), ProtocolTCP, ScopeExternal},
		"[fd00::1]:53/udp":             {addrPort("[fd00::1]:53"), ProtocolUDP, ScopeExternal},
		"10.0.0.1:80/udplite":          {addrPort("10.0.0.1:80"), ProtocolUDPLite, ScopeExternal},
		"0.0.0.0:0/any":                {addrPort("0.0.0.0:0"), ProtocolAny, ScopeExternal},
		"10.0.0.1:80/132":              {addrPort("10.0.0.1:80"), 132, ScopeExternal},
		"[fd00::1]:65535/tcp/internal": {addrPort("[fd00::1]:65535"), ProtocolTCP, ScopeInternal},
	} {
		f, err := ParseFrontend(s)
		require.NoError(t, err)
		assert.Equal(t, want, f)
		assert.Equal(t, s, f.String())
	}
	f, err := ParseFrontend("10.0.0.1:80/TCP/external")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1:80/tcp", f.String())
}

func TestParseFrontendSaysOnOneLineWhatIsExpected(t *testing.T) {
	for s, reason := range map[string]string{
		"":                          "expected ADDR",
		"10.0.0.1":                  "expected ADDR",
		"10.0.0.1:80":               "expected ADDR",
		"10.0.0.1/tcp":              "expected ADDR",
		"fd00::1:80/tcp":            "expected ADDR",
		"10.0.0.1:65536/tcp":        "expected ADDR",
		"localhost:80/tcp":          "expected ADDR",
		"10.0.0.1:80/tcp/internal/": "expected ADDR",
		"10.0.0.1:80\n/tcp":         "expected ADDR",
		"[::ffff:10.0.0.1]:80/tcp":  "v4-mapped address, write it as 10.0.0.1; expected ADDR",
		"[fe80::1%eth0]:80/tcp":     "address with a zone; expected ADDR",
		"10.0.0.1:80/http":          "unknown protocol; expected ADDR",
		"10.0.0.1:80/":              "unknown protocol; expected ADDR",
		"10.0.0.1:80/tcp/here":      "unknown scope; expected ADDR",
	} {
		_, err := ParseFrontend(s)
		require.ErrorIs(t, err, ErrSyntax, s)
		assert.Contains(t, err.Error(), reason)
		assert.Contains(t, err.Error(), "10.0.0.1:80/tcp")
		assert.NotContains(t, err.Error(), "\n")
	}
}

func TestFrontendIsTextInJSON(t *testing.T) {
	type document struct {
		Service Frontend
		Flags   ServiceFlags
		Proto   Protocol
		Scope   Scope
		State   BackendState
		Alg     Algorithm
	}
	in := document{
		Service: Frontend{addrPort("[fd00::1]:53"), ProtocolUDP, ScopeInternal},
		Flags:   FlagNodePort | FlagTwoScopes, Proto: ProtocolTCP, Scope: ScopeInternal,
	}
	text, err := json.Marshal(in)
	require.NoError(t, err)
	assert.JSONEq(t, `{"Service":"[fd00::1]:53/udp/internal","Flags":"node-port,two-scopes",
		"Proto":"tcp","Scope":"internal","State":"active","Alg":"default"}`, string(text))

	var out struct {
		Service Frontend
		Flags   ServiceFlags
		Proto   Protocol
		Scope   Scope
	}
	require.NoError(t, json.Unmarshal(text, &out))
	assert.Equal(t, in.Service, out.Service)
	assert.Equal(t, in.Flags, out.Flags)
	assert.Equal(t, in.Proto, out.Proto)
	assert.Equal(t, in.Scope, out.Scope)

	for _, bad := range []string{
		`{"Service":"x"}`, `{"Flags":"x"}`, `{"Proto":"x"}`, `{"Scope":"x"}`,
	} {
		require.ErrorIs(t, json.Unmarshal([]byte(bad), &out), ErrSyntax, bad)
	}
	_, err = json.Marshal(Frontend{})
	require.ErrorIs(t, err, ErrFamily)
}

func TestFrontendsCompareByAddressPortProtocolScope(t *testing.T) {
	sorted := strings.Fields("9.0.0.1:80/tcp 10.0.0.1:79/udp 10.0.0.1:80/tcp 10.0.0.1:80/tcp/internal " +
		"10.0.0.1:80/udp [::1]:80/tcp [fd00::1]:1/tcp")
	for i, a := range sorted {
		for j, b := range sorted {
			fa, err := ParseFrontend(a)
			require.NoError(t, err)
			fb, err := ParseFrontend(b)
			require.NoError(t, err)
			assert.Equal(t, cmp.Compare(i, j), fa.Compare(fb), "%s %s", a, b)
		}
	}
	assert.Equal(t, -1, Frontend{}.Compare(Frontend{AddrPort: netip.AddrPortFrom(netip.Addr{}, 1)}))
}
