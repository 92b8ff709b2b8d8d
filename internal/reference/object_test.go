// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// ownObject is the compiled object of our programs under the reference's names.
const ownObject = "reference_bpfel.o"

func TestOpenRefusesWhatIsNoObjectOfTheReference(t *testing.T) {
	text := filepath.Join(t.TempDir(), "bpf_sock.o")
	require.NoError(t, os.WriteFile(text, []byte("not an object"), 0o600))
	for name, test := range map[string]struct{ file, want string }{
		"no file":           {filepath.Join(t.TempDir(), "bpf_sock.o"), "no such file"},
		"a text":            {text, "is not a compiled BPF object"},
		"another program's": {"../../bpf/iter/dump_bpfel.o", "neither of the programs cil_sock4_connect"},
		"revsk's own":       {"../../bpf/sock/revsk_bpfel.o", "neither of the programs cil_sock4_connect"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(test.file)
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, err, test.file)
		})
	}
}

func TestOwnObjectHasAProgramForEveryHook(t *testing.T) {
	o, err := Open(ownObject)
	require.NoError(t, err)
	for name := range attachTypes {
		require.Contains(t, o.spec.Programs, name)
	}
}

// Objects that look like the reference's, and cannot be used.
func TestOpenRefusesOtherReleases(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Object)
		want   string
	}{
		"a map of another layout": {
			func(o *Object) { o.spec.Maps[lbmap.ReverseSK4Map].ValueSize++ },
			"map cilium_lb4_reverse_sk has keys of 16 bytes and values of 9, not 16 and 8",
		},
		"no hash": {
			func(o *Object) {
				delete(o.spec.Maps, lbmap.ReverseSK4Map)
				delete(o.spec.Maps, lbmap.ReverseSK6Map)
			},
			"neither of the maps cilium_lb4_reverse_sk",
		},
		"no constant": {
			func(o *Object) { delete(o.spec.Variables, "__config_enable_lrp") },
			"it has no constant __config_enable_lrp",
		},
		"another hook": {
			func(o *Object) { o.spec.Programs["cil_sock4_sendmsg"].AttachType = attachTypes["cil_sock6_sendmsg"] },
			"program cil_sock4_sendmsg is for",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Ours()
			require.NoError(t, err)
			require.NoError(t, o.check())
			test.change(o)
			require.ErrorContains(t, o.check(), test.want)
		})
	}
}

// What a compiler was told cannot be changed when the object is loaded.
func TestObjectHasTheFeaturesThatItWasCompiledWith(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bpf_sock.o")
	b, err := os.ReadFile(ownObject)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, b, 0o600))
	open := func() *Object {
		o, err := Open(file)
		require.NoError(t, err)
		delete(o.spec.Variables, "cfg_ipv4") // what tells that it is ours
		return o
	}
	f := loader.DefaultFeatures()
	f.HealthCheck = true // has the programs
	require.NoError(t, open().Supports(f), "without a header the defaults")

	require.NoError(t, os.Mkdir(filepath.Join(dir, "globals"), 0o700))
	header := "/* the node's */\n#define ENABLE_IPV4 1\n#define ENABLE_SOCKET_LB_HOST_ONLY 1\n#define ENABLE_L7_LB\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "globals", "node_config.h"), []byte(header), 0o600))
	err = open().Supports(f)
	require.ErrorIs(t, err, ErrCompiled)
	require.ErrorContains(t, err, file+": compiled for other features: HostNetnsOnly is true, not false")

	f.HostNetnsOnly = true
	f.LocalRedirect, f.RejectNoBackend, f.NodePortMax = false, false, 31000 // are set when it is loaded
	require.NoError(t, open().Supports(f))
	f.IPv6, f.L7 = false, false
	require.ErrorContains(t, open().Supports(f), "IPv6 is true, not false, L7 is true, not false")
}
