/* SPDX-License-Identifier: MIT */
#include "inplace/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "inplace/survey.h"

/* --- what would be lost ------------------------------------------------ */

static const struct {
    unsigned bit;
    const char *name;
} losses[] = {
    {RHEA_LOSS_SNAPSHOTS, "snapshots"},
    {RHEA_LOSS_BITMAPS, "bitmaps"},
    {RHEA_LOSS_EXTENSIONS, "extensions"},
    {RHEA_LOSS_BACKING_FORMAT, "backing-format"},
};

unsigned rhea_loss_find(const char *name)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(losses); i++) {
        if (!strcmp(losses[i].name, name))
            return losses[i].bit;
    }
    return 0;
}

const char *rhea_loss_name(unsigned bit)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(losses); i++) {
        if (losses[i].bit == bit)
            return losses[i].name;
    }
    return NULL;
}

/* What is lost and not accepted, gathered so that the user reads it once. */
struct refusal {
    unsigned accepted;
    char what[512], names[128];
};

static void plan_append(char *list, size_t size, const char *separator,
                        const char *text)
{
    size_t used = strlen(list);
    snprintf(list + used, size - used, "%s%s", used ? separator : "", text);
}

static void plan_lose(struct plan *p, struct refusal *r, unsigned bit,
                      const char *what)
{
    p->report.losses |= bit;
    if (r->accepted & bit)
        return;
    plan_append(r->what, sizeof(r->what), ", ", what);
    plan_append(r->names, sizeof(r->names), ",", rhea_loss_name(bit));
}

static void plan_lose_count(struct plan *p, struct refusal *r, unsigned bit,
                            uint32_t n, const char *what)
{
    char text[64];
    if (!n)
        return;
    snprintf(text, sizeof(text), "%" PRIu32 " %s%s", n, what,
             n == 1 ? "" : "s");
    plan_lose(p, r, bit, text);
}

static void plan_lose_backing_format(struct plan *p, const struct source *src,
                                     struct refusal *r)
{
    const char *format = src->info.backing_format;
    char what[256];
    if (!src->has_backing || !format || !strcmp(format, "raw") ||
        p->layout.names_format)
        return;

    switch (source_probe_backing(src)) {
    case SOURCE_BACKING_SAME:
        return;
    case SOURCE_BACKING_UNKNOWN:
        p->report.unverified_backing_format = true;
        return;
    case SOURCE_BACKING_DIFFERS:
        break;
    }
    snprintf(what, sizeof(what),
             "the statement that the backing file's format is '%.31s', which "
             "the file itself does not show",
             format);
    plan_lose(p, r, RHEA_LOSS_BACKING_FORMAT, what);
}

static int plan_check_losses(struct plan *p, const struct source *src,
                             const struct rhea_inplace_options *o,
                             struct rhea_error *err)
{
    const struct rhea_format_info *info = &src->info;
    struct refusal r = {.accepted = o->allow_loss};

    if (info->corrupt)
        return rhea_error_set(err, EINVAL,
                              "the image is marked corrupt; repair it first "
                              "with 'check -r all'");
    if (info->encrypted)
        return rhea_error_set(err, ENOTSUP,
                              "the image is encrypted, which %s cannot be",
                              p->layout.ops->name);
    if (info->external_data)
        return rhea_error_set(err, ENOTSUP,
                              "the image keeps its data in another file, "
                              "which %s cannot do",
                              p->layout.ops->name);

    p->report.snapshots = info->snapshots;
    p->report.bitmaps = info->bitmaps;
    plan_lose_count(p, &r, RHEA_LOSS_SNAPSHOTS, info->snapshots,
                    "internal snapshot");
    plan_lose_count(p, &r, RHEA_LOSS_BITMAPS, info->bitmaps,
                    "persistent bitmap");
    if (info->extensions)
        plan_lose(p, &r, RHEA_LOSS_EXTENSIONS,
                  "header extensions of unknown meaning");
    plan_lose_backing_format(p, src, &r);
    if (!r.what[0])
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          "this would be lost: %s; --allow-loss=%s accepts "
                          "that",
                          r.what, r.names);
}

/* --- what the source uses ---------------------------------------------- */

struct tracker {
    struct plan *p;
    const struct source *src;
    struct bitmap compressed; /* allocated when the first one is met */
};

static const char *plan_use_name(enum rhea_use use)
{
    switch (use) {
    case RHEA_USE_HEADER:
        return "header";
    case RHEA_USE_TABLE:
        return "table";
    case RHEA_USE_DATA:
        return "data cluster";
    case RHEA_USE_COMPRESSED:
        return "compressed cluster";
    case RHEA_USE_OTHER:
        break;
    }
    return "structure";
}

static int plan_track_compressed(struct tracker *t, uint64_t first,
                                 uint64_t count, bool *clash,
                                 struct rhea_error *err)
{
    struct plan *p = t->p;
    if (!t->compressed.words) {
        int ret = bitmap_init(&t->compressed, p->used.n_bits, err);
        if (ret)
            return ret;
    }
    for (uint64_t i = first; i < first + count; i++) {
        if (bitmap_get(&p->used, i) && !bitmap_get(&t->compressed, i))
            *clash = true;
    }
    bitmap_set(&t->compressed, first, count);
    bitmap_set(&p->used, first, count);
    return 0;
}

/* A reference of the source: inside the file, and not to a cluster that has
 * another use already. */
static int plan_track(void *opaque, enum rhea_use use, uint64_t host,
                      uint64_t length, struct rhea_error *err)
{
    struct tracker *t = opaque;
    struct plan *p = t->p;
    uint64_t size = t->src->file_size;
    bool clash = false;

    /* QEMU leaves the last cluster of a file short where the rest is zero. */
    if (host >= size || length > size - host + t->src->info.cluster_size - 1)
        return rhea_error_set(err, EINVAL,
                              "a %s at %" PRIu64 " lies beyond the end of the "
                              "file; the image is damaged",
                              plan_use_name(use), host);

    uint64_t first = host / p->unit;
    uint64_t count = div_up(host + length, p->unit) - first;
    if (use == RHEA_USE_COMPRESSED) {
        int ret = plan_track_compressed(t, first, count, &clash, err);
        if (ret)
            return ret;
    } else {
        clash = use != RHEA_USE_OTHER && bitmap_any(&p->used, first, count);
        bitmap_set(&p->used, first, count);
    }
    if (clash)
        return rhea_error_set(err, EINVAL,
                              "the %s at %" PRIu64 " is used twice; the image "
                              "is damaged",
                              plan_use_name(use), host);
    return 0;
}

static int plan_find_used(struct plan *p, struct source *src,
                          struct rhea_error *err)
{
    const struct rhea_format_info *info = &src->info;
    struct tracker t = {.p = p, .src = src};
    p->unit = RHEA_MIN(info->cluster_size, p->layout.cluster_size);

    /* One source cluster past the end, for a last cluster cut short. */
    uint64_t bytes;
    if (!add_u64(src->file_size,
                 2 * RHEA_MAX(info->cluster_size, p->layout.cluster_size),
                 &bytes) ||
        bytes > INT64_MAX)
        return rhea_error_set(err, EFBIG, "the file is too large");
    int ret = bitmap_init(&p->used, bytes / p->unit, err);
    if (!ret)
        ret = src->format->ops->walk(src->format, plan_track, &t, err);
    bitmap_finish(&t.compressed);
    if (ret)
        return ret;

    /* Parts that were not walked may lie anywhere in the file. */
    uint64_t end = bitmap_end(&p->used) * p->unit;
    if (info->snapshots || info->bitmaps || info->extensions)
        end = RHEA_MAX(end, src->file_size);
    p->first = div_up(RHEA_MAX(end, 1), p->layout.cluster_size);
    return 0;
}

/* --- what the target needs --------------------------------------------- */

struct counter {
    struct plan *p;
    struct source *src;
    uint64_t next_l2; /* the first L2 index that is not counted yet */
};

static int plan_count(void *opaque, const struct sweep_run *run,
                      struct rhea_error *err)
{
    struct counter *c = opaque;
    struct plan *p = c->p;
    uint64_t first_l2 = run->cluster / p->layout.l2_entries;
    uint64_t last_l2 = (run->cluster + run->count - 1) / p->layout.l2_entries;

    first_l2 = RHEA_MAX(first_l2, c->next_l2);
    if (last_l2 >= first_l2) {
        p->l2_tables += last_l2 - first_l2 + 1;
        c->next_l2 = last_l2 + 1;
    }

    switch (run->kind) {
    case SWEEP_ZERO:
        p->zeroes += run->count;
        return 0;
    case SWEEP_REWRITE:
        p->rewritten += run->count;
        return 0;
    case SWEEP_BLANK:
        p->blank += run->count;
        return 0;
    case SWEEP_FILL:
        p->filled += run->count;
        break;
    case SWEEP_KEEP:
        p->kept += run->count;
        break;
    }

    /* What the target is to keep, the source must have shown to be its own. */
    uint64_t units = run->count * (p->layout.cluster_size / p->unit);
    uint64_t unit = run->host / p->unit;
    if (!range_inside(unit, units, p->used.n_bits) ||
        bitmap_count(&p->used, unit, units) != units)
        return rhea_error_set(err, EIO,
                              "the map and the tables of the image disagree "
                              "about offset %" PRIu64,
                              run->host);
    return 0;
}

/* The clusters in use when all is done. */
static uint64_t plan_final(const struct plan *p, uint64_t reftable)
{
    const struct layout *l = &p->layout;
    uint64_t base = 1 + p->kept + p->filled + p->rewritten + p->blank +
                    p->l2_tables * l->l2_clusters + l->l1_clusters;
    /* As tidying does it: from what was staged down to what counts itself. A
     * block less might do where it counts nothing but itself. */
    uint64_t counts = p->refblocks + reftable;
    while (l->has_refcounts) {
        uint64_t blocks = layout_refblocks(l, base + counts);
        uint64_t n = blocks + layout_reftable_clusters(l, blocks);
        if (n >= counts)
            break;
        counts = n;
    }
    return base + counts;
}

/* Room behind the end for tables that step aside (tidy.h). REFTABLE: its
 * clusters. */
static uint64_t plan_slack(const struct plan *p, uint64_t reftable)
{
    const struct layout *l = &p->layout;
    uint64_t count = l->l2_clusters;
    if (count == 1)
        return (l->l1_clusters > 1 ? l->l1_clusters : 0) +
               (reftable > 1 ? reftable : 0);

    uint64_t below = p->final > p->first ? (p->final - p->first) / count : 0;
    below = RHEA_MIN(below, p->l2_tables);
    uint64_t past = p->l2_tables - below;
    if (p->l1_at + l->l1_clusters > p->final)
        past++;
    else
        below++;
    return layout_aside(count, past, below, p->final - 1 - below * count);
}

/* Pure: where everything goes, from the counts and `first`. */
static void plan_place(struct plan *p)
{
    const struct layout *l = &p->layout;
    uint64_t reftable = 0;

    p->refblocks = 0;
    p->final = plan_final(p, 0);
    p->l2_at = p->first;
    p->rewritten_at = p->l2_at + p->l2_tables * l->l2_clusters;
    p->l1_at = p->rewritten_at + p->rewritten;
    p->reftable_at = p->l1_at + l->l1_clusters;
    for (;;) {
        p->refblocks_at = p->reftable_at + reftable;
        p->blank_at = p->refblocks_at + p->refblocks;
        p->end = p->blank_at + p->blank;
        p->slack = plan_slack(p, reftable);
        if (!l->has_refcounts)
            break;
        /* More blocks may need more blocks; this only grows, and settles. */
        uint64_t blocks = layout_refblocks(l, p->end + p->slack);
        uint64_t table = layout_reftable_clusters(l, blocks);
        if (blocks == p->refblocks && table == reftable)
            break;
        p->refblocks = blocks;
        reftable = table;
    }
    p->final = plan_final(p, reftable);

    p->layout.l1_offset = p->l1_at * l->cluster_size;
    p->layout.reftable_offset = p->reftable_at * l->cluster_size;
    p->layout.reftable_clusters = reftable;
}

/* --- the backing file's name ------------------------------------------- */

/*
 * The name must stand in the first cluster of both images, and may be put
 * there before the commit only where the source has nothing. Mostly the
 * target can refer to the source's own copy.
 */
static int plan_place_name(struct plan *p, const struct source *src,
                           struct rhea_error *err)
{
    struct layout *l = &p->layout;
    if (!src->has_backing)
        return 0;

    size_t length = strlen(src->info.backing_file);
    if (length > LAYOUT_NAME_MAX)
        return rhea_error_set(err, ENOTSUP,
                              "the backing file's name has %zu bytes; %s can "
                              "hold %d",
                              length, l->ops->name, LAYOUT_NAME_MAX);
    uint64_t room = RHEA_MIN(l->cluster_size, src->info.cluster_size);
    uint64_t old = src->info.backing_file_offset;
    l->name_length = (uint32_t)length;
    uint64_t header = l->ops->header_length(l);

    if (old >= header && old + length <= room) {
        l->name_offset = old;
        return 0;
    }
    p->name_moves = true;
    if (header + length <= SECTOR) {
        l->name_offset = header;
        return 0;
    }
    /* Behind the first sector only a QED header is sure to have nothing but
     * the name; a QCOW2 one may have extensions there. */
    uint64_t after = align_up(RHEA_MAX(old + length, SECTOR), 8);
    if (strcmp(src->format->ops->name, "qed"))
        after = room;
    else if (old >= SECTOR + length)
        after = SECTOR;
    l->name_offset = after;
    if (after + length > room)
        return rhea_error_set(err, ENOTSUP,
                              "the backing file's name does not fit into a "
                              "%s header of %" PRIu64 " bytes",
                              l->ops->name, l->cluster_size);
    return 0;
}

/* --- the report -------------------------------------------------------- */

static void plan_fill_report(struct plan *p, const struct source *src)
{
    const struct layout *l = &p->layout;
    struct rhea_inplace_plan *r = &p->report;
    uint64_t size = l->cluster_size;
    uint64_t tables = p->blank_at - p->first - p->rewritten;
    uint64_t gaps = p->first - RHEA_MIN(p->first, 1 + p->kept + p->filled);

    r->action = RHEA_INPLACE_CONVERT;
    r->source = src->format->ops->name;
    r->target = l->ops->name;
    r->virtual_size = l->virtual_size;
    r->source_cluster_size = src->info.cluster_size;
    r->target_cluster_size = size;
    r->file_size = src->file_size;
    r->final_file_size = p->final * size;
    r->kept = (p->kept + p->filled) * size;
    r->rewritten = p->rewritten * size;
    r->filled = p->filled * size;
    r->blank = p->blank * size;
    r->tables = tables * size;
    /* Each gap takes one cluster of what lies behind; making room for tables
     * of several clusters moves others once more. */
    r->moved = RHEA_MIN(gaps, p->final) * size;
    if (p->slack)
        r->moved += r->tables;
    /* Tables are staged, step aside, and find their place; every move changes
     * a sector of a table, and each round some counts and the header. */
    uint64_t round = p->refblocks * size + SECTOR;
    r->written = r->rewritten + r->filled + 2 * r->tables + p->slack * size +
                 r->moved + r->moved / size * SECTOR + 8 * round;
    uint64_t peak = (p->end + p->slack) * size;
    r->extra = peak > src->file_size ? peak - src->file_size : 0;
    if (l->has_refcounts)
        snprintf(r->details, sizeof(r->details),
                 "compat=%s cluster_size=%" PRIu64 " refcount_bits=%d "
                 "lazy_refcounts=%s",
                 l->version == 2 ? "0.10" : "1.1", size, 1 << l->refcount_order,
                 l->lazy_refcounts ? "on" : "off");
    else
        snprintf(r->details, sizeof(r->details),
                 "cluster_size=%" PRIu64 " table_size=%" PRIu64, size,
                 l->l2_clusters);
}

int plan_make(struct plan *p, struct source *src,
              const struct layout_ops *target,
              const struct rhea_inplace_options *options,
              struct rhea_error *err)
{
    *p = (struct plan){.layout = {.ops = target}, .runs_complete = true};
    const struct layout_request request = {
        .virtual_size = src->info.virtual_size,
        .cluster_size = src->info.cluster_size,
        .backing_format = src->has_backing ? src->info.backing_format : NULL,
        .options = options->options,
        .n_options = options->n_options,
    };

    struct survey survey;
    int ret = target->choose(&p->layout, &request, err);
    /*
     * QEMU 7.2 and 8.2 write part of a QED zero cluster by filling the rest
     * from the backing file, so what was zero changes. Where there is a
     * backing file, zeroes get clusters of their own.
     */
    if (!ret && src->has_backing && target == &layout_qed)
        p->layout.has_zero = false;
    if (!ret)
        ret = plan_check_losses(p, src, options, err);
    if (ret)
        return ret;
    survey_begin(&survey, p, src);
    ret = plan_find_used(p, src, err);
    if (!ret)
        ret = plan_place_name(p, src, err);
    ret = survey_end(&survey, ret, err);
    if (ret)
        return ret;

    struct counter c = {.p = p, .src = src};
    ret = plan_each_run(p, src, plan_count, &c, err);
    if (ret)
        return ret;
    plan_place(p);
    if (p->end + p->slack > (uint64_t)INT64_MAX / p->layout.cluster_size)
        return rhea_error_set(err, EFBIG, "the file would become too large");
    plan_fill_report(p, src);
    return 0;
}

void plan_finish(struct plan *p)
{
    bitmap_finish(&p->used);
    free(p->runs);
    p->runs = NULL;
}
