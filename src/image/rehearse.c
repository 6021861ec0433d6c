/* SPDX-License-Identifier: MIT */
/*
 * Trying a creation out. A format looks at all it is asked for before it
 * writes; so a storage that refuses the first change tells whether it would
 * have begun, and the file that is to be replaced need not be emptied to learn
 * that an option is wrong.
 */
#include <errno.h>
#include <string.h>

#include "image/internal.h"

struct rehearsal {
    struct rhea_storage head;
    bool reached; /* the first change */
};

static int rehearsal_stop(struct rhea_storage *s)
{
    ((struct rehearsal *)s)->reached = true;
    return -ECANCELED;
}

static int64_t rehearsal_pread(struct rhea_storage *s, void *buf, size_t len,
                               uint64_t offset, struct rhea_error *err)
{
    (void)s;
    (void)buf;
    (void)len;
    (void)offset;
    (void)err;
    return 0;
}

static int rehearsal_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    (void)buf;
    (void)len;
    (void)offset;
    (void)err;
    return rehearsal_stop(s);
}

static int rehearsal_flush(struct rhea_storage *s, struct rhea_error *err)
{
    (void)s;
    (void)err;
    return 0;
}

static int rehearsal_size(struct rhea_storage *s, uint64_t *size,
                          struct rhea_error *err)
{
    (void)s;
    (void)err;
    *size = 0;
    return 0;
}

static int rehearsal_truncate(struct rhea_storage *s, uint64_t size,
                              struct rhea_error *err)
{
    (void)size;
    (void)err;
    return rehearsal_stop(s);
}

static int rehearsal_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          bool punch, struct rhea_error *err)
{
    (void)offset;
    (void)len;
    (void)punch;
    (void)err;
    return rehearsal_stop(s);
}

static int rehearsal_allocate(struct rhea_storage *s, uint64_t offset,
                              uint64_t len, struct rhea_error *err)
{
    (void)offset;
    (void)len;
    (void)err;
    return rehearsal_stop(s);
}

static void rehearsal_close(struct rhea_storage *s)
{
    (void)s; /* lives in its user's frame */
}

static const struct rhea_storage_ops rehearsal_ops = {
    .name = "rehearsal",
    .pread = rehearsal_pread,
    .pwrite = rehearsal_pwrite,
    .flush = rehearsal_flush,
    .size = rehearsal_size,
    .truncate = rehearsal_truncate,
    .zero = rehearsal_zero,
    .allocate = rehearsal_allocate,
    .close = rehearsal_close,
};

/* All files but the image's own and its data file are one. What only looks for
 * files does so. */
struct rehearsal_files {
    struct rhea_storage *others;
    const struct rhea_files *real; /* NULL: there can be none */
};

static int rehearsal_create_file(void *opaque, const char *name,
                                 struct rhea_storage **out,
                                 struct rhea_error *err)
{
    const struct rehearsal_files *files = opaque;
    (void)name;
    (void)err;
    *out = files->others;
    return 0;
}

static int rehearsal_find_parent(void *opaque, const char *const *names,
                                 size_t n, char **out, struct rhea_error *err)
{
    const struct rhea_files *real =
        ((const struct rehearsal_files *)opaque)->real;
    *out = NULL;
    return real ? real->find_parent(real->opaque, names, n, out, err) : 0;
}

static int
rehearsal_search(void *opaque,
                 int (*accept)(void *accept_opaque, struct rhea_storage *file),
                 void *accept_opaque, char **out, struct rhea_error *err)
{
    const struct rhea_files *real =
        ((const struct rehearsal_files *)opaque)->real;
    *out = NULL;
    return real ? real->search(real->opaque, accept, accept_opaque, out, err)
                : 0;
}

int image_rehearse_create(const struct rhea_format_ops *ops,
                          const struct rhea_create *how, struct rhea_error *err)
{
    struct rehearsal r = {.head = {.ops = &rehearsal_ops, .writable = true}};
    struct rehearsal data = r, others = r;
    struct rehearsal_files opaque = {&others.head, how->files};
    const struct rhea_files files = {.create = rehearsal_create_file,
                                     .find_parent = rehearsal_find_parent,
                                     .search = rehearsal_search,
                                     .opaque = &opaque};
    struct rhea_create own = *how;
    own.files = &files;
    for (size_t i = 0; i < how->n_options; i++)
        if (strcmp(how->options[i].name, "data_file") == 0)
            own.data_file = &data.head;
    int ret = ops->create(&r.head, &own, err);

    return r.reached || data.reached || others.reached ? 0 : ret;
}
