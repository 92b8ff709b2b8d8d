// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestServicesWrittenAtTheSameTimeLeadToTheirOwnBackends(t *testing.T) {
	tables := newTables(t, nil)
	w := NewWriter(tables)
	var writers sync.WaitGroup
	for n := range 32 {
		writers.Go(func() {
			for m := range 5 {
				_, err := w.Upsert(t.Context(), Service{
					Frontend: frontend(t, fmt.Sprintf("10.0.%d.%d:80/tcp", n, m)),
					Backends: backends(fmt.Sprintf("10.1.%d.%d:80", n, m)),
				})
				assert.NoError(t, err)
			}
		})
	}
	writers.Wait()
	services, err := tables.Services(t.Context())
	require.NoError(t, err)
	for _, s := range services {
		own := s.Frontend.AddrPort.Addr().As4()
		assert.Equal(t, addrPort(fmt.Sprintf("10.1.%d.%d:80", own[2], own[3])), s.Backends[0].AddrPort, s.Frontend)
	}
}
