/* SPDX-License-Identifier: MIT */
/*
 * Guest writes. Where a cluster is this image's alone (COPIED), it is written
 * in place, outside of the lock. Else clusters are allocated under the lock,
 * filled outside of it (the guest's bytes, and around them what was there
 * before), and mapped under the lock again; meanwhile the guest clusters are
 * "in flight", and whoever wants to map them too waits. Their entries reach
 * the disk later, in the order of sync.c.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* The most that one step allocates, and what it copies in one piece. */
#define WRITE_STEP (8U << 20)
#define WRITE_BOUNCE (256U << 10)

struct write_step {
    uint64_t offset, end; /* guest bytes of the caller's */
    const uint8_t *buf;   /* NULL: those that another storage has, to be cloned;
                             whole clusters */
    struct rhea_storage *source;
    uint64_t source_offset;
    bool in_place;
    bool alloc;    /* clusters are new, else reserved before */
    bool fresh;    /* and read as zeroes */
    uint64_t base; /* guest offset of the first cluster */
    uint64_t host; /* where it goes */
    unsigned clusters;
    uint64_t from, to; /* guest bytes to be filled */
    struct qcow2_flight flight;
};

void qcow2_flight_wait(struct qcow2 *q, uint64_t start, uint64_t end)
{
    struct qcow2_flight *f = q->flights;

    while (f) {
        if (f->start < end && start < f->end) {
            pthread_cond_wait(&q->landed, &q->lock);
            f = q->flights;
        } else {
            f = f->next;
        }
    }
}

void qcow2_flight_begin(struct qcow2 *q, struct qcow2_flight *flight,
                        uint64_t start, uint64_t end)
{
    *flight = (struct qcow2_flight){start, end, q->flights};
    q->flights = flight;
}

void qcow2_flight_end(struct qcow2 *q, struct qcow2_flight *flight)
{
    struct qcow2_flight **at = &q->flights;

    while (*at != flight)
        at = &(*at)->next;
    *at = flight->next;
    pthread_cond_broadcast(&q->landed);
}

/* Where the first flight after OFFSET begins, at most END. */
static uint64_t write_until_flight(const struct qcow2 *q, uint64_t offset,
                                   uint64_t end)
{
    for (const struct qcow2_flight *f = q->flights; f; f = f->next)
        if (f->start > offset && f->start < end)
            end = f->start;
    return end;
}

void qcow2_entry_set(struct qcow2 *q, struct qcow2_slice *slice, unsigned index,
                     struct qcow2_entry e)
{
    uint8_t *at = slice->data + ((size_t)index << q->entry_bits);

    store_be64(at, e.entry);
    if (q->entry_bits == 4)
        store_be64(at + 8, e.bitmap);
    qcow2_cache_dirty(&q->l2, slice);
}

int qcow2_entry_release(struct qcow2 *q, struct qcow2_entry e, bool punch,
                        struct rhea_error *err)
{
    uint64_t host = e.entry & QCOW2_OFFSET_MASK, length = 1;
    int r;

    /* A data file's clusters are not counted, and keep their places. */
    if (qcow2_external(q))
        return 0;
    if (e.entry & QCOW2_COMPRESSED)
        qcow2_compressed_place(q, e.entry, &host, &length);
    else if (!host)
        return 0;
    r = qcow2_overlap_check(q, host, length, err);
    if (r < 0)
        return r;
    return qcow2_release(q, host >> q->cluster_bits,
                         ((host + length - 1) >> q->cluster_bits) -
                             (host >> q->cluster_bits) + 1,
                         punch, err);
}

/* A table for this image alone, a copy of the one at OLD or empty. It is in
 * the file before anything points to it. */
static int write_new_table(struct qcow2 *q, uint32_t l1_index, uint64_t old,
                           struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = calloc(1, q->cluster_size);
    uint64_t cluster = 0, got;
    bool fresh;
    int r = 0;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    /* A shared table is never dirty, so the file has it as it is. */
    rhea_storage_event(q->f.storage, "l2_alloc_cow_read");
    if (old)
        r = rhea_storage_read_padded(q->f.storage, table, q->cluster_size, old,
                                     err);
    if (r == 0)
        r = qcow2_alloc(q, 1, &cluster, &got, &fresh, err);
    if (r < 0)
        return r;
    rhea_storage_event(q->f.storage, "l2_alloc_write");
    r = rhea_storage_write(q->f.storage, table, q->cluster_size,
                           cluster << q->cluster_bits, err);
    if (r < 0) {
        (void)qcow2_refcount_add(q, cluster, 1, -1, NULL);
        return r;
    }
    /* Lazy refcounts are those of data: a table is counted before it is used,
     * so that less is wrong after a crash. */
    if (q->incompatible & QCOW2_INCOMPAT_DIRTY) {
        r = qcow2_fail(q, qcow2_refs_write(q, err));
        if (r < 0)
            return r;
    }
    qcow2_cache_forget(&q->l2, cluster << q->cluster_bits, q->cluster_size);
    if (cluster < q->tables.n_bits)
        bitmap_set(&q->tables, cluster, 1);
    qcow2_l1_set(q, l1_index, cluster << q->cluster_bits | QCOW2_COPIED);
    return old ? qcow2_release(q, old >> q->cluster_bits, 1, false, err) : 0;
}

int qcow2_l2_get_writable(struct qcow2 *q, uint64_t offset,
                          struct qcow2_slice **slice, unsigned *index,
                          struct rhea_error *err)
{
    uint32_t l1_index = (uint32_t)(offset >> qcow2_l1_shift(q));
    uint64_t entry = q->l1[l1_index], host = entry & QCOW2_OFFSET_MASK;
    int r = qcow2_l1_entry_check(q, l1_index, entry, err);

    if (r == 0 && !(host && entry & QCOW2_COPIED))
        r = write_new_table(q, l1_index, host, err);
    return r < 0 ? r : qcow2_l2_get(q, offset, slice, index, err);
}

static bool write_is_own(const struct qcow2 *q, struct qcow2_entry e)
{
    return !(e.entry & QCOW2_COMPRESSED) && e.entry & QCOW2_COPIED &&
           qcow2_entry_has_host(q, e.entry);
}

/* The allocation bits of the subclusters that [FROM, TO) of a cluster, given
 * by guest offsets, touches. */
static uint64_t write_sub_bits(const struct qcow2 *q, uint64_t cluster,
                               uint64_t from, uint64_t to)
{
    uint64_t end = cluster + q->cluster_size, first, last;

    from = RHEA_MAX(from, cluster);
    to = RHEA_MIN(to, end);
    if (from >= to)
        return 0;
    first = (from - cluster) >> q->subcluster_bits;
    last = (to - 1 - cluster) >> q->subcluster_bits;
    return ((1ULL << (last + 1)) - 1) & ~((1ULL << first) - 1);
}

/* Whether [FROM, TO) of a cluster can be written where it is. */
static bool write_in_place_ok(const struct qcow2 *q, struct qcow2_entry e,
                              uint64_t cluster, uint64_t from, uint64_t to)
{
    uint64_t bits;

    if (!write_is_own(q, e))
        return false;
    if (!qcow2_extended(q))
        return !(e.entry & QCOW2_ZERO);
    bits = write_sub_bits(q, cluster, from, to);
    return (e.bitmap & bits) == bits;
}

/* Whether the cluster of E, at guest offset AT, is this image's alone and goes
 * on where the one before it ends. */
static bool write_goes_on(struct qcow2 *q, const struct write_step *step,
                          uint64_t at, struct qcow2_entry e)
{
    uint64_t host = step->host + (at - step->base);

    return write_is_own(q, e) && (e.entry & QCOW2_OFFSET_MASK) == host &&
           (qcow2_external(q) || qcow2_in_file(q, host)) &&
           qcow2_entry_check(q, at, e, NULL) == 0;
}

/* Data goes into clusters that were reserved, some of which held none there:
 * LAST is the last one's entry. */
static void write_plan_reserved(struct qcow2 *q, struct write_step *step,
                                struct qcow2_entry first,
                                struct qcow2_entry last)
{
    uint64_t unit = 1ULL << q->subcluster_bits;
    uint64_t tail = step->base + ((step->clusters - 1ULL) << q->cluster_bits);

    step->in_place = false;
    step->from = align_down(step->offset, unit);
    step->to = align_up(step->end, unit);
    /* What is there already is not copied. */
    if (write_in_place_ok(q, first, step->base, step->from, step->from + 1))
        step->from = step->offset;
    if (write_in_place_ok(q, last, tail, step->to - 1, step->to))
        step->to = step->end;
}

/* The clusters from STEP->base on that are this image's alone, one behind the
 * other, so that one write covers them: in place where all hold data. */
static void write_plan_own(struct qcow2 *q, struct write_step *step,
                           const struct qcow2_slice *slice, unsigned index)
{
    struct qcow2_entry first = qcow2_entry_get(q, slice, index), last = first;
    unsigned n = qcow2_slice_entries(q), most;
    uint64_t at = step->base;

    step->host = first.entry & QCOW2_OFFSET_MASK;
    step->clusters = 0;
    step->in_place = true;
    most = RHEA_MAX(1, WRITE_STEP >> q->cluster_bits);
    while (index < n && at < step->end) {
        struct qcow2_entry e = qcow2_entry_get(q, slice, index++);
        bool data =
            write_in_place_ok(q, e, at, RHEA_MAX(at, step->offset), step->end);

        if (at > step->base && !write_goes_on(q, step, at, e))
            break;
        /* Those in place may be many, for nobody waits for them. */
        if (step->clusters >= most && !(step->in_place && data))
            break;
        step->in_place &= data;
        step->clusters++;
        last = e;
        at += q->cluster_size;
    }
    step->end = RHEA_MIN(step->end, at);
    if (!step->in_place)
        write_plan_reserved(q, step, first, last);
}

/* Whether all of a cluster moves when it gets a new host cluster. */
static bool write_moves_all(const struct qcow2 *q, struct qcow2_entry e)
{
    return !qcow2_extended(q) || e.entry & QCOW2_COMPRESSED ||
           e.bitmap & QCOW2_ALL_ALLOCATED;
}

static int write_plan_alloc(struct qcow2 *q, struct write_step *step,
                            const struct qcow2_slice *slice, unsigned index,
                            struct rhea_error *err)
{
    uint64_t unit = 1ULL << q->subcluster_bits, cluster, got;
    unsigned n = 1, most;
    struct qcow2_entry first = qcow2_entry_get(q, slice, index), last;
    int r;

    most = (unsigned)RHEA_MIN(div_up(step->end - step->base, q->cluster_size),
                              RHEA_MAX(1, WRITE_STEP >> q->cluster_bits));
    most = RHEA_MIN(most, qcow2_slice_entries(q) - index);
    for (; n < most; n++) {
        struct qcow2_entry e = qcow2_entry_get(q, slice, index + n);

        if (write_is_own(q, e) ||
            qcow2_entry_check(q, step->base + ((uint64_t)n << q->cluster_bits),
                              e, NULL) < 0)
            break;
    }
    if (qcow2_external(q)) {
        cluster = step->base >> q->cluster_bits;
        got = n;
        r = 0;
    } else {
        r = qcow2_alloc(q, n, &cluster, &got, &step->fresh, err);
    }
    if (r < 0)
        return r;
    /* Encrypted, zeroes have to be written. */
    step->fresh = step->fresh && !q->crypt_method;
    step->alloc = true;
    step->host = cluster << q->cluster_bits;
    step->clusters = (unsigned)got;
    step->end = RHEA_MIN(step->end, step->base + (got << q->cluster_bits));
    last = qcow2_entry_get(q, slice, index + (unsigned)got - 1);
    step->from =
        write_moves_all(q, first) ? step->base : align_down(step->offset, unit);
    step->to =
        align_up(step->end, write_moves_all(q, last) ? q->cluster_size : unit);
    return 0;
}

/* Decide on the first part of [offset, end), under the lock. */
static int write_plan(struct qcow2 *q, struct write_step *step,
                      struct rhea_error *err)
{
    struct qcow2_slice *slice;
    struct qcow2_entry e;
    uint64_t host;
    unsigned index;
    int r = qcow2_write_begin(q, err);

    if (r == 0)
        r = qcow2_bitmaps_touch(q, step->offset, step->end, err);
    if (r == 0)
        r = qcow2_reclaim(q, err);
    if (r < 0)
        return r;
    step->base = align_down(step->offset, q->cluster_size);
    qcow2_flight_wait(q, step->base, step->base + q->cluster_size);
    step->end = write_until_flight(q, step->offset, step->end);
    r = qcow2_l2_get_writable(q, step->offset, &slice, &index, err);
    if (r < 0)
        return r;
    e = qcow2_entry_get(q, slice, index);
    r = qcow2_entry_check(q, step->offset, e, err);
    if (r < 0)
        return r;
    host = e.entry & QCOW2_OFFSET_MASK;
    /* A damaged place must not make the file as long as that. */
    if (write_is_own(q, e) && !qcow2_external(q) && !qcow2_in_file(q, host))
        return rhea_error_set(err, EIO,
                              "the cluster reserved for guest offset 0x%" PRIx64
                              ", at 0x%" PRIx64
                              ", lies past the end of the file",
                              step->offset, host);
    if (write_is_own(q, e)) {
        write_plan_own(q, step, slice, index);
        r = qcow2_overlap_check(q, step->host, step->end - step->base, err);
    } else {
        r = write_plan_alloc(q, step, slice, index, err);
    }
    if (r == 0 && !step->in_place)
        qcow2_flight_begin(q, &step->flight, step->base,
                           step->base +
                               ((uint64_t)step->clusters << q->cluster_bits));
    return r;
}

static int write_host(struct qcow2 *q, const struct write_step *step,
                      uint64_t guest, const void *buf, uint64_t len,
                      struct rhea_error *err)
{
    if (!len)
        return 0;
    return qcow2_data_write(q, q->guest, step->host + (guest - step->base),
                            guest, buf, len, err);
}

/* Put the caller's bytes where they belong. */
static int write_caller(struct qcow2 *q, const struct write_step *step,
                        struct rhea_error *err)
{
    uint64_t len = step->end - step->offset;

    rhea_storage_event(q->f.storage, "write_aio");
    if (step->buf)
        return write_host(q, step, step->offset, step->buf, len, err);
    return rhea_storage_clone(q->guest,
                              step->host + (step->offset - step->base),
                              step->source, step->source_offset, len, err);
}

/* Copy guest bytes that the caller does not write to their new place. */
static int write_copy(struct qcow2 *q, const struct write_step *step,
                      uint64_t from, uint64_t to, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = NULL;
    int r;

    if (from == to)
        return 0;
    buf = malloc(to - from);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(q->f.storage, "cow_read");
    r = qcow2_read_guest(q, from, buf, to - from, err);
    if (r < 0)
        return r;
    rhea_storage_event(q->f.storage, "cow_write");
    return write_host(q, step, from, buf, to - from, err);
}

/* Head, the caller's bytes and tail in one write. */
static int write_bounce(struct qcow2 *q, const struct write_step *step,
                        uint64_t from, uint64_t to, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(to - from);
    int r;

    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(q->f.storage, "cow_read");
    r = qcow2_read_guest(q, from, buf, step->offset - from, err);
    if (r == 0)
        r = qcow2_read_guest(q, step->end, buf + (step->end - from),
                             to - step->end, err);
    if (r < 0)
        return r;
    memcpy(buf + (step->offset - from), step->buf, step->end - step->offset);
    rhea_storage_event(q->f.storage, "write_aio");
    return write_host(q, step, from, buf, to - from, err);
}

static int write_fill(struct qcow2 *q, const struct write_step *step,
                      struct rhea_error *err)
{
    uint64_t from = step->from, to = step->to;
    bool zero = false;
    int r = 0;

    /* New clusters past the end of the file are zeroes by themselves. */
    if (step->fresh && from < step->offset)
        r = qcow2_guest_zero(q, from, step->offset - from, &zero, err);
    if (zero)
        from = step->offset;
    zero = false;
    if (r == 0 && step->fresh && to > step->end)
        r = qcow2_guest_zero(q, step->end, to - step->end, &zero, err);
    if (zero)
        to = RHEA_MIN(to, align_up(step->end, 512)); /* files of sectors */
    if (r < 0)
        return r;
    if (to - from != step->end - step->offset &&
        to - from <= RHEA_MAX(WRITE_BOUNCE, q->cluster_size))
        return write_bounce(q, step, from, to, err);
    r = write_copy(q, step, from, step->offset, err);
    if (r == 0)
        r = write_caller(q, step, err);
    if (r == 0)
        r = write_copy(q, step, step->end, to, err);
    return r;
}

static struct qcow2_entry write_new_entry(const struct qcow2 *q,
                                          const struct write_step *step,
                                          unsigned i, struct qcow2_entry old)
{
    uint64_t at = (uint64_t)i << q->cluster_bits, bits;
    struct qcow2_entry e = {(step->host + at) | QCOW2_COPIED, 0};

    if (!qcow2_extended(q))
        return e;
    bits = write_sub_bits(q, step->base + at, step->from, step->to);
    if (step->alloc && write_moves_all(q, old))
        old.bitmap = 0;
    e.bitmap = (old.bitmap | bits) & ~(bits << 32);
    return e;
}

/* Enter what was filled into the L2 table, under the lock. */
static int write_link(struct qcow2 *q, const struct write_step *step,
                      struct rhea_error *err)
{
    struct qcow2_slice *slice;
    unsigned index;
    int r = qcow2_l2_get_writable(q, step->base, &slice, &index, err);

    for (unsigned i = 0; r == 0 && i < step->clusters; i++) {
        struct qcow2_entry old = qcow2_entry_get(q, slice, index + i);

        qcow2_entry_set(q, slice, index + i, write_new_entry(q, step, i, old));
        if (step->alloc)
            r = qcow2_entry_release(q, old, false, err);
    }
    return r;
}

static int write_move(struct qcow2 *q, struct write_step *step,
                      struct rhea_error *err)
{
    int r = write_fill(q, step, err);

    RHEA_LOCKED(&q->lock);
    if (r < 0 && step->alloc && !qcow2_external(q))
        (void)qcow2_refcount_add(q, step->host >> q->cluster_bits,
                                 step->clusters, -1, NULL);
    if (r == 0)
        r = write_link(q, step, err);
    qcow2_flight_end(q, &step->flight);
    return r;
}

/* All of STEP, in as many as it takes. */
static int write_area(struct qcow2 *q, struct write_step what,
                      struct rhea_error *err)
{
    while (what.offset < what.end) {
        struct write_step step = what;
        uint64_t done;
        int r;

        pthread_mutex_lock(&q->lock);
        r = write_plan(q, &step, err);
        if (r == 0 && step.in_place)
            pthread_rwlock_rdlock(&q->data);
        pthread_mutex_unlock(&q->lock);
        if (r < 0)
            return r;
        if (step.in_place) {
            r = write_caller(q, &step, err);
            pthread_rwlock_unlock(&q->data);
        } else {
            r = write_move(q, &step, err);
        }
        if (r < 0)
            return r;
        done = step.end - what.offset;
        what.offset += done;
        what.source_offset += done;
        what.buf = what.buf ? what.buf + done : NULL;
    }
    return 0;
}

int qcow2_write_area(struct qcow2 *q, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err)
{
    struct write_step step = {
        .offset = offset, .end = offset + len, .buf = buf};
    int refused = qcow2_crypt_refuse(q, err);

    return refused ? refused : write_area(q, step, err);
}

static int write_check(const struct qcow2 *q, uint64_t offset, uint64_t len,
                       struct rhea_error *err)
{
    if (range_inside(offset, len, q->f.size))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "%" PRIu64 " bytes at guest offset 0x%" PRIx64
                          " are not inside the image",
                          len, offset);
}

int qcow2_write(struct rhea_format *f, uint64_t offset, const void *buf,
                size_t len, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r = write_check(q, offset, len, err);

    return r < 0 ? r : qcow2_write_area(q, offset, buf, len, err);
}

int qcow2_clone(struct rhea_format *f, uint64_t offset,
                struct rhea_storage *from, uint64_t from_offset, uint64_t len,
                struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct write_step step = {.offset = offset,
                              .end = offset + len,
                              .source = from,
                              .source_offset = from_offset};
    int r = write_check(q, offset, len, err);

    if (r < 0)
        return r;
    if (q->crypt_method || !is_aligned(offset | len, q->cluster_size))
        return rhea_error_set(err, ENOTSUP,
                              q->crypt_method
                                  ? "an encrypted image shares no blocks"
                                  : "only whole clusters can be shared");
    /* Asked first: what is allocated is filled then. */
    r = rhea_storage_clone(q->guest, 0, from, from_offset, 0, err);
    return r < 0 ? r : write_area(q, step, err);
}
