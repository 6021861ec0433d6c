/* SPDX-License-Identifier: MIT */
/*
 * The order of metadata writes. Everything that changes an image goes through
 * here; the crash model is that of rhea/storage.h.
 *
 * What a change leaves behind in memory: raised refcounts (dirty blocks), L2
 * entries (dirty slices), L1 entries of new tables, and a list of clusters
 * that each lose a reference. Guest data and new, empty tables are in the file
 * already, not flushed. Then:
 *
 *   1. refcount blocks; flush; refcount table entries of new blocks; flush.
 *      Now guest data, new tables and all refcounts that are about to be
 *      relied on are durable; nothing points to them yet: at worst leaks.
 *   2. L2 slices and L1 sectors, in any order. Each entry lies within one
 *      sector, and is either the old one or the new one after a crash; both
 *      are right, for what either points to became durable by step 1: a new
 *      table, empty or a copy of the one it replaces, was written when it was
 *      allocated.
 *   3. flush. No table on disk leads to the clusters of the list any more.
 *   4. Their refcounts are lowered in memory, for a later step 1. Only now may
 *      they be allocated again.
 *
 * With lazy refcounts the dirty bit is set and durable before the first
 * change, and step 1 is but a flush until the image is closed: whoever finds
 * the bit counts anew.
 *
 * After an error in any step nothing more is written: what is on disk is in
 * order, and what could not be written is reported by every later call.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/notice.h"
#include "format/qcow2/qcow2.h"

#define SYNC_RECLAIM (16U << 20) /* bytes; see qcow2_reclaim */

int qcow2_fail(struct qcow2 *q, int result)
{
    if (result < 0)
        q->failed = true;
    return result;
}

static bool sync_lazy(const struct qcow2 *q)
{
    return q->incompatible & QCOW2_INCOMPAT_DIRTY;
}

static void sync_tell(void *opaque, bool is_error, const char *text)
{
    (void)opaque;
    notice(is_error, text);
}

/* An image that was not closed cleanly: its refcounts cannot be relied on. */
static int sync_repair(struct qcow2 *q, struct rhea_error *err)
{
    struct rhea_check check = {.finding = sync_tell};
    int r;

    if (!(q->incompatible & QCOW2_INCOMPAT_DIRTY))
        return 0;
    r = qcow2_check_locked(q, RHEA_FIX_LEAKS | RHEA_FIX_ERRORS, &check, err);
    if (r == 0 && (check.corruptions || check.errors))
        r = rhea_error_set(err, EIO,
                           "the image was not closed cleanly, and %" PRIu64
                           " errors in it could not be repaired",
                           check.corruptions + check.errors);
    return r;
}

/* Announce in the header what is about to happen. */
static int sync_announce(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t autoclear = q->autoclear & QCOW2_AUTOCLEAR_KNOWN;
    uint64_t incompatible = q->incompatible;

    if (q->version < 3)
        return 0;
    if (q->lazy)
        incompatible |= QCOW2_INCOMPAT_DIRTY;
    if (autoclear == q->autoclear && incompatible == q->incompatible)
        return 0;
    q->autoclear = autoclear;
    q->incompatible = incompatible;
    return qcow2_header_write_features(q, err);
}

/* Writing to a table past the end would make the file as long as a damaged
 * header says. */
static int sync_check_tables(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t bytes = (uint64_t)q->reftable_clusters << q->cluster_bits;
    bool l1 = qcow2_table_in_file(q, q->l1_offset, (uint64_t)q->l1_size * 8);

    if (l1 && qcow2_table_in_file(q, q->reftable_offset, bytes))
        return 0;
    return rhea_error_set(err, EIO,
                          "the %s table lies past the end of the file; the "
                          "image must be checked",
                          l1 ? "refcount" : "L1");
}

int qcow2_write_begin(struct qcow2 *q, struct rhea_error *err)
{
    int r;

    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier error keeps the image from being "
                              "written to");
    if (q->write_ready)
        return 0;
    if (!(q->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EBADF, "the image is open read-only");
    if (q->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return rhea_error_set(err, EACCES,
                              "the image is marked corrupt and must be "
                              "repaired before it can be written to");
    r = qcow2_data_refuse(q, err);
    if (r == 0)
        r = sync_repair(q, err);
    if (r == 0 && q->n_snapshots && !q->snapshots)
        r = qcow2_snapshots_read(q, err);
    if (r == 0)
        r = rhea_storage_size(q->f.storage, &q->file_size, err);
    if (r == 0)
        r = sync_check_tables(q, err);
    if (r == 0)
        r = qcow2_refs_load(q, err);
    if (r == 0)
        r = qcow2_note_tables(q, err);
    if (r == 0)
        r = bitmap_init(&q->l1_dirty, div_up(q->l1_size, 64) + 1, err);
    if (r == 0)
        r = sync_announce(q, err);
    if (r < 0) {
        qcow2_write_reset(q);
        return r;
    }
    q->fresh = align_up(q->file_size, q->cluster_size);
    q->write_ready = true;
    return 0;
}

void qcow2_write_reset(struct qcow2 *q)
{
    bitmap_finish(&q->tables);
    bitmap_finish(&q->l1_dirty);
    q->any_l1_dirty = false;
    q->n_releases = 0;
    q->given_back = 0;
    q->z_next = 0;
    q->write_ready = false;
}

void qcow2_l1_set(struct qcow2 *q, uint32_t index, uint64_t entry)
{
    q->l1[index] = entry;
    bitmap_set(&q->l1_dirty, index / 64, 1);
    q->any_l1_dirty = true;
}

static int sync_write_l1(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t n = q->l1_dirty.n_bits, at = 0;

    while ((at = bitmap_find(&q->l1_dirty, at, true)) < n) {
        uint64_t sector[64];
        uint64_t count = RHEA_MIN(64, q->l1_size - at * 64);
        int r;

        rhea_storage_event(q->f.storage, "l1_update");
        for (uint64_t i = 0; i < count; i++)
            sector[i] = htobe64(q->l1[at * 64 + i]);
        r = rhea_storage_write(q->f.storage, sector, count * 8,
                               q->l1_offset + at * 512, err);
        if (r < 0)
            return r;
        bitmap_clear(&q->l1_dirty, at, 1);
    }
    q->any_l1_dirty = false;
    return 0;
}

/* What is in the data file is durable before a table says so. */
static int sync_guest(struct qcow2 *q, struct rhea_error *err)
{
    return qcow2_external(q) && q->guest ? rhea_storage_flush(q->guest, err)
                                         : 0;
}

/* Steps 1 and 2. */
int qcow2_sync_tables(void *opaque, struct rhea_error *err)
{
    struct qcow2 *q = opaque;
    int r = 0;

    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier error keeps the image from being "
                              "written to");
    r = sync_guest(q, err);
    if (r == 0 && !sync_lazy(q) && (q->refs.n_dirty || q->reftable_dirty))
        r = qcow2_refs_write(q, err); /* ends with a flush */
    else if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r == 0)
        r = qcow2_cache_write(&q->l2, err);
    if (r == 0 && q->any_l1_dirty)
        r = sync_write_l1(q, err);
    return qcow2_fail(q, r);
}

static void sync_punch(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    /* Nobody depends on it; what cannot be punched stays allocated. */
    if (count)
        (void)rhea_storage_zero(q->f.storage, cluster << q->cluster_bits,
                                count << q->cluster_bits, true, NULL);
}

static void sync_release(struct qcow2 *q, const struct qcow2_release *rel)
{
    uint64_t run = 0;

    rhea_storage_event(q->f.storage, "cluster_free");
    for (uint64_t i = 0; i < rel->count; i++) {
        uint64_t cluster = rel->cluster + i, left = 1;
        /* Refcounts too low by themselves are for a check to find. */
        int r = qcow2_refcount_add(q, cluster, 1, -1, NULL);

        if (r < 0 || qcow2_refcount_get(q, cluster, &left, NULL) < 0 || left) {
            sync_punch(q, cluster - run, run);
            run = 0;
            continue;
        }
        if (cluster == q->z_next >> q->cluster_bits)
            q->z_next = 0;
        run += rel->punch;
    }
    sync_punch(q, rel->cluster + rel->count - run, run);
}

/* Step 4. */
static void sync_release_all(struct qcow2 *q)
{
    if (!q->n_releases)
        return;
    /* Wait for those who still move data to or from them. */
    pthread_rwlock_wrlock(&q->data);
    for (size_t i = 0; i < q->n_releases; i++)
        sync_release(q, &q->releases[i]);
    q->n_releases = 0;
    q->given_back = 0;
    qcow2_z_forget(q);
    pthread_rwlock_unlock(&q->data);
}

int qcow2_sync(struct qcow2 *q, struct rhea_error *err)
{
    int r = 0;

    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier error keeps the image from being "
                              "written to");
    if (q->l2.n_dirty || q->any_l1_dirty)
        r = qcow2_sync_tables(q, err);
    else
        r = sync_guest(q, err);
    if (r == 0 && !sync_lazy(q))
        r = qcow2_refs_write(q, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r == 0)
        sync_release_all(q);
    return qcow2_fail(q, r);
}

int qcow2_sync_all(struct qcow2 *q, struct rhea_error *err)
{
    int r = qcow2_sync(q, err);

    return r < 0 ? r : qcow2_fail(q, qcow2_refs_write(q, err));
}

int qcow2_release(struct qcow2 *q, uint64_t cluster, uint64_t count, bool punch,
                  struct rhea_error *err)
{
    struct qcow2_release *last =
        q->n_releases ? &q->releases[q->n_releases - 1] : NULL;

    q->given_back += punch ? count : 0;
    if (last && last->cluster + last->count == cluster &&
        last->punch == punch) {
        last->count += count;
        return 0;
    }
    if (q->n_releases == QCOW2_RELEASES_MAX) {
        int r = qcow2_sync(q, err);
        if (r < 0)
            return r;
    }
    if (!q->releases || q->n_releases == q->max_releases) {
        size_t max = RHEA_MAX(64, q->max_releases * 2);
        struct qcow2_release *more = realloc(q->releases, max * sizeof(*more));

        /* Leaked, then; a check gives it back. */
        if (!more)
            return 0;
        q->releases = more;
        q->max_releases = max;
    }
    q->releases[q->n_releases++] =
        (struct qcow2_release){cluster, count, punch};
    return 0;
}

int qcow2_reclaim(struct qcow2 *q, struct rhea_error *err)
{
    return q->given_back << q->cluster_bits >= SYNC_RECLAIM ? qcow2_sync(q, err)
                                                            : 0;
}

/* Lowered refcounts are durable before what they freed is gone: the other way
 * round they would count clusters past the end of the file. */
int qcow2_cut_end(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t end = 0, size = 0;
    int r = qcow2_refs_write(q, err);

    if (r == 0)
        r = qcow2_refs_end(q, &end, err);
    if (r == 0)
        r = rhea_storage_size(q->f.storage, &size, err);
    if (r < 0)
        return qcow2_fail(q, r);
    end <<= q->cluster_bits;
    /* A block device cannot, and nobody depends on it. */
    if (end < size && rhea_storage_truncate(q->f.storage, end, NULL) == 0) {
        q->file_size = end;
        q->fresh = end;
    }
    return qcow2_note_tables(q, err);
}

int qcow2_flush(struct rhea_format *f, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);

    RHEA_LOCKED(&q->lock);
    if (q->write_ready)
        return qcow2_sync(q, err);
    if (!(q->flags & RHEA_FORMAT_WRITE))
        return 0;
    return qcow2_fail(
        q, sync_guest(q, err) < 0 ? -EIO : rhea_storage_flush(f->storage, err));
}

/* All, bitmaps and lowered refcounts too, durable; only then the dirty bit
 * goes. */
int qcow2_write_end(struct qcow2 *q, struct rhea_error *err)
{
    int r, bitmaps = 0;

    RHEA_LOCKED(&q->lock);
    if (!q->write_ready)
        return 0;
    r = qcow2_sync(q, err);
    if (r == 0 && q->n_tracked) {
        /* Without room for them, all else is still to be closed cleanly. */
        bitmaps = qcow2_bitmaps_settle(q, err);
        r = q->failed ? bitmaps : qcow2_sync(q, bitmaps ? NULL : err);
    }
    if (r == 0)
        r = qcow2_refs_write(q, err);
    if (r == 0 && q->incompatible & QCOW2_INCOMPAT_DIRTY) {
        q->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
        r = qcow2_header_write_features(q, err);
    }
    r = qcow2_fail(q, r);
    return bitmaps ? bitmaps : r;
}
