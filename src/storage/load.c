/* SPDX-License-Identifier: MIT */
#include "storage/load.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"

static int load_symbols(const struct load_library *library, void *handle,
                        const struct load_symbol *symbols, void *functions,
                        struct rhea_error *err)
{
    for (; symbols->name; symbols++) {
        void *found = dlsym(handle, symbols->name);

        if (!found)
            return rhea_error_set(err, ENOENT,
                                  "the library %s has no function %s: it is "
                                  "too old",
                                  library->names[0], symbols->name);
        memcpy((char *)functions + symbols->offset, &found, sizeof(found));
    }
    return 0;
}

int load_library(struct load_library *library,
                 const struct load_symbol *symbols, void *functions,
                 struct rhea_error *err)
{
    void *handle = NULL;
    const char *const *name = library->names;
    int ret;

    RHEA_LOCKED(&library->lock);
    if (library->loaded)
        return 0;
    for (; !handle && *name; name++)
        handle = dlopen(*name, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return rhea_error_set(err, ENOENT,
                              "this needs the library %s, which cannot be "
                              "loaded: install it",
                              library->names[0]);
    ret = load_symbols(library, handle, symbols, functions, err);
    if (ret < 0)
        dlclose(handle);
    else
        library->loaded = true;
    return ret;
}
