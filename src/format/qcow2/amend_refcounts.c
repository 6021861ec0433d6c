/* SPDX-License-Identifier: MIT */
/*
 * Refcounts of another width: all references are counted, and a new refcount
 * structure is made of that, in the order of repair.c. The header's pointer to
 * it and the width are in one sector. What the old one took is then given back;
 * a crash before that leaks it.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/check.h"

static void convert_set_order(struct qcow2 *q, unsigned order)
{
    q->refcount_order = order;
    q->block_bits = q->cluster_bits + 3 - order;
    q->refcount_max = order == 6 ? UINT64_MAX : (1ULL << (1U << order)) - 1;
}

static int convert_count(struct qcow2_checker *c)
{
    int r = qcow2_check_tally(c);

    if (r == 0 && (c->result->corruptions || c->result->errors || c->rebuild))
        r = rhea_error_set(c->err, EINVAL,
                           "the image has errors, or clusters with more "
                           "references than refcounts of that width can count");
    return r;
}

/* The old structure and other leaks go. */
static int convert_tidy(struct qcow2_checker *c)
{
    int r = qcow2_check_tally(c);

    if (r == 0)
        r = qcow2_check_compare(c, RHEA_FIX_LEAKS);
    return r == 0 ? qcow2_refs_write(c->q, c->err) : r;
}

static int convert_do(struct qcow2_checker *c, unsigned order)
{
    struct qcow2 *q = c->q;
    unsigned old = q->refcount_order;
    int r;

    /* What is counted must fit the new width. */
    convert_set_order(q, order);
    r = convert_count(c);
    if (r == 0)
        r = qcow2_fail(q, qcow2_refs_rebuild(c));
    if (r < 0) {
        convert_set_order(q, old);
        return r;
    }
    return qcow2_fail(q, convert_tidy(c));
}

int qcow2_refs_convert(struct qcow2 *q, unsigned order, struct rhea_error *err)
{
    struct rhea_check result = {0};
    struct qcow2_checker c = {.q = q, .result = &result, .err = err};
    int r;

    RHEA_LOCKED(&q->lock);
    qcow2_flight_wait(q, 0, UINT64_MAX);
    r = qcow2_sync_all(q, err);
    if (r < 0)
        return r;
    r = convert_do(&c, order);
    qcow2_check_finish(&c);
    if (r < 0)
        return r;
    /* Places in memory are those of the old structure. */
    qcow2_refs_finish(q);
    qcow2_write_reset(q);
    return qcow2_write_begin(q, err);
}
