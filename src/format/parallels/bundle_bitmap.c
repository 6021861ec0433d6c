/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps of a bundle: those of the files that the guest writes to. In a split
 * disk each file has its own, which follow the guest's writes to its range. A
 * bitmap of the disk is those of one UUID, one in each file. Where a file has
 * none, or another granularity, the others are worth nothing.
 *
 * Order of writes: a bitmap is added to the first file last, and removed from
 * it first. Other bits: it is removed from the first file, durable; the other
 * files get theirs; the first file gets it again, with its bits, by one write
 * of its header. So what a crash leaves has all old bits, or all new ones, or
 * is one that can only be removed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

/* --- Files that take another one's place --- */

int bundle_bitmaps_copy(struct bundle_file *to, struct bundle_file *from,
                        struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    if (!from->hds)
        return 0;
    int ret = hds_bitmap_list(from->hds, &list, &n, err);
    for (size_t i = 0; !ret && i < n; i++) {
        size_t bytes =
            (size_t)div_up(div_up(from->hds->size, list[i].granularity), 8);
        RHEA_AUTO_FREE uint8_t *bits = calloc(1, bytes + 1);
        if (list[i].in_use)
            continue; /* its bits mean nothing */
        if (!bits)
            ret = rhea_error_set(err, ENOMEM, "out of memory");
        if (!ret)
            ret = hds_bitmap_load(from->hds, list[i].name, bits, bytes, err);
        if (!ret)
            ret = hds_bitmap_add_bits(to->hds, &list[i], bits, bytes, err);
    }
    rhea_bitmaps_free(list, n);
    return ret;
}

int bundle_bitmaps_remove(struct bundle_file *file, struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    if (!file->hds)
        return 0;
    int ret = hds_bitmap_list(file->hds, &list, &n, err);
    for (size_t i = 0; !ret && i < n; i++)
        ret = hds_bitmap_remove(file->hds, list[i].name, err);
    rhea_bitmaps_free(list, n);
    return ret;
}

/* --- All files' bitmaps --- */

static bool bitmap_same(const struct rhea_bitmap *x, const char *name)
{
    uint8_t a[UUID_BYTES], b[UUID_BYTES];
    return uuid_parse(x->name, a) && uuid_parse(name, b) && uuid_equal(a, b);
}

static int bitmap_compare(const void *a, const void *b)
{
    const struct rhea_bitmap *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Appends those of FILE to *ALL. */
static int bitmaps_gather(struct rhea_format *file, struct rhea_bitmap **all,
                          size_t *n, struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t more = 0;
    int ret = hds_bitmap_list(file, &list, &more, err);
    struct rhea_bitmap *grown =
        ret ? NULL : reallocarray(*all, *n + more + 1, sizeof(*grown));
    if (!grown) {
        rhea_bitmaps_free(list, more);
        return ret ? ret : rhea_error_set(err, ENOMEM, "out of memory");
    }
    if (more)
        memcpy(grown + *n, list, more * sizeof(*grown));
    free(list);
    *all = grown;
    *n += more;
    return 0;
}

/* Whether a bit of so many bytes is never of two files. */
static bool granularity_fits(const struct bundle *b, uint64_t granularity)
{
    for (size_t i = 0; i < b->n_parts; i++)
        if (b->parts[i].start % granularity)
            return false;
    return true;
}

/* ALL, sorted, becomes a list with each once. Sound is what all files have. */
static size_t bitmaps_join(const struct bundle *b, struct rhea_bitmap *all,
                           size_t n)
{
    size_t out = 0;
    for (size_t i = 0, end; i < n; i = end) {
        struct rhea_bitmap *one = &all[i];
        for (end = i + 1; end < n && !strcmp(all[end].name, one->name); end++) {
            one->in_use |=
                all[end].in_use || all[end].granularity != one->granularity;
            free(all[end].name);
        }
        one->in_use |=
            end - i != b->n_parts || !granularity_fits(b, one->granularity);
        all[out++] = *one;
    }
    return out;
}

static int bitmaps_list(const struct bundle *b, struct rhea_bitmap **list,
                        size_t *n, struct rhea_error *err)
{
    int ret = 0;
    *list = NULL;
    *n = 0;
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        if (b->parts[i].top->hds)
            ret = bitmaps_gather(b->parts[i].top->hds, list, n, err);
    if (ret) {
        rhea_bitmaps_free(*list, *n);
        *list = NULL;
        *n = 0;
    } else if (b->n_parts > 1) {
        if (*n)
            qsort(*list, *n, sizeof(**list), bitmap_compare);
        *n = bitmaps_join(b, *list, *n);
    }
    return ret;
}

/* The one called NAME; its own name is freed. */
static int bitmaps_find(const struct bundle *b, const char *name, bool sound,
                        struct rhea_bitmap *out, struct rhea_error *err)
{
    struct rhea_bitmap *list;
    size_t n;
    bool found = false;
    int ret = bitmaps_list(b, &list, &n, err);
    for (size_t i = 0; !ret && list && !found && i < n; i++) {
        found = bitmap_same(&list[i], name);
        if (found)
            *out = list[i];
    }
    rhea_bitmaps_free(list, n);
    out->name = NULL;
    if (!ret && !found)
        ret = rhea_error_set(err, ENOENT, "there is no bitmap '%.100s'", name);
    if (!ret && sound && out->in_use)
        ret = rhea_error_set(err, EINVAL,
                             "bitmap '%.100s' was not kept up to date, or is "
                             "not in all files of the disk; it can only be "
                             "removed",
                             name);
    return ret;
}

static int bitmap_need_files(const struct bundle *b, struct rhea_error *err)
{
    for (size_t i = 0; i < b->n_parts; i++)
        if (!b->parts[i].top->hds)
            return rhea_error_set(err, ENOTSUP,
                                  "a disk that is a plain file has no bitmaps");
    return 0;
}

/* --- Bits --- */

static void bits_copy(uint8_t *to, uint64_t to_bit, const uint8_t *from,
                      uint64_t from_bit, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = to_bit + i, of = from_bit + i;
        if (at % 8 == 0 && of % 8 == 0 && n - i >= 8) {
            to[at / 8] = from[of / 8];
            i += 7;
        } else if (from[of / 8] >> of % 8 & 1) {
            to[at / 8] |= (uint8_t)(1U << at % 8);
        }
    }
}

/* Those of one file: BYTES of them, malloc'd zeroes; N are of the disk, from
 * bit AT of it on. */
struct bits {
    uint8_t *bytes;
    size_t len;
    uint64_t at, n;
};

static int bits_init(struct bits *bits, const struct bundle_part *part,
                     uint64_t granularity, struct rhea_error *err)
{
    /* A file may be larger than its storage. */
    uint64_t all = div_up(part->top->hds->size, granularity);
    bits->len = (size_t)div_up(all, 8);
    bits->at = part->start / granularity;
    bits->n = RHEA_MIN(all, div_up(part->size, granularity));
    bits->bytes = calloc(1, bits->len + 1);
    return bits->bytes ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

static int bits_check(const struct rhea_format *f, uint64_t granularity,
                      size_t n, struct rhea_error *err)
{
    uint64_t want = div_up(div_up(f->size, granularity), 8);
    return n == want ? 0
                     : rhea_error_set(err, EINVAL,
                                      "the bitmap has %" PRIu64
                                      " bytes of bits, not %zu",
                                      want, n);
}

/* --- The interface --- */

int bundle_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list,
                       size_t *n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_rdlock(&b->lock);
    int ret = bitmaps_list(b, list, n, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

uint32_t bundle_bitmap_count(struct rhea_format *f)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    bundle_bitmap_list(f, &list, &n, NULL);
    rhea_bitmaps_free(list, n);
    return (uint32_t)n;
}

static int add_check(const struct bundle *b, const struct rhea_bitmap *what,
                     struct rhea_error *err)
{
    /* What is no granularity, the file tells. */
    uint64_t granularity = what->granularity ? what->granularity : 1;
    uint64_t bits = div_up(b->base.size, granularity), starts = 0;
    int ret = bitmap_need_files(b, err);
    if (ret || granularity_fits(b, granularity)) {
        return ret || div_up(bits, 8) <= RHEA_BITMAP_BYTES_MAX
                   ? ret
                   : rhea_error_set(err, EFBIG,
                                    "a bitmap of %" PRIu64 " bits is too large",
                                    bits);
    }
    for (size_t i = 0; i < b->n_parts; i++)
        starts |= b->parts[i].start;
    return rhea_error_set(err, EINVAL,
                          "no bit can be of two files of this disk: the "
                          "granularity must be at most %" PRIu64 " bytes",
                          starts & -starts);
}

int bundle_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                      struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_wrlock(&b->lock);
    int ret = add_check(b, what, err);
    size_t i = b->n_parts;
    while (!ret && i > 0)
        ret = hds_bitmap_add(b->parts[--i].top->hds, what, err);
    for (i = ret ? i + 1 : b->n_parts; i < b->n_parts; i++)
        hds_bitmap_remove(b->parts[i].top->hds, what->name, NULL);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* From the files that have it. */
static int bitmap_remove_some(struct bundle *b, size_t n, const char *name,
                              struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; !ret && i < n; i++) {
        struct rhea_error e;
        if (!b->parts[i].top->hds)
            continue;
        ret = hds_bitmap_remove(b->parts[i].top->hds, name, &e);
        if (ret == -ENOENT)
            ret = 0;
        if (ret && err)
            *err = e;
    }
    return ret;
}

int bundle_bitmap_remove(struct rhea_format *f, const char *name,
                         struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_bitmap found = {0};
    pthread_rwlock_wrlock(&b->lock);
    int ret = bitmaps_find(b, name, false, &found, err);
    if (!ret)
        ret = bitmap_remove_some(b, b->n_parts, name, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

static int bitmap_load_part(const struct bundle_part *part, const char *name,
                            uint64_t granularity, uint8_t *bits,
                            struct rhea_error *err)
{
    struct bits own;
    int ret = bits_init(&own, part, granularity, err);
    if (!ret)
        ret = hds_bitmap_load(part->top->hds, name, own.bytes, own.len, err);
    if (!ret)
        bits_copy(bits, own.at, own.bytes, 0, own.n);
    free(own.bytes);
    return ret;
}

int bundle_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                       size_t n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_bitmap found = {0};
    pthread_rwlock_wrlock(&b->lock);
    int ret = bitmaps_find(b, name, true, &found, err);
    if (!ret)
        ret = bits_check(f, found.granularity, n, err);
    if (!ret)
        memset(bits, 0, n);
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        ret =
            bitmap_load_part(&b->parts[i], name, found.granularity, bits, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* ADD: it has none of that name so far. */
static int bitmap_store_part(const struct bundle_part *part,
                             const struct rhea_bitmap *what, bool add,
                             const uint8_t *bits, struct rhea_error *err)
{
    struct rhea_format *file = part->top->hds;
    struct bits own;
    int ret = bits_init(&own, part, what->granularity, err);
    if (!ret)
        bits_copy(own.bytes, 0, bits, own.at, own.n);
    if (!ret)
        ret = add ? hds_bitmap_add_bits(file, what, own.bytes, own.len, err)
                  : hds_bitmap_store(file, what->name, own.bytes, own.len, err);
    free(own.bytes);
    return ret;
}

int bundle_bitmap_store(struct rhea_format *f, const char *name,
                        const uint8_t *bits, size_t n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_bitmap found = {0};
    bool split = b->n_parts > 1;
    pthread_rwlock_wrlock(&b->lock);
    int ret = bitmaps_find(b, name, true, &found, err);
    found.name = (char *)name;
    if (!ret)
        ret = bits_check(f, found.granularity, n, err);
    if (!ret && split)
        ret = bitmap_remove_some(b, 1, name, err);
    for (size_t i = b->n_parts; !ret && i > 0; i--)
        ret = bitmap_store_part(&b->parts[i - 1], &found, split && i == 1, bits,
                                err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}
