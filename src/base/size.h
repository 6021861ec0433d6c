/* SPDX-License-Identifier: MIT */
#ifndef RHEA_BASE_SIZE_H
#define RHEA_BASE_SIZE_H

#include <rhea/base.h>

/* A number of bytes: decimal or 0x, a fraction where a suffix follows, and one
 * of b k M G T P E (powers of 1024). */
int size_parse(const char *text, uint64_t *value, struct rhea_error *err);

#endif
