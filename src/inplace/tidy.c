/* SPDX-License-Identifier: MIT */
#include "inplace/tidy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

/* Rounds that may pass without fewer clusters being left: a table steps aside,
 * a window is cleared, surplus counts go. More, besides those that do as much
 * as a round can, means that we do not get on. */
#define IDLE_ROUNDS_MAX 8

int tidy_init(struct tidy *t, struct rhea_storage *storage,
              const struct layout_ops *ops,
              const struct rhea_progress *progress, struct rhea_error *err)
{
    *t = (struct tidy){
        .storage = storage, .progress = progress, .layout = {.ops = ops}};
    t->buffer = malloc(TIDY_BUFFER);
    if (!t->buffer)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return 0;
}

void tidy_finish(struct tidy *t)
{
    bitmap_finish(&t->used);
    bitmap_finish(&t->tables);
    free(t->l1);
    free(t->highest);
    free(t->reftable);
    free(t->moves);
    free(t->buffer);
    *t = (struct tidy){0};
}

int tidy_read(struct tidy *t, void *buf, size_t len, uint64_t offset,
              struct rhea_error *err)
{
    size_t inside = 0;
    int ret = 0;
    if (offset < t->file_size)
        inside = (size_t)RHEA_MIN(len, t->file_size - offset);
    if (inside)
        ret = rhea_storage_read(t->storage, buf, inside, offset, err);
    memset((uint8_t *)buf + inside, 0, len - inside);
    return ret;
}

int tidy_write(struct tidy *t, const void *buf, size_t len, uint64_t offset,
               struct rhea_error *err)
{
    int ret = rhea_storage_write(t->storage, buf, len, offset, err);
    if (!ret)
        t->file_size = RHEA_MAX(t->file_size, offset + len);
    return ret;
}

int tidy_zero(struct tidy *t, uint64_t offset, uint64_t len, bool punch,
              struct rhea_error *err)
{
    int ret = rhea_storage_zero(t->storage, offset, len, punch, err);
    if (!ret)
        t->file_size = RHEA_MAX(t->file_size, offset + len);
    return ret;
}

/*
 * A QCOW2 file may end inside its last cluster, what is missing being zero;
 * QEMU's own often do, and a file that was converted there and back should not
 * have grown by that. Its L1 table is kept whole, and some of the cluster.
 */
static int tidy_short_end(struct tidy *t, uint64_t *end, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t last = *end - l->cluster_size;
    uint64_t l1_end = l->l1_offset + l->l1_entries * sizeof(uint64_t);
    uint64_t least = last + SECTOR;
    if (l->l1_offset + (l->l1_clusters << l->cluster_bits) == *end)
        least = RHEA_MAX(l1_end, last + 1);

    RHEA_AUTO_FREE uint8_t *bytes = malloc(l->cluster_size);
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = tidy_read(t, bytes, l->cluster_size, last, err);
    uint64_t n = l->cluster_size;
    while (!ret && n && !bytes[n - 1])
        n--;
    if (!ret)
        *end = RHEA_MAX(least, last + align_up(n, SECTOR));
    if (!ret && last + n <= least)
        *end = least;
    return ret;
}

static int tidy_cut(struct tidy *t, struct rhea_error *err)
{
    uint64_t size, end = tidy_final_size(t);
    int ret = rhea_storage_size(t->storage, &size, err);
    if (ret || size <= end)
        return ret;
    if (t->layout.has_refcounts)
        ret = tidy_short_end(t, &end, err);
    if (!ret)
        ret = rhea_storage_truncate(t->storage, end, err);
    if (!ret)
        ret = rhea_storage_flush(t->storage, err);
    return ret;
}

/* Rounds until nothing is left past the end. */
static int tidy_rounds(struct tidy *t, struct rhea_error *err)
{
    uint64_t fewest = UINT64_MAX, idle = 0;
    for (;;) {
        bool again = false;
        int ret = 0;
        uint64_t left = tidy_left(t);
        idle = left < fewest ? 0 : idle + 1;
        fewest = RHEA_MIN(fewest, left);
        if (idle > IDLE_ROUNDS_MAX + t->n_used / TIDY_MOVES_MAX)
            return rhea_error_set(err, EBUSY,
                                  "the last clusters of the image cannot be "
                                  "moved");

        if (left) {
            again = true;
            ret = tidy_choose(t, err);
            if (!ret)
                ret = tidy_apply(t, err);
        } else if (t->layout.has_refcounts) {
            ret = tidy_clear_counts(t, &again, err);
            /* If so, fewer are in use, and others of them lie past the end. */
            fewest = UINT64_MAX;
        }
        if (ret || !again)
            return ret;
    }
}

/* The cut cannot be taken back: look at every pointer before it. */
static int tidy_check_end(const struct tidy *t, struct rhea_error *err)
{
    const struct layout *l = &t->layout;
    uint64_t end = t->n_used << l->cluster_bits;
    uint64_t l2 = l->l2_clusters << l->cluster_bits;
    bool inside =
        range_inside(l->l1_offset, l->l1_clusters << l->cluster_bits, end) &&
        range_inside(l->reftable_offset,
                     l->reftable_clusters << l->cluster_bits, end);
    for (uint64_t i = 0; inside && i < l->l1_entries; i++)
        inside = t->highest[i] < end &&
                 (!t->l1[i] || range_inside(layout_host(l, t->l1[i]), l2, end));
    for (uint64_t i = 0; inside && i < t->refblocks; i++)
        inside = t->reftable[i] < end;
    if (!inside)
        return rhea_error_set(err, EIO,
                              "some clusters are still in use past the end");
    return 0;
}

int tidy_run(struct tidy *t, struct rhea_error *err)
{
    int ret = tidy_scan(t, err);
    if (!ret)
        ret = tidy_rounds(t, err);
    if (!ret)
        ret = tidy_check_end(t, err);
    if (!ret)
        ret = tidy_cut(t, err);
    return ret;
}
