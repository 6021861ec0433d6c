/* SPDX-License-Identifier: MIT */
/* The parts of the VHD driver that compute: sizes and geometries, footers,
 * names. */
#include <errno.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vpc/vpc.h"
#include "vpc_lib.h"

static void a_geometry_is_not_larger_than_the_disk(void)
{
    uint64_t random = 1, largest = vpc_geometry_bytes(&vpc_geometry_max);
    for (unsigned i = 0; i < 20000; i++) {
        struct vpc_geometry g;
        uint64_t size = test_random(&random) >> test_random(&random) % 40;
        size = align_down(size % (UINT64_C(3) << 40), 512);
        vpc_geometry_for(size, &g);
        uint64_t bytes = vpc_geometry_bytes(&g);
        uint64_t cylinder = (uint64_t)g.heads * g.sectors * 512;
        CHECK(bytes <= size);
        /* Nor is more than a cylinder left over, and a few sectors that a head
         * has not. */
        if (size <= largest)
            CHECK(size - bytes < 2 * cylinder);
    }
}

/* From the specification's appendix, worked out by hand. */
static void geometries_of_known_disks(void)
{
    static const struct {
        uint64_t sectors;
        struct vpc_geometry g;
    } known[] = {
        {0, {0, 4, 17}},
        {68, {1, 4, 17}},
        {4 * 17 * 1024 - 1, {1023, 4, 17}},
        {4 * 17 * 1024 + 17, {819, 5, 17}},
        {16 * 17 * 1024, {561, 16, 31}},
        {16 * 31 * 1024, {503, 16, 63}},
        {65535 * 16 * 63 - 1, {65534, 16, 63}},
        {65535 * 16 * 63, {16191, 16, 255}},
        {65535 * 16 * 255 + 99, {65535, 16, 255}},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(known); i++) {
        struct vpc_geometry g;
        vpc_geometry_for(known[i].sectors * 512, &g);
        CHECK_EQ(g.cylinders, known[i].g.cylinders);
        CHECK_EQ(g.heads, known[i].g.heads);
        CHECK_EQ(g.sectors, known[i].g.sectors);
    }
}

static void shapes_keep_their_rules(void)
{
    uint64_t random = 2;
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t size = test_random(&random) % (UINT64_C(200) << 30);
        struct vpc_shape s;
        uint8_t footer[VPC_FOOTER] = {0};
        uint64_t read;
        bool chs;
        for (enum vpc_rule r = VPC_VIRTUAL_PC; r <= VPC_XENSERVER; r++) {
            CHECK_OK(vpc_shape_for(size, r, false, VPC_DYNAMIC, &s, &err),
                     &err);
            CHECK(s.size >= size && s.size % 512 == 0);
            CHECK(r != VPC_AZURE || s.size % (1 << 20) == 0);
            CHECK(r != VPC_XENSERVER || s.size % (2 << 20) == 0);
            CHECK(r != VPC_HYPER_V || s.size - size < 512);
            vpc_shape_put(&s, footer);
            CHECK_OK(vpc_size_of(footer, NULL, &read, &chs, &err), &err);
            CHECK_EQ(read, s.size);
            /* Whoever goes by the geometry sees the same of ours. */
            CHECK_OK(vpc_size_of(footer, "chs", &read, &chs, &err), &err);
            if (r == VPC_VIRTUAL_PC)
                CHECK_EQ(read, s.size);
        }
        CHECK_OK(vpc_shape_for(size, VPC_VIRTUAL_PC, true, VPC_DIFFERENCING, &s,
                               &err),
                 &err);
        CHECK_EQ(s.size, align_up(size, 512));
    }
    struct vpc_shape s;
    CHECK_EQ(vpc_shape_for(VPC_MAX_SIZE + 512, VPC_HYPER_V, false, VPC_FIXED,
                           &s, &err),
             -EFBIG);
    CHECK_OK(vpc_shape_for(VPC_MAX_SIZE + 512, VPC_AZURE, false, VPC_FIXED, &s,
                           &err),
             &err);
    CHECK_EQ(vpc_shape_for(VPC_MAX_SIZE + 512, VPC_AZURE, false, VPC_DYNAMIC,
                           &s, &err),
             -EFBIG);
    CHECK_EQ(vpc_shape_for(512, VPC_AZURE, true, VPC_FIXED, &s, &err), -EINVAL);
}

static void a_footer_that_was_hidden_is_good(void)
{
    uint8_t f[VPC_FOOTER] = {0};
    store_be64(f, VPC_COOKIE);
    memcpy(f + VPC_F_CREATOR, "tap", 4);
    store_be32(f + VPC_F_CREATOR_VERSION, 0x00010001);
    CHECK(!vpc_footer_is_good(f));
    vpc_footer_seal(f);
    CHECK(vpc_footer_is_good(f));
    f[VPC_F_HIDDEN] = 1;
    CHECK(vpc_footer_is_good(f));
    store_be32(f + VPC_F_CREATOR_VERSION, 0x00010003);
    CHECK(!vpc_footer_is_good(f));
    vpc_footer_seal(f);
    CHECK(vpc_footer_is_good(f));
    f[300] ^= 1;
    CHECK(!vpc_footer_is_good(f));
}

static void times_are_seconds_since_2000(void)
{
    char text[24];
    CHECK_EQ(vpc_time(946684800), 0);
    CHECK_EQ(vpc_time(5), 0);
    CHECK_EQ(vpc_time(946684800 + 77), 77);
    CHECK_EQ(vpc_time(INT64_MAX), UINT32_MAX);
    vpc_time_text(509734287, text);
    CHECK_STR(text, "2016-02-25T16:51:27Z");
}

/* Damaged alias records: names, or none. */
static void aliases_from_anywhere(void)
{
    uint64_t random = 3;
    uint8_t alias[200] = {0};
    for (unsigned i = 0; i < 20000; i++) {
        char *path, *name;
        size_t len = test_random(&random) % (sizeof(alias) + 1);
        test_fill(alias, sizeof(alias), i);
        store_be16(alias + 4, (uint16_t)(test_random(&random) % 300));
        store_be16(alias + 6, 2);
        store_be16(alias + 150, (uint16_t)(14 + test_random(&random) % 6));
        store_be16(alias + 152, (uint16_t)(test_random(&random) % 60));
        /* What lies behind it is not looked at. */
        uint8_t *exact = malloc(len ? len : 1);
        memcpy(exact, alias, len);
        CHECK_OK(mac_alias_names(exact, len, &path, &name, &err), &err);
        free(path);
        free(name);
        free(exact);
    }
}

/* The first change after opening, and no other, makes a time stamp that is
 * later. */
static void a_time_stamp_for_each_opening(void)
{
    struct rhea_storage *s = vpc_make(1 << 20);
    uint32_t last = 0;
    for (unsigned i = 0; i < 4; i++) {
        struct rhea_format *f;
        uint8_t footer[VPC_FOOTER];
        CHECK_OK(
            rhea_format_open_over(vpc_ops(), &f, s, RHEA_FORMAT_WRITE, &err),
            &err);
        for (unsigned k = 0; k < 3; k++)
            CHECK_OK(f->ops->write(f, k * 5000, "x", 1, &err), &err);
        CHECK_OK(f->ops->renew_identity(f, &err), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        CHECK_OK(rhea_storage_read(s, footer, VPC_FOOTER, 0, &err), &err);
        uint32_t now = load_be32(footer + VPC_F_TIME);
        CHECK(now > last);
        CHECK(!i || now <= RHEA_MAX(last + 1, vpc_time_now()));
        last = now;
    }
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_geometry_is_not_larger_than_the_disk);
    TEST(geometries_of_known_disks);
    TEST(shapes_keep_their_rules);
    TEST(a_footer_that_was_hidden_is_good);
    TEST(times_are_seconds_since_2000);
    TEST(aliases_from_anywhere);
    TEST(a_time_stamp_for_each_opening);
    return test_finish();
}
