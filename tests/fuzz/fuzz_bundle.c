/* SPDX-License-Identifier: MIT */
/*
 * DiskDescriptor.xml: any text as the descriptor of a bundle whose files are
 * all there, growing ones of one size, and empty. Whatever is done to its
 * snapshots and its size, the descriptor that is written is one that can be
 * read, and says what was done.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/hds.h"
#include "format/parallels/prl_xml.h"
#include "fuzz.h"

enum { FILES_MAX = 64, SIZE = 64 << 10, CHANGES = 6 };

struct folder {
    struct rhea_storage *files[FILES_MAX];
    char *names[FILES_MAX];
    unsigned n;
    struct rhea_storage *descriptor;
    struct rhea_files ops;
};

static int folder_add(struct folder *d, const char *name, bool blank,
                      struct rhea_storage **out, struct rhea_error *err)
{
    const struct hds_layout layout = {.size = SIZE, .cluster_size = 4096};
    FUZZ_REQUIRE(*name && *name != '/' && !strchr(name, '\\'),
                 "the file '%s' is opened", name);
    for (unsigned i = 0; i < d->n; i++)
        if (d->names[i] && strcmp(d->names[i], name) == 0) {
            *out = d->files[i];
            return 0;
        }
    if (d->n == FILES_MAX)
        return rhea_error_set(err, EMFILE, "too many files");
    FUZZ_REQUIRE(!rhea_memory_open(out, INT64_MAX, NULL), "memory");
    if (!blank)
        FUZZ_REQUIRE(!hds_create(*out, &layout, NULL), "creating");
    d->names[d->n] = strdup(name);
    d->files[d->n++] = *out;
    return 0;
}

static int folder_open(void *opaque, const char *name, bool write,
                       struct rhea_storage **out, struct rhea_error *err)
{
    (void)write;
    return folder_add(opaque, name, false, out, err);
}

static int folder_create(void *opaque, const char *name,
                         struct rhea_storage **out, struct rhea_error *err)
{
    return folder_add(opaque, name, true, out, err);
}

static int folder_replace(void *opaque, const char *name, const void *data,
                          size_t len, struct rhea_error *err)
{
    struct folder *d = opaque;
    (void)err;
    FUZZ_REQUIRE(!name, "another file is replaced");
    FUZZ_REQUIRE(!rhea_storage_truncate(d->descriptor, 0, NULL) &&
                     !rhea_storage_write(d->descriptor, data, len, 0, NULL),
                 "memory");
    return 0;
}

static int folder_remove(void *opaque, const char *name, struct rhea_error *err)
{
    struct folder *d = opaque;
    for (unsigned i = 0; i < d->n; i++)
        if (d->names[i] && strcmp(d->names[i], name) == 0) {
            free(d->names[i]);
            d->names[i] = NULL;
            return 0;
        }
    return rhea_error_set(err, ENOENT, "no such file");
}

static struct rhea_format *bundle_open(struct folder *d, unsigned flags)
{
    const struct rhea_format_open how = {
        .storage = d->descriptor, .flags = flags, .files = &d->ops};
    struct rhea_format *f = NULL;
    struct rhea_error err;
    if (rhea_format_find("parallels")->open(&f, &how, &err)) {
        FUZZ_REQUIRE(*err.text, "an error without a text");
        return NULL;
    }
    return f;
}

/* A byte of each file, and each snapshot's. */
static void bundle_read(struct folder *d, struct rhea_format *f)
{
    struct rhea_snapshot *list = NULL;
    struct rhea_check check = {0};
    size_t n = 0;
    for (uint64_t at = 0; at < f->size;) {
        struct rhea_extent x;
        if (f->ops->map(f, at, f->size - at, &x, NULL))
            break;
        FUZZ_REQUIRE(x.length && x.length <= f->size - at, "a run");
        at += x.length;
    }
    f->ops->check(f, 0, &check, NULL);
    FUZZ_REQUIRE(!f->ops->snapshot_list(f, &list, &n, NULL), "listing");
    for (size_t i = 0; i < n && i < 4; i++) {
        struct rhea_format *one = bundle_open(d, 0);
        if (!one)
            continue;
        one->ops->snapshot_load(one, list[i].id, NULL);
        one->ops->close(one, NULL);
    }
    rhea_snapshots_free(list, n);
}

static int bundle_change(struct rhea_format *f, uint64_t *random)
{
    struct rhea_snapshot *list = NULL, what = {.name = (char *)"n & <m>"};
    const struct rhea_resize how = {
        .size = fuzz_random(random) % (2 * SIZE / 512) * 512, .shrink = true};
    uint8_t bytes[700] = {1};
    size_t n = 0;
    int ret;
    f->ops->snapshot_list(f, &list, &n, NULL);
    const char *which = n ? list[fuzz_random(random) % n].id : "none";
    switch (fuzz_random(random) % 5) {
    case 0:
        ret = f->ops->snapshot_create(f, &what, NULL);
        break;
    case 1:
        ret = f->ops->snapshot_apply(f, which, NULL);
        break;
    case 2:
        ret = f->ops->snapshot_delete(f, which, NULL);
        break;
    case 3:
        ret = f->ops->resize(f, &how, NULL);
        break;
    default:
        ret = f->size > sizeof(bytes)
                  ? f->ops->write(
                        f, fuzz_random(random) % (f->size - sizeof(bytes)),
                        bytes, sizeof(bytes), NULL)
                  : 0;
    }
    rhea_snapshots_free(list, n);
    return ret;
}

static void bundle_run(struct folder *d, uint64_t seed)
{
    struct rhea_format *f = bundle_open(d, 0);
    if (!f)
        return;
    bundle_read(d, f);
    f->ops->close(f, NULL);
    for (unsigned i = 0; i < CHANGES; i++) {
        f = bundle_open(d, RHEA_FORMAT_WRITE);
        if (!f)
            break;
        int ret = bundle_change(f, &seed);
        f->ops->close(f, NULL);
        f = bundle_open(d, 0);
        FUZZ_REQUIRE(f || ret, "what was changed cannot be read any more");
        if (f) {
            bundle_read(d, f);
            f->ops->close(f, NULL);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct folder d = {.ops = {.open = folder_open,
                               .create = folder_create,
                               .replace = folder_replace,
                               .remove = folder_remove}};
    uint64_t seed = size;
    d.ops.opaque = &d;
    if (!prl_probe(data, size))
        return 0;
    for (size_t i = size < 64 ? 0 : size - 64; i < size; i++)
        seed = seed * 31 + data[i];
    FUZZ_REQUIRE(!rhea_memory_open(&d.descriptor, INT64_MAX, NULL) &&
                     !rhea_storage_write(d.descriptor, data, size, 0, NULL),
                 "memory");
    bundle_run(&d, seed);
    for (unsigned i = 0; i < d.n; i++) {
        rhea_storage_close(d.files[i]);
        free(d.names[i]);
    }
    rhea_storage_close(d.descriptor);
    return 0;
}
