/* SPDX-License-Identifier: MIT */
/*
 * Shared by bitmap.c (operations), bitmap_dir.c (the directory),
 * bitmap_data.c (tables and bits), bitmap_header.c (the header extension) and
 * bitmap_track.c (bitmaps that follow guest writes). All under the driver's
 * lock. The spec: "Bitmaps extension", "Bitmaps".
 */
#ifndef RHEA_FORMAT_QCOW2_BITMAP_H
#define RHEA_FORMAT_QCOW2_BITMAP_H

#include "format/qcow2/qcow2.h"

/* Limits shared with QEMU. */
#define QCOW2_BITMAP_NAME_MAX 1023
#define QCOW2_BITMAP_TABLE_MAX (1U << 27) /* entries */
#define QCOW2_BITMAP_MIN_BITS 9
#define QCOW2_BITMAP_MAX_BITS 31
/* All bitmaps that are held in memory at a time, in bytes. */
#define QCOW2_BITMAPS_BYTES_MAX (2ULL * RHEA_BITMAP_BYTES_MAX)

enum {
    QCOW2_BITMAP_IN_USE = 1 << 0,
    QCOW2_BITMAP_AUTO = 1 << 1,
    QCOW2_BITMAP_EXTRA_COMPATIBLE = 1 << 2,
    QCOW2_BITMAP_FLAGS = 7,
};

/* An entry of the directory. */
struct qcow2_bitmap {
    uint64_t at; /* where the entry stands in the file; 0: nowhere yet */
    uint64_t table;
    uint32_t n_table; /* entries, each for a cluster of bits */
    uint32_t flags;
    unsigned granularity_bits;
    char *name;
    uint8_t *extra; /* of unknown meaning, kept as it is */
    uint32_t extra_size;
};

struct qcow2_bitmap_list {
    struct qcow2_bitmap *items;
    uint32_t n;
};

/* bitmap_dir.c */
/* Empty where the image has none, or none that are kept up to date. */
int qcow2_bitmap_list_load(struct qcow2 *q, struct qcow2_bitmap_list *list,
                           struct rhea_error *err);
void qcow2_bitmap_list_free(struct qcow2_bitmap_list *list);
/* NULL: there is none of that name. */
struct qcow2_bitmap *qcow2_bitmap_find(const struct qcow2_bitmap_list *list,
                                       const char *name);
/* A new entry at the end, which knows but its name. */
struct qcow2_bitmap *qcow2_bitmap_append(struct qcow2_bitmap_list *list,
                                         const char *name,
                                         struct rhea_error *err);
void qcow2_bitmap_delete(struct qcow2_bitmap_list *list,
                         struct qcow2_bitmap *b);
/* The directory as it is stored; *DIR is malloc'd. */
int qcow2_bitmap_list_build(const struct qcow2_bitmap_list *list, uint8_t **dir,
                            uint64_t *size, struct rhea_error *err);
/* Write the flags to the entry where it stands: one sector, so that the
 * directory is sound at every instant. Does not flush. */
int qcow2_bitmap_write_flags(struct qcow2 *q, const struct qcow2_bitmap *b,
                             struct rhea_error *err);
/* Whether this program may use it: it has no extra data that forbids it. */
static inline bool qcow2_bitmap_usable(const struct qcow2_bitmap *b)
{
    return !b->extra_size || b->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE;
}
/* Bytes that the bits take for a disk of SIZE bytes. */
static inline uint64_t qcow2_bitmap_bytes(uint64_t size, unsigned granularity)
{
    return div_up(div_up(size, 1ULL << granularity), 8);
}

/* bitmap_header.c */
/* Let the header say that there are N bitmaps, in a directory of SIZE bytes at
 * OFFSET; 0: none. All of that is durable before, and the header after. */
int qcow2_bitmaps_switch(struct qcow2 *q, uint32_t n, uint64_t offset,
                         uint64_t size, struct rhea_error *err);

/* bitmap_data.c */
/* Read all bits, N bytes, into BITS, which is zero. */
int qcow2_bitmap_read(struct qcow2 *q, const struct qcow2_bitmap *b,
                      uint8_t *bits, uint64_t n, struct rhea_error *err);
/* Check the length of a table whose bits mean something, and an entry. */
int qcow2_bitmap_check_table(const struct qcow2 *q,
                             const struct qcow2_bitmap *b,
                             struct rhea_error *err);
int qcow2_bitmap_check_data(const struct qcow2 *q, const struct qcow2_bitmap *b,
                            uint32_t index, uint64_t entry,
                            struct rhea_error *err);

struct qcow2_bitmap_range {
    uint64_t cluster, count;
};
struct qcow2_bitmap_ranges {
    struct qcow2_bitmap_range *items;
    size_t n, max;
};

/*
 * A change of bitmaps: LIST becomes what the directory says. It is written
 * nowhere but to clusters taken for it, until the commit switches to it.
 * Life: begin, change the list, commit, finish.
 */
struct qcow2_bitmap_change {
    struct qcow2 *q;
    struct qcow2_bitmap_list list;
    struct qcow2_bitmap_ranges taken, dropped;
};
/* Load the directory. Writing has begun. */
int qcow2_bitmap_change_begin(struct qcow2_bitmap_change *c, struct qcow2 *q,
                              struct rhea_error *err);
/* Give B new bits, N bytes in whose last there is nothing past the end; NULL:
 * all are zero. What it had is dropped. */
int qcow2_bitmap_change_store(struct qcow2_bitmap_change *c,
                              struct qcow2_bitmap *b, const uint8_t *bits,
                              uint64_t n, struct rhea_error *err);
/* Drop what B has in the file. */
void qcow2_bitmap_change_drop(struct qcow2_bitmap_change *c,
                              const struct qcow2_bitmap *b);
int qcow2_bitmap_change_commit(struct qcow2_bitmap_change *c,
                               struct rhea_error *err);
/* Safe on all zeroes; without a commit nothing has changed. */
void qcow2_bitmap_change_finish(struct qcow2_bitmap_change *c);

/* bitmap_track.c */
/* The bits of a bitmap that is followed in memory, NULL: it is not. */
const struct qcow2_tracked *qcow2_tracked_find(const struct qcow2 *q,
                                               uint32_t index);

#endif
