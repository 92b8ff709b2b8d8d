// SPDX-License-Identifier: Apache-2.0

// Command plots draws docs/benchmarks.json, which the tables come from too: plots FILE.json DIRECTORY. It is a
// module of its own, so that users of the library do not get the plotting library with it.
package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"log"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// results is what of docs/benchmarks.json is drawn; see package bench.
type results struct {
	Figures []figure `json:"figures"`
	Loss    []struct {
		Variant string  `json:"variant"`
		Load    float64 `json:"load"`
		Sockets int     `json:"sockets"`
		Know    int     `json:"know"`
	} `json:"loss"`
}

type figure struct {
	Section string          `json:"section"`
	Work    string          `json:"work"`
	Hooks   map[string]stat `json:"hooks_ns"`
	Ratios  map[string]stat `json:"hooks_ratios"`
}

type stat struct {
	Median   float64 `json:"median"`
	SureLow  float64 `json:"sure_low"`
	SureHigh float64 `json:"sure_high"`
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
	for name, draw := range map[string]func(*results, *plot.Plot, theme) error{
		"benchmarks-hooks": drawHooks,
		"benchmarks-loss":  drawLoss,
		"benchmarks-scale": drawScale,
	} {
		for _, t := range themes {
			p := t.plot()
			if err := draw(&r, p, t); err != nil {
				log.Fatal(err)
			}
			if err := p.Save(24*vg.Centimeter, 13*vg.Centimeter, filepath.Join(os.Args[2], name+"-"+t.name+".png")); err != nil {
				log.Fatal(err)
			}
		}
	}
}

// theme is the colors for a page.
type theme struct {
	name       string
	background color.Color
	ink, faint color.Color
	// Of legacy, dual and mirror, storage and the reference.
	legacy, dual, storage, reference color.Color
}

var themes = []theme{
	{"light", rgb(0xffffff), rgb(0x1f2328), rgb(0xd0d7de), rgb(0xbc4c00), rgb(0x8c6bb1), rgb(0x0969da), rgb(0x57606a)},
	{"dark", rgb(0x0d1117), rgb(0xe6edf3), rgb(0x30363d), rgb(0xf0883e), rgb(0xbc8cff), rgb(0x58a6ff), rgb(0x9da7b1)},
}

func rgb(v uint32) color.Color {
	return color.RGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 0xff}
}

// plot is an empty plot in the theme, with type that can be read on a page.
func (t theme) plot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = t.background
	p.Title.TextStyle.Color, p.Title.TextStyle.Font.Size = t.ink, 16
	p.Title.Padding = 8
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color = t.ink, t.ink
		axis.Label.TextStyle.Color, axis.Label.TextStyle.Font.Size = t.ink, 14
		axis.Tick.Label.Color, axis.Tick.Label.Font.Size = t.ink, 13
	}
	p.Legend.TextStyle.Color, p.Legend.TextStyle.Font.Size = t.ink, 14
	p.Legend.Top, p.Legend.Padding, p.Legend.ThumbnailWidth = true, 4, 28
	p.Legend.XOffs, p.Legend.YOffs = -8, -8
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = nil, t.faint
	p.Add(grid)
	return p
}

// works are the groups of drawHooks, and what is written below them.
var works = []struct{ work, label string }{
	{"connect to a service, UDP IPv4", "connect"},
	{"getpeername of a service, UDP IPv4", "getpeername"},
	{"release of a connected socket, UDP IPv4", "release"},
	{"send to a known service, UDP IPv4", "send"},
	{"receive from a service, UDP IPv4", "receive"},
	{"receive from a stranger, socket with state, UDP IPv4", "receive,\nstranger"},
	{"connect to no service, TCP IPv4", "connect,\nno service"},
	{"release of an ordinary connected socket, UDP IPv4", "release,\nordinary"},
}

const (
	reference = "reference, full"
	legacy    = "legacy, full"
)

// drawHooks draws ratios to the hash, as the reference's own programs use it if those were measured, else as mode
// legacy does by the same rules: bars that begin at its line.
func drawHooks(r *results, p *plot.Plot, t theme) error {
	base, label, lineColor := legacy, "the same with the hash, full (mode legacy)", t.legacy
	if _, err := r.ratio(works[0].work, "storage", reference); err == nil {
		base, label, lineColor = reference, "Cilium's programs, full hash", t.reference
	}
	p.Title.Text = "Program time of each hook, as a ratio to the hash (less is better)"
	p.Y.Label.Text = "ratio, with its 99 % interval"
	var labels []string
	for _, w := range works {
		labels = append(labels, w.label)
	}
	p.NominalX(labels...)
	p.X.Min, p.X.Max = -0.5, float64(len(works))-0.5
	variants := []struct {
		name  string
		color color.Color
	}{{"mirror", t.dual}, {"storage", t.storage}}
	const top = 3
	for i, v := range variants {
		at := (float64(i) - float64(len(variants)-1)/2) * 0.25
		for k, w := range works {
			s, err := r.ratio(w.work, v.name, base)
			if err != nil {
				return err
			}
			x, height := float64(k)+at, min(s.Median, top-0.25)
			bar, err := plotter.NewPolygon(plotter.XYs{{X: x - 0.11, Y: 1}, {X: x + 0.11, Y: 1}, {X: x + 0.11, Y: height}, {X: x - 0.11, Y: height}})
			if err != nil {
				return err
			}
			bar.Color, bar.LineStyle.Width = v.color, 0
			p.Add(bar)
			if k == 0 {
				p.Legend.Add("revsk, "+v.name, bar)
			}
			if height < s.Median { // said, as it is not drawn
				text, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: x, Y: height}}, Labels: []string{fmt.Sprintf("%.0f", s.Median)}})
				if err != nil {
					return err
				}
				text.TextStyle[0].Color, text.TextStyle[0].Font.Size = t.ink, 13
				text.TextStyle[0].XAlign, text.Offset.Y = -0.5, 2
				p.Add(text)
				continue
			}
			sure, err := plotter.NewLine(plotter.XYs{{X: x, Y: s.SureLow}, {X: x, Y: min(s.SureHigh, top)}})
			if err != nil {
				return err
			}
			sure.Color, sure.Width = t.ink, 1.5
			p.Add(sure)
		}
	}
	line, err := plotter.NewLine(plotter.XYs{{X: p.X.Min, Y: 1}, {X: p.X.Max, Y: 1}})
	if err != nil {
		return err
	}
	line.Color, line.Width = lineColor, 2.5
	p.Add(line)
	p.Legend.Add(label+" = 1", line)
	p.Legend.Left, p.Legend.XOffs = true, 8
	p.Y.Min, p.Y.Max = 0, top
	p.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.5, Label: "0.5"}, {Value: 1, Label: "1"},
		{Value: 1.5, Label: "1.5"}, {Value: 2, Label: "2"}, {Value: 2.5, Label: "2.5"}, {Value: 3, Label: "3"}}
	return nil
}

func (r *results) ratio(work, variant, base string) (stat, error) {
	for _, f := range r.Figures {
		if s, ok := f.Ratios[variant+" / "+base]; ok && f.Section == "hooks" && f.Work == work {
			return s, nil
		}
	}
	return stat{}, fmt.Errorf("%s has no ratio of %s to %s for %q: make bench measures it", os.Args[1], variant, base, work)
}

// drawScale draws nanoseconds beside many live sockets.
func drawScale(r *results, p *plot.Plot, t theme) error {
	p.Title.Text = "Program time beside many live sockets, UDP over IPv4 (less is better)"
	p.X.Label.Text = "live sockets"
	p.Y.Label.Text = "ns per call, net of an empty program"
	p.X.Tick.Marker = logTicks(1, 1000, 10000, 100000, 400000)
	p.Y.Tick.Marker = logTicks(10, 30, 100, 300, 1000, 3000)
	for i, work := range []string{"life of another socket", "getpeername"} {
		for _, v := range []struct {
			name, label string
			color       color.Color
		}{
			{reference, "Cilium's programs, full hash", t.reference},
			{legacy, "legacy, full hash (the reference's rules)", t.legacy},
			{"storage", "storage", t.storage},
		} {
			var xys plotter.XYs
			for _, f := range r.Figures {
				var n float64
				_, err := fmt.Sscanf(f.Work, work+", %g live sockets", &n)
				if s, ok := f.Hooks[v.name]; ok && f.Section == "scale" && err == nil {
					xys = append(xys, plotter.XY{X: math.Log10(n), Y: math.Log10(s.Median)})
				}
			}
			if err := addLine(p, work+", "+v.label, xys, v.color, i); err != nil {
				return err
			}
		}
	}
	p.Legend.Left, p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs = false, false, -8, 8
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.1, 5.8, 0.8, 3.6
	return nil
}

// logTicks are those of an axis of decimal logarithms.
func logTicks(values ...int) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for _, v := range values {
		label := fmt.Sprint(v)
		if v >= 1000 {
			label = fmt.Sprintf("%d,%03d", v/1000, v%1000)
		}
		ticks = append(ticks, plot.Tick{Value: math.Log10(float64(v)), Label: label})
	}
	return ticks
}

func drawLoss(r *results, p *plot.Plot, t theme) error {
	p.Title.Text = "Live sockets that still know their service (more is better)"
	p.X.Label.Text = "live sockets, as a multiple of the entries that the hash has room for"
	p.Y.Label.Text = "% of the live sockets"
	for i, v := range []struct {
		name, label string
		color       color.Color
	}{
		{"storage", "revsk, storage", t.storage},
		{"dual", "revsk, dual", t.dual},
		{"reference", "Cilium's own programs", t.reference},
		{"legacy", "revsk, legacy (the reference's rules)", t.legacy},
	} {
		var xys plotter.XYs
		for _, l := range r.Loss {
			if l.Variant == v.name {
				xys = append(xys, plotter.XY{X: l.Load, Y: 100 * float64(l.Know) / float64(l.Sockets)})
			}
		}
		// The second of two lines in the same place is dashed.
		if err := addLine(p, v.label, xys, v.color, i%2); err != nil {
			return err
		}
	}
	p.Legend.Left, p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs = true, false, 8, 8
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 4.2, 0, 110
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0.5, Label: "0.5"}, {Value: 1, Label: "1"}, {Value: 2, Label: "2"}, {Value: 3, Label: "3"}, {Value: 4, Label: "4"}}
	p.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 25, Label: "25"}, {Value: 50, Label: "50"}, {Value: 75, Label: "75"}, {Value: 100, Label: "100"}}
	return nil
}

// addLine adds a line with points: the first kind is broad, the second narrow and dashed, so that one shows on top
// of the other.
func addLine(p *plot.Plot, label string, xys plotter.XYs, c color.Color, kind int) error {
	if len(xys) == 0 && strings.Contains(label, "Cilium's") {
		return nil // measured with make bench OBJECT=FILE only
	}
	if len(xys) == 0 {
		return fmt.Errorf("%s has no %s", os.Args[1], label)
	}
	line, points, err := plotter.NewLinePoints(xys)
	if err != nil {
		return err
	}
	line.Color, points.Color = c, c
	line.Width, points.Shape, points.Radius = 4, draw.CircleGlyph{}, 5
	if kind == 1 {
		line.Width, line.Dashes = 2.5, []vg.Length{7, 5}
		points.Shape = draw.BoxGlyph{}
	}
	p.Add(line, points)
	p.Legend.Add(label, line, points)
	return nil
}
