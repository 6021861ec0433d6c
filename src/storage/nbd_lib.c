/* SPDX-License-Identifier: MIT */
#include "storage/nbd_lib.h"

#include "storage/load.h"

static const struct load_symbol symbols[] = {
#define NBD_SYMBOL(name) {"nbd_" #name, offsetof(struct nbd_lib, name)},
    NBD_FUNCTIONS(NBD_SYMBOL)
#undef NBD_SYMBOL
        {0},
};

const struct nbd_lib *nbd_lib_get(struct rhea_error *err)
{
    static struct nbd_lib functions;
    static struct load_library library = LOAD_LIBRARY("libnbd.so.0", NULL);

    return load_library(&library, symbols, &functions, err) < 0 ? NULL
                                                                : &functions;
}
