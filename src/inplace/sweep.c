/* SPDX-License-Identifier: MIT */
/*
 * Turns the source's extents into what each target cluster needs. Long runs of
 * whole clusters pass through in one step, so that the cost is that of the
 * source's map; only where an extent is no whole target cluster (subclusters,
 * a target with larger clusters) is a cluster put together piece by piece.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "inplace/source.h"

struct sweeper {
    struct source *src;
    const struct layout *target;
    sweep_fn *fn;
    void *opaque;
    uint64_t size; /* of the disk */
    bool find_holes;
};

static int sweep_emit(struct sweeper *s, int kind, uint64_t cluster,
                      uint64_t count, uint64_t host, struct rhea_error *err)
{
    const struct sweep_run run = {
        .kind = kind, .cluster = cluster, .count = count, .host = host};
    return s->fn(s->opaque, &run, err);
}

/* Zeroes for a target that has no zero clusters: leave them out where nothing
 * shows through, else write them. */
static int sweep_zero(struct sweeper *s, uint64_t cluster, uint64_t count,
                      struct rhea_error *err)
{
    if (s->target->has_zero)
        return sweep_emit(s, SWEEP_ZERO, cluster, count, 0, err);
    if (!s->src->has_backing)
        return 0;
    return sweep_emit(s, SWEEP_BLANK, cluster, count, 0, err);
}

/*
 * Data that stays. Over a backing file, QED images have clusters of zeroes
 * that were made to hide it (see plan_make): where such a cluster is a hole of
 * the file, it becomes a zero cluster again.
 */
static int sweep_data(struct sweeper *s, uint64_t cluster, uint64_t count,
                      uint64_t host, struct rhea_error *err)
{
    uint64_t size = s->target->cluster_size;
    if (!s->find_holes)
        return sweep_emit(s, SWEEP_KEEP, cluster, count, host, err);

    while (count) {
        bool hole;
        uint64_t run, left = RHEA_MIN(count * size, s->src->file_size - host);
        int ret =
            rhea_storage_extent(s->src->storage, host, left, &hole, &run, err);
        if (ret)
            return ret;
        uint64_t n = hole ? run / size : div_up(run, size);
        if (hole && n)
            ret = sweep_zero(s, cluster, n, err);
        else
            ret = sweep_emit(s, SWEEP_KEEP, cluster, n = RHEA_MAX(n, 1), host,
                             err);
        if (ret)
            return ret;
        cluster += n;
        count -= n;
        host += n * size;
    }
    return 0;
}

/* A run that covers COUNT whole target clusters. */
static int sweep_whole(struct sweeper *s, uint64_t cluster, uint64_t count,
                       const struct rhea_extent *e, struct rhea_error *err)
{
    switch (e->kind) {
    case RHEA_EXTENT_UNALLOCATED:
        return 0;
    case RHEA_EXTENT_ZERO:
        return sweep_zero(s, cluster, count, err);
    case RHEA_EXTENT_DATA:
        if (is_aligned(e->host, s->target->cluster_size) && e->host)
            return sweep_data(s, cluster, count, e->host, err);
        break;
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        break;
    }
    return sweep_emit(s, SWEEP_REWRITE, cluster, count, 0, err);
}

/* What the pieces of one target cluster have in common. */
struct pieces {
    bool data, zero, unallocated, compressed;
    bool one_host; /* all pieces lie in [host, host + cluster size) */
    uint64_t host;
};

static void sweep_note(struct pieces *p, const struct rhea_extent *e,
                       uint64_t offset)
{
    p->data |= e->kind == RHEA_EXTENT_DATA;
    p->zero |= e->kind == RHEA_EXTENT_ZERO;
    p->unallocated |= e->kind == RHEA_EXTENT_UNALLOCATED;
    p->compressed |=
        e->kind == RHEA_EXTENT_COMPRESSED || e->kind == RHEA_EXTENT_ENCRYPTED;

    bool has_host = e->kind == RHEA_EXTENT_DATA ||
                    (e->has_host && e->kind != RHEA_EXTENT_COMPRESSED);
    if (!has_host || e->host < offset)
        p->one_host = false;
    else if (!offset)
        p->host = e->host;
    else if (e->host - offset != p->host)
        p->one_host = false;
}

/* One target cluster that no single extent covers; LEN bytes of it are on the
 * disk. */
static int sweep_pieces(struct sweeper *s, uint64_t guest, uint64_t len,
                        struct rhea_error *err)
{
    struct rhea_format *f = s->src->format;
    struct pieces p = {.one_host = true};
    for (uint64_t offset = 0; offset < len;) {
        struct rhea_extent e;
        int ret = f->ops->map(f, guest + offset, len - offset, &e, err);
        if (ret)
            return ret;
        sweep_note(&p, &e, offset);
        offset += RHEA_MIN(e.length, len - offset);
    }

    uint64_t size = s->target->cluster_size;
    uint64_t cluster = guest / size;
    uint64_t source_cluster = s->src->info.cluster_size;
    /* At the end of the disk the host range must still be all ours. */
    if (align_up(len, source_cluster) < size && source_cluster < size)
        p.one_host = false;
    if (!is_aligned(p.host, size) || !p.host)
        p.one_host = false;

    if (!p.data && !p.compressed && !(p.unallocated && s->src->has_backing))
        return p.zero ? sweep_zero(s, cluster, 1, err) : 0;
    if (!p.data && !p.compressed && !p.zero)
        return 0;
    if (p.one_host && !p.compressed)
        return sweep_emit(s, p.zero || p.unallocated ? SWEEP_FILL : SWEEP_KEEP,
                          cluster, 1, p.host, err);
    return sweep_emit(s, SWEEP_REWRITE, cluster, 1, 0, err);
}

int sweep(struct source *src, const struct layout *target, sweep_fn *fn,
          void *opaque, struct rhea_error *err)
{
    struct sweeper s = {.src = src,
                        .target = target,
                        .fn = fn,
                        .opaque = opaque,
                        .size = src->info.virtual_size,
                        .find_holes = src->has_backing && target->has_zero};
    uint64_t unit = target->cluster_size;

    for (uint64_t guest = 0; guest < s.size;) {
        struct rhea_extent e;
        uint64_t rest = s.size - guest;
        if (atomic_load_explicit(&src->stop_sweep, memory_order_relaxed))
            return -ECANCELED;
        int ret = src->format->ops->map(src->format, guest, rest, &e, err);
        if (ret)
            return ret;
        if (!e.length || e.length > rest)
            return rhea_error_set(
                err, EIO, "the map of the image is broken at %" PRIu64, guest);

        /* The last cluster counts as whole if the source's covers it. */
        bool to_end = e.length == rest && unit <= src->info.cluster_size;
        uint64_t count = to_end ? div_up(e.length, unit) : e.length / unit;
        if (count) {
            ret = sweep_whole(&s, guest / unit, count, &e, err);
            guest += count * unit;
        } else {
            ret = sweep_pieces(&s, guest, RHEA_MIN(unit, rest), err);
            guest += RHEA_MIN(unit, rest);
        }
        if (ret)
            return ret;
    }
    return 0;
}
