/* SPDX-License-Identifier: MIT */
#include "storage/uri.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

static int uri_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* LEN bytes decoded, malloc'd. */
static int uri_decode(const char *text, size_t len, char **out,
                      struct rhea_error *err)
{
    char *to = *out = malloc(len + 1);

    if (!to)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < len; i++) {
        int high, low;

        if (text[i] != '%') {
            *to++ = text[i];
            continue;
        }
        high = low = -1;
        if (len - i > 2) {
            high = uri_digit(text[i + 1]);
            low = uri_digit(text[i + 2]);
        }
        if (high < 0 || low < 0 || (high == 0 && low == 0))
            return rhea_error_set(
                err, EINVAL, "%% stands for no byte in '%.*s'", (int)len, text);
        *to++ = (char)(high * 16 + low);
        i += 2;
    }
    *to = 0;
    return 0;
}

static int uri_parse_query(struct uri *uri, const char *p,
                           struct rhea_error *err)
{
    while (*p) {
        size_t len = strcspn(p, "&"), name = strcspn(p, "=");
        int ret;

        if (name > len)
            name = len;
        if (uri->n_query == URI_QUERY_MAX)
            return rhea_error_set(err, EINVAL, "there are too many parameters");
        ret = uri_decode(p, name, &uri->query[uri->n_query].name, err);
        uri->n_query++;
        if (ret == 0)
            ret = uri_decode(p + name + (name < len), len - name - (name < len),
                             &uri->query[uri->n_query - 1].value, err);
        if (ret < 0)
            return ret;
        p += len + (p[len] == '&');
    }
    return 0;
}

/* [USER@]HOST[:PORT], where HOST may be [IPv6]. */
static int uri_parse_authority(struct uri *uri, const char *p, size_t len,
                               struct rhea_error *err)
{
    const char *end = p + len, *at = memchr(p, '@', len), *colon;
    int ret;

    if (at)
        p = at + 1;
    if (p < end && *p == '[') {
        const char *close = memchr(p, ']', (size_t)(end - p));

        if (!close || (close + 1 < end && close[1] != ':'))
            return rhea_error_set(err, EINVAL,
                                  "the address '%.*s' is not whole",
                                  (int)(end - p), p);
        ret = uri_decode(p + 1, (size_t)(close - p - 1), &uri->host, err);
        colon = close + 1 < end ? close + 1 : NULL;
    } else {
        colon = memchr(p, ':', (size_t)(end - p));
        ret =
            uri_decode(p, (size_t)((colon ? colon : end) - p), &uri->host, err);
    }
    if (ret == 0)
        ret =
            uri_decode(colon ? colon + 1 : end,
                       colon ? (size_t)(end - colon - 1) : 0, &uri->port, err);
    return ret;
}

int uri_parse(struct uri *uri, const char *text, struct rhea_error *err)
{
    const char *p = strstr(text, "://");
    size_t len;
    int ret;

    *uri = (struct uri){0};
    if (!p)
        return rhea_error_set(err, EINVAL, "'%s' has no '://'", text);
    ret = uri_decode(text, (size_t)(p - text), &uri->scheme, err);
    p += 3;
    len = strcspn(p, "/?");
    if (ret == 0)
        ret = uri_parse_authority(uri, p, len, err);
    p += len;
    p += *p == '/';
    len = strcspn(p, "?");
    if (ret == 0)
        ret = uri_decode(p, len, &uri->path, err);
    p += len;
    if (ret == 0 && *p == '?')
        ret = uri_parse_query(uri, p + 1, err);
    if (ret < 0)
        uri_finish(uri);
    return ret;
}

void uri_finish(struct uri *uri)
{
    free(uri->scheme);
    free(uri->host);
    free(uri->port);
    free(uri->path);
    for (unsigned i = 0; i < uri->n_query; i++) {
        free(uri->query[i].name);
        free(uri->query[i].value);
    }
    *uri = (struct uri){0};
}

/* TEXT with those bytes as %XX of which ENCODED says so; malloc'd. */
static char *uri_encode_some(const char *text,
                             bool (*encoded)(char c, const char *set),
                             const char *set)
{
    static const char digits[] = "0123456789ABCDEF";
    char *out = malloc(3 * strlen(text) + 1), *to = out;

    for (; out && *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (!encoded(*text, set)) {
            *to++ = *text;
        } else {
            *to++ = '%';
            *to++ = digits[c >> 4];
            *to++ = digits[c & 15];
        }
    }
    if (out)
        *to = 0;
    return out;
}

static bool uri_is_not_in(char c, const char *set)
{
    return !isalnum((unsigned char)c) && !strchr(set, c);
}

static bool uri_is_in(char c, const char *set)
{
    return c == '%' || strchr(set, c);
}

char *uri_encode(const char *text)
{
    return uri_encode_some(text, uri_is_not_in, "-._~/");
}

char *uri_escape(const char *text, const char *special)
{
    return uri_encode_some(text, uri_is_in, special);
}
