/* SPDX-License-Identifier: MIT */
/*
 * What the in-place converter knows of a target format: where its tables
 * stand and how an entry is spelled. Every format here is a tree of two levels:
 * a header in the first sector names an L1 table, whose entries name L2 tables,
 * whose entries name data clusters. QCOW2 also counts references.
 *
 * A layout describes either a target that is being planned (layout_ops.choose)
 * or an image that is on disk (layout_ops.load). It holds no cluster lists, so
 * its size does not depend on the image's.
 */
#ifndef RHEA_INPLACE_LAYOUT_H
#define RHEA_INPLACE_LAYOUT_H

#include <rhea/inplace.h>

#include "base/byteorder.h"

#define SECTOR 512
#define LAYOUT_NAME_MAX 1023
#define LAYOUT_FORMAT_MAX 32

struct layout {
    const struct layout_ops *ops;
    uint64_t virtual_size;
    uint64_t cluster_size;
    unsigned cluster_bits;

    uint64_t l1_entries;  /* that a guest offset can lead to */
    uint64_t l1_clusters; /* the whole L1 table */
    uint64_t l2_entries;  /* in one L2 table */
    uint64_t l2_clusters; /* of one L2 table */
    uint64_t l1_offset;

    /* Reference counts, QCOW2 only: 1 << order bits each. */
    bool has_refcounts;
    unsigned refcount_order;
    uint64_t reftable_offset, reftable_clusters;

    /* How a table entry is spelled. */
    bool big_endian;
    bool has_zero;          /* a zero cluster can be expressed */
    bool names_format;      /* a backing format other than raw, too */
    uint64_t offset_mask;   /* the bits that are a host offset */
    uint64_t entry_flags;   /* set in every entry that has a host offset */
    uint64_t foreign_flags; /* an entry with one of these is not ours */

    unsigned version; /* QCOW2: 2 or 3 */
    bool lazy_refcounts;

    /* The backing file's name, a range of the first cluster; length 0: none. */
    uint64_t name_offset;
    uint32_t name_length;
    char backing_format[LAYOUT_FORMAT_MAX]; /* "": not recorded */
};

#define LAYOUT_ZERO_ENTRY 1 /* "reads as zeroes", in both formats */

struct layout_request {
    uint64_t virtual_size;
    uint64_t cluster_size;      /* the source's */
    const char *backing_format; /* NULL: not stated */
    const struct rhea_option *options;
    size_t n_options;
};

struct layout_ops {
    const char *name;

    /* Fill in the geometry for a target from what the user asked for and what
     * the source has; refuses what the format cannot hold. Offsets are left
     * for the plan. */
    int (*choose)(struct layout *l, const struct layout_request *request,
                  struct rhea_error *err);

    /* Read the layout of an image on disk. 0: an image such as we write.
     * -ENOTSUP: a sound image with parts that only its own format's tools
     * know how to move. Other errors: not readable or not sound. */
    int (*load)(struct layout *l, struct rhea_storage *storage,
                struct rhea_error *err);

    /* Bytes of the header, which the backing name must not overlap. */
    uint64_t (*header_length)(const struct layout *l);
    /* Spell the header into a zeroed first sector. */
    void (*header)(const struct layout *l, uint8_t sector[SECTOR]);
    /* Change only the table offsets in an existing first sector. */
    void (*repoint)(const struct layout *l, uint8_t sector[SECTOR]);
};

extern const struct layout_ops layout_qed, layout_qcow2;

/* The target side of a format; NULL when it has none. */
const struct layout_ops *layout_find(const char *format);

/* The value of option NAME, NULL when it was not given. An option outside
 * KNOWN (a NULL-terminated list) is an error of layout_check_options. */
const char *layout_option(const struct layout_request *r, const char *name);
int layout_check_options(const struct layout_request *r, const char *format,
                         const char *const known[], struct rhea_error *err);
/* A number with an optional K, M or G; -EINVAL names the option. */
int layout_parse_size(const char *name, const char *text, uint64_t *value,
                      struct rhea_error *err);

/* How many L1 entries, and so at most L2 tables, the virtual size needs. */
uint64_t layout_l1_needed(const struct layout *l);

/* Clusters of refcount blocks and of their table for N clusters in all. */
uint64_t layout_refblock_entries(const struct layout *l);
uint64_t layout_refblocks(const struct layout *l, uint64_t n_clusters);
uint64_t layout_reftable_clusters(const struct layout *l, uint64_t n_blocks);

/*
 * Room for tables of COUNT clusters to step aside while tidying: PAST of them
 * reach past the end, BELOW do not, and FREE clusters before the end hold no
 * table. One steps aside at a time where there is sure to be a stretch without
 * tables for the next one; placed tables and those below cut what is free into
 * PAST + BELOW stretches at most. Otherwise all may have to, and the one that
 * lies across the end once more.
 */
uint64_t layout_aside(uint64_t count, uint64_t past, uint64_t below,
                      uint64_t free);

static inline uint64_t layout_get(const struct layout *l, const void *entry)
{
    return l->big_endian ? load_be64(entry) : load_le64(entry);
}

static inline void layout_put(const struct layout *l, void *entry,
                              uint64_t value)
{
    if (l->big_endian)
        store_be64(entry, value);
    else
        store_le64(entry, value);
}

/* The host offset an entry's value names; 0: none. */
static inline uint64_t layout_host(const struct layout *l, uint64_t value)
{
    return value & l->offset_mask;
}

#endif
