/* SPDX-License-Identifier: MIT */
/*
 * Several storages that hold the same bytes. What is written goes to all; what
 * is read is what most of them say, at least as many as option vote-threshold
 * asks for, or (read-pattern=fifo) what the first says that can be read. The
 * options are QEMU's (qapi/block-core.json, BlockdevOptionsQuorum).
 *
 * A change has to succeed on vote-threshold of them; one that fails elsewhere
 * is told of, and leaves a child behind that is outvoted from then on.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/notice.h"
#include "storage/driver.h"

enum { QUORUM_CHILDREN_MAX = 32 };

struct quorum {
    struct rhea_storage head;
    struct rhea_storage *child[QUORUM_CHILDREN_MAX];
    unsigned n, threshold;
    bool fifo;    /* read-pattern */
    bool rewrite; /* what is outvoted is written anew */
};

static struct quorum *quorum_of(const struct rhea_storage *s)
{
    return (struct quorum *)s;
}

/* The children's answers to one question, counted. */
struct quorum_count {
    unsigned ok;
    int first; /* the first error; 0: none */
};

/* Child I has answered RET with ERROR. */
static void quorum_answer(const struct quorum *q, struct quorum_count *c,
                          unsigned i, int ret, const struct rhea_error *error)
{
    char text[sizeof(error->text) + 64];
    if (ret >= 0) {
        c->ok++;
        return;
    }
    if (!c->first)
        c->first = ret;
    (void)snprintf(text, sizeof(text), "child %u of %u of the quorum: %s", i,
                   q->n, error->text);
    notice(false, text);
}

static int quorum_settle(const struct quorum *q, const struct quorum_count *c,
                         const char *verb, struct rhea_error *err)
{
    if (c->ok >= q->threshold)
        return 0;
    return rhea_error_set(err, c->first ? -c->first : EIO,
                          "could not %s: only %u of %u children of the quorum "
                          "could, and it takes %u",
                          verb, c->ok, q->n, q->threshold);
}

/* Reads as many bytes as there are; a child that is too short disagrees. */
static int64_t quorum_read_child(struct quorum *q, unsigned i, void *buf,
                                 size_t len, uint64_t offset,
                                 struct rhea_error *err)
{
    return q->child[i]->ops->pread(q->child[i], buf, len, offset, err);
}

static int64_t quorum_read_first(struct quorum *q, void *buf, size_t len,
                                 uint64_t offset, struct rhea_error *err)
{
    int64_t got = -EIO;
    for (unsigned i = 0; got < 0 && i < q->n; i++)
        got = quorum_read_child(q, i, buf, len, offset, err);
    return got;
}

/* What each child says, and how many agree with it. */
struct quorum_vote {
    uint8_t *data;
    int64_t got; /* bytes, or a negative errno */
    unsigned voices;
};

static bool quorum_agree(const struct quorum_vote *a,
                         const struct quorum_vote *b)
{
    return a->got >= 0 && a->got == b->got &&
           memcmp(a->data, b->data, (size_t)a->got) == 0;
}

/* The index of the answer that most agree on. */
static unsigned quorum_elect(struct quorum_vote *votes, unsigned n)
{
    unsigned best = 0;
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < n; k++)
            votes[i].voices += quorum_agree(&votes[i], &votes[k]);
        if (votes[i].voices > votes[best].voices)
            best = i;
    }
    return best;
}

static void quorum_rewrite(struct quorum *q, const struct quorum_vote *votes,
                           unsigned best, uint64_t offset)
{
    struct rhea_error error;
    if (!q->rewrite || !q->head.writable || votes[best].got <= 0)
        return;
    for (unsigned i = 0; i < q->n; i++) {
        struct quorum_count count = {0};
        if (quorum_agree(&votes[best], &votes[i]))
            continue;
        int ret = rhea_storage_write(q->child[i], votes[best].data,
                                     (size_t)votes[best].got, offset, &error);
        quorum_answer(q, &count, i, ret, &error);
    }
}

static int64_t quorum_read_most(struct quorum *q, uint8_t *room, size_t len,
                                uint64_t offset, void *buf,
                                struct rhea_error *err)
{
    struct quorum_vote votes[QUORUM_CHILDREN_MAX] = {{0}};
    struct quorum_count count = {0};
    struct rhea_error error;
    for (unsigned i = 0; i < q->n; i++) {
        votes[i].data = room + i * len;
        votes[i].got =
            quorum_read_child(q, i, votes[i].data, len, offset, &error);
        quorum_answer(q, &count, i, votes[i].got < 0 ? (int)votes[i].got : 0,
                      &error);
    }
    int ret = quorum_settle(q, &count, "read", err);
    if (ret)
        return ret;
    unsigned best = quorum_elect(votes, q->n);
    if (votes[best].voices < q->threshold)
        return rhea_error_set(err, EIO,
                              "the children of the quorum disagree: at most %u "
                              "of %u have the same %zu bytes at offset %" PRIu64
                              ", and it takes %u",
                              votes[best].voices, q->n, len, offset,
                              q->threshold);
    memcpy(buf, votes[best].data, (size_t)votes[best].got);
    if (votes[best].voices < q->n)
        quorum_rewrite(q, votes, best, offset);
    return votes[best].got;
}

static int64_t quorum_pread(struct rhea_storage *s, void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    if (q->fifo || q->n == 1)
        return quorum_read_first(q, buf, len, offset, err);
    RHEA_AUTO_FREE uint8_t *room = calloc(q->n, len);
    if (!room)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return quorum_read_most(q, room, len, offset, buf, err);
}

static int quorum_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    struct quorum_count count = {0};
    struct rhea_error error;
    for (unsigned i = 0; i < q->n; i++)
        quorum_answer(q, &count, i,
                      rhea_storage_write(q->child[i], buf, len, offset, &error),
                      &error);
    return quorum_settle(q, &count, "write", err);
}

static int quorum_flush(struct rhea_storage *s, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    struct quorum_count count = {0};
    struct rhea_error error;
    for (unsigned i = 0; i < q->n; i++)
        quorum_answer(q, &count, i, rhea_storage_flush(q->child[i], &error),
                      &error);
    return quorum_settle(q, &count, "flush", err);
}

static int quorum_size(struct rhea_storage *s, uint64_t *size,
                       struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    uint64_t other;
    int ret = rhea_storage_size(q->child[0], size, err);
    for (unsigned i = 1; !ret && i < q->n; i++) {
        ret = rhea_storage_size(q->child[i], &other, err);
        if (!ret && other != *size)
            ret = rhea_error_set(err, EIO,
                                 "the children of the quorum are not of one "
                                 "size: %" PRIu64 " and %" PRIu64 " bytes",
                                 *size, other);
    }
    return ret;
}

static int quorum_truncate(struct rhea_storage *s, uint64_t size,
                           struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    int ret = 0;
    /* All, for they have to be of one size. */
    for (unsigned i = 0; !ret && i < q->n; i++)
        ret = rhea_storage_truncate(q->child[i], size, err);
    return ret;
}

static int quorum_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool punch, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    struct quorum_count count = {0};
    struct rhea_error error;
    for (unsigned i = 0; i < q->n; i++)
        quorum_answer(
            q, &count, i,
            rhea_storage_zero(q->child[i], offset, len, punch, &error), &error);
    return quorum_settle(q, &count, "zero", err);
}

static int quorum_allocate(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    int ret = 0;
    for (unsigned i = 0; !ret && i < q->n; i++)
        ret = rhea_storage_allocate(q->child[i], offset, len, err);
    return ret;
}

/* A hole where all say so: whoever has something there would be asked. */
static int quorum_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         bool *hole, uint64_t *run, struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    int ret = 0;
    *hole = true;
    *run = len;
    for (unsigned i = 0; !ret && i < q->n; i++) {
        bool one = false;
        uint64_t length = *run;
        ret =
            rhea_storage_extent(q->child[i], offset, *run, &one, &length, err);
        *hole &= one;
        *run = RHEA_MIN(*run, length);
    }
    return ret;
}

static int quorum_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                       struct rhea_error *err)
{
    struct quorum *q = quorum_of(s);
    int ret = 0;
    for (unsigned i = 0; !ret && i < q->n; i++)
        ret = rhea_storage_lock(q->child[i], perm, shared, err);
    return ret;
}

static struct rhea_storage *quorum_inner(const struct rhea_storage *s)
{
    return quorum_of(s)->child[0];
}

static void quorum_event(struct rhea_storage *s, const char *name)
{
    struct quorum *q = quorum_of(s);
    for (unsigned i = 0; i < q->n; i++)
        rhea_storage_event(q->child[i], name);
}

static void quorum_close(struct rhea_storage *s)
{
    struct quorum *q = quorum_of(s);
    for (unsigned i = 0; i < q->n; i++)
        rhea_storage_close(q->child[i]);
    free(s->path);
    free(q);
}

static const struct rhea_storage_ops quorum_ops = {
    .name = "quorum",
    .pread = quorum_pread,
    .pwrite = quorum_pwrite,
    .flush = quorum_flush,
    .size = quorum_size,
    .truncate = quorum_truncate,
    .zero = quorum_zero,
    .allocate = quorum_allocate,
    .extent = quorum_extent,
    .lock = quorum_lock,
    .inner = quorum_inner,
    .event = quorum_event,
    .close = quorum_close,
};

static int driver_open_children(struct quorum *q,
                                const struct storage_open *how,
                                struct rhea_error *err)
{
    for (;;) {
        char child[32], prefix[34];
        snprintf(child, sizeof(child), "children.%u", q->n);
        snprintf(prefix, sizeof(prefix), "%s.", child);
        if (!storage_options_has_prefix(how->options, prefix))
            return 0;
        if (q->n == QUORUM_CHILDREN_MAX)
            return rhea_error_set(err, E2BIG,
                                  "a quorum has at most %d children",
                                  QUORUM_CHILDREN_MAX);
        int ret =
            how->open_child(how->opaque, child, NULL, &q->child[q->n], err);
        if (ret)
            return rhea_error_prefix(err, "%s", child), ret;
        q->n++;
    }
}

static int driver_configure(struct quorum *q, const struct storage_options *o,
                            struct rhea_error *err)
{
    const char *pattern = storage_options_get(o, "read-pattern");
    uint64_t threshold = 0;
    bool verify = false;
    int ret = storage_options_size(o, "vote-threshold", &threshold, err);
    if (!ret)
        ret = storage_options_bool(o, "rewrite-corrupted", &q->rewrite, err);
    if (!ret)
        ret = storage_options_bool(o, "blkverify", &verify, err);
    if (ret)
        return ret;
    q->fifo = pattern && strcmp(pattern, "fifo") == 0;
    if (pattern && !q->fifo && strcmp(pattern, "quorum") != 0)
        return rhea_error_set(err, EINVAL,
                              "option read-pattern is 'quorum' or 'fifo', not "
                              "'%s'",
                              pattern);
    if (!q->n)
        return rhea_error_set(err, EINVAL,
                              "a quorum needs children: children.0.driver, "
                              "children.0.filename and so on");
    if (threshold < 1 || threshold > q->n)
        return rhea_error_set(err, ERANGE,
                              "option vote-threshold is from 1 to the number "
                              "of children, %u",
                              q->n);
    if (verify && (q->n != 2 || threshold != 2))
        return rhea_error_set(err, EINVAL,
                              "blkverify=on is for two children and "
                              "vote-threshold=2");
    if (q->rewrite && verify)
        return rhea_error_set(err, EINVAL,
                              "rewrite-corrupted=on and blkverify=on exclude "
                              "each other");
    q->threshold = (unsigned)threshold;
    return 0;
}

static int driver_open(struct rhea_storage **out,
                       const struct storage_open *how, struct rhea_error *err)
{
    uint64_t size;
    struct quorum *q = calloc(1, sizeof(*q));
    if (!q)
        return rhea_error_set(err, ENOMEM, "out of memory");
    q->head.ops = &quorum_ops;
    q->head.writable = how->flags & RHEA_FILE_WRITE;
    int ret = driver_open_children(q, how, err);
    if (!ret)
        ret = driver_configure(q, how->options, err);
    if (!ret)
        ret = quorum_size(&q->head, &size, err);
    if (!ret && !(q->head.path = strdup("quorum")))
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (ret)
        quorum_close(&q->head);
    else
        *out = &q->head;
    return ret;
}

const struct storage_driver storage_driver_quorum = {
    .name = "quorum",
    .open = driver_open,
    .strong_options = (const char *const[]){"vote-threshold", NULL},
    .no_folder = true,
};
