// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

// passing is a report in which everything is as it has to be.
func passing() *Report {
	r := &Report{Kernel: "6.1.0"}
	cell := func(e expectation) Cell {
		c := Cell{Before: e.before}
		c.setAfter(e.after)
		return c
	}
	for i, t := range testCases() {
		c := Case{ID: i + 1, Name: t.name, Protocol: t.protocol, Family: t.family, Type: t.kind}
		c.Legacy, c.Storage.Cell = cell(t.legacy), cell(t.storage)
		if t.live > 0 {
			c.Legacy = cell(expectation{before: 90})
			c.Legacy.Live = &Live{Sockets: t.live, KnowService: 90}
			c.Storage.Live = &Live{Sockets: t.live, KnowService: t.live}
		}
		r.Cases = append(r.Cases, c)
	}
	return r
}

func TestVerdictOfNothingIsFailed(t *testing.T) {
	require.ErrorIs(t, new(Report).Verdict(), ErrFailed)
}

func TestVerdictOfWhatIsAsItHasToBe(t *testing.T) {
	require.NoError(t, passing().Verdict())
}

func TestVerdictOfAnythingElseIsFailed(t *testing.T) {
	for i := range passing().Cases {
		for what, change := range map[string]func(*Case){
			"storage leaks":          func(c *Case) { c.Storage.setAfter(1) },
			"storage stored nothing": func(c *Case) { c.Storage.Before = 0; c.Storage.setAfter(0) },
			"storage stored more":    func(c *Case) { c.Storage.Before++ },
			"storage failed":         func(c *Case) { c.Storage.Error = "no route" },
			"legacy is the opposite": func(c *Case) { c.Legacy.setAfter(1 - min(1, c.Legacy.After)) },
			"legacy stored nothing":  func(c *Case) { c.Legacy.Before = 0; c.Legacy.setAfter(0) },
			"legacy failed":          func(c *Case) { c.Legacy.Error = "no route" },
			"says cleaned":           func(c *Case) { c.Legacy.Cleaned = !c.Legacy.Cleaned },
			"unknown case":           func(c *Case) { c.Name = "x" },
		} {
			r := passing()
			change(&r.Cases[i])
			assert.ErrorIs(t, r.Verdict(), ErrFailed, "%s: %s", r.Cases[i].Name, what)
		}
		r := passing()
		r.Cases = append(r.Cases[:i], r.Cases[i+1:]...)
		assert.ErrorIs(t, r.Verdict(), ErrFailed, "a case is missing")
	}
}

func TestVerdictOfSocketsThatForgot(t *testing.T) {
	last := len(passing().Cases) - 1
	for what, change := range map[string]func(*Case){
		"storage forgot one":  func(c *Case) { c.Storage.Live.KnowService-- },
		"legacy forgot none":  func(c *Case) { c.Legacy.Live.KnowService = c.Legacy.Live.Sockets },
		"there are none":      func(c *Case) { c.Storage.Live = nil },
		"there are too few":   func(c *Case) { *c.Storage.Live = Live{1, 1} },
		"there are too few 2": func(c *Case) { *c.Legacy.Live = Live{100, 90} },
	} {
		r := passing()
		change(&r.Cases[last])
		assert.ErrorIs(t, r.Verdict(), ErrFailed, what)
	}
}

func TestVerdictOfCasesThatAreNotSupported(t *testing.T) {
	r := passing()
	skip := func(c *Case) {
		c.NotSupported = "IPv6: switched off"
		c.Legacy, c.Storage = Cell{}, StorageCell{}
	}
	for i := range r.Cases[1:] {
		skip(&r.Cases[i+1])
	}
	require.NoError(t, r.Verdict())
	skip(&r.Cases[0])
	require.ErrorIs(t, r.Verdict(), loader.ErrNotSupported)
}

func TestJSON(t *testing.T) {
	r := passing()
	r.Cases = []Case{r.Cases[0], r.Cases[5], r.Cases[len(r.Cases)-1], {ID: 8, Name: "n", NotSupported: "IPv6"}}
	r.Cases[1].Storage.Zeroed = true
	text, err := json.Marshal(r.Cases)
	require.NoError(t, err)
	want := []string{
		`[{"id":1,"name":"tcp4-close","protocol":"TCP","family":"IPv4","type":"Regular close",` +
			`"legacy":{"cleaned":true,"before":1,"after":0},"storage":{"cleaned":true,"before":1,"after":0,"zeroed":false}},`,
		`{"id":6,"name":"udp4-abort","protocol":"UDP (Connected)","family":"IPv4","type":"Abort",` +
			`"legacy":{"cleaned":false,"before":1,"after":1},"storage":{"cleaned":true,"before":1,"after":0,"zeroed":true}},`,
		`{"id":26,"name":"udp6-overfull","protocol":"UDP (Connected)","family":"IPv6","type":"300 live sockets, hash of 100",` +
			`"legacy":{"cleaned":true,"before":90,"after":0,"live":{"sockets":300,"know_service":90}},` +
			`"storage":{"cleaned":true,"before":300,"after":0,"live":{"sockets":300,"know_service":300},"zeroed":false}},`,
		`{"id":8,"name":"n","protocol":"","family":"","type":"","not_supported":"IPv6",` +
			`"legacy":{"cleaned":false,"before":0,"after":0},"storage":{"cleaned":false,"before":0,"after":0,"zeroed":false}}]`,
	}
	assert.Equal(t, strings.Join(want, ""), string(text))
}

// The files in testdata are what people see: change them only on purpose.
func TestTable(t *testing.T) {
	failing := passing()
	failing.Cases[0].Storage.setAfter(1)
	failing.Cases[5].Legacy.setAfter(0)
	failing.Cases[8].Legacy = Cell{Error: "connect to 192.0.2.1:9: no route to host"}
	failing.Cases[9].Storage.Cell = Cell{}
	failing.Cases[25].Storage.Live.KnowService = 299
	for i := range failing.Cases {
		if failing.Cases[i].Name == "udp6-close" {
			failing.Cases[i].NotSupported = "IPv6: address family not supported by protocol"
		}
	}
	for name, r := range map[string]*Report{"passing": passing(), "failing": failing} {
		var b strings.Builder
		require.NoError(t, r.Table(&b))
		file := "testdata/" + name + ".txt"
		if os.Getenv("UPDATE_GOLDEN") != "" {
			require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o644))
		}
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, string(want), b.String(), "run with UPDATE_GOLDEN=1 if this is meant")
	}
}
