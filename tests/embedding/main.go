// SPDX-License-Identifier: Apache-2.0

// Command embedding is an agent of another program, which does everything at its start. docs/embedding.md explains it.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/loader"
)

func main() {
	cgroup, listen := os.Args[1], os.Args[2]
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Where Cilium runs its hooks are taken over.
	owner, err := loader.AgentRuns(loader.Options{Cgroup: cgroup})
	if err != nil {
		log.Fatal(err)
	}
	a, err := agent.New(agent.Options{
		Loader: loader.Options{Cgroup: cgroup, Takeover: owner},
		// When a backend goes, its sockets end.
		Termination: agent.Termination{Protocols: agent.TerminateAll, Grace: time.Second},
		// When this program ends, everything is as before.
		OnStop: agent.StopHandBack,
		OnEvent: func(e agent.Event) {
			switch e := e.(type) {
			case agent.Loaded:
				fmt.Println("loaded with", len(e.Changes), "changes")
			case agent.TookOver:
				fmt.Println("took over", e.Hooks, "hooks")
			case agent.SocketTerminated:
				fmt.Println("ended", e.Socket.Local, "of", e.Socket.Owners)
			}
		},
		Logger: slog.Default(),
	})
	if err != nil {
		log.Fatal(err)
	}
	// An agent is a collector for Prometheus.
	registry := prometheus.NewRegistry()
	registry.MustRegister(a)
	go http.ListenAndServe(listen, a.Handler(registry))
	if err := a.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
