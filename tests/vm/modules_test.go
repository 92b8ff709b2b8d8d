// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseDepends(t *testing.T) {
	require.Equal(t, []string{"inet_diag", "nf_tables"},
		parseDepends([]byte("license=GPL\x00depends=inet-diag,nf_tables\x00retpoline=Y\x00")))
	require.Empty(t, parseDepends([]byte("depends=\x00name=inet_diag\x00")))
	require.Empty(t, parseDepends([]byte("name=inet_diag\x00")))
}

func TestLoadOrder(t *testing.T) {
	depends := map[string][]string{
		"udp_diag": {"inet_diag"}, "tcp_diag": {"inet_diag"}, "inet_diag": {"netlink"}, "netlink": {}, "veth": {},
	}
	order, err := loadOrder([]string{"udp_diag", "builtin", "tcp_diag", "veth", "inet_diag"},
		func(name string) (*module, error) {
			d, ok := depends[name]
			if !ok {
				return nil, nil
			}
			return &module{Name: name, Depends: d}, nil
		})
	require.NoError(t, err)
	var names []string
	for _, m := range order {
		names = append(names, m.Name)
	}
	require.Equal(t, []string{"netlink", "inet_diag", "udp_diag", "tcp_diag", "veth"}, names)

	broken := errors.New("broken")
	_, err = loadOrder([]string{"veth"}, func(string) (*module, error) { return nil, broken })
	require.ErrorIs(t, err, broken)
}
