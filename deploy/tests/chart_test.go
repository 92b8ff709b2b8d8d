// SPDX-License-Identifier: Apache-2.0

// Package tests checks what is in deploy: the chart as Helm has it, the queries as a Prometheus evaluates them, and the image.
package tests

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

var rendered = flag.String("rendered", "", "write the rendered charts into this directory")

const chartDir = "../helm/revsk"

// settings are all supported combinations.
func settings() map[string]map[string]any {
	all := make(map[string]map[string]any)
	for _, mode := range []string{"audit", "agent", "takeover"} {
		all[mode] = map[string]any{"mode": mode}
		all[mode+"-monitored"] = map[string]any{
			"mode":    mode,
			"metrics": map[string]any{"host": "0.0.0.0", "podMonitor": true, "rules": true, "backends": 20},
		}
	}
	for _, policy := range []string{"stay", "hand-back", "unload"} {
		for _, stop := range []string{"leave", "hand-back"} {
			all["owner-"+policy+"-"+stop] = map[string]any{"mode": "takeover", "whenOwnerLeaves": policy, "onStop": stop}
		}
	}
	for _, sockets := range []string{"udp", "all", "off"} {
		all["terminate-"+sockets] = map[string]any{
			"mode": "takeover", "terminate": map[string]any{"sockets": sockets, "states": []any{"terminating", "quarantined"}},
		}
	}
	all["everything"] = map[string]any{
		"mode":             "takeover",
		"image":            map[string]any{"digest": "sha256:" + strings.Repeat("0a", 32)},
		"imagePullSecrets": []any{map[string]any{"name": "registry"}},
		"settings":         map[string]any{"nodeport": false, "takeover-links": "/sys/fs/bpf/elsewhere"},
		"affinity":         map[string]any{"nodeAffinity": map[string]any{}},
		"podAnnotations":   map[string]any{"a": "b"},
		"podLabels":        map[string]any{"c": "d"},
		"resources":        map[string]any{"limits": map[string]any{"cpu": "1"}},
	}
	return all
}

func render(t *testing.T, values map[string]any) (map[string]string, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	require.NoError(t, err)
	full, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "node", Namespace: "kube-system", IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, full)
}

func TestChartIsLinted(t *testing.T) {
	for name, values := range settings() {
		linter := lint.RunAll(chartDir, values, "kube-system")
		for _, m := range linter.Messages {
			require.Less(t, m.Severity, support.WarningSev, "%s: %v", name, m)
		}
	}
}

func TestChartIsRendered(t *testing.T) {
	for name, values := range settings() {
		t.Run(name, func(t *testing.T) {
			files, err := render(t, values)
			require.NoError(t, err)
			var all []string
			for path, text := range files {
				if filepath.Ext(path) == ".yaml" && strings.TrimSpace(text) != "" {
					all = append(all, text)
				}
			}
			if *rendered != "" {
				require.NoError(t, os.WriteFile(filepath.Join(*rendered, name+".yaml"), []byte(strings.Join(all, "\n---\n")), 0o644))
			}
			// The settings are those of the command: see TestImage.
			var configMap struct{ Data map[string]string }
			require.NoError(t, yaml.Unmarshal([]byte(files["revsk/templates/configmap.yaml"]), &configMap))
			var agent map[string]any
			require.NoError(t, yaml.UnmarshalStrict([]byte(configMap.Data["agent.yaml"]), &agent))
			mode := "audit"
			if values["mode"] != nil {
				mode = values["mode"].(string)
			}
			require.Equal(t, mode == "audit", agent["audit-only"])
			require.Equal(t, mode == "takeover", agent["takeover"])
		})
	}
}

// As it is, the chart changes nothing on a node.
func TestChartBeginsWithAnAudit(t *testing.T) {
	files, err := render(t, nil)
	require.NoError(t, err)
	require.Contains(t, files["revsk/templates/configmap.yaml"], "audit-only: true")
	require.NotContains(t, files["revsk/templates/daemonset.yaml"], "NET_ADMIN")
}

func TestSchemaOfTheValues(t *testing.T) {
	for name, values := range map[string]map[string]any{
		"mode":    {"mode": "takover"},
		"unknown": {"takeover": true},
		"grace":   {"terminate": map[string]any{"grace": "3"}},
		"share":   {"terminate": map[string]any{"maxShare": 0.3}},
		"state":   {"terminate": map[string]any{"states": []any{"active"}}},
		"digest":  {"image": map[string]any{"digest": "latest"}},
		"port":    {"metrics": map[string]any{"port": 0}},
	} {
		_, err := render(t, values)
		require.Error(t, err, name)
	}
}
