/* SPDX-License-Identifier: MIT */
/* Names and options of files on HTTP and FTP servers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <rhea/secret.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/driver.h"
#include "storage/http.h"

enum { HTTP_TIMEOUT = 5, HTTP_TIMEOUT_MAX = 10000 };
#define HTTP_READAHEAD (256U << 10)

static int driver_parse(const char *name, struct storage_options *options,
                        struct rhea_error *err)
{
    return storage_options_set(options, "url", name, STORAGE_OPTION_STRING,
                               err);
}

static int driver_get_text(const struct storage_options *o, const char *name,
                           char **to, struct rhea_error *err)
{
    const char *value = storage_options_get(o, name);

    if (!value)
        return 0;
    *to = strdup(value);
    return *to ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* The text of the secret that option NAME tells the id of. */
static int driver_get_secret(const struct storage_options *o, const char *name,
                             char **to, struct rhea_error *err)
{
    const char *id = storage_options_get(o, name);
    uint8_t *bytes;
    size_t len;
    int ret;

    if (!id)
        return 0;
    ret = rhea_secret_get(id, &bytes, &len, err);
    if (ret < 0)
        return rhea_error_prefix(err, "option %s", name);
    if (memchr(bytes, 0, len)) {
        ret = rhea_error_set(
            err, EINVAL, "option %s: the secret '%s' is not text", name, id);
    } else {
        free(*to);
        *to = strdup((const char *)bytes);
        if (!*to)
            ret = rhea_error_set(err, ENOMEM, "out of memory");
    }
    rhea_secret_free(bytes, len);
    return ret;
}

static int driver_get_url(struct http *h, const struct storage_options *o,
                          const char *driver, struct rhea_error *err)
{
    const char *url = storage_options_get(o, "url");
    size_t len = strlen(driver);

    if (!url)
        return rhea_error_set(err, EINVAL,
                              "which file? There is no option url");
    if (strncasecmp(url, driver, len) != 0 || strncmp(url + len, "://", 3) != 0)
        return rhea_error_set(err, EINVAL, "the url '%s' is not %s://...", url,
                              driver);
    h->is_http = strncmp(driver, "http", 4) == 0;
    h->url = strdup(url);
    h->head.path = strdup(url);
    return h->url && h->head.path
               ? 0
               : rhea_error_set(err, ENOMEM, "out of memory");
}

static int driver_get_numbers(struct http *h, const struct storage_options *o,
                              struct rhea_error *err)
{
    uint64_t readahead = HTTP_READAHEAD, timeout = HTTP_TIMEOUT;
    int ret = storage_options_size(o, "readahead", &readahead, err);

    if (ret == 0)
        ret = storage_options_size(o, "timeout", &timeout, err);
    if (ret == 0)
        ret = storage_options_bool(o, "sslverify", &h->verify, err);
    if (ret < 0)
        return ret;
    if (readahead % 512)
        return rhea_error_set(err, EINVAL,
                              "option readahead is a multiple of 512");
    if (timeout < 1 || timeout > HTTP_TIMEOUT_MAX)
        return rhea_error_set(err, EINVAL, "option timeout is 1 to %d seconds",
                              HTTP_TIMEOUT_MAX);
    readahead = RHEA_MAX(readahead, (uint64_t)HTTP_READAHEAD_MIN);
    h->block = (size_t)RHEA_MIN(readahead, (uint64_t)HTTP_READAHEAD_MAX);
    h->timeout = (long)timeout;
    return 0;
}

static int driver_get_options(struct http *h, const struct storage_options *o,
                              const char *driver, struct rhea_error *err)
{
    int ret = driver_get_url(h, o, driver, err);

    if (ret == 0)
        ret = driver_get_numbers(h, o, err);
    if (ret == 0)
        ret = driver_get_text(o, "cookie", &h->cookie, err);
    if (ret == 0)
        ret = driver_get_secret(o, "cookie-secret", &h->cookie, err);
    if (ret == 0)
        ret = driver_get_text(o, "username", &h->username, err);
    if (ret == 0)
        ret = driver_get_secret(o, "password-secret", &h->password, err);
    if (ret == 0)
        ret = driver_get_text(o, "proxy-username", &h->proxy_username, err);
    if (ret == 0)
        ret = driver_get_secret(o, "proxy-password-secret", &h->proxy_password,
                                err);
    return ret;
}

static int driver_start(struct http *h, const struct storage_open *how,
                        const char *driver, struct rhea_error *err)
{
    int ret;

    if (how->flags & RHEA_FILE_WRITE)
        return rhea_error_set(
            err, EACCES, "files by %s can only be read, not written", driver);
    ret = driver_get_options(h, how->options, driver, err);
    if (ret < 0)
        return ret;
    h->lib = http_lib_get(err);
    return h->lib ? http_learn(h, err) : -ENOENT;
}

static int driver_open(struct rhea_storage **out,
                       const struct storage_open *how, const char *driver,
                       struct rhea_error *err)
{
    struct http *h = calloc(1, sizeof(*h));
    int ret;

    if (!h)
        return rhea_error_set(err, ENOMEM, "out of memory");
    h->head.ops = &http_storage_ops;
    h->verify = true;
    pthread_mutex_init(&h->lock, NULL);
    ret = driver_start(h, how, driver, err);
    if (ret < 0)
        h->head.ops->close(&h->head);
    else
        *out = &h->head;
    return ret;
}

/* Only a name that says all can stand for the options. */
static char *driver_plain_name(const struct storage_options *o,
                               const char *child)
{
    static const char *const more[] = {
        "sslverify",
        "cookie",
        "cookie-secret",
        "username",
        "password-secret",
        "proxy-username",
        "proxy-password-secret",
    };
    const char *url = storage_options_peek(o, "url");

    (void)child;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(more); i++)
        if (storage_options_peek(o, more[i]))
            return NULL;
    return url ? strdup(url) : NULL;
}

static const char *const driver_strong[] = {
    "url",      "sslverify",       "cookie",         "cookie-secret",
    "username", "password-secret", "proxy-username", "proxy-password-secret",
    NULL,
};

#define HTTP_DRIVER(scheme)                                                    \
    static int driver_open_##scheme(struct rhea_storage **out,                 \
                                    const struct storage_open *how,            \
                                    struct rhea_error *err)                    \
    {                                                                          \
        return driver_open(out, how, #scheme, err);                            \
    }                                                                          \
                                                                               \
    const struct storage_driver storage_driver_##scheme = {                    \
        .name = #scheme,                                                       \
        .protocols = (const char *const[]){#scheme, NULL},                     \
        .parse = driver_parse,                                                 \
        .open = driver_open_##scheme,                                          \
        .plain_name = driver_plain_name,                                       \
        .strong_options = driver_strong,                                       \
    }

HTTP_DRIVER(http);
HTTP_DRIVER(https);
HTTP_DRIVER(ftp);
HTTP_DRIVER(ftps);
