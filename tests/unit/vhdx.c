/* SPDX-License-Identifier: MIT */
/* Logs of every kind, and images that say what they must not. */
#include <errno.h>

#include "base/crc32c.h"
#include "vhdx_lib.h"

enum { LOG_AT = 1 << 20, SECTOR = VHDX_LOG_SECTOR, ENTRY_MAX = 200 };

/* --- Logs made by hand --------------------------------------------------- */

struct change {
    uint64_t offset, zeroes; /* ZEROES 0: a sector of BYTE */
    uint8_t byte;
};

struct ring {
    struct rhea_storage *s;
    uint8_t guid[UUID_BYTES];
    uint64_t number; /* of the last entry */
    uint32_t at;     /* where the next one goes */
    uint64_t flushed, last;
};

static struct ring ring_begin(struct rhea_storage *s)
{
    struct ring r = {.s = s, .number = 6};
    CHECK_OK(rhea_storage_size(s, &r.last, &err), &err);
    r.flushed = r.last;
    memset(r.guid, 0x77, sizeof(r.guid));
    return r;
}

static void ring_put(struct ring *r, const uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i += SECTOR) {
        put_bytes(r->s, LOG_AT + r->at, b + i, SECTOR);
        r->at = (r->at + SECTOR) % VHDX_LOG_MIN;
    }
}

/* Returns where the entry is. */
static uint32_t ring_add(struct ring *r, const struct change *changes, size_t n,
                         uint32_t tail)
{
    static uint8_t b[ENTRY_MAX * SECTOR];
    uint32_t here = r->at;
    size_t sectors = (VHDX_LOG_HEAD + n * VHDX_DESC_BYTES - 1) / SECTOR + 1;
    memset(b, 0, sizeof(b));
    r->number++;
    memcpy(b, "loge", 4);
    for (size_t i = 0; i < n; i++) {
        uint8_t *d = b + VHDX_LOG_HEAD + i * VHDX_DESC_BYTES;
        memcpy(d, changes[i].zeroes ? "zero" : "desc", 4);
        store_le64(d + VHDX_D_OFFSET, changes[i].offset);
        store_le64(d + VHDX_D_SEQUENCE, r->number);
        if (changes[i].zeroes) {
            store_le64(d + VHDX_D_ZERO_LENGTH, changes[i].zeroes);
            continue;
        }
        uint8_t *data = b + sectors++ * SECTOR;
        memset(data, changes[i].byte, SECTOR);
        memcpy(d + VHDX_D_LEADING, data, 8);
        memcpy(d + VHDX_D_TRAILING, data, 4);
        memcpy(data, "data", 4);
        store_le32(data + VHDX_S_SEQUENCE_HIGH, (uint32_t)(r->number >> 32));
        store_le32(data + VHDX_S_SEQUENCE_LOW, (uint32_t)r->number);
    }
    store_le32(b + VHDX_E_LENGTH, (uint32_t)(sectors * SECTOR));
    store_le32(b + VHDX_E_TAIL, tail);
    store_le64(b + VHDX_E_SEQUENCE, r->number);
    store_le32(b + VHDX_E_COUNT, (uint32_t)n);
    memcpy(b + VHDX_E_GUID, r->guid, UUID_BYTES);
    store_le64(b + VHDX_E_FLUSHED, r->flushed);
    store_le64(b + VHDX_E_LAST, r->last);
    store_le32(b + VHDX_E_CHECKSUM, crc32c(0, b, sectors * SECTOR));
    ring_put(r, b, sectors * SECTOR);
    return here;
}

static uint32_t ring_add_one(struct ring *r, uint64_t offset, uint8_t byte,
                             uint32_t tail)
{
    const struct change c = {.offset = offset, .byte = byte};
    return ring_add(r, &c, 1, tail);
}

/* The headers name the log. */
static void ring_use(const struct ring *r)
{
    static const uint32_t places[] = {VHDX_HEADER_1, VHDX_HEADER_2};
    for (unsigned i = 0; i < 2; i++) {
        uint8_t b[VHDX_HEADER_BYTES];
        CHECK_OK(rhea_storage_read(r->s, b, sizeof(b), places[i], &err), &err);
        memcpy(b + VHDX_H_LOG_GUID, r->guid, UUID_BYTES);
        store_le32(b + VHDX_H_CHECKSUM,
                   vhdx_checksum(b, sizeof(b), VHDX_H_CHECKSUM));
        put_bytes(r->s, places[i], b, sizeof(b));
    }
}

/* Free space of an image that is made so: after the BAT. */
enum { FREE = 4 << 20 };

static struct rhea_storage *make_roomy(void)
{
    struct rhea_storage *s = vhdx_make(8 << 20, "block_size=1M", NULL);
    CHECK_OK(rhea_storage_truncate(s, FREE + (2 << 20), &err), &err);
    return s;
}

static int open_it(struct rhea_storage *s, unsigned flags,
                   struct rhea_format **f)
{
    return rhea_format_open_over(vhdx_ops(), f, s, flags, &err);
}

/* What is at OFFSET once the log was replayed: by the overlay, and in the
 * file. */
static bool replayed(struct rhea_storage *s, uint64_t offset, uint8_t byte)
{
    struct rhea_format *f;
    struct rhea_storage *copy;
    uint8_t b[SECTOR], want[SECTOR];
    memset(want, byte, sizeof(want));
    CHECK_OK(memory_clone(&copy, s, &err), &err);
    f = vhdx_open_ok(s, 0);
    const struct vhdx *v = (const struct vhdx *)f;
    bool good =
        CHECK_OK(rhea_storage_read_padded(v->image, b, SECTOR, offset, &err),
                 &err) &&
        CHECK_MEM(b, want, SECTOR);
    image_close_ok(f);
    f = vhdx_open_ok(copy, RHEA_FORMAT_WRITE);
    v = (const struct vhdx *)f;
    good = good && CHECK(uuid_is_null(v->header.log_guid));
    image_close_ok(f);
    good = good &&
           CHECK_OK(rhea_storage_read_padded(copy, b, SECTOR, offset, &err),
                    &err) &&
           CHECK_MEM(b, want, SECTOR);
    rhea_storage_close(copy);
    return good;
}

static void the_newest_whole_sequence_is_replayed(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    r.at = 9 * SECTOR;
    uint32_t first = ring_add_one(&r, FREE, 1, 9 * SECTOR);
    ring_add_one(&r, FREE, 2, first);
    ring_add_one(&r, FREE + SECTOR, 3, first);
    ring_use(&r);
    replayed(s, FREE, 2);
    replayed(s, FREE + SECTOR, 3);
    rhea_storage_close(s);
}

static void entries_before_the_tail_are_not_replayed(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    ring_add_one(&r, FREE, 1, 0);
    uint32_t tail = r.at;
    ring_add_one(&r, FREE + SECTOR, 2, tail);
    ring_add_one(&r, FREE + 2 * SECTOR, 3, tail);
    ring_use(&r);
    replayed(s, FREE, 0);
    replayed(s, FREE + SECTOR, 2);
    replayed(s, FREE + 2 * SECTOR, 3);
    rhea_storage_close(s);
}

static void a_gap_ends_a_sequence(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    ring_add_one(&r, FREE, 1, 0);
    r.number++;
    /* Of a number of its own, but its tail is not in its sequence. */
    ring_add_one(&r, FREE, 2, 0);
    ring_use(&r);
    replayed(s, FREE, 1);
    rhea_storage_close(s);
}

static void a_torn_entry_ends_a_sequence(void)
{
    static const uint32_t places[] = {
        0, 8, 16, 24, 70, 90, SECTOR - 1, SECTOR, 2 * SECTOR - 1};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(places); i++) {
        struct rhea_storage *s = make_roomy();
        struct ring r = ring_begin(s);
        uint8_t byte;
        ring_add_one(&r, FREE, 1, 0);
        uint64_t at = LOG_AT + ring_add_one(&r, FREE, 2, 0) + places[i];
        CHECK_OK(rhea_storage_read(s, &byte, 1, at, &err), &err);
        byte ^= 0x10;
        put_bytes(s, at, &byte, 1);
        ring_use(&r);
        replayed(s, FREE, 1);
        rhea_storage_close(s);
    }
}

static void a_sequence_goes_around_the_end_of_the_ring(void)
{
    for (uint32_t before = 1; before < 8; before++) {
        struct rhea_storage *s = make_roomy();
        struct ring r = ring_begin(s);
        r.at = VHDX_LOG_MIN - before * SECTOR;
        uint32_t tail = r.at;
        for (uint8_t i = 1; i < 5; i++)
            ring_add_one(&r, FREE + i * SECTOR, i, tail);
        ring_use(&r);
        for (uint8_t i = 1; i < 5; i++)
            replayed(s, FREE + i * SECTOR, i);
        rhea_storage_close(s);
    }
}

static void a_log_of_another_time_is_not_replayed(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    ring_add_one(&r, FREE, 1, 0);
    memset(r.guid, 0x78, sizeof(r.guid));
    ring_use(&r);
    /* QEMU names a log before it has written to it. */
    struct rhea_format *f = vhdx_open_ok(s, 0);
    CHECK(!((struct vhdx *)f)->overlay);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void large_entries_and_zeroes_are_replayed(void)
{
    static struct change changes[150];
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(changes); i++)
        changes[i] = (struct change){.offset = FREE + i * SECTOR,
                                     .byte = (uint8_t)(i + 1)};
    changes[140].zeroes = 2 * SECTOR;
    changes[140].offset = FREE + 7 * SECTOR;
    /* Later ones win, of sectors and of zeroes. */
    changes[141].offset = FREE + 8 * SECTOR;
    changes[142].zeroes = SECTOR;
    changes[142].offset = FREE + 142 * SECTOR;
    changes[143].offset = FREE + 142 * SECTOR;
    ring_add(&r, changes, RHEA_ARRAY_SIZE(changes), 0);
    ring_use(&r);
    replayed(s, FREE, 1);
    replayed(s, FREE + 6 * SECTOR, 7);
    replayed(s, FREE + 7 * SECTOR, 0);
    replayed(s, FREE + 8 * SECTOR, 142);
    replayed(s, FREE + 139 * SECTOR, 140);
    replayed(s, FREE + 142 * SECTOR, 144);
    rhea_storage_close(s);
}

static void a_replay_makes_the_file_longer(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    uint64_t size;
    r.last += 3 << 20;
    ring_add_one(&r, r.last - SECTOR, 5, 0);
    ring_use(&r);
    replayed(s, r.last - SECTOR, 5);
    image_close_ok(vhdx_open_ok(s, RHEA_FORMAT_WRITE));
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, r.last);
    rhea_storage_close(s);
}

/* Random logs: what the overlay shows is what a replay makes. */
static void an_overlay_is_what_a_replay_makes(void)
{
    for (uint64_t seed = 1; seed < 60; seed++) {
        uint64_t random = seed;
        struct rhea_storage *s = make_roomy(), *copy;
        struct ring r = ring_begin(s);
        uint32_t tail = r.at = (uint32_t)(test_random(&random) % 256) * SECTOR;
        for (uint64_t n = 1 + test_random(&random) % 6; n; n--) {
            struct change changes[20];
            size_t count = test_random(&random) % 20;
            for (size_t i = 0; i < count; i++)
                changes[i] = (struct change){
                    .offset = FREE + test_random(&random) % 64 * SECTOR,
                    .zeroes = test_random(&random) % 4
                                  ? 0
                                  : test_random(&random) % 9 * SECTOR,
                    .byte = (uint8_t)test_random(&random),
                };
            ring_add(&r, changes, count, tail);
        }
        ring_use(&r);
        CHECK_OK(memory_clone(&copy, s, &err), &err);
        image_close_ok(vhdx_open_ok(copy, RHEA_FORMAT_WRITE));
        struct rhea_format *f = vhdx_open_ok(s, 0);
        static uint8_t a[1 << 20], b[1 << 20];
        struct rhea_storage *overlay = ((struct vhdx *)f)->overlay;
        CHECK(overlay != NULL);
        for (unsigned i = 0; overlay && i < 40; i++) {
            uint64_t at = FREE + test_random(&random) % (100 * SECTOR);
            size_t len = 1 + test_random(&random) % (30 * SECTOR);
            CHECK_OK(rhea_storage_read(overlay, a, len, at, &err), &err);
            CHECK_OK(rhea_storage_read(copy, b, len, at, &err), &err);
            if (!CHECK_MEM(a, b, len))
                break;
        }
        image_close_ok(f);
        rhea_storage_close(copy);
        rhea_storage_close(s);
    }
}

static void logs_that_lead_astray_are_refused(void)
{
    static const struct change bad[] = {
        {.offset = 0},                                 /* the identifier */
        {.offset = VHDX_HEADER_1},                     /* a header */
        {.offset = LOG_AT + SECTOR},                   /* the log */
        {.offset = UINT64_C(1) << 60},                 /* anywhere */
        {.offset = FREE, .zeroes = UINT64_C(1) << 50}, /* for long */
        {.offset = INT64_MAX & ~4095, .zeroes = INT64_MAX & ~4095},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        for (unsigned flags = 0; flags <= RHEA_FORMAT_WRITE;
             flags += RHEA_FORMAT_WRITE) {
            struct rhea_storage *s = make_roomy();
            struct ring r = ring_begin(s);
            struct rhea_format *f;
            /* What comes before must not be done either. */
            ring_add_one(&r, FREE, 1, 0);
            ring_add(&r, &bad[i], 1, 0);
            ring_use(&r);
            uint64_t digest = memory_digest(s);
            CHECK_EQ(open_it(s, flags, &f), -EINVAL);
            CHECK(strstr(err.text, "log") != NULL);
            CHECK(memory_digest(s) == digest);
            rhea_storage_close(s);
        }
    }
}

static void a_file_that_was_cut_off_is_not_replayed(void)
{
    struct rhea_storage *s = make_roomy();
    struct ring r = ring_begin(s);
    struct rhea_format *f;
    r.flushed += 1 << 20;
    ring_add_one(&r, FREE, 1, 0);
    ring_use(&r);
    CHECK_EQ(open_it(s, RHEA_FORMAT_WRITE, &f), -EINVAL);
    CHECK(strstr(err.text, "cut off") != NULL);
    rhea_storage_close(s);
    s = make_roomy();
    r = ring_begin(s);
    r.last = UINT64_C(1) << 62;
    ring_add_one(&r, FREE, 1, 0);
    ring_use(&r);
    CHECK_EQ(open_it(s, RHEA_FORMAT_WRITE, &f), -EINVAL);
    rhea_storage_close(s);
}

/* A log of 4 GiB of entries that are almost whole is looked at in a time that
 * grows with it, not faster. */
static void many_entries_take_no_time(void)
{
    struct rhea_storage *s =
        vhdx_make(8 << 20, "block_size=1M log_size=64M", NULL);
    struct ring r = ring_begin(s);
    struct rhea_format *f;
    /* 16,384 in a row whose tail is nowhere. */
    for (uint64_t at = 0; at < 64 << 20; at += VHDX_LOG_MIN) {
        uint8_t b[SECTOR];
        for (unsigned i = 0; i < 256; i++) {
            memset(b, 0, sizeof(b));
            memcpy(b, "loge", 4);
            store_le32(b + VHDX_E_LENGTH, SECTOR);
            store_le32(b + VHDX_E_TAIL, (64 << 20) - SECTOR);
            store_le64(b + VHDX_E_SEQUENCE, ++r.number);
            memcpy(b + VHDX_E_GUID, r.guid, UUID_BYTES);
            store_le32(b + VHDX_E_CHECKSUM, crc32c(0, b, SECTOR));
            put_bytes(s, LOG_AT + at + i * SECTOR, b, SECTOR);
        }
    }
    put_le64(s, LOG_AT + (64 << 20) - SECTOR, 0); /* the last one is none */
    ring_use(&r);
    CHECK_EQ(open_it(s, 0, &f), -EIO);
    CHECK(strstr(err.text, "damaged") != NULL);
    rhea_storage_close(s);
}

/* --- Images -------------------------------------------------------------- */

static void an_image_without_a_log_gets_one(void)
{
    struct rhea_storage *s = vhdx_make(8 << 20, "block_size=1M", NULL);
    uint8_t b[VHDX_HEADER_BYTES], guest[512];
    for (unsigned i = 0; i < 2; i++) {
        uint64_t at = i ? VHDX_HEADER_2 : VHDX_HEADER_1;
        CHECK_OK(rhea_storage_read(s, b, sizeof(b), at, &err), &err);
        store_le32(b + VHDX_H_LOG_LENGTH, 0);
        store_le64(b + VHDX_H_LOG_OFFSET, 0);
        store_le32(b + VHDX_H_CHECKSUM,
                   vhdx_checksum(b, sizeof(b), VHDX_H_CHECKSUM));
        put_bytes(s, at, b, sizeof(b));
    }
    struct rhea_format *f = vhdx_open_ok(s, RHEA_FORMAT_WRITE);
    memset(guest, 7, sizeof(guest));
    CHECK_OK(f->ops->write(f, 0, guest, sizeof(guest), &err), &err);
    CHECK_OK(f->ops->flush(f, &err), &err);
    image_close_ok(f);
    f = vhdx_open_ok(s, RHEA_FORMAT_CHECK);
    const struct vhdx *v = (const struct vhdx *)f;
    CHECK_EQ(v->header.log_length, VHDX_LOG_MIN);
    CHECK(v->header.log_offset >= 4 << 20);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK_OK(image_read(f, guest, sizeof(guest), 0, 0), &err);
    CHECK_EQ(guest[0], 7);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void every_state_means_something_or_is_an_error(void)
{
    static const struct {
        uint64_t entry;
        int ret;
        enum rhea_extent_kind kind;
    } states[] = {
        {0, 0, RHEA_EXTENT_UNALLOCATED},
        {1, 0, RHEA_EXTENT_ZERO},
        {2, 0, RHEA_EXTENT_ZERO},
        {3, 0, RHEA_EXTENT_ZERO},
        {4, -EIO, 0},
        {5, 0, RHEA_EXTENT_ZERO},
        {6 | 4 << 20, 0, RHEA_EXTENT_DATA},
        {7 | 4 << 20, -EIO, 0},
        {6, -EIO, 0},           /* the header */
        {6 | 1 << 20, -EIO, 0}, /* the log */
        {6 | 3 << 20, -EIO, 0}, /* the BAT */
        {6 | 6 << 20, -EIO, 0}, /* past the end */
        {6 | UINT64_C(1) << 60, -EIO, 0},
        {6 | UINT64_MAX << 20, -EIO, 0},
        {2 | 5 << 20, 0, RHEA_EXTENT_ZERO}, /* which it does not need */
    };
    struct rhea_storage *s = make_roomy();
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(states); i++) {
        struct rhea_extent x;
        put_le64(s, 3 << 20, states[i].entry);
        struct rhea_format *f = vhdx_open_ok(s, 0);
        int ret = f->ops->map(f, 512, 1024, &x, &err);
        CHECK_EQ(ret, states[i].ret);
        if (!ret)
            CHECK_EQ(x.kind, states[i].kind);
        image_close_ok(f);
    }
    rhea_storage_close(s);
}

static void runs_of_blocks_are_joined(void)
{
    struct rhea_storage *s = make_roomy();
    struct rhea_format *f = vhdx_open_ok(s, 0);
    struct rhea_extent x;
    CHECK_OK(f->ops->map(f, 0, 8 << 20, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_ZERO);
    CHECK_EQ(x.length, 8 << 20);
    image_close_ok(f);
    put_le64(s, (3 << 20) + 8, 6 | 4 << 20);
    put_le64(s, (3 << 20) + 16, 6 | 5 << 20);
    put_le64(s, (3 << 20) + 24, 6 | 6 << 20); /* past the end */
    f = vhdx_open_ok(s, 0);
    CHECK_OK(f->ops->map(f, (1 << 20) + 512, 7 << 20, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_DATA);
    CHECK_EQ(x.host, (4 << 20) + 512);
    CHECK(x.length >= (1 << 20) - 512 && x.length <= (2 << 20) - 512);
    CHECK_OK(f->ops->map(f, 2 << 20, 6 << 20, &x, &err), &err);
    CHECK_EQ(f->ops->map(f, 3 << 20, 5 << 20, &x, &err), -EIO);
    image_close_ok(f);
    rhea_storage_close(s);
}

/* A chunk of 4 GiB ends with the entry of its bitmap. */
static void bitmaps_lie_between_the_blocks_of_chunks(void)
{
    struct rhea_storage *s =
        vhdx_make(UINT64_C(9) << 30, "block_size=32M", NULL);
    struct rhea_format *f = vhdx_open_ok(s, RHEA_FORMAT_WRITE);
    const struct vhdx *v = (const struct vhdx *)f;
    uint8_t guest[512];
    CHECK_EQ(v->ratio_bits, 7);
    memset(guest, 9, sizeof(guest));
    for (uint64_t at = 127; at < 130; at++)
        CHECK_OK(f->ops->write(f, at * (32 << 20), guest, sizeof(guest), &err),
                 &err);
    CHECK_OK(f->ops->flush(f, &err), &err);
    CHECK_EQ(get_le64(s, (3 << 20) + 127 * 8) & 7, 6);
    CHECK_EQ(get_le64(s, (3 << 20) + 128 * 8), 0);
    CHECK_EQ(get_le64(s, (3 << 20) + 129 * 8) & 7, 6);
    CHECK_EQ(get_le64(s, (3 << 20) + 130 * 8) & 7, 6);
    CHECK_EQ(get_le64(s, (3 << 20) + 131 * 8), 2);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void identities_change_with_the_first_write(void)
{
    struct rhea_storage *s = vhdx_make(8 << 20, "block_size=1M", NULL);
    uint8_t guest[512] = {1};
    struct rhea_format *f = vhdx_open_ok(s, RHEA_FORMAT_WRITE);
    const struct vhdx *v = (const struct vhdx *)f;
    struct vhdx_header before = v->header, after;
    CHECK_OK(f->ops->flush(f, &err), &err);
    CHECK_EQ(v->header.sequence, before.sequence);
    CHECK_OK(f->ops->write(f, 0, guest, sizeof(guest), &err), &err);
    after = v->header;
    CHECK_EQ(after.sequence, before.sequence + 2);
    CHECK(!uuid_equal(after.file_write, before.file_write));
    CHECK(!uuid_equal(after.data_write, before.data_write));
    CHECK_OK(f->ops->renew_identity(f, &err), &err);
    CHECK_OK(f->ops->write(f, 0, guest, sizeof(guest), &err), &err);
    CHECK_EQ(v->header.sequence, after.sequence);
    image_close_ok(f);
    /* Once more for each time it is opened. */
    f = vhdx_open_ok(s, RHEA_FORMAT_WRITE);
    v = (const struct vhdx *)f;
    CHECK(uuid_equal(v->header.data_write, after.data_write));
    CHECK_OK(f->ops->write(f, 0, guest, sizeof(guest), &err), &err);
    CHECK(!uuid_equal(v->header.data_write, after.data_write));
    image_close_ok(f);
    rhea_storage_close(s);
}

static void parent_locators_are_bounded(void)
{
    struct vhdx_locator l = {0};
    RHEA_AUTO_FREE uint8_t *b = NULL;
    uint8_t linkage[UUID_BYTES] = {1};
    size_t len;
    CHECK_OK(vhdx_locator_build("../a/b.vhdx", linkage, &b, &len, &err), &err);
    CHECK_OK(vhdx_locator_parse(&l, b, len, &err), &err);
    CHECK_STR(l.relative, "..\\a\\b.vhdx");
    CHECK(l.posix == NULL);
    CHECK_MEM(l.linkage, linkage, UUID_BYTES);
    vhdx_locator_finish(&l);
    for (size_t cut = VHDX_L_ENTRIES; cut < len; cut++) {
        CHECK_EQ(vhdx_locator_parse(&l, b, cut, &err), -EINVAL);
        vhdx_locator_finish(&l);
    }
    store_le16(b + VHDX_L_COUNT, 0);
    CHECK_EQ(vhdx_locator_parse(&l, b, len, &err), -EINVAL);
    store_le16(b + VHDX_L_COUNT, 0xffff);
    CHECK_EQ(vhdx_locator_parse(&l, b, len, &err), -EINVAL);
    b[0] ^= 1;
    CHECK_EQ(vhdx_locator_parse(&l, b, len, &err), -ENOTSUP);
    vhdx_locator_finish(&l);
    static const char *const bad[] = {"nbd://host/x", "json:{}", "a\\b", "a/",
                                      "\xff.vhdx"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        uint8_t *none = NULL;
        CHECK(vhdx_locator_build(bad[i], linkage, &none, &len, &err) < 0);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(the_newest_whole_sequence_is_replayed);
    TEST(entries_before_the_tail_are_not_replayed);
    TEST(a_gap_ends_a_sequence);
    TEST(a_torn_entry_ends_a_sequence);
    TEST(a_sequence_goes_around_the_end_of_the_ring);
    TEST(a_log_of_another_time_is_not_replayed);
    TEST(large_entries_and_zeroes_are_replayed);
    TEST(a_replay_makes_the_file_longer);
    TEST(an_overlay_is_what_a_replay_makes);
    TEST(logs_that_lead_astray_are_refused);
    TEST(a_file_that_was_cut_off_is_not_replayed);
    TEST(many_entries_take_no_time);
    TEST(an_image_without_a_log_gets_one);
    TEST(every_state_means_something_or_is_an_error);
    TEST(runs_of_blocks_are_joined);
    TEST(bitmaps_lie_between_the_blocks_of_chunks);
    TEST(identities_change_with_the_first_write);
    TEST(parent_locators_are_bounded);
    return test_finish();
}
