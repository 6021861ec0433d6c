/* SPDX-License-Identifier: MIT */
/* Names and options of NBD exports. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/driver.h"
#include "storage/nbd.h"
#include "storage/uri.h"

#define NBD_PORT "10809"
enum { NBD_TIMEOUT_MAX = 24 * 60 * 60 };

static int driver_set(struct storage_options *o, const char *name,
                      const char *value, struct rhea_error *err)
{
    return storage_options_set(o, name, value, STORAGE_OPTION_STRING, err);
}

static int driver_set_unix(struct storage_options *o, const char *path,
                           struct rhea_error *err)
{
    int ret = driver_set(o, "server.type", "unix", err);

    return ret < 0 ? ret : driver_set(o, "server.path", path, err);
}

static int driver_set_inet(struct storage_options *o, const char *host,
                           const char *port, struct rhea_error *err)
{
    int ret = driver_set(o, "server.type", "inet", err);

    if (ret == 0)
        ret = driver_set(o, "server.host", host, err);
    return ret < 0 ? ret : driver_set(o, "server.port", port, err);
}

static int driver_from_uri(const struct uri *u, struct storage_options *o,
                           struct rhea_error *err)
{
    int ret = 0;

    if (strncmp(u->scheme, "nbds", 4) == 0)
        return rhea_error_set(err, ENOTSUP,
                              "NBD over TLS (%s) is not supported: say nbd:// "
                              "where the way is safe",
                              u->scheme);
    if (*u->path)
        ret = driver_set(o, "export", u->path, err);
    if (ret < 0)
        return ret;
    if (strcmp(u->scheme, "nbd+unix") == 0) {
        if (u->n_query != 1 || strcmp(u->query[0].name, "socket") != 0 ||
            *u->host || *u->port)
            return rhea_error_set(err, EINVAL,
                                  "the name of an export by a socket is "
                                  "nbd+unix:///EXPORT?socket=PATH");
        return driver_set_unix(o, u->query[0].value, err);
    }
    if (u->n_query || !*u->host)
        return rhea_error_set(err, EINVAL,
                              "the name of an export is "
                              "nbd://HOST:PORT/EXPORT");
    return driver_set_inet(o, u->host, *u->port ? u->port : NBD_PORT, err);
}

/* HOST:PORT or [HOST]:PORT */
static int driver_from_address(char *text, struct storage_options *o,
                               struct rhea_error *err)
{
    char *colon = strrchr(text, ':');
    size_t len;

    if (!colon || !colon[1])
        return rhea_error_set(err, EINVAL, "'%s' is no address: nbd:HOST:PORT",
                              text);
    *colon = 0;
    len = strlen(text);
    if (*text == '[' && text[len - 1] == ']') {
        text[len - 1] = 0;
        text++;
    }
    return driver_set_inet(o, *text ? text : "localhost", colon + 1, err);
}

/* nbd:HOST:PORT or nbd:unix:PATH, and :exportname=NAME. */
static int driver_from_old_name(const char *name, struct storage_options *o,
                                struct rhea_error *err)
{
    static const char mark[] = ":exportname=";
    RHEA_AUTO_FREE char *text = strdup(name + strlen("nbd:"));
    char *export;
    int ret = 0;

    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    export = strstr(text, mark);
    if (export) {
        *export = 0;
        export += strlen(mark);
        if (*export)
            ret = driver_set(o, "export", export, err);
    }
    if (ret < 0)
        return ret;
    if (strncmp(text, "unix:", 5) == 0)
        return driver_set_unix(o, text + 5, err);
    return driver_from_address(text, o, err);
}

static int driver_parse(const char *name, struct storage_options *o,
                        struct rhea_error *err)
{
    struct uri uri;
    int ret;

    if (!strstr(name, "://")) {
        if (strncmp(name, "nbd:", 4) == 0)
            return driver_from_old_name(name, o, err);
        return rhea_error_set(err, EINVAL, "'%s' is no URI", name);
    }
    ret = uri_parse(&uri, name, err);
    if (ret < 0)
        return ret;
    ret = driver_from_uri(&uri, o, err);
    uri_finish(&uri);
    return ret;
}

/* An option by either of its names; "server.X" is the newer one. */
static const char *driver_get_server(const struct storage_options *o,
                                     const char *name)
{
    char full[32];
    const char *value;

    (void)snprintf(full, sizeof(full), "server.%s", name);
    value = storage_options_get(o, full);
    return value ? value : storage_options_get(o, name);
}

static int driver_copy(char **to, const char *from, struct rhea_error *err)
{
    *to = strdup(from);
    return *to ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

static int driver_get_address(struct nbd *n, const struct storage_options *o,
                              struct rhea_error *err)
{
    const char *type = storage_options_get(o, "server.type");
    const char *path = driver_get_server(o, "path");
    const char *host = driver_get_server(o, "host");
    const char *port = driver_get_server(o, "port");
    int ret;

    if (!type)
        type = path ? "unix" : "inet";
    if (path && host)
        return rhea_error_set(err, EINVAL,
                              "an NBD server is at a path or at a host, not "
                              "both");
    if (strcmp(type, "unix") == 0) {
        if (!path || !*path)
            return rhea_error_set(err, EINVAL,
                                  "where is the NBD server's socket? There is "
                                  "no option server.path");
        return driver_copy(&n->path, path, err);
    }
    if (strcmp(type, "inet") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "server.type is inet or unix, not '%s'", type);
    if (!host || !*host)
        return rhea_error_set(err, EINVAL,
                              "where is the NBD server? There is no option "
                              "server.host");
    ret = driver_copy(&n->host, host, err);
    return ret < 0 ? ret : driver_copy(&n->port, port ? port : NBD_PORT, err);
}

static int driver_get_seconds(const struct storage_options *o, const char *name,
                              unsigned *seconds, struct rhea_error *err)
{
    uint64_t value = 0;
    int ret = storage_options_size(o, name, &value, err);

    if (ret == 0 && value > NBD_TIMEOUT_MAX)
        ret = rhea_error_set(err, EINVAL, "option %s is at most %d seconds",
                             name, NBD_TIMEOUT_MAX);
    *seconds = (unsigned)value;
    return ret;
}

static int driver_get_options(struct nbd *n, const struct storage_options *o,
                              struct rhea_error *err)
{
    const char *export = storage_options_get(o, "export");
    const char *bitmap = storage_options_get(o, "x-dirty-bitmap");
    int ret = driver_get_address(n, o, err);

    if (ret == 0 && export)
        ret = driver_copy(&n->export, export, err);
    if (ret == 0 && bitmap)
        ret = driver_copy(&n->bitmap, bitmap, err);
    if (ret == 0)
        ret = driver_get_seconds(o, "open-timeout", &n->open_timeout, err);
    if (ret == 0)
        ret =
            driver_get_seconds(o, "reconnect-delay", &n->reconnect_delay, err);
    if (ret == 0 && (storage_options_peek(o, "tls-creds") ||
                     storage_options_peek(o, "tls-hostname")))
        ret = rhea_error_set(err, ENOTSUP,
                             "NBD over TLS (tls-creds) is not supported");
    return ret;
}

/* Characters that would end a part of the URI are escaped, others are as the
 * user wrote them. */
static char *driver_make_name(const char *path, const char *host,
                              const char *port, const char *export)
{
    RHEA_AUTO_FREE char *export_text = export ? uri_encode(export) : NULL;
    RHEA_AUTO_FREE char *place =
        uri_escape(path ? path : host, path ? "&" : "/?@[]");
    RHEA_AUTO_FREE char *port_text = uri_escape(path ? "" : port, "/?@");
    const char *slash = export ? "/" : "";
    bool colon = place && strchr(place, ':');
    char *name = NULL;
    int len;

    if ((export && !export_text) || !place || !port_text)
        return NULL;
    if (path)
        len = asprintf(&name, "nbd+unix://%s%s?socket=%s", slash,
                       export ? export_text : "", place);
    else
        len = asprintf(&name, "nbd://%s%s%s:%s%s%s", colon ? "[" : "", place,
                       colon ? "]" : "", port_text, slash,
                       export ? export_text : "");
    return len < 0 ? NULL : name;
}

static int driver_start(struct nbd *n, const struct storage_open *how,
                        struct rhea_error *err)
{
    int ret = driver_get_options(n, how->options, err);

    if (ret < 0)
        return ret;
    n->head.path = driver_make_name(n->path, n->host, n->port, n->export);
    if (!n->head.path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    n->lib = nbd_lib_get(err);
    if (!n->lib)
        return -ENOENT;
    ret = nbd_connect(n, err);
    if (ret == 0 && n->head.writable && n->read_only)
        ret = rhea_error_set(err, EACCES, "the server lets '%s' be read only",
                             n->head.path);
    return ret;
}

static int driver_open(struct rhea_storage **out,
                       const struct storage_open *how, struct rhea_error *err)
{
    struct nbd *n = calloc(1, sizeof(*n));
    int ret;

    if (!n)
        return rhea_error_set(err, ENOMEM, "out of memory");
    n->head.ops = &nbd_storage_ops;
    n->head.writable = how->flags & RHEA_FILE_WRITE;
    n->no_flush = how->flags & RHEA_FILE_NO_FLUSH;
    pthread_mutex_init(&n->lock, NULL);
    pthread_mutex_init(&n->edges, NULL);
    pthread_cond_init(&n->idle, NULL);
    ret = driver_start(n, how, err);
    if (ret < 0)
        n->head.ops->close(&n->head);
    else
        *out = &n->head;
    return ret;
}

static const char *driver_peek_server(const struct storage_options *o,
                                      const char *name)
{
    char full[32];
    const char *value;

    (void)snprintf(full, sizeof(full), "server.%s", name);
    value = storage_options_peek(o, full);
    return value ? value : storage_options_peek(o, name);
}

static char *driver_plain_name(const struct storage_options *o,
                               const char *child)
{
    const char *path = driver_peek_server(o, "path");
    const char *host = driver_peek_server(o, "host");
    const char *port = driver_peek_server(o, "port");

    (void)child;
    if ((!path && (!host || !*host)) ||
        storage_options_peek(o, "x-dirty-bitmap"))
        return NULL;
    return driver_make_name(path, host, port ? port : NBD_PORT,
                            storage_options_peek(o, "export"));
}

const struct storage_driver storage_driver_nbd = {
    .name = "nbd",
    .protocols = (const char *const[]){"nbd", "nbd+tcp", "nbd+unix", "nbds",
                                       "nbds+unix", NULL},
    .parse = driver_parse,
    .open = driver_open,
    .plain_name = driver_plain_name,
    .strong_options = (const char *const[]){"path", "host", "port", "export",
                                            "server.", "x-dirty-bitmap", NULL},
    .can_create = true,
};
