/* SPDX-License-Identifier: MIT */
/* The parts of the HTTP storage: http.c reads through a cache; http_request.c
 * asks the server; http_driver.c reads names and options. */
#ifndef RHEA_STORAGE_HTTP_H
#define RHEA_STORAGE_HTTP_H

#include <pthread.h>

/* Its checks of types are macros about the functions' names. */
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#include "storage/internal.h"

/* The functions in use, without "curl_" in front. */
#define HTTP_FUNCTIONS(X)                                                      \
    X(easy_cleanup)                                                            \
    X(easy_getinfo)                                                            \
    X(easy_init)                                                               \
    X(easy_perform)                                                            \
    X(easy_reset)                                                              \
    X(easy_setopt)                                                             \
    X(easy_strerror)                                                           \
    X(global_init)

struct http_lib {
#define HTTP_MEMBER(name) __typeof__(curl_##name) *name;
    HTTP_FUNCTIONS(HTTP_MEMBER)
#undef HTTP_MEMBER
};

enum {
    HTTP_SPARES = 8,    /* idle connections that are kept */
    HTTP_BLOCKS = 8,    /* that are cached */
    HTTP_TAG_MAX = 256, /* of an ETag or a date */
    HTTP_READAHEAD_MIN = 4 << 10,
    HTTP_READAHEAD_MAX = 8 << 20,
};

struct http_block {
    uint64_t number, used; /* USED 0: empty */
    char *data;
};

struct http {
    struct rhea_storage head;
    const struct http_lib *lib;
    char *url, *cookie, *username, *password, *proxy_username, *proxy_password;
    bool verify, is_http;
    long timeout;           /* seconds without a byte */
    size_t block;           /* bytes that are read at least */
    uint64_t size;          /* of the file */
    char tag[HTTP_TAG_MAX]; /* names its version: ETag or Last-Modified */

    pthread_mutex_t lock; /* for what follows */
    CURL *spare[HTTP_SPARES];
    unsigned n_spare;
    struct http_block blocks[HTTP_BLOCKS];
    uint64_t clock;
};

/* Find out the size, and whether ranges can be had. */
int http_learn(struct http *h, struct rhea_error *err);
/* All of [OFFSET, OFFSET + LEN), which is inside the file. */
int http_fetch(struct http *h, void *buf, size_t len, uint64_t offset,
               struct rhea_error *err);
const struct http_lib *http_lib_get(struct rhea_error *err);

extern const struct rhea_storage_ops http_storage_ops;

#endif
