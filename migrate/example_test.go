// SPDX-License-Identifier: Apache-2.0

package migrate_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf/rlimit"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

func TestMain(m *testing.M) {
	os.Exit(sandbox.TestMain(func() int {
		if err := rlimit.RemoveMemlock(); err != nil {
			fmt.Fprintln(os.Stderr, "the tests of package migrate need memory for BPF maps:", err)
			return 1
		}
		return m.Run()
	}))
}

// nodeWithHash is a node on which a client has connected to a service while the hash was all that remembered.
func nodeWithHash(ctx context.Context) (opts loader.Options, remove func()) {
	opts, err := loader.Options{Cgroup: sandbox.Cgroup(), LegacyMaxEntries: 1000}.WithDefaults()
	if err != nil {
		log.Fatal(err)
	}
	legacy := opts
	mode := loader.ModeLegacy
	legacy.Mode = &mode
	dp, err := loader.Load(ctx, legacy)
	if err != nil {
		log.Fatal(err)
	}
	defer dp.Close()
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
	client, err := net.Dial("udp", "10.96.0.10:53")
	if err != nil {
		log.Fatal(err)
	}
	return opts, func() {
		client.Close()
		if err := loader.Unload(ctx, opts, true); err != nil {
			log.Fatal(err)
		}
	}
}

// What is in the hash, and what a migration would do with it.
func ExampleMakePlan() {
	ctx := context.Background()
	opts, remove := nodeWithHash(ctx)
	defer remove()

	plan, err := migrate.MakePlan(ctx, migrate.PlanOptions{Loader: opts})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("entries", plan.Entries, "connected", plan.MovedConn, "leaked", plan.Leaked)
	// Output: entries 1 connected 1 leaked 0
}

// There and back, while applications go on.
func ExampleRun() {
	ctx := context.Background()
	opts, remove := nodeWithHash(ctx)
	defer remove()

	report, err := migrate.Run(ctx, migrate.Options{Loader: opts})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("moved", report.MovedConn, "deleted", report.Deleted, "mode", report.Mode)
	back, err := migrate.Rollback(ctx, migrate.RollbackOptions{Loader: opts})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("written", back.Written, "missing", back.Missing, "mode", back.Mode)
	// Output:
	// moved 1 deleted 1 mode storage
	// written 1 missing 0 mode legacy
}
