/* SPDX-License-Identifier: MIT */
/*
 * A read of a QCOW2 cluster that another thread gives back meanwhile, makes
 * durable and writes anew for another place of the disk, returned the other
 * place's bytes: the data was read after the lock of the tables was let go.
 */
#include <errno.h>
#include <pthread.h>
#include <rhea/image.h>
#include <stdatomic.h>
#include <time.h>

#include "lib/test.h"
#include "storage/internal.h"

enum { CLUSTER = 65536 };

static struct rhea_image *image;
static atomic_bool armed, reused;
static pthread_t thief;

/* Give the first cluster back and fill others, which would take its place. */
static void *reuse(void *opaque)
{
    static uint8_t bytes[CLUSTER];
    struct rhea_error err;

    (void)opaque;
    memset(bytes, 'b', sizeof(bytes));
    CHECK_OK(rhea_image_write_zeroes(image, 0, CLUSTER, true, &err), &err);
    CHECK_OK(rhea_image_flush(image, &err), &err);
    for (unsigned i = 1; i < 8; i++)
        CHECK_OK(rhea_image_write(image, bytes, CLUSTER, i * CLUSTER, &err),
                 &err);
    atomic_store(&reused, true);
    return NULL;
}

/* A disk so slow that all of that could happen before the bytes are read. */
static int64_t slow_pread(struct rhea_storage *s, void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    struct rhea_storage *inner = ((struct storage_wrapper *)s)->inner;
    struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};

    if (len == CLUSTER && atomic_exchange(&armed, false)) {
        pthread_create(&thief, NULL, reuse, NULL);
        for (unsigned i = 0; i < 30 && !atomic_load(&reused); i++)
            nanosleep(&pause, NULL);
    }
    return inner->ops->pread(inner, buf, len, offset, err);
}

static int slow_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    return rhea_storage_write(((struct storage_wrapper *)s)->inner, buf, len,
                              offset, err);
}

static int slow_flush(struct rhea_storage *s, struct rhea_error *err)
{
    return rhea_storage_flush(((struct storage_wrapper *)s)->inner, err);
}

static int slow_truncate(struct rhea_storage *s, uint64_t size,
                         struct rhea_error *err)
{
    return rhea_storage_truncate(((struct storage_wrapper *)s)->inner, size,
                                 err);
}

static int slow_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                     bool punch, struct rhea_error *err)
{
    return rhea_storage_zero(((struct storage_wrapper *)s)->inner, offset, len,
                             punch, err);
}

static int slow_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    return rhea_storage_allocate(((struct storage_wrapper *)s)->inner, offset,
                                 len, err);
}

static void slow_close(struct rhea_storage *s)
{
    storage_unwrap((struct storage_wrapper *)s);
}

static const struct rhea_storage_ops slow_ops = {
    .name = "slow",
    .pread = slow_pread,
    .pwrite = slow_pwrite,
    .flush = slow_flush,
    .size = storage_wrapper_size,
    .truncate = slow_truncate,
    .zero = slow_zero,
    .allocate = slow_allocate,
    .close = slow_close,
};

static struct rhea_storage *slow_open(void)
{
    const struct rhea_create how = {.size = 16 * CLUSTER};
    struct storage_wrapper *w = calloc(1, sizeof(*w));
    struct rhea_storage *inner;
    struct rhea_error err;

    CHECK_OK(rhea_memory_open(&inner, UINT64_MAX, &err), &err);
    CHECK_OK(rhea_format_find("qcow2")->create(inner, &how, &err), &err);
    CHECK_OK(storage_wrap(w, &slow_ops, inner, &err), &err);
    return &w->head;
}

static void a_read_keeps_its_cluster(void)
{
    static uint8_t bytes[CLUSTER], expected[CLUSTER];
    struct rhea_error err;

    memset(expected, 'a', sizeof(expected));
    if (!CHECK_OK(rhea_image_open_storage(&image, slow_open(), "slow", "qcow2",
                                          RHEA_IMAGE_WRITE, &err),
                  &err))
        return;
    CHECK_OK(rhea_image_write(image, expected, CLUSTER, 0, &err), &err);
    CHECK_OK(rhea_image_flush(image, &err), &err);

    atomic_store(&armed, true);
    CHECK_OK(rhea_image_read(image, bytes, CLUSTER, 0, &err), &err);
    CHECK(!atomic_load(&armed));
    CHECK_MEM(bytes, expected, CLUSTER);
    pthread_join(thief, NULL);
    CHECK(atomic_load(&reused));
    CHECK_OK(rhea_image_close(image, &err), &err);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_read_keeps_its_cluster);
    return test_finish();
}
