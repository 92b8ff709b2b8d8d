// SPDX-License-Identifier: Apache-2.0

// Vm boots kernels of Debian in QEMU, runs the tests of this module on each, and prints one table.
//
// What it does, in the order of its files: suites.go compiles the tests statically; select.go, apt.go
// and fetch.go find a kernel, fetch its package and unpack it; initramfs.go packs a file system of
// tests, modules (modules.go) and init (the package tests/vm/init); qemu.go boots it; collect.go and
// results.go judge what comes back, with skip.go and console.go; table.go and docs.go show it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // a test, a machine, or this program
	exitUsage  = 2
)

const (
	defaultKernels  = "5.10 6.1 6.12 7.2"
	defaultPackages = "./internal/probe ./internal/openfiles ./internal/netns ./tests/prog ./tests/kernel ./loader ./migrate ./lbmap ./inspect ./cmd/revsk"
)

type options struct {
	kernels      []string
	variants     []variant
	packages     []string // empty: those of defaultPackages that exist
	run          string
	args         []string // for the suites
	tags         string
	parallel     int
	timeout      time.Duration // of a machine
	suiteTimeout time.Duration
	memory, cpus int
	accel        string
	append       string
	cache        string
	refresh      bool
	out          string
	json         string
	docs         string
	revsk        bool
	verbose      bool
}

const usage = `usage: go run ./tests/vm [flags]

Runs the tests of this module on other kernels: fetches each kernel as a Debian package, boots it
in QEMU with an initramfs of statically linked test binaries, and prints one table, a row for each
kernel, a column for each suite: passed/failed/skipped and seconds.

  go run ./tests/vm                                 the default kernels, every suite
  go run ./tests/vm -kernels 6.1 -run TestX -v      one test on one kernel, output as it comes
  go run ./tests/vm -kernels "6.6 7.3.4 6.1.0-49"   any other kernel that Debian has
  go run ./tests/vm -kernels running                this machine's own kernel, without QEMU
  go run ./tests/vm -kernels 5.10 -variants all     the kernel set up in other ways
  go run ./tests/vm -docs docs/kernels.md           write the page of kernels, too

A kernel is named by the beginning of its release or of its package's version; the newest that
matches in Debian's suites from bullseye to sid is taken, of equal ones the cloud flavour.

A machine fails if a test fails or skips without a right to, if a suite runs no test, if revsk
selftest fails, if the kernel writes a warning or is tainted by one, panics or hangs. A test may
skip with the words "requires Linux X.Y" on older kernels, with "requires CONFIG_X" on kernels built
without, and in a variant with "requires" and what that variant takes away. On machines REVSK_VM=1 is set, REVSK_VM_VARIANT names the variant,
REVSK_BIN the command revsk.

Variants:
%s
Exit codes: 0 all is well, 1 something failed, 2 wrong usage.

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	go watchParent(cancel)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// watchParent ends the run with the go command that started it, which dies of SIGTERM without a word to
// its child: nobody would wait for the machines any more.
func watchParent(cancel func()) {
	for parent := os.Getppid(); os.Getppid() == parent; {
		time.Sleep(time.Second)
	}
	cancel()
}

// run is the whole program, but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "tests/vm:", err)
		return exitUsage
	}
	ok, err := runAll(ctx, opts, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "tests/vm:", err)
	}
	if err != nil || !ok {
		return exitFailed
	}
	return exitOK
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	opts := new(options)
	var kernels, variants, packages, suiteArgs string
	flags := flag.NewFlagSet("tests/vm", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&kernels, "kernels", defaultKernels, "`names` of kernels, and running")
	flags.StringVar(&variants, "variants", plain.Name, "`names` of variants, or all")
	flags.StringVar(&packages, "pkgs", "", "`packages` with tests (default those that exist of "+
		strings.ReplaceAll(defaultPackages, "./", "")+")")
	flags.StringVar(&opts.run, "run", "", "only tests that match the `pattern`, and no selftest")
	flags.StringVar(&suiteArgs, "args", "", "`words` for the command lines of the suites")
	flags.StringVar(&opts.tags, "tags", "", "build `tags`")
	flags.IntVar(&opts.parallel, "parallel", 1, "machines at a time")
	flags.DurationVar(&opts.timeout, "timeout", time.Hour, "for one machine")
	flags.DurationVar(&opts.suiteTimeout, "suite-timeout", 40*time.Minute, "for one suite")
	flags.IntVar(&opts.memory, "memory", 1024, "of a machine, in `MiB`")
	flags.IntVar(&opts.cpus, "cpus", 2, "of a machine")
	flags.StringVar(&opts.accel, "accel", "auto", "kvm, tcg, or auto: kvm where the processor can")
	flags.StringVar(&opts.append, "append", "", "`words` for the kernel's command line")
	flags.StringVar(&opts.cache, "cache", "", "`directory` for packages and their indexes "+
		"(default $REVSK_VM_CACHE or ~/.cache/revsk/kernels)")
	flags.BoolVar(&opts.refresh, "refresh", false, "fetch the package indexes even if they are of today")
	flags.StringVar(&opts.out, "out", "", "keep consoles and initramfs in this `directory` "+
		"(default a temporary one, removed if all is well)")
	flags.StringVar(&opts.json, "json", "", "write go test -json lines to this `file`, with Kernel and Variant added")
	flags.StringVar(&opts.docs, "docs", "", "write the page of kernels to this `file`")
	flags.BoolVar(&opts.revsk, "revsk", true, "run revsk selftest and revsk features after the suites")
	flags.BoolVar(&opts.verbose, "v", false, "show the output of tests as it comes")
	flags.Usage = func() {
		fmt.Fprintf(stderr, usage, variantHelp())
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; kernels are named with -kernels", flags.Arg(0))
	}
	opts.kernels, opts.packages, opts.args = words(kernels), words(packages), words(suiteArgs)
	var err error
	if opts.variants, err = parseVariants(words(variants)); err != nil {
		return nil, err
	}
	if len(opts.kernels) == 0 || len(opts.variants) == 0 {
		return nil, errors.New("no kernel or no variant named")
	}
	if opts.parallel < 1 {
		return nil, errors.New("-parallel must be at least 1")
	}
	if opts.docs != "" && opts.run != "" {
		return nil, errors.New("-docs needs a whole run, without -run")
	}
	if opts.accel, err = chooseAccel(opts.accel); err != nil {
		return nil, err
	}
	if opts.cache == "" {
		opts.cache = os.Getenv("REVSK_VM_CACHE")
	}
	if opts.cache == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("finding the cache directory: %w", err)
		}
		opts.cache = filepath.Join(home, "revsk", "kernels")
	}
	// apt takes relative paths as relative to its own directories.
	if opts.cache, err = filepath.Abs(opts.cache); err != nil {
		return nil, err
	}
	return opts, nil
}

func variantHelp() string {
	var b strings.Builder
	for _, v := range variants {
		fmt.Fprintf(&b, "  %-8s %s\n", v.Name, v.About)
	}
	return b.String()
}

// words splits at spaces and commas.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' })
}
