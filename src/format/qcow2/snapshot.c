/* SPDX-License-Identifier: MIT */
/*
 * What is known of persistent bitmaps (the spec, "Bitmaps"): where they are, so
 * that their clusters are neither reused nor called leaks. Their contents are
 * not interpreted.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

enum {
    BITMAP_HEADER = 24,
    BITMAP_FLAGS = 12,
    BITMAP_IN_USE = 1,
    BITMAP_AUTO = 2,
    BITMAP_MAX_NAME = 1023,
};
#define BITMAP_MAX_TABLE (1U << 27)
#define BITMAP_ENTRY_RESERVED 0xff000000000001feULL

static int bitmap_walk_table(struct qcow2 *q, uint64_t host, uint32_t n,
                             qcow2_range_fn *fn, void *opaque,
                             struct rhea_error *err)
{
    RHEA_AUTO_FREE uint64_t *table = NULL;
    int r;

    r = fn(opaque, host, (uint64_t)n * 8, err);
    if (r == 0 && qcow2_in_file(q, host))
        r = qcow2_table_load(q, host, n, &table, err);
    if (r < 0 || !table)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t data = table[i] & QCOW2_OFFSET_MASK;

        if (table[i] & BITMAP_ENTRY_RESERVED || (data && table[i] & 1) ||
            !is_aligned(data, q->cluster_size))
            return rhea_error_set(err, EINVAL,
                                  "entry %" PRIu32
                                  " of the bitmap table at 0x%" PRIx64
                                  ", 0x%" PRIx64 ", is damaged",
                                  i, host, table[i]);
        if (data) {
            r = fn(opaque, data, q->cluster_size, err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* One entry of the directory, of LEFT bytes at most; *SIZE is its own. */
static int bitmap_check_entry(const struct qcow2 *q, const uint8_t *e,
                              uint64_t left, uint64_t *size,
                              struct rhea_error *err)
{
    uint64_t host;
    uint32_t n, name;

    if (left < BITMAP_HEADER)
        goto bad;
    host = load_be64(e);
    n = load_be32(e + 8);
    name = load_be16(e + 18);
    *size = align_up((uint64_t)BITMAP_HEADER + name + load_be32(e + 20), 8);
    if (*size > left || !n || n > BITMAP_MAX_TABLE || !host ||
        !is_aligned(host, q->cluster_size) ||
        host > (uint64_t)INT64_MAX - n * 8ULL || e[16] != 1 || e[17] < 9 ||
        e[17] > 31 || name > BITMAP_MAX_NAME || load_be32(e + 20) ||
        load_be32(e + BITMAP_FLAGS) & ~3U ||
        (uint64_t)n << q->cluster_bits > 1ULL << 29)
        goto bad;
    return 0;
bad:
    return rhea_error_set(err, EINVAL, "the bitmap directory is damaged");
}

static int bitmap_load_directory(struct qcow2 *q, uint8_t **dir,
                                 struct rhea_error *err)
{
    uint64_t at = 0, size = 0;
    uint32_t n = 0;
    int r;

    if (!q->bitmap_dir_size)
        return rhea_error_set(err, EINVAL, "the bitmap directory is empty");
    *dir = malloc(q->bitmap_dir_size);
    if (!*dir)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, *dir, q->bitmap_dir_size,
                                 q->bitmap_dir_offset, err);
    for (; r == 0 && at < q->bitmap_dir_size; at += size, n++)
        r = bitmap_check_entry(q, *dir + at, q->bitmap_dir_size - at, &size,
                               err);
    if (r == 0 && n != q->n_bitmaps)
        r = rhea_error_set(err, EINVAL,
                           "the bitmap directory holds %" PRIu32
                           " bitmaps where %" PRIu32 " are announced",
                           n, q->n_bitmaps);
    return r;
}

static uint64_t bitmap_entry_size(const uint8_t *e)
{
    return align_up((uint64_t)BITMAP_HEADER + load_be16(e + 18), 8);
}

int qcow2_bitmaps_walk(struct qcow2 *q, qcow2_range_fn *fn, void *opaque,
                       struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *dir = NULL;
    int r;

    if (!q->n_bitmaps || !(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    r = fn(opaque, q->bitmap_dir_offset, q->bitmap_dir_size, err);
    if (r == 0)
        r = bitmap_load_directory(q, &dir, err);
    for (uint64_t at = 0; r == 0 && at < q->bitmap_dir_size;
         at += bitmap_entry_size(dir + at))
        r = bitmap_walk_table(q, load_be64(dir + at), load_be32(dir + at + 8),
                              fn, opaque, err);
    return r;
}

/*
 * Bitmaps that record every write (flag "auto") are about to miss some, as
 * this driver does not keep them: the flag "in use" says so for good. It is
 * one bit of an entry, so that the directory is sound at every instant.
 */
int qcow2_bitmaps_invalidate(struct qcow2 *q, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *dir = NULL;
    bool changed = false;
    int r;

    if (!q->n_bitmaps || !(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    r = bitmap_load_directory(q, &dir, err);
    if (r < 0)
        return r;
    for (uint64_t at = 0; r == 0 && at < q->bitmap_dir_size;
         at += bitmap_entry_size(dir + at)) {
        uint8_t *flags = dir + at + BITMAP_FLAGS;
        uint32_t old = load_be32(flags);

        if (!(old & BITMAP_AUTO) || old & BITMAP_IN_USE)
            continue;
        store_be32(flags, old | BITMAP_IN_USE);
        r = rhea_storage_write(q->f.storage, flags, 4,
                               q->bitmap_dir_offset + at + BITMAP_FLAGS, err);
        changed = true;
    }
    if (r == 0 && changed)
        r = rhea_storage_flush(q->f.storage, err);
    return qcow2_fail(q, r);
}
