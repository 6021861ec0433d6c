/* SPDX-License-Identifier: MIT */
/* A target description (gdb's manual, "Target Description Format"), as far as
 * it tells which registers there are. */
#ifndef RHEA_GDB_DESCRIPTION_H
#define RHEA_GDB_DESCRIPTION_H

#include "gdb/experiment.h"

enum {
    DESCRIPTION_MAX_FILES = 32, /* that include each other */
};

struct description {
    char architecture[64];
    struct layout layout;
    char *text; /* all in one file */
};

void description_finish(struct description *d);

/* Read target.xml and what it includes. FETCH gives a file, new at *TEXT, with
 * a zero byte behind. */
int description_load(struct description *d,
                     int (*fetch)(void *opaque, const char *annex, char **text,
                                  size_t *len, struct rhea_error *err),
                     void *opaque, struct rhea_error *err);

#endif
