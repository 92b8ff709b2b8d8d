// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/passprog"
	"github.com/revsk/revsk/loader"
)

// A program that somebody has put into a link of ours stays, and the agent says so until it is gone. A program of ours that
// does nothing there is replaced.
func TestAForeignProgramInALinkOfOurs(t *testing.T) {
	n := newNode(t)
	r := n.start(n.options())
	r.ready()
	l, err := link.LoadPinnedLink(filepath.Join(n.loader().PinsDir, "links", "revsk_connect4"), nil)
	require.NoError(t, err)
	defer l.Close()
	put := func(prog *ebpf.Program) ebpf.ProgramID {
		t.Helper()
		require.NoError(t, l.Update(prog))
		info, err := prog.Info()
		require.NoError(t, err)
		id, _ := info.ID()
		return id
	}
	there := put(passprog.Connect4(t))
	awaits(t, "it is said", soon, func() bool {
		err := r.Ready()
		return err != nil && hasProblem(r.Agent.problems(), loader.ProblemForeign)
	})
	require.ErrorContains(t, r.Ready(), "foreign-program: somebody has put policy (program ")
	require.NoError(t, r.Alive())
	time.Sleep(2 * n.options().LookEvery)
	info, err := l.Info()
	require.NoError(t, err)
	require.Equal(t, there, info.Program, "it is still there")
	require.NoError(t, l.Detach())
	awaits(t, "mended", soon, func() bool { return r.Ready() == nil && n.program("connect4") != 0 })

	require.NoError(t, l.Close())
	l, err = link.LoadPinnedLink(filepath.Join(n.loader().PinsDir, "links", "revsk_connect4"), nil)
	require.NoError(t, err)
	defer l.Close()
	other, err := ebpf.NewProgramFromID(ebpf.ProgramID(n.program("recvmsg4")))
	require.NoError(t, err)
	defer other.Close()
	there = put(other)
	awaits(t, "replaced", soon, func() bool {
		info, err := l.Info()
		return err == nil && info.Program != there
	})
	r.ready()
}

// problems are those that were seen last.
func (a *Agent) problems() []loader.Problem {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view.problems
}
