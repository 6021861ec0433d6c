/* SPDX-License-Identifier: MIT */
/*
 * The engine for guest blocks (format/blocks.h) and the cache of tables
 * (format/table.h), by a toy format that keeps its tables in memory, against a
 * shadow of what the guest wrote.
 */
#include <errno.h>
#include <pthread.h>

#include "base/checked.h"
#include "format/blocks.h"
#include "format/table.h"
#include "lib/test.h"
#include "storage/fault.h"

enum {
    SIZE = 40 * 3000 + 512, /* the last block is a part of one */
    BLOCK = 3000,           /* no power of two */
    BLOCKS = 41,
    UNIT = 500,
    UNITS = BLOCK / UNIT,
    SECTOR = 100, /* in which threads share blocks */
};

static struct rhea_error err;

struct toy {
    struct rhea_format base;
    struct blocks blocks;
    uint64_t host[BLOCKS]; /* 0: none */
    bool zero[BLOCKS];     /* without a place, and reads as zeroes */
    bool packed[BLOCKS];   /* "compressed" */
    bool there[BLOCKS][UNITS];
    unsigned begun;
};

static uint8_t toy_below(uint64_t offset)
{
    return (uint8_t)(offset % 251 + 1);
}

static uint8_t toy_packed(uint64_t offset)
{
    return (uint8_t)(offset % 13 + 7);
}

static int toy_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                          struct rhea_error *e)
{
    (void)opaque;
    (void)e;
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = toy_below(offset + i);
    return 0;
}

static int toy_read(struct rhea_format *f, uint64_t offset, void *buf,
                    size_t len, struct rhea_error *e)
{
    (void)f;
    (void)e;
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = toy_packed(offset + i);
    return 0;
}

static struct toy *toy_of(struct blocks *b)
{
    return (struct toy *)b->format;
}

/* One unit at a time. */
static int toy_map(struct blocks *b, uint64_t offset, uint64_t len,
                   struct rhea_extent *x, struct rhea_error *e)
{
    struct toy *t = toy_of(b);
    uint64_t block = offset / BLOCK, within = offset % BLOCK;
    (void)e;
    *x = (struct rhea_extent){
        .kind = RHEA_EXTENT_UNALLOCATED,
        .length = RHEA_MIN(len, b->unit - within % b->unit),
        .has_host = t->host[block] || t->packed[block],
        .host = t->host[block] + within,
        .storage = b->storage,
    };
    if (t->packed[block])
        x->kind = RHEA_EXTENT_COMPRESSED;
    else if (t->zero[block])
        x->kind = RHEA_EXTENT_ZERO;
    else if (t->host[block] && t->there[block][within / b->unit])
        x->kind = b->ops->put ? RHEA_EXTENT_ENCRYPTED : RHEA_EXTENT_DATA;
    return 0;
}

static int toy_begin(struct blocks *b, struct rhea_error *e)
{
    (void)e;
    toy_of(b)->begun++;
    return 0;
}

static int toy_link(struct blocks *b, const struct blocks_piece *p,
                    struct rhea_error *e)
{
    struct toy *t = toy_of(b);
    (void)e;
    for (uint64_t i = 0; p->fresh && i < p->count; i++) {
        CHECK(!t->host[p->block + i]);
        t->host[p->block + i] = p->host + i * BLOCK;
        t->packed[p->block + i] = t->zero[p->block + i] = false;
    }
    CHECK_EQ(p->offset % b->unit, 0);
    CHECK(p->len % b->unit == 0 || p->offset + p->len == SIZE);
    for (uint64_t at = p->offset; at < p->offset + p->len; at += b->unit)
        t->there[at / BLOCK][at % BLOCK / b->unit] = true;
    return 0;
}

static int toy_zero(struct blocks *b, uint64_t block, uint64_t *count,
                    struct rhea_error *e)
{
    (void)e;
    *count = RHEA_MIN(*count, (uint64_t)2);
    for (uint64_t i = 0; i < *count; i++)
        toy_of(b)->zero[block + i] = true;
    return 0;
}

static int toy_write_back(struct blocks *b, struct rhea_error *e)
{
    (void)b;
    (void)e;
    return 0;
}

static void toy_mask(uint8_t *buf, size_t len, uint64_t offset)
{
    for (size_t i = 0; i < len; i++)
        buf[i] ^= (uint8_t)(0xa5 + offset + i);
}

static int toy_put(struct blocks *b, uint64_t offset, uint64_t host,
                   const void *buf, size_t len, struct rhea_error *e)
{
    uint8_t *copy = malloc(len);
    memcpy(copy, buf, len);
    toy_mask(copy, len, offset);
    int ret = rhea_storage_write(b->storage, copy, len, host, e);
    free(copy);
    return ret;
}

static const struct rhea_format_ops toy_format = {.name = "toy",
                                                  .read = toy_read};
static const struct blocks_ops toy_plain = {.map = toy_map,
                                            .begin = toy_begin,
                                            .link = toy_link,
                                            .zero = toy_zero,
                                            .write_back = toy_write_back};
static const struct blocks_ops toy_no_zero = {
    .map = toy_map, .link = toy_link, .write_back = toy_write_back};
static const struct blocks_ops toy_masked = {.map = toy_map,
                                             .link = toy_link,
                                             .write_back = toy_write_back,
                                             .put = toy_put};

static void toy_init(struct toy *t, const struct blocks_ops *ops, uint32_t unit,
                     bool child)
{
    *t = (struct toy){.base = {.ops = &toy_format, .size = SIZE}};
    CHECK_OK(rhea_memory_open(&t->base.storage, INT64_MAX, &err), &err);
    if (child)
        t->base.below = toy_read_below;
    blocks_init(&t->blocks, ops, &t->base);
    t->blocks.size = SIZE;
    t->blocks.block_size = BLOCK;
    t->blocks.unit = unit;
    t->blocks.file_end = 700; /* some header */
    t->blocks.child = child;
    t->blocks.writable = true;
}

static void toy_finish(struct toy *t)
{
    blocks_finish(&t->blocks);
    rhea_storage_close(t->base.storage);
}

/* What the guest sees. */
static void toy_look(struct toy *t, uint8_t *out)
{
    for (uint64_t at = 0; at < SIZE;) {
        struct rhea_extent x;
        if (!CHECK_OK(blocks_map(&t->blocks, at, SIZE - at, &x, &err), &err))
            return;
        uint8_t *p = out + at;
        if (x.kind == RHEA_EXTENT_DATA || x.kind == RHEA_EXTENT_ENCRYPTED)
            CHECK_OK(rhea_storage_read(x.storage, p, x.length, x.host, &err),
                     &err);
        else if (x.kind == RHEA_EXTENT_UNALLOCATED && t->base.below)
            toy_read_below(NULL, at, p, x.length, &err);
        else if (x.kind == RHEA_EXTENT_COMPRESSED)
            toy_read(&t->base, at, p, x.length, &err);
        else
            memset(p, 0, x.length);
        if (x.kind == RHEA_EXTENT_ENCRYPTED)
            toy_mask(p, x.length, at);
        at += x.length;
    }
}

/* Writes and zeroes of all lengths, against a shadow. */
static void toy_random(struct toy *t, uint64_t seed)
{
    static uint8_t shadow[SIZE], seen[SIZE], buf[4 * BLOCK];
    toy_look(t, shadow);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t at = test_random(&seed) % SIZE;
        uint64_t len =
            test_random(&seed) % (test_random(&seed) % 3 ? 900 : sizeof(buf));
        len = RHEA_MIN(len, SIZE - at);
        if (test_random(&seed) % 4) {
            test_fill(buf, len, seed);
            memcpy(shadow + at, buf, len);
            CHECK_OK(blocks_write(&t->blocks, at, buf, len, &err), &err);
        } else {
            memset(shadow + at, 0, len);
            CHECK_OK(blocks_write_zeroes(&t->blocks, at, len, seed & 1, &err),
                     &err);
        }
    }
    CHECK_OK(blocks_flush(&t->blocks, &err), &err);
    toy_look(t, seen);
    CHECK_MEM(seen, shadow, SIZE);
    uint64_t size;
    CHECK_OK(rhea_storage_size(t->base.storage, &size, &err), &err);
    CHECK_EQ(size, t->blocks.file_end);
}

static void whole_blocks_hold_what_was_written(void)
{
    struct toy t;
    for (unsigned seed = 0; seed < 20; seed++) {
        toy_init(&t, seed % 2 ? &toy_plain : &toy_no_zero, BLOCK, seed & 2);
        toy_random(&t, seed);
        CHECK_EQ(t.begun, seed % 2);
        toy_finish(&t);
    }
}

static void units_hold_what_was_written(void)
{
    struct toy t;
    for (unsigned seed = 0; seed < 20; seed++) {
        toy_init(&t, seed % 2 ? &toy_plain : &toy_no_zero, UNIT, seed & 2);
        toy_random(&t, seed);
        toy_finish(&t);
    }
}

static void compressed_blocks_are_unpacked_where_they_are_written_to(void)
{
    struct toy t;
    for (unsigned seed = 0; seed < 10; seed++) {
        toy_init(&t, &toy_plain, BLOCK, seed & 1);
        for (unsigned i = 0; i < BLOCKS; i += 2)
            t.packed[i] = true;
        toy_random(&t, seed);
        toy_finish(&t);
    }
}

static void encrypted_bytes_are_put_by_the_format(void)
{
    struct toy t;
    for (unsigned seed = 0; seed < 10; seed++) {
        toy_init(&t, &toy_masked, seed & 2 ? BLOCK : UNIT, seed & 1);
        toy_random(&t, seed);
        toy_finish(&t);
    }
}

/* Of all kinds; what is below shows only where nothing else does. */
static void what_a_larger_image_had_already_is_hidden(void)
{
    static uint8_t shadow[SIZE], seen[SIZE], buf[BLOCK];
    for (unsigned seed = 0; seed < 8; seed++) {
        const uint64_t from = 5 * BLOCK + 700, end = SIZE - 2 * BLOCK - 100;
        bool hide_below = seed & 1;
        struct toy t;
        toy_init(&t, &toy_plain, seed & 2 ? UNIT : BLOCK, seed & 4);
        for (unsigned i = 0; i < BLOCKS; i++) {
            t.packed[i] = i % 4 == 0 && t.blocks.unit == BLOCK;
            t.zero[i] = i % 4 == 1;
            test_fill(buf, UNIT, i);
            if (i % 4 == 2)
                CHECK_OK(blocks_write(&t.blocks, (uint64_t)i * BLOCK + UNIT,
                                      buf, UNIT, &err),
                         &err);
        }
        toy_look(&t, shadow);
        for (uint64_t at = from; at < end;) {
            struct rhea_extent x;
            CHECK_OK(blocks_map(&t.blocks, at, end - at, &x, &err), &err);
            if (x.kind != RHEA_EXTENT_UNALLOCATED || hide_below)
                memset(shadow + at, 0, (size_t)x.length);
            at += x.length;
        }
        CHECK_OK(blocks_hide(&t.blocks, from, end, hide_below, &err), &err);
        toy_look(&t, seen);
        CHECK_MEM(seen, shadow, SIZE);
        toy_finish(&t);
    }
}

static void what_lies_outside_is_refused(void)
{
    struct toy t;
    uint8_t byte = 1;
    toy_init(&t, &toy_plain, BLOCK, false);
    CHECK_EQ(blocks_write(&t.blocks, SIZE, &byte, 1, &err), -EINVAL);
    CHECK_EQ(blocks_write_zeroes(&t.blocks, 1, SIZE, false, &err), -EINVAL);
    t.blocks.writable = false;
    CHECK_EQ(blocks_write(&t.blocks, 0, &byte, 1, &err), -EACCES);
    toy_finish(&t);
}

static void a_write_that_fails_leaves_no_entry(void)
{
    struct toy t;
    uint8_t buf[BLOCK] = {1};
    toy_init(&t, &toy_plain, BLOCK, false);
    rhea_storage_close(t.base.storage);
    CHECK_OK(rhea_memory_open(&t.base.storage, 2 * BLOCK, &err), &err);
    t.blocks.storage = t.base.storage;
    CHECK_OK(blocks_write(&t.blocks, 0, buf, BLOCK, &err), &err);
    CHECK_EQ(blocks_write(&t.blocks, BLOCK, buf, BLOCK, &err), -ENOSPC);
    CHECK(t.host[0] && !t.host[1]);
    toy_finish(&t);
}

/* --- Threads --- */

struct worker {
    struct toy *toy;
    unsigned id;
    bool failed;
};

enum { WORKERS = 4 };

/* Each writes its own sectors, in the same blocks as the others. */
static void *worker_run(void *opaque)
{
    struct worker *w = opaque;
    struct rhea_error e;
    uint8_t buf[SECTOR];
    memset(buf, (int)w->id + 1, sizeof(buf));
    for (uint64_t i = 0; i < SIZE / SECTOR; i++) {
        uint64_t at = (i * 7919 % (SIZE / SECTOR)) * SECTOR;
        if (at / SECTOR % WORKERS == w->id)
            w->failed |= blocks_write(&w->toy->blocks, at, buf, SECTOR, &e);
    }
    return NULL;
}

static void threads_share_blocks(void)
{
    static uint8_t seen[SIZE];
    for (unsigned round = 0; round < 6; round++) {
        struct toy t;
        pthread_t threads[WORKERS];
        struct worker workers[WORKERS];
        toy_init(&t, &toy_plain, round & 1 ? UNIT : BLOCK, round & 2);
        for (unsigned i = 0; i < WORKERS; i++) {
            workers[i] = (struct worker){&t, i, false};
            pthread_create(&threads[i], NULL, worker_run, &workers[i]);
        }
        for (unsigned i = 0; i < WORKERS; i++) {
            pthread_join(threads[i], NULL);
            CHECK(!workers[i].failed);
        }
        toy_look(&t, seen);
        for (unsigned i = 0; i < SIZE / SECTOR; i++)
            CHECK_EQ(seen[i * SECTOR + 5], i % WORKERS + 1);
        toy_finish(&t);
    }
}

/* --- Tables --- */

enum { PAGE = 4096, FILE_BYTES = 64 * PAGE };

static void table_open(struct table *t, struct rhea_storage **s,
                       table_write_fn *write, void *opaque)
{
    const struct table_how how = {.page_bytes = PAGE,
                                  .cache_bytes = 8 * PAGE,
                                  .write = write,
                                  .opaque = opaque};
    CHECK_OK(rhea_memory_open(s, INT64_MAX, &err), &err);
    CHECK_OK(table_init(t, *s, &how, &err), &err);
}

static void tables_hold_what_was_set(void)
{
    static uint8_t shadow[FILE_BYTES], file[FILE_BYTES];
    struct rhea_storage *s;
    struct table t;
    uint64_t seed = 3;
    memset(shadow, 0, sizeof(shadow));
    table_open(&t, &s, NULL, NULL);
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t at = test_random(&seed) % (FILE_BYTES / 8) * 8;
        const uint8_t *bytes;
        uint8_t *change;
        uint32_t len;
        if (!CHECK_OK(table_get(&t, at, &bytes, &len, &err), &err))
            break;
        CHECK_EQ(len, PAGE - at % PAGE);
        CHECK_MEM(bytes, shadow + at, len);
        CHECK_OK(table_change(&t, at, 8, &change, &err), &err);
        test_fill(change, 8, seed);
        memcpy(shadow + at, change, 8);
    }
    CHECK_OK(table_write_back(&t, &err), &err);
    CHECK_OK(rhea_storage_read_padded(s, file, FILE_BYTES, 0, &err), &err);
    CHECK_MEM(file, shadow, FILE_BYTES);
    table_finish(&t);
    rhea_storage_close(s);
}

/* Guest data may share a page with tables, and change behind the cache. */
static void sectors_that_did_not_change_are_not_written(void)
{
    uint8_t page[PAGE], data[1024], *change;
    struct rhea_storage *s;
    struct table t;
    table_open(&t, &s, NULL, NULL);
    for (unsigned at = 0; at < PAGE; at += 3584) {
        CHECK_OK(table_change(&t, at, 8, &change, &err), &err);
        memset(change, 0x11, 8);
    }
    memset(data, 0x22, sizeof(data));
    CHECK_OK(rhea_storage_write(s, data, sizeof(data), 1024, &err), &err);
    CHECK_OK(table_write_back(&t, &err), &err);
    CHECK_OK(rhea_storage_read(s, page, PAGE, 0, &err), &err);
    CHECK_EQ(page[0], 0x11);
    CHECK_EQ(page[3584], 0x11);
    CHECK_MEM(page + 1024, data, sizeof(data));
    table_finish(&t);
    rhea_storage_close(s);
}

/* A page that is overwritten whole is not read; one of which a part is, is. */
static void overwriting_reads_what_has_to_stay(void)
{
    const struct fault_plan plan = {
        .classes = FAULT_READ, .at = 2, .code = EIO, .forever = true};
    uint8_t page[PAGE];
    struct rhea_storage *s, *memory;
    struct table t;
    uint8_t *bytes;
    uint32_t n;
    table_open(&t, &memory, NULL, NULL);
    memset(page, 0x33, PAGE);
    for (unsigned i = 0; i < 4; i++)
        CHECK_OK(rhea_storage_write(memory, page, PAGE, i * PAGE, &err), &err);
    CHECK_OK(fault_open(&s, memory, &plan, &err), &err);
    t.storage = s;
    for (uint64_t at = 512; at < 3 * PAGE; at += n) {
        CHECK_OK(table_overwrite(&t, at, 3 * PAGE - at, &bytes, &n, &err),
                 &err);
        CHECK_EQ(n, PAGE - at % PAGE);
        memset(bytes, 0x44, n);
    }
    CHECK_EQ(fault_calls(s, FAULT_READ), 1);
    CHECK_EQ(table_overwrite(&t, 3 * PAGE, 512, &bytes, &n, &err), -EIO);
    CHECK_OK(table_write_back(&t, &err), &err);
    for (unsigned i = 0; i < 4; i++) {
        CHECK_OK(rhea_storage_read(memory, page, PAGE, i * PAGE, &err), &err);
        CHECK_EQ(page[0], i == 0 || i == 3 ? 0x33 : 0x44);
        CHECK_EQ(page[512], i == 3 ? 0x33 : 0x44);
    }
    table_finish(&t);
    rhea_storage_close(s);
}

struct log {
    unsigned runs;
    uint64_t bytes;
    int result;
};

static int log_write(void *opaque, struct table *t, struct rhea_error *e)
{
    struct log *log = opaque;
    size_t cursor = 0;
    uint64_t offset;
    const uint8_t *bytes;
    uint32_t len;
    while (table_next_dirty(t, &cursor, &offset, &bytes, &len)) {
        log->runs++;
        log->bytes += len;
        CHECK_EQ(offset % 512, 0);
    }
    return log->result ? rhea_error_set(e, EIO, "no") : 0;
}

static void a_format_writes_its_tables_its_own_way(void)
{
    struct log log = {0};
    struct rhea_storage *s;
    struct table t;
    uint8_t *change;
    table_open(&t, &s, log_write, &log);
    CHECK_OK(table_change(&t, 508, 8, &change, &err), &err); /* two sectors */
    CHECK_OK(table_change(&t, PAGE - 8, 8, &change, &err), &err);
    CHECK_OK(table_change(&t, PAGE, 8, &change, &err), &err);
    CHECK_OK(table_write_back(&t, &err), &err);
    CHECK_EQ(log.runs, 3);
    CHECK_EQ(log.bytes, 2048);
    CHECK_OK(table_write_back(&t, &err), &err);
    CHECK_EQ(log.runs, 3);
    log.result = 1;
    CHECK_OK(table_change(&t, 0, 8, &change, &err), &err);
    CHECK_EQ(table_write_back(&t, &err), -EIO);
    log.result = 0;
    /* What the file holds is not known. */
    CHECK_EQ(table_write_back(&t, &err), -EIO);
    table_finish(&t);
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(whole_blocks_hold_what_was_written);
    TEST(units_hold_what_was_written);
    TEST(compressed_blocks_are_unpacked_where_they_are_written_to);
    TEST(encrypted_bytes_are_put_by_the_format);
    TEST(what_a_larger_image_had_already_is_hidden);
    TEST(what_lies_outside_is_refused);
    TEST(a_write_that_fails_leaves_no_entry);
    TEST(threads_share_blocks);
    TEST(tables_hold_what_was_set);
    TEST(sectors_that_did_not_change_are_not_written);
    TEST(overwriting_reads_what_has_to_stay);
    TEST(a_format_writes_its_tables_its_own_way);
    return test_finish();
}
