/* SPDX-License-Identifier: MIT */
/*
 * Configuration files of blkdebug storages, and what such a storage does to an
 * image: whatever fails, nothing but the write that failed is lost.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "fuzz.h"
#include "storage/blkdebug_rules.h"

enum { SIZE = 1 << 16, MOST = 1 << 14 };

/* The file, as a name. */
static int blkdebug_file(const uint8_t *data, size_t size, char *name,
                         size_t room)
{
    int fd = memfd_create("rules", MFD_CLOEXEC);

    FUZZ_REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size, "a file");
    snprintf(name, room, "/proc/self/fd/%d", fd);
    return fd;
}

static void blkdebug_look(const struct blkdebug_rules *rules)
{
    for (size_t i = 0; i < rules->n; i++) {
        const struct blkdebug_rule *r = &rules->items[i];

        FUZZ_REQUIRE(blkdebug_event_find(r->event) == r->event, "rule %zu", i);
        FUZZ_REQUIRE(r->action != BLKDEBUG_BREAK, "a file has no breaks");
        FUZZ_REQUIRE(r->error >= 0, "error %d", r->error);
    }
}

static int blkdebug_child(void *opaque, const char *child, const char *name,
                          struct rhea_storage **out, struct rhea_error *err)
{
    (void)opaque;
    (void)child;
    (void)name;
    return rhea_memory_open(out, SIZE, err);
}

/* Every event, and reads and writes between; the bytes are those of the writes
 * that did not fail. */
static void blkdebug_use(struct rhea_storage *s)
{
    static const char *const events[] = {"read_aio",      "write_aio",
                                         "l2_load",       "cluster_alloc",
                                         "flush_to_disk", "none"};
    uint8_t model[4096] = {0}, bytes[512], got[512];
    bool known[8];

    memset(known, true, sizeof(known));
    FUZZ_REQUIRE(!rhea_storage_truncate(s, sizeof(model), NULL), "memory");
    for (unsigned i = 0; i < 64; i++) {
        unsigned at = i * 5 % 8;

        rhea_storage_event(s, events[i % RHEA_ARRAY_SIZE(events)]);
        memset(bytes, (int)i + 1, sizeof(bytes));
        if (rhea_storage_write(s, bytes, sizeof(bytes), at * 512, NULL)) {
            known[at] = false;
        } else {
            known[at] = true;
            memcpy(model + at * 512, bytes, sizeof(bytes));
        }
        at = i * 3 % 8;
        if (rhea_storage_read(s, got, sizeof(got), at * 512, NULL) == 0)
            FUZZ_REQUIRE(!known[at] ||
                             !memcmp(got, model + at * 512, sizeof(got)),
                         "other bytes in sector %u", at);
        if (i % 7 == 0)
            rhea_storage_flush(s, NULL);
    }
}

static void blkdebug_open(const char *filename)
{
    struct storage_options options = {0};
    struct storage_open how = {.options = &options,
                               .flags = RHEA_FILE_WRITE,
                               .open_child = blkdebug_child};
    struct rhea_storage *s;

    FUZZ_REQUIRE(!storage_options_set(&options, "config", filename,
                                      STORAGE_OPTION_STRING, NULL),
                 "memory");
    if (storage_driver_blkdebug.open(&s, &how, NULL) == 0) {
        blkdebug_use(s);
        rhea_storage_close(s);
    }
    storage_options_finish(&options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct blkdebug_rules rules = {0};
    char name[64];
    int fd =
        blkdebug_file(data, RHEA_MIN(size, (size_t)MOST), name, sizeof(name));

    if (blkdebug_rules_read(&rules, name, NULL) == 0)
        blkdebug_look(&rules);
    blkdebug_rules_finish(&rules);
    blkdebug_open(name);
    close(fd);
    return 0;
}
