//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * bpf_sock.o as the agent's Go code wants it: our programs under its names, with every constant that
 * it sets (constants.h, made from its package when the test runs) and maps that it finds by name.
 */
#include "../../internal/reference/reference.h"
#include "table.h"
#include "tuple.h"

/* Of the other maps those of the load balancer are the ones with flags. */
#undef __uint
#define __uint(name, val) UINT_##name(val)
#define UINT_type(val) int(*type)[val]
#define UINT_max_entries(val) int(*max_entries)[val]
#define UINT_map_flags(val)                                                                        \
	int(*map_flags)[val];                                                                      \
	int(*pinning)[LIBBPF_PIN_BY_NAME]

#include "../../internal/reference/reference.c"

#include "constants.h"
