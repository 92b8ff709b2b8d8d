// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

// A pin that comes, goes, or is replaced by another is seen, at once after the last one and when the directory has long been
// the same.
func TestFingerprintSeesEveryPin(t *testing.T) {
	n := newNode(t)
	dir := n.loader().MapsDir
	require.NoError(t, os.MkdirAll(dir, 0o700))
	f, err := newFingerprinter()
	require.NoError(t, err)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	pin := func(name string) error {
		clone, err := m.Clone()
		if err == nil {
			defer clone.Close()
			err = clone.Pin(filepath.Join(dir, name))
		}
		return err
	}
	path, other := filepath.Join(dir, lbmap.Services4Map), filepath.Join(dir, "another")
	for _, rest := range []time.Duration{0, 2 * timeMoves} {
		take := func() uint64 {
			time.Sleep(rest)
			print, err := f.take(n.loader())
			require.NoError(t, err)
			return print
		}
		last := take()
		for what, change := range []func() error{
			func() error { return pin(lbmap.Services4Map) },
			func() error { return pin(lbmap.Services6Map) },
			func() error { return os.Remove(filepath.Join(dir, lbmap.Services6Map)) },
			func() error {
				if err := pin("another"); err != nil {
					return err
				}
				return os.Rename(other, path)
			},
			func() error { return os.Remove(path) },
		} {
			require.Equal(t, last, take())
			require.NoError(t, change())
			now := take()
			require.NotEqual(t, last, now, "change %d, %v later", what, rest)
			last = now
		}
	}
}
