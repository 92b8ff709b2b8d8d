// SPDX-License-Identifier: Apache-2.0

// Command plots draws docs/benchmarks.json: plots FILE.json DIRECTORY. It is a module of its own, so that
// users of the library do not get the plotting library with it.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// results is what of docs/benchmarks.json is drawn; see package bench.
type results struct {
	Figures []struct {
		Section string          `json:"section"`
		Work    string          `json:"work"`
		Hooks   map[string]stat `json:"hooks_ns"`
	} `json:"figures"`
	Loss []struct {
		Variant string  `json:"variant"`
		Load    float64 `json:"load"`
		Sockets int     `json:"sockets"`
		Know    int     `json:"know"`
	} `json:"loss"`
}

type stat struct {
	Median float64 `json:"median"`
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: plots FILE.json DIRECTORY")
	}
	b, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var r results
	if err := json.Unmarshal(b, &r); err != nil {
		log.Fatal(err)
	}
	for name, draw := range map[string]func(*results) (*plot.Plot, error){
		"benchmarks-hooks": drawHooks,
		"benchmarks-loss":  drawLoss,
		"benchmarks-scale": drawScale,
	} {
		p, err := draw(&r)
		if err != nil {
			log.Fatal(err)
		}
		for _, format := range []string{".png", ".svg"} {
			if err := p.Save(22*vg.Centimeter, 12*vg.Centimeter, filepath.Join(os.Args[2], name+format)); err != nil {
				log.Fatal(err)
			}
		}
	}
}

// works are the bars of drawHooks, and what is written below them.
var works = []struct{ work, label string }{
	{"connect to a service, UDP IPv4", "connect"},
	{"getpeername of a service, UDP IPv4", "getpeername"},
	{"release of a connected socket, UDP IPv4", "release"},
	{"send to a known service, UDP IPv4", "send"},
	{"receive from a service, UDP IPv4", "receive"},
	{"receive from a stranger, socket with state, UDP IPv4", "receive,\nstranger"},
	{"release of an unused socket, UDP IPv4", "release,\nordinary"},
}

func drawHooks(r *results) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Program time of the hooks, UDP over IPv4 (less is better)"
	p.Y.Label.Text = "ns per call, net of an empty program"
	p.Legend.Top = true
	var labels []string
	for _, w := range works {
		labels = append(labels, w.label)
	}
	p.NominalX(labels...)
	variants := []string{"Cilium, full", "legacy, empty", "legacy, full", "dual", "storage"}
	width := vg.Points(12)
	for i, v := range variants {
		values := make(plotter.Values, len(works))
		for k, w := range works {
			for _, f := range r.Figures {
				if f.Section == "hooks" && f.Work == w.work {
					values[k] = f.Hooks[v].Median
				}
			}
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return nil, err
		}
		bars.LineStyle.Width = 0
		bars.Color = plotutil.Color(i)
		bars.Offset = width * vg.Length(2*i-len(variants)+1) / 2
		p.Add(bars)
		p.Legend.Add(v, bars)
	}
	p.Y.Min = 0
	return p, nil
}

// scaled are the works of drawScale, whose names go on with the number of live sockets.
var scaled = []string{"getpeername", "life of another socket"}

func drawScale(r *results) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Program time with many live sockets, UDP over IPv4 (less is better)"
	p.X.Label.Text = "live sockets"
	p.Y.Label.Text = "ns per call, net of an empty program"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	for i, work := range scaled {
		for k, v := range []string{"legacy, full", "storage"} {
			var xys plotter.XYs
			for _, f := range r.Figures {
				var n float64
				if _, err := fmt.Sscanf(f.Work, work+", %g live sockets", &n); f.Section == "scale" && err == nil {
					xys = append(xys, plotter.XY{X: n, Y: f.Hooks[v].Median})
				}
			}
			if len(xys) == 0 {
				return nil, fmt.Errorf("%s has no %s with many live sockets", os.Args[1], work)
			}
			line, points, err := plotter.NewLinePoints(xys)
			if err != nil {
				return nil, err
			}
			line.Color, points.Color = plotutil.Color(k), plotutil.Color(k)
			line.Width, line.Dashes = vg.Points(2), plotutil.Dashes(i)
			p.Add(line, points)
			p.Legend.Add(work+", "+v, line, points)
		}
	}
	return p, nil
}

func drawLoss(r *results) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Live sockets that still know their service"
	p.X.Label.Text = "live sockets / entries of the hash"
	p.Y.Label.Text = "%"
	p.Y.Min, p.Y.Max = 0, 105
	lines := make(map[string]plotter.XYs)
	var order []string
	for _, l := range r.Loss {
		if lines[l.Variant] == nil {
			order = append(order, l.Variant)
		}
		lines[l.Variant] = append(lines[l.Variant], plotter.XY{X: l.Load, Y: 100 * float64(l.Know) / float64(l.Sockets)})
	}
	if len(order) == 0 {
		return nil, fmt.Errorf("%s has no losses", strings.Join(os.Args[1:2], ""))
	}
	for i, name := range order {
		line, points, err := plotter.NewLinePoints(lines[name])
		if err != nil {
			return nil, err
		}
		line.Color, points.Color = plotutil.Color(i), plotutil.Color(i)
		line.Width, line.Dashes = vg.Points(2), plotutil.Dashes(i)
		p.Add(line, points)
		p.Legend.Add(name, line, points)
	}
	return p, nil
}
