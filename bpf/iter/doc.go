// SPDX-License-Identifier: Apache-2.0

// Package iter holds the compiled iterator programs. The source is C in this directory and in
// bpf/lib; the objects are committed, so that neither building nor testing needs a compiler for
// BPF. Everything but the generator's own use goes through packages inspect, migrate and internal/openfiles.
package iter

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem dump -no-global-types -type revsk_socket -type revsk_wanted -type revsk_wanted_backend -type revsk_wanted_service Dump dump.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -Wno-unused-function -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem fill -no-global-types -type revsk_result -type revsk_seen -type revsk_import_entry -type revsk_import_socket Fill fill.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -Wno-unused-function -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem descriptor -no-global-types -type revsk_request -type revsk_call Descriptor descriptor.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem destroy -no-global-types -type revsk_victim Destroy destroy.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem files -no-global-types Files files.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem look -no-global-types -type revsk_look_socket -type revsk_look_backend -type revsk_look_connected Look look.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../lib" -target bpfel,bpfeb -go-package iter -output-stem queued -no-global-types Queued queued.c
