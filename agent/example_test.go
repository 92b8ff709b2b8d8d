// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"log"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// An agent in another program. It detaches the hooks when it ends, as there is nobody to hand them back to.
func ExampleAgent_Run() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	a, err := agent.New(agent.Options{
		Loader: loader.Options{Cgroup: sandbox.Cgroup(), LegacyMaxEntries: 1000},
		OnStop: agent.StopHandBack,
		OnEvent: func(e agent.Event) {
			switch e := e.(type) {
			case agent.Loaded:
				fmt.Println("loaded")
				stop()
			case agent.GaveBack:
				fmt.Println("handed back:", e.HandedBack)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := a.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// loaded
	// handed back: false
}
