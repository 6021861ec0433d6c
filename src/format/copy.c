/* SPDX-License-Identifier: MIT */
#include "format/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum {
    COPY_BYTES = 256 << 10, /* at a time */
    BUDGET_LEAST = 16 << 20,
};

/* Whether there is a hole at OFFSET, and for how many bytes of LEN that holds;
 * past the end of the file, SIZE, there is. */
static int copy_extent(struct rhea_storage *s, uint64_t size, uint64_t offset,
                       uint64_t len, bool *hole, uint64_t *run,
                       struct rhea_error *err)
{
    *hole = true;
    *run = len;
    return offset >= size
               ? 0
               : rhea_storage_extent(s, offset, RHEA_MIN(len, size - offset),
                                     hole, run, err);
}

static bool copy_is_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static int copy_data(struct rhea_storage *s, uint64_t from, uint64_t to,
                     size_t len, bool fresh, uint8_t *buf,
                     struct rhea_error *err)
{
    int ret = rhea_storage_read_padded(s, buf, len, from, err);
    if (ret || (fresh && copy_is_zero(buf, len)))
        return ret;
    return rhea_storage_write(s, buf, len, to, err);
}

int copy_range(struct rhea_storage *s, uint64_t from, uint64_t to, uint64_t len,
               bool fresh, struct rhea_error *err)
{
    size_t piece = (size_t)RHEA_MIN(len, COPY_BYTES);
    RHEA_AUTO_FREE uint8_t *buf = malloc(piece);
    uint64_t size;
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_size(s, &size, err);
    for (uint64_t at = 0, run; !ret && at < len; at += run) {
        bool hole;
        ret = copy_extent(s, size, from + at, len - at, &hole, &run, err);
        if (ret)
            return ret;
        if (!hole) {
            run = RHEA_MIN(run, piece);
            ret =
                copy_data(s, from + at, to + at, (size_t)run, fresh, buf, err);
        } else if (!fresh) {
            ret = rhea_storage_zero(s, to + at, run, true, err);
        }
    }
    return ret;
}

int copy_budget_init(struct copy_budget *budget, struct rhea_storage *s,
                     struct rhea_error *err)
{
    uint64_t size, on_disk, device, inode;
    int ret = rhea_storage_size(s, &size, err);
    if (ret)
        return ret;
    if (rhea_file_stat(s, &on_disk, &device, &inode))
        on_disk = size;
    *budget = (struct copy_budget){
        .length = RHEA_MAX(size, (uint64_t)BUDGET_LEAST),
        .data = RHEA_MAX(RHEA_MIN(size, on_disk), (uint64_t)BUDGET_LEAST),
    };
    return 0;
}

int copy_budget_take(struct copy_budget *budget, struct rhea_storage *s,
                     uint64_t from, uint64_t len, bool *may,
                     struct rhea_error *err)
{
    uint64_t size, data = 0;
    *may = false;
    budget->spent |= len > budget->length;
    if (budget->spent)
        return 0;
    int ret = rhea_storage_size(s, &size, err);
    for (uint64_t at = 0, run; !ret && at < len; at += run) {
        bool hole;
        ret = copy_extent(s, size, from + at, len - at, &hole, &run, err);
        if (ret)
            return ret;
        data += hole ? 0 : run;
        budget->spent |= data > budget->data;
        if (budget->spent)
            return 0;
    }
    budget->length -= len;
    budget->data -= data;
    *may = !ret;
    return ret;
}
