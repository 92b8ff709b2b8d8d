// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	backendA = "10.0.1.7"
	backendB = "10.0.2.9"
)

// setUpNetwork makes a network namespace for the backends, and routes to them.
func setUpNetwork() error {
	for _, command := range []string{
		"netns add backends",
		"link add clients type veth peer name backends netns backends",
		"addr add 172.31.0.1/30 dev clients",
		"link set clients up",
		"-n backends addr add 172.31.0.2/30 dev backends",
		"-n backends link set backends up",
		"-n backends link set lo up",
		"route add 10.0.0.0/16 via 172.31.0.2",
	} {
		if err := ip(command); err != nil {
			return err
		}
	}
	return nil
}

func ip(command string) error { return output(exec.Command("ip", strings.Fields(command)...)) }

// appear makes the address of a backend reachable. It is the source of what sockets without an address send.
func appear(t *testing.T, backend string) {
	t.Helper()
	require.NoError(t, ip("-n backends addr add "+backend+"/32 dev lo"))
	require.NoError(t, ip("-n backends route replace 172.31.0.0/30 dev backends src "+backend))
	t.Cleanup(func() { _ = ip("-n backends addr del " + backend + "/32 dev lo") })
}

// disappear removes the address of a backend. What is sent there is dropped and nobody is told, as when a node fails.
func disappear(t *testing.T, backend string) {
	t.Helper()
	require.NoError(t, ip("-n backends addr del "+backend+"/32 dev lo"))
}

// inBackends runs f in the backends' network namespace. Sockets that f opens stay there.
func inBackends(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open("/run/netns/backends")
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}
