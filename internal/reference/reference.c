//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Our programs as an agent of the reference has them: under its names, with the constants that it sets
 * where it looks for them, and with no memory but the hash.
 */
#include "reference.h"

#include "../../bpf/sock/revsk.c"
