// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are what the suites use, with what they depend on. The machine has no modprobe: a
// module that is not loaded at boot stays unusable.
var (
	diagModules  = []string{"inet_diag", "tcp_diag", "udp_diag"}
	otherModules = []string{"veth", "dummy", "sch_ingress", "cls_bpf", "fuse"}
)

// A module is a kernel module, uncompressed.
type module struct {
	Name    string
	Depends []string
	Data    []byte
}

// loadOrder returns the wanted modules and those they depend on, each after its dependencies. A name
// that no file has is left out: it is built in, or else the suites will say so.
func loadOrder(wanted []string, read func(name string) (*module, error)) ([]module, error) {
	var order []module
	seen := make(map[string]bool)
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		m, err := read(name)
		if err != nil || m == nil {
			return err
		}
		for _, dep := range m.Depends {
			if err := visit(dep); err != nil {
				return err
			}
		}
		order = append(order, *m)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleReader returns a function that reads a module of a kernel by its name, nil if there is none.
func moduleReader(ctx context.Context, dir string) (func(name string) (*module, error), error) {
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing modules: %w", err)
	}
	return func(name string) (*module, error) {
		path, ok := files[name]
		if !ok {
			return nil, nil
		}
		data, err := readModule(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("reading module %s: %w", name, err)
		}
		depends, err := moduleDepends(data)
		if err != nil {
			return nil, fmt.Errorf("reading module %s: %w", name, err)
		}
		return &module{Name: name, Depends: depends, Data: data}, nil
	}, nil
}

// moduleName is the name of a module as the kernel writes it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func readModule(ctx context.Context, path string) ([]byte, error) {
	for suffix, tool := range map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"} {
		if strings.HasSuffix(path, suffix) {
			out, err := output(ctx, nil, tool, "-dc", path)
			return []byte(out), err
		}
	}
	return os.ReadFile(path)
}

func moduleDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("it has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	return parseDepends(info), nil
}

// parseDepends reads "depends=a,b" from a .modinfo section: strings that end with a zero byte.
func parseDepends(info []byte) []string {
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok {
			names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
			for i := range names {
				names[i] = moduleName(names[i])
			}
			return slices.Clip(names)
		}
	}
	return nil
}
