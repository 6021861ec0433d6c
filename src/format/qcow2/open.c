/* SPDX-License-Identifier: MIT */
/*
 * qcow2, versions 2 and 3: opening, closing, what an image says of itself, and
 * the driver's table.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

static int qcow2_probe(const uint8_t *head, size_t len)
{
    return len >= QCOW2_V2_HEADER && load_be32(head) == QCOW2_MAGIC &&
                   load_be32(head + QCOW2_AT_VERSION) >= 2
               ? 100
               : 0;
}

static void open_release(struct qcow2 *q)
{
    qcow2_header_finish(q);
    qcow2_crypt_finish(q);
    qcow2_cache_finish(&q->l2);
    qcow2_refs_finish(q);
    qcow2_z_forget(q);
    qcow2_compressors_finish(q);
    bitmap_finish(&q->tables);
    bitmap_finish(&q->l1_dirty);
    qcow2_bitmaps_finish(q);
    free(q->releases);
    qcow2_snapshots_free(q);
    free(q->l1);
    pthread_mutex_destroy(&q->lock);
    pthread_mutex_destroy(&q->z.lock);
    pthread_rwlock_destroy(&q->data);
    pthread_cond_destroy(&q->landed);
    free(q);
}

static void open_init_locks(struct qcow2 *q)
{
    pthread_rwlockattr_t attr;

    pthread_mutex_init(&q->lock, NULL);
    pthread_mutex_init(&q->z.lock, NULL);
    pthread_cond_init(&q->landed, NULL);
    pthread_rwlockattr_init(&attr);
    /* Else a flush could wait for ever while others keep writing. */
    pthread_rwlockattr_setkind_np(&attr,
                                  PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&q->data, &attr);
    pthread_rwlockattr_destroy(&attr);
}

static int open_tables(struct qcow2 *q, struct rhea_error *err)
{
    uint32_t unit = RHEA_MIN(q->cluster_size, QCOW2_SLICE_MAX);
    int r;

    r = qcow2_table_load(q, q->l1_offset, q->l1_size, &q->l1, err);
    if (r == 0)
        r = qcow2_cache_init(&q->l2, q->f.storage, unit,
                             QCOW2_L2_CACHE_BYTES / unit, err);
    q->l2.read_event = "l2_load";
    q->l2.write_event = "l2_update";
    q->l2.make_room = qcow2_sync_tables;
    q->l2.opaque = q;
    q->z.n_slots = (unsigned)RHEA_MIN(QCOW2_Z_CACHE,
                                      QCOW2_Z_CACHE_BYTES / q->cluster_size);
    if (r == 0 && !(q->flags & RHEA_FORMAT_CHECK))
        r = qcow2_snapshots_read(q, err);
    return r;
}

/* Without one at hand only the image itself can be looked at. */
static int open_data_file(struct qcow2 *q, const struct rhea_format_open *how,
                          struct rhea_error *err)
{
    q->guest = q->f.storage;
    if (!qcow2_external(q))
        return 0;
    q->guest = NULL;
    if (!how->open_data_file || how->flags & RHEA_FORMAT_NO_IO)
        return 0;
    return how->open_data_file(how->opaque, q->data_file, &q->guest, err);
}

static int qcow2_open(struct rhea_format **out,
                      const struct rhea_format_open *how,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE struct rhea_option *options =
        calloc(how->n_options + 1, sizeof(*options));
    size_t n_options = 0;
    struct qcow2 *q;
    int r;

    q = calloc(1, sizeof(*q));
    if (!q || !options) {
        free(q);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    q->f.ops = &rhea_format_qcow2;
    q->f.storage = how->storage;
    q->flags = how->flags;
    open_init_locks(q);
    r = qcow2_header_read(q, err);
    if (r == 0)
        r = qcow2_runtime_options(q, how, options, &n_options, err);
    if (r == 0)
        r = open_data_file(q, how, err);
    if (r == 0)
        r = open_tables(q, err);
    if (r == 0)
        r = qcow2_crypt_open(q, options, n_options, err);
    if (r < 0) {
        open_release(q);
        return r;
    }
    *out = &q->f;
    return 0;
}

static int qcow2_close(struct rhea_format *f, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r = qcow2_write_end(q, err);

    open_release(q);
    return r;
}

/* As qemu-img has them, in its order. */
static int qcow2_facts(struct rhea_format *f, struct rhea_facts *facts,
                       struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r;

    RHEA_LOCKED(&q->lock);
    rhea_facts_string(facts, "compat", "compat",
                      q->version == 2 ? "0.10" : "1.1");
    rhea_facts_string(facts, "compression type", "compression-type",
                      q->compression ? "zstd" : "zlib");
    if (q->version >= 3)
        rhea_facts_bool(facts, "lazy refcounts", "lazy-refcounts",
                        q->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
    r = qcow2_bitmaps_facts(q, facts, err);
    if (r < 0)
        return r;
    rhea_facts_number(facts, "refcount bits", "refcount-bits",
                      1U << q->refcount_order);
    qcow2_crypt_facts(q, facts);
    if (q->version == 2)
        return 0;
    if (q->data_file)
        rhea_facts_string(facts, "data file", "data-file", q->data_file);
    if (qcow2_external(q))
        rhea_facts_bool(facts, "data file raw", "data-file-raw",
                        q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
    rhea_facts_bool(facts, "corrupt", "corrupt",
                    q->incompatible & QCOW2_INCOMPAT_CORRUPT);
    rhea_facts_bool(facts, "extended l2", "extended-l2", qcow2_extended(q));
    return 0;
}

static void qcow2_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct qcow2 *q = qcow2_of(f);

    RHEA_LOCKED(&q->lock);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = q->cluster_size,
        .backing_file = q->backing_file,
        .backing_format = q->backing_format,
        .backing_file_offset = q->backing_file ? q->backing_offset : 0,
        .snapshots = q->n_snapshots,
        /* Those not kept up to date count as gone. */
        .bitmaps = q->autoclear & QCOW2_AUTOCLEAR_BITMAPS ? q->n_bitmaps : 0,
        .encrypted = q->crypt_method != 0,
        .external_data = qcow2_external(q),
        .corrupt = q->incompatible & QCOW2_INCOMPAT_CORRUPT,
        .dirty = q->incompatible & QCOW2_INCOMPAT_DIRTY,
        .extensions = q->unknown_parts,
        .compressed_type_zstd = q->compression == 1,
    };
}

static const char *const qcow2_strong_options[] = {"encrypt.key-secret", NULL};

const struct rhea_format_ops rhea_format_qcow2 = {
    .name = "qcow2",
    .create_options = qcow2_create_options,
    .strong_options = qcow2_strong_options,
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .info = qcow2_info,
    .facts = qcow2_facts,
    .map = qcow2_map,
    .map_hold = qcow2_map_hold,
    .release = qcow2_map_release,
    .read = qcow2_read,
    .write = qcow2_write,
    .clone = qcow2_clone,
    .write_zeroes = qcow2_write_zeroes,
    .discard = qcow2_discard,
    .write_compressed = qcow2_write_compressed,
    .flush = qcow2_flush,
    .check = qcow2_check,
    .walk = qcow2_walk,
    .create = qcow2_create,
    .measure = qcow2_measure,
    .resize = qcow2_resize,
    .amend_options = qcow2_amend_options,
    .amend = qcow2_amend,
    .set_backing = qcow2_set_backing,
    .make_empty = qcow2_make_empty,
    .snapshot_list = qcow2_snapshot_list,
    .snapshot_create = qcow2_snapshot_create,
    .snapshot_apply = qcow2_snapshot_apply,
    .snapshot_delete = qcow2_snapshot_delete,
    .snapshot_load = qcow2_snapshot_load,
    .vm_state_read = qcow2_vm_state_read,
    .vm_state_write = qcow2_vm_state_write,
    .bitmap_list = qcow2_bitmap_list,
    .bitmap_add = qcow2_bitmap_add,
    .bitmap_remove = qcow2_bitmap_remove,
    .bitmap_enable = qcow2_bitmap_enable,
    .bitmap_load = qcow2_bitmap_load,
    .bitmap_store = qcow2_bitmap_store,
};
