/* SPDX-License-Identifier: MIT */
/*
 * What the VHD driver's files share. See open.c for the format. QEMU calls it
 * vpc, after Virtual PC, and so must we.
 *
 * Locking: the lock of BLOCKS guards the footer, the tables, DATA_END and
 * FOOTER_AT of dynamic and differencing images; a fixed one has only its footer
 * to guard, by the same lock.
 */
#ifndef RHEA_FORMAT_VPC_H
#define RHEA_FORMAT_VPC_H

#include <rhea/format.h>

#include "base/uuid.h"
#include "format/blocks.h"
#include "format/table.h"

enum {
    VPC_SECTOR = 512,
    VPC_FOOTER = 512,
    VPC_SHORT_FOOTER = 511, /* before Virtual PC 2004 */
    VPC_HEADER = 1024,
    VPC_BAT_AT = VPC_FOOTER + VPC_HEADER, /* where ours begins */
    VPC_DEFAULT_BLOCK = 2 << 20,
    VPC_LOCATORS = 8,
    VPC_PARTS_MAX = VPC_LOCATORS + 5,
};

/* The footer's fields, by byte offset; big endian. */
enum {
    VPC_F_FEATURES = 8,
    VPC_F_VERSION = 12,
    VPC_F_HEADER_AT = 16, /* of the dynamic header; all ones: fixed */
    VPC_F_TIME = 24,
    VPC_F_CREATOR = 28,
    VPC_F_CREATOR_VERSION = 32,
    VPC_F_CREATOR_SYSTEM = 36,
    VPC_F_ORIGINAL_SIZE = 40,
    VPC_F_SIZE = 48,
    VPC_F_CYLINDERS = 56,
    VPC_F_HEADS = 58,
    VPC_F_SECTORS = 59,
    VPC_F_TYPE = 60,
    VPC_F_CHECKSUM = 64,
    VPC_F_UUID = 68,
    VPC_F_SAVED_STATE = 84,
    VPC_F_HIDDEN = 85, /* XenServer's */
};

/* The dynamic header's. */
enum {
    VPC_H_NEXT = 8,
    VPC_H_BAT = 16,
    VPC_H_VERSION = 24,
    VPC_H_ENTRIES = 28,
    VPC_H_BLOCK_SIZE = 32,
    VPC_H_CHECKSUM = 36,
    VPC_H_PARENT_UUID = 40,
    VPC_H_PARENT_TIME = 56,
    VPC_H_PARENT_NAME = 64,
    VPC_H_PARENT_NAME_BYTES = 512,
    VPC_H_LOCATORS = 576,
};

/* A parent locator's. */
enum {
    VPC_L_CODE = 0,
    VPC_L_SPACE = 4,
    VPC_L_LENGTH = 8,
    VPC_L_OFFSET = 16,
    VPC_L_BYTES = 24,
};

enum vpc_type { VPC_FIXED = 2, VPC_DYNAMIC = 3, VPC_DIFFERENCING = 4 };

/* "conectix", "cxsparse", with which a footer and the header begin. */
#define VPC_COOKIE UINT64_C(0x636f6e6563746978)
#define VPC_HEADER_COOKIE UINT64_C(0x6378737061727365)
#define VPC_NO_OFFSET UINT64_MAX
#define VPC_UNUSED UINT32_MAX /* an entry of the block allocation table */

/* The largest disk whose blocks 32-bit sector numbers can reach, by general
 * agreement: 2040 GiB. */
#define VPC_MAX_SIZE (UINT64_C(2040) << 30)

struct vpc_geometry {
    uint16_t cylinders;
    uint8_t heads, sectors;
};

enum vpc_state {
    VPC_ABSENT,
    VPC_DAMAGED, /* it begins as one does, but its checksum is wrong */
    VPC_GOOD,
};

/* The two places of a footer. */
struct vpc_found {
    uint64_t file_size;
    struct vpc_copy {
        uint8_t bytes[VPC_FOOTER];
        enum vpc_state state;
        uint64_t at;
        uint32_t length; /* VPC_FOOTER or VPC_SHORT_FOOTER */
    } tail, head;
    const struct vpc_copy *best; /* to go by; NULL: there is none */
};

struct vpc {
    struct rhea_format base;
    struct vpc_found found;     /* when it was opened */
    uint8_t footer[VPC_FOOTER]; /* as it is, or is to be, in the file */
    enum vpc_type type;
    bool use_chs; /* the size is what the geometry says */
    bool lenient; /* opened to be checked */
    bool no_io;

    /* The header, of dynamic and differencing images. */
    uint8_t header[VPC_HEADER];
    uint64_t header_at, bat;
    uint32_t entries, block_size, bitmap_bytes;
    bool bits_reversed;    /* the bitmaps' lowest bit comes first */
    char *backing_file;    /* NULL: none */
    bool header_was_wrong; /* its checksum */

    /* What is no block: headers, tables, parent locators. */
    struct vpc_range {
        uint64_t start, end;
    } parts[VPC_PARTS_MAX];
    unsigned n_parts;

    struct blocks blocks;
    struct table table; /* the block allocation table, and the bitmaps */
    uint64_t data_end;  /* the next block's place, not yet aligned; 0: not
                           known yet */
    uint64_t footer_at; /* where the trailing footer is, and no block reaches
                           past. Between DATA_END and it are zeroes, once
                           SETTLED */
    bool settled;       /* as said of FOOTER_AT */
    bool begun;         /* and has a new time stamp */
};

extern const struct rhea_format_ops rhea_format_vpc;

static inline struct vpc *vpc_of(struct rhea_format *f)
{
    return (struct vpc *)f;
}

static inline uint64_t vpc_blocks(const struct vpc *v)
{
    return v->block_size ? (v->base.size + v->block_size - 1) / v->block_size
                         : 0;
}

/* --- footer.c --- */

bool vpc_footer_is_good(const uint8_t footer[VPC_FOOTER]);
/* Set the checksum. */
void vpc_footer_seal(uint8_t footer[VPC_FOOTER]);
bool vpc_header_is_good(const uint8_t header[VPC_HEADER]);
void vpc_header_seal(uint8_t header[VPC_HEADER]);
/* Read both places; says which to go by. */
int vpc_footer_find(struct rhea_storage *storage, struct vpc_found *found,
                    struct rhea_error *err);
bool vpc_creator_is(const uint8_t footer[VPC_FOOTER], const char *creator);
/* Seconds since 2000, of now or of SECONDS since 1970; both clipped. */
uint32_t vpc_time_now(void);
uint32_t vpc_time(int64_t seconds);
/* "2016-02-25T16:51:27Z" */
void vpc_time_text(uint32_t time, char text[24]);

/* --- size.c --- */

void vpc_geometry_of(const uint8_t footer[VPC_FOOTER], struct vpc_geometry *g);
uint64_t vpc_geometry_bytes(const struct vpc_geometry *g);
/* The geometry for a disk of so many bytes, which is not larger than it
 * (specification, appendix). */
void vpc_geometry_for(uint64_t size, struct vpc_geometry *g);
/* Larger than the largest disk that a geometry can describe: what other
 * programs take as "go by the size". */
extern const struct vpc_geometry vpc_geometry_max;

/* The virtual size that FOOTER says. CALC is "chs" or "current_size", NULL: as
 * its creator means it. */
int vpc_size_of(const uint8_t footer[VPC_FOOTER], const char *calc,
                uint64_t *size, bool *use_chs, struct rhea_error *err);

/* Whose rules for sizes a new image keeps. */
enum vpc_rule { VPC_VIRTUAL_PC, VPC_HYPER_V, VPC_AZURE, VPC_XENSERVER };
/* A size by a rule, and what goes into the footer with it. */
struct vpc_shape {
    uint64_t size;
    struct vpc_geometry geometry;
    char creator[4];
    uint32_t creator_version, creator_system;
};
int vpc_rule_parse(const char *name, enum vpc_rule *rule,
                   struct rhea_error *err);
/* Round SIZE up as RULE wants it. EXACT: it may not change, but for rounding
 * to sectors. */
int vpc_shape_for(uint64_t size, enum vpc_rule rule, bool exact,
                  enum vpc_type type, struct vpc_shape *shape,
                  struct rhea_error *err);
void vpc_shape_put(const struct vpc_shape *shape, uint8_t footer[VPC_FOOTER]);

/* --- header.c --- */

/* The dynamic header, and where it says that all is. */
int vpc_header_read(struct vpc *v, struct rhea_error *err);
/* The bytes of the bitmap in front of a block. */
uint32_t vpc_bitmap_bytes(uint32_t block_size);
/* The end of the table's last sector. */
uint64_t vpc_bat_end(const struct vpc *v);
/* Whether a part of [START, END) is used for what is no block. */
bool vpc_is_used(const struct vpc *v, uint64_t start, uint64_t end);
/* The end of all that is no block. */
uint64_t vpc_parts_end(const struct vpc *v);
/* The end of N blocks that are put behind END. */
uint64_t vpc_place_end(uint64_t end, uint64_t n, uint32_t block_size,
                       uint32_t bitmap_bytes);
/* Where the data of the next block go. */
uint64_t vpc_place_data(uint64_t end, uint32_t block_size,
                        uint32_t bitmap_bytes);

/* --- batmap.c --- */

/* XenServer's map of full blocks: the places of its header and its bits.
 * *FOUND: there is one. */
int vpc_batmap_find(const struct vpc *v, bool *found, struct vpc_range *header,
                    struct vpc_range *bits, struct rhea_error *err);
/* No block is full any more; durable. Nothing where there is no map. */
int vpc_batmap_clear(struct vpc *v, struct rhea_error *err);
/* The bytes that one for so many blocks takes. */
uint64_t vpc_batmap_bytes(uint64_t blocks);
/* Write one in which no block is full. */
int vpc_batmap_write(struct rhea_storage *storage, uint64_t at, uint64_t blocks,
                     struct rhea_error *err);

/* --- locator.c --- */

/* A parent locator's data; false: it has none, or not in the file. */
bool vpc_locator_range(const struct vpc *v, unsigned i, uint64_t *offset,
                       uint64_t *space, uint32_t *length);
/* All names that the header has for the parent, best first, each malloc'd;
 * returns how many, a negative errno on failure. */
int vpc_parent_names(const struct vpc *v, char *names[VPC_LOCATORS * 2 + 2],
                     struct rhea_error *err);
/* What a header says of its parent. The locators' data are to be written to
 * the image, each where its offset says. */
struct vpc_locators {
    struct vpc_locator {
        char code[4];
        uint8_t *data; /* malloc'd */
        size_t length;
    } items[3];
    unsigned n;
    uint8_t name[VPC_H_PARENT_NAME_BYTES];
};
int vpc_locators_make(struct vpc_locators *l, const char *file,
                      struct rhea_error *err);
void vpc_locators_finish(struct vpc_locators *l);
/* The room that one takes, in whole sectors. */
uint64_t vpc_locator_space(const struct vpc_locator *l);
/* An entry of the header. */
void vpc_locator_put(uint8_t header[VPC_HEADER], unsigned i,
                     const struct vpc_locator *l, uint64_t offset,
                     uint64_t space);

/* --- alias.c --- */

/* The names in a Mac OS alias record: the path, the file's own name; each
 * malloc'd, or NULL. */
int mac_alias_names(const uint8_t *alias, size_t len, char **path, char **name,
                    struct rhea_error *err);

/* --- parent.c --- */

/* How a child records its parent FILE, of FORMAT, open as PARENT. */
int vpc_parent_record(uint8_t header[VPC_HEADER], const char *format,
                      struct rhea_format *parent, struct rhea_error *err);
int vpc_check_parent(struct rhea_format *f, struct rhea_format *parent,
                     struct rhea_error *err);
/* Stamp the footer with a time later than any that a child has recorded. */
void vpc_stamp(struct vpc *v);

/* --- bat.c; with the lock held, save scan --- */

/* The entry of a block, which exists. */
int vpc_bat_get(struct vpc *v, uint64_t block, uint32_t *entry,
                struct rhea_error *err);
int vpc_bat_set(struct vpc *v, uint64_t block, uint32_t entry,
                struct rhea_error *err);
/* How many entries from BLOCK on are unused, at most *COUNT: as many as can be
 * told cheaply. */
int vpc_bat_unused(struct vpc *v, uint64_t block, uint64_t *count,
                   struct rhea_error *err);
/* Every entry that is in use, as the file has it: COUNT blocks from BLOCK on
 * have ENTRY, which are many only where the file has a hole. A negative return
 * ends it. */
typedef int vpc_scan_fn(void *opaque, uint64_t block, uint64_t count,
                        uint32_t entry, struct rhea_error *err);
int vpc_bat_scan(const struct vpc *v, vpc_scan_fn *fn, void *opaque,
                 struct rhea_error *err);

/* Whether the bit of sector FIRST of a block is set, and for how many, at most
 * COUNT, that holds. BITMAP: its offset. */
int vpc_bitmap_get(struct vpc *v, uint64_t bitmap, uint32_t first,
                   uint32_t count, bool *set, uint32_t *run,
                   struct rhea_error *err);
int vpc_bitmap_set(struct vpc *v, uint64_t bitmap, uint32_t first,
                   uint32_t count, struct rhea_error *err);
/* All of its bytes. */
int vpc_bitmap_fill(struct vpc *v, uint64_t bitmap, uint8_t byte,
                    struct rhea_error *err);

/* --- dynamic.c; with the lock held, save find_data_end --- */

extern const struct blocks_ops vpc_blocks_ops;
/* Where the blocks end, which a look at the whole table tells. */
int vpc_find_data_end(struct vpc *v, struct rhea_error *err);
/* Room at the end of the blocks up to END, after begin. */
int vpc_reserve(struct vpc *v, uint64_t end, struct rhea_error *err);
/* Write the footer at DATA_END and cut the file off behind it. */
int vpc_trim(struct vpc *v, struct rhea_error *err);
/* See to it that the footer is good, at the end of the blocks, and nothing but
 * zeroes in between. */
int vpc_settle(struct vpc *v, struct rhea_error *err);
/* Write the footer to both of its places, one after the other. */
int vpc_write_footers(struct vpc *v, struct rhea_error *err);

/* --- fixed.c --- */

/* The footer of a fixed image that was being made larger: *COPY becomes good
 * where there is one. */
int vpc_footer_search(struct rhea_storage *storage, uint64_t size,
                      struct vpc_copy *copy, struct rhea_error *err);
/* With the lock held: the footer is durable, in its place. */
int vpc_put_footer_fixed(struct vpc *v, struct rhea_error *err);
/* The same with a new time stamp. */
int vpc_stamp_fixed(struct vpc *v, struct rhea_error *err);
int vpc_check_fixed(struct vpc *v, struct rhea_error *err);
int vpc_mend_fixed(struct vpc *v, struct rhea_error *err);
int vpc_map_fixed(struct vpc *v, uint64_t offset, uint64_t len,
                  struct rhea_extent *extent, struct rhea_error *err);
int vpc_write_fixed(struct vpc *v, uint64_t offset, const void *buf, size_t len,
                    struct rhea_error *err);
int vpc_zero_fixed(struct vpc *v, uint64_t offset, uint64_t len, bool unmap,
                   struct rhea_error *err);
int vpc_resize_fixed(struct vpc *v, const struct rhea_resize *how,
                     struct rhea_error *err);

/* --- create.c --- */
int vpc_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err);
int vpc_measure(const struct rhea_measure *what, struct rhea_measured *out,
                struct rhea_error *err);
extern const struct rhea_option_help vpc_create_options[];

/* --- check.c --- */
int vpc_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err);

/* --- close_up.c --- */

/* With the lock held, nothing in flight or dirty: no room for a block is left
 * before the last one; durable. *DONE: false where the image is better left as
 * it is. */
int vpc_close_up(struct vpc *v, bool *done, struct rhea_error *err);

/* --- change.c --- */

/* Put SIZE into v->footer, with a geometry that says the same, or one that
 * makes readers go by the size. */
void vpc_put_size(struct vpc *v, uint64_t size);
int vpc_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err);
int vpc_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err);
int vpc_renew_identity(struct rhea_format *f, struct rhea_error *err);
int vpc_make_empty(struct rhea_format *f, struct rhea_error *err);

/* --- amend.c --- */
int vpc_amend(struct rhea_format *f, const struct rhea_option *options,
              size_t n, bool force, const struct rhea_progress *progress,
              struct rhea_error *err);
extern const struct rhea_option_help vpc_amend_options[];

/* --- facts.c --- */
int vpc_facts(struct rhea_format *f, struct rhea_facts *facts,
              struct rhea_error *err);

#endif
