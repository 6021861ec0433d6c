/* SPDX-License-Identifier: MIT */
#include "format/measure.h"

#include "base/checked.h"

int measure_blocks(const struct rhea_measure *what, uint64_t block_size,
                   uint64_t *blocks, struct rhea_error *err)
{
    uint64_t counted = 0; /* blocks before it */
    *blocks = 0;
    for (uint64_t at = 0; what->next && at < what->size;) {
        bool data = false;
        uint64_t length = 0;
        int ret = what->next(what->opaque, at, &data, &length, err);
        if (ret)
            return ret;
        uint64_t first = RHEA_MAX(at / block_size, counted);
        at += RHEA_MIN(length, what->size - at);
        if (data && at > first * block_size) {
            counted = div_up(at, block_size);
            *blocks += counted - first;
        }
    }
    return 0;
}
