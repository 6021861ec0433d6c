/* SPDX-License-Identifier: MIT */
#ifndef RHEA_CONVERT_ZERO_H
#define RHEA_CONVERT_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* Whether LEN bytes are all zero. */
bool zero_is(const void *buf, size_t len);

#endif
