/* SPDX-License-Identifier: MIT */
/* Random bytes that nobody can guess. */
#ifndef RHEA_BASE_ENTROPY_H
#define RHEA_BASE_ENTROPY_H

#include <rhea/base.h>

int entropy_get(void *buf, size_t len, struct rhea_error *err);

#endif
