/* SPDX-License-Identifier: MIT */
/*
 * A disk that grows is zeroes behind its old end, also where the image's tables
 * had something there that nobody could see: another program may have made the
 * disk smaller by nothing but its size in the header, or its tables have more
 * entries than the disk needs. In every format with tables.
 */
#include "format/parallels/hds.h"
#include "format/qcow1.h"
#include "format/qcow2/qcow2.h"
#include "format/qed.h"
#include "format/vhdx/vhdx.h"
#include "format/vmdk/header.h"
#include "format/vpc/vpc.h"
#include "image_lib.h"

enum {
    MIB = 1 << 20,
    SECTOR = 512,
    PIECE = 64 << 10,
    FULL = 16 * MIB,              /* at first */
    SMALL = 5 * MIB + 3 * SECTOR, /* as the header has it then */
    VDI_DISK_SIZE = 368,          /* where a header of version 1.1 has it */
};

/* --- What the header says ------------------------------------------------ */

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
    struct rhea_format *f = image_open_ok(rhea_format_find("vhdx"), s, 0);
    const struct vhdx *v = (const struct vhdx *)f;
    uint64_t at = v->metadata.items[VHDX_ITEM_SIZE].offset;
    image_close_ok(f);
    put_le64(s, at, SMALL);
}

static void vmdk_shrink(struct rhea_storage *s)
{
    put_le64(s, HOSTED_H_CAPACITY, SMALL / SECTOR);
}

static void vpc_shrink(struct rhea_storage *s)
{
    struct rhea_format *f = image_open_ok(rhea_format_find("vpc"), s, 0);
    struct vpc *v = (struct vpc *)f;
    uint8_t footer[VPC_FOOTER];
    uint64_t file_size = v->found.file_size;
    vpc_put_size(v, SMALL);
    memcpy(footer, v->footer, VPC_FOOTER);
    image_close_ok(f);
    CHECK_OK(rhea_storage_write(s, footer, VPC_FOOTER, 0, &err), &err);
    CHECK_OK(
        rhea_storage_write(s, footer, VPC_FOOTER, file_size - VPC_FOOTER, &err),
        &err);
}

static const struct subject {
    const char *format;
    const char *options;
    void (*shrink)(struct rhea_storage *s);
} subjects[] = {
    {"parallels", "cluster_size=64k", parallels_shrink},
    {"qcow", "", qcow1_shrink},
    {"qcow2", "cluster_size=4k", qcow2_shrink},
    {"qed", "cluster_size=4k", qed_shrink},
    {"vdi", "", vdi_shrink},
    {"vhdx", "block_size=1M", vhdx_say_smaller},
    {"vmdk", "", vmdk_shrink},
    {"vpc", "", vpc_shrink},
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
    const struct rhea_create how = {.size = FULL};
    struct rhea_storage *s = image_make(ops, how, t->options);
    struct rhea_format *f = image_open_ok(ops, s, RHEA_FORMAT_WRITE);
    for (uint64_t at = 0; at < FULL; at += PIECE) {
        memset(bytes, byte_at(at), PIECE);
        if (is_written(at))
            CHECK_OK(ops->write(f, at, bytes, PIECE, &err), &err);
    }
    image_close_ok(f);
    t->shrink(s);
    return s;
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
        if (!CHECK_OK(image_read(f, have, (size_t)len, at, 0), &err) ||
            !CHECK_MEM(have, want, (size_t)len)) {
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
    struct rhea_storage *s = make(t);
    struct rhea_format *f = image_open_ok(ops, s, RHEA_FORMAT_WRITE);
    CHECK_EQ(f->size, SMALL);
    CHECK_OK(ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, size);
    guest_is_good(f);
    image_close_ok(f);
    f = image_open_ok(ops, s, RHEA_FORMAT_CHECK);
    CHECK_EQ(f->size, size);
    guest_is_good(f);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.errors, 0);
    image_close_ok(f);
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
        struct rhea_format *f = image_open_ok(ops, s, RHEA_FORMAT_WRITE);
        const uint64_t sizes[] = {SMALL + SECTOR, 8 * MIB + SECTOR, FULL};
        for (size_t k = 0; k < RHEA_ARRAY_SIZE(sizes); k++) {
            const struct rhea_resize how = {.size = sizes[k]};
            CHECK_OK(ops->resize(f, &how, &err), &err);
            guest_is_good(f);
        }
        image_close_ok(f);
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
