/* SPDX-License-Identifier: MIT */
/* Every kind of storage does, call by call, what a plain array of bytes does:
 * random calls against a shadow model. */
#include <errno.h>
#include <rhea/storage.h>
#include <stdatomic.h>

#include "base/checked.h"
#include "lib/test.h"
#include "storage/fault.h"
#include "storage/file.h"
#include "storage/memory.h"
#include "storage/record.h"

#define MAX_SIZE (300u << 10)

struct shadow {
    struct rhea_storage *s;
    uint8_t bytes[MAX_SIZE]; /* zeroes past the size */
    uint64_t size;
    uint64_t seed;
    uint8_t buf[MAX_SIZE + 4096];
};

static struct shadow model;

/* Offsets and lengths that like to meet blocks' edges. */
static uint64_t pick(uint64_t max)
{
    uint64_t n = test_random(&model.seed) % (max + 1);
    switch (test_random(&model.seed) % 4) {
    case 0:
        return align_down(n, 4096);
    case 1:
        return align_down(n, 512);
    case 2:
        return n % 5000;
    default:
        return n;
    }
}

static bool do_read(uint64_t offset, uint64_t len)
{
    struct rhea_error err;
    uint8_t *buf = model.buf + test_random(&model.seed) % 2 * 8;
    int ret = rhea_storage_read(model.s, buf, len, offset, &err);
    if (offset + len > model.size && len)
        return CHECK_EQ(ret, -EIO) &&
               CHECK_OK(
                   rhea_storage_read_padded(model.s, buf, len, offset, &err),
                   &err) &&
               CHECK_MEM(buf, model.bytes + offset, len);
    return CHECK_OK(ret, &err) && CHECK_MEM(buf, model.bytes + offset, len);
}

static bool do_write(uint64_t offset, uint64_t len)
{
    struct rhea_error err;
    /* Direct writes of memory that is aligned, and that is not. */
    uint8_t *buf = model.buf + test_random(&model.seed) % 2 * 8;
    test_fill(buf, len, test_random(&model.seed));
    memcpy(model.bytes + offset, buf, len);
    if (len)
        model.size = RHEA_MAX(model.size, offset + len);
    return CHECK_OK(rhea_storage_write(model.s, buf, len, offset, &err), &err);
}

static bool do_zero(uint64_t offset, uint64_t len)
{
    struct rhea_error err;
    bool punch = test_random(&model.seed) & 1;
    memset(model.bytes + offset, 0, len);
    if (len)
        model.size = RHEA_MAX(model.size, offset + len);
    return CHECK_OK(rhea_storage_zero(model.s, offset, len, punch, &err), &err);
}

static bool do_truncate(uint64_t size)
{
    struct rhea_error err;
    if (size < model.size)
        memset(model.bytes + size, 0, model.size - size);
    model.size = size;
    return CHECK_OK(rhea_storage_truncate(model.s, size, &err), &err);
}

static bool do_allocate(uint64_t offset, uint64_t len)
{
    struct rhea_error err;
    if (len)
        model.size = RHEA_MAX(model.size, offset + len);
    return CHECK_OK(rhea_storage_allocate(model.s, offset, len, &err), &err);
}

/* What is called a hole holds zeroes. */
static bool do_extent(uint64_t offset, uint64_t len)
{
    struct rhea_error err;
    bool hole;
    uint64_t run;
    if (offset >= model.size || len == 0)
        return true;
    if (!CHECK_OK(rhea_storage_extent(model.s, offset, len, &hole, &run, &err),
                  &err) ||
        !CHECK(run >= 1 && run <= len))
        return false;
    for (uint64_t i = 0; hole && i < run; i++) {
        if (model.bytes[offset + i])
            return test_report(false, __FILE__, __LINE__, "a hole holds data");
    }
    return true;
}

static bool step(void)
{
    struct rhea_error err;
    uint64_t size = 0;
    uint64_t offset = pick(MAX_SIZE), len = pick(MAX_SIZE - offset);
    bool ok = true;
    switch (test_random(&model.seed) % 12) {
    case 0:
    case 1:
    case 2:
        ok = do_read(offset, len);
        break;
    case 3:
    case 4:
    case 5:
        ok = do_write(offset, len);
        break;
    case 6:
    case 7:
        ok = do_zero(offset, len);
        break;
    case 8:
        ok = do_truncate(offset);
        break;
    case 9:
        ok = do_allocate(offset, len);
        break;
    case 10:
        ok = do_extent(offset, len);
        break;
    default:
        ok = CHECK_OK(rhea_storage_flush(model.s, &err), &err);
        break;
    }
    return ok && CHECK_OK(rhea_storage_size(model.s, &size, &err), &err) &&
           CHECK_EQ(size, model.size);
}

/* Takes S over. */
static void run(struct rhea_storage *s, unsigned steps)
{
    memset(&model, 0, sizeof(model));
    model.s = s;
    model.seed = 42;
    for (unsigned i = 0; i < steps; i++) {
        if (!step()) {
            printf("# at step %u\n", i);
            break;
        }
    }
    do_read(0, model.size);
    rhea_storage_close(s);
}

static struct rhea_storage *open_memory(void)
{
    struct rhea_error err;
    struct rhea_storage *s = NULL;
    CHECK_OK(rhea_memory_open(&s, MAX_SIZE, &err), &err);
    return s;
}

static struct rhea_storage *open_file(unsigned flags)
{
    struct rhea_error err;
    struct rhea_storage *s = NULL;
    const char *path = test_path("shadow");
    unlink(path);
    CHECK_OK(rhea_file_open(&s, path, RHEA_FILE_CREATE | flags, &err), &err);
    return s;
}

static void memory_is_like_an_array(void)
{
    run(open_memory(), 3000);
}

static void a_file_is_like_an_array(void)
{
    run(open_file(0), 3000);
}

static void a_file_without_fallocate_is_like_an_array(void)
{
    for (unsigned missing = 1; missing < 8; missing++) {
        struct rhea_storage *s = open_file(0);
        if (!s)
            return;
        atomic_store(&((struct file *)s)->missing, missing);
        run(s, 800);
    }
}

/* Scratch space in memory may have no direct access; the build folder has. */
static void a_file_past_the_cache_is_like_an_array(void)
{
    struct rhea_error err;
    struct rhea_storage *s = NULL;
    char path[512];
    snprintf(path, sizeof(path), "%s", test_path("direct"));
    int ret =
        rhea_file_open(&s, path, RHEA_FILE_CREATE | RHEA_FILE_DIRECT, &err);
    if (ret && getenv("RHEA_BUILD")) {
        CHECK_EQ(ret, -EINVAL);
        snprintf(path, sizeof(path), "%s/unit-direct-%d", getenv("RHEA_BUILD"),
                 (int)getpid());
        ret =
            rhea_file_open(&s, path, RHEA_FILE_CREATE | RHEA_FILE_DIRECT, &err);
    }
    if (ret) {
        test_skip("no file system here has direct access");
        return;
    }
    run(s, 3000);
    unlink(path);
}

static void a_recorder_passes_everything_through(void)
{
    struct rhea_error err;
    struct rhea_storage *s;
    struct record_log log = {0};
    if (CHECK_OK(record_open(&s, open_memory(), &log, &err), &err))
        run(s, 2000);
    CHECK(log.n_ops > 500);
    record_log_finish(&log);
}

static void short_reads_are_continued(void)
{
    struct rhea_error err;
    struct rhea_storage *s;
    struct fault_plan plan = {.short_reads = true};
    if (CHECK_OK(fault_open(&s, open_memory(), &plan, &err), &err))
        run(s, 2000);
}

/* Changes to a clone do not show in what it was cloned from, nor the other way
 * round. */
static void clones_of_memory_do_not_affect_each_other(void)
{
    struct rhea_error err;
    static uint8_t want[MAX_SIZE], got[MAX_SIZE];
    struct rhea_storage *s = open_memory(), *clone, *old;
    test_fill(want, MAX_SIZE, 1);
    CHECK_OK(rhea_storage_write(s, want, MAX_SIZE, 0, &err), &err);
    if (!CHECK_OK(memory_clone(&clone, s, &err), &err) ||
        !CHECK_OK(memory_clone(&old, s, &err), &err))
        return;
    uint64_t digest = memory_digest(s);
    CHECK_EQ(memory_digest(clone), digest);

    CHECK_OK(rhea_storage_truncate(clone, 0, &err), &err);
    run(clone, 1000);
    CHECK_OK(rhea_storage_read(s, got, MAX_SIZE, 0, &err), &err);
    CHECK_MEM(got, want, MAX_SIZE);
    CHECK_EQ(memory_digest(s), digest);

    CHECK_OK(rhea_storage_truncate(s, 0, &err), &err);
    run(s, 1000);
    CHECK_OK(rhea_storage_read(old, got, MAX_SIZE, 0, &err), &err);
    CHECK_MEM(got, want, MAX_SIZE);
    rhea_storage_close(old);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(memory_is_like_an_array);
    TEST(a_file_is_like_an_array);
    TEST(a_file_without_fallocate_is_like_an_array);
    TEST(a_file_past_the_cache_is_like_an_array);
    TEST(a_recorder_passes_everything_through);
    TEST(short_reads_are_continued);
    TEST(clones_of_memory_do_not_affect_each_other);
    return test_finish();
}
