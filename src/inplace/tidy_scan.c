/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "inplace/tidy.h"

#define HOLE_CHECK_MIN                                                         \
    (UINT64_C(1) << 20) /* tables this large may be sparse                     \
                         */

static int scan_damaged(uint64_t host, const char *why, struct rhea_error *err)
{
    return rhea_error_set(err, EINVAL,
                          "the image is damaged: the reference to offset "
                          "%" PRIu64 " %s; run check -r all",
                          host, why);
}

/* COUNT clusters at HOST are in use. */
static int scan_mark(struct tidy *t, uint64_t host, uint64_t count, bool table,
                     struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t first = host >> l->cluster_bits;
    if (!is_aligned(host, l->cluster_size))
        return scan_damaged(host, "is not aligned", err);
    if (!range_inside(first, count, t->file_clusters))
        return scan_damaged(host, "leads out of the file", err);
    if (bitmap_any(&t->used, first, count))
        return scan_damaged(host, "is not the only one", err);
    bitmap_set(&t->used, first, count);
    if (table)
        bitmap_set(&t->tables, first, count);
    return 0;
}

static bool scan_is_foreign(const struct layout *l, uint64_t value)
{
    return (value & l->foreign_flags) ||
           (layout_host(l, value) &&
            (value & l->entry_flags) != l->entry_flags);
}

/* The first of COUNT entries that is not VALUE plus a multiple of STEP. */
static uint64_t scan_run(const struct layout *l, const uint8_t *entries,
                         uint64_t count, uint64_t value, uint64_t step)
{
    uint64_t i = 1;
    if (l->big_endian) {
        while (i < count && load_be64(entries + i * 8) == value + i * step)
            i++;
    } else {
        while (i < count && load_le64(entries + i * 8) == value + i * step)
            i++;
    }
    return i;
}

static int scan_slice(struct tidy *t, void *opaque, uint64_t host,
                      uint8_t *entries, uint64_t n, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t *highest = opaque;
    (void)host;
    for (uint64_t i = 0; i < n;) {
        uint64_t value = layout_get(l, entries + i * 8);
        uint64_t step = layout_host(l, value) ? l->cluster_size : 0;
        uint64_t run = scan_run(l, entries + i * 8, n - i, value, step);
        if (scan_is_foreign(l, value))
            return rhea_error_set(err, ENOTSUP,
                                  "compressed or shared "
                                  "clusters");
        if (step) {
            int ret = scan_mark(t, layout_host(l, value), run, false, err);
            if (ret)
                return ret;
            uint64_t last = layout_host(l, value) + (run - 1) * step;
            *highest = RHEA_MAX(*highest, last);
        }
        i += run;
    }
    return 0;
}

int tidy_each_slice(struct tidy *t, uint64_t index, tidy_slice_fn *fn,
                    void *opaque, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t host = layout_host(l, t->l1[index]);
    uint64_t rest = l->l2_clusters << l->cluster_bits;
    bool large = rest >= HOLE_CHECK_MIN;

    while (rest) {
        uint64_t n = RHEA_MIN(rest, TIDY_BUFFER);
        bool hole = false;
        uint64_t run = n;
        int ret = 0;
        if (large)
            ret = rhea_storage_extent(t->storage, host, n, &hole, &run, err);
        if (hole && run >= n)
            memset(t->buffer, 0, n);
        else if (!ret)
            ret = tidy_read(t, t->buffer, n, host, err);
        if (!ret)
            ret = fn(t, opaque, host, t->buffer, n / sizeof(uint64_t), err);
        if (ret)
            return ret;
        host += n;
        rest -= n;
    }
    return 0;
}

/* Read a table of N pointers into *OUT, as values. */
static int scan_load_table(struct tidy *t, uint64_t host, uint64_t n,
                           uint64_t **out, struct rhea_error *err)
{
    free(*out);
    *out = calloc(n + 1, sizeof(uint64_t));
    if (!*out)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!n)
        return 0;
    int ret = tidy_read(t, *out, n * sizeof(uint64_t), host, err);
    for (uint64_t i = 0; !ret && i < n; i++)
        (*out)[i] = layout_get(&t->layout, &(*out)[i]);
    return ret;
}

static int scan_refcounts(struct tidy *t, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    if (!l->has_refcounts)
        return 0;

    int ret = scan_mark(t, l->reftable_offset, l->reftable_clusters, true, err);
    t->refblocks = (l->reftable_clusters << l->cluster_bits) / sizeof(uint64_t);
    if (!ret)
        ret = scan_load_table(t, l->reftable_offset, t->refblocks, &t->reftable,
                              err);
    for (uint64_t i = 0; !ret && i < t->refblocks; i++) {
        /* To moves, a refcount block is as good as data: no pointers. */
        if (t->reftable[i])
            ret = scan_mark(t, t->reftable[i], 1, false, err);
    }
    return ret;
}

static int scan_mapping(struct tidy *t, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    int ret = scan_mark(t, l->l1_offset, l->l1_clusters, true, err);
    for (uint64_t i = 0; !ret && i < l->l1_entries; i++) {
        if (!t->l1[i])
            continue;
        if (scan_is_foreign(l, t->l1[i]))
            return rhea_error_set(err, ENOTSUP, "shared tables");
        ret = scan_mark(t, layout_host(l, t->l1[i]), l->l2_clusters, true, err);
        if (!ret)
            ret = tidy_each_slice(t, i, scan_slice, &t->highest[i], err);
    }
    return ret;
}

int tidy_scan(struct tidy *t, struct rhea_error *err)
{
    const struct layout_ops *ops = t->layout.ops;
    uint64_t size;
    int ret = ops->load(&t->layout, t->storage, err);
    t->layout.ops = ops;
    if (!ret)
        ret = rhea_storage_size(t->storage, &size, err);
    if (ret)
        return ret;

    bitmap_finish(&t->used);
    bitmap_finish(&t->tables);
    t->n_moves = 0;
    t->data_moves = false;
    t->file_size = size;
    t->file_clusters = div_up(size, t->layout.cluster_size);
    if (!range_inside(t->layout.l1_offset >> t->layout.cluster_bits,
                      t->layout.l1_clusters, t->file_clusters) ||
        !range_inside(t->layout.reftable_offset >> t->layout.cluster_bits,
                      t->layout.reftable_clusters, t->file_clusters))
        return rhea_error_set(err, EINVAL,
                              "the image is damaged: a table lies beyond the "
                              "end of the file");
    ret = scan_load_table(t, t->layout.l1_offset, t->layout.l1_entries, &t->l1,
                          err);
    if (ret)
        return ret;

    free(t->highest);
    t->highest = calloc(t->layout.l1_entries + 1, sizeof(uint64_t));
    if (!t->highest)
        return rhea_error_set(err, ENOMEM, "out of memory");

    /* Behind the last cluster, room for every table to step aside, and once
     * more for those that lie across the end. */
    uint64_t room = t->file_clusters +
                    2 * (t->layout.l1_clusters + t->layout.reftable_clusters) +
                    t->layout.l2_clusters;
    for (uint64_t i = 0; i < t->layout.l1_entries; i++)
        room += t->l1[i] ? t->layout.l2_clusters : 0;
    ret = bitmap_init(&t->used, room, err);
    if (!ret)
        ret = bitmap_init(&t->tables, room, err);
    if (!ret)
        ret = scan_mark(t, 0, 1, true, err);
    if (!ret)
        ret = scan_mapping(t, err);
    if (!ret)
        ret = scan_refcounts(t, err);
    if (ret)
        return ret;
    t->n_used = bitmap_count(&t->used, 0, t->used.n_bits);
    t->end = bitmap_end(&t->used);
    t->n_final = tidy_counts_final(t, &t->shrinks_to);
    return 0;
}

uint64_t tidy_final_size(const struct tidy *t)
{
    return t->n_used << t->layout.cluster_bits;
}

int tidy_is_done(struct tidy *t, bool *done, struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(t->storage, &size, err);
    if (ret)
        return ret;
    *done = t->end <= t->n_used && size <= tidy_final_size(t);
    if (!*done)
        return 0;
    return tidy_counts_done(t, done, err);
}
