/* SPDX-License-Identifier: MIT */
/* The directory of persistent bitmaps (the spec, "Bitmap directory"). */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/bitmap.h"

enum {
    DIR_HEADER = 24,
    DIR_FLAGS = 12,
    DIR_TYPE = 16,
    DIR_GRANULARITY = 17,
    DIR_NAME_SIZE = 18,
    DIR_EXTRA_SIZE = 20,
    DIR_TYPE_DIRTY = 1,
};
#define DIR_REPEATED_MAX (64U << 20)

void qcow2_bitmap_list_free(struct qcow2_bitmap_list *list)
{
    for (uint32_t i = 0; i < list->n; i++) {
        free(list->items[i].name);
        free(list->items[i].extra);
    }
    free(list->items);
    *list = (struct qcow2_bitmap_list){0};
}

struct qcow2_bitmap *qcow2_bitmap_find(const struct qcow2_bitmap_list *list,
                                       const char *name)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (!strcmp(list->items[i].name, name))
            return &list->items[i];
    return NULL;
}

struct qcow2_bitmap *qcow2_bitmap_append(struct qcow2_bitmap_list *list,
                                         const char *name,
                                         struct rhea_error *err)
{
    struct qcow2_bitmap *items =
        realloc(list->items, (list->n + 1ULL) * sizeof(*items));
    char *copy = strdup(name);

    if (items)
        list->items = items;
    if (!items || !copy) {
        free(copy);
        rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    items[list->n] = (struct qcow2_bitmap){.name = copy};
    return &items[list->n++];
}

void qcow2_bitmap_delete(struct qcow2_bitmap_list *list, struct qcow2_bitmap *b)
{
    size_t behind = (size_t)(list->items + list->n - (b + 1));

    free(b->name);
    free(b->extra);
    memmove(b, b + 1, behind * sizeof(*b));
    list->n--;
}

static uint64_t dir_entry_size(uint64_t name, uint64_t extra)
{
    return align_up(DIR_HEADER + name + extra, 8);
}

/* Whether the numbers of an entry can be. */
static bool dir_entry_ok(const struct qcow2 *q, const struct qcow2_bitmap *b,
                         unsigned type)
{
    uint64_t bytes = (uint64_t)b->n_table << q->cluster_bits;

    if (!b->table || !is_aligned(b->table, q->cluster_size) ||
        b->table > QCOW2_MAX_HOST || !b->n_table ||
        b->n_table > QCOW2_BITMAP_TABLE_MAX || type != DIR_TYPE_DIRTY ||
        b->granularity_bits < QCOW2_BITMAP_MIN_BITS ||
        b->granularity_bits > QCOW2_BITMAP_MAX_BITS ||
        b->flags & ~(uint32_t)QCOW2_BITMAP_FLAGS ||
        bytes > RHEA_BITMAP_BYTES_MAX)
        return false;
    /* One that was not saved may be as short as the disk was then. */
    return b->flags & QCOW2_BITMAP_IN_USE ||
           qcow2_bitmap_bytes(q->f.size, b->granularity_bits) <= bytes;
}

/* The entry at E, of LEFT bytes at most, into B; *SIZE is its own. */
static int dir_parse_entry(const struct qcow2 *q, const uint8_t *e,
                           uint64_t left, uint64_t *size,
                           struct qcow2_bitmap *b, struct rhea_error *err)
{
    uint32_t name, extra;

    if (left < DIR_HEADER)
        goto bad;
    name = load_be16(e + DIR_NAME_SIZE);
    extra = load_be32(e + DIR_EXTRA_SIZE);
    *size = dir_entry_size(name, extra);
    if (*size > left || !name || name > QCOW2_BITMAP_NAME_MAX ||
        memchr(e + DIR_HEADER + extra, 0, name))
        goto bad;
    b->table = load_be64(e);
    b->n_table = load_be32(e + 8);
    b->flags = load_be32(e + DIR_FLAGS);
    b->granularity_bits = e[DIR_GRANULARITY];
    if (!dir_entry_ok(q, b, e[DIR_TYPE]))
        goto bad;
    b->name = strndup((const char *)e + DIR_HEADER + extra, name);
    b->extra_size = extra;
    if (extra)
        b->extra = malloc(extra);
    if (!b->name || (extra && !b->extra))
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (extra)
        memcpy(b->extra, e + DIR_HEADER, extra);
    return 0;
bad:
    return rhea_error_set(err, EINVAL, "the bitmap directory is damaged");
}

static int dir_compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int dir_check_names(const struct qcow2_bitmap_list *list,
                           struct rhea_error *err)
{
    RHEA_AUTO_FREE const char **names =
        malloc((list->n + 1ULL) * sizeof(*names));

    if (!names)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < list->n; i++)
        names[i] = list->items[i].name;
    qsort(names, list->n, sizeof(*names), dir_compare_names);
    for (uint32_t i = 1; i < list->n; i++)
        if (!strcmp(names[i - 1], names[i]))
            return rhea_error_set(err, EINVAL,
                                  "the bitmap directory is damaged: two "
                                  "bitmaps have the same name");
    return 0;
}

/* Tables are in the file and do not overlap, so that they are not longer than
 * it is: else a small file could keep a program busy for days. */
static int dir_check_tables(const struct qcow2 *q,
                            const struct qcow2_bitmap_list *list,
                            struct rhea_error *err)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < list->n; i++)
        bytes += (uint64_t)list->items[i].n_table * 8;
    if (bytes > q->file_size)
        return rhea_error_set(err, EINVAL,
                              "the bitmap directory is damaged: the bitmaps' "
                              "tables are longer than the file");
    return 0;
}

static int dir_parse(struct qcow2 *q, const uint8_t *dir,
                     struct qcow2_bitmap_list *list, struct rhea_error *err)
{
    uint64_t at = 0, size = 0;

    for (; at < q->bitmap_dir_size && list->n < q->n_bitmaps; at += size) {
        struct qcow2_bitmap *b = &list->items[list->n++];
        int r;

        b->at = q->bitmap_dir_offset + at;
        r = dir_parse_entry(q, dir + at, q->bitmap_dir_size - at, &size, b,
                            err);
        if (r < 0)
            return r;
    }
    if (at != q->bitmap_dir_size || list->n != q->n_bitmaps)
        return rhea_error_set(err, EINVAL,
                              "the bitmap directory does not hold the %" PRIu32
                              " bitmaps that are announced",
                              q->n_bitmaps);
    return 0;
}

int qcow2_bitmap_list_load(struct qcow2 *q, struct qcow2_bitmap_list *list,
                           struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *dir = NULL;
    uint64_t size;
    int r;

    *list = (struct qcow2_bitmap_list){0};
    if (!q->n_bitmaps || !(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    size = q->bitmap_dir_size;
    /* The smallest entry has a name of one byte. */
    if (size < q->n_bitmaps * dir_entry_size(1, 0))
        return rhea_error_set(err, EINVAL,
                              "the bitmap directory is too short for the "
                              "%" PRIu32 " bitmaps that are announced",
                              q->n_bitmaps);
    dir = malloc(size);
    list->items = calloc(q->n_bitmaps, sizeof(*list->items));
    if (!dir || !list->items) {
        qcow2_bitmap_list_free(list);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    r = rhea_storage_size(q->f.storage, &q->file_size, err);
    if (r == 0)
        r = rhea_storage_read_padded(q->f.storage, dir, size,
                                     q->bitmap_dir_offset, err);
    if (r == 0)
        r = dir_parse(q, dir, list, err);
    if (r == 0)
        r = dir_check_names(list, err);
    if (r == 0)
        r = dir_check_tables(q, list, err);
    if (r < 0)
        qcow2_bitmap_list_free(list);
    return r;
}

static void dir_build_entry(const struct qcow2_bitmap *b, uint8_t *e)
{
    size_t name = strlen(b->name);

    store_be64(e, b->table);
    store_be32(e + 8, b->n_table);
    store_be32(e + DIR_FLAGS, b->flags);
    e[DIR_TYPE] = DIR_TYPE_DIRTY;
    e[DIR_GRANULARITY] = (uint8_t)b->granularity_bits;
    store_be16(e + DIR_NAME_SIZE, (uint16_t)name);
    store_be32(e + DIR_EXTRA_SIZE, b->extra_size);
    if (b->extra_size)
        memcpy(e + DIR_HEADER, b->extra, b->extra_size);
    memcpy(e + DIR_HEADER + b->extra_size, b->name, name);
}

int qcow2_bitmap_list_build(const struct qcow2_bitmap_list *list, uint8_t **dir,
                            uint64_t *size, struct rhea_error *err)
{
    uint64_t at = 0;

    *dir = NULL;
    *size = 0;
    for (uint32_t i = 0; i < list->n; i++)
        *size += dir_entry_size(strlen(list->items[i].name),
                                list->items[i].extra_size);
    if (list->n > QCOW2_MAX_BITMAPS || *size > QCOW2_MAX_BITMAP_DIRECTORY)
        return rhea_error_set(err, EFBIG,
                              "the image has as many bitmaps as it can have");
    *dir = calloc(1, *size + !*size);
    if (!*dir)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < list->n; i++) {
        dir_build_entry(&list->items[i], *dir + at);
        at += dir_entry_size(strlen(list->items[i].name),
                             list->items[i].extra_size);
    }
    return 0;
}

int qcow2_bitmap_write_flags(struct qcow2 *q, const struct qcow2_bitmap *b,
                             struct rhea_error *err)
{
    uint8_t flags[4];

    store_be32(flags, b->flags);
    return rhea_storage_write(q->f.storage, flags, sizeof(flags),
                              b->at + DIR_FLAGS, err);
}

struct dir_walk {
    struct qcow2 *q;
    qcow2_range_fn *fn;
    void *opaque;
    uint64_t left;      /* clusters of bits that there may still be */
    struct bitmap seen; /* clusters of tables */
    uint64_t repeated;  /* of tables gone through again, bytes */
};

/* Tables should not overlap. Those that do are gone through again, but not for
 * ever. */
static bool dir_walk_seen(struct dir_walk *w, uint64_t host, uint64_t length)
{
    uint64_t first = host >> w->q->cluster_bits;
    uint64_t count = div_up(length, w->q->cluster_size);

    if (first >= w->seen.n_bits)
        return false;
    count = RHEA_MIN(count, w->seen.n_bits - first);
    if (bitmap_any(&w->seen, first, count))
        w->repeated += length;
    bitmap_set(&w->seen, first, count);
    return w->repeated > DIR_REPEATED_MAX;
}

static int dir_walk_data(struct dir_walk *w, uint64_t data,
                         struct rhea_error *err)
{
    if (!data)
        return 0;
    /* Else a small file could keep this busy for days. */
    if (!w->left--)
        return rhea_error_set(err, EINVAL,
                              "the bitmaps have more clusters of bits than the "
                              "file has clusters");
    return w->fn(w->opaque, data, w->q->cluster_size, err);
}

static int dir_walk_table(struct dir_walk *w, const struct qcow2_bitmap *b,
                          struct rhea_error *err)
{
    struct qcow2 *q = w->q;
    RHEA_AUTO_FREE uint64_t *table = NULL;
    int r = qcow2_bitmap_check_table(q, b, err);

    if (r == 0)
        r = w->fn(w->opaque, b->table, (uint64_t)b->n_table * 8, err);
    if (r < 0 || !qcow2_in_file(q, b->table) ||
        dir_walk_seen(w, b->table, (uint64_t)b->n_table * 8))
        return r;
    r = qcow2_table_load(q, b->table, b->n_table, &table, err);
    for (uint32_t i = 0; r == 0 && i < b->n_table; i++) {
        if (table[i])
            r = qcow2_bitmap_check_data(q, b, i, table[i], err);
        if (r == 0)
            r = dir_walk_data(w, table[i] & QCOW2_OFFSET_MASK, err);
    }
    return r;
}

int qcow2_bitmaps_walk(struct qcow2 *q, qcow2_range_fn *fn, void *opaque,
                       struct rhea_error *err)
{
    struct qcow2_bitmap_list list;
    int r = qcow2_bitmap_list_load(q, &list, err);
    struct dir_walk w = {.q = q, .fn = fn, .opaque = opaque};

    w.left = div_up(q->file_size, q->cluster_size);
    if (r == 0 && list.n)
        r = bitmap_init(&w.seen, w.left, err);
    if (r == 0 && list.n)
        r = fn(opaque, q->bitmap_dir_offset, q->bitmap_dir_size, err);
    for (uint32_t i = 0; r == 0 && i < list.n; i++)
        r = dir_walk_table(&w, &list.items[i], err);
    bitmap_finish(&w.seen);
    qcow2_bitmap_list_free(&list);
    return r;
}
