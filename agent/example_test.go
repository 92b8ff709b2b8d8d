// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/loader"
)

func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a, err := agent.New(agent.Options{
		// Take over from Cilium, where it runs.
		Loader: loader.Options{Takeover: true},
		// When a backend goes, its sockets end.
		Termination: agent.Termination{Protocols: agent.TerminateAll, Grace: time.Second},
		OnEvent: func(e agent.Event) {
			switch e := e.(type) {
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
	// An Agent is a collector for Prometheus.
	registry := prometheus.NewRegistry()
	registry.MustRegister(a)
	go http.ListenAndServe("127.0.0.1:9798", a.Handler(registry))
	if err := a.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// The page has the example as it is here, which compiles.
func TestExampleOfThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/embedding.md")
	require.NoError(t, err)
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "```go\n")
	require.True(t, ok)
	code, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	require.Contains(t, string(source), code)
}
