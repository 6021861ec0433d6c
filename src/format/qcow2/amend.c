/* SPDX-License-Identifier: MIT */
/*
 * Changing creation options of an image that is there. All options are looked
 * at before the first of them takes effect; then, each durable before the next:
 *   version 3, whose features others need; key slots; the width of refcounts
 *   (amend_refcounts.c); data file, lazy refcounts; the size; version 2.
 * Header changes are made in the order of header_write.c. To version 2:
 *   1. zero clusters become unallocated or data, in the order of sync.c; this
 *      changes nothing that a guest sees;
 *   2. all that is in memory, lowered refcounts too; flush;
 *   3. the header.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/option.h"
#include "format/qcow2/qcow2.h"

const struct rhea_option_help qcow2_amend_options[] = {
    {"backing_file", "str", "as it is; rebase changes it"},
    {"backing_fmt", "str", "as it is; rebase changes it"},
    {"compat", "str", "version: 0.10 (v2) or 1.1 (v3)"},
    {"data_file", "str", "name of the file that holds the data"},
    {"data_file_raw", "bool (on/off)",
     "off: the data file need not be a raw image"},
    {"encrypt.iter-time", "num", "milliseconds that trying a passphrase takes"},
    {"encrypt.keyslot", "num", "the key slot to change, 0 to 7"},
    {"encrypt.new-secret", "str", "ID of the secret with a new passphrase"},
    {"encrypt.old-secret", "str", "ID of the secret with the present one"},
    {"encrypt.state", "str", "active or inactive, of the key slot"},
    {"lazy_refcounts", "bool (on/off)", "update refcounts late"},
    {"refcount_bits", "num", "width of a refcount, 1 to 64"},
    {"size", "size", "bytes that the guest sees"},
    {NULL, NULL, NULL},
};

struct amend {
    uint32_t version;
    unsigned refcount_order;
    uint64_t size; /* UINT64_MAX: as it is */
    bool lazy, raw, crypt;
    const char *data_file; /* NULL: as it is */
    const char *backing_file, *backing_format;
    struct luks_amend keys;
    bool force;
    const struct rhea_progress *progress;
};

/* --- what is asked for --- */

static int amend_parse_version(struct amend *a, const struct rhea_option *o,
                               struct rhea_error *err)
{
    if (!strcmp(o->value, "0.10") || !strcmp(o->value, "v2"))
        a->version = 2;
    else if (!strcmp(o->value, "1.1") || !strcmp(o->value, "v3"))
        a->version = 3;
    else
        return rhea_error_set(err, EINVAL, "compat is 0.10 or 1.1, not %s",
                              o->value);
    return 0;
}

static int amend_parse_bits(struct amend *a, const struct rhea_option *o,
                            struct rhea_error *err)
{
    uint64_t n;

    if (option_size(o, &n, NULL) < 0 || !is_power_of_2(n) || n > 64)
        return rhea_error_set(err, EINVAL,
                              "refcount_bits is a power of two from 1 to 64, "
                              "not %s",
                              o->value);
    a->refcount_order = log2_u64(n);
    return 0;
}

static int amend_parse_one(struct amend *a, const struct rhea_option *o,
                           struct rhea_error *err)
{
    int r;

    if (!strcmp(o->name, "compat"))
        return amend_parse_version(a, o, err);
    if (!strcmp(o->name, "refcount_bits"))
        return amend_parse_bits(a, o, err);
    if (!strcmp(o->name, "size"))
        return option_size(o, &a->size, err);
    if (!strcmp(o->name, "lazy_refcounts"))
        return option_bool(o, &a->lazy, err);
    if (!strcmp(o->name, "data_file_raw"))
        return option_bool(o, &a->raw, err);
    if (!strcmp(o->name, "data_file"))
        a->data_file = o->value;
    else if (!strcmp(o->name, "backing_file"))
        a->backing_file = o->value;
    else if (!strcmp(o->name, "backing_fmt"))
        a->backing_format = o->value;
    else if (qcow2_crypt_amend_option(&a->keys, o, &r, err))
        return a->crypt = true, r;
    else
        goto unknown;
    return 0;
unknown:
    if (option_is_listed(qcow2_create_options, o->name))
        return rhea_error_set(err, ENOTSUP,
                              "option %s takes effect only when an image is "
                              "created",
                              o->name);
    return option_unknown(o, "qcow2", err);
}

static bool amend_same(const char *asked, const char *present)
{
    return !asked || !strcmp(asked, present ? present : "");
}

static int amend_check(const struct qcow2 *q, const struct amend *a,
                       struct rhea_error *err)
{
    if (!amend_same(a->backing_file, q->backing_file) ||
        !amend_same(a->backing_format, q->backing_format))
        return rhea_error_set(err, EINVAL,
                              "amending does not change the backing file; "
                              "`rebase` does");
    if (a->data_file && !qcow2_external(q))
        return rhea_error_set(err, EINVAL,
                              "data_file can only be changed where the image "
                              "has one");
    if (a->data_file && strlen(a->data_file) > QCOW2_MAX_BACKING_NAME)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the data file's name is too long");
    if (a->raw && !qcow2_raw_data(q))
        return rhea_error_set(err, EINVAL,
                              "data_file_raw cannot be turned on for an image "
                              "that is there");
    if (a->crypt && (q->crypt_method != 2))
        return rhea_error_set(err, EINVAL,
                              "the image has no passphrases that could be "
                              "changed");
    if (a->version < 3 && a->refcount_order != 4)
        return rhea_error_set(err, EINVAL,
                              "compat=0.10 needs refcount_bits=16");
    if (a->version < 3 && a->lazy && q->version < 3)
        return rhea_error_set(err, EINVAL, "lazy_refcounts needs compat=1.1");
    return 0;
}

/* --- versions --- */

static int amend_upgrade(struct qcow2 *q, struct rhea_error *err)
{
    int r = 0;

    RHEA_LOCKED(&q->lock);
    if (qcow2_snapshots_incomplete(q, 3))
        r = qcow2_snapshots_complete(q, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    if (r < 0)
        return r;
    q->version = 3;
    r = qcow2_header_update(q, err);
    if (r < 0)
        q->version = 2;
    return r;
}

/* Whether any entry of an L1 table's L2 tables is of the kind WANTED. */
static int amend_find(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                      uint64_t wanted, bool *found, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    unsigned again = 0;
    int r = 0;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; r == 0 && !*found && i < n; i++) {
        uint64_t host = l1[i] & QCOW2_OFFSET_MASK;

        r = qcow2_l1_entry_check(q, i, l1[i], err);
        if (r < 0 || !host)
            continue;
        /* A small file could lead to one table for ever. */
        if (i && l1[i] == l1[i - 1] && ++again > 1024)
            return rhea_error_set(err, EIO,
                                  "L1 entries share L2 tables; the image must "
                                  "be checked");
        r = rhea_storage_read_padded(q->f.storage, table, q->cluster_size, host,
                                     err);
        for (size_t k = 0; r == 0 && k < (size_t)1 << q->l2_bits; k++) {
            uint64_t e = qcow2_entry_load(q, table, k).entry;
            bool compressed = e & QCOW2_COMPRESSED;

            *found |= wanted == QCOW2_COMPRESSED
                          ? compressed
                          : !compressed && (e & QCOW2_ZERO);
        }
    }
    return r;
}

static int amend_find_in_snapshots(struct qcow2 *q, uint64_t wanted,
                                   bool *found, struct rhea_error *err)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < q->n_snapshots; i++) {
        const struct qcow2_snapshot *s = &q->snapshots[i];
        RHEA_AUTO_FREE uint64_t *l1 = NULL;

        if (s->l1_size > QCOW2_MAX_L1_BYTES / 8 ||
            !is_aligned(s->l1_offset, q->cluster_size) ||
            s->l1_offset >= QCOW2_MAX_HOST)
            return rhea_error_set(err, EIO,
                                  "a snapshot's L1 table is damaged; the image "
                                  "must be checked");
        r = qcow2_table_load(q, s->l1_offset, s->l1_size, &l1, err);
        if (r == 0 && l1)
            r = amend_find(q, l1, s->l1_size, wanted, found, err);
    }
    return r;
}

static int amend_check_snapshots(struct qcow2 *q, struct rhea_error *err)
{
    bool zeroes = false;
    int r;

    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (q->snapshots[i].s.disk_size != q->f.size ||
            q->snapshots[i].s.vm_state_size > UINT32_MAX)
            return rhea_error_set(err, ENOTSUP,
                                  "a snapshot has a size that compat=0.10 "
                                  "cannot tell; delete it first");
    r = amend_find_in_snapshots(q, QCOW2_ZERO, &zeroes, err);
    if (r == 0 && zeroes)
        r = rhea_error_set(err, ENOTSUP,
                           "a snapshot has zero clusters, which compat=0.10 "
                           "does not know; delete it first");
    return r;
}

/* What of an image version 2 could not hold. Nothing is changed so far. */
static int amend_check_downgrade(struct qcow2 *q, const struct amend *a,
                                 struct rhea_error *err)
{
    bool compressed = false;
    int r;

    RHEA_LOCKED(&q->lock);
    if (qcow2_external(q) || qcow2_extended(q))
        return rhea_error_set(err, ENOTSUP,
                              "an image with %s cannot be of version 2 "
                              "(compat=0.10)",
                              qcow2_external(q) ? "a data file"
                                                : "extended L2 entries");
    if (q->n_bitmaps && q->autoclear & QCOW2_AUTOCLEAR_BITMAPS)
        return rhea_error_set(err, ENOTSUP,
                              "version 2 (compat=0.10) cannot hold bitmaps; "
                              "remove them first");
    if (q->n_snapshots && a->size != UINT64_MAX && a->size != q->f.size)
        return rhea_error_set(err, ENOTSUP,
                              "with snapshots, size and compat=0.10 exclude "
                              "each other");
    r = qcow2_sync(q, err);
    if (r == 0)
        r = amend_check_snapshots(q, err);
    if (r < 0 || !q->compression)
        return r;
    r = amend_find(q, q->l1, q->l1_size, QCOW2_COMPRESSED, &compressed, err);
    if (r == 0 && !compressed)
        r = amend_find_in_snapshots(q, QCOW2_COMPRESSED, &compressed, err);
    if (r == 0 && compressed)
        r = rhea_error_set(err, ENOTSUP,
                           "clusters compressed by zstd cannot be in an image "
                           "of version 2 (compat=0.10)");
    return r;
}

/* Zero clusters of the table that maps *GUEST: without a backing file they
 * become unallocated. Otherwise stop at the first; *DATA says so. */
static int amend_clear_zeroes(struct qcow2 *q, uint64_t *guest, bool *data,
                              struct rhea_error *err)
{
    uint64_t span = 1ULL << qcow2_l1_shift(q);
    uint64_t end = RHEA_MIN(align_down(*guest, span) + span,
                            (uint64_t)q->l1_size << qcow2_l1_shift(q));
    struct qcow2_slice *slice;
    unsigned index;
    int r = 0;

    RHEA_LOCKED(&q->lock);
    *data = false;
    for (; r == 0 && *guest < end; *guest += q->cluster_size) {
        struct qcow2_entry e;

        r = qcow2_l2_get(q, *guest, &slice, &index, err);
        if (r == 0 && !slice) {
            *guest = end;
            return 0;
        }
        if (r < 0)
            return r;
        e = qcow2_entry_get(q, slice, index);
        if (e.entry & QCOW2_COMPRESSED || !(e.entry & QCOW2_ZERO))
            continue;
        if (q->backing_file && *guest < q->f.size) {
            *data = true;
            return 0;
        }
        r = qcow2_entry_check(q, *guest, e, err);
        if (r == 0)
            r = qcow2_l2_get_writable(q, *guest, &slice, &index, err);
        if (r < 0)
            return r;
        qcow2_entry_set(q, slice, index, (struct qcow2_entry){0, 0});
        r = qcow2_entry_release(q, e, true, err);
    }
    return r;
}

static int amend_expand_zeroes(struct qcow2 *q, const struct amend *a,
                               struct rhea_error *err)
{
    uint64_t end = (uint64_t)q->l1_size << qcow2_l1_shift(q), guest = 0;
    RHEA_AUTO_FREE uint8_t *zero = calloc(1, q->cluster_size);
    int r = 0;

    if (!zero)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (r == 0 && guest < end) {
        bool data;

        rhea_progress_report(a->progress, "expand zero clusters",
                             RHEA_MIN(guest, q->f.size), q->f.size);
        if (rhea_progress_cancelled(a->progress))
            return rhea_error_set(err, ECANCELED, "stopped as asked");
        r = amend_clear_zeroes(q, &guest, &data, err);
        if (r < 0 || !data)
            continue;
        r = qcow2_write(&q->f, guest, zero,
                        RHEA_MIN(q->cluster_size, q->f.size - guest), err);
        guest += q->cluster_size;
    }
    return r;
}

static int amend_downgrade(struct qcow2 *q, const struct amend *a,
                           struct rhea_error *err)
{
    uint64_t incompatible, compatible, autoclear;
    uint8_t compression;
    int r = amend_expand_zeroes(q, a, err);

    if (r < 0)
        return r;
    RHEA_LOCKED(&q->lock);
    r = qcow2_sync_all(q, err);
    if (r < 0)
        return r;
    incompatible = q->incompatible;
    compatible = q->compatible;
    autoclear = q->autoclear;
    compression = q->compression;
    q->version = 2;
    q->incompatible = q->compatible = q->autoclear = 0;
    q->compression = 0;
    r = qcow2_header_update(q, err);
    if (r < 0) {
        q->version = 3;
        q->incompatible = incompatible;
        q->compatible = compatible;
        q->autoclear = autoclear;
        q->compression = compression;
        return r;
    }
    q->lazy = false;
    return 0;
}

/* --- single features --- */

static int amend_lazy(struct qcow2 *q, bool lazy, struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_sync_all(q, err);
    if (r < 0)
        return r;
    /* The dirty bit is set again, where it is to be, by the first write after
     * the next opening; until then this one is strict. */
    q->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    q->compatible &= ~QCOW2_COMPAT_LAZY_REFCOUNTS;
    q->compatible |= lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
    q->lazy = false;
    return qcow2_header_write_features(q, err);
}

static int amend_data_file(struct qcow2 *q, const struct amend *a,
                           struct rhea_error *err)
{
    RHEA_AUTO_FREE char *name = NULL;
    uint64_t autoclear = q->autoclear;
    char *old = q->data_file;
    int r;

    RHEA_LOCKED(&q->lock);
    if (a->data_file && *a->data_file) {
        name = strdup(a->data_file);
        if (!name)
            return rhea_error_set(err, ENOMEM, "out of memory");
    }
    r = qcow2_sync(q, err);
    if (r < 0)
        return r;
    if (a->data_file)
        q->data_file = name;
    if (!a->raw)
        q->autoclear &= ~QCOW2_AUTOCLEAR_RAW_DATA;
    r = qcow2_header_update(q, err);
    if (r < 0) {
        q->data_file = old;
        q->autoclear = autoclear;
    } else if (a->data_file) {
        name = old; /* goes */
    }
    return r;
}

static int amend_begin(struct qcow2 *q, const struct amend *a,
                       struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    r = amend_check(q, a, err);
    if (r == 0)
        r = qcow2_write_begin(q, err);
    return r < 0 ? r : qcow2_sync(q, err);
}

static int amend_do(struct qcow2 *q, const struct amend *a,
                    struct rhea_error *err)
{
    bool down = a->version < q->version;
    int r = 0;

    if (down)
        r = amend_check_downgrade(q, a, err);
    if (r == 0 && a->version > q->version)
        r = amend_upgrade(q, err);
    if (r == 0 && a->crypt)
        r = qcow2_crypt_amend(q, &a->keys, a->force, err);
    if (r == 0 && a->refcount_order != q->refcount_order)
        r = qcow2_refs_convert(q, a->refcount_order, err);
    if (r == 0 && (a->data_file || a->raw != qcow2_raw_data(q)))
        r = amend_data_file(q, a, err);
    if (r == 0 && q->version >= 3 && !down &&
        a->lazy != !!(q->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS))
        r = amend_lazy(q, a->lazy, err);
    if (r == 0 && a->size != UINT64_MAX && a->size != q->f.size) {
        const struct rhea_resize how = {.size = align_up(a->size, 512),
                                        .shrink = true,
                                        .hide_below = q->f.below != NULL,
                                        .progress = a->progress};

        r = qcow2_resize(&q->f, &how, err);
    }
    if (r == 0 && down)
        r = amend_downgrade(q, a, err);
    return r;
}

int qcow2_amend(struct rhea_format *f, const struct rhea_option *options,
                size_t n, bool force, const struct rhea_progress *progress,
                struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct amend a = {
        .version = q->version,
        .refcount_order = q->refcount_order,
        .size = UINT64_MAX,
        .lazy = q->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
        .raw = qcow2_raw_data(q),
        .keys = {.slot = -1},
        .force = force,
        .progress = progress,
    };
    int r = 0;

    for (size_t i = 0; r == 0 && i < n; i++)
        r = amend_parse_one(&a, &options[i], err);
    if (r == 0)
        r = amend_begin(q, &a, err);
    return r < 0 ? r : amend_do(q, &a, err);
}
