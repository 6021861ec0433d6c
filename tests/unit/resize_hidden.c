/* SPDX-License-Identifier: MIT */
/*
 * A disk that grows is zeroes behind its old end, also where the image's tables
 * had something there that nobody could see: another program may have made the
 * disk smaller by nothing but its size in the header, or its tables have more
 * entries than the disk needs. In every format with tables.
 */
#include <rhea/format.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/parallels/hds.h"
#include "format/qcow1.h"
#include "format/qcow2/qcow2.h"
#include "format/qed.h"
#include "format/vhdx/vhdx.h"
#include "format/vmdk/header.h"
#include "format/vpc/vpc.h"
#include "lib/test.h"

enum {
    MIB = 1 << 20,
    SECTOR = 512,
    PIECE = 64 << 10,
    FULL = 16 * MIB,              /* at first */
    SMALL = 5 * MIB + 3 * SECTOR, /* as the header has it then */
    VDI_DISK_SIZE = 368,          /* where a header of version 1.1 has it */
};

static struct rhea_error err;

static struct rhea_format *open_ok(const struct rhea_format_ops *ops,
                                   struct rhea_storage *s, unsigned flags)
{
    struct rhea_format *f;
    if (!CHECK_OK(rhea_format_open_over(ops, &f, s, flags, &err), &err))
        exit(99);
    return f;
}

static void close_ok(struct rhea_format *f)
{
    CHECK_OK(f->ops->close(f, &err), &err);
}

/* --- What the header says ------------------------------------------------ */

static void put_le64(struct rhea_storage *s, uint64_t at, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 8, at, &err), &err);
}

static void put_be64(struct rhea_storage *s, uint64_t at, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    CHECK_OK(rhea_storage_write(s, bytes, 8, at, &err), &err);
}

static void parallels_shrink(struct rhea_storage *s)
{
    put_le64(s, HDS_H_SECTORS, SMALL / SECTOR);
}

static void qcow1_shrink(struct rhea_storage *s)
{
    put_be64(s, QCOW1_H_SIZE, SMALL);
}

static void qcow2_shrink(struct rhea_storage *s)
{
    put_be64(s, QCOW2_AT_SIZE, SMALL);
}

static void qed_shrink(struct rhea_storage *s)
{
    put_le64(s, QED_H_IMAGE_SIZE, SMALL);
}

static void vdi_shrink(struct rhea_storage *s)
{
    put_le64(s, VDI_DISK_SIZE, SMALL);
}

static void vhdx_say_smaller(struct rhea_storage *s)
{
    struct rhea_format *f = open_ok(rhea_format_find("vhdx"), s, 0);
    const struct vhdx *v = (const struct vhdx *)f;
    uint64_t at = v->metadata.items[VHDX_ITEM_SIZE].offset;
    close_ok(f);
    put_le64(s, at, SMALL);
}

static void vmdk_shrink(struct rhea_storage *s)
{
    put_le64(s, HOSTED_H_CAPACITY, SMALL / SECTOR);
}

static void vpc_shrink(struct rhea_storage *s)
{
    struct rhea_format *f = open_ok(rhea_format_find("vpc"), s, 0);
    struct vpc *v = (struct vpc *)f;
    uint8_t footer[VPC_FOOTER];
    uint64_t file_size = v->found.file_size;
    vpc_put_size(v, SMALL);
    memcpy(footer, v->footer, VPC_FOOTER);
    close_ok(f);
    CHECK_OK(rhea_storage_write(s, footer, VPC_FOOTER, 0, &err), &err);
    CHECK_OK(
        rhea_storage_write(s, footer, VPC_FOOTER, file_size - VPC_FOOTER, &err),
        &err);
}

static const struct subject {
    const char *format;
    struct rhea_option option;
    void (*shrink)(struct rhea_storage *s);
} subjects[] = {
    {"parallels", {"cluster_size", "64k"}, parallels_shrink},
    {"qcow", {NULL, NULL}, qcow1_shrink},
    {"qcow2", {"cluster_size", "4k"}, qcow2_shrink},
    {"qed", {"cluster_size", "4k"}, qed_shrink},
    {"vdi", {NULL, NULL}, vdi_shrink},
    {"vhdx", {"block_size", "1M"}, vhdx_say_smaller},
    {"vmdk", {NULL, NULL}, vmdk_shrink},
    {"vpc", {NULL, NULL}, vpc_shrink},
};

/* --- What the guest has -------------------------------------------------- */

/* The beginning of each MiB; the smaller disk ends inside of one. */
static bool is_written(uint64_t at)
{
    return at % MIB < PIECE;
}

static uint8_t byte_at(uint64_t at)
{
    return (uint8_t)(1 + at / PIECE % 255);
}

static struct rhea_storage *make(const struct subject *t)
{
    static uint8_t bytes[PIECE];
    const struct rhea_format_ops *ops = rhea_format_find(t->format);
    const struct rhea_create how = {
        .size = FULL,
        .options = &t->option,
        .n_options = t->option.name ? 1 : 0,
    };
    struct rhea_storage *s;
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err) ||
        !CHECK_OK(ops->create(s, &how, &err), &err))
        exit(99);
    struct rhea_format *f = open_ok(ops, s, RHEA_FORMAT_WRITE);
    for (uint64_t at = 0; at < FULL; at += PIECE) {
        memset(bytes, byte_at(at), PIECE);
        if (is_written(at))
            CHECK_OK(ops->write(f, at, bytes, PIECE, &err), &err);
    }
    close_ok(f);
    t->shrink(s);
    return s;
}

static void read_ok(struct rhea_format *f, uint64_t at, uint8_t *buf,
                    uint64_t len)
{
    while (len) {
        struct rhea_extent x = {0};
        if (!CHECK_OK(f->ops->map(f, at, len, &x, &err), &err))
            exit(99);
        memset(buf, 0, (size_t)x.length);
        if (x.kind == RHEA_EXTENT_DATA)
            CHECK_OK(rhea_storage_read_padded(x.storage, buf, (size_t)x.length,
                                              x.host, &err),
                     &err);
        at += x.length;
        buf += x.length;
        len -= x.length;
    }
}

static bool guest_is_good(struct rhea_format *f)
{
    static uint8_t have[PIECE], want[PIECE];
    for (uint64_t at = 0; at < f->size; at += PIECE) {
        uint64_t len = RHEA_MIN((uint64_t)PIECE, f->size - at);
        uint64_t old = at < SMALL && is_written(at)
                           ? RHEA_MIN((uint64_t)PIECE, SMALL - at)
                           : 0;
        memset(want, 0, PIECE);
        memset(want, byte_at(at), (size_t)old);
        read_ok(f, at, have, len);
        if (!CHECK_MEM(have, want, (size_t)len)) {
            printf("# %s, guest offset %" PRIu64 "\n", f->ops->name, at);
            return false;
        }
    }
    return true;
}

static void grow(const struct subject *t, uint64_t size)
{
    const struct rhea_format_ops *ops = rhea_format_find(t->format);
    const struct rhea_resize how = {.size = size};
    struct rhea_check check = {0};
    struct rhea_storage *s = make(t);
    struct rhea_format *f = open_ok(ops, s, RHEA_FORMAT_WRITE);
    CHECK_EQ(f->size, SMALL);
    CHECK_OK(ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, size);
    guest_is_good(f);
    close_ok(f);
    f = open_ok(ops, s, RHEA_FORMAT_CHECK);
    CHECK_EQ(f->size, size);
    guest_is_good(f);
    CHECK_OK(ops->check(f, 0, &check, &err), &err);
    CHECK_EQ(check.corruptions + check.errors, 0);
    close_ok(f);
    rhea_storage_close(s);
}

/* --- */

static void nothing_shows_that_the_tables_had(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(subjects); i++)
        grow(&subjects[i], 9 * MIB + SECTOR);
}

static void nothing_shows_where_the_tables_grow(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(subjects); i++)
        grow(&subjects[i], UINT64_C(40) * MIB);
}

static void nothing_shows_when_it_grows_twice(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(subjects); i++) {
        const struct rhea_format_ops *ops =
            rhea_format_find(subjects[i].format);
        struct rhea_storage *s = make(&subjects[i]);
        struct rhea_format *f = open_ok(ops, s, RHEA_FORMAT_WRITE);
        const uint64_t sizes[] = {SMALL + SECTOR, 8 * MIB + SECTOR, FULL};
        for (size_t k = 0; k < RHEA_ARRAY_SIZE(sizes); k++) {
            const struct rhea_resize how = {.size = sizes[k]};
            CHECK_OK(ops->resize(f, &how, &err), &err);
            guest_is_good(f);
        }
        close_ok(f);
        rhea_storage_close(s);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(nothing_shows_that_the_tables_had);
    TEST(nothing_shows_where_the_tables_grow);
    TEST(nothing_shows_when_it_grows_twice);
    return test_finish();
}
