/* SPDX-License-Identifier: MIT */
/* Local files and block devices, as names and options ask for them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/driver.h"
#include "storage/file.h"

static int driver_parse(const char *name, struct storage_options *options,
                        struct rhea_error *err)
{
    const struct storage_driver *named = storage_driver_of_name(name);
    bool prefix =
        named == &storage_driver_file || named == &storage_driver_host_device;
    const char *path = prefix ? name + storage_name_protocol(name) : name;
    RHEA_AUTO_FREE char *longer = NULL;
    /* What now looks like a protocol is none. */
    if (prefix && storage_name_protocol(path)) {
        if (asprintf(&longer, "./%s", path) < 0)
            return rhea_error_set(err, ENOMEM, "out of memory");
        path = longer;
    }
    return storage_options_set(options, "filename", path, STORAGE_OPTION_STRING,
                               err);
}

/* Those that change nothing here, and what they may be. */
static int driver_take_unimportant(const struct storage_options *o,
                                   struct rhea_error *err)
{
    static const struct {
        const char *name, *values[8];
    } known[] = {
        {"aio", {"threads", "native", "io_uring"}},
        {"aio-max-batch", {NULL}},
        {"drop-cache", {"on", "off", "true", "false"}},
        {"x-check-cache-dropped", {"on", "off", "true", "false"}},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(known); i++) {
        const char *value = storage_options_get(o, known[i].name);
        bool ok = !value || !known[i].values[0];
        for (size_t j = 0; !ok && known[i].values[j]; j++)
            ok = strcmp(known[i].values[j], value) == 0;
        if (!ok)
            return rhea_error_set(err, EINVAL, "option %s cannot be '%s'",
                                  known[i].name, value);
    }
    return 0;
}

static int driver_get_locking(const struct storage_options *o, bool *locking,
                              struct rhea_error *err)
{
    const char *value = storage_options_get(o, "locking");
    *locking = true;
    if (!value || strcmp(value, "auto") == 0)
        return 0;
    return storage_options_bool(o, "locking", locking, err);
}

static int driver_open(struct rhea_storage **out,
                       const struct storage_open *how, bool regular,
                       struct rhea_error *err)
{
    const char *filename = storage_options_get(how->options, "filename");
    struct rhea_storage *storage;
    bool locking = true;
    if (!filename)
        return rhea_error_set(err, EINVAL,
                              "which file? There is no option "
                              "filename");
    if (!*filename)
        return rhea_error_set(err, ENOENT, "an empty file name");
    int ret = driver_take_unimportant(how->options, err);
    if (!ret)
        ret = driver_get_locking(how->options, &locking, err);
    if (!ret)
        ret = rhea_file_open(&storage, filename, how->flags, err);
    if (ret)
        return ret;
    struct file *f = (struct file *)storage;
    f->no_lock = !locking;
    if (f->regular == regular) {
        *out = storage;
        return 0;
    }
    ret = rhea_error_set(err, EINVAL,
                         regular ? "'%s' is not a file: its driver is "
                                   "host_device"
                                 : "'%s' is not a block device",
                         filename);
    rhea_storage_close(storage);
    return ret;
}

static int driver_open_file(struct rhea_storage **out,
                            const struct storage_open *how,
                            struct rhea_error *err)
{
    return driver_open(out, how, true, err);
}

static int driver_open_device(struct rhea_storage **out,
                              const struct storage_open *how,
                              struct rhea_error *err)
{
    return driver_open(out, how, false, err);
}

static char *driver_plain_name(const struct storage_options *options,
                               const char *child)
{
    const char *filename = storage_options_peek(options, "filename");
    (void)child;
    return filename ? strdup(filename) : NULL;
}

const struct storage_driver storage_driver_file = {
    .name = "file",
    .protocols = (const char *const[]){"file", NULL},
    .parse = driver_parse,
    .open = driver_open_file,
    .plain_name = driver_plain_name,
    .can_create = true,
    .create_options = file_create_options,
    .prepare_new = file_prepare_new,
};

const struct storage_driver storage_driver_host_device = {
    .name = "host_device",
    .protocols = (const char *const[]){"host_device", NULL},
    .parse = driver_parse,
    .open = driver_open_device,
    .plain_name = driver_plain_name,
};
