/* SPDX-License-Identifier: MIT */
#include "inplace/stage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define SLICE_MAX (UINT64_C(1) << 20) /* of an L2 table, in memory */
#define COPY_MAX ((size_t)1 << 20)
#define WRITEBACK (UINT64_C(8) << 20) /* the disk gets going after so much */

struct stager {
    const struct plan *p;
    struct source *src;
    const struct rhea_progress *progress;

    /* One slice of one L2 table. Runs come in guest order, so each slice is
     * filled once and then written. */
    uint8_t *slice;
    uint64_t slice_entries;
    uint64_t slice_at; /* guest cluster of its first entry */
    bool slice_used;

    uint64_t *l1;        /* host offsets, 0: no table */
    uint64_t next_l2;    /* host offset for the next L2 table */
    uint64_t next_data;  /* host offset for the next rewritten cluster */
    uint64_t next_blank; /* host offset for the next cluster of zeroes */
    uint64_t done;       /* guest bytes written, for progress */
    uint64_t waiting; /* where tables begin that the disk has not been given */
    uint8_t *buffer;  /* COPY_MAX */
    struct bitmap kept; /* while reserving */
};

static int stage_check_cancel(const struct stager *s, struct rhea_error *err)
{
    if (rhea_progress_cancelled(s->progress))
        return rhea_error_set(err, ECANCELED, "stopped as asked");
    return 0;
}

/* --- reserve ----------------------------------------------------------- */

static int stage_reserve_fill(void *opaque, const struct sweep_run *run,
                              struct rhea_error *err)
{
    struct stager *s = opaque;
    if (run->kind != SWEEP_FILL)
        return 0;
    uint64_t size = s->p->layout.cluster_size;
    uint64_t end = run->host + run->count * size;
    /* What lies past the end of the file is reserved with the tables. */
    end = RHEA_MIN(end, s->src->file_size);
    return rhea_storage_allocate(s->src->storage, run->host, end - run->host,
                                 err);
}

/* Where the target keeps what is there. */
static int stage_note_kept(void *opaque, const struct sweep_run *run,
                           struct rhea_error *err)
{
    struct stager *s = opaque;
    (void)err;
    if (run->kind != SWEEP_KEEP && run->kind != SWEEP_FILL)
        return 0;
    uint64_t first = run->host >> s->p->layout.cluster_bits;
    uint64_t end = RHEA_MIN(first + run->count, s->kept.n_bits);
    if (first < end)
        bitmap_set(&s->kept, first, end - first);
    return 0;
}

/* Everything else inside the source will take what tidying moves down: gaps,
 * but also its tables and compressed clusters, which may be holes in part. */
static int stage_reserve_places(struct stager *s, struct rhea_error *err)
{
    const struct plan *p = s->p;
    uint64_t size = p->layout.cluster_size, file = s->src->file_size;
    uint64_t limit = RHEA_MIN(RHEA_MIN(p->final, p->first), div_up(file, size));
    int ret = bitmap_init(&s->kept, limit, err);
    if (!ret)
        ret = plan_each_run(p, s->src, stage_note_kept, s, err);

    for (uint64_t i = 0; !ret && i < limit;) {
        i = bitmap_find(&s->kept, i, false);
        uint64_t end = RHEA_MIN(bitmap_find(&s->kept, i, true) * size, file);
        if (i < limit)
            ret = rhea_storage_allocate(s->src->storage, i * size,
                                        end - i * size, err);
        i = div_up(end, size);
    }
    bitmap_finish(&s->kept);
    return ret;
}

/* No write needs to make the file longer, then. */
static int stage_extend(struct source *src, uint64_t size,
                        struct rhea_error *err)
{
    uint64_t now;
    int ret = rhea_storage_size(src->storage, &now, err);
    if (!ret && now < size)
        ret = rhea_storage_truncate(src->storage, size, err);
    return ret;
}

int stage_reserve(const struct plan *p, struct source *src,
                  const struct rhea_progress *progress, struct rhea_error *err)
{
    struct stager s = {.p = p, .src = src, .progress = progress};
    uint64_t size = p->layout.cluster_size;
    uint64_t from = RHEA_MIN(p->first * size, src->file_size);
    uint64_t to = p->blank_at * size;

    rhea_progress_report(progress, "reserve", 0, 1);
    int ret = stage_reserve_places(&s, err);
    if (!ret && p->filled)
        ret = plan_each_run(p, src, stage_reserve_fill, &s, err);
    if (!ret)
        ret = rhea_storage_allocate(src->storage, from, to - from, err);
    /* Clusters of zeroes are holes of the file: they take no room. */
    if (!ret && p->slack)
        ret = rhea_storage_allocate(src->storage, p->end * size,
                                    p->slack * size, err);
    if (!ret)
        ret = stage_extend(src, (p->end + p->slack) * size, err);
    if (!ret)
        return 0;

    if (ret == -ENOSPC)
        rhea_error_prefix(err,
                          "no room for the %llu bytes that are needed "
                          "on the way",
                          (unsigned long long)p->report.extra);
    rhea_storage_truncate(src->storage, src->file_size, NULL);
    return ret;
}

/* --- guest data -------------------------------------------------------- */

/* Copy guest bytes to HOST. */
static int stage_copy(struct stager *s, uint64_t guest, uint64_t host,
                      uint64_t len, struct rhea_error *err)
{
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, COPY_MAX);
        int ret = stage_check_cancel(s, err);
        if (!ret)
            ret = source_read(s->src, guest, s->buffer, n, err);
        if (!ret)
            ret = rhea_storage_write(s->src->storage, s->buffer, n, host, err);
        if (ret)
            return ret;
        guest += n;
        host += n;
        len -= n;
        s->done += n;
        rhea_progress_report(s->progress, "rewrite", s->done,
                             s->p->report.rewritten + s->p->report.filled);
    }
    return 0;
}

/* Write what a kept cluster lacks. The source refers to none of the bytes
 * that change: they are subclusters which it does not have. */
static int stage_fill(struct stager *s, uint64_t guest, uint64_t host,
                      struct rhea_error *err)
{
    const struct rhea_format_ops *ops = s->src->format->ops;
    uint64_t size = s->p->layout.cluster_size;
    uint64_t disk = s->src->info.virtual_size;
    uint64_t inside = RHEA_MIN(size, disk - guest);

    for (uint64_t offset = 0; offset < inside;) {
        struct rhea_extent e;
        int ret =
            ops->map(s->src->format, guest + offset, inside - offset, &e, err);
        if (ret)
            return ret;
        uint64_t n = RHEA_MIN(e.length, inside - offset);
        if (e.kind != RHEA_EXTENT_DATA)
            ret = stage_copy(s, guest + offset, host + offset, n, err);
        if (ret)
            return ret;
        offset += n;
    }
    return 0;
}

/* --- tables ------------------------------------------------------------ */

static int stage_flush_slice(struct stager *s, struct rhea_error *err)
{
    if (!s->slice_used)
        return 0;

    const struct layout *l = &s->p->layout;
    uint64_t table = s->slice_at / l->l2_entries;
    uint64_t bytes = s->slice_entries * sizeof(uint64_t);
    uint64_t within = s->slice_at % l->l2_entries * sizeof(uint64_t);
    int ret = 0;

    if (!s->l1[table]) {
        uint64_t length = l->l2_clusters * l->cluster_size;
        s->l1[table] = s->next_l2;
        s->next_l2 += length;
        /* A table larger than a slice gets only the slices in use. */
        if (length > bytes)
            ret = rhea_storage_zero(s->src->storage, s->l1[table], length,
                                    false, err);
    }
    if (!ret)
        ret = rhea_storage_write(s->src->storage, s->slice, bytes,
                                 s->l1[table] + within, err);
    if (s->next_l2 - s->waiting >= WRITEBACK) {
        rhea_storage_writeback(s->src->storage, s->waiting,
                               s->next_l2 - s->waiting);
        s->waiting = s->next_l2;
    }
    memset(s->slice, 0, bytes);
    s->slice_used = false;
    return ret;
}

/* Make the slice that holds guest cluster CLUSTER current. */
static int stage_seek_slice(struct stager *s, uint64_t cluster,
                            struct rhea_error *err)
{
    uint64_t at = cluster - cluster % s->slice_entries;
    if (s->slice_used && s->slice_at == at)
        return 0;
    int ret = stage_flush_slice(s, err);
    if (!ret)
        ret = stage_check_cancel(s, err);
    s->slice_at = at;
    s->slice_used = true;
    return ret;
}

/* The inner loop of large images: the byte order is decided outside it. */
static void stage_put_run(const struct stager *s, uint64_t index,
                          uint64_t count, uint64_t value, uint64_t step)
{
    uint8_t *entries = s->slice + index * sizeof(uint64_t);
    if (s->p->layout.big_endian) {
        for (uint64_t i = 0; i < count; i++)
            store_be64(entries + i * sizeof(uint64_t), value + i * step);
    } else {
        for (uint64_t i = 0; i < count; i++)
            store_le64(entries + i * sizeof(uint64_t), value + i * step);
    }
}

static int stage_run(void *opaque, const struct sweep_run *run,
                     struct rhea_error *err)
{
    struct stager *s = opaque;
    const struct layout *l = &s->p->layout;
    uint64_t size = l->cluster_size;
    uint64_t host = run->host;
    int ret = 0;

    if (run->kind == SWEEP_REWRITE) {
        host = s->next_data;
        s->next_data += run->count * size;
        ret = stage_copy(s, run->cluster * size, host, run->count * size, err);
    } else if (run->kind == SWEEP_BLANK) {
        host = s->next_blank;
        s->next_blank += run->count * size;
    } else if (run->kind == SWEEP_FILL) {
        ret = stage_fill(s, run->cluster * size, host, err);
    }

    bool zero = run->kind == SWEEP_ZERO;
    for (uint64_t i = 0; !ret && i < run->count;) {
        uint64_t cluster = run->cluster + i;
        ret = stage_seek_slice(s, cluster, err);
        uint64_t index = cluster - s->slice_at;
        uint64_t n = RHEA_MIN(run->count - i, s->slice_entries - index);
        if (zero)
            stage_put_run(s, index, n, LAYOUT_ZERO_ENTRY, 0);
        else
            stage_put_run(s, index, n, (host + i * size) | l->entry_flags,
                          size);
        i += n;
    }
    return ret;
}

static int stage_write_l1(struct stager *s, struct rhea_error *err)
{
    const struct layout *l = &s->p->layout;
    uint64_t entries = l->l1_entries;
    uint64_t bytes = entries * sizeof(uint64_t);
    uint64_t length = l->l1_clusters * l->cluster_size;

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t host = s->l1[i];
        layout_put(l, &s->l1[i], host ? host | l->entry_flags : 0);
    }
    int ret = 0;
    if (bytes < length)
        ret = rhea_storage_zero(s->src->storage, l->l1_offset + bytes,
                                length - bytes, false, err);
    if (!ret && bytes)
        ret = rhea_storage_write(s->src->storage, s->l1, bytes, l->l1_offset,
                                 err);
    return ret;
}

/* Set the reference counts [0, count) of one block to 1. */
static void stage_count_ones(uint8_t *block, unsigned order, uint64_t count)
{
    if (order >= 3) {
        size_t width = (size_t)1 << (order - 3);
        for (uint64_t i = 0; i < count; i++)
            block[(i + 1) * width - 1] = 1; /* big-endian */
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        unsigned shift = (unsigned)(i << order) % 8;
        block[(i << order) / 8] |= (uint8_t)(1 << shift);
    }
}

/* Every cluster up to the end counts as used once: the source's tables and
 * whatever else it leaves behind are leaks until they are tidied away. */
static int stage_write_refcounts(struct stager *s, struct rhea_error *err)
{
    const struct plan *p = s->p;
    const struct layout *l = &p->layout;
    if (!l->has_refcounts)
        return 0;

    uint64_t size = l->cluster_size;
    uint64_t per_block = layout_refblock_entries(l);
    RHEA_AUTO_FREE uint8_t *block = calloc(1, size);
    RHEA_AUTO_FREE uint8_t *table = calloc(l->reftable_clusters, size);
    if (!block || !table)
        return rhea_error_set(err, ENOMEM, "out of memory");

    for (uint64_t i = 0; i < p->refblocks; i++) {
        uint64_t host = (p->refblocks_at + i) * size;
        uint64_t first = i * per_block;
        uint64_t count = p->end > first ? p->end - first : 0;
        if (i == 0 || count < per_block) {
            memset(block, 0, size);
            stage_count_ones(block, l->refcount_order,
                             RHEA_MIN(count, per_block));
        }
        int ret = rhea_storage_write(s->src->storage, block, size, host, err);
        if (ret)
            return ret;
        layout_put(l, table + i * sizeof(uint64_t), host);
    }
    return rhea_storage_write(s->src->storage, table,
                              l->reftable_clusters * size, l->reftable_offset,
                              err);
}

/* The backing file's name, where it stands outside the first sector. */
static int stage_write_name(const struct plan *p, struct source *src,
                            struct rhea_error *err)
{
    const struct layout *l = &p->layout;
    if (!p->name_moves || l->name_offset < SECTOR)
        return 0;
    return rhea_storage_write(src->storage, src->info.backing_file,
                              l->name_length, l->name_offset, err);
}

static int stage_write_all(struct stager *s, struct rhea_error *err)
{
    uint64_t size = s->p->layout.cluster_size;
    int ret = 0;
    if (s->p->blank)
        ret = rhea_storage_zero(s->src->storage, s->p->blank_at * size,
                                s->p->blank * size, true, err);
    if (!ret)
        ret = plan_each_run(s->p, s->src, stage_run, s, err);
    if (!ret)
        ret = stage_flush_slice(s, err);
    if (!ret)
        ret = stage_write_refcounts(s, err);
    if (!ret)
        ret = stage_write_l1(s, err);
    if (!ret)
        ret = stage_write_name(s->p, s->src, err);
    if (ret)
        return ret;

    if (s->next_l2 != s->p->rewritten_at * size ||
        s->next_data != s->p->l1_at * size || s->next_blank != s->p->end * size)
        return rhea_error_set(err, EIO,
                              "the image changed while it was converted");
    /* Tables that were read from a file cut short would look empty. */
    uint64_t now;
    ret = rhea_storage_size(s->src->storage, &now, err);
    if (!ret && now < (s->p->end + s->p->slack) * size)
        ret = rhea_error_set(err, EIO,
                             "the file was cut short while it was converted");
    return ret ? ret : rhea_storage_flush(s->src->storage, err);
}

int stage_write(const struct plan *p, struct source *src,
                const struct rhea_progress *progress, struct rhea_error *err)
{
    const struct layout *l = &p->layout;
    uint64_t table = l->l2_clusters * l->cluster_size;
    uint64_t slice = RHEA_MIN(table, SLICE_MAX);
    RHEA_AUTO_FREE uint8_t *memory = calloc(1, slice);
    RHEA_AUTO_FREE uint64_t *l1 = calloc(l->l1_entries + 1, sizeof(uint64_t));
    RHEA_AUTO_FREE uint8_t *buffer = malloc(COPY_MAX);
    if (!memory || !l1 || !buffer)
        return rhea_error_set(err, ENOMEM, "out of memory");

    struct stager s = {.p = p,
                       .src = src,
                       .progress = progress,
                       .slice = memory,
                       .slice_entries = slice / sizeof(uint64_t),
                       .l1 = l1,
                       .next_l2 = p->l2_at * l->cluster_size,
                       .waiting = p->l2_at * l->cluster_size,
                       .next_data = p->rewritten_at * l->cluster_size,
                       .next_blank = p->blank_at * l->cluster_size,
                       .buffer = buffer};
    rhea_progress_report(progress, "stage", 0, 1);
    return stage_write_all(&s, err);
}

/* --- commit ------------------------------------------------------------ */

/* The part of the name that stands in the first sector. */
static void stage_name_in_sector(const struct layout *l, const char *name,
                                 uint8_t sector[SECTOR])
{
    if (!l->name_length || l->name_offset >= SECTOR)
        return;
    size_t n = RHEA_MIN(l->name_length, SECTOR - l->name_offset);
    memcpy(sector + l->name_offset, name, n);
}

int stage_commit(const struct plan *p, struct source *src,
                 struct rhea_error *err)
{
    const struct layout *l = &p->layout;
    uint8_t sector[SECTOR] = {0};
    l->ops->header(l, sector);
    stage_name_in_sector(l, src->info.backing_file, sector);

    int ret = rhea_storage_write(src->storage, sector, SECTOR, 0, err);
    if (!ret)
        ret = rhea_storage_flush(src->storage, err);
    return ret;
}
