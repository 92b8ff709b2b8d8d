// SPDX-License-Identifier: Apache-2.0

// Package sock holds the compiled cgroup programs and their maps. The source is C in this
// directory and in bpf/lib; the objects are committed, so that neither building nor testing needs
// a compiler for BPF. Everything but the generator's own use goes through package loader.
package sock

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package sock -output-stem revsk -no-global-types -type revsk_mode -type revsk_metric -type revsk_tuple -type revsk_conn_value -type revsk_former_value -type revsk_peers_value -type revsk_table_512_value -type revsk_table_1k_value -type revsk_table_2k_value -type revsk_table_4k_value -type revsk_table_8k_value -type revsk_config_value Sock revsk.c
