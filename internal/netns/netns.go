// SPDX-License-Identifier: Apache-2.0

// Package netns finds the network namespaces of this machine and runs functions in them.
//
// A namespace is known by the inode number of its file, which [proc] shows as "net:[4026531840]".
// Needs CAP_SYS_PTRACE to see those of all processes and CAP_SYS_ADMIN to enter them.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is an open network namespace. It exists at least until it is closed.
type Namespace struct {
	// Inode is the number in the link /proc/PID/ns/net.
	Inode uint64

	file *os.File
}

// List is namespaces that are closed together.
type List []*Namespace

// Close closes all of them.
func (l List) Close() error {
	var errs []error
	for _, n := range l {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// Close closes the namespace. If nothing else keeps it, the kernel removes it.
func (n *Namespace) Close() error { return n.file.Close() }

// fromFile takes over the file of a network namespace. It closes other files and returns an error.
func fromFile(file *os.File) (*Namespace, error) {
	// Other files than those of nsfs may accept the ioctl and understand it differently.
	var fs unix.Statfs_t
	err := unix.Fstatfs(int(file.Fd()), &fs)
	if err == nil && fs.Type != unix.NSFS_MAGIC {
		err = errors.New("not a namespace")
	}
	var kind int
	if err == nil {
		kind, err = unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	}
	if err == nil && kind != unix.CLONE_NEWNET {
		err = errors.New("not a network namespace")
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(file.Fd()), &st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening network namespace %s: %w", file.Name(), err), file.Close())
	}
	return &Namespace{Inode: st.Ino, file: file}, nil
}

// errExited is the error of a function that has ended its goroutine.
var errExited = errors.New("the function has ended its goroutine")

// Do runs f in the namespace, on a thread of its own, and returns its error. A socket that f opens
// belongs to the namespace for good; goroutines that it starts run where the caller does.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go onOwnThread(func() {
		err := errExited
		defer func() { done <- err }()
		if e := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); e != nil {
			err = fmt.Errorf("entering network namespace %d: %w", n.Inode, e)
			return
		}
		err = f()
	})
	return <-done
}

// onOwnThread runs f on a thread that ends with the calling goroutine, so that no other goroutine ever runs
// in the namespace that f has entered. It does not use the main thread: Go never ends it, and
// /proc/PID/ns/net shows its namespace.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f() // and not unlocked
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f) // on another one, since this goroutine keeps the main thread
	}()
	<-done
}
