/* SPDX-License-Identifier: MIT */
/* The memory storage, and the checks in front of every storage. */
#include <errno.h>
#include <pthread.h>
#include <rhea/storage.h>
#include <sys/stat.h>

#include "lib/test.h"
#include "storage/memory.h"

#define TIB (UINT64_C(1) << 40)

static struct rhea_error err;

static struct rhea_storage *memory(uint64_t limit)
{
    struct rhea_storage *s = NULL;
    CHECK_OK(rhea_memory_open(&s, limit, &err), &err);
    return s;
}

static void far_offsets_cost_little(void)
{
    struct rhea_storage *s = memory(INT64_MAX);
    static const uint64_t places[] = {5 * TIB,        TIB, 0, 3 * TIB,
                                      INT64_MAX - 10, 7};
    uint8_t byte = 0;
    uint64_t size = 0;
    for (unsigned i = 0; i < 6; i++) {
        byte = (uint8_t)(i + 1);
        CHECK_OK(rhea_storage_write(s, &byte, 1, places[i], &err), &err);
    }
    for (unsigned i = 0; i < 6; i++) {
        CHECK_OK(rhea_storage_read(s, &byte, 1, places[i], &err), &err);
        CHECK_EQ(byte, i + 1);
    }
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, INT64_MAX - 9);
    CHECK_EQ(memory_resident(s), 5 * MEMORY_PAGE);

    bool hole;
    uint64_t run;
    CHECK_OK(rhea_storage_extent(s, 4096, TIB, &hole, &run, &err), &err);
    CHECK(hole);
    CHECK_EQ(run, TIB - 4096);
    CHECK_OK(rhea_storage_zero(s, 1, 4 * TIB, false, &err), &err);
    CHECK_EQ(memory_resident(s), 3 * MEMORY_PAGE);
    CHECK_OK(rhea_storage_truncate(s, 0, &err), &err);
    CHECK_EQ(memory_resident(s), 0);
    rhea_storage_close(s);
}

static void the_limit_is_a_full_disk(void)
{
    struct rhea_storage *s = memory(1000);
    uint8_t buf[600] = {1};
    uint64_t size = 7;
    CHECK_OK(rhea_storage_write(s, buf, 600, 0, &err), &err);
    CHECK_EQ(rhea_storage_write(s, buf, 600, 401, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_truncate(s, 1001, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_zero(s, 900, 101, true, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_allocate(s, 0, 1001, &err), -ENOSPC);
    CHECK_EQ(err.code, ENOSPC);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 600);
    CHECK_OK(rhea_storage_write(s, buf, 600, 400, &err), &err);
    rhea_storage_close(s);
}

static void growing_shows_no_old_bytes(void)
{
    struct rhea_storage *s = memory(1 << 20);
    uint8_t buf[8192], zeroes[8192] = {0};
    memset(buf, 0xee, sizeof(buf));
    CHECK_OK(rhea_storage_write(s, buf, 8192, 0, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 100, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 8192, &err), &err);
    CHECK_OK(rhea_storage_read(s, buf, 8192, 0, &err), &err);
    CHECK_EQ(buf[99], 0xee);
    CHECK_MEM(buf + 100, zeroes, 8092);
    rhea_storage_close(s);
}

static void reads_past_the_end_fail_or_are_padded(void)
{
    struct rhea_storage *s = memory(1 << 20);
    uint8_t buf[16];
    CHECK_OK(rhea_storage_write(s, "abcd", 4, 0, &err), &err);
    CHECK_EQ(rhea_storage_read(s, buf, 5, 0, &err), -EIO);
    CHECK_CONTAINS(err.text, "past the end of the file");
    CHECK_EQ(rhea_storage_read(s, buf, 1, UINT64_MAX, &err), -EIO);
    CHECK_EQ(rhea_storage_read(s, buf, 16, INT64_MAX, &err), -EIO);
    CHECK_OK(rhea_storage_read(s, buf, 0, 4, &err), &err);
    CHECK_OK(rhea_storage_read_padded(s, buf, 16, 2, &err), &err);
    CHECK_MEM(buf, "cd\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    memset(buf, 1, sizeof(buf));
    CHECK_OK(rhea_storage_read_padded(s, buf, 16, TIB, &err), &err);
    CHECK_MEM(buf, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    CHECK_EQ(rhea_storage_read_padded(s, buf, 2, INT64_MAX, &err), -EFBIG);
    rhea_storage_close(s);
}

static void offsets_that_no_file_has_are_refused(void)
{
    struct rhea_storage *s = memory(INT64_MAX);
    bool hole;
    uint64_t run;
    CHECK_EQ(rhea_storage_write(s, "x", 1, INT64_MAX, &err), -EFBIG);
    CHECK_EQ(rhea_storage_write(s, "x", 1, UINT64_MAX, &err), -EFBIG);
    CHECK_EQ(rhea_storage_zero(s, 1, UINT64_MAX, true, &err), -EFBIG);
    CHECK_EQ(rhea_storage_allocate(s, INT64_MAX, 1, &err), -EFBIG);
    CHECK_EQ(rhea_storage_truncate(s, UINT64_MAX, &err), -EFBIG);
    CHECK_EQ(rhea_storage_extent(s, 1, UINT64_MAX, &hole, &run, &err), -EFBIG);
    CHECK_OK(rhea_storage_zero(s, 1, 0, true, &err), &err);
    CHECK_OK(rhea_storage_size(s, &run, &err), &err);
    CHECK_EQ(run, 0);
    rhea_storage_close(s);
    rhea_storage_close(NULL);
}

static void a_read_only_storage_does_not_change(void)
{
    struct rhea_storage *s = memory(1000);
    s->writable = false;
    CHECK_EQ(rhea_storage_write(s, "x", 1, 0, &err), -EACCES);
    CHECK_EQ(rhea_storage_truncate(s, 10, &err), -EACCES);
    CHECK_EQ(rhea_storage_zero(s, 0, 10, false, &err), -EACCES);
    CHECK_EQ(rhea_storage_allocate(s, 0, 10, &err), -EACCES);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    rhea_storage_close(s);
}

static void the_digest_tells_contents_apart(void)
{
    struct rhea_storage *a = memory(INT64_MAX), *b = memory(INT64_MAX);
    uint8_t zeroes[10000] = {0};
    CHECK_OK(rhea_storage_write(a, "same", 4, TIB, &err), &err);
    CHECK_OK(rhea_storage_write(b, "same", 4, TIB, &err), &err);
    CHECK_OK(rhea_storage_write(a, zeroes, sizeof(zeroes), 123, &err), &err);
    CHECK(memory_digest(a) == memory_digest(b));
    CHECK_OK(rhea_storage_write(a, "Same", 4, TIB, &err), &err);
    CHECK(memory_digest(a) != memory_digest(b));
    CHECK_OK(rhea_storage_write(a, "same", 4, TIB, &err), &err);
    CHECK(memory_digest(a) == memory_digest(b));
    CHECK_OK(rhea_storage_truncate(a, TIB + 5, &err), &err);
    CHECK(memory_digest(a) != memory_digest(b));
    CHECK_OK(rhea_storage_truncate(b, TIB + 5, &err), &err);
    CHECK_OK(rhea_storage_zero(b, TIB, 4, true, &err), &err);
    CHECK_OK(rhea_storage_write(b, "same", 4, TIB - 4096, &err), &err);
    CHECK(memory_digest(a) != memory_digest(b));
    rhea_storage_close(a);
    rhea_storage_close(b);
}

static void a_dump_is_a_sparse_file_with_the_same_bytes(void)
{
    struct rhea_storage *s = memory(INT64_MAX), *file, *copy;
    static uint8_t buf[2 << 20], zeroes[64 << 10];
    struct stat st = {0};
    const char *path = test_path("dump");
    /* An older, longer file of that name. */
    CHECK_EQ(test_command("head -c 300000 /dev/urandom >%s", path), 0);
    test_fill(buf, sizeof(buf), 9);
    CHECK_OK(rhea_storage_write(s, buf, sizeof(buf), 12345, &err), &err);
    CHECK_OK(rhea_storage_write(s, zeroes, sizeof(zeroes), 1 << 20, &err),
             &err);
    CHECK_OK(rhea_storage_write(s, buf, 5000, (UINT64_C(1) << 30) + 1, &err),
             &err);
    CHECK_OK(rhea_storage_truncate(s, (UINT64_C(2) << 30) + 77, &err), &err);

    CHECK_OK(memory_dump(s, path, &err), &err);
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_size, (UINT64_C(2) << 30) + 77);
    CHECK(st.st_blocks * 512 < 3 << 20);
    if (CHECK_OK(rhea_file_open(&file, path, 0, &err), &err)) {
        if (CHECK_OK(memory_snapshot(&copy, file, &err), &err)) {
            CHECK(memory_digest(copy) == memory_digest(s));
            rhea_storage_close(copy);
        }
        rhea_storage_close(file);
    }
    CHECK_EQ(memory_dump(s, "/nonexistent/file", &err), -ENOENT);
    rhea_storage_close(s);
}

struct worker {
    struct rhea_storage *s;
    unsigned number;
    bool ok;
};

/* Each thread has every eighth block of 3000 bytes. */
static void *work(void *opaque)
{
    struct worker *w = opaque;
    uint8_t buf[3000], got[3000];
    struct rhea_error e;
    struct rhea_storage *clone;
    w->ok = true;
    for (unsigned i = 0; i < 400; i++) {
        uint64_t at = ((uint64_t)(i % 50) * 8 + w->number) * 3000;
        test_fill(buf, sizeof(buf), at + i);
        w->ok &= rhea_storage_write(w->s, buf, sizeof(buf), at, &e) == 0;
        if (i % 100 == 0 && memory_clone(&clone, w->s, &e) == 0) {
            w->ok &= rhea_storage_read(clone, got, 3000, at, &e) == 0 &&
                     !memcmp(buf, got, 3000);
            rhea_storage_close(clone);
        }
        w->ok &= rhea_storage_read(w->s, got, 3000, at, &e) == 0 &&
                 !memcmp(buf, got, 3000);
    }
    return NULL;
}

static void many_threads_may_use_it(void)
{
    struct worker workers[8];
    pthread_t threads[8];
    struct rhea_storage *s = memory(INT64_MAX);
    for (unsigned i = 0; i < 8; i++) {
        workers[i] = (struct worker){.s = s, .number = i};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        CHECK(workers[i].ok);
    }
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(far_offsets_cost_little);
    TEST(the_limit_is_a_full_disk);
    TEST(growing_shows_no_old_bytes);
    TEST(reads_past_the_end_fail_or_are_padded);
    TEST(offsets_that_no_file_has_are_refused);
    TEST(a_read_only_storage_does_not_change);
    TEST(the_digest_tells_contents_apart);
    TEST(a_dump_is_a_sparse_file_with_the_same_bytes);
    TEST(many_threads_may_use_it);
    return test_finish();
}
