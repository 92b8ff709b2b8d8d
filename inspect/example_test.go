// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// connectedClient loads the hooks, adds a service and connects a client to it.
func connectedClient(ctx context.Context) (dp *loader.Datapath, client net.Conn, remove func()) {
	opts, err := loader.Options{Cgroup: sandbox.Cgroup(), LegacyMaxEntries: 1000}.WithDefaults()
	if err != nil {
		log.Fatal(err)
	}
	if dp, err = loader.Load(ctx, opts); err != nil {
		log.Fatal(err)
	}
	writer, err := lbmap.OpenWriter(opts.MapsDir)
	if err != nil {
		log.Fatal(err)
	}
	defer writer.Close()
	_, err = writer.Upsert(ctx, lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.10:53"), Protocol: lbmap.ProtocolUDP},
		Backends: []lbmap.Backend{{AddrPort: netip.MustParseAddrPort("127.0.0.1:5353"), Protocol: lbmap.ProtocolUDP}},
	})
	if err != nil {
		log.Fatal(err)
	}
	if client, err = net.Dial("udp", "10.96.0.10:53"); err != nil {
		log.Fatal(err)
	}
	return dp, client, func() {
		client.Close()
		dp.Close()
		if err := loader.Unload(ctx, opts, true); err != nil {
			log.Fatal(err)
		}
	}
}

// Which sockets are connected to a service now, and who has them open.
func ExampleReader_Sockets() {
	ctx := context.Background()
	dp, _, remove := connectedClient(ctx)
	defer remove()

	reader, err := inspect.Open(dp.InspectMaps(), inspect.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	connected := inspect.Filter{
		Service:   inspect.ServiceFilter{AddrPort: netip.MustParseAddrPort("10.96.0.10:53")},
		Connected: true,
	}
	for s, err := range reader.Sockets(ctx, connected) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.Protocol, s.Connection().Service, "is", s.Peer, "for", len(s.Owners), "process")
	}
	// Output: udp 10.96.0.10:53 is 127.0.0.1:5353 for 1 process
}

// A backend is gone: its clients are to find out.
func ExampleTerminate() {
	ctx := context.Background()
	dp, client, remove := connectedClient(ctx)
	defer remove()

	report, err := inspect.Terminate(ctx, dp.InspectMaps(), inspect.TerminateOptions{
		Backends: []inspect.Backend{{AddrPort: netip.MustParseAddrPort("127.0.0.1:5353"), Protocol: lbmap.ProtocolUDP}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("destroyed", report.Count(inspect.OutcomeDestroyed))
	_, err = client.Read(make([]byte, 1))
	fmt.Println(err != nil)
	// Output:
	// destroyed 1
	// true
}
