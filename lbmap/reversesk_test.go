// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// dumped is one entry of cilium_lb{4,6}_reverse_sk.
type dumped struct {
	cookie           uint64
	backend, service string
	revNat           uint16
}

func (d dumped) key() ReverseSKKey { return ReverseSKKey{d.cookie, addrPort(d.backend)} }

func (d dumped) value() ReverseSKValue { return ReverseSKValue{addrPort(d.service), d.revNat} }

// What testdata/reverse_sk4.txt and reverse_sk6.txt hold, in the order of the
// dumps. The report that the dumps are from also has the cookies of 16 sockets
// in decimal, as the programs printed them; each of them is here.
var (
	dumped4 = []dumped{
		// TCP IPv4 Regular close: before
		{19176649, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19196669, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19204335, "10.244.1.25:3306", "10.96.120.1:3306", 14},
		{19169186, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169154, "172.19.0.5:6443", "10.96.0.1:443", 1},
		// TCP IPv4 Regular close: after
		{19176649, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19196669, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169186, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169154, "172.19.0.5:6443", "10.96.0.1:443", 1},
		// TCP IPv4 abort: before
		{19235730, "10.244.1.25:3306", "10.96.120.1:3306", 14},
		{19176649, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19196669, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169186, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169154, "172.19.0.5:6443", "10.96.0.1:443", 1},
		// TCP IPv4 abort: after
		{19176649, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19210151, "10.244.3.20:3306", "10.96.120.1:3306", 14},
		{19196669, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169186, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19169154, "172.19.0.5:6443", "10.96.0.1:443", 1},
		// UDP IPv4 regular close: before
		{19193626, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19176547, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19211355, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19196744, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19290183, "10.244.1.201:53", "10.96.0.10:53", 4},
		// UDP IPv4 regular close: after
		{19193626, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19176547, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19211355, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19196744, "172.19.0.5:6443", "10.96.0.1:443", 1},
		// UDP IPv4 abort: before
		{19341840, "10.244.0.8:53", "10.96.0.10:53", 4},
		{19176547, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19330581, "10.244.3.145:53", "10.96.0.10:53", 4},
		{19196744, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19275700, "10.244.0.8:53", "10.96.0.10:53", 4},
		// UDP IPv4 abort: after
		{19341840, "10.244.0.8:53", "10.96.0.10:53", 4},
		{19176547, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19330581, "10.244.3.145:53", "10.96.0.10:53", 4},
		{19196744, "172.19.0.5:6443", "10.96.0.1:443", 1},
		{19275700, "10.244.0.8:53", "10.96.0.10:53", 4},
	}
	dumped6 = []dumped{
		// TCP IPv6 regular close: before
		{19252119, "[fd00:10:244:3::7cb5]:3306", "[fd00:10:96::66c5]:3306", 18},
		// TCP IPv6 abort: before
		{19221506, "[fd00:10:244:1::812f]:3306", "[fd00:10:96::66c5]:3306", 18},
		// TCP IPv6 abort: after
		{19264261, "[fd00:10:244:3::6757]:3306", "[fd00:10:96::66c5]:3306", 18},
		// UDP IPv6 regular close: before
		{19262696, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19299635, "[fd00:10:244:1::49f1]:53", "[fd00:10:96::88d4]:53", 21},
		{19314392, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		// UDP IPv6 abort: before
		{19302766, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19322180, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19325816, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19299994, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19329627, "[fd00:10:244:1::49f1]:53", "[fd00:10:96::88d4]:53", 21},
		// UDP IPv6 abort: after
		{19302766, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19322180, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19325816, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19299994, "[fd00:10:244:1::e95]:53", "[fd00:10:96::88d4]:53", 21},
		{19329627, "[fd00:10:244:1::49f1]:53", "[fd00:10:96::88d4]:53", 21},
	}
)

// readDump returns the keys and values of a dump by bpftool: "key:", bytes,
// "value:", bytes, on one line or on several.
func readDump(t testing.TB, name string) (keys, values [][]byte) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	require.NoError(t, err)
	var all strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			all.WriteString(line)
		}
	}
	entries := strings.Split(all.String(), "key:")
	require.Empty(t, strings.TrimSpace(entries[0]))
	for _, entry := range entries[1:] {
		key, value, ok := strings.Cut(entry, "value:")
		require.True(t, ok)
		keys = append(keys, unhex(t, key))
		values = append(values, unhex(t, value))
	}
	return keys, values
}

func TestDumpsOfRunningNodesDecode(t *testing.T) {
	for name, want := range map[string][]dumped{"reverse_sk4.txt": dumped4, "reverse_sk6.txt": dumped6} {
		t.Run(name, func(t *testing.T) {
			keys, values := readDump(t, name)
			require.Len(t, keys, len(want))
			for i, w := range want {
				// The dumps are from little-endian machines, this one may not be.
				var key ReverseSKKey
				var value ReverseSKValue
				require.NoError(t, key.decode(binary.LittleEndian, keys[i]))
				require.NoError(t, value.decode(binary.LittleEndian, values[i]))
				assert.Equal(t, w.key(), key)
				assert.Equal(t, w.value(), value)

				data, err := w.key().encode(binary.LittleEndian)
				require.NoError(t, err)
				assert.Equal(t, keys[i], data)
				data, err = w.value().encode(binary.LittleEndian)
				require.NoError(t, err)
				assert.Equal(t, values[i], data)
			}
		})
	}
}

func TestASocketCookieIsInHostOrder(t *testing.T) {
	key, err := dumped4[2].key().encode(binary.LittleEndian)
	require.NoError(t, err)
	assert.Equal(t, uint64(19204335), dumped4[2].cookie)
	assert.Equal(t, unhex(t, "ef 08 25 01 00 00 00 00"), key[:8])
}
