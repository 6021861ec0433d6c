/* SPDX-License-Identifier: MIT */
/* How a format's test says which images are made, opened and read by what all
 * formats are tested by (format_crash.h, format_threads.h). */
#ifndef FORMAT_SUBJECT_H
#define FORMAT_SUBJECT_H

#include "image_lib.h"
#include "sector_model.h"

enum { BELOW = 9 /* what a sector holds below */ };

struct subject {
    const struct rhea_format_ops *ops;
    /* A new image of SIZE bytes. OVER: it is to show what is below. */
    struct rhea_storage *(*make)(bool over, uint64_t seed);
    /* How to open it. */
    const struct rhea_option *options;
    size_t n_options;
    const struct rhea_files *files;
    size_t cluster;     /* bytes; write_compressed takes one */
    bool tells_unclean; /* a check counts as one error that the image was not
                           closed */
    /* Where blocks are large: what is at byte N of the SIZE is in the image at
     * N / SPREAD * PITCH + N % SPREAD. 0: at N. A multiple of 512. */
    uint64_t spread, pitch;
    /* Another judge of what a crash leaves, NULL: none. It is asked of every
     * JUDGED-th state. */
    bool (*judge)(struct rhea_storage *state, const struct model *m);
    size_t judged;
    /* Instead of what all formats are tested by, NULL: that. A random change of
     * guest and model, and whether STATE is whole, by what M allows. */
    int (*change)(struct rhea_format *f, struct model *m, uint64_t *random,
                  bool *flushed);
    bool (*is_good)(struct rhea_storage *state, const struct model *m);
    size_t states;    /* of a crash that are looked at, 0: 400 */
    const char *name; /* NULL: there is but one */
};

/* Where byte AT of the SIZE is; *LEN is shortened so that all of it follows. */
static inline uint64_t subject_place(const struct subject *t, uint64_t at,
                                     uint64_t *len)
{
    if (!t->spread)
        return at;
    *len = RHEA_MIN(*len, t->spread - at % t->spread);
    return at / t->spread * t->pitch + at % t->spread;
}

static inline struct rhea_format *
subject_open(const struct subject *t, struct rhea_storage *s, unsigned flags)
{
    const struct rhea_format_open how = {
        .storage = s,
        .flags = flags,
        .options = t->options,
        .n_options = t->n_options,
        .files = t->files,
    };
    struct rhea_format *f = NULL;
    if (t->ops->open(&f, &how, &err))
        return NULL;
    return f;
}

static inline struct rhea_format *
subject_open_ok(const struct subject *t, struct rhea_storage *s, unsigned flags)
{
    struct rhea_format *f = subject_open(t, s, flags);
    if (!CHECK_OK(f ? 0 : -1, &err))
        exit(99);
    return f;
}

static inline int below_is_full(void *opaque, uint64_t offset, void *buf,
                                size_t len, struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, BELOW, len);
    return 0;
}

static inline int read_extent(struct rhea_format *f,
                              const struct rhea_extent *x, uint64_t at,
                              uint8_t *buf, bool over)
{
    switch (x->kind) {
    case RHEA_EXTENT_DATA:
        return rhea_storage_read(x->storage, buf, x->length, x->host, &err);
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        return f->ops->read(f, at, buf, (size_t)x->length, &err);
    default:
        memset(buf, x->kind == RHEA_EXTENT_UNALLOCATED && over ? BELOW : 0,
               x->length);
        return 0;
    }
}

static inline int subject_read(const struct subject *t, struct rhea_format *f,
                               uint8_t *guest, bool over)
{
    for (uint64_t at = 0; at < SIZE;) {
        struct rhea_extent x;
        uint64_t len = SIZE - at;
        uint64_t offset = subject_place(t, at, &len);
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (!ret)
            ret = read_extent(f, &x, offset, guest + at, over);
        if (ret)
            return ret;
        at += x.length;
    }
    return 0;
}

/* Where it is not spread. */
static inline int read_all(struct rhea_format *f, uint8_t *guest, bool over)
{
    const struct subject plain = {0};
    return subject_read(&plain, f, guest, over);
}

#endif
