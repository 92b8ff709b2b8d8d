// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/loader"
)

// Cilium makes an agent of Cilium's own programs, compiled from its source (the root of its repository) with
// these features. It uses the maps that are pinned in the directory, and pins those that are missing.
//
// Features that Cilium 1.20 cannot turn off are on: session affinity and protocol differentiation.
func Cilium(ctx context.Context, source, mapsDir string, f loader.Features) (*Agent, error) {
	spec, err := compileCilium(ctx, source, f)
	if err != nil {
		return nil, err
	}
	return load(spec, mapsDir)
}

func compileCilium(ctx context.Context, source string, f loader.Features) (*ebpf.CollectionSpec, error) {
	dir, err := os.MkdirTemp("", "revsk-cilium-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	object := filepath.Join(dir, "bpf_sock.o")
	bpf := filepath.Join(source, "bpf")
	args := append(ciliumDefines(f), "-O2", "-g", "--target=bpf", "-std=gnu99", "-nostdinc", "-mcpu=v3", "-w",
		"-I"+bpf, "-I"+filepath.Join(bpf, "include"), "-c", filepath.Join(bpf, "bpf_sock.c"), "-o", object)
	cmd := exec.CommandContext(ctx, "clang-19", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, stderr.String())
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return nil, err
	}
	for name, value := range ciliumConstants(f) {
		v := spec.Variables["__config_"+name]
		if v == nil {
			return nil, fmt.Errorf("Cilium in %s has no constant %q: another version is needed", source, name)
		}
		if err := v.Set(value); err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
	}
	return spec, nil
}

// ciliumDefines are what its agent would write to node_config.h.
func ciliumDefines(f loader.Features) []string {
	defines := []string{"-DENABLE_SOCKET_LB_PEER=1", "-DENABLE_NAT_46X64=1"}
	for _, d := range []struct {
		name string
		on   bool
	}{
		{"ENABLE_IPV4", f.IPv4},
		{"ENABLE_IPV6", f.IPv6},
		{"ENABLE_NODEPORT", f.NodePort},
		{"ENABLE_L7_LB", f.L7},
		{"ENABLE_HEALTH_CHECK", f.HealthCheck},
		{"ENABLE_SOCKET_LB_HOST_ONLY", f.HostNetnsOnly},
		{"DISABLE_EXTERNAL_IP_MITIGATION", !f.ExternalIPMitigation},
	} {
		if d.on {
			defines = append(defines, "-D"+d.name+"=1")
		}
	}
	if f.HostNetnsCookie != 0 {
		defines = append(defines, fmt.Sprintf("-DHOST_NETNS_COOKIE=%dUL", f.HostNetnsCookie))
	}
	return defines
}

// ciliumConstants are what its agent would set at load time.
func ciliumConstants(f loader.Features) map[string]any {
	return map[string]any{
		"enable_lrp":                           f.LocalRedirect,
		"enable_no_service_endpoints_routable": f.RejectNoBackend,
		"nodeport_port_min":                    f.NodePortMin,
		"nodeport_port_max":                    f.NodePortMax,
	}
}
