// SPDX-License-Identifier: Apache-2.0

package lbmap_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
)

// exampleMaps makes what a control plane, or revsk load, leaves in /sys/fs/bpf/tc/globals.
func exampleMaps() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "lbmap-example-")
	if err != nil {
		log.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		log.Fatal(err)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{lbmap.Services4Map, lbmap.Backends4Map, lbmap.RevNat4Map} {
		spec := lbmap.MapSpec(name)
		spec.Name = "" // too long for the kernel
		m, err := ebpf.NewMap(spec)
		if err != nil {
			log.Fatal(err)
		}
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			log.Fatal(err)
		}
		m.Close()
	}
	return dir, func() {
		if err := unix.Unmount(dir, 0); err != nil {
			log.Fatal(err)
		}
		os.Remove(dir)
	}
}

func backend(addr string) lbmap.Backend {
	return lbmap.Backend{AddrPort: netip.MustParseAddrPort(addr), Protocol: lbmap.ProtocolTCP}
}

func Example() {
	dir, remove := exampleMaps()
	defer remove()
	ctx := context.Background()

	w, err := lbmap.OpenWriter(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	frontend, err := lbmap.ParseFrontend("10.96.0.1:80/tcp")
	if err != nil {
		log.Fatal(err)
	}
	change, err := w.Upsert(ctx, lbmap.Service{
		Frontend: frontend,
		Backends: []lbmap.Backend{backend("10.0.1.1:8080"), backend("10.0.1.2:8080")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(change.Action, change.Service.Frontend, "index", change.Service.RevNat)

	tables, err := lbmap.OpenTables(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer tables.Close()
	services, err := tables.Services(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range services {
		for _, b := range s.Backends {
			fmt.Println(s.Frontend, "->", b.AddrPort, b.State)
		}
	}
	// Output:
	// add 10.96.0.1:80/tcp index 1
	// 10.96.0.1:80/tcp -> 10.0.1.1:8080 active
	// 10.96.0.1:80/tcp -> 10.0.1.2:8080 active
}

func ExampleWriter_Sync() {
	dir, remove := exampleMaps()
	defer remove()
	w, err := lbmap.OpenWriter(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()

	wanted := []lbmap.Service{
		{Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lbmap.ProtocolTCP}},
		{Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.2:80"), Protocol: lbmap.ProtocolTCP}},
	}
	for _, addr := range []string{"10.0.1.1:8080", "10.0.1.2:8080"} {
		wanted[0].Backends = append(wanted[0].Backends, backend(addr))
		report, err := w.Sync(context.Background(), wanted)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d added, %d replaced, %d kept, %d deleted\n",
			report.Added, report.Replaced, report.Kept, report.Deleted)
	}
	// Output:
	// 2 added, 0 replaced, 0 kept, 0 deleted
	// 0 added, 1 replaced, 1 kept, 0 deleted
}

func ExampleParseFrontend() {
	f, err := lbmap.ParseFrontend("[fd00::1]:53/udp")
	fmt.Println(f.AddrPort, f.Protocol, err)
	_, err = lbmap.ParseFrontend("fd00::1:53/udp")
	fmt.Println(err)
	// Output:
	// [fd00::1]:53 udp <nil>
	// service "fd00::1:53/udp": expected ADDR:PORT/PROTO, such as 10.0.0.1:80/tcp or [fd00::1]:53/udp: syntax error
}
