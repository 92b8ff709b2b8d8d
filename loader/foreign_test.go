// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/passprog"
	"github.com/revsk/revsk/loader"
)

// putIntoLink puts a program into one of our links, as another process of root's can. It returns the program's id.
func putIntoLink(t *testing.T, hook string, prog *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(pinsDir, "links", hook), nil)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, l.Update(prog))
	return programID(t, prog)
}

func detachLink(t *testing.T, hook string) {
	t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(pinsDir, "links", hook), nil)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, l.Detach())
}

// Nobody but its owner knows whether a program may go that somebody has put into a link of ours.
func TestAForeignProgramInALinkOfOurs(t *testing.T) {
	load(t, options())
	there := putIntoLink(t, "revsk_connect4", passprog.Connect4(t))
	attachedThere := func() { t.Helper(); require.Contains(t, attached(t)[ebpf.AttachCGroupInet4Connect], there) }
	require.Equal(t, []string{loader.ProblemForeign}, codes(t, options()))
	for _, opts := range []loader.Options{options(), takeover()} {
		requireRefused(t, loader.ErrForeignProgram, func() error { return loadAndClose(t, opts) })
	}
	_, err := loader.PlanLoad(t.Context(), options())
	require.ErrorIs(t, err, loader.ErrForeignProgram)
	require.ErrorContains(t, err, "policy")
	var left []string
	opts := options()
	opts.OnChange = func(c loader.Change) {
		if c.Action == loader.ActionLeave {
			left = append(left, c.Object)
		}
	}
	require.NoError(t, loader.Unload(t.Context(), opts, true))
	require.NotEmpty(t, left)
	require.Contains(t, left[0], "links/revsk_connect4, which holds policy")
	attachedThere()
	requireRefused(t, loader.ErrForeignProgram, func() error { return loadAndClose(t, options()) })
	detachLink(t, "revsk_connect4")
	mustLoad(t, options())
	require.Empty(t, codes(t, options()))
	requireOnce(t)
}

// A link takes a program of another hook, which does nothing there.
func TestAProgramOfAnotherHookInALinkOfOurs(t *testing.T) {
	dp := load(t, options())
	l, err := link.LoadPinnedLink(filepath.Join(pinsDir, "links", "revsk_recvmsg4"), nil)
	require.NoError(t, err)
	defer l.Close()
	info, err := l.Info()
	require.NoError(t, err)
	prog, err := ebpf.NewProgramFromID(info.Program)
	require.NoError(t, err)
	defer prog.Close()
	putIntoLink(t, "revsk_connect4", prog)
	require.Equal(t, []string{loader.ProblemMisplaced}, codes(t, options()))
	hooks, err := dp.Hooks()
	require.NoError(t, err)
	for _, h := range hooks {
		require.Equal(t, h.Program != "revsk_connect4", h.Attached || h.Optional, h.Program)
	}
	mustLoad(t, options())
	require.Empty(t, codes(t, options()))
	requireOnce(t)
}

// The program comes between the look and the act.
func TestAForeignProgramThatComesMeanwhile(t *testing.T) {
	for name, act := range map[string]func(loader.Options) error{
		"load":   func(opts loader.Options) error { return loadAndClose(t, opts) },
		"unload": func(opts loader.Options) error { return loader.Unload(t.Context(), opts, false) },
	} {
		t.Run(name, func(t *testing.T) {
			load(t, options())
			prog := passprog.Connect4(t)
			var there ebpf.ProgramID
			opts := options().WithStep(func(step string) error {
				if (step == "attach revsk_connect4" || step == "detach revsk_connect4") && there == 0 {
					there = putIntoLink(t, "revsk_connect4", prog)
				}
				return nil
			})
			require.ErrorIs(t, act(opts), loader.ErrStale)
			require.NotZero(t, there)
			require.Contains(t, attached(t)[ebpf.AttachCGroupInet4Connect], there)
			require.Equal(t, []string{loader.ProblemForeign}, codes(t, options()))
			detachLink(t, "revsk_connect4")
			mustLoad(t, options())
			require.Empty(t, codes(t, options()))
		})
	}
}
