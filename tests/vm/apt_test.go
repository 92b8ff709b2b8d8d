// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFindMirrors(t *testing.T) {
	for _, test := range []struct{ uris, main, security string }{
		{"", "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"},
		{
			"'https://mirror.example/debian/dists/bookworm/InRelease' mirror_bookworm_InRelease 0 \n" +
				"'https://mirror.example/debian/dists/bookworm-updates/InRelease' x 0 \n" +
				"'https://mirror.example/security/dists/bookworm-security/InRelease' y 0 \n" +
				"'https://deb.nodesource.com/node_20.x/dists/nodistro/InRelease' z 0 \n" +
				"'https://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' p 0 \n",
			"https://mirror.example/debian", "https://mirror.example/security",
		},
		{
			"'http://archive.ubuntu.com/ubuntu/dists/noble/InRelease' x 0 \n",
			"http://deb.debian.org/debian", "http://deb.debian.org/debian-security",
		},
	} {
		main, security := findMirrors(test.uris)
		require.Equal(t, test.main, main)
		require.Equal(t, test.security, security)
	}
}

func TestAptConfigKeepsOnlyTheWayToTheMirror(t *testing.T) {
	config := aptConfig("/cache/apt", `Acquire::http::Proxy "http://proxy:3128";
Acquire::Check-Valid-Until "false";
Acquire::Languages "de";
Acquire::IndexTargets::deb::DEP-11::MetaKey "x";
APT::Update::Post-Invoke:: "rm -f /var/cache/apt/*.bin";
Dir::State "var/lib/apt";
`)
	require.Contains(t, config, "Dir::State \"/cache/apt/state\";\n")
	require.Contains(t, config, "Acquire::http::Proxy \"http://proxy:3128\";\n")
	require.Contains(t, config, "Acquire::Check-Valid-Until \"false\";\n")
	for _, left := range []string{"Post-Invoke", "DEP-11", "var/lib/apt", "\"de\""} {
		require.NotContains(t, config, left)
	}
}

func TestAptSourcesAreSigned(t *testing.T) {
	require.Contains(t, aptSources("http://m/debian", "http://m/security"),
		"deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m/debian trixie-backports main\n")
	require.Contains(t, aptSources("http://m/debian", "http://m/security"), "] http://m/security bullseye-security main\n")
}
