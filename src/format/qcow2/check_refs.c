/* SPDX-License-Identifier: MIT */
/* A check's second half: refcounts and COPIED flags against what was found. */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/check.h"

/* One cluster whose refcount is not what it should be. Scripts read these
 * lines, so they are qemu-img's. */
static void check_mismatch(struct qcow2_checker *c, uint64_t cluster,
                           uint64_t refcount, uint64_t references, unsigned fix)
{
    struct rhea_check *res = c->result;
    bool leak = refcount > references;
    bool repair = refcount && fix & (leak ? RHEA_FIX_LEAKS : RHEA_FIX_ERRORS);

    check_tell(c->result, !leak && !repair,
               "%scluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
               repair ? "Repairing "
               : leak ? "Leaked "
                      : "",
               cluster, refcount, references);
    if (!refcount)
        c->rebuild = true;
    else if (repair &&
             qcow2_refcount_add(c->q, cluster, 1,
                                (int64_t)(references - refcount), NULL) == 0) {
        if (leak)
            res->leaks_fixed++;
        else
            res->corruptions_fixed++;
        return;
    }
    if (leak)
        res->leaks++;
    else
        res->corruptions++;
}

int qcow2_check_compare(struct qcow2_checker *c, unsigned fix)
{
    struct qcow2_tally *t = &c->tally;

    c->highest = 0;
    for (uint64_t i = 0; i < t->n; i++) {
        uint64_t references = qcow2_tally_get(t, i), refcount;
        int r = qcow2_refcount_get(c->q, i, &refcount, NULL);

        if (i % 1048576 == 0)
            rhea_progress_report(c->result->progress, "compare refcounts", i,
                                 t->n);
        if (r < 0) {
            c->result->errors++;
            continue;
        }
        if (refcount || references)
            c->highest = i;
        if (refcount != references)
            check_mismatch(c, i, refcount, references, fix);
    }
    return 0;
}

/* Whether an entry's COPIED flag is wrong. Where the refcount cannot be told,
 * that was a finding already. */
static bool check_flag_wrong(struct qcow2_checker *c, uint64_t entry,
                             bool external, uint64_t *refcount)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    *refcount = 1;
    if (!external && qcow2_refcount_get(c->q, host >> c->q->cluster_bits,
                                        refcount, NULL) < 0)
        return false;
    return (*refcount == 1) != !!(entry & QCOW2_COPIED);
}

/* Correct the flags of one table; the number of wrong ones. */
static unsigned check_table_flags(struct qcow2_checker *c, uint8_t *table,
                                  bool repair)
{
    struct qcow2 *q = c->q;
    unsigned wrong = 0;

    for (unsigned i = 0; i < 1U << q->l2_bits; i++) {
        uint8_t *at = table + ((size_t)i << q->entry_bits);
        uint64_t entry = load_be64(at), refcount;

        if (entry & QCOW2_COMPRESSED || !(entry & QCOW2_OFFSET_MASK) ||
            !check_flag_wrong(c, entry, qcow2_external(q), &refcount))
            continue;
        c->result->corruptions++;
        check_tell(c->result, !repair,
                   "%sOFLAG_COPIED data cluster: l2_entry=%" PRIx64
                   " refcount=%" PRIu64,
                   repair ? "Repairing " : "", entry, refcount);
        if (repair)
            store_be64(at, entry ^ QCOW2_COPIED);
        wrong++;
    }
    return wrong;
}

static int check_table_copied(struct qcow2_checker *c, uint64_t host,
                              uint8_t *table, bool repair)
{
    struct qcow2 *q = c->q;
    unsigned wrong;
    int r = rhea_storage_read_padded(q->f.storage, table, q->cluster_size, host,
                                     c->err);

    if (r < 0) {
        c->result->errors++;
        return r;
    }
    wrong = check_table_flags(c, table, repair);
    if (!wrong || !repair)
        return 0;
    r = qcow2_check_guard(c, host);
    if (r < 0)
        return r;
    r = rhea_storage_write(q->f.storage, table, q->cluster_size, host, c->err);
    if (r < 0) {
        c->result->errors++;
        return r;
    }
    c->result->corruptions -= wrong;
    c->result->corruptions_fixed += wrong;
    return 0;
}

static int check_l1_copied(struct qcow2_checker *c, uint32_t i, bool repair)
{
    struct qcow2 *q = c->q;
    uint64_t refcount;
    uint8_t entry[8];
    int r;

    if (!check_flag_wrong(c, q->l1[i], false, &refcount))
        return 0;
    c->result->corruptions++;
    check_tell(c->result, !repair,
               "%sOFLAG_COPIED L2 cluster: l1_index=%" PRIu32
               " l1_entry=%" PRIx64 " refcount=%" PRIu64,
               repair ? "Repairing " : "", i, q->l1[i], refcount);
    if (!repair)
        return 0;
    store_be64(entry, q->l1[i] ^ QCOW2_COPIED);
    r = rhea_storage_write(q->f.storage, entry, 8,
                           q->l1_offset + (uint64_t)i * 8, c->err);
    if (r < 0) {
        c->result->errors++;
        return r;
    }
    q->l1[i] ^= QCOW2_COPIED;
    c->result->corruptions--;
    c->result->corruptions_fixed++;
    return 0;
}

int qcow2_check_copied(struct qcow2_checker *c)
{
    struct qcow2 *q = c->q;
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    const struct rhea_check *res = c->result;
    bool repair = c->fix & RHEA_FIX_ERRORS;
    int r = 0;

    if (!table)
        return rhea_error_set(c->err, ENOMEM, "out of memory");
    /* The flags follow the refcounts, so with leaks alone to be repaired they
     * are only corrected once the refcounts are right. */
    if (!repair && c->fix & RHEA_FIX_LEAKS)
        repair = !res->errors && !res->corruptions && !res->leaks;
    r = qcow2_check_unsee(c);
    for (uint32_t i = 0; r == 0 && i < q->l1_size; i++) {
        uint64_t host = q->l1[i] & QCOW2_OFFSET_MASK;

        if (!host)
            continue;
        r = check_l1_copied(c, i, repair);
        if (r == 0 && !qcow2_check_seen(c, host))
            r = check_table_copied(c, host, table, repair);
    }
    return r;
}
