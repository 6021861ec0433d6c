/* SPDX-License-Identifier: MIT */
/*
 * The whole conversion: see docs/in-place.md for the crash model and the
 * argument, stage.h and tidy.h for the order of writes.
 */
#include <rhea/inplace.h>

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "inplace/plan.h"
#include "inplace/stage.h"
#include "inplace/tidy.h"

struct conversion {
    struct rhea_storage *storage;
    const char *filename;
    const struct rhea_inplace_options *options;
    const struct layout_ops *target;
    struct rhea_inplace_plan *plan; /* the caller's, or our own */
    enum rhea_inplace_outcome outcome;
};

static void inplace_announce(const struct conversion *c,
                             const struct rhea_inplace_plan *plan)
{
    *c->plan = *plan;
    if (c->options->planned)
        c->options->planned(c->options->opaque, plan);
}

/* --- the file has the target's format already --------------------------- */

static int inplace_finish_plan(struct tidy *t, struct rhea_inplace_plan *plan,
                               struct rhea_error *err)
{
    bool done = true;
    uint64_t size;
    int ret = tidy_is_done(t, &done, err);
    if (!ret)
        ret = rhea_storage_size(t->storage, &size, err);
    if (ret)
        return ret;

    uint64_t left = tidy_left(t);
    uint64_t peak = (t->end + tidy_aside(t)) * t->layout.cluster_size;
    plan->action = done ? RHEA_INPLACE_NOTHING : RHEA_INPLACE_FINISH;
    plan->virtual_size = t->layout.virtual_size;
    plan->target_cluster_size = t->layout.cluster_size;
    plan->source_cluster_size = t->layout.cluster_size;
    plan->file_size = size;
    uint64_t final = t->n_final + t->shrinks_to;
    plan->final_file_size = RHEA_MIN(size, final * t->layout.cluster_size);
    plan->moved = 2 * left * t->layout.cluster_size;
    plan->written = done ? 0 : plan->moved + SECTOR;
    plan->extra = left && peak > size ? peak - size : 0;
    return 0;
}

/* Whether it is a sound image at all, as far as its header goes. */
static int inplace_check_opens(const struct conversion *c,
                               const struct rhea_format_ops *format,
                               struct rhea_error *err)
{
    struct rhea_format *f;
    int ret =
        rhea_format_open_over(format, &f, c->storage, RHEA_FORMAT_NO_IO, err);
    return ret ? ret : format->close(f, err);
}

static int inplace_finish(struct conversion *c,
                          const struct rhea_format_ops *format,
                          struct rhea_error *err)
{
    struct rhea_inplace_plan plan = {.action = RHEA_INPLACE_NOTHING,
                                     .source = c->target->name,
                                     .target = c->target->name};
    struct tidy t;
    struct rhea_error scan_err;
    int ret = inplace_check_opens(c, format, err);
    if (ret)
        return ret;
    ret = tidy_init(&t, c->storage, c->target, c->options->progress, err);
    if (ret)
        return ret;

    ret = tidy_scan(&t, &scan_err);
    if (ret == -ENOTSUP) {
        /* Not what we write, so there is nothing of ours to finish. */
        ret = rhea_storage_size(c->storage, &plan.file_size, err);
        plan.final_file_size = plan.file_size;
    } else if (ret) {
        if (err)
            *err = scan_err;
    } else {
        ret = inplace_finish_plan(&t, &plan, err);
    }
    if (!ret) {
        inplace_announce(c, &plan);
        c->outcome = RHEA_INPLACE_DONE;
        if (plan.action == RHEA_INPLACE_FINISH && !c->options->dry_run) {
            c->outcome = RHEA_INPLACE_TARGET;
            ret = tidy_run(&t, err);
        }
    }
    if (!ret)
        c->outcome = RHEA_INPLACE_DONE;
    tidy_finish(&t);
    return ret;
}

/* --- the file has the source's format ------------------------------------ */

static int inplace_tidy(struct conversion *c, struct rhea_error *err)
{
    struct tidy t;
    int ret = tidy_init(&t, c->storage, c->target, c->options->progress, err);
    if (!ret)
        ret = tidy_run(&t, err);
    tidy_finish(&t);
    return ret;
}

static int inplace_switch(struct conversion *c, const struct plan *p,
                          struct source *src, struct rhea_error *err)
{
    const struct rhea_progress *progress = c->options->progress;
    int ret = stage_reserve(p, src, progress, err);
    if (ret) {
        /* Giving back what was reserved may have failed as well. */
        uint64_t size;
        if (rhea_storage_size(c->storage, &size, NULL) ||
            size != src->file_size)
            c->outcome = RHEA_INPLACE_SOURCE;
        return ret;
    }

    c->outcome = RHEA_INPLACE_SOURCE;
    ret = stage_write(p, src, progress, err);
    if (!ret && rhea_progress_cancelled(progress))
        ret = rhea_error_set(err, ECANCELED, "stopped as asked");
    if (ret) {
        /* Nothing refers to what lies past the old end. */
        rhea_storage_truncate(c->storage, src->file_size, NULL);
        return ret;
    }

    c->outcome = RHEA_INPLACE_EITHER;
    ret = stage_commit(p, src, err);
    if (!ret)
        c->outcome = RHEA_INPLACE_TARGET;
    return ret;
}

static int inplace_refuse_format(const struct rhea_format_ops *format,
                                 struct rhea_error *err)
{
    return rhea_error_set(err, ENOTSUP,
                          "%s images have no clusters that could stay in "
                          "place; use 'convert'",
                          format->name);
}

static int inplace_convert_source(struct conversion *c,
                                  const struct rhea_format_ops *format,
                                  struct rhea_error *err)
{
    struct source src;
    struct plan p = {0};
    int ret = source_init(&src, c->storage, c->filename, format, err);
    if (!ret && !format->walk)
        ret = inplace_refuse_format(format, err);
    if (!ret)
        ret = plan_make(&p, &src, c->target, c->options, err);
    if (!ret) {
        inplace_announce(c, &p.report);
        if (!c->options->dry_run)
            ret = inplace_switch(c, &p, &src, err);
    }
    /* The source's format object must not outlive its format. */
    source_finish(&src);
    plan_finish(&p);
    if (ret || c->options->dry_run)
        return ret;

    ret = inplace_tidy(c, err);
    if (!ret)
        c->outcome = RHEA_INPLACE_DONE;
    return ret;
}

/* Which format the file has now: the source's or already the target's. */
static int inplace_identify(const struct conversion *c,
                            const struct rhea_format_ops **format,
                            struct rhea_error *err)
{
    const struct rhea_inplace_options *o = c->options;
    const struct rhea_format_ops *stated = NULL;
    uint8_t head[4096];
    uint64_t size;
    if (o->source_format) {
        stated = rhea_format_find(o->source_format);
        if (!stated)
            return rhea_error_set(err, EINVAL, "unknown format '%s'",
                                  o->source_format);
        /* Whatever a raw disk begins with, it is the guest's. */
        if (!stated->walk)
            return inplace_refuse_format(stated, err);
    }
    int ret = rhea_storage_size(c->storage, &size, err);
    if (!ret)
        ret = rhea_storage_read_padded(c->storage, head, sizeof(head), 0, err);
    if (ret)
        return ret;

    size_t len = (size_t)RHEA_MIN(size, sizeof(head));
    const struct rhea_format_ops *found = rhea_format_probe(head, len);
    *format = found;
    if (stated && found != stated && strcmp(found->name, c->target->name))
        return rhea_error_set(err, EINVAL, "the file is not a %s image",
                              stated->name);
    return 0;
}

static int inplace_convert(struct conversion *c, struct rhea_error *err)
{
    const struct rhea_format_ops *format = NULL;
    const char *name = c->options->target_format;
    c->target = name ? layout_find(name) : NULL;
    if (!c->target)
        return rhea_error_set(err, EINVAL,
                              "images cannot be converted to '%s' in place; "
                              "the formats are qcow2 and qed",
                              name ? name : "");

    int ret = inplace_identify(c, &format, err);
    if (ret)
        return ret;
    if (!strcmp(format->name, c->target->name))
        return inplace_finish(c, format, err);
    return inplace_convert_source(c, format, err);
}

int rhea_inplace_convert_storage(struct rhea_storage *storage,
                                 const char *filename,
                                 const struct rhea_inplace_options *options,
                                 struct rhea_inplace_plan *plan,
                                 enum rhea_inplace_outcome *outcome,
                                 struct rhea_error *err)
{
    struct rhea_inplace_plan own = {0};
    struct conversion c = {.storage = storage,
                           .filename = filename,
                           .options = options,
                           .plan = plan ? plan : &own,
                           .outcome = RHEA_INPLACE_UNTOUCHED};
    int ret = inplace_convert(&c, err);
    if (outcome)
        *outcome = c.outcome;
    return ret;
}

int rhea_inplace_convert(const char *filename,
                         const struct rhea_inplace_options *options,
                         struct rhea_inplace_plan *plan,
                         enum rhea_inplace_outcome *outcome,
                         struct rhea_error *err)
{
    struct rhea_storage *storage = NULL;
    unsigned flags = options->dry_run ? 0 : RHEA_FILE_WRITE;
    if (outcome)
        *outcome = RHEA_INPLACE_UNTOUCHED;

    int ret = rhea_file_open(&storage, filename, flags, err);
    if (ret)
        return ret;
    if (!rhea_file_is_regular(storage))
        ret = rhea_error_set(err, ENOTSUP,
                             "not a regular file; only a file can grow and "
                             "shrink as this needs");
    if (!ret)
        ret = options->dry_run
                  ? rhea_storage_lock(storage, RHEA_LOCK_READ,
                                      RHEA_LOCK_READ | RHEA_LOCK_UNCHANGED, err)
                  : rhea_storage_lock(storage, RHEA_LOCK_ALL, 0, err);
    if (!ret)
        ret = rhea_inplace_convert_storage(storage, filename, options, plan,
                                           outcome, err);
    rhea_storage_close(storage);
    return ret;
}
