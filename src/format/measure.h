/* SPDX-License-Identifier: MIT */
#ifndef RHEA_FORMAT_MEASURE_H
#define RHEA_FORMAT_MEASURE_H

#include <rhea/format.h>

/* How many blocks of BLOCK_SIZE bytes have to be there for what WHAT holds. 0
 * where nothing is known of that. */
int measure_blocks(const struct rhea_measure *what, uint64_t block_size,
                   uint64_t *blocks, struct rhea_error *err);

#endif
