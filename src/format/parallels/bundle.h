/* SPDX-License-Identifier: MIT */
/*
 * A Parallels disk that is a folder (".hdd"): DiskDescriptor.xml and the files
 * that it names. See bundle.c.
 *
 * Locking: LOCK is held for reading around whatever a guest does, for writing
 * while snapshots change what there is. Within it each growing file has its own
 * lock (hds.h).
 */
#ifndef RHEA_FORMAT_PARALLELS_BUNDLE_H
#define RHEA_FORMAT_PARALLELS_BUNDLE_H

#include <pthread.h>
#include <rhea/format.h>
#include <stdatomic.h>

#include "format/parallels/prl_xml.h"

/* An open file: an image of one storage. Stays until the bundle is closed. */
struct bundle_file {
    struct bundle_file *next;  /* of all that are open */
    struct bundle_file *lower; /* what shows through it; NULL: nothing */
    struct rhea_storage *storage;
    struct rhea_format *hds; /* it grows; NULL: it is plain */
    char *name;
    uint8_t guid[UUID_BYTES];
    size_t part;   /* number of its storage */
    uint64_t size; /* bytes, of the storage */
    bool writable;
    _Atomic bool written; /* since the last flush */
};

/* A range of the disk. */
struct bundle_part {
    uint64_t start, size; /* bytes */
    struct bundle_file *top;
};

struct bundle {
    struct rhea_format base;
    pthread_rwlock_t lock;
    struct prl_disk d;
    const struct rhea_files *files;
    unsigned flags; /* RHEA_FORMAT_* */
    struct bundle_part *parts;
    size_t n_parts;
    uint32_t cluster_size; /* 0: all files are plain */
    struct bundle_file *open_files;
};

extern const struct rhea_format_ops bundle_ops;

static inline struct bundle *bundle_of(struct rhea_format *f)
{
    return (struct bundle *)f;
}

/* --- bundle.c --- */
int bundle_open(struct rhea_format **out, const struct rhea_format_open *how,
                struct rhea_error *err);
/* Whether the file called NAME can be opened without the bundle that it lies
 * in, and that D describes: it is all of the disk. */
bool bundle_is_whole(const struct prl_disk *d, const char *name);
/* The chain of files of part PART that ends with image GUID; those that are not
 * open are opened. WRITE: the first one for writing. */
int bundle_open_chain(struct bundle *b, size_t part, const uint8_t *guid,
                      bool write, struct bundle_file **top,
                      struct rhea_error *err);
/* FILE, which is open for reading, becomes writable. */
int bundle_make_writable(struct bundle *b, struct bundle_file *file,
                         struct rhea_error *err);
/* One that is in none of the descriptor's lists yet. */
int bundle_add_file(struct bundle *b, size_t part, const uint8_t *guid,
                    const char *name, struct rhea_storage *storage, bool plain,
                    bool write, struct bundle_file *lower,
                    struct bundle_file **out, struct rhea_error *err);
/* All that was written to FILE is durable, and it is marked as closed. */
int bundle_settle(struct bundle_file *file, struct rhea_error *err);
/* Put TEXT in the place of the descriptor; it becomes the one that is known. */
int bundle_replace_descriptor(struct bundle *b, const struct prl_edit *e,
                              struct rhea_error *err);
void bundle_remove_file(struct bundle *b, const char *name);

/* --- bundle_io.c --- */
struct bundle_part *bundle_part_at(const struct bundle *b, uint64_t offset);
/* As rhea_format_ops.map, of the files from FILE down; offsets are the part's.
 * Nobody has it: UNALLOCATED. */
int bundle_map_files(struct bundle_file *file, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err);
/* What FILE itself has: UNALLOCATED is for those below it. */
int bundle_map_file(struct bundle_file *file, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err);
/* For struct rhea_format.below of a growing file; OPAQUE is that file. */
int bundle_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                      struct rhea_error *err);
int bundle_write_file(struct bundle_file *file, uint64_t offset,
                      const void *buf, size_t len, struct rhea_error *err);
int bundle_map(struct rhea_format *f, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err);
int bundle_write(struct rhea_format *f, uint64_t offset, const void *buf,
                 size_t len, struct rhea_error *err);
int bundle_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err);
int bundle_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_error *err);
int bundle_flush(struct rhea_format *f, struct rhea_error *err);

/* --- bundle_check.c --- */
int bundle_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                 struct rhea_error *err);
int bundle_resize(struct rhea_format *f, const struct rhea_resize *how,
                  struct rhea_error *err);

/* --- bundle_snapshot.c, bundle_merge.c --- */
/* The snapshot WHICH, by id or else by name. */
int bundle_find_snapshot(const struct bundle *b, const char *which,
                         struct prl_shot **out, struct rhea_error *err);
int bundle_snapshot_list(struct rhea_format *f, struct rhea_snapshot **list,
                         size_t *n, struct rhea_error *err);
int bundle_snapshot_create(struct rhea_format *f,
                           const struct rhea_snapshot *what,
                           struct rhea_error *err);
int bundle_snapshot_apply(struct rhea_format *f, const char *which,
                          struct rhea_error *err);
int bundle_snapshot_delete(struct rhea_format *f, const char *which,
                           struct rhea_error *err);
int bundle_snapshot_load(struct rhea_format *f, const char *which,
                         struct rhea_error *err);

/* --- bundle_bitmap.c --- */
/* TO, which has none, gets the bitmaps that FROM has. */
int bundle_bitmaps_copy(struct bundle_file *to, struct bundle_file *from,
                        struct rhea_error *err);
int bundle_bitmaps_remove(struct bundle_file *file, struct rhea_error *err);
/* How many there are, as far as that can be told. */
uint32_t bundle_bitmap_count(struct rhea_format *f);
int bundle_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list,
                       size_t *n, struct rhea_error *err);
int bundle_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                      struct rhea_error *err);
int bundle_bitmap_remove(struct rhea_format *f, const char *name,
                         struct rhea_error *err);
int bundle_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                       size_t n, struct rhea_error *err);
int bundle_bitmap_store(struct rhea_format *f, const char *name,
                        const uint8_t *bits, size_t n, struct rhea_error *err);

/* --- bundle_create.c --- */
struct bundle_layout {
    uint64_t size, cluster_size, split; /* bytes; SPLIT 0: one file */
    bool plain, extended;
};
int bundle_create(struct rhea_storage *storage, const struct rhea_create *how,
                  const struct bundle_layout *layout, struct rhea_error *err);
/* What the header and the table of part N's file take, and how large the part
 * is; 0: there is no part N. */
int bundle_part_layout(const struct bundle_layout *layout, uint64_t n,
                       uint64_t *start, uint64_t *size, struct rhea_error *err);

#endif
