/* SPDX-License-Identifier: MIT */
#ifndef RHEA_IMAGE_INTERNAL_H
#define RHEA_IMAGE_INTERNAL_H

#include <rhea/image.h>

struct rhea_image {
    char *filename;
    struct rhea_storage *storage;
    struct rhea_format *format;
    struct rhea_image *backing; /* NULL: none */
    unsigned flags;             /* RHEA_IMAGE_* */
    bool guessed_raw; /* nobody said that it is raw; see image_guard_raw */
    bool is_raw;
    bool blind; /* its backing file was left out: no guest writes, they would
                   fill new clusters with what is not there */
    bool has_identity;
    uint64_t device, inode;
};

/* name.c */

/* The local path that NAME stands for, malloc'd, in *OUT: without "file:".
 * An error for other protocols. */
int image_name_path(const char *name, char **out, struct rhea_error *err);
/* The name of a backing file as seen from the current folder, malloc'd. NULL:
 * out of memory. */
char *image_name_combine(const char *overlay, const char *backing);
/* The names of all formats: "qcow2, qed, raw". */
const char *image_format_names(char *buf, size_t len);
/* The format NAME; fills the error where there is none. */
const struct rhea_format_ops *image_format_find(const char *name,
                                                struct rhea_error *err);

/* Whether a format would create HOW; nothing is written. */
int image_rehearse_create(const struct rhea_format_ops *ops,
                          const struct rhea_create *how,
                          struct rhea_error *err);

/* The format that the beginning of STORAGE looks like. */
int image_probe(struct rhea_storage *storage,
                const struct rhea_format_ops **ops, struct rhea_error *err);

/* What a format reads of its backing chain: struct rhea_format's below. OPAQUE
 * is the backing image. */
int image_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                     struct rhea_error *err);

#endif
