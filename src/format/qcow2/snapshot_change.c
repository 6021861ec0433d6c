/* SPDX-License-Identifier: MIT */
/*
 * Making, applying and deleting internal snapshots (the spec, "Snapshots"). A
 * snapshot has an L1 table of its own, and with it a reference to each L2
 * table, data cluster and compressed cluster that this leads to.
 *
 * Orders of writes, each after everything that was dirty before is durable;
 * "the flags" are the COPIED flags of the active tables:
 *
 * create
 *   1. refcounts of all that the active table leads to raised by one; the
 *      snapshot's L1 table and the new snapshot table at new places; flush
 *   2. the flags cleared (all refcounts are at least 2 now); flush: from here
 *      on a write in place is impossible, in the file too
 *   3. the header points to the new snapshot table; flush
 *   4. the old snapshot table is free, the active table drops the VM state
 * apply
 *   1. refcounts of all that the snapshot leads to raised; a new active L1
 *      table, without flags, at a new place; flush
 *   2. the header points to it, and has the snapshot's disk size; flush (l1.c)
 *   3. the old active table, and one reference to all it led to, are free. No
 *      flag is to be set: the snapshot shares everything
 * delete
 *   1. the new snapshot table at a new place; flush
 *   2. the header points to it; flush
 *   3. the old table, the snapshot's L1 table, and one reference to all that it
 *      led to are free; flush
 *   4. the flags set where the refcount is 1 now; flush
 *
 * A crash before the header changes leaves the image as it was, one after it
 * the new one. Refcounts are at worst too high. Where a flag does not agree
 * with its refcount either the cluster is leaked (create, 1 and 2: nobody else
 * refers to it, so writing in place is right, and so is copying it) or the flag
 * is missing (delete, 3 and 4: it is copied without need); both end with the
 * leaks being repaired.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

#define CHANGE_NAME_MAX 255

/* No guest write is under way, and the file is up to date. */
static int change_begin(struct qcow2 *q, struct rhea_error *err)
{
    int r;

    if (qcow2_external(q))
        return rhea_error_set(err, ENOTSUP,
                              "an image with an external data file cannot have "
                              "snapshots");
    r = qcow2_write_begin(q, err);
    if (r < 0)
        return r;
    qcow2_flight_wait(q, 0, UINT64_MAX);
    /* Wait for those who write in place. */
    pthread_rwlock_wrlock(&q->data);
    pthread_rwlock_unlock(&q->data);
    return qcow2_sync_all(q, err);
}

/* What was released is free, and all is durable. */
static int change_end(struct qcow2 *q, struct rhea_error *err)
{
    int r = qcow2_sync_all(q, err);

    if (r == 0)
        r = qcow2_note_tables(q, err);
    return r;
}

static void change_free_run(struct qcow2 *q, uint64_t host, uint64_t bytes)
{
    (void)qcow2_refcount_add(q, host >> q->cluster_bits,
                             div_up(bytes, q->cluster_size), -1, NULL);
}

static int change_release_run(struct qcow2 *q, uint64_t host, uint64_t bytes,
                              struct rhea_error *err)
{
    uint64_t count = div_up(bytes, q->cluster_size);

    return count ? qcow2_release(q, host >> q->cluster_bits, count, true, err)
                 : 0;
}

/* Write the table LIST of N snapshots and switch to it; the refcounts that were
 * changed before are made durable with it, and the flags are updated in
 * between if FLAGS. Where there is no room for the table nothing is changed;
 * after any other failure nothing can be. */
static int change_table(struct qcow2 *q, const struct qcow2_snapshot *list,
                        uint32_t n, bool flags, struct rhea_error *err)
{
    uint64_t old = q->snapshots_offset, old_length = q->snapshots_length;
    struct qcow2_staged staged;
    int r = qcow2_snapshots_stage(q, list, n, &staged, err);

    if (r < 0)
        return r;
    r = rhea_storage_flush(q->f.storage, err);
    if (r == 0)
        r = qcow2_refs_write(q, err);
    if (r == 0 && flags) {
        r = qcow2_flags_update(q, err);
        if (r == 0)
            r = qcow2_sync(q, err);
    }
    if (r == 0)
        r = qcow2_snapshots_switch(q, &staged, err);
    if (r == 0)
        r = change_release_run(q, old, old_length, err);
    return qcow2_fail(q, r);
}

static void change_new_id(const struct qcow2 *q, char *id, size_t len)
{
    unsigned long max = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++)
        max = RHEA_MAX(max, strtoul(q->snapshots[i].s.id, NULL, 10));
    snprintf(id, len, "%lu", max + 1);
}

/* Steps 1 to 3. Until change_table is under way a failure leaves all as it was.
 */
static int create_do(struct qcow2 *q, const struct rhea_snapshot *what,
                     const struct qcow2_tree *tree, struct rhea_error *err)
{
    uint32_t n = q->n_snapshots;
    RHEA_AUTO_FREE struct qcow2_snapshot *list =
        calloc((size_t)n + 1, sizeof(*list));
    RHEA_AUTO_FREE uint64_t *l1 = calloc((size_t)q->l1_size + 1, 8);
    struct qcow2_snapshot *new;
    char id[32], *name = what->name, none[] = "";
    int r;

    if (!list || !l1)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->l1_size; i++)
        l1[i] = q->l1[i] & ~QCOW2_COPIED;
    if (n)
        memcpy(list, q->snapshots, n * sizeof(*list));
    change_new_id(q, id, sizeof(id));
    new = &list[n];
    new->s = *what;
    new->s.id = id;
    new->s.name = name ? name : none;
    new->s.disk_size = q->f.size;
    new->l1_size = q->l1_size;

    r = qcow2_tree_raise(q, tree, err);
    if (r < 0)
        return r;
    r = qcow2_l1_store(q, l1, q->l1_size, &new->l1_offset, err);
    if (r == 0) {
        r = change_table(q, list, n + 1, true, err);
        if (r < 0)
            change_free_run(q, new->l1_offset, (uint64_t)q->l1_size * 8);
    }
    if (r < 0)
        qcow2_tree_lower(q, tree);
    return r;
}

int qcow2_snapshot_create(struct rhea_format *f,
                          const struct rhea_snapshot *what,
                          struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_tree tree = {0};
    int r;

    if (what->name && strlen(what->name) > CHANGE_NAME_MAX)
        return rhea_error_set(err, EINVAL,
                              "the name of a snapshot has at most %d bytes",
                              CHANGE_NAME_MAX);
    RHEA_LOCKED(&q->lock);
    r = change_begin(q, err);
    if (r == 0 && q->n_snapshots >= QCOW2_MAX_SNAPSHOTS)
        r = rhea_error_set(err, EFBIG, "an image can have %d snapshots",
                           QCOW2_MAX_SNAPSHOTS);
    if (r == 0)
        r = qcow2_tree_count(q, &tree, q->l1, q->l1_size, 1, err);
    if (r == 0)
        r = create_do(q, what, &tree, err);
    qcow2_tree_free(&tree);
    if (r == 0 && what->vm_state_size)
        r = qcow2_vm_state_drop(q, what->vm_state_size, err);
    return r == 0 ? change_end(q, err) : r;
}

/* Whether the image can have the size that S had. */
static int apply_check(const struct qcow2 *q, const struct qcow2_snapshot *s,
                       struct rhea_error *err)
{
    uint64_t needed = div_up(s->s.disk_size, 1ULL << qcow2_l1_shift(q));

    if (s->s.disk_size > INT64_MAX || needed > QCOW2_MAX_L1_BYTES / 8)
        return rhea_error_set(err, EFBIG,
                              "the size of snapshot '%s', %" PRIu64
                              " bytes, is too large",
                              s->s.id, s->s.disk_size);
    return 0;
}

/* The guest's bytes are about to change anywhere, and perhaps the size: bitmaps
 * that follow it are marked as in use until they are stored again. */
static int apply_bitmaps(struct qcow2 *q, uint64_t size, struct rhea_error *err)
{
    if (size != q->f.size)
        return qcow2_bitmaps_resize(q, size, err);
    return qcow2_bitmaps_touch(q, 0, size, err);
}

static int apply_do(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                    uint64_t size, const struct qcow2_tree *new,
                    const struct qcow2_tree *old, struct rhea_error *err)
{
    int r = apply_bitmaps(q, size, err);

    if (r == 0)
        r = qcow2_tree_raise(q, new, err);
    if (r < 0)
        return r;
    r = qcow2_l1_replace(q, l1, n, size, err);
    if (r < 0) {
        qcow2_tree_lower(q, new);
        return r;
    }
    qcow2_cache_clear(&q->l2);
    r = qcow2_bitmaps_touch(q, 0, size, err);
    if (r == 0)
        r = qcow2_tree_release(q, old, err);
    return r == 0 ? change_end(q, err) : r;
}

int qcow2_snapshot_apply(struct rhea_format *f, const char *which,
                         struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_tree new = {0}, old = {0};
    RHEA_AUTO_FREE uint64_t *l1 = NULL;
    const struct qcow2_snapshot *s = NULL;
    uint64_t n = 0;
    int r;

    RHEA_LOCKED(&q->lock);
    r = change_begin(q, err);
    if (r == 0) {
        s = qcow2_snapshot_find(q, which, err);
        r = s ? apply_check(q, s, err) : -ENOENT;
    }
    if (r == 0) {
        n = div_up(s->s.disk_size, 1ULL << qcow2_l1_shift(q));
        n = RHEA_MAX(n, RHEA_MAX(s->l1_size, q->l1_size));
        r = qcow2_snapshot_l1(q, s, (uint32_t)n, &l1, err);
    }
    if (r == 0)
        r = qcow2_tree_count(q, &new, l1, (uint32_t)n, 1, err);
    if (r == 0)
        r = qcow2_tree_count(q, &old, q->l1, q->l1_size, -1, err);
    /* Bitmaps that follow writes: all may be different now. */
    if (r == 0)
        r = qcow2_bitmaps_touch(q, 0, q->f.size, err);
    if (r == 0)
        r = apply_do(q, l1, (uint32_t)n, s->s.disk_size, &new, &old, err);
    qcow2_tree_free(&new);
    qcow2_tree_free(&old);
    return r;
}

static int delete_do(struct qcow2 *q, uint32_t index,
                     const struct qcow2_tree *tree, struct rhea_error *err)
{
    uint32_t n = q->n_snapshots;
    uint64_t l1_offset = q->snapshots[index].l1_offset;
    uint64_t l1_bytes = (uint64_t)q->snapshots[index].l1_size * 8;
    RHEA_AUTO_FREE struct qcow2_snapshot *list = calloc(n, sizeof(*list));
    int r;

    if (!list)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(list, q->snapshots, index * sizeof(*list));
    memcpy(list + index, q->snapshots + index + 1,
           (n - index - 1) * sizeof(*list));
    r = change_table(q, list, n - 1, false, err);
    if (r == 0)
        r = qcow2_tree_release(q, tree, err);
    if (r == 0)
        r = change_release_run(q, l1_offset, l1_bytes, err);
    if (r == 0)
        r = qcow2_sync_all(q, err);
    /* The flags after the refcounts that they rely on. */
    if (r == 0)
        r = qcow2_flags_update(q, err);
    return r == 0 ? change_end(q, err) : r;
}

int qcow2_snapshot_delete(struct rhea_format *f, const char *which,
                          struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_tree tree = {0};
    RHEA_AUTO_FREE uint64_t *l1 = NULL;
    const struct qcow2_snapshot *s = NULL;
    int r;

    RHEA_LOCKED(&q->lock);
    r = change_begin(q, err);
    if (r == 0) {
        s = qcow2_snapshot_find(q, which, err);
        r = s ? qcow2_snapshot_l1(q, s, 0, &l1, err) : -ENOENT;
    }
    if (r == 0)
        r = qcow2_tree_count(q, &tree, l1, s->l1_size, -1, err);
    if (r == 0)
        r = delete_do(q, (uint32_t)(s - q->snapshots), &tree, err);
    qcow2_tree_free(&tree);
    return r;
}
