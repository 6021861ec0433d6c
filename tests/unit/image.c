/* SPDX-License-Identifier: MIT */
/* Images on files: chains, names, raw, creation. */
#include <errno.h>
#include <rhea/image.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "lib/test.h"

#define SIZE ((uint64_t)1 << 20)

static struct rhea_error err;

static int create(const char *name, const char *format, uint64_t size,
                  const char *backing, const char *backing_format)
{
    struct rhea_create how = {.size = size,
                              .backing_file = backing,
                              .backing_format = backing_format};
    return rhea_image_create(name, format, &how, backing && !backing_format,
                             &err);
}

static void put(const char *name, const char *format, uint64_t offset,
                const void *bytes, size_t len)
{
    struct rhea_image *image;
    if (!CHECK_OK(rhea_image_open(&image, name, format, RHEA_IMAGE_WRITE, &err),
                  &err))
        return;
    CHECK_OK(rhea_image_write(image, bytes, len, offset, &err), &err);
    CHECK_OK(rhea_image_close(image, &err), &err);
}

static struct rhea_image *open_ok(const char *name, const char *format,
                                  unsigned flags)
{
    struct rhea_image *image = NULL;
    if (!CHECK_OK(rhea_image_open(&image, name, format, flags, &err), &err))
        exit(1);
    return image;
}

static int open_fails(const char *name, const char *format, unsigned flags)
{
    struct rhea_image *image = NULL;
    int ret = rhea_image_open(&image, name, format, flags, &err);
    if (!CHECK(ret < 0))
        rhea_image_close(image, NULL);
    return ret;
}

static uint64_t file_size(const char *name)
{
    struct stat st;
    return stat(name, &st) ? UINT64_MAX : (uint64_t)st.st_size;
}

static void a_chain_reads_through(void)
{
    uint8_t buf[3 * 512];
    CHECK_OK(create("base.raw", "raw", SIZE / 2, NULL, NULL), &err);
    put("base.raw", "raw", 0, "base", 4);
    put("base.raw", "raw", SIZE / 2 - 4, "tail", 4);
    CHECK_OK(create("mid.qed", "qed", SIZE, "base.raw", "raw"), &err);
    put("mid.qed", NULL, 65536, "mid", 3);
    CHECK_OK(create("top.qed", "qed", UINT64_MAX, "mid.qed", "qed"), &err);
    put("top.qed", NULL, 65536 * 2 + 512, "top", 3);

    struct rhea_image *image = open_ok("top.qed", NULL, 0);
    CHECK_EQ(rhea_image_size(image), SIZE);
    CHECK_OK(rhea_image_read(image, buf, 4, 0, &err), &err);
    CHECK_MEM(buf, "base", 4);
    CHECK_OK(rhea_image_read(image, buf, 3, 65536, &err), &err);
    CHECK_MEM(buf, "mid", 3);
    CHECK_OK(rhea_image_read(image, buf, sizeof(buf), 65536 * 2, &err), &err);
    CHECK_MEM(buf + 512, "top", 3);
    /* The base is shorter: zeroes past its end. */
    memset(buf, 0xff, sizeof(buf));
    CHECK_OK(rhea_image_read(image, buf, 1024, SIZE / 2 - 512, &err), &err);
    CHECK_MEM(buf + 508, "tail\0\0\0", 8);
    CHECK_EQ(buf[1023], 0);
    CHECK_EQ(rhea_image_read(image, buf, 2, SIZE - 1, &err), -EINVAL);

    static const struct {
        uint64_t offset, length;
        enum rhea_extent_kind kind;
        unsigned depth;
    } want[] = {
        {65536, 65536, RHEA_EXTENT_DATA, 1},
        {65536 * 2, 65536, RHEA_EXTENT_DATA, 0},
        {SIZE / 2, SIZE / 2, RHEA_EXTENT_UNALLOCATED, 1},
    };
    struct rhea_image_extent x;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(want); i++) {
        CHECK_OK(rhea_image_map(image, want[i].offset, SIZE - want[i].offset,
                                &x, &err),
                 &err);
        CHECK_EQ(x.extent.kind, want[i].kind);
        CHECK_EQ(x.extent.length, want[i].length);
        CHECK_EQ(x.depth, want[i].depth);
    }
    CHECK_OK(rhea_image_map(image, 0, SIZE, &x, &err), &err);
    CHECK_EQ(x.depth, 2);
    CHECK(x.image == rhea_image_backing(rhea_image_backing(image)));
    rhea_image_close(image, NULL);

    image = open_ok("top.qed", NULL, RHEA_IMAGE_NO_BACKING);
    CHECK(rhea_image_backing(image) == NULL);
    CHECK_OK(rhea_image_read(image, buf, 4, 0, &err), &err);
    CHECK_MEM(buf, "\0\0\0\0", 4);
    rhea_image_close(image, NULL);
}

static void an_overlay_alone_is_not_written_to(void)
{
    struct rhea_image *image =
        open_ok("top.qed", NULL, RHEA_IMAGE_NO_BACKING | RHEA_IMAGE_WRITE);
    CHECK_EQ(rhea_image_write(image, "x", 1, 0, &err), -EPERM);
    CHECK_EQ(rhea_image_write_zeroes(image, 0, 1, true, &err), -EPERM);
    rhea_image_close(image, NULL);
    /* One without a backing file may be. */
    CHECK_OK(create("alone.qed", "qed", SIZE, NULL, NULL), &err);
    image =
        open_ok("alone.qed", NULL, RHEA_IMAGE_NO_BACKING | RHEA_IMAGE_WRITE);
    CHECK_OK(rhea_image_write(image, "x", 1, 0, &err), &err);
    rhea_image_close(image, NULL);
}

static void names_are_relative_to_the_overlay(void)
{
    CHECK_EQ(mkdir("folder", 0700), 0);
    CHECK_EQ(mkdir("folder/sub", 0700), 0);
    CHECK_OK(create("folder/base", "raw", SIZE, NULL, NULL), &err);
    CHECK_OK(create("folder/sub/a.qed", "qed", UINT64_MAX, "../base", "raw"),
             &err);
    CHECK_OK(create("file:folder/b.qed", "qed", UINT64_MAX, "sub/a.qed", "qed"),
             &err);
    struct rhea_image *image = open_ok("file:folder/b.qed", NULL, 0);
    CHECK_STR(rhea_image_filename(image), "folder/b.qed");
    char *path = rhea_image_backing_path(image);
    CHECK_STR(path, "folder/sub/a.qed");
    free(path);
    path = rhea_image_backing_path(rhea_image_backing(image));
    CHECK_STR(path, "folder/sub/../base");
    free(path);
    rhea_image_close(image, NULL);

    /* With a protocol it is not: as in QEMU, relative to the folder we are
     * in. */
    CHECK_OK(create("folder/c.qed", "qed", SIZE, "file:folder/base", "raw"),
             &err);
    image = open_ok("folder/c.qed", NULL, 0);
    path = rhea_image_backing_path(image);
    CHECK_STR(path, "folder/base");
    free(path);
    rhea_image_close(image, NULL);
}

static void other_protocols_are_named_and_refused(void)
{
    CHECK_EQ(open_fails("rbd:pool/x", NULL, 0), -ENOTSUP);
    CHECK_CONTAINS(err.text, "'rbd'");
    CHECK_EQ(open_fails("json:{\"driver\":\"raw\"}", NULL, 0), -EINVAL);
    CHECK_CONTAINS(err.text, "file.filename");
    CHECK_OK(create("net.qed", "qed", SIZE, "rbd:pool/x", NULL), &err);
    CHECK_EQ(open_fails("net.qed", NULL, 0), -ENOTSUP);
    CHECK_CONTAINS(err.text, "net.qed");
    CHECK_CONTAINS(err.text, "rbd:pool/x");
    CHECK_OK(create("./with:colon", "raw", SIZE, NULL, NULL), &err);
    rhea_image_close(open_ok("./with:colon", "raw", 0), NULL);
}

static void a_missing_backing_file_is_named(void)
{
    CHECK_OK(create("orphan.qed", "qed", SIZE, "gone.raw", NULL), &err);
    CHECK_EQ(open_fails("orphan.qed", NULL, 0), -ENOENT);
    CHECK_CONTAINS(err.text, "orphan.qed");
    CHECK_CONTAINS(err.text, "gone.raw");
    rhea_image_close(open_ok("orphan.qed", NULL, RHEA_IMAGE_NO_BACKING), NULL);
}

static void loops_and_endless_chains_are_refused(void)
{
    CHECK_OK(create("self.qed", "qed", SIZE, "self.qed", NULL), &err);
    CHECK_EQ(open_fails("self.qed", NULL, 0), -ELOOP);
    CHECK_EQ(open_fails("self.qed", NULL, RHEA_IMAGE_WRITE), -ELOOP);
    CHECK_OK(create("one.qed", "qed", SIZE, "two.qed", NULL), &err);
    CHECK_EQ(symlink("one.qed", "link.qed"), 0);
    CHECK_OK(create("two.qed", "qed", SIZE, "link.qed", NULL), &err);
    CHECK_EQ(open_fails("one.qed", NULL, 0), -ELOOP);

    char name[32], below[32] = "base.raw";
    for (unsigned i = 0; i < RHEA_CHAIN_MAX; i++) {
        snprintf(name, sizeof(name), "chain%u", i);
        CHECK_OK(create(name, "qed", SIZE, below, NULL), &err);
        memcpy(below, name, sizeof(below));
    }
    CHECK_EQ(open_fails(name, NULL, 0), -ELOOP);
    snprintf(name, sizeof(name), "chain%u", RHEA_CHAIN_MAX - 2);
    struct rhea_image *image = open_ok(name, NULL, 0);
    char buf[4];
    CHECK_OK(rhea_image_read(image, buf, 4, 0, &err), &err);
    CHECK_MEM(buf, "base", 4);
    rhea_image_close(image, NULL);
}

static void a_backing_file_said_to_be_raw_is_raw(void)
{
    /* A guest's disk whose contents are an image that names a file. */
    CHECK_OK(create("secret", "raw", SIZE, NULL, NULL), &err);
    CHECK_OK(create("guest.raw", "qed", SIZE, "secret", NULL), &err);
    CHECK_OK(create("over.qed", "qed", UINT64_MAX, "guest.raw", "raw"), &err);
    struct rhea_image *image = open_ok("over.qed", NULL, 0);
    CHECK_EQ(rhea_image_size(image), file_size("guest.raw"));
    char magic[4];
    CHECK_OK(rhea_image_read(image, magic, 4, 0, &err), &err);
    CHECK_MEM(magic, "QED", 4);
    CHECK(rhea_image_backing(rhea_image_backing(image)) == NULL);
    rhea_image_close(image, NULL);
}

static void a_guessed_raw_image_stays_raw(void)
{
    uint8_t head[1024] = {'Q', 'E', 'D', 0};
    CHECK_OK(create("disk.raw", "raw", SIZE, NULL, NULL), &err);
    struct rhea_image *image = open_ok("disk.raw", NULL, RHEA_IMAGE_WRITE);
    CHECK_EQ(rhea_image_write(image, head, 512, 0, &err), -EPERM);
    CHECK_OK(rhea_image_write(image, head, 2, 0, &err), &err);
    CHECK_EQ(rhea_image_write(image, head + 2, 600, 2, &err), -EPERM);
    CHECK_OK(rhea_image_write(image, head, 512, 512, &err), &err);
    CHECK_OK(rhea_image_write(image, "hello", 5, 0, &err), &err);
    rhea_image_close(image, NULL);
    /* Whoever says raw may. */
    image = open_ok("disk.raw", "raw", RHEA_IMAGE_WRITE);
    CHECK_OK(rhea_image_write(image, head, 512, 0, &err), &err);
    rhea_image_close(image, NULL);
}

static void raw_files_end_anywhere(void)
{
    FILE *f = fopen("odd.raw", "wb");
    CHECK(f && fwrite("0123456789", 1, 10, f) == 10 && fclose(f) == 0);
    struct rhea_image *image = open_ok("odd.raw", NULL, RHEA_IMAGE_WRITE);
    char buf[512];
    CHECK_EQ(rhea_image_size(image), 512);
    memset(buf, 1, sizeof(buf));
    CHECK_OK(rhea_image_read(image, buf, 512, 0, &err), &err);
    CHECK_MEM(buf, "0123456789\0\0", 12);
    CHECK_EQ(buf[511], 0);
    CHECK_OK(rhea_image_write(image, "end", 3, 509, &err), &err);
    CHECK_OK(rhea_image_read(image, buf, 512, 0, &err), &err);
    CHECK_MEM(buf + 508, "\0end", 4);
    rhea_image_close(image, NULL);
    CHECK_EQ(file_size("odd.raw"), 512);

    f = fopen("empty.raw", "wb");
    CHECK(f && fclose(f) == 0);
    image = open_ok("empty.raw", NULL, 0);
    CHECK_EQ(rhea_image_size(image), 0);
    CHECK_OK(rhea_image_read(image, buf, 0, 0, &err), &err);
    rhea_image_close(image, NULL);
}

static void raw_space_is_reserved_as_asked(void)
{
    static const struct {
        const char *mode;
        bool reserved;
    } cases[] = {{"off", false}, {"falloc", true}, {"full", true}};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++) {
        const struct rhea_option option = {"preallocation", cases[i].mode};
        struct rhea_create how = {
            .size = SIZE, .options = &option, .n_options = 1};
        CHECK_OK(rhea_image_create("pre.raw", "raw", &how, false, &err), &err);
        struct stat st = {0};
        CHECK_EQ(stat("pre.raw", &st), 0);
        CHECK_EQ(st.st_size, SIZE);
        CHECK_EQ((uint64_t)st.st_blocks * 512 >= SIZE, cases[i].reserved);
    }
}

/* FILE still holds what it did. */
static void still_there(const char *name, uint64_t size)
{
    CHECK_EQ(file_size(name), size);
}

static void creation_refuses_before_it_destroys(void)
{
    CHECK_OK(create("keep.qed", "qed", SIZE, NULL, NULL), &err);
    CHECK_OK(create("keep2.qed", "qed", SIZE, "keep.qed", "qed"), &err);
    uint64_t size = file_size("keep.qed");

    CHECK_EQ(create("keep.qed", "qed", SIZE, "keep.qed", "qed"), -EINVAL);
    still_there("keep.qed", size);
    CHECK_EQ(create("keep.qed", "qed", SIZE, "keep2.qed", "qed"), -EINVAL);
    still_there("keep.qed", size);
    CHECK_EQ(create("keep.qed", "qed", SIZE, "gone", "raw"), -ENOENT);
    still_there("keep.qed", size);
    CHECK_EQ(create("keep.qed", "qed", UINT64_MAX, NULL, NULL), -EINVAL);
    CHECK_EQ(create("keep.qed", "vmdk2", SIZE, NULL, NULL), -EINVAL);
    CHECK_EQ(create("keep.qed", "raw", SIZE, "base.raw", "raw"), -EINVAL);
    still_there("keep.qed", size);

    const struct rhea_option bad = {"no_such_option", "1"};
    struct rhea_create how = {.size = SIZE, .options = &bad, .n_options = 1};
    CHECK_EQ(rhea_image_create("keep.qed", "qed", &how, false, &err), -EINVAL);
    still_there("keep.qed", size);
    how = (struct rhea_create){.size = SIZE, .backing_file = "base.raw"};
    CHECK_EQ(rhea_image_create("keep.qed", "qed", &how, false, &err), -EINVAL);
    CHECK_CONTAINS(err.text, "looks like raw");
    still_there("keep.qed", size);

    struct rhea_image *image = open_ok("keep.qed", NULL, 0);
    CHECK_EQ(create("keep.qed", "raw", 512, NULL, NULL), -EBUSY);
    still_there("keep.qed", size);
    rhea_image_close(image, NULL);

    /* A file that was not there does not stay behind. */
    const struct rhea_option odd = {"cluster_size", "5000"};
    how = (struct rhea_create){.size = SIZE, .options = &odd, .n_options = 1};
    CHECK_EQ(rhea_image_create("new.qed", "qed", &how, false, &err), -EINVAL);
    CHECK_EQ(file_size("new.qed"), UINT64_MAX);
}

static void creation_takes_members_as_options(void)
{
    const struct rhea_option options[] = {{"size", "3M"},
                                          {"backing_file", "base.raw"},
                                          {"backing_fmt", "raw"},
                                          {"cluster_size", "16k"}};
    struct rhea_create how = {
        .size = UINT64_MAX, .options = options, .n_options = 4};
    CHECK_OK(rhea_image_create("opt.qed", "qed", &how, false, &err), &err);
    struct rhea_image *image = open_ok("opt.qed", NULL, 0);
    struct rhea_format_info info;
    rhea_image_info(image, &info);
    CHECK_EQ(info.virtual_size, 3 << 20);
    CHECK_EQ(info.cluster_size, 16384);
    CHECK_STR(info.backing_file, "base.raw");
    CHECK_STR(info.backing_format, "raw");
    rhea_image_close(image, NULL);
}

static void readers_share_and_writers_do_not(void)
{
    CHECK_OK(create("lock.raw", "raw", SIZE, NULL, NULL), &err);
    struct rhea_image *a = open_ok("lock.raw", "raw", 0), *b;
    b = open_ok("lock.raw", "raw", 0);
    CHECK_EQ(open_fails("lock.raw", "raw", RHEA_IMAGE_WRITE), -EBUSY);
    CHECK_EQ(open_fails("lock.raw", "raw", RHEA_IMAGE_EXCLUSIVE), -EBUSY);
    rhea_image_close(a, NULL);
    rhea_image_close(b, NULL);
    a = open_ok("lock.raw", "raw", RHEA_IMAGE_WRITE);
    CHECK_EQ(open_fails("lock.raw", "raw", 0), -EBUSY);
    CHECK_EQ(
        open_fails("lock.raw", "raw", RHEA_IMAGE_WRITE | RHEA_IMAGE_NO_LOCK),
        -EINVAL);
    b = open_ok("lock.raw", "raw", RHEA_IMAGE_NO_LOCK);
    rhea_image_close(b, NULL);
    rhea_image_close(a, NULL);
    a = open_ok("lock.raw", "raw", RHEA_IMAGE_EXCLUSIVE);
    CHECK_EQ(open_fails("lock.raw", "raw", 0), -EBUSY);
    rhea_image_close(a, NULL);
    /* A backing file is read: nobody may write to it meanwhile. */
    CHECK_OK(create("lock.qed", "qed", SIZE, "lock.raw", "raw"), &err);
    a = open_ok("lock.qed", NULL, RHEA_IMAGE_WRITE);
    CHECK_EQ(open_fails("lock.raw", "raw", RHEA_IMAGE_WRITE), -EBUSY);
    b = open_ok("lock.raw", "raw", 0);
    rhea_image_close(b, NULL);
    rhea_image_close(a, NULL);
}

static void zeroes_hide_the_backing_file(void)
{
    char buf[16] = {1};
    put("base.raw", "raw", 0, "base", 4);
    CHECK_OK(create("zero.qed", "qed", SIZE, "base.raw", "raw"), &err);
    struct rhea_image *image = open_ok("zero.qed", NULL, RHEA_IMAGE_WRITE);
    CHECK_OK(rhea_image_write_zeroes(image, 2, 100000, true, &err), &err);
    CHECK_OK(rhea_image_read(image, buf, 6, 0, &err), &err);
    CHECK_MEM(buf, "ba\0\0\0", 6);
    CHECK_OK(rhea_image_flush(image, &err), &err);
    CHECK_EQ(rhea_image_write_zeroes(image, SIZE, 1, true, &err), -EINVAL);
    CHECK_OK(rhea_image_close(image, &err), &err);
    image = open_ok("zero.qed", NULL, 0);
    CHECK_EQ(rhea_image_write_zeroes(image, 0, 1, true, &err), -EACCES);
    CHECK_EQ(rhea_image_write(image, buf, 1, 0, &err), -EACCES);
    rhea_image_close(image, NULL);
}

static void unknown_formats_are_refused_with_what_there_is(void)
{
    CHECK_EQ(open_fails("base.raw", "vhdx2", 0), -EINVAL);
    CHECK_CONTAINS(err.text, "vhdx2");
    CHECK_CONTAINS(err.text, "qed");
    CHECK(open_fails("base.raw", "qed", 0) < 0);
    CHECK_CONTAINS(err.text, "base.raw");
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    if (chdir(test_path("")))
        return 99;
    TEST(a_chain_reads_through);
    TEST(an_overlay_alone_is_not_written_to);
    TEST(names_are_relative_to_the_overlay);
    TEST(other_protocols_are_named_and_refused);
    TEST(a_missing_backing_file_is_named);
    TEST(loops_and_endless_chains_are_refused);
    TEST(a_backing_file_said_to_be_raw_is_raw);
    TEST(a_guessed_raw_image_stays_raw);
    TEST(raw_files_end_anywhere);
    TEST(raw_space_is_reserved_as_asked);
    TEST(creation_refuses_before_it_destroys);
    TEST(creation_takes_members_as_options);
    TEST(readers_share_and_writers_do_not);
    TEST(zeroes_hide_the_backing_file);
    TEST(unknown_formats_are_refused_with_what_there_is);
    return test_finish();
}
