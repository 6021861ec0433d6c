/* SPDX-License-Identifier: MIT */
/* Injected faults happen where and as often as they were asked for. */
#include <errno.h>
#include <rhea/storage.h>

#include "lib/test.h"
#include "storage/fault.h"

static struct rhea_error err;

static struct rhea_storage *faulty(struct fault_plan plan)
{
    struct rhea_storage *s = NULL;
    static uint8_t old[4096];
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    memset(old, 'o', sizeof(old));
    CHECK_OK(rhea_storage_write(s, old, sizeof(old), 0, &err), &err);
    CHECK_OK(fault_open(&s, s, &plan, &err), &err);
    return s;
}

/* One call of each class; a bit for each that failed. */
static unsigned call_all(struct rhea_storage *s)
{
    uint8_t buf[2048] = {0};
    unsigned failed = 0;
    failed |= rhea_storage_read(s, buf, 1, 0, &err) ? FAULT_READ : 0;
    failed |= rhea_storage_write(s, buf, 2048, 0, &err) ? FAULT_WRITE : 0;
    failed |= rhea_storage_flush(s, &err) ? FAULT_FLUSH : 0;
    failed |= rhea_storage_truncate(s, 4096, &err) ? FAULT_TRUNCATE : 0;
    failed |= rhea_storage_zero(s, 0, 2048, true, &err) ? FAULT_ZERO : 0;
    failed |= rhea_storage_allocate(s, 0, 2048, &err) ? FAULT_ALLOCATE : 0;
    return failed;
}

static void each_class_fails_alone(void)
{
    for (unsigned class = 1; class & FAULT_ANY; class <<= 1) {
        struct rhea_storage *s =
            faulty((struct fault_plan){.classes = class, .at = 2, .code = EIO});
        CHECK_EQ(call_all(s), 0);
        CHECK_EQ(call_all(s), class);
        CHECK_EQ(err.code, EIO);
        CHECK_CONTAINS(err.text, "injected");
        CHECK_EQ(call_all(s), 0);
        CHECK_EQ(fault_calls(s, class), 3);
        CHECK_EQ(fault_calls(s, FAULT_ANY), 18);
        CHECK_EQ(fault_hits(s), 1);
        rhea_storage_close(s);

        s = faulty((struct fault_plan){
            .classes = class, .at = 2, .code = EROFS, .forever = true});
        CHECK_EQ(call_all(s), 0);
        CHECK_EQ(call_all(s), class);
        CHECK_EQ(call_all(s), class);
        CHECK_EQ(err.code, EROFS);
        rhea_storage_close(s);
    }
}

static void every_call_in_turn_can_fail(void)
{
    struct rhea_storage *s = faulty((struct fault_plan){0});
    CHECK_EQ(call_all(s), 0);
    uint64_t calls = fault_calls(s, FAULT_ANY);
    CHECK_EQ(calls, 6);
    rhea_storage_close(s);
    for (uint64_t at = 1; at <= calls; at++) {
        s = faulty(
            (struct fault_plan){.classes = FAULT_ANY, .at = at, .code = EIO});
        CHECK_EQ(call_all(s), 1u << (at - 1)); /* classes are in that order */
        rhea_storage_close(s);
    }
}

static void a_failed_write_changes_nothing_or_half(void)
{
    uint8_t buf[4096], got[4096], old[4096];
    memset(buf, 'n', sizeof(buf));
    memset(old, 'o', sizeof(old));
    for (unsigned half = 0; half < 2; half++) {
        struct rhea_storage *s =
            faulty((struct fault_plan){.classes = FAULT_WRITE | FAULT_ZERO,
                                       .at = 1,
                                       .code = EIO,
                                       .forever = true,
                                       .half_done = half});
        CHECK_EQ(rhea_storage_write(s, buf, 2000, 600, &err), -EIO);
        CHECK_OK(rhea_storage_read(s, got, 4096, 0, &err), &err);
        CHECK_MEM(got, old, 600);
        CHECK_MEM(got + 600, half ? buf : old, 1536 - 600);
        CHECK_MEM(got + 1536, old, 4096 - 1536);
        CHECK_EQ(rhea_storage_zero(s, 0, 1024, false, &err), -EIO);
        CHECK_OK(rhea_storage_read(s, got, 4096, 0, &err), &err);
        CHECK_EQ(got[0], half ? 0 : 'o');
        CHECK_EQ(got[511], half ? 0 : 'o');
        CHECK_EQ(got[512], 'o');
        rhea_storage_close(s);
    }
}

static void a_storage_may_shrink_under_its_reader(void)
{
    uint8_t buf[100];
    uint64_t size = 0;
    struct rhea_storage *s =
        faulty((struct fault_plan){.shrink_at = 2, .shrink_to = 1000});
    CHECK_OK(rhea_storage_read(s, buf, 100, 950, &err), &err);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 4096);
    CHECK_EQ(rhea_storage_read(s, buf, 100, 950, &err), -EIO);
    CHECK_CONTAINS(err.text, "past the end of the file");
    CHECK_OK(rhea_storage_read(s, buf, 50, 950, &err), &err);
    CHECK_OK(rhea_storage_read_padded(s, buf, 100, 950, &err), &err);
    CHECK_EQ(buf[49], 'o');
    CHECK_EQ(buf[50], 0);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 1000);
    rhea_storage_close(s);
}

static void growth_can_be_limited(void)
{
    uint8_t buf[2000] = {0};
    uint64_t size = 0;
    struct rhea_storage *s =
        faulty((struct fault_plan){.limit_growth = true, .budget = 1000});
    CHECK_OK(rhea_storage_write(s, buf, 2000, 0, &err), &err);
    CHECK_EQ(rhea_storage_write(s, buf, 1001, 4096, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_zero(s, 4096, 1001, true, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_allocate(s, 0, 5097, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_truncate(s, 5097, &err), -ENOSPC);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 4096);
    CHECK_EQ(fault_hits(s), 4);
    CHECK_OK(rhea_storage_allocate(s, 0, 5096, &err), &err);
    CHECK_OK(rhea_storage_write(s, buf, 1000, 4096, &err), &err);
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(each_class_fails_alone);
    TEST(every_call_in_turn_can_fail);
    TEST(a_failed_write_changes_nothing_or_half);
    TEST(a_storage_may_shrink_under_its_reader);
    TEST(growth_can_be_limited);
    return test_finish();
}
