// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// Features that are pinned are read by any release: what is read passes the checks or is refused, and is
// written as it was.
func FuzzFeatures(f *testing.F) {
	usual, err := json.Marshal(DefaultFeatures())
	require.NoError(f, err)
	for _, s := range [][]byte{usual, []byte(`{}`), []byte(`{"nodeport_min":70000}`), []byte(`{"affinity_hz":-1}`), []byte(`[]`), {}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		features := DefaultFeatures()
		if json.Unmarshal(text, &features) != nil || features.check() != nil {
			return
		}
		require.Empty(t, features.Differences(features))
		written, err := json.Marshal(features)
		require.NoError(t, err)
		require.Less(t, len(written), featuresSize)
		var again Features
		require.NoError(t, json.Unmarshal(written, &again))
		require.Equal(t, features, again)
	})
}

func FuzzParseMode(f *testing.F) {
	for _, s := range []string{"storage", "mirror", "dual", "legacy", "", "Storage", "dual\n", "4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := ParseMode(s); err == nil {
			require.Equal(t, s, m.String())
			require.NoError(t, m.check())
		}
	})
}
