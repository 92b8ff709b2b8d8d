// SPDX-License-Identifier: Apache-2.0

package tests

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/lbmap"
)

// container is what the chart says of the container.
type container struct {
	Args            []string
	SecurityContext struct {
		ReadOnlyRootFilesystem bool
		Capabilities           struct{ Drop, Add []string }
		SeccompProfile         struct{ Type string }
	}
}

// have tells whether this process may give a capability away.
func have(t *testing.T, name string) bool {
	t.Helper()
	bits := map[string]uintptr{
		"SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_PTRACE": unix.CAP_SYS_PTRACE, "SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
		"NET_ADMIN": unix.CAP_NET_ADMIN, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	}
	require.Contains(t, bits, name)
	is, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, bits[name], 0, 0, 0)
	require.NoError(t, err)
	return is == 1
}

var before = flag.String("before", "", "`file` of the build before, named revsk, from which and to which is upgraded under traffic; default: this build")

// The image, with the privileges and the settings that the chart gives it and no more, beside another agent: it takes over,
// migrates, ends the socket of a backend that goes, and is scraped. It replaces the build
// before, and is replaced by it, under traffic.
func TestImage(t *testing.T) {
	storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(t.TempDir(), "root"), "--runroot", filepath.Join(t.TempDir(), "run")}
	// The image has the command and nothing else.
	image := func(name, binary string) {
		build := exec.Command("buildah", append(storage, "build", "--isolation", "chroot", "-f", absolute(t, "../image/Containerfile"), "-t", name, filepath.Dir(binary))...)
		text, err := build.CombinedOutput()
		require.NoError(t, err, "%s", text)
	}
	image("revsk", revsk)
	image("revsk-before", cmp.Or(*before, revsk))
	for name, seccomp := range map[string][]string{
		"default profile": nil, "own profile": {"--security-opt", "seccomp=" + absolute(t, "../seccomp/revsk-agent.json")},
	} {
		t.Run(name, func(t *testing.T) { runImage(t, append(slices.Clone(storage), "--runtime", "runc"), seccomp) })
	}
}

// runImage runs the image with a seccomp profile.
func runImage(t *testing.T, podman, seccomp []string) {
	files, err := render(t, map[string]any{"mode": "takeover", "terminate": map[string]any{"settle": "300ms"},
		// Nothing says how the programs of this agent were compiled.
		"settings": map[string]any{"host-netns-only": false}})
	require.NoError(t, err)
	var daemonSet struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []container }
			}
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(files["revsk/templates/daemonset.yaml"]), &daemonSet))
	c := daemonSet.Spec.Template.Spec.Containers[0]
	require.Equal(t, []string{"ALL"}, c.SecurityContext.Capabilities.Drop)
	require.True(t, c.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, "RuntimeDefault", c.SecurityContext.SeccompProfile.Type)
	var configMap struct{ Data map[string]string }
	require.NoError(t, yaml.Unmarshal([]byte(files["revsk/templates/configmap.yaml"]), &configMap))
	listen := freePort(t)
	etc := t.TempDir()
	config := regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(configMap.Data["agent.yaml"], fmt.Sprintf("listen: %q", listen))
	require.NoError(t, os.WriteFile(filepath.Join(etc, "agent.yaml"), []byte(config), 0o644))

	bpffs := filepath.Join("/sys/fs/bpf", strings.ReplaceAll(filepath.Base(t.Name()), " ", "_"))
	maps := filepath.Join(bpffs, "tc", "globals")
	owner, err := reference.Hash(maps)
	require.NoError(t, err)
	t.Cleanup(func() { _ = owner.Close() })
	require.NoError(t, owner.Link(cgroup(), filepath.Join(bpffs, "cilium", "socketlb", "links", "cgroup")))
	w, err := lbmap.OpenWriter(maps)
	require.NoError(t, err)
	t.Cleanup(func() { w.Close() })
	services := make([]lbmap.Service, 4)
	for i := range services {
		services[i] = lbmap.Service{
			Frontend: lbmap.Frontend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), 53), Protocol: lbmap.ProtocolUDP},
			Backends: []lbmap.Backend{{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}), 5353), Protocol: lbmap.ProtocolUDP}},
		}
	}
	_, err = w.Sync(t.Context(), services)
	require.NoError(t, err)
	var conns []net.Conn
	for _, s := range services {
		conn, err := net.Dial("udp", s.Frontend.AddrPort.String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}

	args := append(podman, "--cgroup-manager", "cgroupfs", "run", "--rm", "--name", "revsk",
		"--network", "host", "--pid", "host", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4000:8000",
		"--read-only", "--security-opt", "no-new-privileges", "--cap-drop", "all",
		"-v", bpffs+":/sys/fs/bpf", "-v", cgroup()+":/host/cgroup:ro", "-v", etc+":/etc/revsk:ro")
	args = append(args, seccomp...)
	for _, name := range c.SecurityContext.Capabilities.Add {
		if have(t, name) { // SYS_RESOURCE is for kernels before 5.11
			args = append(args, "--cap-add", name)
		}
	}
	asks := askAll(t, services[1:])
	run := func(image string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, "podman", append(append(slices.Clone(args), "localhost/"+image), c.Args...)...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		require.NoError(t, cmd.Start())
		stop = sync.OnceFunc(func() {
			cancel()
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("%s", out.String())
			}
		})
		t.Cleanup(stop)
		return stop
	}
	stop := run("revsk-before")
	page := func(path string) string {
		_, text := get(t, "http://"+listen+path)
		return text
	}
	eventually(t, "taken over and migrated", func() bool {
		text := page("/metrics")
		return strings.Contains(text, `revsk_mode{mode="mirror"} 1`) && strings.Contains(text, "revsk_takeovers_total 1") &&
			strings.Contains(text, "revsk_ready 1")
	})
	require.Equal(t, "ok\n", page("/readyz"))
	_, err = w.Sync(t.Context(), services[1:])
	require.NoError(t, err)
	eventually(t, "the socket of the backend that went was ended", func() bool {
		return strings.Contains(page("/metrics"), `revsk_terminations_total{outcome="destroyed",protocol="udp"} 1`)
	})
	_, err = conns[0].Write([]byte("x"))
	require.Error(t, err)
	for _, conn := range conns[1:] {
		_, err := conn.Write([]byte("x"))
		require.NoError(t, err)
	}
	for _, image := range []string{"revsk", "revsk-before", "revsk"} {
		stop()
		stop = run(image)
		eventually(t, image+" is ready", func() bool { return strings.Contains(page("/metrics"), "revsk_ready 1") })
	}
	stop()
	asks()
}

// askAll asks services without pause, through sockets that live, until it is told to stop. Then it requires that every answer was
// that of the service.
func askAll(t *testing.T, services []lbmap.Service) (stop func()) {
	var answers atomic.Int64
	var wrong sync.Map
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, s := range services {
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.Backends[0].AddrPort))
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		service := s.Frontend.AddrPort
		conn, err := net.Dial("udp", service.String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		wg.Go(func() {
			for ; ctx.Err() == nil; answers.Add(1) {
				if err := ask(conn.(*net.UDPConn), service); err != nil {
					wrong.Store(err.Error(), true)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		wrong.Range(func(err, _ any) bool { t.Error(err); return true })
		t.Logf("%d answers", answers.Load())
		require.Positive(t, answers.Load())
	}
}

// ask sends a datagram and checks from whom the answer seems to be.
func ask(conn *net.UDPConn, service netip.AddrPort) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 64))
	if err == nil && from != service {
		err = fmt.Errorf("asked %v, answered by %v", service, from)
	}
	return err
}
