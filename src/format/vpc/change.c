/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole image: its size, its parent, emptying it.
 *
 * Order of writes. A footer is one sector, which a crash cannot tear; one of
 * the two is written and flushed before the other, and each is good by itself.
 * The header has two sectors, so it is never overwritten where a footer leads
 * to it: change_header writes the new one behind the blocks; flush; lets the
 * footers lead there, one after the other, flushed; overwrites the old one;
 * flush; lets the footers lead back. What the header leads to, parents' names
 * and the table, is written before it in the same way.
 *   Growing: the table gets its entries, and what must not show is zeroed, with
 * the old size in the footers; flush; then the new one. A fixed image gets its
 * new footer at the new end before the old one is overwritten.
 *   Shrinking: the footers first; then the entries behind the new end are
 * dropped; then blocks from the end of the file take their places.
 *   Emptying: XenServer's map, flush; the entries, each of which means by
 * itself that the block is not there; flush; the footer's move.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

enum { COPY_BYTES = 64 << 10 };

int vpc_renew_identity(struct rhea_format *f, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    RHEA_LOCKED(&v->blocks.lock);
    if (!v->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (v->begun)
        return 0;
    if (v->type != VPC_FIXED)
        return blocks_begin(&v->blocks, err);
    int ret = vpc_stamp_fixed(v, err);
    v->begun = !ret;
    return ret;
}

/* --- The header --- */

/* A new header and what it leads to. */
struct change {
    struct vpc *v;
    enum vpc_type type; /* from then on */
    uint8_t header[VPC_HEADER];
    struct vpc_locators locators; /* new ones; none: those stay that are */
    uint64_t places[RHEA_ARRAY_SIZE(((struct vpc_locators *)0)->items)];
    uint64_t spaces[RHEA_ARRAY_SIZE(((struct vpc_locators *)0)->items)];
};

/* Room behind the blocks that the image keeps. */
static int change_take(struct vpc *v, uint64_t bytes, uint64_t *at,
                       struct rhea_error *err)
{
    *at = v->data_end;
    int ret = vpc_reserve(v, v->data_end + bytes, err);
    if (!ret)
        v->data_end += align_up(bytes, VPC_SECTOR);
    return ret;
}

static int change_write_names(struct change *c, const uint64_t *places,
                              struct rhea_error *err)
{
    int ret = 0;
    for (unsigned i = 0; i < c->locators.n && !ret; i++)
        ret = rhea_storage_write(c->v->base.storage, c->locators.items[i].data,
                                 c->locators.items[i].length, places[i], err);
    return ret;
}

/* Both footers lead to the new header, at AT. */
static int change_lead_to(struct change *c, uint64_t at, struct rhea_error *err)
{
    struct vpc *v = c->v;
    store_be32(v->footer + VPC_F_TYPE, c->type);
    store_be64(v->footer + VPC_F_HEADER_AT, at);
    vpc_footer_seal(v->footer);
    return vpc_write_footers(v, err);
}

/* The names' own places are those of the old ones, or new; a header that leads
 * there is good only once they are written. So the one behind the blocks has
 * copies of them beside it, which it leads to. */
static int change_write_beside(struct change *c, uint64_t *at,
                               struct rhea_error *err)
{
    struct vpc *v = c->v;
    uint8_t header[VPC_HEADER];
    uint64_t places[RHEA_ARRAY_SIZE(c->places)], end = v->data_end + VPC_HEADER;
    memcpy(header, c->header, VPC_HEADER);
    for (unsigned i = 0; i < c->locators.n; i++) {
        places[i] = end;
        vpc_locator_put(header, i, &c->locators.items[i], end, c->spaces[i]);
        end += c->spaces[i];
    }
    vpc_header_seal(header);
    *at = v->data_end;
    int ret = vpc_reserve(v, end, err);
    if (!ret)
        ret = change_write_names(c, places, err);
    if (!ret)
        ret = rhea_storage_write(v->base.storage, header, VPC_HEADER, *at, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

/* Where headers are, if nothing else is there; else where this one is. */
static uint64_t change_home(const struct vpc *v)
{
    return vpc_is_used(v, VPC_FOOTER, VPC_FOOTER + VPC_HEADER) ? v->header_at
                                                               : VPC_FOOTER;
}

/* Put the new header in the old one's place. */
static int change_header(struct change *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    uint64_t beside, home = change_home(v);
    vpc_header_seal(c->header);
    int ret = change_write_beside(c, &beside, err);
    if (!ret)
        ret = change_lead_to(c, beside, err);
    if (!ret)
        ret = change_write_names(c, c->places, err);
    if (!ret)
        ret = rhea_storage_write(v->base.storage, c->header, VPC_HEADER, home,
                                 err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (!ret)
        ret = change_lead_to(c, home, err);
    if (!ret)
        ret = rhea_storage_zero(v->base.storage, v->data_end,
                                v->footer_at - v->data_end, false, err);
    if (!ret)
        ret = vpc_trim(v, err);
    return ret;
}

/* The image as its new header has it. */
static int change_reread(struct vpc *v, struct rhea_error *err)
{
    int ret = rhea_storage_size(v->base.storage, &v->found.file_size, err);
    return ret ? ret : vpc_header_read(v, err);
}

/* Around a change, with the lock held: nothing is on its way, and between
 * blocks and footer is room. */
static int change_begin(struct vpc *v, struct rhea_error *err)
{
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    table_drop(&v->table);
    ret = vpc_settle(v, err);
    v->blocks.failed |= ret != 0;
    return ret;
}

/* --- The parent --- */

/* Whether a name can go where another one was. */
static bool change_can_reuse(const struct vpc *v, unsigned i, uint64_t *at,
                             uint64_t *space)
{
    uint32_t length;
    unsigned users = 0;
    if (!vpc_locator_range(v, i, at, space, &length) ||
        !is_aligned(*at, VPC_SECTOR))
        return false;
    for (unsigned p = 0; p < v->n_parts; p++)
        users += *at < v->parts[p].end && v->parts[p].start < *at + *space;
    return users == 1;
}

/* Find room for the names, and put that into the header. */
static int change_place_names(struct change *c, struct rhea_error *err)
{
    struct vpc *v = c->v;
    unsigned old = 0;
    memset(c->header + VPC_H_LOCATORS, 0, (size_t)VPC_LOCATORS * VPC_L_BYTES);
    for (unsigned i = 0; i < c->locators.n; i++) {
        const struct vpc_locator *l = &c->locators.items[i];
        bool found = false;
        for (; old < VPC_LOCATORS && !found; old++)
            found = change_can_reuse(v, old, &c->places[i], &c->spaces[i]) &&
                    l->length <= c->spaces[i];
        if (!found) {
            c->spaces[i] = vpc_locator_space(l);
            int ret = change_take(v, c->spaces[i], &c->places[i], err);
            if (ret)
                return ret;
        }
        vpc_locator_put(c->header, i, l, c->places[i], c->spaces[i]);
    }
    return 0;
}

/* A name that stays is not written anew: it may say more than what it was found
 * by here. */
static bool change_keeps_name(const struct vpc *v, const char *file)
{
    return v->type == VPC_DIFFERENCING && v->backing_file && file &&
           strcmp(v->backing_file, file) == 0;
}

static int change_parent(struct change *c, const char *file,
                         struct rhea_error *err)
{
    struct vpc *v = c->v;
    int ret = change_begin(v, err);
    if (!ret && !change_keeps_name(v, file)) {
        memcpy(c->header + VPC_H_PARENT_NAME, c->locators.name,
               VPC_H_PARENT_NAME_BYTES);
        ret = change_place_names(c, err);
    }
    if (!ret)
        ret = change_header(c, err);
    if (ret)
        return ret;
    v->type = c->type;
    v->blocks.child = v->type == VPC_DIFFERENCING;
    return change_reread(v, err);
}

int vpc_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    int ret = 0;
    if (file && !*file)
        file = NULL;
    struct change c = {.v = v, .type = file ? VPC_DIFFERENCING : VPC_DYNAMIC};
    if (v->type == VPC_FIXED)
        return rhea_error_set(err, ENOTSUP, "a fixed VHD cannot have a parent");
    RHEA_AUTO_FREE char *name = file ? strdup(file) : NULL;
    if (file && !name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    RHEA_LOCKED(&v->blocks.lock);
    memcpy(c.header, v->header, VPC_HEADER);
    memset(c.header + VPC_H_PARENT_UUID, 0, UUID_BYTES);
    store_be32(c.header + VPC_H_PARENT_TIME, 0);
    if (file)
        ret = vpc_parent_record(c.header, format, parent, err);
    if (!ret && file && !change_keeps_name(v, file))
        ret = vpc_locators_make(&c.locators, file, err);
    if (ret)
        return ret;
    ret = blocks_change_end(&v->blocks, change_parent(&c, file, err), err);
    vpc_locators_finish(&c.locators);
    if (ret)
        return ret;
    free(v->backing_file);
    v->backing_file = rhea_steal(name);
    return 0;
}

/* --- Entries --- */

/* Entries from FROM up to TO lead nowhere, written past the cache. */
static int change_unuse(struct vpc *v, uint64_t from, uint64_t to,
                        struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *unused = malloc(COPY_BYTES);
    if (!unused)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memset(unused, 0xff, COPY_BYTES);
    int ret = 0;
    uint64_t end = v->bat + to * 4;
    for (uint64_t at = v->bat + from * 4; at < end && !ret; at += COPY_BYTES)
        ret =
            rhea_storage_write(v->base.storage, unused,
                               (size_t)RHEA_MIN(end - at, COPY_BYTES), at, err);
    table_drop(&v->table);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

int vpc_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    if (v->type == VPC_FIXED)
        return rhea_error_set(err, ENOTSUP, "a fixed VHD cannot be emptied");
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    if (!ret)
        ret = vpc_batmap_clear(v, err);
    if (!ret)
        ret = change_unuse(v, 0, v->entries, err);
    if (ret)
        return blocks_change_end(&v->blocks, ret, err);
    v->data_end = vpc_parts_end(v);
    v->settled = false;
    return blocks_change_end(&v->blocks, vpc_settle(v, err), err);
}

/* --- Size --- */

void vpc_put_size(struct vpc *v, uint64_t size)
{
    struct vpc_geometry g;
    bool ours = vpc_creator_is(v->footer, "rhea");
    vpc_geometry_for(size, &g);
    if ((v->use_chs || ours) && vpc_geometry_bytes(&g) != size)
        g = vpc_geometry_max;
    store_be64(v->footer + VPC_F_SIZE, size);
    store_be16(v->footer + VPC_F_CYLINDERS, g.cylinders);
    v->footer[VPC_F_HEADS] = g.heads;
    v->footer[VPC_F_SECTORS] = g.sectors;
    vpc_footer_seal(v->footer);
}

static int change_copy(struct rhea_storage *storage, uint64_t from, uint64_t to,
                       uint64_t length, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(COPY_BYTES);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t at = 0; at < length && !ret; at += COPY_BYTES) {
        size_t n = (size_t)RHEA_MIN(length - at, COPY_BYTES);
        ret = rhea_storage_read(storage, buf, n, from + at, err);
        if (!ret)
            ret = rhea_storage_write(storage, buf, n, to + at, err);
    }
    return ret;
}

/* The table of ENTRIES moves behind the blocks, with XenServer's map, for which
 * no block is full: that stands behind the table at all times. Nothing leads
 * there yet. */
static int change_move_table(struct change *c, uint64_t entries,
                             struct rhea_error *err)
{
    struct vpc *v = c->v;
    uint64_t old_bat = v->bat, old = v->entries, at = 0;
    uint64_t bytes = align_up(entries * 4, VPC_SECTOR);
    int ret = change_take(v, bytes + vpc_batmap_bytes(entries), &at, err);
    if (!ret)
        ret = change_copy(v->base.storage, old_bat, at, old * 4, err);
    if (!ret) {
        v->bat = at;
        ret = change_unuse(v, old, bytes / 4, err);
        v->bat = old_bat;
    }
    if (!ret)
        ret = vpc_batmap_write(v->base.storage, at + bytes, entries, err);
    store_be64(c->header + VPC_H_BAT, at);
    return ret;
}

/* What stands in [FROM, TO), where the table is to grow. */
struct change_way {
    struct vpc *v;
    uint64_t from, to;
};

/* A block in the way goes to the end: copied, flushed, led to, flushed. */
static int change_move_block(void *opaque, uint64_t block, uint64_t count,
                             uint32_t entry, struct rhea_error *err)
{
    const struct change_way *way = opaque;
    struct vpc *v = way->v;
    uint64_t bytes = (uint64_t)v->bitmap_bytes + v->block_size;
    uint64_t start = (uint64_t)entry * VPC_SECTOR;
    if (count > 1 || start >= way->to || start + bytes <= way->from)
        return 0;
    if (vpc_is_used(v, start, start + bytes))
        return rhea_error_set(err, EIO,
                              "block %" PRIu64 " is where no block can be; "
                              "'check -r all' repairs that",
                              block);
    uint64_t data = vpc_place_data(v->data_end, v->block_size, v->bitmap_bytes);
    uint64_t to = data - v->bitmap_bytes;
    int ret = vpc_reserve(v, to + bytes, err);
    v->data_end = ret ? v->data_end : to + bytes;
    if (!ret)
        ret = change_copy(v->base.storage, start, to, bytes, err);
    if (!ret)
        ret = vpc_bat_set(v, block, (uint32_t)(to / VPC_SECTOR), err);
    if (!ret)
        ret = table_write_back(&v->table, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

/* Parents' names in the way get other places in the header of C; *MOVED: there
 * are some. */
static int change_move_names(struct change *c, const struct change_way *way,
                             bool *moved, struct rhea_error *err)
{
    struct vpc *v = c->v;
    *moved = false;
    for (unsigned i = 0; i < VPC_LOCATORS; i++) {
        uint64_t offset, space, at;
        uint32_t length;
        if (!vpc_locator_range(v, i, &offset, &space, &length) ||
            offset >= way->to || offset + space <= way->from)
            continue;
        int ret = change_take(v, space, &at, err);
        if (!ret)
            ret = change_copy(v->base.storage, offset, at, length, err);
        if (ret)
            return ret;
        store_be64(c->header + VPC_H_LOCATORS + (size_t)i * VPC_L_BYTES +
                       VPC_L_OFFSET,
                   at);
        *moved = true;
    }
    return 0;
}

/* Nothing but blocks and names is in the way, which takes them out of it. */
static int change_clear_way(struct change *c, uint64_t end,
                            struct rhea_error *err)
{
    struct vpc *v = c->v;
    struct change_way way = {v, vpc_bat_end(v), end};
    bool moved = false;
    int ret = vpc_reserve(v, end, err);
    v->data_end = RHEA_MAX(v->data_end, end);
    if (!ret)
        ret = vpc_bat_scan(v, change_move_block, &way, err);
    if (!ret)
        ret = change_move_names(c, &way, &moved, err);
    if (!ret && moved)
        ret = change_header(c, err);
    if (!ret && moved)
        ret = change_reread(v, err);
    if (!ret && vpc_is_used(v, way.from, way.to))
        ret = rhea_error_set(err, ENOTSUP,
                             "the block allocation table cannot grow: there is "
                             "no room behind it");
    return ret;
}

/* See to it that the table has an entry for each of BLOCKS, and that those from
 * OLD on are unused. */
static int change_grow_table(struct vpc *v, uint64_t old, uint64_t blocks,
                             struct rhea_error *err)
{
    struct change c = {.v = v, .type = v->type};
    uint64_t end = align_up(v->bat + blocks * 4, VPC_SECTOR);
    struct vpc_range map_header, map;
    bool has_map;
    memcpy(c.header, v->header, VPC_HEADER);
    int ret = change_unuse(v, old, RHEA_MAX(old, (uint64_t)v->entries), err);
    if (ret || blocks <= v->entries)
        return ret;
    ret = vpc_batmap_find(v, &has_map, &map_header, &map, err);
    if (!ret && end > vpc_bat_end(v) && !has_map)
        ret = change_clear_way(&c, end, err);
    if (!ret)
        ret = end > vpc_bat_end(v) && has_map
                  ? change_move_table(&c, blocks, err)
                  : change_unuse(v, v->entries, blocks, err);
    if (ret)
        return ret;
    store_be32(c.header + VPC_H_ENTRIES, (uint32_t)blocks);
    ret = change_header(&c, err);
    return ret ? ret : change_reread(v, err);
}

/* What must not show between the old end and the new one; the size is the new
 * one already, in memory. */
static int change_zero_new(struct vpc *v, uint64_t old, bool hide_below,
                           struct rhea_error *err)
{
    uint64_t end = RHEA_MIN(align_up(old, v->block_size), v->base.size);
    return blocks_hide(&v->blocks, old, hide_below ? v->base.size : end,
                       hide_below, err);
}

static int change_grow(struct vpc *v, const struct rhea_resize *how,
                       struct rhea_error *err)
{
    uint64_t old = v->base.size;
    pthread_mutex_lock(&v->blocks.lock);
    int ret = change_begin(v, err);
    if (!ret)
        ret = change_grow_table(v, div_up(old, v->block_size),
                                div_up(how->size, v->block_size), err);
    ret = blocks_change_end(&v->blocks, ret, err);
    pthread_mutex_unlock(&v->blocks.lock);
    if (ret)
        return ret;
    v->base.size = v->blocks.size = how->size;
    ret = change_zero_new(v, old, how->hide_below, err);
    RHEA_LOCKED(&v->blocks.lock);
    if (!ret) {
        vpc_put_size(v, how->size);
        ret = blocks_change_end(&v->blocks, vpc_write_footers(v, err), err);
    }
    if (ret)
        v->base.size = v->blocks.size = old;
    return ret;
}

static int change_shrink(struct vpc *v, uint64_t size, struct rhea_error *err)
{
    bool closed;
    RHEA_LOCKED(&v->blocks.lock);
    int ret = change_begin(v, err);
    if (ret)
        return ret;
    vpc_put_size(v, size);
    ret = vpc_write_footers(v, err);
    if (!ret)
        ret = change_unuse(v, div_up(size, v->block_size), v->entries, err);
    if (!ret)
        ret = vpc_close_up(v, &closed, err);
    if (!ret)
        ret = vpc_find_data_end(v, err);
    v->base.size = v->blocks.size = size;
    v->settled = false;
    if (!ret)
        ret = vpc_settle(v, err);
    return blocks_change_end(&v->blocks, ret, err);
}

static int change_check_size(const struct vpc *v, const struct rhea_resize *how,
                             struct rhea_error *err)
{
    uint64_t limit =
        v->type == VPC_FIXED ? UINT64_C(32767) << 30 : VPC_MAX_SIZE;
    if (!v->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (how->size % VPC_SECTOR)
        return rhea_error_set(err, EINVAL,
                              "the size must be a multiple of 512 bytes");
    if (vpc_creator_is(v->footer, "tap") && how->size % VPC_DEFAULT_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "XenServer wants the size to be a multiple of %d "
                              "bytes",
                              VPC_DEFAULT_BLOCK);
    if (how->size > limit)
        return rhea_error_set(err, EFBIG,
                              "such a VHD holds at most %" PRIu64
                              " bytes, not %" PRIu64,
                              limit, how->size);
    if (how->size < v->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    return 0;
}

int vpc_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    int ret = change_check_size(v, how, err);
    if (ret)
        return ret;
    if (v->type == VPC_FIXED)
        return vpc_resize_fixed(v, how, err);
    if (how->preallocation && strcmp(how->preallocation, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "a VHD with blocks knows no preallocation, such "
                              "as '%s'",
                              how->preallocation);
    return how->size < f->size ? change_shrink(v, how->size, err)
                               : change_grow(v, how, err);
}
