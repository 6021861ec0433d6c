/* SPDX-License-Identifier: MIT */
#include "format/prealloc.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum { FILL_PIECE = 1 << 20 };

int prealloc_check(const char *mode, struct rhea_error *err)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(modes); i++)
        if (strcmp(mode, modes[i]) == 0)
            return 0;
    return rhea_error_set(err, EINVAL,
                          "preallocation is 'off', 'metadata', 'falloc' or "
                          "'full', not '%s'",
                          mode);
}

int prealloc_fill_told(struct rhea_storage *storage, uint64_t from, uint64_t to,
                       const struct rhea_progress *progress,
                       struct rhea_error *err)
{
    RHEA_AUTO_FREE void *zeroes = calloc(1, FILL_PIECE);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t at = from; at < to; at += FILL_PIECE) {
        rhea_progress_report(progress, "preallocate", at - from, to - from);
        if (rhea_progress_cancelled(progress))
            return rhea_error_set(err, ECANCELED, "stopped as asked");
        int ret = rhea_storage_write(
            storage, zeroes, (size_t)RHEA_MIN(to - at, FILL_PIECE), at, err);
        if (ret)
            return ret;
    }
    return 0;
}

int prealloc_fill(struct rhea_storage *storage, uint64_t from, uint64_t to,
                  struct rhea_error *err)
{
    return prealloc_fill_told(storage, from, to, NULL, err);
}

int prealloc_space_told(struct rhea_storage *storage, const char *mode,
                        uint64_t from, uint64_t to,
                        const struct rhea_progress *progress,
                        struct rhea_error *err)
{
    if (strcmp(mode, "falloc") == 0 && from < to)
        return rhea_storage_allocate(storage, from, to - from, err);
    if (strcmp(mode, "full") == 0)
        return prealloc_fill_told(storage, from, to, progress, err);
    return rhea_storage_truncate(storage, to, err);
}

int prealloc_space(struct rhea_storage *storage, const char *mode,
                   uint64_t from, uint64_t to, struct rhea_error *err)
{
    return prealloc_space_told(storage, mode, from, to, NULL, err);
}
