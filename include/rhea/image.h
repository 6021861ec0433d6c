/* SPDX-License-Identifier: MIT */
/*
 * An image: an open format over its storage, with its backing chain. The only
 * place that walks a chain. Reads, writes and maps are safe from many threads
 * at once; open and close are not.
 */
#ifndef RHEA_IMAGE_H
#define RHEA_IMAGE_H

#include <rhea/format.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rhea_image;

enum {
    RHEA_IMAGE_WRITE = 1 << 0,
    RHEA_IMAGE_CHECK = 1 << 1,      /* see RHEA_FORMAT_CHECK */
    RHEA_IMAGE_NO_BACKING = 1 << 2, /* this file alone; what is unallocated
                                       reads as zeroes; where it has a backing
                                       file, guest writes are refused */
    RHEA_IMAGE_NO_LOCK = 1 << 3,    /* `-U`: even if in use (read only) */
    RHEA_IMAGE_EXCLUSIVE = 1 << 4,  /* share with nobody, not even readers */
    RHEA_IMAGE_DIRECT = 1 << 5,
    RHEA_IMAGE_NO_IO = 1 << 6,        /* guest bytes will not be asked for, see
                                         RHEA_FORMAT_NO_IO; also below */
    RHEA_IMAGE_NO_FLUSH = 1 << 7,     /* see RHEA_FILE_NO_FLUSH */
    RHEA_IMAGE_COPY_ON_READ = 1 << 8, /* what is read from below this image is
                                         copied into it; needs WRITE */
};

/* The most images one chain may have. */
#define RHEA_CHAIN_MAX 256

/*
 * Open FILENAME. FORMAT NULL: probe. The backing chain is opened read-only,
 * each by its stated format or, where none is stated, by probing; a name is
 * relative to the folder of the image that has it. A missing backing file, a
 * chain that loops or is longer than RHEA_CHAIN_MAX is an error.
 */
RHEA_API int rhea_image_open(struct rhea_image **out, const char *filename,
                             const char *format, unsigned flags,
                             struct rhea_error *err);
/*
 * The same as options say, which are named as in QEMU's --image-opts:
 * "driver", "file.driver", "file.filename", "backing.driver", "data-file.*",
 * "read-only", "cache.direct" and so on, "offset" and whatever else the format
 * or the storage takes. An option that nobody knows is an error. A FILENAME
 * (above) of the form json:{...} says the same.
 */
RHEA_API int rhea_image_open_options(struct rhea_image **out,
                                     const struct rhea_option *options,
                                     size_t n, unsigned flags,
                                     struct rhea_error *err);
/* FILENAME, which is read as above, with options besides. */
RHEA_API int rhea_image_open_named(struct rhea_image **out,
                                   const char *filename,
                                   const struct rhea_option *options, size_t n,
                                   unsigned flags, struct rhea_error *err);
/* The same over a storage, which the image then owns, also on failure. Locks
 * are the caller's. NAME is for messages and relative backing names. */
RHEA_API int rhea_image_open_storage(struct rhea_image **out,
                                     struct rhea_storage *storage,
                                     const char *name, const char *format,
                                     unsigned flags, struct rhea_error *err);
/* A new image in memory over BELOW, of its size: what is written to it is gone
 * when it is closed. It owns BELOW, also on failure. FLAGS may hold
 * RHEA_IMAGE_COPY_ON_READ. */
RHEA_API int rhea_image_open_overlay(struct rhea_image **out,
                                     struct rhea_image *below, unsigned flags,
                                     struct rhea_error *err);
/* Close; NULL is fine. The first error of writing back is returned. */
RHEA_API int rhea_image_close(struct rhea_image *image, struct rhea_error *err);

RHEA_API uint64_t rhea_image_size(const struct rhea_image *image);
RHEA_API const char *rhea_image_filename(const struct rhea_image *image);
/* The name of its format or, where it is nothing but a storage (opened by
 * "driver=file" and so on), of the storage's driver. */
RHEA_API const char *rhea_image_driver(const struct rhea_image *image);
/* The same of its child "file", "data-file" or "backing". NULL: it has none. */
RHEA_API const char *rhea_image_child_driver(const struct rhea_image *image,
                                             const char *child);
RHEA_API struct rhea_format *rhea_image_format(struct rhea_image *image);
RHEA_API struct rhea_storage *rhea_image_storage(struct rhea_image *image);
/* Bytes that the blocks of all files of this one image occupy. -EINVAL: some of
 * them are no files. */
RHEA_API int rhea_image_disk_size(const struct rhea_image *image,
                                  uint64_t *size);
/* The next image of the chain, NULL at its end; owned by IMAGE. */
RHEA_API struct rhea_image *rhea_image_backing(struct rhea_image *image);
RHEA_API void rhea_image_info(struct rhea_image *image,
                              struct rhea_format_info *info);

/* The backing file's name as this image would open it, malloc'd: absolute or
 * relative to the current folder. NULL when there is none. */
RHEA_API char *rhea_image_backing_path(const struct rhea_image *image);

/* Guest bytes through the chain. The range must lie inside the image. */
RHEA_API int rhea_image_read(struct rhea_image *image, void *buf, size_t len,
                             uint64_t offset, struct rhea_error *err);
RHEA_API int rhea_image_write(struct rhea_image *image, const void *buf,
                              size_t len, uint64_t offset,
                              struct rhea_error *err);
/* The bytes that FROM has at FROM_OFFSET, by sharing its blocks; see the
 * format's clone. -ENOTSUP, before anything has changed, where that cannot be
 * done; LEN 0 asks for it. */
RHEA_API int rhea_image_clone(struct rhea_image *image, uint64_t offset,
                              struct rhea_storage *from, uint64_t from_offset,
                              uint64_t len, struct rhea_error *err);
RHEA_API int rhea_image_write_zeroes(struct rhea_image *image, uint64_t offset,
                                     uint64_t len, bool unmap,
                                     struct rhea_error *err);
/* The guest needs these bytes no more; see rhea_format_ops.discard. */
RHEA_API int rhea_image_discard(struct rhea_image *image, uint64_t offset,
                                uint64_t len, struct rhea_error *err);
RHEA_API int rhea_image_flush(struct rhea_image *image, struct rhea_error *err);

/* A run of guest bytes, looked up through the chain. */
struct rhea_image_extent {
    struct rhea_extent extent; /* kind UNALLOCATED: nobody has it, zeroes */
    unsigned depth;            /* 0: this image, 1: its backing image, ... */
    struct rhea_image *image;  /* whose extent it is */
};
RHEA_API int rhea_image_map(struct rhea_image *image, uint64_t offset,
                            uint64_t len, struct rhea_image_extent *extent,
                            struct rhea_error *err);
/* The same, but looks no further down than above END, an image of the chain:
 * what is left to it is UNALLOCATED in image END. UNALLOCATED in another image
 * reads as zeroes, for one above END ends before. */
RHEA_API int rhea_image_map_above(struct rhea_image *image,
                                  struct rhea_image *end, uint64_t offset,
                                  uint64_t len,
                                  struct rhea_image_extent *extent,
                                  struct rhea_error *err);

/*
 * The image below IMAGE in its chain that NAME means, as the image above it
 * names it in its header, or in other words: a relative name is relative to the
 * folder of that image. NULL: none.
 */
RHEA_API struct rhea_image *rhea_image_find_backing(struct rhea_image *image,
                                                    const char *name);
/*
 * Open what would be IMAGE's backing image if its header named FILE, FORMAT
 * NULL: probe. Refuses a chain that IMAGE itself is in. The caller's to close.
 */
RHEA_API int rhea_image_open_below(struct rhea_image **out,
                                   struct rhea_image *image, const char *file,
                                   const char *format, unsigned flags,
                                   struct rhea_error *err);
/*
 * Let an image of a chain that was opened for reading be written to; the
 * images above and below stay as they are. It is locked as any image that is
 * opened for writing. As it was when that fails.
 */
RHEA_API int rhea_image_allow_write(struct rhea_image *image,
                                    struct rhea_error *err);

/*
 * Check, and repair what FIX (RHEA_FIX_*) says. A repair that would drop nearly
 * all that there is, is not made: more likely the header is damaged by which
 * nothing is where it should be, or the file is not all there.
 */
RHEA_API int rhea_image_check(struct rhea_image *image, unsigned fix,
                              struct rhea_check *check, struct rhea_error *err);

/* Changes of the whole image, in change.c. No other call may be under way on
 * it. RESIZE grows, or with how->shrink shrinks; what is added reads as zeroes,
 * also where a backing image goes on behind the old end. */
RHEA_API int rhea_image_resize(struct rhea_image *image,
                               const struct rhea_resize *how,
                               struct rhea_error *err);
RHEA_API int rhea_image_amend(struct rhea_image *image,
                              const struct rhea_option *options, size_t n,
                              bool force, const struct rhea_progress *progress,
                              struct rhea_error *err);
/* Name another backing file; the chain as it was opened stays as it is. */
RHEA_API int rhea_image_set_backing(struct rhea_image *image, const char *file,
                                    const char *format, struct rhea_error *err);
/*
 * The image below OVERLAY, which is open for writing, is about to be changed so
 * that OVERLAY and what is above it still show the same. It takes a new
 * identity, so that other images over it are found out, and OVERLAY records
 * that. A crash between the two leaves OVERLAY with a parent that it does not
 * know, and whose contents have not changed yet. Nothing where the formats
 * have no identities.
 */
RHEA_API int rhea_image_renew_backing(struct rhea_image *overlay,
                                      struct rhea_error *err);
RHEA_API int rhea_image_make_empty(struct rhea_image *image,
                                   struct rhea_error *err);

/* Internal snapshots and VM state, where the format has them (-ENOTSUP); see
 * rhea/format.h. All but the list and the load need an image that is open for
 * writing. The list is freed by rhea_snapshots_free; a format without snapshots
 * has an empty one. */
RHEA_API int rhea_image_snapshot_list(struct rhea_image *image,
                                      struct rhea_snapshot **list, size_t *n,
                                      struct rhea_error *err);
RHEA_API int rhea_image_snapshot_create(struct rhea_image *image,
                                        const struct rhea_snapshot *what,
                                        struct rhea_error *err);
RHEA_API int rhea_image_snapshot_apply(struct rhea_image *image,
                                       const char *which,
                                       struct rhea_error *err);
RHEA_API int rhea_image_snapshot_delete(struct rhea_image *image,
                                        const char *which,
                                        struct rhea_error *err);
/* From now on IMAGE, which is open read-only, shows that snapshot. */
RHEA_API int rhea_image_load_snapshot(struct rhea_image *image,
                                      const char *which,
                                      struct rhea_error *err);
RHEA_API int rhea_image_vm_state_read(struct rhea_image *image, uint64_t offset,
                                      void *buf, size_t len,
                                      struct rhea_error *err);
RHEA_API int rhea_image_vm_state_write(struct rhea_image *image,
                                       uint64_t offset, const void *buf,
                                       size_t len, struct rhea_error *err);

/*
 * Persistent bitmaps. -ENOTSUP where the format cannot hold any. Each change is
 * durable when it returns 0. Bitmaps that are in use, for a program did not
 * close the image, can only be removed.
 */
/* *LIST is for rhea_bitmaps_free. */
RHEA_API int rhea_image_bitmap_list(struct rhea_image *image,
                                    struct rhea_bitmap **list, size_t *n,
                                    struct rhea_error *err);
/* WHAT->granularity 0: the cluster size, from 4 to 64 KiB. */
RHEA_API int rhea_image_bitmap_add(struct rhea_image *image,
                                   const struct rhea_bitmap *what,
                                   struct rhea_error *err);
RHEA_API int rhea_image_bitmap_remove(struct rhea_image *image,
                                      const char *name, struct rhea_error *err);
RHEA_API int rhea_image_bitmap_enable(struct rhea_image *image,
                                      const char *name, bool enabled,
                                      struct rhea_error *err);
/* Set all bits to 0. */
RHEA_API int rhea_image_bitmap_clear(struct rhea_image *image, const char *name,
                                     struct rhea_error *err);
/* Set those bits of NAME whose bytes SOURCE_NAME has set, too. SOURCE may be
 * IMAGE; both are of the same size. */
RHEA_API int rhea_image_bitmap_merge(struct rhea_image *image, const char *name,
                                     struct rhea_image *source,
                                     const char *source_name,
                                     struct rhea_error *err);
/* Add WHAT with the bits that SOURCE has for it; all or nothing. */
RHEA_API int rhea_image_bitmap_copy(struct rhea_image *image,
                                    struct rhea_image *source,
                                    const struct rhea_bitmap *what,
                                    struct rhea_error *err);

/*
 * Create FILENAME. Checks that a backing file, if any, opens as its format
 * (unless UNSAFE), takes the size from it when how->size is UINT64_MAX, and
 * refuses a file that is in use.
 */
RHEA_API int rhea_image_create(const char *filename, const char *format,
                               const struct rhea_create *how, bool unsafe,
                               struct rhea_error *err);

#ifdef __cplusplus
}
#endif

#endif
