/* SPDX-License-Identifier: MIT */
/*
 * Requests for a range of a file. A reply must be what was asked for: the
 * range, no byte more or less, of a file of the same size and version as it had
 * when it was opened. A server that sends the whole file instead of a range is
 * of no use, for images are larger than memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "storage/http.h"
#include "storage/load.h"

enum { HTTP_REDIRECTS_MAX = 10, HTTP_RANGE_TEXT = 64 };

/* One request, and what the reply has said so far. */
struct request {
    char *buf;
    size_t len, got;
    bool too_much;
    /* Of the last reply's head: */
    bool has_range;
    uint64_t first, last, total;
    bool has_total;
    char tag[HTTP_TAG_MAX];
    bool has_etag;
    char words[CURL_ERROR_SIZE];
};

static const struct load_symbol symbols[] = {
#define HTTP_SYMBOL(name) {"curl_" #name, offsetof(struct http_lib, name)},
    HTTP_FUNCTIONS(HTTP_SYMBOL)
#undef HTTP_SYMBOL
        {0},
};

const struct http_lib *http_lib_get(struct rhea_error *err)
{
    static struct http_lib functions;
    static struct load_library library =
        LOAD_LIBRARY("libcurl.so.4", "libcurl-gnutls.so.4");
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool started;

    RHEA_LOCKED(&lock);
    if (load_library(&library, symbols, &functions, err) < 0)
        return NULL;
    if (!started && functions.global_init(CURL_GLOBAL_DEFAULT) != 0) {
        rhea_error_set(err, EIO, "libcurl cannot be started");
        return NULL;
    }
    started = true;
    return &functions;
}

static size_t request_body(char *data, size_t size, size_t n, void *opaque)
{
    struct request *r = opaque;

    (void)size; /* is 1 */
    if (n > r->len - r->got) {
        r->too_much = true;
        return 0;
    }
    memcpy(r->buf + r->got, data, n);
    r->got += n;
    return n;
}

/* The value is "bytes ", then FIRST-LAST or an asterisk, then /TOTAL. */
static void request_see_range(struct request *r, const char *text)
{
    char total[24] = "";

    if (sscanf(text, "bytes %" SCNu64 "-%" SCNu64 "/%20[0-9]", &r->first,
               &r->last, total) == 3)
        r->has_range = r->has_total = true;
    else if (sscanf(text, "bytes */%20[0-9]", total) == 1)
        r->has_total = true;
    if (r->has_total)
        r->total = strtoull(total, NULL, 10);
}

static void request_set_tag(struct request *r, const char *text)
{
    (void)snprintf(r->tag, sizeof(r->tag), "%s", text);
}

static void request_see_field(struct request *r, const char *name,
                              const char *value)
{
    if (strcasecmp(name, "content-range") == 0) {
        request_see_range(r, value);
    } else if (strcasecmp(name, "etag") == 0) {
        request_set_tag(r, value);
        r->has_etag = true;
    } else if (strcasecmp(name, "last-modified") == 0 && !r->has_etag) {
        request_set_tag(r, value);
    }
}

/* A line of the head; libcurl bounds how many there are, and how long. */
static size_t request_head(char *data, size_t size, size_t n, void *opaque)
{
    struct request *r = opaque;
    char line[HTTP_TAG_MAX + 32], *colon, *value;
    size_t len = n;

    (void)size; /* is 1 */
    while (len && (data[len - 1] == '\r' || data[len - 1] == '\n'))
        len--;
    if (len >= sizeof(line))
        return n; /* none of those we look for is that long */
    memcpy(line, data, len);
    line[len] = 0;
    if (strncmp(line, "HTTP/", 5) == 0) { /* after a redirection: anew */
        r->has_range = r->has_total = r->has_etag = false;
        r->tag[0] = 0;
        return n;
    }
    colon = strchr(line, ':');
    if (!colon)
        return n;
    *colon = 0;
    value = colon + 1;
    value += strspn(value, " \t");
    request_see_field(r, line, value);
    return n;
}

static CURL *request_take(struct http *h)
{
    RHEA_LOCKED(&h->lock);
    return h->n_spare ? h->spare[--h->n_spare] : h->lib->easy_init();
}

static void request_give_back(struct http *h, CURL *curl)
{
    /* It must not write into what is ours any more. */
    h->lib->easy_reset(curl);
    pthread_mutex_lock(&h->lock);
    if (h->n_spare < HTTP_SPARES) {
        h->spare[h->n_spare++] = curl;
        curl = NULL;
    }
    pthread_mutex_unlock(&h->lock);
    if (curl)
        h->lib->easy_cleanup(curl);
}

/* Where a request may go: never to a file, and from https only to https. */
static CURLcode request_set_protocols(const struct http *h, CURL *curl)
{
    bool safe = strncasecmp(h->url, "https:", 6) == 0;
    long first = h->is_http ? CURLPROTO_HTTP | CURLPROTO_HTTPS
                            : CURLPROTO_FTP | CURLPROTO_FTPS;
    long next = safe ? CURLPROTO_HTTPS : CURLPROTO_HTTP | CURLPROTO_HTTPS;
    CURLcode code;

#if LIBCURL_VERSION_NUM >= 0x075500
    code = h->lib->easy_setopt(curl, CURLOPT_PROTOCOLS_STR,
                               h->is_http ? "http,https" : "ftp,ftps");
    if (code == CURLE_OK)
        code = h->lib->easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR,
                                   safe ? "https" : "http,https");
    if (code != CURLE_UNKNOWN_OPTION)
        return code;
#endif
    /* An older library. */
    code = h->lib->easy_setopt(curl, (CURLoption)181, first);
    if (code == CURLE_OK)
        code = h->lib->easy_setopt(curl, (CURLoption)182, next);
    return code;
}

static CURLcode request_set_text(const struct http *h, CURL *curl,
                                 CURLoption option, const char *text)
{
    return text ? h->lib->easy_setopt(curl, option, text) : CURLE_OK;
}

static bool request_set_up(const struct http *h, CURL *curl, struct request *r,
                           const char *range)
{
    __typeof__(curl_easy_setopt) *set = h->lib->easy_setopt;

    return request_set_protocols(h, curl) == CURLE_OK &&
           set(curl, CURLOPT_URL, h->url) == CURLE_OK &&
           set(curl, CURLOPT_RANGE, range) == CURLE_OK &&
           set(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
           set(curl, CURLOPT_NOPROGRESS, 1L) == CURLE_OK &&
           set(curl, CURLOPT_FOLLOWLOCATION, 1L) == CURLE_OK &&
           set(curl, CURLOPT_MAXREDIRS, (long)HTTP_REDIRECTS_MAX) == CURLE_OK &&
           set(curl, CURLOPT_CONNECTTIMEOUT, h->timeout) == CURLE_OK &&
           set(curl, CURLOPT_LOW_SPEED_LIMIT, 1L) == CURLE_OK &&
           set(curl, CURLOPT_LOW_SPEED_TIME, h->timeout) == CURLE_OK &&
           set(curl, CURLOPT_SSL_VERIFYPEER, (long)h->verify) == CURLE_OK &&
           set(curl, CURLOPT_SSL_VERIFYHOST, h->verify ? 2L : 0L) == CURLE_OK &&
           set(curl, CURLOPT_WRITEFUNCTION, request_body) == CURLE_OK &&
           set(curl, CURLOPT_WRITEDATA, r) == CURLE_OK &&
           set(curl, CURLOPT_HEADERFUNCTION, request_head) == CURLE_OK &&
           set(curl, CURLOPT_HEADERDATA, r) == CURLE_OK &&
           set(curl, CURLOPT_ERRORBUFFER, r->words) == CURLE_OK &&
           request_set_text(h, curl, CURLOPT_COOKIE, h->cookie) == CURLE_OK &&
           request_set_text(h, curl, CURLOPT_USERNAME, h->username) ==
               CURLE_OK &&
           request_set_text(h, curl, CURLOPT_PASSWORD, h->password) ==
               CURLE_OK &&
           request_set_text(h, curl, CURLOPT_PROXYUSERNAME,
                            h->proxy_username) == CURLE_OK &&
           request_set_text(h, curl, CURLOPT_PROXYPASSWORD,
                            h->proxy_password) == CURLE_OK;
}

/* Ask; *STATUS is HTTP's. A status that is no success is not an error here. */
static int request_perform(const struct http *h, CURL *curl, struct request *r,
                           long *status, struct rhea_error *err)
{
    CURLcode code = h->lib->easy_perform(curl);

    *status = 0;
    (void)h->lib->easy_getinfo(curl, CURLINFO_RESPONSE_CODE, status);
    /* What comes in place of the file (an error's page) may be long. */
    if (code == CURLE_OK || (r->too_much && h->is_http && *status != 206))
        return 0;
    if (r->too_much)
        return rhea_error_set(err, EIO,
                              "the server sent more of '%s' than was asked for",
                              storage_name(&h->head));
    return rhea_error_set(err,
                          code == CURLE_OPERATION_TIMEDOUT ? ETIMEDOUT : EIO,
                          "could not read '%s': %s", storage_name(&h->head),
                          r->words[0] ? r->words : h->lib->easy_strerror(code));
}

static int request_check_status(const struct http *h, long status,
                                struct rhea_error *err)
{
    const char *name = storage_name(&h->head);

    if (!h->is_http || status == 206)
        return 0;
    if (status == 200)
        return rhea_error_set(err, ENOTSUP,
                              "the server of '%s' cannot send parts of a file: "
                              "download it first",
                              name);
    return rhea_error_set(err,
                          status == 404 || status == 410   ? ENOENT
                          : status == 401 || status == 403 ? EACCES
                                                           : EIO,
                          "the server of '%s' refuses to send it: HTTP status "
                          "%ld",
                          name, status);
}

/* One request from beginning to end. */
static int request_do(struct http *h, struct request *r, const char *range,
                      long *status, struct rhea_error *err)
{
    CURL *curl = request_take(h);
    int ret;

    if (!curl)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (request_set_up(h, curl, r, range))
        ret = request_perform(h, curl, r, status, err);
    else
        ret = rhea_error_set(err, EINVAL, "libcurl cannot be told to read '%s'",
                             storage_name(&h->head));
    request_give_back(h, curl);
    return ret;
}

static int request_changed(const struct http *h, struct rhea_error *err)
{
    return rhea_error_set(err, EIO, "'%s' was changed while it was read",
                          storage_name(&h->head));
}

int http_fetch(struct http *h, void *buf, size_t len, uint64_t offset,
               struct rhea_error *err)
{
    struct request r = {.buf = buf, .len = len};
    char range[HTTP_RANGE_TEXT];
    long status;
    int ret;

    (void)snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, offset,
                   offset + len - 1);
    ret = request_do(h, &r, range, &status, err);
    if (ret < 0)
        return ret;
    if (h->is_http && (status == 412 || status == 416))
        return request_changed(h, err);
    ret = request_check_status(h, status, err);
    if (ret < 0)
        return ret;
    if (h->is_http &&
        (strcmp(r.tag, h->tag) != 0 || (r.has_total && r.total != h->size)))
        return request_changed(h, err);
    if (r.got != len || (h->is_http && (!r.has_range || r.first != offset ||
                                        r.last != offset + len - 1)))
        return rhea_error_set(err, EIO,
                              "the server sent another part of '%s' than was "
                              "asked for",
                              storage_name(&h->head));
    return 0;
}

/* FTP tells the size when asked for no data. */
static int learn_ftp(struct http *h, struct rhea_error *err)
{
    struct request r = {0};
    CURL *curl = request_take(h);
    curl_off_t size = -1;
    long status;
    int ret = 0;

    if (!curl)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!request_set_up(h, curl, &r, NULL) ||
        h->lib->easy_setopt(curl, CURLOPT_NOBODY, 1L) != CURLE_OK)
        ret = rhea_error_set(err, EINVAL, "libcurl cannot be told to read '%s'",
                             storage_name(&h->head));
    if (ret == 0)
        ret = request_perform(h, curl, &r, &status, err);
    if (ret == 0 &&
        (h->lib->easy_getinfo(curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                              &size) != CURLE_OK ||
         size < 0))
        ret = rhea_error_set(err, EIO,
                             "the server does not tell the size of "
                             "'%s'",
                             storage_name(&h->head));
    h->size = (uint64_t)size;
    request_give_back(h, curl);
    return ret;
}

int http_learn(struct http *h, struct rhea_error *err)
{
    char byte;
    struct request r = {.buf = &byte, .len = 1};
    long status;
    int ret;

    if (!h->is_http)
        return learn_ftp(h, err);
    ret = request_do(h, &r, "0-0", &status, err);
    if (ret < 0)
        return ret;
    /* An empty file has no first byte. */
    if (status == 416 && r.has_total && r.total == 0)
        return 0;
    ret = request_check_status(h, status, err);
    if (ret < 0)
        return ret;
    if (!r.has_range || !r.has_total || r.total > INT64_MAX || r.total == 0 ||
        r.first != 0 || r.last != 0 || r.got != 1)
        return rhea_error_set(err, EIO,
                              "the server does not tell the size of '%s'",
                              storage_name(&h->head));
    h->size = r.total;
    memcpy(h->tag, r.tag, sizeof(h->tag));
    return 0;
}
