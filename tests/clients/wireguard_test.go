// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// backendBind opens its sockets in the backends' network namespace.
type backendBind struct{ conn.Bind }

func (b backendBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = inBackends(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// tunnelEnd is one end of a tunnel.
type tunnelEnd struct {
	*device.Device
	tun      *tuntest.ChannelTUN
	addr     netip.Addr // in the tunnel
	key      *ecdh.PrivateKey
	received atomic.Int64
}

func newTunnelEnd(t *testing.T, bind conn.Bind, addr string) *tunnelEnd {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	require.NoError(t, err)
	e := &tunnelEnd{tun: tuntest.NewChannelTUN(), addr: netip.MustParseAddr(addr), key: key}
	e.Device = device.NewDevice(e.tun.TUN(), bind, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(e.Close)
	go func() {
		for {
			select {
			case <-e.tun.Inbound:
				e.received.Add(1)
			case <-e.Wait():
				return
			}
		}
	}()
	return e
}

// begin connects the end with its peer.
func (e *tunnelEnd) begin(t *testing.T, port int, peer *tunnelEnd, endpoint string) {
	t.Helper()
	config := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\n",
		hex.EncodeToString(e.key.Bytes()), port, hex.EncodeToString(peer.key.PublicKey().Bytes()), peer.addr)
	if endpoint != "" {
		config += "endpoint=" + endpoint + "\n"
	}
	require.NoError(t, e.IpcSet(config))
	require.NoError(t, e.Up())
}

func (e *tunnelEnd) endpoint(t *testing.T) string {
	t.Helper()
	state, err := e.IpcGet()
	require.NoError(t, err)
	_, rest, _ := strings.Cut(state, "endpoint=")
	endpoint, _, _ := strings.Cut(rest, "\n")
	return endpoint
}

// ping sends n packets through the tunnel, one every 10 ms, and says how many the peer has received.
func (e *tunnelEnd) ping(peer *tunnelEnd, n int) int64 {
	before := peer.received.Load()
	for range n {
		e.tun.Outbound <- tuntest.Ping(peer.addr, e.addr)
		time.Sleep(10 * time.Millisecond)
	}
	// They all arrive, or take another way for good.
	_ = waitFor(2*time.Second, func() bool { return peer.received.Load()-before >= int64(n) })
	return peer.received.Load() - before
}

// A wireguard peer sends to where the last packet came from: if that is the backend once, it stays there.
func TestWireguard(t *testing.T) {
	const service, n = "10.96.0.20:51820", 50
	results := newTable(fmt.Sprintf("wireguard, its endpoint the service %s, which has no backend for %v:", service, flap),
		"MODE", "ENDPOINT AFTERWARDS", "SERVICE GETS ANOTHER BACKEND")
	for _, mode := range []string{"storage", "mirror", "legacy"} {
		t.Run(mode, func(t *testing.T) {
			setMode(t, mode)
			appear(t, backendA)
			setService(t, service+"/udp", backendA+":51820")

			client := newTunnelEnd(t, conn.NewDefaultBind(), "192.168.9.1")
			server := newTunnelEnd(t, backendBind{conn.NewDefaultBind()}, "192.168.9.2")
			server.begin(t, 51820, client, "")
			client.begin(t, 0, server, service)
			require.Eventually(t, func() bool { return client.ping(server, 1) == 1 }, time.Minute, 10*time.Millisecond)

			setService(t, service+"/udp", "")
			require.Positive(t, server.ping(client, int(flap/(10*time.Millisecond))), "from the server, meanwhile")
			setService(t, service+"/udp", backendA+":51820")
			require.EqualValues(t, n, client.ping(server, n))
			endpoint := client.endpoint(t)

			disappear(t, backendA)
			appear(t, backendB)
			setService(t, service+"/udp", backendB+":51820")
			arrived := client.ping(server, n)
			results.add(mode, endpoint, fmt.Sprintf("%d of %d packets arrive", arrived, n))
			if mode == "legacy" {
				require.Equal(t, backendA+":51820", endpoint, "the hash is to show the backend while the service has none")
				return
			}
			require.Equal(t, service, endpoint)
			require.EqualValues(t, n, arrived)
		})
	}
}
