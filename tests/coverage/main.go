// SPDX-License-Identifier: Apache-2.0

// Command coverage compares how many statements of each package its own tests run with the table in docs/coverage.md, or writes
// that table. Its input is what go test -coverprofile has written.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/revsk/revsk/"

// tolerated is by how many percent the coverage of a package may be less than the table says: some statements run only when
// something happens at the wrong moment, or on another kernel.
const tolerated = 3

func main() {
	log.SetFlags(0)
	write := flag.Bool("write", false, "write the packages of the profile into the table")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: coverage [-write] PROFILE TABLE")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(flag.Arg(0), flag.Arg(1), *write); err != nil {
		log.Fatal("coverage: ", err)
	}
}

func run(profile, table string, write bool) error {
	f, err := os.Open(profile)
	if err != nil {
		return err
	}
	defer f.Close()
	measured, err := read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", profile, err)
	}
	text, err := os.ReadFile(table)
	if err != nil {
		return err
	}
	if write {
		return os.WriteFile(table, []byte(update(string(text), measured)), 0o644)
	}
	var worse []string
	known := rows(string(text))
	for _, name := range slices.Sorted(maps.Keys(measured)) {
		switch was, ok := known[name]; {
		case !ok:
			fmt.Printf("%s is not in %s: %d %%\n", name, table, measured[name])
		case measured[name] < was-tolerated:
			worse = append(worse, fmt.Sprintf("%s: %d %%, was %d %%", name, measured[name], was))
		}
	}
	if len(worse) > 0 {
		return fmt.Errorf("less than in %s; write tests, or make coverage and say why:\n%s", table, strings.Join(worse, "\n"))
	}
	return nil
}

// read returns the percentage of each package. Generated code does not count.
func read(r io.Reader) (map[string]int, error) {
	// A block is there once for each binary of tests that has it.
	type block struct{ all, covered int }
	blocks := make(map[string]block)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		where, rest, ok := strings.Cut(lines.Text(), " ")
		if !ok || where == "mode:" {
			continue
		}
		var statements, runs int
		if _, err := fmt.Sscan(rest, &statements, &runs); err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		b := block{all: statements, covered: blocks[where].covered}
		if runs > 0 {
			b.covered = statements
		}
		blocks[where] = b
	}
	sums := make(map[string]block)
	for where, b := range blocks {
		file, _, _ := strings.Cut(where, ":")
		if strings.Contains(file, "_bpfe") {
			continue
		}
		name := strings.TrimPrefix(path.Dir(file), module)
		sums[name] = block{sums[name].all + b.all, sums[name].covered + b.covered}
	}
	percent := make(map[string]int)
	for name, b := range sums {
		percent[name] = 100 * b.covered / max(b.all, 1)
	}
	return percent, lines.Err()
}

var row = regexp.MustCompile("(?m)^\\| `(.+)` \\| (\\d+) % \\|\n")

func rows(table string) map[string]int {
	all := make(map[string]int)
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		all[m[1]], _ = strconv.Atoi(m[2])
	}
	return all
}

// update writes the rows of measured packages; others stay.
func update(table string, measured map[string]int) string {
	all := rows(table)
	maps.Copy(all, measured)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "| `%s` | %d %% |\n", name, all[name])
	}
	head := row.ReplaceAllString(table, "")
	return strings.TrimRight(head, "\n") + "\n" + b.String()
}
