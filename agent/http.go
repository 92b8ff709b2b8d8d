// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// mostScrapes bounds the memory and the time that scrapes at once take.
const mostScrapes = 4

// Handler serves /metrics with what the gatherer has, and /healthz and /readyz with [Agent.Alive] and [Agent.Ready]: 200, or
// 503 and the reason.
func (a *Agent) Handler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{MaxRequestsInFlight: mostScrapes}))
	for path, check := range map[string]func() error{"GET /healthz": a.Alive, "GET /readyz": a.Ready} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	return mux
}
