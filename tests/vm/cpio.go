// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// A cpioWriter writes an archive in the "newc" format, the one that the kernel unpacks at boot. The
// directories of a file are written before it, once.
type cpioWriter struct {
	w     io.Writer
	inode int
	size  int64
	dirs  map[string]bool
	err   error
}

// Types of a file, as in stat(2).
const (
	cpioDir     = 0o040000
	cpioChar    = 0o020000
	cpioRegular = 0o100000
)

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: make(map[string]bool)}
}

// File writes a regular file. Names are absolute; the kernel takes them as relative to its root.
func (c *cpioWriter) File(name string, perm int, data []byte) {
	c.Dir(path.Dir(name))
	c.entry(name, cpioRegular|perm, data, 0, 0)
}

// Dir writes a directory and those above it.
func (c *cpioWriter) Dir(name string) {
	if name == "/" || c.dirs[name] {
		return
	}
	c.Dir(path.Dir(name))
	c.dirs[name] = true
	c.entry(name, cpioDir|0o755, nil, 0, 0)
}

// CharDevice writes a character device.
func (c *cpioWriter) CharDevice(name string, perm, major, minor int) {
	c.Dir(path.Dir(name))
	c.entry(name, cpioChar|perm, nil, major, minor)
}

// Close ends the archive and returns the first error of all that was written.
func (c *cpioWriter) Close() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	if c.err != nil {
		return fmt.Errorf("writing the initramfs: %w", c.err)
	}
	return nil
}

func (c *cpioWriter) entry(name string, mode int, data []byte, major, minor int) {
	name = strings.TrimPrefix(name, "/")
	c.inode++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, 0, 0, // inode, mode, user, group
		1, 0, len(data), // links, time, size
		0, 0, major, minor, // device of the file, device that it is
		len(name)+1, 0, // size of the name, checksum (unused)
		name))
	c.pad()
	c.write(data)
	c.pad()
}

// pad fills up to a multiple of four, which every header and all data begin at.
func (c *cpioWriter) pad() {
	c.write(make([]byte, (4-c.size%4)%4))
}

func (c *cpioWriter) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.size += int64(n)
	c.err = err
}
