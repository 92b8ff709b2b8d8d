// SPDX-License-Identifier: Apache-2.0

// Package nextlayout has the programs as a build would whose layout of what sockets hold is the next version, for tests of
// a load over the sockets of the layout before.
package nextlayout

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I. -I../../bpf/lib" -target bpfel,bpfeb -go-package nextlayout -output-stem next -no-global-types Next next.c
