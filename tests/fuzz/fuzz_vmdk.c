/* SPDX-License-Identifier: MIT */
/*
 * The VMDK driver: every call that it has, on any image. What begins with '#'
 * is a descriptor up to the first NUL; the rest is a file, which is every one
 * that the descriptor names.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "format/vmdk/vmdk.h"
#include "guest.h"
#include "reader.h"

static struct {
    const uint8_t *text;
    size_t len;
    struct rhea_storage *descriptor; /* of the image that is open */
    bool taken;                      /* its file, for writing */
} now;

static int files_open(void *opaque, const char *name, bool write,
                      struct rhea_storage **out, struct rhea_error *err)
{
    FUZZ_REQUIRE(*name, "a file without a name");
    /* As its lock would do. */
    if (now.taken && write)
        return rhea_error_set(err, EBUSY, "it is in use");
    now.taken = write;
    *out = opaque;
    return 0;
}

static int files_find_parent(void *opaque, const char *const *names, size_t n,
                             char **out, struct rhea_error *err)
{
    (void)opaque;
    FUZZ_REQUIRE(n == 1, "%zu parents", n);
    *out = strdup(*names[0] ? names[0] : ".");
    return *out ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

static struct rhea_files files = {.open = files_open,
                                  .find_parent = files_find_parent};

static int beside_open(struct rhea_format **out,
                       const struct rhea_format_open *how,
                       struct rhea_error *err)
{
    struct rhea_format_open own = *how;
    FUZZ_REQUIRE(!now.descriptor, "opened twice");
    now.taken = false;
    FUZZ_REQUIRE(!rhea_memory_open(&now.descriptor, INT64_MAX, NULL), "memory");
    FUZZ_REQUIRE(
        !rhea_storage_write(now.descriptor, now.text, now.len, 0, NULL),
        "memory");
    files.opaque = guest_other = how->storage;
    own.storage = now.descriptor;
    own.files = &files;
    int ret = rhea_format_vmdk.open(out, &own, err);
    if (ret) {
        rhea_storage_close(now.descriptor);
        now.descriptor = NULL;
    }
    return ret;
}

static int beside_close(struct rhea_format *f, struct rhea_error *err)
{
    int ret = rhea_format_vmdk.close(f, err);
    rhea_storage_close(now.descriptor);
    now.descriptor = NULL;
    return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    if (!end || *data != '#')
        return reader_fuzz("vmdk", data, size);
    struct rhea_format_ops ops = rhea_format_vmdk;
    struct rhea_storage *s;
    size_t rest = size - (size_t)(end - data) - 1;
    ops.open = beside_open;
    ops.close = beside_close;
    /* The descriptor that it would write is not kept. */
    ops.resize = NULL;
    now.text = data;
    now.len = (size_t)(end - data);
    FUZZ_REQUIRE(!rhea_memory_open(&s, INT64_MAX, NULL), "memory");
    FUZZ_REQUIRE(!rest || !rhea_storage_write(s, end + 1, rest, 0, NULL),
                 "memory");
    reader_run(&ops, s, size);
    rhea_storage_close(s);
    return 0;
}
