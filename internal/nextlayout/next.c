//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Our programs with another layout of what sockets hold, version 2: the fields are in another order. Version 1 is as
 * bpf/lib has it, and the layout before.
 */
#include "next.h"

#include "../../bpf/sock/revsk.c"
