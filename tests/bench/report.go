// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
)

// report is what docs/benchmarks.json holds.
type report struct {
	Schema  int     `json:"schema"`
	Machine machine `json:"machine"`
	// Reference is whose programs the variant "reference, full" had.
	Reference string    `json:"reference,omitempty"`
	Programs  []program `json:"programs"`
	Figures   []figure  `json:"figures"`
	Memory    []memory  `json:"memory,omitempty"`
	Charged   []charged `json:"optmem,omitempty"`
	Loss      []loss    `json:"loss,omitempty"`
	Passes    []pass    `json:"passes,omitempty"`
	Commands  []command `json:"commands,omitempty"`
}

// program is the size of one of the programs.
type program struct {
	Name       string `json:"name"`
	Translated int    `json:"translated_bytes"`
	Machine    int    `json:"jited_bytes"`
}

// figure is one work, measured in several variants.
type figure struct {
	Section string `json:"section"`
	Work    string `json:"work"`
	// Hooks is program time in nanoseconds per call, net of the floor's; for the floor itself it is
	// gross. By variant.
	Hooks map[string]Stat `json:"hooks_ns,omitempty"`
	// Calls is the time of the whole system call in nanoseconds, gross. By variant.
	Calls map[string]Stat `json:"calls_ns,omitempty"`
	// Ratios are those of Hooks, round by round: of the first variant to the second, "storage /
	// dual".
	Ratios map[string]Stat `json:"hooks_ratios,omitempty"`
	// CallRatios are those of Calls.
	CallRatios map[string]Stat `json:"calls_ratios,omitempty"`
}

func newReport() *report {
	return &report{Schema: 1, Machine: thisMachine(), Reference: *referenceFile}
}

func (r *report) addPrograms(v *variant) error {
	for _, hook := range sortedKeys(v.progs) {
		info, err := v.progs[hook].Info()
		if err != nil {
			return err
		}
		p := program{Name: hook}
		insns, err := info.Instructions()
		if err != nil {
			return err
		}
		p.Translated = int(insns.Size())
		jited, _ := info.JitedSize()
		p.Machine = int(jited)
		r.Programs = append(r.Programs, p)
	}
	return nil
}

// addResults computes the figures of a section.
func (r *report) addResults(section string, res *results) {
	for _, work := range res.order {
		hooks, calls := res.hooks[work], res.calls[work]
		f := figure{
			Section: section, Work: work,
			Hooks: make(map[string]Stat), Calls: make(map[string]Stat),
			Ratios: make(map[string]Stat), CallRatios: make(map[string]Stat),
		}
		for name, values := range hooks {
			if name == floor {
				f.Hooks[name] = newStat(values)
			} else {
				f.Hooks[name] = netOf(values, hooks[floor])
			}
			f.Calls[name] = newStat(calls[name])
			for _, base := range []string{legacyFull, legacyEmpty, foreign, former, storage} {
				if name == floor || name == base || hooks[base] == nil {
					continue
				}
				key := name + " / " + base
				f.Ratios[key] = ratio(values, hooks[base], hooks[floor])
				f.CallRatios[key] = ratio(calls[name], calls[base], make([]float64, len(values)))
			}
		}
		r.Figures = append(r.Figures, f)
	}
}

// write writes what the tables and plots need, an element of a list to a line.
func (r *report) write(path string) error {
	var b bytes.Buffer
	b.WriteString("{")
	fields := reflect.ValueOf(r.trimmed()).Elem()
	for i := range fields.NumField() {
		tag, _, _ := strings.Cut(fields.Type().Field(i).Tag.Get("json"), ",")
		value := fields.Field(i)
		if value.IsZero() {
			continue
		}
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n%q: ", tag)
		if value.Kind() != reflect.Slice {
			line, err := json.Marshal(value.Interface())
			if err != nil {
				return err
			}
			b.Write(line)
			continue
		}
		for k := range value.Len() {
			line, err := json.Marshal(value.Index(k).Interface())
			if err != nil {
				return err
			}
			b.WriteString(map[bool]string{true: "[\n", false: ",\n"}[k == 0])
			b.Write(line)
		}
		b.WriteString("\n]")
	}
	b.WriteString("\n}\n")
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// trimmed is the report without what no table and no plot has: ratios to other bases than those that are compared
// with, and times of whole calls.
func (r *report) trimmed() *report {
	out := *r
	out.Figures = make([]figure, 0, len(r.Figures))
	for _, f := range r.Figures {
		ratios := make(map[string]Stat)
		for key, s := range f.Ratios {
			of, base, _ := strings.Cut(key, " / ")
			if of == storage || of == mirror || base == foreign {
				ratios[key] = s
			}
		}
		calls := make(map[string]Stat)
		if s, ok := f.CallRatios[storage+" / "+legacyFull]; ok {
			calls[storage+" / "+legacyFull] = s
		}
		f.Ratios, f.Calls, f.CallRatios = ratios, nil, calls
		out.Figures = append(out.Figures, f)
	}
	return &out
}
