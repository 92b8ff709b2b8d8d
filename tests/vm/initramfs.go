// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
)

// An initramfs may be several archives, one after the other. The first, with all that was built, is
// the same for every machine; the second has a machine's modules and its plan.

// baseArchive is the first.
func (b *build) baseArchive() ([]byte, error) {
	return archive(func(c *cpioWriter) error {
		// The kernel opens it for process 1 before anything is mounted.
		c.CharDevice("/dev/console", 0o600, 5, 1)
		for _, dir := range []string{"/proc", "/sys", "/tmp", "/run", "/root", "/var/tmp", "/mnt"} {
			c.Dir(dir)
		}
		c.File("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/false\n"+
			"nobody:x:65534:65534:nobody:/:/bin/false\n"))
		c.File("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
		c.File("/etc/hosts", 0o644, []byte("127.0.0.1 localhost revsk-vm\n::1 localhost revsk-vm\n"))
		if err := addFile(c, "/init", b.Init); err != nil {
			return err
		}
		if b.Revsk != "" {
			if err := addFile(c, revskPath, b.Revsk); err != nil {
				return err
			}
		}
		dirs := slices.Clone(sources)
		for _, s := range b.Suites {
			_, binary := placeInMachine(s)
			if err := addFile(c, binary, s.Binary); err != nil {
				return err
			}
			if top, _, _ := strings.Cut(s.Name, "/"); !slices.Contains(dirs, top) {
				dirs = append(dirs, s.Name)
			}
		}
		for _, dir := range dirs {
			if err := addTree(c, path.Join(sourceDir, dir), filepath.Join(b.Root, dir)); err != nil {
				return err
			}
		}
		return nil
	})
}

func inMachine(opts *options) place {
	return place{
		suite: placeInMachine,
		revsk: revskPath,
		env:   []string{"PATH=/bin", "HOME=/root", "TMPDIR=/tmp", "REVSK_VM=1"},
		slow:  opts.accel == "tcg",
	}
}

func placeInMachine(s suite) (dir, binary string) {
	dir = path.Join(sourceDir, s.Name)
	return dir, path.Join(dir, binaryName)
}

// machineArchive is the second.
func (b *build) machineArchive(ctx context.Context, opts *options, tree kernelTree, v variant) ([]byte, error) {
	wanted := slices.Clone(otherModules)
	if !v.NoDiag {
		wanted = append(slices.Clone(diagModules), wanted...)
	}
	read, err := moduleReader(ctx, tree.Modules)
	if err != nil {
		return nil, err
	}
	modules, err := loadOrder(wanted, read)
	if err != nil {
		return nil, err
	}
	p := plan.Plan{
		Variant: v.Name,
		Steps:   b.steps(opts, v, inMachine(opts)),
	}
	if v.Adjust != nil {
		v.Adjust(&p)
	}
	return archive(func(c *cpioWriter) error {
		for _, m := range modules {
			file := "/modules/" + m.Name + ".ko"
			c.File(file, 0o644, m.Data)
			p.Modules = append(p.Modules, file)
		}
		text, err := json.MarshalIndent(p, "", "\t")
		if err != nil {
			return err
		}
		c.File(plan.Path, 0o644, text)
		return nil
	})
}

func archive(fill func(*cpioWriter) error) ([]byte, error) {
	var out bytes.Buffer
	// It is unpacked once, by an emulated processor: little work is worth more than little space.
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	c := newCPIO(z)
	if err := fill(c); err != nil {
		return nil, fmt.Errorf("filling the initramfs: %w", err)
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compressing the initramfs: %w", err)
	}
	return out.Bytes(), nil
}

func addFile(c *cpioWriter, name, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	c.File(name, int(info.Mode().Perm()), data)
	return nil
}

// addTree adds a directory with all in it, if it exists.
func addTree(c *cpioWriter, name, dir string) error {
	if !exists(dir) {
		return nil
	}
	return filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			c.Dir(path.Join(name, rel))
			return nil
		}
		return addFile(c, path.Join(name, rel), file)
	})
}
