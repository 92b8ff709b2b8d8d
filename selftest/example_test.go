// SPDX-License-Identifier: Apache-2.0

package selftest_test

import (
	"context"
	"fmt"
	"log"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/selftest"
)

// TestMain has called ChildMain, and runs the tests in a sandbox.
func ExampleRun() {
	report, err := selftest.Run(context.Background(), selftest.Options{Cgroup: sandbox.Cgroup()})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range report.Cases {
		if c.Name == "udp4-unconnected-close" {
			fmt.Printf("%s over %s, %s: %d left in the hash, %d on sockets\n",
				c.Protocol, c.Family, c.Type, c.Legacy.After, c.Storage.After)
		}
	}
	fmt.Println("verdict:", report.Verdict())
	// Output:
	// UDP over IPv4, Send, close: 1 left in the hash, 0 on sockets
	// verdict: <nil>
}
