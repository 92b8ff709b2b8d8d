// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
)

// A debPackage is one entry of a suite's package index.
type debPackage struct {
	Name, Version, Suite string
	Depends              string
	SHA256               string // hex
	File                 string // base name
}

// A kernel is what a name such as "6.12" was found to mean.
type kernel struct {
	Name     string // as asked for
	Release  string // as uname -r will say
	Version  string // of the packages
	Suite    string
	Packages []debPackage // with the image and its modules
}

// errNoKernel means that no index has a kernel of the name.
var errNoKernel = errors.New("no such kernel")

// parseIndex reads the kernel packages from a suite's Packages file.
func parseIndex(r io.Reader, suite string) ([]debPackage, error) {
	var all []debPackage
	var p debPackage
	end := func() {
		if p.Name != "" {
			all = append(all, p)
		}
		p = debPackage{}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 1<<20), 1<<24)
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 {
			end()
			continue
		}
		// These files are large and nearly all of it is about other packages.
		if name, ok := strings.CutPrefix(bytesPrefix(line), "Package: "); ok {
			p = debPackage{Suite: suite}
			if strings.HasPrefix(name, "linux-") {
				p.Name = string(line[len("Package: "):])
			}
			continue
		}
		if p.Name == "" {
			continue
		}
		switch key, value, _ := strings.Cut(string(line), ": "); key {
		case "Version":
			p.Version = value
		case "Depends":
			p.Depends = value
		case "SHA256":
			p.SHA256 = value
		case "Filename":
			p.File = path.Base(value)
		}
	}
	end()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the index of %s: %w", suite, err)
	}
	return all, nil
}

// bytesPrefix is enough of a line to see whether it begins a kernel package.
func bytesPrefix(line []byte) string {
	return string(line[:min(len(line), len("Package: linux-"))])
}

var (
	// Not linux-image-6.12-amd64, which only depends on the newest of its series.
	imageName = regexp.MustCompile(`^linux-image-(\d+\.\d+\.\d\S*?)-((?:[a-z]+-)?amd64)(-unsigned)?$`)
	splitPart = regexp.MustCompile(`\b(linux-(?:binary|modules)-\d\S*)`)
)

// selectKernel finds the newest kernel that a name means: the beginning of a release ("6.12",
// "6.1.0-49", "7.3.4+deb13-cloud-amd64") or of a package version ("5.10.262"). Of equal versions it
// prefers the cloud flavour, which is smaller, and the signed package. Flavours besides cloud and
// the plain one are taken only when named in full.
func selectKernel(name string, index []debPackage) (kernel, error) {
	type candidate struct {
		kernel
		cloud, signed bool
	}
	byName := make(map[string][]debPackage)
	for _, p := range index {
		byName[p.Name] = append(byName[p.Name], p)
	}
	var candidates []candidate
	var incomplete []string
	for _, p := range index {
		m := imageName.FindStringSubmatch(p.Name)
		if m == nil {
			continue
		}
		release, flavour := m[1]+"-"+m[2], m[2]
		if !matchesKernel(name, release, p.Version) {
			continue
		}
		if flavour != "amd64" && flavour != "cloud-amd64" && name != release {
			continue
		}
		packages, missing := withParts(p, byName)
		if missing != "" {
			incomplete = append(incomplete, missing)
			continue
		}
		candidates = append(candidates, candidate{
			kernel{Name: name, Release: release, Version: p.Version, Suite: p.Suite, Packages: packages},
			flavour == "cloud-amd64", m[3] == "",
		})
	}
	if len(candidates) == 0 {
		if len(incomplete) > 0 {
			return kernel{}, fmt.Errorf("%w: %s: the mirror no longer has %s", errNoKernel, name,
				incomplete[len(incomplete)-1])
		}
		return kernel{}, fmt.Errorf("%w: %s (there are %s)", errNoKernel, name, listKernels(index))
	}
	best := slices.MaxFunc(candidates, func(a, b candidate) int {
		return cmp.Or(
			compareVersions(a.Version, b.Version),
			compareBools(a.cloud, b.cloud),
			compareBools(a.signed, b.signed),
		)
	})
	return best.kernel, nil
}

// matchesKernel reports whether the name is the beginning of the release or the version and ends
// where a number ends: 6.1 is not the beginning of 6.12.
func matchesKernel(name, release, version string) bool {
	for _, full := range []string{release, version} {
		rest, ok := strings.CutPrefix(full, name)
		if ok && name != "" && (rest == "" || !isDigit(rest[0])) {
			return true
		}
	}
	return false
}

// withParts returns the packages that hold the kernel and its modules: the image itself or, where
// that is a stub, those of the same version that it depends on. Missing names one that is not in
// the index: mirrors drop the parts of old kernels at different times.
func withParts(image debPackage, byName map[string][]debPackage) (parts []debPackage, missing string) {
	names := splitPart.FindAllString(image.Depends, -1)
	if len(names) == 0 {
		return []debPackage{image}, ""
	}
	for _, name := range names {
		i := slices.IndexFunc(byName[name], func(p debPackage) bool { return p.Version == image.Version })
		if i < 0 {
			return nil, name
		}
		parts = append(parts, byName[name][i])
	}
	return parts, ""
}

// listKernels names the series that the index has, for an error message.
func listKernels(index []debPackage) string {
	series := regexp.MustCompile(`^\d+\.\d+`)
	var all []string
	for _, p := range index {
		if m := imageName.FindStringSubmatch(p.Name); m != nil {
			all = append(all, series.FindString(m[1]))
		}
	}
	slices.SortFunc(all, compareVersions)
	return strings.Join(slices.Compact(all), " ")
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
