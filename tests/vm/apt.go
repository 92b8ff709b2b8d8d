// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// indexMaxAge is how old the package indexes may be before they are fetched again.
const indexMaxAge = 24 * time.Hour

// keyring holds the keys of every Debian suite.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// debianSuites are searched for kernels. A mirror need not have all of them.
var (
	debianSuites = []string{
		"bullseye", "bullseye-backports", "bookworm", "bookworm-backports",
		"trixie", "trixie-backports", "sid",
	}
	debianSecuritySuites = []string{"bullseye-security", "bookworm-security", "trixie-security"}
)

// apt is an apt of its own, in the cache directory: its own sources, lists and downloads, only the
// proxy and the mirror are the machine's.
type apt struct {
	dir  string // <cache>/apt
	debs string // <cache>/debs
	log  func(format string, args ...any)
}

// openApt sets the apt up. The caller holds the lock of the cache.
func openApt(ctx context.Context, cache string, log func(string, ...any)) (*apt, error) {
	a := &apt{dir: filepath.Join(cache, "apt"), debs: filepath.Join(cache, "debs"), log: log}
	for _, dir := range []string{
		a.debs,
		filepath.Join(a.dir, "state/lists/partial"),
		filepath.Join(a.dir, "cache/archives/partial"),
		filepath.Join(a.dir, "empty"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the kernel cache: %w", err)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("verifying Debian's packages needs %s: install debian-archive-keyring", keyring)
	}
	settings, err := output(ctx, nil, "apt-config", "dump")
	if err != nil {
		return nil, err
	}
	uris, err := output(ctx, nil, "apt-get", "update", "--print-uris")
	if err != nil {
		return nil, err
	}
	main, security := findMirrors(uris)
	files := map[string]string{
		"apt.conf":     aptConfig(a.dir, settings),
		"sources.list": aptSources(main, security),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("setting up apt: %w", err)
		}
	}
	return a, nil
}

var (
	releaseURI = regexp.MustCompile(`(?m)^'(\S+?)/?/dists/([^/']+)/InRelease'`)
	mainSuite  = regexp.MustCompile(`^(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)$`)
)

// findMirrors reads the mirror that this machine uses from the output of apt-get update --print-uris.
func findMirrors(uris string) (main, security string) {
	main, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
	for _, m := range releaseURI.FindAllStringSubmatch(uris, -1) {
		base, found := strings.CutSuffix(m[2], "-security")
		switch {
		case !mainSuite.MatchString(base):
		case found:
			security = m[1]
		default:
			main = m[1]
		}
	}
	return main, security
}

func aptSources(main, security string) string {
	var b strings.Builder
	add := func(mirror string, suites []string) {
		for _, suite := range suites {
			fmt.Fprintf(&b, "deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, mirror, suite)
		}
	}
	add(main, debianSuites)
	add(security, debianSecuritySuites)
	return b.String()
}

// keptSettings are how this machine reaches its mirror. Everything else that it sets is left out:
// hooks after an update, for one, would work on its own lists.
var keptSettings = regexp.MustCompile(
	`^Acquire::(http|https|Retries|ForceIPv[46]|Proxy-Auto-Detect|Check-Date|Check-Valid-Until)\b`)

func aptConfig(dir, machine string) string {
	var b strings.Builder
	for _, s := range [][2]string{
		{"Dir::Etc::main", "/dev/null"},
		{"Dir::Etc::parts", dir + "/empty"},
		{"Dir::Etc::sourcelist", dir + "/sources.list"},
		{"Dir::Etc::sourceparts", dir + "/empty"},
		{"Dir::Etc::preferences", "/dev/null"},
		{"Dir::Etc::preferencesparts", dir + "/empty"},
		{"Dir::State", dir + "/state"},
		{"Dir::State::status", "/dev/null"},
		{"Dir::Cache", dir + "/cache"},
		{"APT::Architecture", "amd64"},
		{"APT::Sandbox::User", "root"},
		{"Acquire::Languages", "none"},
		// A suite that cannot be fetched is otherwise a warning.
		{"APT::Update::Error-Mode", "any"},
	} {
		fmt.Fprintf(&b, "%s %q;\n", s[0], s[1])
	}
	for line := range strings.Lines(machine) {
		if keptSettings.MatchString(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (a *apt) env() []string {
	return append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C.UTF-8")
}

// index returns the kernel packages of every suite. It fetches the indexes first when they are old,
// and goes on with old ones when that fails.
func (a *apt) index(ctx context.Context, refresh bool) ([]debPackage, error) {
	stamp := filepath.Join(a.dir, "updated")
	info, err := os.Stat(stamp)
	old := refresh || err != nil || time.Since(info.ModTime()) > indexMaxAge
	var failed error
	if old {
		a.log("fetching package indexes")
		failed = a.update(ctx)
	}
	// apt serves these files only after checking them against the suite's signature.
	targets, err := output(ctx, a.env(), "apt-get", "indextargets",
		"--format", "$(RELEASE) $(FILENAME)", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	var all []debPackage
	for line := range strings.Lines(targets) {
		suite, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		packages, err := readIndex(file, suite)
		if err != nil {
			return nil, err
		}
		all = append(all, packages...)
	}
	switch {
	case len(all) == 0:
		return nil, errors.Join(errors.New("no index of Debian's packages could be fetched: kernels are their packages"), failed)
	case failed != nil:
		a.log("going on with the indexes of earlier: %v", failed)
	case old:
		if err := os.WriteFile(stamp, nil, 0o644); err != nil {
			return nil, fmt.Errorf("noting the age of the indexes: %w", err)
		}
	}
	return all, nil
}

func readIndex(file, suite string) ([]debPackage, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the index of %s: %w", suite, err)
	}
	defer f.Close()
	return parseIndex(f, suite)
}

var absentSuite = regexp.MustCompile(`(?m)^E: The repository '(\S+ \S+) Release' does not have a Release file\.\n?`)

// update fetches the indexes. A suite that the mirror does not have is no error.
func (a *apt) update(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "apt-get", "update", "-q")
	cmd.Env = a.env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	text := stderr.String()
	for _, m := range absentSuite.FindAllStringSubmatch(text, -1) {
		a.log("not on the mirror: %s", m[1])
	}
	if rest := strings.TrimSpace(absentSuite.ReplaceAllString(text, "")); rest != "" {
		return fmt.Errorf("apt-get update: %w: %s", err, rest)
	}
	return nil
}

// lockCache keeps two runs from writing the cache at once. The lock goes with the process.
func lockCache(ctx context.Context, cache string, log func(string, ...any)) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("making the kernel cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the kernel cache: %w", err)
	}
	for waited := false; ; waited = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking the kernel cache: %w", err)
		}
		if !waited {
			log("waiting for another run to leave %s", cache)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// output runs a program and returns what it wrote; what it complained of is in the error.
func output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
