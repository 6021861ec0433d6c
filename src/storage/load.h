/* SPDX-License-Identifier: MIT */
/*
 * Libraries that few programs need and that take long to start, loaded when
 * they are first asked for. They stay loaded until the process ends.
 */
#ifndef RHEA_STORAGE_LOAD_H
#define RHEA_STORAGE_LOAD_H

#include <pthread.h>
#include <stddef.h>

#include <rhea/base.h>

struct load_symbol {
    const char *name; /* NULL ends a list */
    size_t offset;    /* of its pointer in the table of functions */
};

struct load_library {
    const char *names[3]; /* file names to try; ends with NULL */
    pthread_mutex_t lock;
    bool loaded;
};

#define LOAD_LIBRARY(first, second)                                            \
    {                                                                          \
        .names = {first, second, NULL}, .lock = PTHREAD_MUTEX_INITIALIZER      \
    }

/* Load it once, and fill in the table FUNCTIONS. -ENOENT: it is not there. */
int load_library(struct load_library *library,
                 const struct load_symbol *symbols, void *functions,
                 struct rhea_error *err);

#endif
