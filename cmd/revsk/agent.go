// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/revsk/revsk/agent"
)

func newAgentCommand(env *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Keep this node right by itself, until it is stopped",
		Long: `Runs until it is stopped, and does what the other commands do, when it is needed:

  load       when the agent starts, with the features that are saved with the datapath; again when a hook, a pin or a map is missing or replaced
  takeover   with --takeover: takes over from another agent, and again within a second after that agent has restarted
  migrate    moves onto the sockets what only the legacy maps (the hash) have; in mode mirror, writes to the hash what it has lost
  terminate  when a backend leaves the maps, destroys the sockets that are connected to it through a service, and no others

It keeps no state. You can kill it at any time, and start it again: applications do
not notice. When it ends, the datapath keeps running, unless you give
--on-stop=hand-back. If two agents run on a node, the second one waits until the
first one has ended.

--audit-only loads nothing and changes nothing. It measures how much of the hash is
leaked, how full it is, and which sockets have lost their entry. Begin with it.

The agent destroys no sockets while the maps may be incomplete:

  - while they have no backends
  - after a start of this agent, or of the one that writes the maps, until they have not changed for --terminate-settle
  - when more than --terminate-max-share percent of all backends have gone at once, until the maps have not changed for --terminate-hold

Every flag can be set in the environment (REVSK_TERMINATE_GRACE=2s) and in the file
that --config names, in YAML (terminate-grace: 2s). Flags win over the environment,
which wins over the file. SIGHUP reads the file again.

The agent logs one line for each event on standard error. --listen serves /metrics
for Prometheus, /healthz and /readyz. Under systemd the agent reports when it is
ready, and keeps the watchdog informed.`,
		Example: `  revsk agent --audit-only                          # measure, change nothing
  revsk agent
  revsk agent --takeover --terminate all            # where another agent runs
  revsk agent --config /etc/revsk/agent.yaml --log json
  revsk agent --listen unix:/run/revsk/agent.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAgent(cmd.Context(), env, givenFlags(cmd.Flags()))
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	new(agentSettings).addFlags(flags)
	for name, words := range agentChoices {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

func runAgent(ctx context.Context, env *env, given map[string]string) error {
	settings, opts, err := agentOptions(env, given)
	if err != nil {
		return err
	}
	// One processor is enough. With more of them, the Go scheduler spends more time on looking for work than on the work.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(40))
	a, err := agent.New(opts)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(a, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server := server{handler: a.Handler(registry)}
	if err := server.listen(settings.listen); err != nil {
		return err
	}
	defer server.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	go notify(ctx, a)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				reload(env, given, a, &server)
			}
		}
	}()
	return a.Run(ctx)
}

// reload reads the environment and the file again. If they are wrong, everything stays as it is.
func reload(env *env, given map[string]string, a *agent.Agent, s *server) {
	if state, err := daemon.SdNotifyMonotonicUsec(), error(nil); err == nil {
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+state)
	}
	defer daemon.SdNotify(false, daemon.SdNotifyReady)
	err := func() error {
		settings, opts, err := agentOptions(env, given)
		if err != nil {
			return err
		}
		if err := a.Configure(opts); err != nil {
			return err
		}
		if err := s.listen(settings.listen); err != nil {
			return err
		}
		opts.Logger.Info("read the settings again")
		return nil
	}()
	if err != nil {
		slog.New(slog.NewTextHandler(env.Stderr, nil)).Error("reading the settings again: they stay as they were", "error", err)
	}
}

// readyAtLast is the time after which the service manager is told that the agent is ready, even if the node is not right: the
// agent does what it can, and a restart would not help.
const readyAtLast = time.Minute

// notify reports readiness and status to the service manager, if there is one, and triggers its watchdog.
func notify(ctx context.Context, a *agent.Agent) {
	watchdog, _ := daemon.SdWatchdogEnabled(false)
	begin, ready, status := time.Now(), false, ""
	pause := time.Second
	if watchdog > 0 {
		pause = min(pause, watchdog/3)
	}
	for {
		err := a.Ready()
		if !ready && (err == nil || time.Since(begin) > readyAtLast) {
			ready = true
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
		}
		now := "the node is right"
		if err != nil {
			now = err.Error()
		}
		if now != status {
			status = now
			_, _ = daemon.SdNotify(false, "STATUS="+oneLine(status))
		}
		if watchdog > 0 && a.Alive() == nil {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
			return
		case <-time.After(pause):
		}
	}
}
