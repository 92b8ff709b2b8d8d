// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// ErrInvalid is returned for an option, or a combination of them, that has no meaning.
var ErrInvalid = errors.New("invalid option")

// ErrClosed is returned by methods of an [Agent] that is nil, and by [Agent.Run] if it was called before.
var ErrClosed = errors.New("agent is closed")

// OwnerPolicy is what to do when the agent whose hooks were taken over is turned off or removed.
type OwnerPolicy string

const (
	// OwnerStay goes on translating by the service maps as they are.
	OwnerStay OwnerPolicy = "stay"
	// OwnerHandBack puts the owner's programs back, as [loader.HandBack] does. With its links gone, they are too.
	OwnerHandBack OwnerPolicy = "hand-back"
	// OwnerUnload detaches the hooks, so that nothing is translated. Sockets keep what they remember.
	OwnerUnload OwnerPolicy = "unload"
)

// StopPolicy is what to do with the datapath when the agent ends.
type StopPolicy string

const (
	// StopLeave leaves it running.
	StopLeave StopPolicy = "leave"
	// StopHandBack gives the hooks back to the agent from which they were taken, and detaches them if there is none.
	StopHandBack StopPolicy = "hand-back"
)

// Protocols are those of the sockets that are ended when their backend goes.
type Protocols string

const (
	TerminateUDP Protocols = "udp"
	TerminateAll Protocols = "all"
	TerminateOff Protocols = "off"
)

// Options say what the agent does. The zero value is right for a node without another agent.
type Options struct {
	// Loader says where the datapath is, which features it has, and whether to take over from another agent. Mode, Force,
	// Wait, OnChange and Logger are the agent's own affair and must be empty.
	Loader loader.Options
	// AuditOnly loads nothing and changes nothing: it measures how the hash is used by whatever uses it.
	AuditOnly bool
	// To is the mode in which migrations end, storage or mirror. Default: mirror where hooks were taken over from
	// another agent, elsewhere storage.
	To *loader.Mode
	// WhenOwnerLeaves is what to do when the other agent has removed its links, for 10 seconds.
	// Default: [OwnerStay].
	WhenOwnerLeaves OwnerPolicy
	// OnStop is what to do when the context of Run ends. Default: [StopLeave].
	OnStop StopPolicy
	// Termination is about sockets whose backend is gone.
	Termination Termination

	// Poll is how often it is looked whether programs or pins have changed, or backends have gone; after a change of programs
	// or pins, five times as often. Default: 450 ms.
	Poll time.Duration
	// LookEvery is how often everything is looked at although nothing has changed. Default: 1 minute.
	LookEvery time.Duration
	// SurveyEvery is how often all sockets are visited, for metrics and for sockets whose backend went unnoticed, and the
	// entries of the hash are counted. Default: 1 minute.
	SurveyEvery time.Duration
	// AuditEvery is how often the entries of the hash are judged. Less than 0: never. Default: 10 minutes with AuditOnly, 1 hour without.
	AuditEvery time.Duration
	// RefillEvery is how often mode mirror puts back what the hash has lost, if it has lost something. Default: 10 minutes.
	RefillEvery time.Duration

	// Services is for how many services, those with the most sockets, the metrics have a series each. Less than 0: none. Default: 100.
	Services int
	// Backends adds series for as many backends. Default: none.
	Backends int

	// OnEvent, if not nil, is called with each event, in order, by one goroutine at a time. It must not block.
	OnEvent func(Event)
	// Logger gets a line for each event; nil: none.
	Logger *slog.Logger

	patience time.Duration // for how long the owner's links are gone before it has left; tests make it shorter
}

// Termination says which sockets are ended: those that are connected to a backend through a service, when the backend has
// left the backend maps, or has a state of States.
type Termination struct {
	// Protocols of the sockets. Default: [TerminateUDP].
	Protocols Protocols
	// States are those in which a backend counts as gone, too. [lbmap.BackendActive] cannot be one.
	States []lbmap.BackendState
	// Grace is for how long a backend has to be gone. When others go meanwhile, it begins anew, up to ten times. Default: 400 ms.
	Grace time.Duration
	// Settle is for how long the backend maps must not have changed before anything is ended, after a start of this agent or of
	// the owner of the maps, and after a map was made anew; up to ten times as long where they never rest. Default: 3 s.
	Settle time.Duration
	// MaxShare is how much of all backends may go at once. More is taken for maps that are being rewritten, and held back
	// until the maps have not changed for Hold. While there are no backends at all, nothing is ended. Default: 0.3.
	MaxShare float64
	// Hold is explained at MaxShare. Default: 30 s.
	Hold time.Duration
	// Rate is how many sockets are ended a second at most. Default: 1000.
	Rate int
}

// setDefault sets what is zero.
func setDefault[T comparable](value *T, to T) {
	if *value == *new(T) {
		*value = to
	}
}

// WithDefaults fills what is empty. Returns an error wrapping [ErrInvalid], or those of [loader.Options.WithDefaults].
func (o Options) WithDefaults() (Options, error) {
	if o.Loader.Mode != nil || o.Loader.Force || o.Loader.OnChange != nil {
		return o, fmt.Errorf("%w: mode, force and the callback of the loader are chosen by the agent", ErrInvalid)
	}
	setDefault(&o.WhenOwnerLeaves, OwnerStay)
	setDefault(&o.OnStop, StopLeave)
	setDefault(&o.Poll, 450*time.Millisecond)
	setDefault(&o.LookEvery, time.Minute)
	setDefault(&o.SurveyEvery, time.Minute)
	setDefault(&o.patience, 10*time.Second)
	setDefault(&o.RefillEvery, 10*time.Minute)
	setDefault(&o.Services, 100)
	if o.AuditOnly {
		setDefault(&o.AuditEvery, 10*time.Minute)
	}
	setDefault(&o.AuditEvery, time.Hour)
	setDefault(&o.Termination.Protocols, TerminateUDP)
	setDefault(&o.Termination.Grace, 400*time.Millisecond)
	setDefault(&o.Termination.Settle, 3*time.Second)
	setDefault(&o.Termination.MaxShare, 0.3)
	setDefault(&o.Termination.Hold, 30*time.Second)
	setDefault(&o.Termination.Rate, 1000)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := o.check(); err != nil {
		return o, err
	}
	var err error
	o.Loader.Wait = lockWait
	o.Loader, err = o.Loader.WithDefaults()
	return o, err
}

// lockWait is for how long to wait for a command that changes the datapath.
const lockWait = 30 * time.Second

func (o Options) check() error {
	for _, c := range []struct {
		ok   bool
		what string
	}{
		{slices.Contains([]OwnerPolicy{OwnerStay, OwnerHandBack, OwnerUnload}, o.WhenOwnerLeaves), "what to do when the owner leaves"},
		{slices.Contains([]StopPolicy{StopLeave, StopHandBack}, o.OnStop), "what to do on stop"},
		{slices.Contains([]Protocols{TerminateUDP, TerminateAll, TerminateOff}, o.Termination.Protocols), "which sockets to end"},
		{o.To == nil || *o.To == loader.ModeStorage || *o.To == loader.ModeMirror, "the mode to end in: storage or mirror"},
		{!slices.Contains(o.Termination.States, lbmap.BackendActive), "a backend that is active is not gone"},
		{o.Termination.MaxShare > 0 && o.Termination.MaxShare <= 1, "the share of backends, above 0 and up to 1"},
		{o.Termination.Rate > 0, "the rate, above 0"},
		{min(o.Poll, o.LookEvery, o.SurveyEvery, o.RefillEvery, o.Termination.Grace, o.Termination.Settle, o.Termination.Hold) > 0, "a duration, above 0"},
	} {
		if !c.ok {
			return fmt.Errorf("%w: %s", ErrInvalid, c.what)
		}
	}
	return nil
}

// samePlaces tells whether both are about the same datapath. What else the options say can change while the agent runs.
func (o Options) samePlaces(other Options) bool {
	return o.Loader.Cgroup == other.Loader.Cgroup && o.Loader.MapsDir == other.Loader.MapsDir &&
		o.Loader.PinsDir == other.Loader.PinsDir && o.AuditOnly == other.AuditOnly
}

// sameDatapath tells whether a load by either would make the same. Functions are never known to be the same.
func (o Options) sameDatapath(other Options) bool {
	a, b := o.Loader, other.Loader
	return a.Takeover == b.Takeover && a.TakeoverLinks == b.TakeoverLinks && a.LegacyMaxEntries == b.LegacyMaxEntries &&
		reflect.DeepEqual(a.Features, b.Features) && a.ChangeFeatures == nil && b.ChangeFeatures == nil
}
