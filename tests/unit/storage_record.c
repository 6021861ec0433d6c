/* SPDX-License-Identifier: MIT */
/* The recorder logs all that changes the storage, in order. */
#include <errno.h>
#include <pthread.h>
#include <rhea/storage.h>

#include "lib/test.h"
#include "storage/fault.h"
#include "storage/memory.h"
#include "storage/record.h"

static struct rhea_error err;

static struct rhea_storage *recorder(struct record_log *log,
                                     const struct fault_plan *plan)
{
    struct rhea_storage *s = NULL;
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    if (plan)
        CHECK_OK(fault_open(&s, s, plan, &err), &err);
    CHECK_OK(record_open(&s, s, log, &err), &err);
    return s;
}

static const char *describe(const struct record_log *log, size_t i)
{
    static char text[64];
    record_describe(log, i, text, sizeof(text));
    return text;
}

static void make_log(struct record_log *log)
{
    struct rhea_storage *s = recorder(log, NULL);
    char text[] = "first";
    CHECK_OK(rhea_storage_write(s, text, 5, 10, &err), &err);
    text[0] = 'X'; /* the log has a copy */
    CHECK_OK(rhea_storage_read(s, text, 3, 10, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    CHECK_OK(rhea_storage_zero(s, 11, 2, true, &err), &err);
    CHECK_OK(rhea_storage_allocate(s, 0, 4096, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 512, &err), &err);
    rhea_storage_close(s);
}

static void changes_are_logged_in_order(void)
{
    struct record_log log = {0};
    make_log(&log);
    static const char *const want[] = {
        "0: write 5 at 10",      "1: flush", "2: zero 2 at 11",
        "3: allocate 4096 at 0", "4: flush", "5: truncate to 512"};
    CHECK_EQ(log.n_ops, 6);
    for (size_t i = 0; i < 6 && i < log.n_ops; i++)
        CHECK_STR(describe(&log, i), want[i]);
    CHECK_MEM(log.ops[0].data, "first", 5);
    CHECK_EQ(log.bytes, 5);
    CHECK_EQ(record_log_flushes(&log), 2);
    CHECK_EQ(record_log_find_flush(&log, 1), 4);
    CHECK_EQ(record_log_find_flush(&log, 2), 6);
    record_log_finish(&log);
}

static void failed_writes_count_and_failed_flushes_do_not(void)
{
    struct record_log log = {0};
    struct fault_plan plan = {
        .classes = FAULT_ANY, .at = 1, .code = EIO, .forever = true};
    struct rhea_storage *s = recorder(&log, &plan);
    CHECK_EQ(rhea_storage_write(s, "x", 1, 0, &err), -EIO);
    CHECK_EQ(rhea_storage_flush(s, &err), -EIO);
    CHECK_EQ(rhea_storage_truncate(s, 10, &err), -EIO);
    CHECK_EQ(rhea_storage_allocate(s, 0, 10, &err), -EIO);
    CHECK_EQ(rhea_storage_zero(s, 0, 10, false, &err), -EIO);
    CHECK_EQ(log.n_ops, 2);
    CHECK_STR(describe(&log, 0), "0: write 1 at 0");
    CHECK_STR(describe(&log, 1), "1: zero 10 at 0");
    rhea_storage_close(s);
    record_log_finish(&log);
}

static void a_log_can_be_spoilt(void)
{
    struct record_log log = {0}, copy;
    make_log(&log);
    if (!CHECK_OK(record_log_copy(&copy, &log, &err), &err))
        return;
    CHECK(record_log_remove_flush(&copy, 1));
    CHECK_EQ(copy.n_ops, 5);
    CHECK_STR(describe(&copy, 3), "3: allocate 4096 at 0");
    CHECK_STR(describe(&copy, 4), "4: truncate to 512");
    CHECK(!record_log_remove_flush(&copy, 1));
    CHECK(record_log_swap_across_flush(&copy, 0));
    CHECK_STR(describe(&copy, 0), "0: zero 2 at 11");
    CHECK_STR(describe(&copy, 1), "1: flush");
    CHECK_STR(describe(&copy, 2), "2: write 5 at 10");
    CHECK_MEM(copy.ops[2].data, "first", 5);
    CHECK(!record_log_swap_across_flush(&copy, 1));
    CHECK(!record_log_swap(&copy, 0, 5));
    record_log_finish(&copy);
    /* A flush at the end or the beginning has no other side. */
    CHECK(record_log_copy(&copy, &log, &err) == 0);
    CHECK(record_log_swap(&copy, 0, 1));
    CHECK(!record_log_swap_across_flush(&copy, 0));
    CHECK(record_log_swap(&copy, 4, 5));
    CHECK(!record_log_swap_across_flush(&copy, 1));
    record_log_finish(&copy);
    CHECK_EQ(log.n_ops, 6);
    CHECK_MEM(log.ops[0].data, "first", 5);
    record_log_finish(&log);
}

static void a_file_can_be_recorded(void)
{
    struct record_log log = {0};
    struct rhea_storage *s = NULL;
    CHECK_OK(rhea_file_open(&s, test_path("recorded"), RHEA_FILE_CREATE, &err),
             &err);
    if (!CHECK_OK(record_open(&s, s, &log, &err), &err))
        return;
    CHECK_STR(s->path, test_path("recorded"));
    CHECK(s->writable);
    CHECK(rhea_file_is_regular(s));
    CHECK_OK(rhea_storage_lock(s, RHEA_LOCK_ALL, 0, &err), &err);
    CHECK_OK(rhea_storage_write(s, "hello", 5, 0, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    rhea_storage_close(s);
    CHECK_EQ(log.n_ops, 2);
    CHECK_EQ(test_command("grep -q hello %s", test_path("recorded")), 0);
    record_log_finish(&log);
}

static void *write_many(void *opaque)
{
    struct rhea_error e;
    uint8_t buf[1000];
    for (unsigned i = 0; i < 500; i++) {
        test_fill(buf, sizeof(buf), i);
        rhea_storage_write(opaque, buf, sizeof(buf), i * 700, &e);
    }
    return NULL;
}

/* Where threads overwrite each other, the log tells who was last. */
static void the_log_is_in_the_order_of_the_writes(void)
{
    struct record_log log = {0};
    struct rhea_storage *s = recorder(&log, NULL), *again;
    struct rhea_storage *copy;
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, write_many, s);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(log.n_ops, 2000);
    CHECK_OK(rhea_memory_open(&again, INT64_MAX, &err), &err);
    for (size_t i = 0; i < log.n_ops; i++)
        CHECK_OK(rhea_storage_write(again, log.ops[i].data,
                                    (size_t)log.ops[i].length,
                                    log.ops[i].offset, &err),
                 &err);
    if (CHECK_OK(memory_snapshot(&copy, s, &err), &err)) {
        CHECK(memory_digest(copy) == memory_digest(again));
        rhea_storage_close(copy);
    }
    rhea_storage_close(s);
    rhea_storage_close(again);
    record_log_finish(&log);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(changes_are_logged_in_order);
    TEST(failed_writes_count_and_failed_flushes_do_not);
    TEST(a_log_can_be_spoilt);
    TEST(a_file_can_be_recorded);
    TEST(the_log_is_in_the_order_of_the_writes);
    return test_finish();
}
