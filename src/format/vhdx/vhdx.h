/* SPDX-License-Identifier: MIT */
/*
 * What the VHDX driver's files share. See vhdx.c for the format.
 *
 * Locking: blocks.lock guards the tables, the headers and the log's state. It
 * is held over table I/O and flushes, never over guest data.
 */
#ifndef RHEA_FORMAT_VHDX_H
#define RHEA_FORMAT_VHDX_H

#include <rhea/format.h>

#include "base/bitmap.h"
#include "base/uuid.h"
#include "format/blocks.h"
#include "format/table.h"
#include "format/vhdx/layout.h"

/* A header, as it is in the file. */
struct vhdx_header {
    uint64_t sequence;
    uint8_t file_write[UUID_BYTES], data_write[UUID_BYTES];
    uint8_t log_guid[UUID_BYTES]; /* null: nothing is to be replayed */
    uint16_t log_version, version;
    uint32_t log_length;
    uint64_t log_offset;
};

/* A range of the file that holds no guest bytes. */
struct vhdx_range {
    uint64_t offset, length;
};

/* A run of log entries that were written one after the other; places are bytes
 * from the log's beginning. */
struct vhdx_sequence {
    uint32_t tail;    /* the first entry to replay */
    uint32_t n;       /* how many, from there on */
    uint64_t number;  /* of the last one */
    uint64_t flushed; /* the file is at least so long */
    uint64_t last;    /* and has to be made so long */
    uint64_t limit;   /* nothing is changed behind it */
    bool torn;        /* where there is none: something is there that might
                         have been one */
};

/* Where the log is written to, since this program has opened the image. */
struct vhdx_log {
    bool open; /* the headers name GUID */
    uint8_t guid[UUID_BYTES];
    uint32_t head;     /* where the next entry goes */
    uint64_t sequence; /* its number; 0: none has been written */
    bool unsettled;    /* from entry TAIL on, what was written may not be
                          durable in its places */
    uint32_t tail;
};

/* MiB of the file that nobody uses; see gaps.c. */
struct vhdx_gaps {
    bool known;         /* what follows has been found out */
    struct bitmap used; /* those past its end are not looked at */
    uint64_t next;      /* there is no room for a block before this one */
};

enum vhdx_item {
    VHDX_ITEM_PARAMETERS,
    VHDX_ITEM_SIZE,
    VHDX_ITEM_DISK_ID,
    VHDX_ITEM_LOGICAL_SECTOR,
    VHDX_ITEM_PHYSICAL_SECTOR,
    VHDX_ITEM_LOCATOR,
    VHDX_N_ITEMS,
};

/* What a parent locator says. Strings are malloc'd, NULL where absent. */
struct vhdx_locator {
    uint8_t linkage[UUID_BYTES], linkage2[UUID_BYTES];
    bool has_linkage2;
    char *relative, *volume, *absolute;
    char *posix; /* this program's: a name that Windows cannot have */
};

/* What the metadata say. */
struct vhdx_metadata {
    struct vhdx_range items[VHDX_N_ITEMS]; /* in the file; length 0: none */
    uint32_t block_size, flags;
    uint64_t size;
    uint8_t disk_id[UUID_BYTES];
    uint32_t logical_sector, physical_sector;
};

struct vhdx {
    struct rhea_format base;
    struct rhea_storage *overlay; /* the file as it will be when its log has
                                     been replayed; NULL: it needs not */
    struct rhea_storage *image;   /* the overlay or the file */
    bool may_write; /* the file may be written to, replayed or not */

    struct vhdx_header header;   /* the current one */
    unsigned current;            /* 0 or 1: which of the two it is */
    bool other_bad;              /* the other one is damaged */
    unsigned bad_regions;        /* bit 0, 1: that copy is damaged */
    bool begun;                  /* FileWriteGuid is new */
    bool data_begun;             /* and so is DataWriteGuid */
    struct vhdx_sequence replay; /* what OVERLAY was made of */
    struct vhdx_log log;

    struct vhdx_range bat_region, metadata_region;
    struct vhdx_range *taken; /* the log and all regions */
    size_t n_taken;
    struct vhdx_metadata metadata;
    struct vhdx_locator locator;
    char *creator, *parent;

    uint64_t scan_end; /* of all blocks, while they are looked at */
    unsigned block_bits;
    unsigned ratio_bits; /* a chunk has 1 << ratio_bits blocks */

    struct blocks blocks;
    struct table tables; /* pages of the BAT and of sector bitmaps */
    struct vhdx_gaps gaps;
};

extern const struct rhea_format_ops rhea_format_vhdx;
extern const struct rhea_option_help vhdx_create_options[];

static inline bool vhdx_is_child(const struct vhdx *v)
{
    return v->metadata.flags & VHDX_P_PARENT;
}
uint64_t vhdx_blocks(const struct vhdx *v);

/* --- vhdx.c --- */
/* Something is to be put behind the end of the file. */
void vhdx_round_end(struct vhdx *v);

/* --- header.c --- */
int vhdx_headers_read(struct vhdx *v, struct rhea_error *err);
/* Write V's header as the current one, twice, so that both copies have it; each
 * is durable before the next. */
int vhdx_headers_write(struct vhdx *v, struct rhea_error *err);
void vhdx_header_store(const struct vhdx_header *h,
                       uint8_t bytes[VHDX_HEADER_BYTES]);
/* Before the first change of the file since it was opened, and, with DATA, of
 * what the guest sees. With the lock held. */
int vhdx_begin(struct vhdx *v, bool data, struct rhea_error *err);
/* Checksums: over LEN bytes, those of the checksum itself, at AT, as zeroes. */
uint32_t vhdx_checksum(const uint8_t *bytes, size_t len, size_t at);

/* --- region.c --- */
int vhdx_regions_read(struct vhdx *v, struct rhea_error *err);
void vhdx_regions_store(uint8_t bytes[VHDX_REGIONS_BYTES],
                        const struct vhdx_range *bat,
                        const struct vhdx_range *metadata);
/* In a region table that is whole, let the BAT be at another place; returns
 * where in it its entry is. */
size_t vhdx_regions_move_bat(uint8_t bytes[VHDX_REGIONS_BYTES],
                             const struct vhdx_range *bat);
/* Whether [offset, offset + length) touches the header, the log or a region. */
bool vhdx_is_taken(const struct vhdx *v, uint64_t offset, uint64_t length);

/* --- metadata.c --- */
extern const uint8_t vhdx_item_guids[VHDX_N_ITEMS][UUID_BYTES];
int vhdx_metadata_read(struct vhdx *v, struct rhea_error *err);
/* The whole region of a new image, malloc'd, *LEN bytes, a multiple of 1 MiB. M
 * says what is in it. LOCATOR NULL: it has no parent. FROM NULL: none, else the
 * parent, whose other items of the virtual disk are taken over (2.6.1.2). */
int vhdx_metadata_build(const struct vhdx_metadata *m, const uint8_t *locator,
                        size_t locator_length, const struct vhdx *from,
                        uint8_t **out, size_t *len, struct rhea_error *err);

/* --- locator.c --- */
int vhdx_locator_parse(struct vhdx_locator *l, const uint8_t *bytes, size_t len,
                       struct rhea_error *err);
void vhdx_locator_finish(struct vhdx_locator *l);
/* The locator of a child of a parent that is called NAME and has identity
 * LINKAGE; *OUT is malloc'd, *LEN bytes. */
int vhdx_locator_build(const char *name, const uint8_t linkage[UUID_BYTES],
                       uint8_t **out, size_t *len, struct rhea_error *err);
/* Which file is meant, as V->parent. FILES NULL: there are none. */
int vhdx_locator_find(struct vhdx *v, const struct rhea_files *files,
                      struct rhea_error *err);

/* --- log.c --- */
/* The newest sequence that is whole; n is 0 where there is none. */
int vhdx_log_find(struct vhdx *v, struct vhdx_sequence *s,
                  struct rhea_error *err);
/* One thing that a log says has to be in the file. */
struct vhdx_update {
    uint64_t offset, length;
    const uint8_t *data; /* VHDX_LOG_SECTOR bytes; NULL: zeroes */
    uint64_t order;      /* later ones win */
    /* Where DATA is but for its first 8 and last 4 bytes, in the file. */
    uint64_t data_at;
};
typedef int vhdx_update_fn(void *opaque, const struct vhdx_update *update,
                           struct rhea_error *err);
/* All that sequence S says, in order. */
int vhdx_log_walk(struct vhdx *v, const struct vhdx_sequence *s,
                  vhdx_update_fn *fn, void *opaque, struct rhea_error *err);
/* Bring sequence S into the file and close the log. */
int vhdx_log_replay(struct vhdx *v, const struct vhdx_sequence *s,
                    struct rhea_error *err);

/* --- log_write.c; with the lock held --- */
/* A sector of the log's size that is to be changed. */
struct vhdx_patch {
    uint64_t offset; /* of which it is a multiple */
    const uint8_t *bytes;
    uint8_t *own; /* the same, where they are the patch's; else NULL */
    bool is_bat;
};
/* As many as are changed all at once, or not at all. */
enum { VHDX_PATCHES = (512 - VHDX_LOG_HEAD) / VHDX_DESC_BYTES };
/* Change them, VHDX_PATCHES after the other. All that was written before is
 * durable before the first is changed; what is changed survives a crash. */
int vhdx_log_write(struct vhdx *v, const struct vhdx_patch *patches, size_t n,
                   struct rhea_error *err);
/* All is in its place and durable; the log is not in use. */
int vhdx_log_close(struct vhdx *v, struct rhea_error *err);
/* A table_write_fn. */
int vhdx_tables_write(void *opaque, struct table *t, struct rhea_error *err);

/* --- overlay.c --- */
/* V's file with sequence S in front, for reading. */
int vhdx_overlay_open(struct rhea_storage **out, struct vhdx *v,
                      const struct vhdx_sequence *s, struct rhea_error *err);

/* --- map.c; with the lock held --- */
/* As struct blocks_ops has it. */
int vhdx_map(struct blocks *b, uint64_t offset, uint64_t len,
             struct rhea_extent *extent, struct rhea_error *err);
/* Where a block's entry is in the BAT, and that of its chunk's sector bitmap:
 * offsets in the file. */
uint64_t vhdx_bat_place(const struct vhdx *v, uint64_t block);
uint64_t vhdx_bitmap_place(const struct vhdx *v, uint64_t block);
/* How many entries the BAT of such a disk has. */
uint64_t vhdx_bat_entries(const struct vhdx_metadata *m, bool child);
unsigned vhdx_ratio_bits(const struct vhdx_metadata *m);
/* The entry at PLACE. */
int vhdx_bat_get(struct vhdx *v, uint64_t place, uint64_t *entry,
                 struct rhea_error *err);
/* An entry that is not 0. */
struct vhdx_entry {
    uint64_t place, entry;
    uint64_t block; /* or the first one of the bitmap's chunk */
    bool is_bitmap;
};
typedef int vhdx_entry_fn(void *opaque, const struct vhdx_entry *e,
                          struct rhea_error *err);
/* How many bytes its place has, and how many of them have to be there. */
uint64_t vhdx_entry_length(const struct vhdx *v, const struct vhdx_entry *e);
uint64_t vhdx_entry_used(const struct vhdx *v, const struct vhdx_entry *e);
/* All of them; stops where FN does not return 0, which may change entries. */
int vhdx_bat_walk(struct vhdx *v, vhdx_entry_fn *fn, void *opaque,
                  struct rhea_error *err);
/* Where the bits of a block are in the file, one for each of its sectors. An
 * error where there is no bitmap. */
int vhdx_bits_place(struct vhdx *v, uint64_t block, uint64_t *place,
                    struct rhea_error *err);

/* --- write.c --- */
extern const struct blocks_ops vhdx_blocks_ops;
int vhdx_bat_set(struct vhdx *v, uint64_t place, uint64_t entry,
                 struct rhea_error *err);

/* --- gaps.c; with the lock held --- */
/* The next place for blocks that nobody uses: of at most *COUNT, which is 0
 * where there is none. It is empty. */
int vhdx_gap_take(struct vhdx *v, uint64_t *count, uint64_t *host,
                  struct rhea_error *err);
/* Something has become free, durably, or the file shorter. */
void vhdx_gaps_forget(struct vhdx *v);

/* --- check.c --- */
int vhdx_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
               struct rhea_error *err);

/* --- edit.c; with the lock held --- */
/* Changes of some bytes of metadata, gathered to be written at once. */
struct vhdx_edit {
    struct vhdx *v;
    struct vhdx_patch *patches; /* which own their bytes */
    size_t n;
};
int vhdx_edit_bytes(struct vhdx_edit *e, uint64_t offset, const void *bytes,
                    size_t len, struct rhea_error *err);
/* All of it through the log; ATOMIC: at once. */
int vhdx_edit_write(struct vhdx_edit *e, bool atomic, struct rhea_error *err);
void vhdx_edit_finish(struct vhdx_edit *e);
/* Where the BAT is to be so that it has room for M's disk, M being what the
 * metadata are going to say: where it is, or at the end of the file, to which
 * it is copied then. What leads to it goes into E. */
int vhdx_bat_make_room(struct vhdx *v, const struct vhdx_metadata *m,
                       struct vhdx_range *bat, struct vhdx_edit *e,
                       struct rhea_error *err);
/* E has been written. */
void vhdx_bat_moved(struct vhdx *v, const struct vhdx_range *bat);

/* --- amend.c, backing.c, resize.c, shrink.c --- */
extern const struct rhea_option_help vhdx_amend_options[];
int vhdx_amend(struct rhea_format *f, const struct rhea_option *options,
               size_t n, bool force, const struct rhea_progress *progress,
               struct rhea_error *err);
int vhdx_shrink(struct vhdx *v, uint64_t size, struct rhea_error *err);
/* With the lock held: the log is closed, and the file cut off behind the last
 * block. */
int vhdx_cut_off(struct vhdx *v, struct rhea_error *err);
int vhdx_resize(struct rhea_format *f, const struct rhea_resize *how,
                struct rhea_error *err);
int vhdx_set_backing(struct rhea_format *f, const char *file,
                     const char *format, struct rhea_format *parent,
                     struct rhea_error *err);
int vhdx_make_empty(struct rhea_format *f, struct rhea_error *err);

/* --- create.c --- */
int vhdx_create(struct rhea_storage *storage, const struct rhea_create *how,
                struct rhea_error *err);
int vhdx_measure(const struct rhea_measure *what, struct rhea_measured *out,
                 struct rhea_error *err);

/* --- facts.c --- */
int vhdx_facts(struct rhea_format *f, struct rhea_facts *facts,
               struct rhea_error *err);

#endif
