/* SPDX-License-Identifier: MIT */
/*
 * Options that say how an image is worked on while it is open. Most are about
 * QEMU's driver: the sizes of its caches, which of its overlap checks are made,
 * which discards reach the file. This driver has caches of fixed sizes, always
 * checks all of its tables against what it writes, and gives back what it can;
 * so these are looked at for mistakes and otherwise let be.
 */
#include <errno.h>
#include <limits.h>

#include "base/checked.h"
#include "format/option.h"
#include "format/qcow2/qcow2.h"

struct runtime {
    bool lazy, has_lazy;
    const char *overlap, *overlap_template;
    uint64_t sizes[4];
    bool has_size[4];
};

enum { RUNTIME_CACHE, RUNTIME_L2, RUNTIME_REFCOUNT, RUNTIME_ENTRY };

static int runtime_find(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return (int)i;
    return -1;
}

/* Options of a truth value that changes nothing here. */
static bool runtime_is_ignored_bool(const char *name)
{
    static const char *const names[] = {
        "discard-no-unref",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "overlap-check.main-header",
        "overlap-check.active-l1",
        "overlap-check.active-l2",
        "overlap-check.refcount-table",
        "overlap-check.refcount-block",
        "overlap-check.snapshot-table",
        "overlap-check.inactive-l1",
        "overlap-check.inactive-l2",
        "overlap-check.bitmap-directory",
    };
    return runtime_find(names, RHEA_ARRAY_SIZE(names), name) >= 0;
}

/* Take O if it is one of these; *KNOWN. */
static int runtime_take(struct runtime *r, const struct rhea_option *o,
                        bool *known, struct rhea_error *err)
{
    static const char *const sizes[] = {"cache-size", "l2-cache-size",
                                        "refcount-cache-size",
                                        "l2-cache-entry-size"};
    int size = runtime_find(sizes, RHEA_ARRAY_SIZE(sizes), o->name);
    uint64_t seconds;
    bool ignored;

    *known = true;
    if (size >= 0) {
        r->has_size[size] = true;
        return option_size(o, &r->sizes[size], err);
    }
    if (!strcmp(o->name, "cache-clean-interval"))
        return option_size(o, &seconds, err);
    if (!strcmp(o->name, "lazy-refcounts")) {
        r->has_lazy = true;
        return option_bool(o, &r->lazy, err);
    }
    if (runtime_is_ignored_bool(o->name))
        return option_bool(o, &ignored, err);
    if (!strcmp(o->name, "overlap-check"))
        r->overlap = o->value;
    else if (!strcmp(o->name, "overlap-check.template"))
        r->overlap_template = o->value;
    else
        *known = false;
    return 0;
}

static int runtime_check_overlap(const struct runtime *r,
                                 struct rhea_error *err)
{
    static const char *const words[] = {"none", "constant", "cached", "all"};
    const char *word = r->overlap ? r->overlap : r->overlap_template;

    if (r->overlap && r->overlap_template &&
        strcmp(r->overlap, r->overlap_template) != 0)
        return rhea_error_set(err, EINVAL,
                              "options overlap-check and "
                              "overlap-check.template differ");
    if (word && runtime_find(words, RHEA_ARRAY_SIZE(words), word) < 0)
        return rhea_error_set(err, EINVAL,
                              "option overlap-check is 'none', 'constant', "
                              "'cached' or 'all', not '%s'",
                              word);
    return 0;
}

static int runtime_check_sizes(const struct qcow2 *q, const struct runtime *r,
                               struct rhea_error *err)
{
    const uint64_t *size = r->sizes;

    for (int i = 0; i < 3; i++)
        if (size[i] > INT_MAX)
            return rhea_error_set(err, EINVAL, "a cache size is too large");
    if (r->has_size[RUNTIME_CACHE] && r->has_size[RUNTIME_L2] &&
        r->has_size[RUNTIME_REFCOUNT])
        return rhea_error_set(err, EINVAL,
                              "of cache-size, l2-cache-size and "
                              "refcount-cache-size one follows from the "
                              "others: leave it out");
    if (r->has_size[RUNTIME_CACHE] &&
        (size[RUNTIME_L2] > size[RUNTIME_CACHE] ||
         size[RUNTIME_REFCOUNT] > size[RUNTIME_CACHE]))
        return rhea_error_set(err, EINVAL,
                              "a part of the cache is larger than cache-size");
    if (r->has_size[RUNTIME_ENTRY] &&
        (!is_power_of_2(size[RUNTIME_ENTRY]) || size[RUNTIME_ENTRY] < 512 ||
         size[RUNTIME_ENTRY] > q->cluster_size))
        return rhea_error_set(err, EINVAL,
                              "option l2-cache-entry-size is a power of 2 "
                              "from 512 to the cluster size");
    return 0;
}

int qcow2_runtime_options(struct qcow2 *q, const struct rhea_format_open *how,
                          struct rhea_option *rest, size_t *n_rest,
                          struct rhea_error *err)
{
    struct runtime r = {0};
    int ret = 0;

    *n_rest = 0;
    for (size_t i = 0; ret == 0 && i < how->n_options; i++) {
        bool known;

        ret = runtime_take(&r, &how->options[i], &known, err);
        if (!known)
            rest[(*n_rest)++] = how->options[i];
    }
    if (ret == 0)
        ret = runtime_check_overlap(&r, err);
    if (ret == 0)
        ret = runtime_check_sizes(q, &r, err);
    if (ret < 0)
        return ret;
    if (r.lazy && q->version < 3)
        return rhea_error_set(err, EINVAL,
                              "option lazy-refcounts needs an image of version "
                              "3 (compat=1.1)");
    q->lazy = r.has_lazy ? r.lazy
                         : (q->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS) != 0;
    return 0;
}
