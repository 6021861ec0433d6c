/* SPDX-License-Identifier: MIT */
/*
 * QED images written by QEMU and read by us, and the other way round. What the
 * guest must see is kept in memory all along; QEMU's own tools judge the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <rhea/image.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "lib/test.h"

#define GUEST_SIZE ((uint64_t)3 * 1024 * 1024 + 512 * 3)

struct guest {
    char path[512], base[512];
    const char *base_format; /* NULL: no backing file */
    uint8_t *bytes;          /* what the guest must see */
    uint64_t seed;
};

struct geometry {
    unsigned cluster_size, table_size;
};

static const struct geometry geometries[] = {
    {4096, 2}, {4096, 16}, {65536, 4}, {65536, 8}, {2 << 20, 2}, {16384, 4},
};

static void make_base(struct guest *g, const char *format, uint64_t size)
{
    snprintf(g->base, sizeof(g->base), "%s", test_path("base"));
    g->base_format = format;
    const char *raw = test_path("base.raw");
    uint8_t *bytes = malloc(size);
    test_fill(bytes, size, g->seed);
    memset(bytes + size / 4, 0, size / 4);
    FILE *f = fopen(raw, "wb");
    CHECK(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
    CHECK_EQ(test_command("qemu-img convert -f raw -O %s %s %s", format, raw,
                          g->base),
             0);
    memcpy(g->bytes, bytes, RHEA_MIN(size, GUEST_SIZE));
    free(bytes);
}

static void guest_init(struct guest *g, uint64_t seed, const char *base_format,
                       uint64_t base_size)
{
    *g = (struct guest){.seed = seed};
    g->bytes = calloc(1, GUEST_SIZE);
    snprintf(g->path, sizeof(g->path), "%s", test_path("image.qed"));
    unlink(g->path);
    if (base_format)
        make_base(g, base_format, base_size);
}

static void guest_finish(struct guest *g)
{
    free(g->bytes);
}

static void create_with_qemu(struct guest *g, const struct geometry *geo)
{
    CHECK_EQ(test_command(
                 "qemu-img create -q -f qed -o "
                 "cluster_size=%u,table_size=%u %s %s %s %s %s %" PRIu64
                 " >/dev/null",
                 geo->cluster_size, geo->table_size, g->base_format ? "-b" : "",
                 g->base_format ? g->base : "", g->base_format ? "-F" : "",
                 g->base_format ? g->base_format : "", g->path, GUEST_SIZE),
             0);
}

static void create_with_us(struct guest *g, const struct geometry *geo)
{
    char cluster[32], table[32];
    snprintf(cluster, sizeof(cluster), "%u", geo->cluster_size);
    snprintf(table, sizeof(table), "%u", geo->table_size);
    const struct rhea_option options[] = {{"cluster_size", cluster},
                                          {"table_size", table}};
    struct rhea_create how = {
        .size = GUEST_SIZE,
        .options = options,
        .n_options = 2,
        .backing_file = g->base_format ? g->base : NULL,
        .backing_format = g->base_format,
    };
    struct rhea_error err;
    CHECK_OK(rhea_image_create(g->path, "qed", &how, false, &err), &err);
}

/* One random request: a range, and the byte it is filled with, 0 for "write
 * zeroes". Some are aligned, some small, some long. */
struct request {
    uint64_t offset, len;
    uint8_t byte;
};

static struct request random_request(struct guest *g, uint64_t align)
{
    struct request r;
    unsigned shift = 9 + (unsigned)(test_random(&g->seed) % 9);
    uint64_t unit = RHEA_MAX(UINT64_C(1) << shift, align);
    r.offset = test_random(&g->seed) % (GUEST_SIZE / unit) * unit;
    r.len = (1 + test_random(&g->seed) % 8) * unit;
    r.len = RHEA_MIN(r.len, align_down(GUEST_SIZE, align) - r.offset);
    r.byte =
        (uint8_t)(test_random(&g->seed) % 4 ? 1 + test_random(&g->seed) % 255
                                            : 0);
    memset(g->bytes + r.offset, r.byte, r.len);
    return r;
}

/* QEMU (7.2, 8.2) fills the rest of a zero cluster from the backing file when
 * it writes to a part of it, against the specification. So over a backing file
 * it gets whole clusters to write. */
static void write_with_qemu(struct guest *g, const struct geometry *geo,
                            unsigned count)
{
    uint64_t align = g->base_format ? geo->cluster_size : 512;
    char command[4000];
    while (count) {
        size_t at = 0;
        unsigned batch = RHEA_MIN(count, 40);
        for (unsigned i = 0; i < batch; i++) {
            struct request r = random_request(g, align);
            at += (size_t)snprintf(
                command + at, sizeof(command) - at,
                r.byte ? " -c 'write -q -P %u %" PRIu64 " %" PRIu64 "'"
                       : " -c 'write -q -z%.0u %" PRIu64 " %" PRIu64 "'",
                r.byte, r.offset, r.len);
        }
        CHECK_EQ(
            test_command("qemu-io -f qed %s %s >/dev/null", command, g->path),
            0);
        count -= batch;
    }
}

static void write_with_us(struct guest *g, unsigned count)
{
    struct rhea_error err;
    struct rhea_image *image;
    if (!CHECK_OK(
            rhea_image_open(&image, g->path, "qed", RHEA_IMAGE_WRITE, &err),
            &err))
        return;
    while (count--) {
        struct request r = random_request(g, 512);
        if (r.byte)
            CHECK_OK(rhea_image_write(image, g->bytes + r.offset, r.len,
                                      r.offset, &err),
                     &err);
        else
            CHECK_OK(rhea_image_write_zeroes(image, r.offset, r.len,
                                             r.len % 3 == 0, &err),
                     &err);
        if (r.byte == 7)
            CHECK_OK(rhea_image_flush(image, &err), &err);
    }
    CHECK_OK(rhea_image_close(image, &err), &err);
}

static void we_see_the_guest(struct guest *g)
{
    struct rhea_error err;
    struct rhea_image *image;
    if (!CHECK_OK(rhea_image_open(&image, g->path, NULL, 0, &err), &err))
        return;
    uint8_t *seen = malloc(GUEST_SIZE);
    CHECK_EQ(rhea_image_size(image), GUEST_SIZE);
    CHECK_OK(rhea_image_read(image, seen, GUEST_SIZE, 0, &err), &err);
    CHECK_MEM(seen, g->bytes, GUEST_SIZE);
    free(seen);
    rhea_image_close(image, NULL);
}

static void qemu_sees_the_guest(struct guest *g)
{
    const char *raw = test_path("seen.raw");
    uint8_t *seen = calloc(1, GUEST_SIZE);
    CHECK_EQ(test_command("qemu-img convert -f qed -O raw %s %s", g->path, raw),
             0);
    FILE *f = fopen(raw, "rb");
    CHECK(f && fread(seen, 1, GUEST_SIZE, f) == GUEST_SIZE);
    if (f)
        fclose(f);
    CHECK_MEM(seen, g->bytes, GUEST_SIZE);
    free(seen);
    /* No corruption, no leak, and not marked as in need of a check. */
    CHECK_EQ(test_command("qemu-img check -q -f qed %s", g->path), 0);
    CHECK_EQ(
        test_command("qemu-img info %s | grep -q 'dirty flag: true'", g->path),
        1);
}

static void both(struct guest *g)
{
    we_see_the_guest(g);
    qemu_sees_the_guest(g);
}

static void we_read_what_qemu_writes(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(geometries); i++) {
        struct guest g;
        guest_init(&g, i, NULL, 0);
        create_with_qemu(&g, &geometries[i]);
        write_with_qemu(&g, &geometries[i], 40);
        both(&g);
        guest_finish(&g);
    }
}

static void qemu_reads_what_we_write(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(geometries); i++) {
        struct guest g;
        guest_init(&g, 100 + i, NULL, 0);
        create_with_us(&g, &geometries[i]);
        both(&g);
        write_with_us(&g, 120);
        both(&g);
        guest_finish(&g);
    }
}

static void both_write_in_turn_over_a_backing_file(void)
{
    static const char *const formats[] = {"raw", "qcow2", "qed"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(geometries); i++) {
        struct guest g;
        /* Shorter, as long, longer. */
        guest_init(&g, 200 + i, formats[i % 3],
                   i % 2 ? GUEST_SIZE / 2 / 512 * 512 : GUEST_SIZE + 65536);
        if (i % 2)
            create_with_us(&g, &geometries[i]);
        else
            create_with_qemu(&g, &geometries[i]);
        both(&g);
        for (unsigned turn = 0; turn < 2; turn++) {
            write_with_us(&g, 15);
            both(&g);
            write_with_qemu(&g, &geometries[i], 10);
            both(&g);
        }
        guest_finish(&g);
    }
}

/* A table of one cluster is something that QEMU creates but cannot open. */
static void tables_of_one_cluster_work(void)
{
    struct guest g;
    guest_init(&g, 300, NULL, 0);
    create_with_qemu(&g, &(struct geometry){4096, 1});
    for (unsigned i = 0; i < 3; i++) {
        write_with_us(&g, 60);
        we_see_the_guest(&g);
    }
    struct rhea_error err;
    struct rhea_image *image;
    struct rhea_check check = {0};
    CHECK_OK(rhea_image_open(&image, g.path, "qed", RHEA_IMAGE_CHECK, &err),
             &err);
    struct rhea_format *f = rhea_image_format(image);
    CHECK_OK(f->ops->check(f, 0, &check, &err), &err);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK(check.allocated_clusters > 0);
    rhea_image_close(image, NULL);
    guest_finish(&g);
}

static uint64_t json_number(const char *text, const char *name)
{
    char key[64];
    snprintf(key, sizeof(key), "\"%s\": ", name);
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

/* Compare the counts of our check of g->path with qemu-img's; with FIX both
 * repair, each its own copy, which must then hold the same bytes. */
static void checks_agree(struct guest *g, bool fix)
{
    char theirs[512], json[4096] = {0};
    snprintf(theirs, sizeof(theirs), "%s", test_path("theirs.qed"));
    const char *out = test_path("check.json");
    CHECK_EQ(test_command("cp %s %s", g->path, theirs), 0);
    test_command("qemu-img check -f qed %s --output=json %s >%s 2>/dev/null",
                 fix ? "-r all" : "", theirs, out);
    FILE *f = fopen(out, "rb");
    if (!CHECK(f && fread(json, 1, sizeof(json) - 1, f) > 0))
        return;
    fclose(f);

    struct rhea_error err;
    struct rhea_image *image;
    struct rhea_check check = {0}, again = {0};
    if (!CHECK_OK(rhea_image_open(
                      &image, g->path, "qed",
                      RHEA_IMAGE_CHECK | (fix ? RHEA_IMAGE_WRITE : 0), &err),
                  &err))
        return;
    struct rhea_format *format = rhea_image_format(image);
    CHECK_OK(
        format->ops->check(format, fix ? RHEA_FIX_ERRORS : 0, &check, &err),
        &err);
    /* After a repair qemu-img reports what a second check finds. */
    struct rhea_check *last = &check;
    if (check.corruptions_fixed) {
        CHECK_OK(format->ops->check(format, 0, &again, &err), &err);
        last = &again;
    }
    CHECK_OK(rhea_image_close(image, &err), &err);
    CHECK_EQ(last->corruptions, json_number(json, "corruptions"));
    CHECK_EQ(last->leaks, json_number(json, "leaks"));
    CHECK_EQ(last->errors, json_number(json, "check-errors"));
    CHECK_EQ(check.corruptions_fixed, json_number(json, "corruptions-fixed"));
    CHECK_EQ(last->total_clusters, json_number(json, "total-clusters"));
    CHECK_EQ(last->allocated_clusters, json_number(json, "allocated-clusters"));
    CHECK_EQ(last->fragmented_clusters,
             json_number(json, "fragmented-clusters"));
    /* But for the header: QEMU calls the image clean whatever it has found. */
    if (fix)
        CHECK_EQ(test_command("cmp -i 64 %s %s", g->path, theirs), 0);
}

/* Put a wrong number into one of the tables. */
static void damage(struct guest *g)
{
    int fd = open(g->path, O_RDWR);
    struct stat st;
    uint8_t entry[8];
    uint64_t table = 65536; /* L1 */
    if (!CHECK(fd >= 0 && fstat(fd, &st) == 0))
        return;
    if (test_random(&g->seed) % 4) {
        CHECK(pread(fd, entry, 8, 65536) == 8);
        if (load_le64(entry))
            table = load_le64(entry);
    }
    uint64_t values[] = {
        0,
        1,
        65536 * (test_random(&g->seed) % 40), /* in use, or the header */
        (uint64_t)st.st_size,
        ((uint64_t)st.st_size & ~UINT64_C(65535)) - 65536,
        65536 * 20 + 512,
        UINT64_MAX - 65535,
    };
    store_le64(entry, values[test_random(&g->seed) % RHEA_ARRAY_SIZE(values)]);
    off_t at = (off_t)(table + 8 * (test_random(&g->seed) % 40));
    CHECK(pwrite(fd, entry, 8, at) == 8);
    if (test_random(&g->seed) % 2) {
        /* And as after a crash. */
        CHECK(pread(fd, entry, 1, 16) == 1);
        entry[0] |= 2;
        CHECK(pwrite(fd, entry, 1, 16) == 1);
    }
    if (test_random(&g->seed) % 2)
        CHECK(ftruncate(fd, st.st_size +
                                (off_t)(test_random(&g->seed) % 200000)) == 0);
    close(fd);
}

static void checks_and_repairs_agree_with_qemu(void)
{
    const struct geometry geo = {65536, 4};
    for (unsigned i = 0; i < 40; i++) {
        struct guest g;
        guest_init(&g, 400 + i, NULL, 0);
        create_with_qemu(&g, &geo);
        write_with_qemu(&g, &geo, 30);
        for (unsigned n = 0; n <= i % 3; n++)
            damage(&g);
        checks_agree(&g, false);
        checks_agree(&g, true);
        guest_finish(&g);
    }
}

/* An image of 1 TiB in 64 MiB clusters: tables of gigabytes, mostly holes. */
static void the_largest_tables_work(void)
{
    char path[512];
    snprintf(path, sizeof(path), "%s", test_path("large.qed"));
    if (test_command("qemu-img create -q -f qed -o "
                     "cluster_size=64M,table_size=16 %s 0 >/dev/null",
                     path)) {
        test_skip("qemu-img does not create it");
        return;
    }
    const struct rhea_option options[] = {{"cluster_size", "64M"},
                                          {"table_size", "16"}};
    struct rhea_create how = {
        .size = UINT64_C(1) << 40, .options = options, .n_options = 2};
    struct rhea_error err;
    struct rhea_image *image;
    if (!CHECK_OK(rhea_image_create(path, "qed", &how, false, &err), &err) ||
        !CHECK_OK(rhea_image_open(&image, path, "qed", RHEA_IMAGE_WRITE, &err),
                  &err))
        return;
    uint8_t wrote[1024], seen[1024];
    test_fill(wrote, sizeof(wrote), 1);
    uint64_t at = (UINT64_C(1) << 39) + (64 << 20) - 512;
    CHECK_OK(rhea_image_write(image, wrote, sizeof(wrote), at, &err), &err);
    CHECK_OK(rhea_image_close(image, &err), &err);

    CHECK_OK(rhea_image_open(&image, path, "qed", RHEA_IMAGE_CHECK, &err),
             &err);
    CHECK_OK(rhea_image_read(image, seen, sizeof(seen), at, &err), &err);
    CHECK_MEM(seen, wrote, sizeof(seen));
    struct rhea_image_extent x;
    CHECK_OK(rhea_image_map(image, 0, UINT64_C(1) << 40, &x, &err), &err);
    CHECK_EQ(x.extent.kind, RHEA_EXTENT_UNALLOCATED);
    CHECK_EQ(x.extent.length, UINT64_C(1) << 39);
    CHECK_OK(
        rhea_image_map(image, UINT64_C(1) << 39, UINT64_C(1) << 39, &x, &err),
        &err);
    CHECK_EQ(x.extent.kind, RHEA_EXTENT_DATA);
    CHECK_EQ(x.extent.length, 128 << 20);
    struct rhea_check check = {0};
    struct rhea_format *f = rhea_image_format(image);
    CHECK_OK(f->ops->check(f, 0, &check, &err), &err);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK_EQ(check.allocated_clusters, 2);
    rhea_image_close(image, NULL);
}

/* QEMU sees our locks and we see QEMU's. */
static void locks_exclude_qemu_and_us(void)
{
    struct guest g;
    guest_init(&g, 500, NULL, 0);
    create_with_qemu(&g, &geometries[2]);
    struct rhea_error err;
    struct rhea_image *image, *other;
    CHECK_OK(rhea_image_open(&image, g.path, NULL, RHEA_IMAGE_WRITE, &err),
             &err);
    CHECK(test_command("qemu-io -r -c 'read 0 512' %s >/dev/null 2>&1",
                       g.path) != 0);
    CHECK_EQ(rhea_image_open(&other, g.path, NULL, 0, &err), -EBUSY);
    CHECK_OK(rhea_image_open(&other, g.path, NULL, RHEA_IMAGE_NO_LOCK, &err),
             &err);
    rhea_image_close(other, NULL);
    rhea_image_close(image, NULL);

    CHECK_OK(rhea_image_open(&image, g.path, NULL, 0, &err), &err);
    CHECK_EQ(
        test_command("qemu-io -r -c 'read 0 512' %s >/dev/null 2>&1", g.path),
        0);
    CHECK(test_command("qemu-io -c 'write 0 512' %s >/dev/null 2>&1", g.path) !=
          0);
    rhea_image_close(image, NULL);

    FILE *qemu = NULL;
    char command[1024];
    snprintf(command, sizeof(command), "qemu-io %s >/dev/null", g.path);
    qemu = popen(command, "w");
    for (unsigned i = 0; i < 100; i++) {
        /* Until it has started. */
        int ret = rhea_image_open(&image, g.path, NULL, 0, &err);
        if (ret == -EBUSY)
            break;
        CHECK_OK(ret, &err);
        rhea_image_close(image, NULL);
        usleep(20000);
    }
    CHECK_EQ(rhea_image_open(&image, g.path, NULL, 0, &err), -EBUSY);
    CHECK_EQ(rhea_image_open(&image, g.path, NULL, RHEA_IMAGE_WRITE, &err),
             -EBUSY);
    struct rhea_create how = {.size = 512};
    CHECK_EQ(rhea_image_create(g.path, "raw", &how, false, &err), -EBUSY);
    if (qemu)
        pclose(qemu);
    both(&g);
    guest_finish(&g);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    if (!test_have_program("qemu-img") || !test_have_program("qemu-io")) {
        printf("1..0 # SKIP qemu-img and qemu-io are not installed\n");
        return 0;
    }
    TEST(we_read_what_qemu_writes);
    TEST(qemu_reads_what_we_write);
    TEST(both_write_in_turn_over_a_backing_file);
    TEST(tables_of_one_cluster_work);
    TEST(checks_and_repairs_agree_with_qemu);
    TEST(the_largest_tables_work);
    TEST(locks_exclude_qemu_and_us);
    return test_finish();
}
