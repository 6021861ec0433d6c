/* SPDX-License-Identifier: MIT */
#include "guest.h"

#include <string.h>

#include "base/checked.h"
#include "storage/internal.h"

enum { PIECE = 64 << 10 };

struct rhea_storage *guest_other;

/* --- what an image says -------------------------------------------------- */

struct piece {
    enum { PIECE_ZERO, PIECE_BYTES, PIECE_BELOW, PIECE_ERROR } kind;
    uint64_t length;
    struct rhea_extent extent; /* BYTES: where from */
    struct rhea_error err;     /* ERROR */
};

static void piece_data(struct piece *p, struct rhea_format *f)
{
    struct rhea_storage *s = p->extent.storage;
    bool hole = true;
    uint64_t run = p->length;
    FUZZ_REQUIRE(storage_innermost(s) == storage_innermost(f->storage) ||
                     (s && s == guest_other),
                 "an extent of another storage");
    uint64_t size = fuzz_size(s);
    if (p->extent.host < size) {
        uint64_t most = RHEA_MIN(p->length, size - p->extent.host);
        FUZZ_REQUIRE(
            !rhea_storage_extent(s, p->extent.host, most, &hole, &run, NULL),
            "memory");
    }
    p->kind = hole ? PIECE_ZERO : PIECE_BYTES;
    p->length = RHEA_MIN(p->length, run);
}

static void piece_unallocated(struct piece *p, const struct guest *g,
                              uint64_t offset)
{
    p->kind = g->backing ? PIECE_BELOW : PIECE_ZERO;
    if (g->base && offset < FUZZ_BASE_SIZE) {
        p->kind = PIECE_BYTES;
        p->length = RHEA_MIN(p->length, FUZZ_BASE_SIZE - offset);
    }
}

static void piece_find(struct piece *p, const struct guest *g,
                       struct rhea_format *f, uint64_t offset, uint64_t len)
{
    struct rhea_extent *x = &p->extent;
    if (f->ops->map(f, offset, len, x, &p->err)) {
        struct rhea_format_info info = {0};
        f->ops->info(f, &info);
        uint64_t unit = fuzz_cluster(&info);
        p->kind = PIECE_ERROR;
        p->length = RHEA_MIN(len, unit - (offset & (unit - 1)));
        return;
    }
    FUZZ_REQUIRE(x->length && x->length <= len,
                 "a run of %" PRIu64 " bytes, at most %" PRIu64, x->length,
                 len);
    p->length = x->length;
    switch (x->kind) {
    case RHEA_EXTENT_DATA:
        piece_data(p, f);
        return;
    case RHEA_EXTENT_UNALLOCATED:
        piece_unallocated(p, g, offset);
        return;
    case RHEA_EXTENT_ZERO:
        p->kind = PIECE_ZERO;
        return;
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        p->kind = PIECE_BYTES;
        return;
    }
    FUZZ_REQUIRE(false, "extent of kind %d", (int)x->kind);
}

/* LEN bytes from the beginning of a piece of kind BYTES. */
static int piece_read(struct piece *p, struct rhea_format *f, uint64_t offset,
                      void *buf, size_t len)
{
    const struct rhea_extent *x = &p->extent;
    if (x->kind == RHEA_EXTENT_DATA)
        return rhea_storage_read_padded(x->storage, buf, len, x->host, &p->err);
    if (x->kind == RHEA_EXTENT_COMPRESSED || x->kind == RHEA_EXTENT_ENCRYPTED)
        return f->ops->read(f, offset, buf, len, &p->err);
    fuzz_base_bytes(offset, buf, len);
    return 0;
}

/* --- the model ----------------------------------------------------------- */

/* The first run that ends behind OFFSET; n_runs when there is none. */
static size_t guest_search(const struct guest *g, uint64_t offset)
{
    size_t low = 0, high = g->n_runs;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (g->runs[middle].offset + g->runs[middle].length <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void guest_insert(struct guest *g, size_t at, struct guest_run run)
{
    g->runs = reallocarray(g->runs, g->n_runs + 1, sizeof(run));
    FUZZ_REQUIRE(g->runs, "memory");
    memmove(g->runs + at + 1, g->runs + at, (g->n_runs - at) * sizeof(run));
    g->runs[at] = run;
    g->n_runs++;
}

static void guest_cut(struct guest *g, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len;
    size_t i = guest_search(g, offset);
    while (i < g->n_runs && g->runs[i].offset < end) {
        struct guest_run *r = &g->runs[i], tail = *r;
        uint64_t r_end = r->offset + r->length;
        if (r_end > end) {
            tail.offset = end;
            tail.length = r_end - end;
            guest_insert(g, i + 1, tail);
            r = &g->runs[i];
        }
        if (r->offset < offset) {
            r->length = offset - r->offset;
            i++;
        } else {
            memmove(r, r + 1, (g->n_runs - i - 1) * sizeof(*r));
            g->n_runs--;
        }
    }
}

static void guest_mark(struct guest *g, uint64_t offset, uint64_t len, int kind)
{
    guest_cut(g, offset, len);
    size_t at = guest_search(g, offset);
    struct guest_run *last = at ? &g->runs[at - 1] : NULL;
    if (last && (int)last->kind == kind &&
        last->offset + last->length == offset)
        last->length += len;
    else
        guest_insert(
            g, at,
            (struct guest_run){.offset = offset, .length = len, .kind = kind});
}

void guest_write(struct guest *g, uint64_t offset, const void *buf, size_t len)
{
    guest_cut(g, offset, len);
    FUZZ_REQUIRE(!rhea_storage_write(g->bytes, buf, len, offset, NULL),
                 "memory");
}

void guest_zero(struct guest *g, uint64_t offset, uint64_t len)
{
    guest_cut(g, offset, len);
    FUZZ_REQUIRE(!rhea_storage_zero(g->bytes, offset, len, true, NULL),
                 "memory");
}

void guest_spoil(struct guest *g, uint64_t offset, uint64_t len)
{
    guest_mark(g, offset, len, GUEST_BROKEN);
}

void guest_resize(struct guest *g, uint64_t size)
{
    if (size < g->size)
        guest_cut(g, size, g->size - size);
    FUZZ_REQUIRE(!rhea_storage_truncate(g->bytes, size, NULL), "memory");
    if (size < g->known || g->known == g->size)
        g->known = size;
    g->size = size;
}

void guest_copy(struct guest *to, const struct guest *from)
{
    *to = *from;
    to->bytes = fuzz_clone(from->bytes);
    to->runs = NULL;
    if (!from->n_runs)
        return;
    to->runs = calloc(from->n_runs, sizeof(*to->runs));
    FUZZ_REQUIRE(to->runs, "memory");
    memcpy(to->runs, from->runs, from->n_runs * sizeof(*to->runs));
}

static void guest_load_bytes(struct guest *g, struct rhea_format *f,
                             struct piece *p, uint64_t offset)
{
    static uint8_t buf[PIECE];
    p->length = RHEA_MIN(p->length, (uint64_t)sizeof(buf));
    if (!piece_read(p, f, offset, buf, (size_t)p->length)) {
        guest_write(g, offset, buf, (size_t)p->length);
        return;
    }
    g->broken = true;
    guest_spoil(g, offset, p->length);
}

void guest_load(struct guest *g, struct rhea_format *f, bool base)
{
    struct rhea_format_info info = {0};
    f->ops->info(f, &info);
    *g = (struct guest){.size = info.virtual_size,
                        .base = base && info.backing_file,
                        .backing = !base && info.backing_file};
    FUZZ_REQUIRE(!rhea_memory_open(&g->bytes, INT64_MAX, NULL), "memory");
    FUZZ_REQUIRE(!rhea_storage_truncate(g->bytes, g->size, NULL), "memory");

    uint64_t budget = GUEST_BYTES;
    for (unsigned n = 0; n < GUEST_RUNS && g->known < g->size && budget; n++) {
        struct piece p;
        piece_find(&p, g, f, g->known, g->size - g->known);
        if (p.kind == PIECE_BYTES) {
            p.length = RHEA_MIN(p.length, budget);
            guest_load_bytes(g, f, &p, g->known);
            budget -= p.length;
        } else if (p.kind == PIECE_BELOW) {
            guest_mark(g, g->known, p.length, GUEST_BELOW);
        } else if (p.kind == PIECE_ERROR) {
            g->broken = true;
            guest_spoil(g, g->known, p.length);
        }
        g->known += p.length;
    }
}

void guest_finish(struct guest *g)
{
    rhea_storage_close(g->bytes);
    free(g->runs);
    *g = (struct guest){0};
}

/* --- comparison ---------------------------------------------------------- */

/* How many of LEN model bytes from OFFSET on are a hole: all, or none of N. */
static bool guest_hole(const struct guest *g, uint64_t offset, uint64_t *len)
{
    bool hole;
    uint64_t run;
    FUZZ_REQUIRE(
        !rhea_storage_extent(g->bytes, offset, *len, &hole, &run, NULL),
        "memory");
    *len = RHEA_MIN(*len, run);
    return hole;
}

static void guest_compare_bytes(const struct guest *g, struct rhea_format *f,
                                struct piece *p, uint64_t offset,
                                const char *when)
{
    static uint8_t want[PIECE], have[PIECE];
    p->length = RHEA_MIN(p->length, (uint64_t)PIECE);
    size_t len = (size_t)p->length;
    FUZZ_REQUIRE(!rhea_storage_read(g->bytes, want, len, offset, NULL),
                 "memory");
    if (p->kind == PIECE_ZERO)
        memset(have, 0, len);
    else
        FUZZ_REQUIRE(!piece_read(p, f, offset, have, len),
                     "%s: guest offset %" PRIu64 ": %s", when, offset,
                     p->err.text);
    for (size_t i = 0; memcmp(want, have, len) && i < len; i++)
        FUZZ_REQUIRE(want[i] == have[i],
                     "%s: the byte at guest offset %" PRIu64
                     " is 0x%02x, not 0x%02x",
                     when, offset + i, have[i], want[i]);
}

static void guest_compare_piece(const struct guest *g, struct rhea_format *f,
                                struct piece *p, uint64_t offset,
                                const char *when)
{
    size_t at = guest_search(g, offset);
    const struct guest_run *run = at < g->n_runs ? &g->runs[at] : NULL;
    bool inside = run && run->offset <= offset;
    if (run)
        p->length = RHEA_MIN(
            p->length,
            (inside ? run->offset + run->length : run->offset) - offset);
    if (inside && run->kind == GUEST_BROKEN)
        return;
    FUZZ_REQUIRE(p->kind != PIECE_ERROR,
                 "%s: guest offset %" PRIu64 " cannot be read: %s", when,
                 offset, p->err.text);
    FUZZ_REQUIRE((p->kind == PIECE_BELOW) == inside,
                 "%s: guest offset %" PRIu64 " is%s left to the backing file",
                 when, offset, inside ? " not" : "");
    if (inside)
        return;
    bool hole = guest_hole(g, offset, &p->length);
    if (p->kind == PIECE_BYTES || !hole)
        guest_compare_bytes(g, f, p, offset, when);
}

void guest_compare(const struct guest *g, struct rhea_format *f,
                   const char *when)
{
    struct rhea_format_info info = {0};
    f->ops->info(f, &info);
    FUZZ_REQUIRE(info.virtual_size == g->size,
                 "%s: the disk has %" PRIu64 " bytes, not %" PRIu64, when,
                 info.virtual_size, g->size);
    FUZZ_REQUIRE(!info.backing_file == !(g->base || g->backing),
                 "%s: whether there is a backing file", when);
    for (uint64_t offset = 0; offset < g->known;) {
        struct piece p;
        piece_find(&p, g, f, offset, g->known - offset);
        guest_compare_piece(g, f, &p, offset, when);
        offset += p.length;
    }
}
