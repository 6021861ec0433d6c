/* SPDX-License-Identifier: MIT */
/*
 * VHDX images: every call that the driver has. An input is a recipe, for an
 * image has megabytes and checksums in many places: options, guest writes, then
 * damage to headers, tables and metadata whose checksums are put right again
 * more often than not, and a log that is made up.
 */
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "format/vhdx/vhdx.h"
#include "fuzz.h"
#include "reader.h"

enum { WRITES = 8, DAMAGES = 10, ENTRIES = 6, DESCRIPTORS = 20 };

/* --- A sound image ------------------------------------------------------- */

static struct rhea_format *recipe_parent(const struct rhea_format_ops *format)
{
    static struct rhea_storage *base;
    static struct rhea_format *parent;
    const struct rhea_option options[] = {{"block_size", "1M"}};
    const struct rhea_create how = {
        .size = FUZZ_BASE_SIZE, .options = options, .n_options = 1};
    if (parent)
        return parent;
    FUZZ_REQUIRE(!rhea_memory_open(&base, INT64_MAX, NULL) &&
                     !format->create(base, &how, NULL) &&
                     !rhea_format_open_over(format, &parent, base, 0, NULL),
                 "parent");
    return parent;
}

static struct rhea_storage *recipe_create(const struct rhea_format_ops *format,
                                          struct fuzz_input *in)
{
    static const char *const blocks[] = {"1M", "1M", "1M", "2M", "32M", "256M"};
    static const uint64_t sizes[] = {0,
                                     4096,
                                     1 << 20,
                                     5 << 20,
                                     19 << 20,
                                     UINT64_C(9) << 30,
                                     UINT64_C(2) << 40};
    struct rhea_option options[4] = {
        {"block_size", blocks[fuzz_below(in, RHEA_ARRAY_SIZE(blocks))]}};
    struct rhea_create how = {.options = options, .n_options = 1};
    uint8_t kind = fuzz_u8(in);
    how.size = sizes[fuzz_below(in, RHEA_ARRAY_SIZE(sizes))];
    how.size += (uint64_t)fuzz_u8(in) * 4096;
    if (kind & 1) {
        how.backing_file = FUZZ_BASE_NAME;
        how.parent = recipe_parent(format);
    } else if (kind & 2) {
        options[how.n_options++] =
            (struct rhea_option){"logical_sector_size", "4096"};
    }
    if (kind & 4)
        options[how.n_options++] =
            (struct rhea_option){"block_state_zero", "off"};
    if ((kind & 25) == 24 && how.size < 100 << 20)
        options[how.n_options++] = (struct rhea_option){"subformat", "fixed"};
    struct rhea_storage *s;
    FUZZ_REQUIRE(!rhea_memory_open(&s, UINT64_C(1) << 46, NULL), "memory");
    FUZZ_REQUIRE(!format->create(s, &how, NULL), "create");
    return s;
}

static void recipe_write(const struct rhea_format_ops *format,
                         struct rhea_storage *s, struct fuzz_input *in)
{
    static uint8_t buf[64 << 10];
    struct rhea_format *f;
    struct rhea_error err;
    int ret = rhea_format_open_over(format, &f, s, RHEA_FORMAT_WRITE, &err);
    FUZZ_REQUIRE(!ret, "what was created does not open: %s", err.text);
    for (unsigned n = fuzz_u8(in) % WRITES; n && f->size; n--) {
        uint64_t unit = fuzz_u8(in) & 1 ? 512 : 1 << 20;
        uint64_t offset = fuzz_u16(in) * unit % f->size;
        size_t len = (size_t)fuzz_u8(in) % 128 * 512 + fuzz_u8(in) + 1;
        len = (size_t)RHEA_MIN(len, f->size - offset);
        fuzz_fill(buf, len, offset);
        if (fuzz_u8(in) & 3)
            format->write(f, offset, buf, len, NULL);
        else
            format->write_zeroes(
                f, offset, RHEA_MIN(len * 32, f->size - offset), false, NULL);
    }
    ret = format->close(f, &err);
    FUZZ_REQUIRE(!ret, "closing: %s", err.text);
}

/* --- Damage -------------------------------------------------------------- */

struct place {
    uint64_t offset;
    uint32_t length; /* where its fields are */
    uint32_t sum;    /* bytes under a checksum at 4; 0: there is none */
};

/* Where the tables of images of the driver's own making are. */
static const struct place places[] = {
    {0, 16, 0},
    {VHDX_HEADER_1, 80, VHDX_HEADER_BYTES},
    {VHDX_HEADER_2, 80, VHDX_HEADER_BYTES},
    {VHDX_REGIONS_1, 112, VHDX_REGIONS_BYTES},
    {VHDX_REGIONS_2, 112, VHDX_REGIONS_BYTES},
    {2 << 20, 256, 0},                     /* metadata table */
    {(2 << 20) + (64 << 10), 48, 0},       /* items */
    {(2 << 20) + (64 << 10) + 48, 200, 0}, /* parent locator */
    {3 << 20, 64, 0},                      /* BAT */
    {3 << 20, 64, 0},
    {(3 << 20) + 4096 * 8, 64, 0}, /* that of a bitmap */
};

static void damage_sum(struct rhea_storage *s, const struct place *p)
{
    static uint8_t b[VHDX_REGIONS_BYTES];
    uint8_t sum[4];
    if (!p->sum || rhea_storage_read_padded(s, b, p->sum, p->offset, NULL))
        return;
    store_le32(sum, vhdx_checksum(b, p->sum, 4));
    rhea_storage_write(s, sum, sizeof(sum), p->offset + 4, NULL);
}

static uint64_t damage_value(struct fuzz_input *in)
{
    static const uint64_t some[] = {
        0,          1,          2,         7,
        512,        4096,       1 << 20,   (1 << 20) | 6,
        UINT32_MAX, UINT64_MAX, INT64_MAX, UINT64_C(1) << 44,
        64 << 10,   256 << 20,  63,        0x8000000000000007,
    };
    switch (fuzz_u8(in) % 4) {
    case 0:
        return some[fuzz_below(in, RHEA_ARRAY_SIZE(some))];
    case 1: /* an entry of the BAT */
        return (uint64_t)(fuzz_u8(in) % 20) << 20 | fuzz_u8(in) % 8;
    case 2:
        return fuzz_u64(in);
    default:
        return fuzz_u8(in);
    }
}

static void damage_once(struct rhea_storage *s, struct fuzz_input *in)
{
    const struct place *p = &places[fuzz_below(in, RHEA_ARRAY_SIZE(places))];
    uint8_t word[8];
    size_t width = (size_t)1 << fuzz_u8(in) % 4;
    uint64_t at = fuzz_u8(in) % (p->length / width) * width;
    store_le64(word, damage_value(in));
    FUZZ_TRACE("%zu bytes at %" PRIu64, width, p->offset + at);
    rhea_storage_write(s, word, width, p->offset + at, NULL);
    if (fuzz_u8(in) & 7)
        damage_sum(s, p);
}

/* --- A log --------------------------------------------------------------- */

struct log {
    struct rhea_storage *s;
    uint64_t offset;
    uint8_t guid[UUID_BYTES];
    uint64_t number;
    uint32_t at, first;
};

/* Around the ring's end, too. */
static void log_put(const struct log *l, uint32_t at, const uint8_t *b)
{
    rhea_storage_write(l->s, b, VHDX_LOG_SECTOR, l->offset + at % VHDX_LOG_MIN,
                       NULL);
}

static uint64_t log_target(struct fuzz_input *in)
{
    const struct place *p = &places[fuzz_below(in, RHEA_ARRAY_SIZE(places))];
    uint64_t by = fuzz_u8(in);
    return align_down(p->offset, VHDX_LOG_SECTOR) +
           (by < 200 ? 0 : by * VHDX_LOG_SECTOR);
}

static void log_entry(struct log *l, struct fuzz_input *in)
{
    static uint8_t b[(DESCRIPTORS + 1) * VHDX_LOG_SECTOR];
    uint32_t n = fuzz_u8(in) % DESCRIPTORS, sectors = 1;
    uint8_t kind = fuzz_u8(in);
    memset(b, 0, sizeof(b));
    memcpy(b, "loge", 4);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *d = b + VHDX_LOG_HEAD + i * VHDX_DESC_BYTES;
        uint8_t *data = b + sectors * VHDX_LOG_SECTOR;
        bool zero = fuzz_u8(in) > 200;
        memcpy(d, zero ? "zero" : "desc", 4);
        store_le64(d + VHDX_D_OFFSET, log_target(in));
        store_le64(d + VHDX_D_SEQUENCE, l->number);
        if (zero) {
            store_le64(d + VHDX_D_ZERO_LENGTH,
                       (uint64_t)fuzz_u8(in) * VHDX_LOG_SECTOR
                           << fuzz_u8(in) % 50);
            continue;
        }
        /* What is there already, with one word changed. */
        rhea_storage_read_padded(l->s, data, VHDX_LOG_SECTOR,
                                 load_le64(d + VHDX_D_OFFSET), NULL);
        store_le64(data + fuzz_u8(in) % 32 * 8, damage_value(in));
        memcpy(d + VHDX_D_LEADING, data, 8);
        memcpy(d + VHDX_D_TRAILING, data + VHDX_S_SEQUENCE_LOW, 4);
        memcpy(data, "data", 4);
        store_le32(data + 4, (uint32_t)(l->number >> 32));
        store_le32(data + VHDX_S_SEQUENCE_LOW, (uint32_t)l->number);
        sectors++;
    }
    uint64_t size = fuzz_size(l->s);
    store_le32(b + VHDX_E_LENGTH, sectors * VHDX_LOG_SECTOR);
    store_le32(b + VHDX_E_TAIL, kind & 1   ? l->at % VHDX_LOG_MIN
                                : kind & 2 ? l->first
                                           : fuzz_u8(in) * VHDX_LOG_SECTOR);
    store_le64(b + VHDX_E_SEQUENCE, l->number);
    store_le32(b + VHDX_E_COUNT, n);
    memcpy(b + VHDX_E_GUID, l->guid, UUID_BYTES);
    store_le64(b + VHDX_E_FLUSHED, kind & 4 ? size : 0);
    store_le64(b + VHDX_E_LAST,
               kind & 8 ? fuzz_u64(in) >> fuzz_u8(in) % 64 : size);
    for (uint8_t k = kind >> 6; k == 3 && fuzz_u8(in) & 1;)
        b[fuzz_u16(in) % (sectors * VHDX_LOG_SECTOR)] ^= fuzz_u8(in);
    store_le32(b + VHDX_E_CHECKSUM, 0);
    store_le32(b + VHDX_E_CHECKSUM,
               crc32c(0, b, (size_t)sectors * VHDX_LOG_SECTOR) ^
                   (kind == 0x10));
    for (uint32_t i = 0; i < sectors; i++)
        log_put(l, l->at + i * VHDX_LOG_SECTOR, b + i * VHDX_LOG_SECTOR);
    l->at += sectors * VHDX_LOG_SECTOR;
    l->number += kind == 0x20 ? 2 : 1;
}

static void log_make(struct rhea_storage *s, struct fuzz_input *in)
{
    struct log l = {.s = s, .offset = 1 << 20};
    memset(l.guid, 0x5a, sizeof(l.guid));
    l.number = 1 + fuzz_u8(in);
    l.at = l.first = (uint32_t)fuzz_u8(in) * VHDX_LOG_SECTOR;
    for (unsigned n = fuzz_u8(in) % ENTRIES + 1; n; n--)
        log_entry(&l, in);
    for (unsigned i = 1; i <= 2; i++) {
        rhea_storage_write(s, l.guid, UUID_BYTES,
                           places[i].offset + VHDX_H_LOG_GUID, NULL);
        damage_sum(s, &places[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct rhea_format_ops *format = rhea_format_find("vhdx");
    struct fuzz_input in = {data, size};
    uint64_t seed = size;
    struct rhea_storage *s = recipe_create(format, &in);
    recipe_write(format, s, &in);
    uint8_t kind = fuzz_u8(&in);
    for (unsigned n = kind & 1 ? fuzz_u8(&in) % DAMAGES : 0; n; n--)
        damage_once(s, &in);
    if (kind & 2)
        log_make(s, &in);
    if ((kind & 28) == 28)
        rhea_storage_truncate(s, fuzz_u64(&in) % (fuzz_size(s) + 1), NULL);
    for (size_t i = size < 8 ? 0 : size - 8; i < size; i++)
        seed = seed << 8 ^ seed >> 56 ^ data[i];
    reader_run(format, s, seed);
    rhea_storage_close(s);
    return 0;
}
