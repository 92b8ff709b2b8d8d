// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// agentSettings are the flags of revsk agent, which can also be set in the environment and in a file.
type agentSettings struct {
	flags *pflag.FlagSet // with all settings that were given, wherever

	config, listen, log     string
	takeover, auditOnly     bool
	links, to, owner, stop  string
	legacy                  uint32
	terminate, terminateOn  string
	grace, settle, hold     time.Duration
	share, rate             int
	look, survey            time.Duration
	audit, refill           time.Duration
	services, backends      int
	reset                   bool
	features                loader.Features
	cgroup, bpffs, mapsPath string
	pins                    string
}

// agentChoices are the flags that take one of a few words.
var agentChoices = map[string][]string{
	"to":                {loader.ModeStorage.String(), loader.ModeMirror.String()},
	"when-owner-leaves": {string(agent.OwnerStay), string(agent.OwnerHandBack), string(agent.OwnerUnload)},
	"on-stop":           {string(agent.StopLeave), string(agent.StopHandBack)},
	"terminate":         {string(agent.TerminateUDP), string(agent.TerminateAll), string(agent.TerminateOff)},
	"log":               {"text", "json"},
}

const (
	defaultListen = "127.0.0.1:9798"
	environment   = "REVSK_"
)

func (s *agentSettings) addFlags(flags *pflag.FlagSet) {
	choose := func(value *string, name, preset, usage string) {
		*value = preset
		flags.Var(&choice{value, agentChoices[name]}, name, usage)
	}
	flags.StringVar(&s.config, "config", "", "`file` with settings; SIGHUP reads it again")
	flags.BoolVar(&s.auditOnly, "audit-only", false, "load and change nothing: measure how the hash is used")
	flags.BoolVar(&s.takeover, "takeover", false, "take over from another agent that runs on the cgroup")
	flags.StringVar(&s.links, "takeover-links", "", "`directory` in which that agent pins its links, if not where Cilium does; implies --takeover")
	choose(&s.owner, "when-owner-leaves", string(agent.OwnerStay), "what to do when the other agent is turned off or removed")
	choose(&s.stop, "on-stop", string(agent.StopLeave), "what to do with the datapath when this agent is stopped")
	choose(&s.to, "to", "", "mode in which migrations end (default: mirror after a takeover, else storage)")
	choose(&s.terminate, "terminate", string(agent.TerminateUDP), "which sockets to destroy when their backend is gone")
	flags.StringVar(&s.terminateOn, "terminate-on", "", "`states` in which a backend counts as gone: terminating, quarantined or maintenance")
	flags.DurationVar(&s.grace, "terminate-grace", 400*time.Millisecond, "how long a backend must be gone")
	flags.DurationVar(&s.settle, "terminate-settle", 3*time.Second, "how long the maps must not change after a start")
	flags.IntVar(&s.share, "terminate-max-share", 30, "`percent` of all backends that may go at once")
	flags.DurationVar(&s.hold, "terminate-hold", 30*time.Second, "how long the maps must not change if more have gone")
	flags.IntVar(&s.rate, "terminate-rate", 1000, "how many `sockets` to destroy per second at most")
	flags.StringVar(&s.listen, "listen", defaultListen, "`address` of /metrics, /healthz and /readyz: HOST:PORT, unix:PATH, or off")
	flags.IntVar(&s.services, "metrics-services", 100, "`number` of services with metrics of their own: those with the most sockets")
	flags.IntVar(&s.backends, "metrics-backends", 0, "`number` of backends with metrics of their own")
	choose(&s.log, "log", "text", "format of the log")
	flags.DurationVar(&s.look, "look-every", time.Minute, "how often to check everything, even if nothing has changed")
	flags.DurationVar(&s.survey, "survey-every", time.Minute, "how often to visit all sockets, for metrics")
	flags.DurationVar(&s.audit, "audit-every", 0, "how often to judge the entries of the hash; negative: never (default 1h, 10m with --audit-only)")
	flags.DurationVar(&s.refill, "refill-every", 10*time.Minute, "how often mode mirror writes to the hash what it has lost")
	flags.Uint32Var(&s.legacy, "legacy-entries", 0, "`size` of each legacy map that has to be created (default 262144)")
	flags.BoolVar(&s.reset, "reset-features", false, "start from the default features")
	s.features = loader.DefaultFeatures()
	addFeatureFlags(flags, &s.features)
}

// addPlaces adds the global flags, which the environment and the file can set, too.
func (s *agentSettings) addPlaces(env *env, flags *pflag.FlagSet) {
	flags.StringVar(&s.cgroup, "cgroup", env.cgroup, "")
	flags.StringVar(&s.bpffs, "bpffs", env.bpffs, "")
	flags.StringVar(&s.mapsPath, "maps", env.maps, "")
	flags.StringVar(&s.pins, "pins", env.pins, "")
}

// givenFlags returns the values of the flags that are on the command line, by name.
func givenFlags(flags *pflag.FlagSet) map[string]string {
	given := make(map[string]string)
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
	return given
}

// agentOptions reads the settings, and makes the agent's options of them.
func agentOptions(env *env, given map[string]string) (*agentSettings, agent.Options, error) {
	s, err := readSettings(env, given)
	if err != nil {
		return nil, agent.Options{}, err
	}
	opts, err := s.options(env)
	return s, opts, err
}

// readSettings reads the flags that were given, the environment and the file, in this order: the first that sets something wins.
func readSettings(env *env, given map[string]string) (*agentSettings, error) {
	s := &agentSettings{flags: pflag.NewFlagSet("agent", pflag.ContinueOnError)}
	s.addFlags(s.flags)
	s.addPlaces(env, s.flags)
	for name, value := range given {
		if s.flags.Lookup(name) == nil {
			continue // --verbose, for example
		}
		if err := s.flags.Set(name, value); err != nil {
			return nil, usageError(err)
		}
	}
	var errs []error
	s.flags.VisitAll(func(f *pflag.Flag) {
		name := environment + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed {
			if err := s.flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: %w", name, value, err))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, usageError(err)
	}
	if s.config == "" {
		return s, nil
	}
	if err := s.readFile(s.config); err != nil {
		return nil, usageError(fmt.Errorf("%s: %w", s.config, err))
	}
	return s, nil
}

// readFile applies the settings of a file, except those that a flag or the environment has set.
func (s *agentSettings) readFile(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return errors.Unwrap(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for name, value := range values {
		f := s.flags.Lookup(name)
		if f == nil || name == "config" {
			return fmt.Errorf("there is no setting %q", name)
		}
		if f.Changed {
			continue
		}
		text := fmt.Sprint(value)
		if list, ok := value.([]any); ok {
			var words []string
			for _, word := range list {
				words = append(words, fmt.Sprint(word))
			}
			text = strings.Join(words, ",")
		}
		if err := s.flags.Set(name, text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// options are the agent's options.
func (s *agentSettings) options(e *env) (agent.Options, error) {
	place := env{cgroup: s.cgroup, bpffs: s.bpffs, maps: s.mapsPath, pins: s.pins}
	opts := agent.Options{
		Loader: loader.Options{
			Cgroup: s.cgroup, MapsDir: place.mapsDir(), PinsDir: place.pinsDir(),
			Takeover: s.takeover, TakeoverLinks: s.links, LegacyMaxEntries: s.legacy,
			ChangeFeatures: func(f *loader.Features) { changeFeatures(s.flags, f) },
			Said:           saidFeatures(s.flags),
		},
		AuditOnly:       s.auditOnly,
		WhenOwnerLeaves: agent.OwnerPolicy(s.owner),
		OnStop:          agent.StopPolicy(s.stop),
		Termination: agent.Termination{
			Protocols: agent.Protocols(s.terminate), Grace: s.grace, Settle: s.settle, Hold: s.hold,
			MaxShare: float64(s.share) / 100, Rate: s.rate,
		},
		LookEvery: s.look, SurveyEvery: s.survey, AuditEvery: s.audit, RefillEvery: s.refill,
		Services: s.services, Backends: s.backends,
		Logger: s.logger(e),
	}
	if s.services == 0 {
		opts.Services = -1
	}
	if s.reset {
		defaults := loader.DefaultFeatures()
		opts.Loader.Features = &defaults
	}
	var err error
	if opts.To, err = parseMode(s.to); err != nil {
		return opts, err
	}
	opts.Termination.States, err = parseStates(s.terminateOn)
	return opts, err
}

// parseStates reads states of backends, separated by commas.
func parseStates(text string) (states []lbmap.BackendState, err error) {
	known := []lbmap.BackendState{lbmap.BackendTerminating, lbmap.BackendQuarantined, lbmap.BackendMaintenance}
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		i := slices.IndexFunc(known, func(s lbmap.BackendState) bool { return s.String() == word })
		if i < 0 {
			return nil, usageError(fmt.Errorf("terminate-on: %q is not one of terminating, quarantined, maintenance", word))
		}
		states = append(states, known[i])
	}
	return states, nil
}

func (s *agentSettings) logger(e *env) *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelInfo}
	if e.verbose {
		opts.Level = slog.LevelDebug
	} else if e.quiet {
		opts.Level = slog.LevelWarn
	}
	if s.log == "json" {
		return slog.New(slog.NewJSONHandler(e.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(e.Stderr, opts))
}
