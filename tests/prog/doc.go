// SPDX-License-Identifier: Apache-2.0

// Package prog tests bpf/lib, function by function, by BPF_PROG_TEST_RUN. harness.c has a program
// for each function; the tests run it on real sockets and compare what the function returned, what
// the socket's storage and the maps then hold, and what was counted.
//
// The cgroup hooks themselves cannot be run this way. They are tested by tests/kernel.
package prog

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -Wno-unused-function -mcpu=v3 -I../../bpf/lib" -target bpfel,bpfeb -go-package prog -output-stem harness -no-global-types -type revsk_mode -type revsk_metric -type revsk_tuple -type revsk_conn_value -type revsk_former_value -type revsk_peers_value -type revsk_table_512_value -type revsk_table_1k_value -type revsk_table_2k_value -type revsk_table_4k_value -type revsk_table_8k_value -type revsk_config_value -type harness_input -type harness_output -type harness_endpoint harness harness.c
