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

int prealloc_fill(struct rhea_storage *storage, uint64_t from, uint64_t to,
                  struct rhea_error *err)
{
    RHEA_AUTO_FREE void *zeroes = calloc(1, FILL_PIECE);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    while (!ret && from < to) {
        size_t n = (size_t)RHEA_MIN(to - from, FILL_PIECE);
        ret = rhea_storage_write(storage, zeroes, n, from, err);
        from += n;
    }
    return ret;
}

int prealloc_space(struct rhea_storage *storage, const char *mode,
                   uint64_t from, uint64_t to, struct rhea_error *err)
{
    if (strcmp(mode, "falloc") == 0 && from < to)
        return rhea_storage_allocate(storage, from, to - from, err);
    if (strcmp(mode, "full") == 0)
        return prealloc_fill(storage, from, to, err);
    return rhea_storage_truncate(storage, to, err);
}
