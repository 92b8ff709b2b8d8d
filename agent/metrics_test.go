// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/revsk/revsk/lbmap"
)

var update = flag.Bool("update", false, "write the tables of docs/agent.md")

const page = "../docs/agent.md"

// table compares a table of the page, or writes it.
func table(t *testing.T, name, want string) {
	t.Helper()
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->"
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	got, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(before+begin+want+end+after), 0o644))
		return
	}
	require.Equal(t, want, got, "go test ./agent -run OfThePage -update")
}

func TestMetricsOfThePage(t *testing.T) { table(t, "metrics", MetricsTable()) }

// Each alert is in the table, and has a paragraph to which it links. What rules and dashboard ask for exists.
func TestAlertsOfThePage(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile("../deploy/prometheus/alerts.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &rules))
	document, err := os.ReadFile(page)
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("| alert | severity | for | when |\n|---|---|---|---|\n")
	for _, r := range rules.Groups[0].Rules {
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | `%s` |\n", r.Alert, strings.ToLower(r.Alert), r.Labels["severity"], r.For, strings.ReplaceAll(r.Expr, "|", "\\|"))
		require.Contains(t, string(document), "\n### "+r.Alert+"\n")
		require.Equal(t, "https://github.com/revsk/revsk/blob/main/docs/agent.md#"+strings.ToLower(r.Alert), r.Annotations["runbook_url"])
		require.NotEmpty(t, r.Annotations["summary"])
	}
	table(t, "alerts", b.String())

	dashboard, err := os.ReadFile("../deploy/grafana/revsk.json")
	require.NoError(t, err)
	known := MetricsTable()
	for _, name := range regexp.MustCompile(`\brevsk_[a-z_]+`).FindAllString(string(text)+string(dashboard), -1) {
		require.Contains(t, known, "`"+strings.TrimSuffix(name, "_bucket")+"`")
	}
}

func TestMetricsAndPages(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.SurveyEvery, opts.AuditEvery, opts.Backends = time.Second, time.Second, 10
	r := n.start(opts)
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(r))
	server := httptest.NewServer(r.Handler(registry))
	defer server.Close()
	get := func(path string) (int, string) {
		resp, err := server.Client().Get(server.URL + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	idle, err := New(opts) // the other may have been faster
	require.NoError(t, err)
	before := httptest.NewRecorder()
	idle.Handler(registry).ServeHTTP(before, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
	require.Equal(t, 503, before.Code)
	require.Contains(t, before.Body.String(), "not lo")
	r.ready()
	s := service(1, lbmap.ProtocolUDP, n.backend("127.0.0.1"))
	n.services(s)
	for range 3 {
		require.NoError(t, n.client(s.Frontend).asks())
	}
	lines := []string{
		`revsk_service_sockets{protocol="udp",service="10.96.0.1:53"} 3`,
		"revsk_ready 1", `revsk_mode{mode="storage"} 1`, `revsk_mode{mode="dual"} 0`, `revsk_hooks{state="attached"} 11`, `revsk_hooks{state="missing"} 0`,
		`revsk_problem{code="taken-back"} 0`, "revsk_tuples_stored_total 3", `revsk_tuples{role="connected"} 3`,
		`revsk_sockets{family="ipv4",protocol="udp"} 3`, `revsk_map_entries{map="cilium_lb4_services_v2"} 2`, "revsk_loads_total 1",
		`revsk_terminations_total{outcome="destroyed",protocol="udp"} 0`, `revsk_hash_entries{verdict="leaked"} 0`, "revsk_backends 1",
	}
	// The first survey, and the first audit, may have begun before all of it was there.
	var text string
	var missing []string
	defer func() { t.Log("missing:", missing) }()
	awaits(t, "survey and audit", soon, func() bool {
		_, text = get("/metrics")
		missing = slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.Contains(text, line+"\n") })
		return len(missing) == 0
	})
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/other": 404} {
		code, _ := get(path)
		require.Equal(t, want, code, path)
	}

	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	count, err := testutil.GatherAndCount(registry)
	require.NoError(t, err)
	require.Greater(t, count, 60)

	// What is a series is in the table, and with the labels that it says.
	table := MetricsTable()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		require.Contains(t, table, "`"+f.GetName()+"`")
	}
}
