// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// image writes an entry of an index.
func image(name, version string, depends ...string) string {
	return fmt.Sprintf("Package: %s\nSource: linux\nVersion: %s\nDepends: kmod, %s\nDescription: x\n y\n"+
		"Filename: pool/main/l/linux/%s_%s_amd64.deb\nSHA256: sum-%s\n\n",
		name, version, strings.Join(depends, ", "), name, version, name)
}

func split(release, version string) string {
	pin := " (= " + version + ")"
	return image("linux-image-"+release, version,
		"linux-base-"+release+pin, "linux-binary-"+release+pin, "linux-modules-"+release+pin)
}

func testIndex(t *testing.T) []debPackage {
	t.Helper()
	var index []debPackage
	for _, suite := range []struct{ name, text string }{
		{"bullseye-security", image("linux-image-5.10.0-46-cloud-amd64", "5.10.262-1") +
			image("linux-image-5.10.0-9-cloud-amd64", "5.10.70-1") +
			image("linux-image-6.1.0-0.deb11.56-cloud-amd64", "6.1.192-2~deb11u1")},
		{"bookworm", image("linux-image-6.1.0-50-cloud-amd64-unsigned", "6.1.176-1") +
			image("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1") +
			image("linux-image-6.1.0-50-amd64", "6.1.176-1") +
			image("linux-image-6.1.0-50-rt-amd64", "6.1.176-1") +
			"Package: bash\nVersion: 99\n\n"},
		{"bookworm-security", image("linux-image-6.1.0-56-amd64", "6.1.192-2") +
			image("linux-image-6.1.0-56-amd64-dbg", "6.1.192-2") +
			image("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2") +
			image("linux-image-6.1.0-56-rt-amd64", "6.1.192-2")},
		{"trixie", image("linux-image-6.12.9+deb13-cloud-amd64", "6.12.9-1") +
			image("linux-image-6.12.90+deb13-cloud-amd64", "6.12.90-1") +
			image("linux-image-6.12-cloud-amd64", "6.12.99-1")},
		{"trixie-backports", split("7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+1") +
			image("linux-binary-7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+1") +
			split("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1") +
			image("linux-binary-7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1") +
			image("linux-modules-7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1") +
			strings.TrimSuffix(split("7.2.13+deb13-cloud-amd64", "7.2.13-1"), "\n")},
	} {
		packages, err := parseIndex(strings.NewReader(suite.text), suite.name)
		require.NoError(t, err)
		index = append(index, packages...)
	}
	return index
}

func TestSelectKernel(t *testing.T) {
	index := testIndex(t)
	for name, want := range map[string]struct{ release, suite string }{
		"5.10":                      {"5.10.0-46-cloud-amd64", "bullseye-security"},
		"5.10.70":                   {"5.10.0-9-cloud-amd64", "bullseye-security"},
		"6.1":                       {"6.1.0-56-cloud-amd64", "bookworm-security"},
		"6.1.0-50":                  {"6.1.0-50-cloud-amd64", "bookworm"},
		"6.1.0-50-amd64":            {"6.1.0-50-amd64", "bookworm"},
		"6.1.0-56-rt-amd64":         {"6.1.0-56-rt-amd64", "bookworm-security"},
		"6.1.0-0.deb11.56":          {"6.1.0-0.deb11.56-cloud-amd64", "bullseye-security"},
		"6.12":                      {"6.12.90+deb13-cloud-amd64", "trixie"},
		"6.12.9":                    {"6.12.9+deb13-cloud-amd64", "trixie"},
		"7":                         {"7.2.12+deb13-cloud-amd64", "trixie-backports"},
		"7.2":                       {"7.2.12+deb13-cloud-amd64", "trixie-backports"},
		"6.12.90+deb13-cloud-amd64": {"6.12.90+deb13-cloud-amd64", "trixie"},
	} {
		k, err := selectKernel(name, index)
		require.NoError(t, err, name)
		require.Equal(t, want.release, k.Release, name)
		require.Equal(t, want.suite, k.Suite, name)
		require.Equal(t, name, k.Name)
	}
}

func TestSelectKernelTakesTheSignedPackage(t *testing.T) {
	k, err := selectKernel("6.1.0-50", testIndex(t))
	require.NoError(t, err)
	require.Equal(t, []debPackage{{
		Name: "linux-image-6.1.0-50-cloud-amd64", Version: "6.1.176-1", Suite: "bookworm", Depends: "kmod, ",
		SHA256: "sum-linux-image-6.1.0-50-cloud-amd64", File: "linux-image-6.1.0-50-cloud-amd64_6.1.176-1_amd64.deb",
	}}, k.Packages)
}

func TestSelectKernelFollowsAStubToItsParts(t *testing.T) {
	k, err := selectKernel("7.2", testIndex(t))
	require.NoError(t, err)
	require.Len(t, k.Packages, 2)
	require.Equal(t, "linux-binary-7.2.12+deb13-cloud-amd64", k.Packages[0].Name)
	require.Equal(t, "linux-modules-7.2.12+deb13-cloud-amd64", k.Packages[1].Name)
}

func TestSelectKernelSaysWhatThereIs(t *testing.T) {
	index := testIndex(t)
	_, err := selectKernel("4.19", index)
	require.ErrorIs(t, err, errNoKernel)
	require.EqualError(t, err, "no such kernel: 4.19 (there are 5.10 6.1 6.12 7.1 7.2)")

	_, err = selectKernel("7.1", index)
	require.ErrorIs(t, err, errNoKernel)
	require.ErrorContains(t, err, "the mirror no longer has linux-modules-7.1.13+deb13-cloud-amd64")

	for _, name := range []string{"6", "6.1.0-5", "6.12-cloud-amd64", "bash", ""} {
		k, err := selectKernel(name, index)
		if name == "6" {
			require.NoError(t, err)
			require.Equal(t, "6.12.90+deb13-cloud-amd64", k.Release)
			continue
		}
		require.ErrorIs(t, err, errNoKernel, name)
	}
}
