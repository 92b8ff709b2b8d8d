// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fuzzDecoder checks that decoding does not panic and loses nothing. Every
// layout of the table test is a seed, right or wrong for this type.
func fuzzDecoder[T any, P codec[T]](f *testing.F) {
	for _, l := range layouts() {
		for _, s := range []string{l.little, l.big} {
			data := unhex(f, s)
			f.Add(data)
			f.Add(data[1:])
			f.Add(make([]byte, len(data)))
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var v T
		if P(&v).UnmarshalBinary(data) != nil {
			return
		}
		again, err := P(&v).MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, data, again)
	})
}

func FuzzServiceKey(f *testing.F)       { fuzzDecoder[ServiceKey](f) }
func FuzzServiceValue(f *testing.F)     { fuzzDecoder[ServiceValue](f) }
func FuzzBackendValue(f *testing.F)     { fuzzDecoder[BackendValue](f) }
func FuzzRevNatKey(f *testing.F)        { fuzzDecoder[RevNatKey](f) }
func FuzzRevNatValue(f *testing.F)      { fuzzDecoder[RevNatValue](f) }
func FuzzReverseSKKey(f *testing.F)     { fuzzDecoder[ReverseSKKey](f) }
func FuzzReverseSKValue(f *testing.F)   { fuzzDecoder[ReverseSKValue](f) }
func FuzzAffinityKey(f *testing.F)      { fuzzDecoder[AffinityKey](f) }
func FuzzAffinityValue(f *testing.F)    { fuzzDecoder[AffinityValue](f) }
func FuzzAffinityMatchKey(f *testing.F) { fuzzDecoder[AffinityMatchKey](f) }
func FuzzSkipLBKey(f *testing.F)        { fuzzDecoder[SkipLBKey](f) }
func FuzzIPCacheKey(f *testing.F)       { fuzzDecoder[IPCacheKey](f) }
func FuzzIPCacheValue(f *testing.F)     { fuzzDecoder[IPCacheValue](f) }

// fuzzParser checks that parsing does not panic, that what parses prints to
// something that parses to the same, and that errors are one line.
func fuzzParser[T comparable](f *testing.F, parse func(string) (T, error), show func(T) string, seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parse(s)
		if err != nil {
			require.ErrorIs(t, err, ErrSyntax)
			require.False(t, strings.ContainsAny(err.Error(), "\r\n"), "%q", err)
			return
		}
		again, err := parse(show(v))
		require.NoError(t, err)
		require.Equal(t, v, again)
		require.Equal(t, show(v), show(again))
	})
}

func FuzzParseFrontend(f *testing.F) {
	fuzzParser(f, ParseFrontend, Frontend.String,
		"10.0.0.1:80/tcp", "[fd00::1]:53/udp", "0.0.0.0:0/any", "10.0.0.1:80/132/internal",
		"[::ffff:10.0.0.1]:80/tcp", "[fe80::1%eth0]:80/tcp", "10.0.0.1:080/TCP/External", "10.0.0.1:80", "/", "//", "")
}

func FuzzParseProtocol(f *testing.F) {
	fuzzParser(f, ParseProtocol, Protocol.String, "tcp", "UDP", "udplite", "any", "6", "007", "256", "-1", "")
}

func FuzzParseScope(f *testing.F) {
	fuzzParser(f, ParseScope, Scope.String, "external", "Internal", "0", "1", "2", "256", "")
}

func FuzzParseServiceFlags(f *testing.F) {
	fuzzParser(f, ParseServiceFlags, ServiceFlags.String,
		"", "none", "host-port,loopback", "l7-delegate", "loopback,host-port", ServiceFlags(0xffff).String(), "a\nb", ",")
}
