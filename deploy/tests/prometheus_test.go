// SPDX-License-Identifier: Apache-2.0

package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/revsk/revsk/internal/childproc"
	"github.com/revsk/revsk/lbmap"
)

// revsk is the command, which TestMain has built.
var revsk string

// start starts a program that ends with the test.
func start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	require.NoError(t, childproc.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return cmd
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(200 * time.Millisecond) {
		require.True(t, time.Now().Before(end), what)
	}
}

// queries are those of the dashboard and the alerts, by where they are.
func queries(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../grafana/revsk.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &dashboard))
	fill := strings.NewReplacer("$instance", ".*", "$__rate_interval", "10s")
	for _, p := range dashboard.Panels {
		for i, target := range p.Targets {
			all[fmt.Sprintf("panel %q, %d", p.Title, i)] = fill.Replace(target.Expr)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	text, err = os.ReadFile("../prometheus/alerts.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &rules))
	for _, r := range rules.Groups[0].Rules {
		all["alert "+r.Alert] = r.Expr
	}
	return all
}

// mayBeEmpty are the queries without a result on a node where nothing is wrong: they compare.
var mayBeEmpty = regexp.MustCompile(`[<>=]=? *-?[0-9]|process_|histogram_quantile|program_run`)

// A real Prometheus scrapes a real agent on a node with sockets, of which some were ended, and evaluates every query.
func TestQueries(t *testing.T) {
	bpffs := filepath.Join("/sys/fs/bpf", "queries")
	require.NoError(t, os.Mkdir(bpffs, 0o700))
	listen, web := freePort(t), freePort(t)
	start(t, revsk, "--bpffs", bpffs, "--cgroup", cgroup(), "agent", "--listen", listen, "--metrics-backends", "10",
		"--survey-every", "1s", "--audit-every", "1s", "--terminate-settle", "300ms", "--legacy-entries", "1000")
	eventually(t, "ready", func() bool { code, _ := get(t, "http://"+listen+"/readyz"); return code == 200 })
	w, err := lbmap.OpenWriter(filepath.Join(bpffs, "tc", "globals"))
	require.NoError(t, err)
	t.Cleanup(func() { w.Close() })
	service := lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort("10.96.0.1:53"), Protocol: lbmap.ProtocolUDP},
		Backends: []lbmap.Backend{{AddrPort: netip.MustParseAddrPort("127.0.0.1:5353"), Protocol: lbmap.ProtocolUDP}},
	}
	other := service
	other.Frontend.AddrPort = netip.MustParseAddrPort("10.96.0.2:53")
	other.Backends = []lbmap.Backend{{AddrPort: netip.MustParseAddrPort("127.0.0.2:5353"), Protocol: lbmap.ProtocolUDP}}
	_, err = w.Sync(t.Context(), []lbmap.Service{service, other})
	require.NoError(t, err)
	for _, s := range []lbmap.Service{service, other, other} {
		conn, err := net.Dial("udp", s.Frontend.AddrPort.String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
	}

	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
scrape_configs:
  - job_name: revsk
    static_configs: [{targets: [%q]}]
rule_files: [%q]
`, listen, absolute(t, "../prometheus/alerts.yaml"))), 0o600))
	start(t, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+web, "--log.level=warn")
	eventually(t, "Prometheus has scraped", func() bool { return len(query(t, web, "revsk_ready == 1")) == 1 })
	eventually(t, "a survey", func() bool { return len(query(t, web, "revsk_service_sockets")) == 2 })

	other.Backends = nil
	_, err = w.Sync(t.Context(), []lbmap.Service{service, other})
	require.NoError(t, err)
	eventually(t, "sockets were ended", func() bool {
		return len(query(t, web, `revsk_terminations_total{outcome="destroyed",protocol="udp"} == 2`)) == 1
	})
	time.Sleep(5 * time.Second) // of which rates are made
	for where, q := range queries(t) {
		result := query(t, web, q)
		if !mayBeEmpty.MatchString(q) {
			require.NotEmpty(t, result, "%s: %s", where, q)
		}
		if strings.HasPrefix(where, "alert ") {
			require.Empty(t, result, "%s: %s", where, q)
		}
	}
	require.NotEmpty(t, query(t, web, "histogram_quantile(0.5, sum by (le) (rate(revsk_termination_duration_seconds_bucket[1m])))"))
	require.NotEmpty(t, query(t, web, `process_resident_memory_bytes{job="revsk"}`))
	require.Empty(t, query(t, web, `ALERTS{alertstate="firing"}`))
}

// query returns the samples, and fails where Prometheus does not understand.
func query(t *testing.T, web, q string) []json.RawMessage {
	t.Helper()
	code, text := get(t, "http://"+web+"/api/v1/query?query="+url.QueryEscape(q))
	if code == 0 || code == http.StatusServiceUnavailable {
		return nil // it starts
	}
	require.Equal(t, 200, code, "%s: %s", q, text)
	var answer struct {
		Data struct{ Result []json.RawMessage }
	}
	require.NoError(t, json.Unmarshal([]byte(text), &answer))
	return answer.Data.Result
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	full, err := filepath.Abs(path)
	require.NoError(t, err)
	return full
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// What promtool says of the rules.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../prometheus"
		text, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", text)
	}
}

// The settings that the chart writes are understood by the command.
func TestSettingsOfTheChart(t *testing.T) {
	for name, values := range settings() {
		files, err := render(t, values)
		require.NoError(t, err)
		var configMap struct{ Data map[string]string }
		require.NoError(t, yaml.Unmarshal([]byte(files["revsk/templates/configmap.yaml"]), &configMap))
		file := filepath.Join(t.TempDir(), "agent.yaml")
		// It ends at once, since nobody can listen there.
		text := regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAllString(configMap.Data["agent.yaml"], "listen: unix:/nowhere/agent.sock")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		out, err := exec.Command(revsk, "agent", "--config", file).CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "listening at unix:/nowhere/agent.sock (--listen)", name)
	}
}
