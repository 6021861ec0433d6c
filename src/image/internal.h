/* SPDX-License-Identifier: MIT */
#ifndef RHEA_IMAGE_INTERNAL_H
#define RHEA_IMAGE_INTERNAL_H

#include <pthread.h>

#include <rhea/image.h>

#include "image/node.h"

struct rhea_image {
    char *filename; /* a plain name, or json:{...} */
    struct rhea_storage *storage;
    struct rhea_storage *data_file; /* NULL: none */
    struct image_files *files;      /* all others */
    struct rhea_format *format;
    struct rhea_image *backing; /* NULL: none */
    unsigned flags;             /* RHEA_IMAGE_* */
    /* As it was asked for: its name, NULL where the options say it all, and
     * the options, with those of its children. */
    char *asked;
    struct storage_options options;
    struct node_description description, file_description, data_description;
    const char *driver; /* the format's name or, where the image is nothing but
                           a storage, that of its driver */
    unsigned detect_zeroes;  /* NODE_ZEROES_* */
    bool is_protocol;        /* nothing but a storage */
    bool backing_overridden; /* its backing image is not, or not as, it says */
    bool guessed_raw; /* nobody said that it is raw; see image_guard_raw */
    bool is_raw;
    bool is_plain_raw;      /* the whole of its storage, from the start */
    unsigned filters;       /* IMAGE_FILTER_*, filter.c */
    pthread_rwlock_t order; /* where there are filters: held for reading by
                               writers, for writing by whoever writes what it
                               has read before */
    /* Where the image is but a storage in front of another image's bytes
     * (blkdebug): that image, which knows how they are mapped. NULL: it is not
     * so. */
    struct rhea_image *through;
    bool blind; /* its backing file was left out: no guest writes, they would
                   fill new clusters with what is not there */
    bool has_identity;
    uint64_t device, inode;
};

/* The image that knows how IMAGE's bytes are mapped. */
static inline struct rhea_image *image_mapped(struct rhea_image *image)
{
    while (image->through)
        image = image->through;
    return image;
}

/* filter.c */

enum {
    IMAGE_FILTER_COPY_ON_READ = 1 << 0,
    IMAGE_FILTER_COMPRESS = 1 << 1,
};
/* What filter DRIVER is; 0: none. */
unsigned image_filter_find(const char *driver);
/* As node_open_image, for such a driver. */
int image_filter_open(struct rhea_image **out, const char *name,
                      struct storage_options *options, unsigned flags,
                      struct node_opening *opening, struct rhea_error *err);
int image_filter_add(struct rhea_image *image, unsigned filter,
                     struct rhea_error *err);
/* What rhea_image_read and rhea_image_write do then. The range lies inside the
 * image, which may be written to. */
int image_filter_read(struct rhea_image *image, uint8_t *buf, size_t len,
                      uint64_t offset, struct rhea_error *err);
int image_filter_write(struct rhea_image *image, const uint8_t *buf, size_t len,
                       uint64_t offset, struct rhea_error *err);

/* io.c */

/* Guest bytes through the chain, past all filters. */
int image_read_plain(struct rhea_image *image, uint8_t *buf, size_t len,
                     uint64_t offset, struct rhea_error *err);
bool image_is_zero(const uint8_t *buf, size_t len);

/* name.c */

/* The name of a backing file as seen from the current folder, malloc'd. NULL:
 * out of memory. */
char *image_name_combine(const char *overlay, const char *backing);
/* The same as seen from the folder of IMAGE; fills the error where that has no
 * folder. */
char *image_name_below(const struct rhea_image *image, const char *backing,
                       struct rhea_error *err);
/* The format NAME; fills the error where there is none. */
const struct rhea_format_ops *image_format_find(const char *name,
                                                struct rhea_error *err);

/* open.c */

/* The lock that flags RHEA_IMAGE_* ask for. */
int image_lock(struct rhea_storage *storage, unsigned flags,
               struct rhea_error *err);

/* data_file.c */

/* For struct rhea_format_open; OPAQUE is a struct image_data_file. */
struct image_data_file {
    struct rhea_image *image;
    struct node_opening *opening;
};
int image_open_data_file(void *opaque, const char *default_name,
                         struct rhea_storage **out, struct rhea_error *err);
/* The path of data file NAME of the image at path IMAGE, malloc'd. */
char *image_data_file_path(const char *image, const char *name);

/* files.c */

/* The other files of an image. Does not move while the format is open. */
struct image_files {
    struct rhea_files ops;
    char *beside; /* the image's own name, in whose folder they are; NULL: it is
                     in none */
    bool local;   /* that is a folder of this system */
    unsigned flags; /* RHEA_IMAGE_* */
    struct rhea_storage **opened;
    char **made; /* paths of those that were not there before */
    size_t n_opened, n_made;
};
/* BESIDE NULL: there can be no others. */
struct image_files *image_files_new(const char *beside, unsigned flags,
                                    struct rhea_error *err);
/* NULL is fine. UNDO: remove what was made. */
void image_files_close(struct image_files *files, bool undo);

/* bundle.c */

/* The file that stands for the folder PATH, malloc'd; NULL: PATH is no folder,
 * or none that is an image. */
char *image_bundle_file(const char *path);

/* Whether a format would create HOW; nothing is written. */
int image_rehearse_create(const struct rhea_format_ops *ops,
                          const struct rhea_create *how,
                          struct rhea_error *err);

/* What a format reads of its backing chain: struct rhea_format's below. OPAQUE
 * is the backing image. */
int image_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                     struct rhea_error *err);

#endif
