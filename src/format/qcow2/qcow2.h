/* SPDX-License-Identifier: MIT */
/*
 * Inside the qcow2 driver. The format: docs/interop/qcow2.txt of QEMU, called
 * "the spec" in this folder; what this driver makes of it:
 * docs/formats/qcow2.md.
 *
 * Who does what:
 *   header.c        reading the header     header_write.c  writing it
 *   open.c          life cycle, ops table  cache.c         pieces of tables
 *   map.c           guest offset to extent walk.c          every range in use
 *   decompress.c, compress.c               guest.c         guest bytes read
 *   refcount.c      refcounts, allocation  sync.c          order of metadata
 *   write.c         guest writes           zero.c          zeroes, discards
 *   create.c        new images
 *   check.c         consistency            repair.c        new refcounts
 *   snapshot_*.c    internal snapshots     vm_state.c      what lies past the
 *                                                          guest's end
 *   l1.c            another L1 table       backing.c       another backing file
 *   empty.c         unallocate everything  resize.c        virtual size
 *   crypt.c         encryption             bitmap*.c       persistent bitmaps
 *
 * Locks, in the order in which they may be taken:
 *   lock      all mutable members, unless they say otherwise
 *   data      held for reading while data moves to or from host clusters that
 *             were looked up under LOCK, and taken while LOCK is held; held for
 *             writing (under LOCK) while freed clusters become free to use
 *   z.lock    the decompressed clusters, and idle compressors
 *   crypt.sectors  see sector_crypt.h
 */
#ifndef RHEA_FORMAT_QCOW2_H
#define RHEA_FORMAT_QCOW2_H

#include <pthread.h>

#include <rhea/format.h>

#include "base/bitmap.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/qcow2/crypt.h"

#define QCOW2_MAGIC 0x514649fbU

/* Limits shared with QEMU, so that what one opens the other opens too. */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21
#define QCOW2_MAX_L1_BYTES (32U << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8U << 20)
#define QCOW2_MAX_SNAPSHOTS 65536
#define QCOW2_MAX_SNAPSHOT_TABLE (1024U * QCOW2_MAX_SNAPSHOTS)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024
#define QCOW2_MAX_BITMAPS 65535
#define QCOW2_MAX_BITMAP_DIRECTORY (1024ULL * QCOW2_MAX_BITMAPS)
#define QCOW2_MAX_BACKING_NAME 1023
#define QCOW2_MAX_BACKING_FORMAT 15

/* Where header fields stand (the spec, "Header"). */
enum {
    QCOW2_AT_VERSION = 4,
    QCOW2_AT_BACKING_OFFSET = 8,
    QCOW2_AT_BACKING_LENGTH = 16,
    QCOW2_AT_CLUSTER_BITS = 20,
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_CRYPT = 32,
    QCOW2_AT_L1_SIZE = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_SNAPSHOTS = 60,
    QCOW2_AT_SNAPSHOTS_OFFSET = 64,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_COMPATIBLE = 80,
    QCOW2_AT_AUTOCLEAR = 88,
    QCOW2_AT_REFCOUNT_ORDER = 96,
    QCOW2_AT_HEADER_LENGTH = 100,
    QCOW2_AT_COMPRESSION = 104,
    QCOW2_V2_HEADER = 72,
    QCOW2_V3_HEADER = 104,
    QCOW2_FULL_HEADER = 112, /* with the compression type and its padding */
};

enum {
    QCOW2_EXT_END = 0,
    QCOW2_EXT_BACKING_FORMAT = 0xe2792acaU,
    QCOW2_EXT_FEATURE_NAMES = 0x6803f857U,
    QCOW2_EXT_BITMAPS = 0x23852875U,
    QCOW2_EXT_CRYPTO = 0x0537be77U,
    QCOW2_EXT_DATA_FILE = 0x44415441U,
};

#define QCOW2_INCOMPAT_DIRTY (1ULL << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ULL << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ULL << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ULL << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (1ULL << 4)
#define QCOW2_INCOMPAT_KNOWN 0x1fULL
#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ULL << 0)
#define QCOW2_COMPAT_KNOWN 0x1ULL
#define QCOW2_AUTOCLEAR_BITMAPS (1ULL << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (1ULL << 1)
#define QCOW2_AUTOCLEAR_KNOWN 0x3ULL

/* Table entries (the spec, "Cluster mapping", "Host cluster management"). */
#define QCOW2_COPIED (1ULL << 63)
#define QCOW2_COMPRESSED (1ULL << 62)
#define QCOW2_ZERO (1ULL << 0)
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ULL
#define QCOW2_L1_RESERVED 0x7f000000000001ffULL
#define QCOW2_L2_RESERVED 0x3f000000000001feULL
#define QCOW2_REFTABLE_RESERVED 0x1ffULL
#define QCOW2_MAX_HOST (1ULL << 56) /* what an entry can point to ends here */

#define QCOW2_SUBCLUSTERS 32
#define QCOW2_ALL_ALLOCATED 0x00000000ffffffffULL
#define QCOW2_ALL_ZERO 0xffffffff00000000ULL

/* The cached unit of a table, so that a 2 MiB table need not be read whole to
 * look up one entry. 8 MiB of them map 64 GiB in 64 KiB clusters. */
#define QCOW2_SLICE_MAX 16384U
#define QCOW2_L2_CACHE_BYTES (8U << 20)
#define QCOW2_REF_CACHE_BYTES (1U << 20)
/* Decompressed clusters kept: reads smaller than a cluster tend to go on. */
#define QCOW2_Z_CACHE 4
#define QCOW2_Z_CACHE_BYTES (4U << 20)

/* A cached piece of a table, as it is on disk (big endian). */
struct qcow2_slice {
    uint64_t host;
    uint8_t *data;
    bool dirty;
    struct qcow2_slice *chain;         /* same hash bucket */
    struct qcow2_slice *newer, *older; /* recency, a list without ends */
};

struct qcow2_cache {
    struct rhea_storage *storage;
    const char *read_event, *write_event; /* of blkdebug; NULL: none */
    uint32_t unit;                        /* bytes of a slice */
    unsigned capacity;                    /* slices */
    unsigned n_slices, n_dirty;
    struct qcow2_slice *slices;
    struct qcow2_slice **buckets;
    unsigned n_buckets;
    struct qcow2_slice *newest;
    /* Called when all are dirty and one is needed: makes at least one clean.
     * NULL: dirty slices may be written at any time. */
    int (*make_room)(void *opaque, struct rhea_error *err);
    void *opaque;
};

struct qcow2_snapshot {
    struct rhea_snapshot s;
    uint64_t l1_offset;
    uint32_t l1_size;    /* entries */
    uint32_t extra_size; /* on disk */
    uint8_t *extra;      /* what of it is not known; NULL: nothing */
};

/* A snapshot table that is written, but that nothing points to yet. */
struct qcow2_staged {
    uint64_t host, length; /* 0: no snapshot */
    uint32_t count;
};

/* Clusters that lose one reference each as soon as no table on disk leads to
 * them any more. */
struct qcow2_release {
    uint64_t cluster, count;
    bool punch; /* the guest gave them back: punch a hole */
};
#define QCOW2_RELEASES_MAX 65536

/* Guest clusters that one thread is about to map anew. */
struct qcow2_flight {
    uint64_t start, end; /* guest bytes, whole clusters */
    struct qcow2_flight *next;
};

/* A bitmap that is held in memory, and marked as in use in the file. */
struct qcow2_tracked {
    uint32_t index; /* in the directory */
    unsigned granularity_bits;
    bool enabled; /* follows guest writes */
    uint8_t *bits;
    uint64_t n_bytes;
    uint64_t size; /* bytes of a disk that these bits are for */
};

struct qcow2_decompressed {
    uint64_t host; /* of the stored form; 0: none */
    uint64_t age;
    uint8_t *data;
};

struct qcow2 {
    struct rhea_format f;
    unsigned flags; /* RHEA_FORMAT_* */
    bool lazy;      /* refcounts are brought up to date at the end only */
    /* Where guest data is: the image's own file or its data file, where NULL
     * says that nobody opened it. In a data file a guest cluster always stands
     * at its guest offset, as QEMU has it, and is not counted; with the bit
     * for raw data, the data file is at every moment what the guest sees. */
    struct rhea_storage *guest;

    /* The header as last written or read. Constant, save for what repair and
     * growth change under LOCK. */
    uint32_t version, header_length;
    unsigned cluster_bits;
    uint32_t cluster_size;
    uint32_t crypt_method;
    uint64_t l1_offset;
    uint32_t l1_size;   /* entries */
    uint32_t l1_needed; /* entries that the virtual size takes */
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_offset, snapshots_length;
    uint64_t incompatible, compatible, autoclear;
    unsigned refcount_order;
    uint8_t compression;
    bool unknown_parts;
    /* What this program does not know of the header: fields from 112 on up to
     * HEADER_LENGTH (NULL: none), and whole extensions. */
    uint8_t *unknown_fields, *unknown;
    size_t unknown_length;
    uint64_t backing_offset;
    char *backing_file, *backing_format, *data_file;
    uint32_t n_bitmaps; /* in the extension, consistent or not */
    uint64_t bitmap_dir_offset, bitmap_dir_size;
    uint64_t crypto_offset, crypto_length;
    struct qcow2_crypt crypt;
    struct qcow2_snapshot *snapshots; /* NULL when opened to be checked */

    /* Derived; constant. */
    unsigned entry_bits;      /* log2 of an L2 entry's bytes: 3 or 4 */
    unsigned l2_bits;         /* log2 of entries in an L2 table */
    unsigned subclusters;     /* per cluster: 1 or 32 */
    unsigned subcluster_bits; /* log2 of a subcluster's bytes */
    unsigned block_bits;      /* log2 of refcounts in a block */
    uint64_t refcount_max;
    unsigned z_shift; /* compressed entries: where the sector count begins */

    pthread_mutex_t lock;
    pthread_rwlock_t data;
    bool failed; /* a metadata write or flush failed: nothing more is written */

    uint64_t file_size; /* at least so long; asked again when it matters */
    uint64_t *l1;       /* l1_size entries, host byte order */
    struct qcow2_cache l2;

    /* Refcounts, once loaded. */
    bool refs_loaded;
    uint64_t *reftable;     /* host byte order */
    uint32_t reftable_size; /* entries in memory; more than on disk once it is
                               to grow */
    bool reftable_dirty;
    struct qcow2_cache refs;
    uint64_t free_hint; /* no cluster below is free */

    /* Writing; see write.c and sync.c. */
    bool write_ready;
    struct bitmap tables;   /* clusters that held tables when writing began */
    struct bitmap l1_dirty; /* one bit for 64 entries, a sector */
    bool any_l1_dirty;
    struct qcow2_release *releases;
    size_t n_releases, max_releases;
    uint64_t given_back; /* clusters of them that the guest gave back */
    struct qcow2_flight *flights;
    pthread_cond_t landed;
    uint64_t fresh;  /* host bytes from here on were never written */
    uint64_t z_next; /* where the next compressed cluster may go on; 0: none */

    /* Persistent bitmaps that follow guest writes; see bitmap_track.c. */
    bool tracking;
    struct qcow2_tracked *tracked;
    uint32_t n_tracked;

    struct {
        pthread_mutex_t lock;
        struct qcow2_decompressed slot[QCOW2_Z_CACHE];
        unsigned n_slots;
        uint64_t clock;
        struct qcow2_compressor *idle;
    } z;
};

static inline struct qcow2 *qcow2_of(struct rhea_format *f)
{
    return (struct qcow2 *)f;
}

static inline bool qcow2_extended(const struct qcow2 *q)
{
    return q->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
}

static inline bool qcow2_external(const struct qcow2 *q)
{
    return q->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

static inline bool qcow2_raw_data(const struct qcow2 *q)
{
    return qcow2_external(q) && q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
}

/* Guest bytes that one L2 table maps, as a shift. */
static inline unsigned qcow2_l1_shift(const struct qcow2 *q)
{
    return q->cluster_bits + q->l2_bits;
}

/* header.c, header_write.c */
/* Take the options of HOW that are in runtime.c; the others are left in REST,
 * which has room for all. The header has been read. */
int qcow2_runtime_options(struct qcow2 *q, const struct rhea_format_open *how,
                          struct rhea_option *rest, size_t *n_rest,
                          struct rhea_error *err);
int qcow2_header_read(struct qcow2 *q, struct rhea_error *err);
void qcow2_header_finish(struct qcow2 *q);
/* Write the three feature words and make them durable. */
int qcow2_header_write_features(struct qcow2 *q, struct rhea_error *err);
/* Lay out a header cluster from Q's members, backing names included. BUF holds
 * a cluster. -ENOSPC where it does not fit. */
int qcow2_header_build(struct qcow2 *q, uint8_t *buf, struct rhea_error *err);
/* Write all of the header as Q's members have it, durably, so that after a
 * crash the old or the new one is there. What it points to must be durable.
 * -ENOSPC where it does not fit; nothing is written then. */
int qcow2_header_update(struct qcow2 *q, struct rhea_error *err);

/* cache.c. A slice is valid until the next get from the same cache. */
int qcow2_cache_init(struct qcow2_cache *c, struct rhea_storage *storage,
                     uint32_t unit, unsigned capacity, struct rhea_error *err);
void qcow2_cache_finish(struct qcow2_cache *c);
/* The slice at HOST (a multiple of the unit), read if need be; what lies past
 * the end of the file reads as zeroes. */
int qcow2_cache_get(struct qcow2_cache *c, uint64_t host,
                    struct qcow2_slice **slice, struct rhea_error *err);
void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *slice);
/* Write all dirty slices, in the order of the file. */
int qcow2_cache_write(struct qcow2_cache *c, struct rhea_error *err);
/* Drop the slices of a range, also dirty ones; of everything. */
void qcow2_cache_forget(struct qcow2_cache *c, uint64_t host, uint64_t len);
void qcow2_cache_clear(struct qcow2_cache *c);

/* map.c. All under LOCK. */
struct qcow2_entry {
    uint64_t entry;
    uint64_t bitmap; /* extended L2 entries only, else 0 */
};
/* The L2 slice for a guest offset and the index in it; *SLICE is NULL where
 * there is no L2 table. */
int qcow2_l2_get(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice,
                 unsigned *index, struct rhea_error *err);
/* Entries in a slice. */
static inline unsigned qcow2_slice_entries(const struct qcow2 *q)
{
    return q->l2.unit >> q->entry_bits;
}
struct qcow2_entry qcow2_entry_load(const struct qcow2 *q, const uint8_t *table,
                                    size_t index);
struct qcow2_entry qcow2_entry_get(const struct qcow2 *q,
                                   const struct qcow2_slice *slice,
                                   unsigned index);
/* Whether a standard L2 entry has a host cluster. In a data file its offset may
 * be 0, and then only the flag tells. */
static inline bool qcow2_entry_has_host(const struct qcow2 *q, uint64_t entry)
{
    return entry & QCOW2_OFFSET_MASK ||
           (qcow2_external(q) && entry & QCOW2_COPIED);
}
/* Whether an L1 entry, an L2 entry makes sense; an error that says where. */
int qcow2_l1_entry_check(struct qcow2 *q, uint32_t index, uint64_t entry,
                         struct rhea_error *err);
int qcow2_entry_check(struct qcow2 *q, uint64_t guest, struct qcow2_entry e,
                      struct rhea_error *err);
/* Where a compressed cluster is stored. */
void qcow2_compressed_place(const struct qcow2 *q, uint64_t entry,
                            uint64_t *host, uint64_t *length);
/* Whether HOST lies inside the file. */
bool qcow2_in_file(struct qcow2 *q, uint64_t host);
/* Whether all clusters of a table begin inside the file. */
bool qcow2_table_in_file(struct qcow2 *q, uint64_t host, uint64_t length);
int qcow2_map_locked(struct qcow2 *q, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err);
/* The same for what the L1 table maps, guest bytes or not. */
int qcow2_map_area(struct qcow2 *q, uint64_t offset, uint64_t end,
                   struct rhea_extent *extent, struct rhea_error *err);
int qcow2_map(struct rhea_format *f, uint64_t offset, uint64_t len,
              struct rhea_extent *extent, struct rhea_error *err);
int qcow2_map_hold(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err);
void qcow2_map_release(struct rhea_format *f);
/* Refuse guest data that lies in another file. */
int qcow2_data_refuse(const struct qcow2 *q, struct rhea_error *err);

/* decompress.c, compress.c */
int qcow2_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
               struct rhea_error *err);
void qcow2_z_forget(struct qcow2 *q);
void qcow2_compressors_finish(struct qcow2 *q);
int qcow2_write_compressed(struct rhea_format *f, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err);

/* snapshot_table.c */
/* Read the snapshot table. */
int qcow2_snapshots_read(struct qcow2 *q, struct rhea_error *err);
/* The same, and leave out what no reader takes: extra data beyond the limit,
 * snapshots at the end of a table that is too long. */
struct qcow2_table_repair {
    uint32_t cut, discarded; /* entries */
};
int qcow2_snapshots_read_repair(struct qcow2 *q,
                                struct qcow2_table_repair *repair,
                                struct rhea_error *err);
/* Make the header's count what it is in memory, durably. */
int qcow2_snapshots_write_count(struct qcow2 *q, struct rhea_error *err);
void qcow2_snapshots_free(struct qcow2 *q);
/* Write a table of N snapshots to new clusters. */
int qcow2_snapshots_stage(struct qcow2 *q, const struct qcow2_snapshot *list,
                          uint32_t n, struct qcow2_staged *staged,
                          struct rhea_error *err);
/* Make the header point to it, durably; it must be durable itself. The old
 * table's clusters are the caller's to release. */
int qcow2_snapshots_switch(struct qcow2 *q, const struct qcow2_staged *staged,
                           struct rhea_error *err);
/* Clusters in one piece for BYTES, each with refcount 1 now; for no bytes none,
 * at 0. */
int qcow2_alloc_run(struct qcow2 *q, uint64_t bytes, uint64_t *host,
                    struct rhea_error *err);
/* Snapshots that lack what that version requires; write a new table in which
 * they have it, and give the old one back. Refcounts must be right. */
uint32_t qcow2_snapshots_incomplete(const struct qcow2 *q, uint32_t version);
int qcow2_snapshots_complete(struct qcow2 *q, struct rhea_error *err);

/* snapshot_refs.c. All under LOCK. */
/* How often an L1 table's tree refers to each cluster, its own clusters not
 * counted. */
struct qcow2_tree {
    uint64_t n; /* clusters */
    uint16_t *counts;
};
/* Begins with all zero bytes; free it also after a failure. Everything in the
 * tree is checked: a damaged one is an error, as are refcounts that do not
 * allow for ADDEND (-1, 0 or 1) times the tree. The file must be up to date. */
int qcow2_tree_count(struct qcow2 *q, struct qcow2_tree *tree,
                     const uint64_t *l1, uint32_t n, int addend,
                     struct rhea_error *err);
void qcow2_tree_free(struct qcow2_tree *tree);
/* Raise the refcounts; all or none. */
int qcow2_tree_raise(struct qcow2 *q, const struct qcow2_tree *tree,
                     struct rhea_error *err);
/* Undo that. */
void qcow2_tree_lower(struct qcow2 *q, const struct qcow2_tree *tree);
/* Release one reference for each. */
int qcow2_tree_release(struct qcow2 *q, const struct qcow2_tree *tree,
                       struct rhea_error *err);
/* Make the COPIED flags of the active tables agree with the refcounts; the next
 * sync writes them. */
int qcow2_flags_update(struct qcow2 *q, struct rhea_error *err);

/* snapshot_change.c, snapshot_read.c, vm_state.c */
/* The snapshot of that id or else name; NULL with ERR filled in: none. */
const struct qcow2_snapshot *qcow2_snapshot_find(const struct qcow2 *q,
                                                 const char *which,
                                                 struct rhea_error *err);
/* Load a snapshot's L1 table; at least MIN entries, those that it lacks 0. */
int qcow2_snapshot_l1(struct qcow2 *q, const struct qcow2_snapshot *s,
                      uint32_t min, uint64_t **l1, struct rhea_error *err);
int qcow2_snapshot_list(struct rhea_format *f, struct rhea_snapshot **list,
                        size_t *n, struct rhea_error *err);
int qcow2_snapshot_load(struct rhea_format *f, const char *which,
                        struct rhea_error *err);
int qcow2_snapshot_create(struct rhea_format *f,
                          const struct rhea_snapshot *what,
                          struct rhea_error *err);
int qcow2_snapshot_apply(struct rhea_format *f, const char *which,
                         struct rhea_error *err);
int qcow2_snapshot_delete(struct rhea_format *f, const char *which,
                          struct rhea_error *err);
int qcow2_vm_state_read(struct rhea_format *f, uint64_t offset, void *buf,
                        size_t len, struct rhea_error *err);
int qcow2_vm_state_write(struct rhea_format *f, uint64_t offset,
                         const void *buf, size_t len, struct rhea_error *err);
/* Unmap LEN bytes of VM state from the active table. */
int qcow2_vm_state_drop(struct qcow2 *q, uint64_t len, struct rhea_error *err);

/* l1.c */
/* Write a table of N entries to new clusters. */
int qcow2_l1_store(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                   uint64_t *host, struct rhea_error *err);
/* Switch to an L1 table of N entries, and to a virtual size of SIZE bytes. What
 * the entries lead to is durable, and nothing is dirty. The old table's
 * clusters are released. */
int qcow2_l1_replace(struct qcow2 *q, const uint64_t *l1, uint32_t n,
                     uint64_t size, struct rhea_error *err);

/* Told of ranges of the file. */
typedef int qcow2_range_fn(void *opaque, uint64_t host, uint64_t length,
                           struct rhea_error *err);

/* bitmap*.c. All under LOCK, save those of the table of functions. */
/* Every range of the bitmaps: directory, tables, data. */
int qcow2_bitmaps_walk(struct qcow2 *q, qcow2_range_fn *fn, void *opaque,
                       struct rhea_error *err);
/* The guest is about to change [OFFSET, END), or to make it zero: enter that
 * where bitmaps follow guest writes. */
int qcow2_bitmaps_follow(struct qcow2 *q, uint64_t offset, uint64_t end,
                         struct rhea_error *err);
static inline int qcow2_bitmaps_touch(struct qcow2 *q, uint64_t offset,
                                      uint64_t end, struct rhea_error *err)
{
    return q->n_bitmaps ? qcow2_bitmaps_follow(q, offset, end, err) : 0;
}
/* Store the bitmaps that were followed so far; they are followed anew from the
 * next change on. */
int qcow2_bitmaps_settle(struct qcow2 *q, struct rhea_error *err);
/* The disk is about to be SIZE bytes long: all bitmaps are marked as in use,
 * and held in memory with bits for so many bytes. -ENOTSUP where one is in use
 * already. */
int qcow2_bitmaps_resize(struct qcow2 *q, uint64_t size,
                         struct rhea_error *err);
/* That is done, or failed: store them. Returns RESULT where that is an error.
 */
int qcow2_bitmaps_resized(struct qcow2 *q, int result, struct rhea_error *err);
/* Forget what is in memory. */
void qcow2_bitmaps_finish(struct qcow2 *q);
/* Whether there are any (that mean something). */
static inline bool qcow2_bitmaps_any(const struct qcow2 *q)
{
    return q->n_bitmaps && q->autoclear & QCOW2_AUTOCLEAR_BITMAPS;
}
/* What `info` tells of them. */
int qcow2_bitmaps_facts(struct qcow2 *q, struct rhea_facts *facts,
                        struct rhea_error *err);
int qcow2_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list,
                      size_t *n, struct rhea_error *err);
int qcow2_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                     struct rhea_error *err);
int qcow2_bitmap_remove(struct rhea_format *f, const char *name,
                        struct rhea_error *err);
int qcow2_bitmap_enable(struct rhea_format *f, const char *name, bool enabled,
                        struct rhea_error *err);
int qcow2_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                      size_t n, struct rhea_error *err);
int qcow2_bitmap_store(struct rhea_format *f, const char *name,
                       const uint8_t *bits, size_t n, struct rhea_error *err);

/* walk.c */
int qcow2_walk(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
               struct rhea_error *err);
/* Load a table of N big-endian words at HOST; what lies past the end of the
 * file is zero. *TABLE is malloc'd. */
int qcow2_table_load(struct qcow2 *q, uint64_t host, uint32_t n,
                     uint64_t **table, struct rhea_error *err);

/* refcount.c. All under LOCK. */
uint64_t qcow2_refcount_load(unsigned order, const uint8_t *block,
                             uint64_t index);
void qcow2_refcount_store(unsigned order, uint8_t *block, uint64_t index,
                          uint64_t value);
int qcow2_refs_load(struct qcow2 *q, struct rhea_error *err);
void qcow2_refs_finish(struct qcow2 *q);
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *refcount,
                       struct rhea_error *err);
/* Add to (or take from) the refcounts of COUNT clusters. */
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t count,
                       int64_t addend, struct rhea_error *err);
/* Up to COUNT contiguous clusters, each with refcount 1 now. FRESH: nothing was
 * ever written there, so that they read as zeroes. */
int qcow2_alloc(struct qcow2 *q, uint64_t count, uint64_t *cluster,
                uint64_t *got, bool *fresh, struct rhea_error *err);
/* COUNT clusters in one piece, behind the last ones that are counted, each
 * with refcount 1 now. */
int qcow2_alloc_table(struct qcow2 *q, uint64_t count, uint64_t *cluster,
                      struct rhea_error *err);
/* Write refcount blocks and table so that they are durable once this returns
 * 0, the blocks before the table that points to them. */
int qcow2_refs_write(struct qcow2 *q, struct rhea_error *err);

/* The cluster after the last one that counts as used. */
int qcow2_refs_end(struct qcow2 *q, uint64_t *end, struct rhea_error *err);

extern const struct rhea_format_ops rhea_format_qcow2;

/* overlap.c. All under LOCK. */
/* Learn anew which clusters hold tables, after some were given back. */
int qcow2_note_tables(struct qcow2 *q, struct rhea_error *err);
/* The same in B, and without the active L2 tables. */
int qcow2_note_core(const struct qcow2 *q, struct bitmap *b,
                    struct rhea_error *err);
/* Whether any cluster of a range has its bit set. */
bool qcow2_overlaps(const struct qcow2 *q, const struct bitmap *b,
                    uint64_t host, uint64_t length);
/* Guest data at HOST is about to be written in place, or given back: refused
 * where tables are. The image is then marked as corrupt, and nothing more is
 * written to it. */
int qcow2_overlap_check(struct qcow2 *q, uint64_t host, uint64_t length,
                        struct rhea_error *err);

/* sync.c. All under LOCK, save flush. */
/* What must be true before anything is changed: called first by whatever
 * changes the image. */
int qcow2_write_begin(struct qcow2 *q, struct rhea_error *err);
/* Write back all metadata in its order and make all durable; then freed
 * clusters are free. */
int qcow2_sync(struct qcow2 *q, struct rhea_error *err);
/* The same; then also refcounts that may be lazy are durable. */
int qcow2_sync_all(struct qcow2 *q, struct rhea_error *err);
/* make_room of the L2 cache: write its tables, in their order. */
int qcow2_sync_tables(void *opaque, struct rhea_error *err);
/* What the guest gave back is used again before the file grows, but not in
 * small pieces: each takes a sync. */
int qcow2_reclaim(struct qcow2 *q, struct rhea_error *err);
/* Drop one reference each once nothing on disk leads to them. */
int qcow2_release(struct qcow2 *q, uint64_t cluster, uint64_t count, bool punch,
                  struct rhea_error *err);
int qcow2_flush(struct rhea_format *f, struct rhea_error *err);
/* Write back everything and mark the image cleanly closed. */
int qcow2_write_end(struct qcow2 *q, struct rhea_error *err);
/* Forget all that write_begin set up; nothing may be dirty. */
void qcow2_write_reset(struct qcow2 *q);
/* After a sync: cut off what nobody uses at the end of the file. */
int qcow2_cut_end(struct qcow2 *q, struct rhea_error *err);
/* Change an L1 entry; it is written by the next sync. */
void qcow2_l1_set(struct qcow2 *q, uint32_t index, uint64_t entry);
/* Report an error after which no metadata may be written any more. */
int qcow2_fail(struct qcow2 *q, int result);

/* guest.c. Not under LOCK. */
/* Guest bytes through this image and what lies below; past the virtual size
 * all is zero. */
int qcow2_read_guest(struct qcow2 *q, uint64_t offset, void *buf, size_t len,
                     struct rhea_error *err);
/* Whether a look at the tables alone says that guest bytes are zeroes. */
int qcow2_guest_zero(struct qcow2 *q, uint64_t offset, uint64_t len, bool *zero,
                     struct rhea_error *err);

/* write.c */
int qcow2_clone(struct rhea_format *f, uint64_t offset,
                struct rhea_storage *from, uint64_t from_offset, uint64_t len,
                struct rhea_error *err);
int qcow2_write(struct rhea_format *f, uint64_t offset, const void *buf,
                size_t len, struct rhea_error *err);
/* The same for what the L1 table maps, guest bytes or not; past the virtual
 * size whole clusters only. */
int qcow2_write_area(struct qcow2 *q, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err);
/* As qcow2_l2_get, but makes a table that this image alone uses. */
int qcow2_l2_get_writable(struct qcow2 *q, uint64_t offset,
                          struct qcow2_slice **slice, unsigned *index,
                          struct rhea_error *err);
void qcow2_entry_set(struct qcow2 *q, struct qcow2_slice *slice, unsigned index,
                     struct qcow2_entry e);
/* Release what an entry that was replaced referred to. */
int qcow2_entry_release(struct qcow2 *q, struct qcow2_entry e, bool punch,
                        struct rhea_error *err);
/* Wait until nobody maps clusters of the range anew. Under LOCK, which is let
 * go meanwhile. */
void qcow2_flight_wait(struct qcow2 *q, uint64_t start, uint64_t end);
/* From now on others wait for clusters of the range. */
void qcow2_flight_begin(struct qcow2 *q, struct qcow2_flight *flight,
                        uint64_t start, uint64_t end);
void qcow2_flight_end(struct qcow2 *q, struct qcow2_flight *flight);

/* zero.c */
int qcow2_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                       bool unmap, struct rhea_error *err);
int qcow2_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                  struct rhea_error *err);

/* backing.c, empty.c */
int qcow2_set_backing(struct rhea_format *f, const char *file,
                      const char *format, struct rhea_format *parent,
                      struct rhea_error *err);
int qcow2_make_empty(struct rhea_format *f, struct rhea_error *err);
/* Set L1 entries from FIRST on to 0 and release all that they lead to. Under
 * LOCK, after a sync; the next sync writes them. */
int qcow2_tables_drop(struct qcow2 *q, uint32_t first, struct rhea_error *err);

/* resize.c. Nobody else may use the image meanwhile. */
enum qcow2_preallocation {
    QCOW2_PREALLOCATE_OFF,
    QCOW2_PREALLOCATE_METADATA,
    QCOW2_PREALLOCATE_FALLOC,
    QCOW2_PREALLOCATE_FULL,
};
int qcow2_resize(struct rhea_format *f, const struct rhea_resize *how,
                 struct rhea_error *err);

/* amend.c, amend_refcounts.c. Nobody else may use the image meanwhile. */
extern const struct rhea_option_help qcow2_amend_options[];
int qcow2_amend(struct rhea_format *f, const struct rhea_option *options,
                size_t n, bool force, const struct rhea_progress *progress,
                struct rhea_error *err);
/* Refcounts of 2^ORDER bits. */
int qcow2_refs_convert(struct qcow2 *q, unsigned order, struct rhea_error *err);

/* check.c, repair.c */
int qcow2_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                struct rhea_error *err);
/* The same under LOCK. */
int qcow2_check_locked(struct qcow2 *q, unsigned fix, struct rhea_check *check,
                       struct rhea_error *err);

/* create.c */
extern const struct rhea_option_help qcow2_create_options[];
int qcow2_create(struct rhea_storage *storage, const struct rhea_create *how,
                 struct rhea_error *err);
int qcow2_measure(const struct rhea_measure *what, struct rhea_measured *out,
                  struct rhea_error *err);

#endif
