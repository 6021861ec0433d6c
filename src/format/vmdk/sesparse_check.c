/* SPDX-License-Identifier: MIT */
/*
 * Check of SESparse extents: the directory leads to grain tables, each to one
 * of its own, those to grains, and the header knows which tables are used; the
 * free bitmap has the bit of each grain, the back map says whose it is, and
 * bits are set for no others (leaks). A place whose grain was unmapped and may
 * come back is kept.
 *
 * What maps say wrongly is repaired from the tables, by which readers go.
 * Entries that lead nowhere are dropped. Grains used twice stay so.
 *
 * Order of a repair's writes: the journal becomes zeroes, flush; the header's
 * number of tables; flush; the maps, which only learn more; flush; the tables.
 * Then, flush, the bits of leaks; flush; the end of the file is cut off.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "format/vmdk/check.h"
#include "format/vmdk/sesparse.h"

enum { CHECK_PIECE = 4096 }; /* bytes of a table or map, looked at at once */

struct sesparse_checker {
    struct vmdk_checker c; /* USED: places for grains */
    struct bitmap tables;  /* by their number */
    bool maps;             /* the extent has them where they can be */
    bool owners;           /* and it is known how the back map counts */
    uint64_t kept;         /* end of the places to be kept that are not used */
};

static int piece_get(struct table *t, uint64_t at, uint64_t bytes, uint8_t *buf,
                     size_t *len, struct rhea_error *err)
{
    const uint8_t *p;
    uint32_t there;
    int ret = table_get(t, at, &p, &there, err);
    if (ret)
        return ret;
    *len = (size_t)RHEA_MIN(RHEA_MIN((uint64_t)there, bytes),
                            (uint64_t)CHECK_PIECE);
    memcpy(buf, p, *len);
    return 0;
}

static int one_entry(struct table *t, uint64_t at, uint64_t *entry,
                     struct rhea_error *err)
{
    uint8_t buf[CHECK_PIECE];
    size_t len;
    int ret = piece_get(t, at, sizeof(*entry), buf, &len, err);
    if (!ret)
        *entry = load_le64(buf);
    return ret;
}

/* Whether the entry that BACK, of the back map, names is ENTRY. */
static int back_is(struct sesparse_checker *s, uint64_t back, uint64_t entry,
                   bool *is, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t number = sesparse_number(back) / SESPARSE_TABLE_ENTRIES;
    uint64_t there, table = 0;
    bool good = true;
    int ret = 0;
    *is = false;
    if (back >> 60 != SESPARSE_UNMAPPED)
        return 0;
    if (x->se->owner != SESPARSE_BY_INDEX) {
        if (number * SESPARSE_TABLE_BYTES < x->h.parts[PART_TABLES].size)
            table = x->h.parts[PART_TABLES].at + number * SESPARSE_TABLE_BYTES;
    } else if (number < x->h.n_tables) {
        ret =
            vmdk_directory_entry(x, x->h.directory, number, &table, &good, err);
    }
    if (ret || !good || !table)
        return ret;
    ret = one_entry(&x->table,
                    table + sesparse_number(back) % SESPARSE_TABLE_ENTRIES *
                                sizeof(there),
                    &there, err);
    *is = !ret && there == entry;
    return ret;
}

/* --- Grains --- */

/* An entry of a grain table. */
struct entry {
    uint64_t index, table, at; /* as in sesparse_owner_entry */
    uint64_t guest;            /* its offset in the image */
};

static int entry_drop(struct sesparse_checker *s, const struct entry *e,
                      uint64_t host, struct rhea_error *err)
{
    check_mendable(&s->c,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, where it cannot be",
                   e->guest, host);
    return s->c.fix ? sesparse_put(&s->c.x->table,
                                   e->table + e->at * sizeof(uint64_t), 1,
                                   SESPARSE_NONE, 0, 0, err)
                    : 0;
}

/* What the maps say of PLACE, which is E's. */
static int entry_maps(struct sesparse_checker *s, const struct entry *e,
                      uint64_t place, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    const struct vmdk_area *parts = x->h.parts;
    uint64_t at = parts[PART_BACK_MAP].at + place * sizeof(uint64_t), back = 0;
    uint64_t owner = sesparse_owner_entry(x, e->index, e->table, e->at);
    const uint8_t *p;
    uint32_t len;
    int ret = table_get(&x->se->maps, parts[PART_BITMAP].at + place / 8, &p,
                        &len, err);
    if (!ret && !(*p >> place % 8 & 1)) {
        check_mendable(&s->c,
                       "the grain of guest offset %" PRIu64
                       " is free by the free bitmap",
                       e->guest);
        ret = s->c.fix ? sesparse_mark(x, place, 1, true, err) : 0;
    }
    if (!ret)
        ret = one_entry(&x->se->maps, at, &back, err);
    if (ret || !s->owners || back == owner)
        return ret;
    bool others;
    ret = back_is(s, back, sesparse_entry(SESPARSE_GRAIN, place), &others, err);
    if (ret || others) {
        /* Used twice, and nobody knows whose it is. */
        s->c.out->corruptions += others;
        check_tell(s->c.out, true,
                   "the grain of guest offset %" PRIu64
                   " is another's by the back map, and that one has it, too",
                   e->guest);
        return ret;
    }
    check_mendable(&s->c,
                   "the grain of guest offset %" PRIu64
                   " is another's by the back map",
                   e->guest);
    return s->c.fix ? sesparse_put(&x->se->maps, at, 1, SESPARSE_UNMAPPED,
                                   sesparse_number(owner), 0, err)
                    : 0;
}

static int entry_grain(struct sesparse_checker *s, const struct entry *e,
                       uint64_t place, uint64_t host, struct rhea_error *err)
{
    struct rhea_check *out = s->c.out;
    out->allocated_clusters++;
    out->fragmented_clusters += s->c.last && s->c.last != host;
    s->c.last = host + s->c.x->h.grain_size;
    s->c.end = RHEA_MAX(s->c.end, s->c.last);
    if (bitmap_get(&s->c.used, place)) {
        out->corruptions++;
        check_tell(out, true,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, which is used more than once",
                   e->guest, host);
        return 0;
    }
    bitmap_set(&s->c.used, place, 1);
    if (s->maps && place >= s->c.x->se->n_places) {
        out->corruptions++;
        check_tell(out, true,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, of which the maps know nothing",
                   e->guest, host);
        return 0;
    }
    return s->maps ? entry_maps(s, e, place, err) : 0;
}

static int check_entry(struct sesparse_checker *s, const struct entry *e,
                       const uint8_t *p, struct rhea_error *err)
{
    struct vmdk_grain g;
    uint64_t place = sesparse_number(load_le64(p));
    if (!vmdk_grain_decode(s->c.x, p, &g) ||
        (g.has_host &&
         (place >= s->c.used.n_bits || g.host >= s->c.x->file_size)))
        return entry_drop(s, e, g.host, err);
    return g.has_host ? entry_grain(s, e, place, g.host, err) : 0;
}

static int check_one_table(struct sesparse_checker *s, uint64_t index,
                           uint64_t table, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t n = x->h.table_entries, first = index * n, at = 0;
    uint64_t total = div_up(x->size, x->h.grain_size);
    uint8_t buf[CHECK_PIECE];
    n = RHEA_MIN(n, total - RHEA_MIN(total, first));
    if (!n || vmdk_is_hole(x, table, n * sizeof(uint64_t)))
        return 0;
    while (at < n) {
        size_t len;
        int ret = piece_get(&x->table, table + at * sizeof(uint64_t),
                            (n - at) * sizeof(uint64_t), buf, &len, err);
        for (size_t i = 0; i + sizeof(uint64_t) <= len && !ret;
             i += sizeof(uint64_t), at++) {
            const struct entry e = {
                .index = index,
                .table = table,
                .at = at,
                .guest = x->start + (first + at) * x->h.grain_size,
            };
            ret = check_entry(s, &e, buf + i, err);
        }
        if (ret)
            return ret;
    }
    return 0;
}

/* --- The directory --- */

static int check_directory_entry(struct sesparse_checker *s, uint64_t index,
                                 struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t bytes = (uint64_t)x->h.table_entries * x->h.entry_size, table;
    bool good = false;
    int ret =
        vmdk_directory_entry(x, x->h.directory, index, &table, &good, err);
    if (ret || (good && !table))
        return ret;
    if (!good) {
        check_mendable(&s->c,
                       "grain table %" PRIu64 " would be at offset %" PRIu64
                       ", where none can be",
                       index, table);
        return s->c.fix
                   ? sesparse_put(&x->table,
                                  x->h.directory + index * sizeof(uint64_t), 1,
                                  SESPARSE_NONE, 0, 0, err)
                   : 0;
    }
    uint64_t number = (table - x->h.parts[PART_TABLES].at) / bytes;
    if (bitmap_get(&s->tables, number)) {
        s->c.out->corruptions++;
        check_tell(s->c.out, true,
                   "grain table %" PRIu64 " is at offset %" PRIu64
                   " of the file, where another one is",
                   index, table);
        return 0;
    }
    bitmap_set(&s->tables, number, 1);
    return check_one_table(s, index, table, err);
}

/* Who puts a new table there must find the place free. */
static int check_free_table(struct sesparse_checker *s, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t end = bitmap_end(&s->tables);
    uint64_t places = x->h.parts[PART_TABLES].size / SESPARSE_TABLE_BYTES;
    uint64_t right =
        x->h.free_table > places ? end : RHEA_MAX(end, x->h.free_table);
    if (!s->maps || right == x->h.free_table)
        return 0;
    check_mendable(&s->c,
                   "the header says that grain tables from number %" PRIu64
                   " on are free, and should say %" PRIu64,
                   x->h.free_table, right);
    return s->c.fix ? sesparse_set_free(x, right, err) : 0;
}

static int check_directory(struct sesparse_checker *s, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    const struct vmdk_header *h = &x->h;
    int ret = 0;
    for (uint64_t i = 0, skip; i < h->n_tables && !ret; i += skip) {
        skip = vmdk_directory_hole(x, h->directory, i);
        if (skip)
            continue;
        skip = 1;
        if (i % 64 == 0)
            rhea_progress_report(
                s->c.out->progress, "check",
                x->start +
                    RHEA_MIN(i * h->table_entries * h->grain_size, x->size),
                x->image->base.size);
        if (rhea_progress_cancelled(s->c.out->progress))
            return rhea_error_set(err, ECANCELED, "the check was stopped");
        ret = check_directory_entry(s, i, err);
    }
    return ret ? ret : check_free_table(s, err);
}

/* --- Leaks --- */

/* Whether the grain at PLACE was unmapped, and its entry still knows it. What
 * cannot be told is kept. */
static int leak_is_kept(struct sesparse_checker *s, uint64_t place, bool *kept,
                        struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t back;
    *kept = true;
    if (!s->owners)
        return 0;
    int ret = one_entry(&x->se->maps,
                        x->h.parts[PART_BACK_MAP].at + place * sizeof(back),
                        &back, err);
    return ret ? ret
               : back_is(s, back, sesparse_entry(SESPARSE_UNMAPPED, place),
                         kept, err);
}

static int check_bit(struct sesparse_checker *s, uint64_t place, bool fix,
                     struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    bool kept;
    if (place >= x->se->n_places ||
        (place < s->c.used.n_bits && bitmap_get(&s->c.used, place)))
        return 0;
    int ret = leak_is_kept(s, place, &kept, err);
    if (ret)
        return ret;
    if (kept) {
        s->kept = RHEA_MAX(s->kept, place + 1);
        return 0;
    }
    s->c.out->leaks += !fix;
    s->c.out->leaks_fixed += fix;
    if (!fix)
        return 0;
    ret = sesparse_put(&x->se->maps,
                       x->h.parts[PART_BACK_MAP].at + place * sizeof(uint64_t),
                       1, SESPARSE_NONE, 0, 0, err);
    return ret ? ret : sesparse_mark(x, place, 1, false, err);
}

static int check_bits(struct sesparse_checker *s, bool fix,
                      struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    const struct vmdk_area *area = &x->h.parts[PART_BITMAP];
    uint64_t bytes = div_up(x->se->n_places, 8);
    uint8_t buf[CHECK_PIECE];
    size_t len;
    for (uint64_t at = 0; at < bytes; at += len) {
        uint64_t left = RHEA_MIN(bytes - at, x->file_size > area->at + at
                                                 ? x->file_size - area->at - at
                                                 : 0);
        uint64_t hole = left ? table_zero_run(&x->se->maps, area->at + at, left)
                             : bytes - at;
        len = (size_t)RHEA_MIN(hole, bytes - at);
        if (len)
            continue;
        int ret =
            piece_get(&x->se->maps, area->at + at, bytes - at, buf, &len, err);
        for (size_t i = 0; i < len && !ret; i++)
            for (unsigned bit = 0; bit < 8 && buf[i] && !ret; bit++)
                if (buf[i] >> bit & 1)
                    ret = check_bit(s, (at + i) * 8 + bit, fix, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* What no grain is in, at the end of the file. */
static int check_cut(struct sesparse_checker *s, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    uint64_t places = RHEA_MAX(bitmap_end(&s->c.used), s->kept);
    uint64_t end =
        x->h.parts[PART_GRAINS].at + places * (uint64_t)x->h.grain_size;
    end = RHEA_MAX(end, sesparse_least_end(x));
    if (end >= x->file_size)
        return 0;
    int ret = rhea_storage_flush(x->file, err);
    if (!ret)
        ret = rhea_storage_truncate(x->file, end, err);
    if (ret)
        return ret;
    x->file_size = end;
    x->blocks.file_end = sesparse_file_end(x);
    x->blocks.grown = RHEA_MIN(x->blocks.grown, end);
    return 0;
}

static int check_leaks(struct sesparse_checker *s, unsigned fix,
                       struct rhea_error *err)
{
    struct rhea_check *out = s->c.out;
    bool mend = fix & RHEA_FIX_LEAKS && !out->corruptions;
    if (!s->maps || out->errors)
        return 0;
    int ret = check_bits(s, mend, err);
    if (!ret && out->leaks)
        check_tell(out, false, "%" PRIu64 " grains are used by nobody",
                   out->leaks);
    if (!ret && mend)
        ret = table_write_back(&s->c.x->se->maps, err);
    return ret || !mend ? ret : check_cut(s, err);
}

/* --- An extent --- */

static void check_header(struct sesparse_checker *s)
{
    struct vmdk_extent *x = s->c.x;
    struct rhea_check *out = s->c.out;
    if (x->h.journal) {
        out->errors++;
        check_tell(out, true,
                   "the journal has to be replayed by an ESXi host before the "
                   "tables say all");
    }
    if (x->h.overhead > x->file_size) {
        out->corruptions++;
        check_tell(out, true,
                   "the file is cut off: it ends at %" PRIu64 " and should be "
                   "at least %" PRIu64 " bytes long",
                   x->file_size, x->h.overhead);
    }
}

static int check_pass(struct sesparse_checker *s, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    struct sesparse_found found;
    uint64_t from = x->h.parts[PART_GRAINS].at, end = sesparse_file_end(x);
    uint64_t bytes = (uint64_t)x->h.table_entries * x->h.entry_size;
    uint64_t tables = x->h.parts[PART_TABLES].size;
    check_header(s);
    tables = RHEA_MIN(tables, x->file_size);
    int ret = bitmap_init(&s->c.used, (end - from) / x->h.grain_size, err);
    if (!ret)
        ret = bitmap_init(&s->tables, div_up(tables, bytes), err);
    if (!ret)
        ret = sesparse_look(x, &found, err);
    if (ret)
        return ret;
    s->maps = !sesparse_why_not(&x->h);
    s->owners = s->maps && found.owner != SESPARSE_NOBODY_KNOWS;
    x->se->owner = found.owner;
    return check_directory(s, err);
}

static void check_finish(struct sesparse_checker *s)
{
    bitmap_finish(&s->c.used);
    bitmap_finish(&s->tables);
}

/* What was put right is in the file: look again, and keep quiet of what was
 * told already. */
static int check_again(struct sesparse_checker *s, struct rhea_error *err)
{
    struct vmdk_extent *x = s->c.x;
    struct rhea_check *out = s->c.out;
    const struct rhea_check told = *out;
    int ret = table_write_back(&x->se->maps, err);
    if (!ret)
        ret = table_write_back(&x->table, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    if (ret)
        return ret;
    vmdk_forget_holes(x);
    check_finish(s);
    *out = (struct rhea_check){
        .corruptions_fixed = told.corruptions_fixed,
        .progress = told.progress,
    };
    *s = (struct sesparse_checker){.c = {.x = x, .out = out}};
    ret = check_pass(s, err);
    out->finding = told.finding;
    out->opaque = told.opaque;
    return ret;
}

int sesparse_check(struct vmdk_extent *x, unsigned fix,
                   struct rhea_check *check, struct rhea_error *err)
{
    struct rhea_check found = {
        .finding = check->finding,
        .opaque = check->opaque,
        .progress = check->progress,
    };
    struct sesparse_checker s = {
        .c = {.x = x, .out = &found, .fix = fix & RHEA_FIX_ERRORS}};
    int ret = fix ? blocks_change_begin(&x->blocks, err) : 0;
    if (!ret && fix)
        ret = sesparse_blank_journal(x, err);
    if (ret)
        return ret;
    ret = check_pass(&s, err);
    if (!ret && found.corruptions_fixed)
        ret = check_again(&s, err);
    if (!ret)
        ret = check_leaks(&s, fix, err);
    check_add(check, &found);
    check->total_clusters += div_up(x->size, x->h.grain_size);
    check->image_end = RHEA_MAX(check->image_end, s.c.end);
    check_finish(&s);
    if (fix)
        sesparse_forget_room(x);
    return fix ? blocks_change_end(&x->blocks, ret, err) : ret;
}
