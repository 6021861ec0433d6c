/* SPDX-License-Identifier: MIT */
#include "reader.h"

#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "changes.h"
#include "guest.h"
#include "storage/memory.h"

enum { WALK_MOST = 200000, WRITES = 12, LONGEST = 128 << 10 };

/* --- reading ------------------------------------------------------------- */

static void reader_check_facts(struct rhea_format *f)
{
    struct rhea_facts facts = {0};
    unsigned depth = 0;
    if (f->ops->facts && f->ops->facts(f, &facts, NULL) == 0) {
        for (size_t i = 0; i < facts.n; i++) {
            const struct rhea_fact *fact = &facts.items[i];
            depth +=
                fact->type == RHEA_FACT_LIST || fact->type == RHEA_FACT_OBJECT;
            FUZZ_REQUIRE(fact->type != RHEA_FACT_END || depth--,
                         "fact %zu ends nothing", i);
            FUZZ_REQUIRE(fact->type != RHEA_FACT_STRING ||
                             (fact->string && strlen(fact->string) < 65536),
                         "fact %s has no text", fact->name);
        }
        FUZZ_REQUIRE(depth == 0, "a list of facts without an end");
    }
    rhea_facts_free(&facts);
}

static void reader_check_info(struct rhea_format *f)
{
    struct rhea_format_info info = {0};
    f->ops->info(f, &info);
    FUZZ_REQUIRE(info.virtual_size == f->size, "two sizes");
    FUZZ_REQUIRE(info.virtual_size <= INT64_MAX, "a disk of %" PRIu64,
                 info.virtual_size);
    /* Parallels' clusters are as many sectors as one likes. */
    FUZZ_REQUIRE(!info.cluster_size || is_power_of_2(info.cluster_size) ||
                     (strcmp(f->ops->name, "parallels") == 0 &&
                      info.cluster_size % 512 == 0),
                 "clusters of %" PRIu32, info.cluster_size);
    reader_check_facts(f);
    FUZZ_REQUIRE(!info.backing_file ||
                     (*info.backing_file &&
                      strlen(info.backing_file) <= RHEA_BACKING_NAME_MAX),
                 "a backing file's name");
    FUZZ_REQUIRE(!info.backing_format || strlen(info.backing_format) < 65536,
                 "a backing file's format");
}

static int reader_walk_one(void *opaque, enum rhea_use use, uint64_t host,
                           uint64_t length, struct rhea_error *err)
{
    unsigned *n = opaque;
    (void)use;
    FUZZ_REQUIRE(length && range_inside(host, length, INT64_MAX),
                 "a use of %" PRIu64 " bytes at %" PRIu64, length, host);
    return ++*n == WALK_MOST ? rhea_error_set(err, 1, "enough") : 0;
}

/* All that only reads; the storage refuses to be written to. */
static void reader_read(const struct rhea_format_ops *format,
                        struct rhea_storage *image, unsigned flags)
{
    struct rhea_format *f;
    struct rhea_error err;
    unsigned n = 0;
    uint64_t digest = memory_digest(image);
    image->writable = false;
    if (rhea_format_open_over(format, &f, image, flags, &err) == 0) {
        struct guest g;
        reader_check_info(f);
        guest_load(&g, f, false);
        if (!g.broken)
            guest_compare(&g, f, "read twice");
        guest_finish(&g);
        if (format->walk)
            format->walk(f, reader_walk_one, &n, &err);
        int ret = format->close(f, &err);
        FUZZ_REQUIRE(!ret, "closing what was only read: %s", err.text);
    }
    image->writable = true;
    FUZZ_REQUIRE(memory_digest(image) == digest, "reading changes the image");
}

/* --- checking and repairing ---------------------------------------------- */

bool reader_check(const struct rhea_format_ops *format, struct rhea_storage *s,
                  unsigned fix, struct rhea_check *found)
{
    struct rhea_format *f;
    unsigned flags = RHEA_FORMAT_CHECK | (fix ? RHEA_FORMAT_WRITE : 0);
    *found = (struct rhea_check){0};
    if (rhea_format_open_over(format, &f, s, flags, NULL))
        return false;
    int ret = format->check(f, fix, found, NULL);
    int closed = format->close(f, NULL);
    return !ret && !closed;
}

static bool reader_is_sound(const struct rhea_check *c)
{
    return !c->corruptions && !c->errors;
}

/* What the guest of S sees; false where S does not open. */
static bool reader_load(const struct rhea_format_ops *format,
                        struct rhea_storage *s, struct guest *g)
{
    struct rhea_format *f;
    if (rhea_format_open_over(format, &f, s, 0, NULL))
        return false;
    guest_load(g, f, true);
    format->close(f, NULL);
    return true;
}

static void reader_same(const struct rhea_format_ops *format,
                        struct rhea_storage *s, const struct guest *g,
                        const char *when)
{
    struct rhea_format *f;
    struct rhea_error err;
    int ret = rhea_format_open_over(format, &f, s, 0, &err);
    FUZZ_REQUIRE(!ret, "%s: does not open: %s", when, err.text);
    guest_compare(g, f, when);
    format->close(f, NULL);
}

/* Repair a copy. Where all is said to be repaired, nothing may be left; where
 * there was nothing but leaks, the guest must not notice. */
static void reader_repair(const struct rhea_format_ops *format,
                          struct rhea_storage *image, unsigned fix)
{
    struct rhea_storage *copy = fuzz_clone(image);
    struct rhea_check before, repaired, after;
    struct guest g;
    bool sound = reader_check(format, copy, 0, &before) &&
                 reader_is_sound(&before) && reader_load(format, copy, &g);
    if (reader_check(format, copy, fix, &repaired) &&
        reader_is_sound(&repaired)) {
        FUZZ_REQUIRE(reader_check(format, copy, 0, &after),
                     "what was repaired cannot be checked");
        FUZZ_REQUIRE(reader_is_sound(&after),
                     "%" PRIu64 " corruptions and %" PRIu64
                     " errors after repair",
                     after.corruptions, after.errors);
        FUZZ_REQUIRE(after.leaks <= repaired.leaks,
                     "%" PRIu64 " leaks after repair, not %" PRIu64,
                     after.leaks, repaired.leaks);
    }
    if (sound) {
        reader_same(format, copy, &g, "after repair");
        guest_finish(&g);
    }
    rhea_storage_close(copy);
}

/* --- writing ------------------------------------------------------------- */

struct writer {
    struct rhea_format *f;
    struct guest *g; /* NULL: the image is not sound, so nothing is known */
    uint64_t state;
    uint64_t size;
    uint32_t cluster;
    uint8_t *buf; /* LONGEST */
};

static uint64_t writer_offset(struct writer *w)
{
    uint64_t r = fuzz_random(&w->state);
    uint64_t clusters = div_up(w->size, w->cluster), n = r >> 16;
    uint64_t cluster = r & 1   ? n % RHEA_MIN(clusters, 8)
                       : r & 2 ? clusters - 1 - n % RHEA_MIN(clusters, 4)
                               : n % clusters;
    uint64_t offset = cluster * w->cluster;
    if (r & 4)
        offset += (r >> 40) % w->cluster;
    return RHEA_MIN(offset, w->size - 1);
}

/* One change, to the image and to the model; what a change that failed has
 * left is not known. */
static void writer_step(struct writer *w)
{
    const struct rhea_format_ops *ops = w->f->ops;
    uint64_t r = fuzz_random(&w->state), offset = writer_offset(w);
    uint64_t len = r & 1 ? (1 + r % 5) * w->cluster : 1 + (r >> 8) % 10000;
    unsigned kind = r >> 32 & 7;
    int ret;
    if (kind == 7 && ops->write_compressed) {
        offset = align_down(offset, w->cluster);
        len = w->cluster;
    }
    /* Zeroes over a part of a huge cluster are written out. */
    if (kind < 3 && w->cluster > LONGEST * 16) {
        offset = align_down(offset, w->cluster);
        len = align_up(len, w->cluster);
    }
    len = RHEA_MIN(len, w->size - offset);
    if (kind < 3) {
        if (!ops->write_zeroes)
            return;
        ret = ops->write_zeroes(w->f, offset, len, kind & 1, NULL);
        if (w->g && !ret)
            guest_zero(w->g, offset, len);
    } else {
        len = RHEA_MIN(len, (uint64_t)LONGEST);
        fuzz_fill(w->buf, (size_t)len, r);
        if (kind == 7 && ops->write_compressed) {
            struct rhea_extent x;
            memset(w->buf, (int)r, (size_t)len / 2);
            if (ops->map(w->f, offset, len, &x, NULL) || x.length < len ||
                x.kind != RHEA_EXTENT_UNALLOCATED)
                return;
            ret =
                ops->write_compressed(w->f, offset, w->buf, (size_t)len, NULL);
        } else {
            ret = ops->write(w->f, offset, w->buf, (size_t)len, NULL);
        }
        if (w->g && !ret)
            guest_write(w->g, offset, w->buf, (size_t)len);
    }
    FUZZ_TRACE("change %u at %" PRIu64 ", %" PRIu64 " bytes: %d", kind, offset,
               len, ret);
    if (w->g && ret)
        guest_spoil(w->g, offset, len);
}

static bool writer_run(const struct rhea_format_ops *format,
                       struct rhea_storage *s, struct guest *g, uint64_t seed)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(LONGEST);
    struct rhea_format_info info = {0};
    struct rhea_error err;
    struct writer w = {.g = g, .buf = buf, .state = seed};
    if (rhea_format_open_over(format, &w.f, s, RHEA_FORMAT_WRITE, NULL))
        return false;
    format->info(w.f, &info);
    w.f->below = info.backing_file ? fuzz_base_below : NULL;
    w.size = info.virtual_size;
    w.cluster = fuzz_cluster(&info);
    unsigned n = (unsigned)(fuzz_random(&w.state) % WRITES);
    for (unsigned i = 0; w.size && i < n; i++) {
        writer_step(&w);
        if (fuzz_random(&w.state) % 4 == 0) {
            FUZZ_TRACE("flush");
            format->flush(w.f, NULL);
        }
    }
    if (g)
        guest_compare(g, w.f, "before closing");
    int ret = format->close(w.f, &err);
    FUZZ_REQUIRE(!g || !ret, "closing: %s", err.text);
    return true;
}

/* The leaks of the image as it was. What counts as used past the end of a
 * QCOW2 file is a leak as soon as the file is that long. */
static uint64_t reader_leaks(const struct rhea_format_ops *format,
                             struct rhea_storage *image, uint64_t new_size)
{
    struct rhea_storage *copy = fuzz_clone(image);
    struct rhea_check found;
    if (!strcmp(format->name, "qcow2") && fuzz_size(copy) < new_size)
        FUZZ_REQUIRE(!rhea_storage_truncate(copy, new_size, NULL), "memory");
    reader_check(format, copy, 0, &found);
    rhea_storage_close(copy);
    return found.leaks;
}

typedef bool reader_change_fn(const struct rhea_format_ops *format,
                              struct rhea_storage *s, struct guest *g,
                              uint64_t seed);

/* Change a copy. A sound image stays sound, and holds what it is to hold. With
 * KEEPS it loses no cluster. */
static void reader_change(const struct rhea_format_ops *format,
                          struct rhea_storage *image, reader_change_fn *change,
                          bool keeps, uint64_t seed)
{
    struct rhea_storage *copy = fuzz_clone(image);
    struct rhea_check before, after;
    struct guest g;
    bool sound = reader_check(format, copy, 0, &before) &&
                 reader_is_sound(&before) && reader_load(format, copy, &g);
    bool opened = change(format, copy, sound ? &g : NULL, seed);
    if (sound && opened) {
        reader_same(format, copy, &g, "after writing");
        FUZZ_REQUIRE(reader_check(format, copy, 0, &after),
                     "what was written to cannot be checked");
        FUZZ_REQUIRE(reader_is_sound(&after),
                     "%" PRIu64 " corruptions and %" PRIu64
                     " errors after writing",
                     after.corruptions, after.errors);
        uint64_t leaks = reader_leaks(format, image, fuzz_size(copy));
        FUZZ_REQUIRE(!keeps || after.leaks <= leaks,
                     "%" PRIu64 " leaks after writing, before %" PRIu64,
                     after.leaks, leaks);
    }
    if (sound)
        guest_finish(&g);
    rhea_storage_close(copy);
}

void reader_run(const struct rhea_format_ops *format,
                struct rhea_storage *image, uint64_t seed)
{
    reader_read(format, image, 0);
    reader_read(format, image, RHEA_FORMAT_CHECK);
    if (format->check) {
        struct rhea_check found;
        uint64_t digest = memory_digest(image);
        reader_check(format, image, 0, &found);
        FUZZ_REQUIRE(memory_digest(image) == digest,
                     "checking changes the image");
        reader_repair(format, image, RHEA_FIX_LEAKS);
        reader_repair(format, image, RHEA_FIX_LEAKS | RHEA_FIX_ERRORS);
        if (format->write) {
            reader_change(format, image, writer_run, true, seed);
            /* A VHD that shrinks may keep room in its middle, and a VMDK that
             * grows the place of tables that stood between its grains. */
            reader_change(format, image, changes_run,
                          strcmp(format->name, "vpc") != 0 &&
                              strcmp(format->name, "vmdk") != 0,
                          seed);
        }
    }
}

uint64_t reader_seed(const uint8_t *data, size_t size)
{
    uint64_t seed = size;
    for (size_t i = size < 8 ? 0 : size - 8; i < size; i++)
        seed = seed << 8 ^ seed >> 56 ^ data[i];
    return seed;
}

int reader_fuzz(const char *name, const uint8_t *data, size_t size)
{
    const struct rhea_format_ops *format = rhea_format_find(name);
    struct fuzz_input in = {data, size};

    struct rhea_storage *image = fuzz_image(&in, format);
    if (image)
        reader_run(format, image, reader_seed(data, size));
    rhea_storage_close(image);
    return 0;
}
