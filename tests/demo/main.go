// SPDX-License-Identifier: Apache-2.0

// Command demo shows what revsk agent does for an application: nginx resolves names by UDP, through a service that has two DNS
// servers as its backends. The one that it is connected to goes, as a node does that loses its power. Without the agent nginx waits
// for its answers for as long as it runs; with the agent its socket is ended, and it connects to the other.
//
// It works in a sandbox and leaves nothing behind. Needs root and nginx.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if !sandbox.Inside() {
		code, err := sandbox.Run(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			code = 1
		}
		os.Exit(code)
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if err := sandbox.Enter(); err != nil {
		return err
	}
	opts := loader.Options{Cgroup: sandbox.Cgroup(), LegacyMaxEntries: 1000}
	dp, err := loader.Load(ctx, opts)
	if err != nil {
		return err
	}
	dp.Close()
	fmt.Println("nginx asks 50 names a second by a service with two DNS servers. The one that it is connected to goes.")
	without, err := play(ctx, opts, 10*time.Second)
	if err != nil {
		return fmt.Errorf("without the agent: %w", err)
	}
	agentCtx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	a, err := agent.New(agent.Options{Loader: opts, OnStop: agent.StopHandBack, Logger: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return err
	}
	wg.Go(func() { err = errors.Join(err, a.Run(agentCtx)) })
	for a.Ready() != nil {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(5 * time.Second) // the maps have been at rest since its start
	with, err := play(ctx, opts, 10*time.Second)
	if err != nil {
		return fmt.Errorf("with the agent: %w", err)
	}
	fmt.Println()
	fmt.Println("| | requests after the backend went | failed | for how long | other sockets that were disturbed |")
	fmt.Println("|---|---|---|---|---|")
	fmt.Println(without.row("without the agent"))
	fmt.Println(with.row("with the agent"))
	switch {
	case without.recovered:
		return errors.New("without the agent, nginx has found the other server by itself: the demo shows nothing")
	case !with.recovered:
		return errors.New("with the agent, requests failed to the end")
	case with.disturbed > 0:
		return fmt.Errorf("%d other sockets were disturbed", with.disturbed)
	}
	return nil
}
