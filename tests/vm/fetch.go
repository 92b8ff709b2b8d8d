// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fetchKernels finds out which kernels the names mean and unpacks them under dir. What fails for one
// kernel is in errs under its name and does not keep the others.
func fetchKernels(
	ctx context.Context, names []string, opts *options, dir string, log func(string, ...any),
) (trees map[string]kernelTree, errs map[string]error, err error) {
	unlock, err := lockCache(ctx, opts.cache, log)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	a, err := openApt(ctx, opts.cache, log)
	if err != nil {
		return nil, nil, err
	}
	index, err := a.index(ctx, opts.refresh)
	if err != nil {
		return nil, nil, err
	}
	trees, errs = make(map[string]kernelTree), make(map[string]error)
	for _, name := range names {
		k, err := selectKernel(name, index)
		if err == nil {
			err = a.fetch(ctx, k)
		}
		var tree kernelTree
		if err == nil {
			tree, err = a.unpack(ctx, k, filepath.Join(dir, k.Release))
		}
		if err != nil {
			errs[name] = err
			continue
		}
		log("%s is %s %s from %s", name, k.Release, k.Version, k.Suite)
		trees[name] = tree
	}
	return trees, errs, nil
}

// fetch brings a kernel's packages into the cache.
func (a *apt) fetch(ctx context.Context, k kernel) error {
	for _, p := range k.Packages {
		file := filepath.Join(a.debs, p.File)
		err := verify(file, p.SHA256)
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			a.log("fetching again: %v", err)
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("removing a bad package: %w", err)
			}
		}
		a.log("fetching %s %s", p.Name, p.Version)
		if err := a.download(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// download goes through a directory of its own: what lies in the cache under its name is whole.
func (a *apt) download(ctx context.Context, p debPackage) error {
	dir, err := os.MkdirTemp(a.debs, ".fetch-")
	if err != nil {
		return fmt.Errorf("fetching %s: %w", p.Name, err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", p.Name+"="+p.Version)
	cmd.Env, cmd.Dir = a.env(), dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching %s: %w (-refresh fetches newer indexes)\n%s", p.Name, err,
			strings.TrimSpace(string(out)))
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("fetching %s: apt-get download left %d files", p.Name, len(files))
	}
	if err := verify(files[0], p.SHA256); err != nil {
		return fmt.Errorf("fetching %s: %w", p.Name, err)
	}
	return os.Rename(files[0], filepath.Join(a.debs, p.File))
}

// verify compares a file with the checksum in the signed index.
func verify(file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s has SHA256 %s, the index says %s", filepath.Base(file), got, want)
	}
	return nil
}

// A kernelTree is a kernel unpacked.
type kernelTree struct {
	kernel
	Image   string // the file to boot
	Modules string // lib/modules/<release>
	Config  string // the file of its configuration, "" if the packages have none
}

// unpack unpacks a kernel's packages. It does so in every run, from packages verified in this run:
// it takes a second, and no tree that is half there or changed is ever booted.
func (a *apt) unpack(ctx context.Context, k kernel, dir string) (kernelTree, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return kernelTree{}, fmt.Errorf("unpacking the kernel: %w", err)
	}
	for _, p := range k.Packages {
		file := filepath.Join(a.debs, p.File)
		if err := verify(file, p.SHA256); err != nil {
			return kernelTree{}, fmt.Errorf("unpacking %s: %w", p.Name, err)
		}
		if _, err := output(ctx, nil, "dpkg", "-x", file, dir); err != nil {
			return kernelTree{}, err
		}
	}
	tree := kernelTree{kernel: k}
	for _, prefix := range []string{"lib/modules", "usr/lib/modules"} {
		modules := filepath.Join(dir, prefix, k.Release)
		if exists(modules) {
			tree.Modules = modules
		}
	}
	for _, image := range []string{
		filepath.Join(dir, "boot", "vmlinuz-"+k.Release),
		filepath.Join(dir, "usr/lib/modules", k.Release, "vmlinuz"),
	} {
		if exists(image) {
			tree.Image = image
		}
	}
	if config := filepath.Join(dir, "boot", "config-"+k.Release); exists(config) {
		tree.Config = config
	}
	if tree.Image == "" || tree.Modules == "" {
		return kernelTree{}, fmt.Errorf("%s %s: no kernel or no modules in its packages", k.Release, k.Version)
	}
	return tree, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
