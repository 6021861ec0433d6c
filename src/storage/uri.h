/* SPDX-License-Identifier: MIT */
/* The parts of SCHEME://[USER@]HOST[:PORT][/PATH][?NAME=VALUE[&...]], each
 * with its %XX decoded. */
#ifndef RHEA_STORAGE_URI_H
#define RHEA_STORAGE_URI_H

#include <rhea/base.h>

enum { URI_QUERY_MAX = 16 };

struct uri {
    char *scheme, *host, *port, *path; /* "" where there is none; PATH without
                                          its first slash */
    struct {
        char *name, *value;
    } query[URI_QUERY_MAX];
    unsigned n_query;
};

int uri_parse(struct uri *uri, const char *text, struct rhea_error *err);
void uri_finish(struct uri *uri);

/* TEXT with all but letters, digits and -._~/ as %XX; malloc'd. */
char *uri_encode(const char *text);
/* The same, but only for % and the characters in SPECIAL. */
char *uri_escape(const char *text, const char *special);

#endif
