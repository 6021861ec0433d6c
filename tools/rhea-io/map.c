/* SPDX-License-Identifier: MIT */
/* The commands alloc, map, length and info: what there is. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "io.h"
#include "storage/driver.h"

/* Whether the image itself, whatever is below it, has what is at OFFSET, and
 * for how many bytes, at most LEN, that holds. */
static int map_allocated(struct io *io, uint64_t offset, uint64_t len,
                         bool *allocated, uint64_t *run)
{
    struct rhea_image *below = rhea_image_backing(io->image);
    uint64_t end = offset + len, at = offset;

    for (; at < end;) {
        struct rhea_image_extent found;
        struct rhea_error err;
        int ret =
            rhea_image_map_above(io->image, below, at, end - at, &found, &err);
        const struct rhea_extent *x = &found.extent;

        if (ret < 0) {
            tool_fail(rhea_image_filename(io->image), &err, 1);
            return ret;
        }
        if (at == offset)
            *allocated = x->kind != RHEA_EXTENT_UNALLOCATED;
        else if (*allocated != (x->kind != RHEA_EXTENT_UNALLOCATED))
            break;
        at += x->length;
    }
    *run = at - offset;
    return 0;
}

static int alloc_run(struct io *io, int argc, char **argv)
{
    uint64_t start, count = IO_SECTOR, sum = 0, size, at;
    int ret = io_size(argv[1], &start);

    if (ret == 0 && argc > 2)
        ret = io_size(argv[2], &count);
    if (ret < 0)
        return ret;
    size = rhea_image_size(io->image);
    count = start < size ? RHEA_MIN(count, size - start) : 0;
    for (at = start; at < start + count;) {
        bool allocated;
        uint64_t run;

        ret = map_allocated(io, at, start + count - at, &allocated, &run);
        if (ret < 0)
            return ret;
        sum += allocated ? run : 0;
        at += run;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, count,
           io_bytes((double)start).text);
    return 0;
}

static int map_run(struct io *io, int argc, char **argv)
{
    uint64_t size = rhea_image_size(io->image), at = 0;

    (void)argc;
    (void)argv;
    while (at < size) {
        bool allocated;
        uint64_t run;
        int ret = map_allocated(io, at, size - at, &allocated, &run);

        if (ret < 0)
            return ret;
        printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
               io_bytes((double)run).text, run,
               allocated ? "    allocated" : "not allocated",
               io_bytes((double)at).text, at);
        at += run;
    }
    return 0;
}

static int length_run(struct io *io, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("%s\n", io_bytes((double)rhea_image_size(io->image)).text);
    return 0;
}

/* Where QCOW2 keeps the VM state: behind the L2 tables that the disk takes. */
static uint64_t info_vm_state(const struct rhea_format *f,
                              const struct rhea_facts *facts, uint64_t cluster)
{
    const struct rhea_fact *wide = rhea_facts_find(facts, "extended-l2");
    uint64_t span;

    if (strcmp(f->ops->name, "qcow2") || !cluster)
        return 0;
    span = cluster / (wide && wide->number ? 16 : 8) * cluster;
    return div_up(f->size, span) * span;
}

static int info_run(struct io *io, int argc, char **argv)
{
    struct rhea_format *f = rhea_image_format(io->image);
    const char *driver = rhea_image_driver(io->image);
    struct rhea_facts facts = {.n = 0};
    struct rhea_format_info info;
    struct rhea_error err;
    int ret = 0;

    (void)argc;
    (void)argv;
    rhea_image_info(io->image, &info);
    if (f->ops->facts)
        ret = f->ops->facts(f, &facts, &err);
    if (ret == 0 && facts.failed)
        ret = rhea_error_set(&err, ENOMEM, "out of memory");
    if (ret < 0) {
        tool_fail(rhea_image_filename(io->image), &err, 1);
        rhea_facts_free(&facts);
        return ret;
    }
    printf("format name: %s\n", driver);
    /* Where there is but a storage qemu-io names that twice. */
    if (storage_driver_find(driver))
        printf("format name: %s\n", driver);
    if (!strncmp(driver, "null-", 5))
        return 0;
    printf("cluster size: %s\n", io_bytes(info.cluster_size).text);
    printf("vm state offset: %s\n",
           io_bytes((double)info_vm_state(f, &facts, info.cluster_size)).text);
    if (facts.n && !strcmp(driver, f->ops->name)) {
        printf("Format specific information:\n");
        tool_facts_print(&facts);
    }
    rhea_facts_free(&facts);
    return 0;
}

const struct io_command io_alloc = {
    .name = "alloc",
    .alias = "a",
    .run = alloc_run,
    .min = 1,
    .max = 2,
    .args = "offset [count]",
    .summary = "tell how many bytes the image itself has",
};

const struct io_command io_map = {
    .name = "map",
    .run = map_run,
    .summary = "list what the image itself has",
};

const struct io_command io_length_command = {
    .name = "length",
    .alias = "l",
    .run = length_run,
    .summary = "tell the size of the disk",
};

const struct io_command io_info = {
    .name = "info",
    .alias = "i",
    .run = info_run,
    .summary = "tell of the format",
};
