/* SPDX-License-Identifier: MIT */
#include "format/vmdk/descriptor.h"

#include <ctype.h>
#include <errno.h>
#include <iconv.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/vmdk.h"

/* A line without blanks around it and without its end. */
struct line {
    const char *text;
    size_t len;
};

static bool line_is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static struct line line_trim(struct line l)
{
    while (l.len && line_is_blank(l.text[l.len - 1]))
        l.len--;
    while (l.len && line_is_blank(*l.text)) {
        l.text++;
        l.len--;
    }
    return l;
}

/* The next line at *AT, which moves on; false at the end of the text, which is
 * also the first NUL. Editors of Windows put a mark of the encoding in front.
 */
static bool line_next(const char *text, size_t len, size_t *at, struct line *l)
{
    if (*at == 0 && len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        *at = 3;
    if (*at >= len || !text[*at])
        return false;
    size_t end = *at;
    while (end < len && text[end] && text[end] != '\n')
        end++;
    *l = line_trim((struct line){text + *at, end - *at});
    *at = end < len && text[end] == '\n' ? end + 1 : end;
    return true;
}

/* "NAME = VALUE" or "NAME=\"VALUE\"". */
static bool line_split(struct line l, struct line *name, struct line *value)
{
    const char *equals = memchr(l.text, '=', l.len);
    if (!equals || *l.text == '#')
        return false;
    size_t n = (size_t)(equals - l.text);
    *name = line_trim((struct line){l.text, n});
    *value = line_trim((struct line){equals + 1, l.len - n - 1});
    if (value->len && *value->text == '"') {
        const char *start = value->text + 1;
        const char *end = memchr(start, '"', value->len - 1);
        *value =
            (struct line){start, end ? (size_t)(end - start) : value->len - 1};
    }
    return true;
}

static bool line_is(struct line l, const char *word)
{
    return l.len == strlen(word) && strncasecmp(l.text, word, l.len) == 0;
}

/* The next word of *L, which moves on behind it; empty at the end. */
static struct line line_word(struct line *l)
{
    *l = line_trim(*l);
    struct line word = {l->text, 0};
    while (word.len < l->len && !line_is_blank(l->text[word.len]))
        word.len++;
    l->text += word.len;
    l->len -= word.len;
    return word;
}

static bool line_number(struct line l, unsigned base, uint64_t *out)
{
    uint64_t n = 0;
    for (size_t i = 0; i < l.len; i++) {
        char c = (char)tolower((unsigned char)l.text[i]);
        unsigned digit = isdigit((unsigned char)c) ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f'    ? (unsigned)(c - 'a' + 10)
                                                   : base;
        if (digit >= base || !mul_u64(n, base, &n) || !add_u64(n, digit, &n))
            return false;
    }
    *out = n;
    return l.len > 0;
}

/* The comment that programs begin a descriptor with, in any of its spellings.
 */
static bool line_is_title(struct line l)
{
    static const char title[] = "#diskdescriptorfile";
    size_t n = 0;
    for (size_t i = 0; i < l.len && title[n]; i++) {
        if (line_is_blank(l.text[i]))
            continue;
        if (tolower((unsigned char)l.text[i]) != title[n])
            return false;
        n++;
    }
    return !title[n];
}

/* A number at the beginning of a value; a comment may follow. */
static bool line_first_number(struct line l, unsigned base, uint64_t *out)
{
    struct line word = line_word(&l);
    if (base == 16 && word.len > 2 && strncasecmp(word.text, "0x", 2) == 0)
        word = (struct line){word.text + 2, word.len - 2};
    return line_number(word, base, out);
}

/* Comments and blank lines, one of which is the title; or which "version="
 * follows, as in descriptors that were written by hand. */
bool descriptor_probe(const char *text, size_t len)
{
    struct line l, name, value;
    uint64_t version;
    size_t at = 0;
    while (line_next(text, len, &at, &l)) {
        if (line_is_title(l))
            return true;
        if (l.len == 0 || *l.text == '#')
            continue;
        return at < len && line_split(l, &name, &value) &&
               line_is(name, "version") &&
               line_first_number(value, 10, &version) && version >= 1 &&
               version <= 3;
    }
    return false;
}

bool descriptor_find(const struct descriptor *d, const char *name,
                     size_t *offset, size_t *len)
{
    struct line l, key, value;
    size_t at = 0;
    while (d->text && line_next(d->text, d->length, &at, &l)) {
        if (!line_split(l, &key, &value) || !line_is(key, name))
            continue;
        *offset = (size_t)(value.text - d->text);
        *len = value.len;
        return true;
    }
    return false;
}

char *descriptor_get(const struct descriptor *d, const char *name)
{
    size_t offset, len;
    return descriptor_find(d, name, &offset, &len)
               ? strndup(d->text + offset, len)
               : NULL;
}

/* --- Names in other encodings --- */

/* What VMware calls them, where iconv calls them otherwise. */
static const char *encoding_name(const char *vmware)
{
    static const struct {
        const char *vmware, *iconv;
    } names[] = {
        {"GBK", "CP936"},
        {"Big5", "CP950"},
        {"Shift_JIS", "CP932"},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++)
        if (strcasecmp(vmware, names[i].vmware) == 0)
            return names[i].iconv;
    return vmware;
}

/* From that encoding to UTF-8. iconv knows some of Windows' code pages by their
 * number only. */
static iconv_t encoding_open(const char *encoding)
{
    char page[16];
    iconv_t cd = iconv_open("UTF-8", encoding_name(encoding));
    if (cd != (iconv_t)-1 || strncasecmp(encoding, "windows-", 8) != 0)
        return cd;
    snprintf(page, sizeof(page), "CP%.8s", encoding + 8);
    return iconv_open("UTF-8", page);
}

/* TEXT, malloc'd, in UTF-8, which it takes over; as it is where it cannot be
 * converted. */
static char *encoding_convert(const char *encoding, char *text)
{
    if (!encoding || !text || strcasecmp(encoding, "UTF-8") == 0)
        return text;
    iconv_t cd = encoding_open(encoding);
    if (cd == (iconv_t)-1)
        return text;
    size_t in_len = strlen(text), out_len = 4 * in_len;
    char *out = malloc(out_len + 1), *in = text, *end = out;
    if (out && iconv(cd, &in, &in_len, &end, &out_len) != (size_t)-1) {
        *end = 0;
        free(text);
        text = out;
    } else {
        free(out);
    }
    iconv_close(cd);
    return text;
}

/* --- Parsing --- */

static bool extent_access(struct line word, enum descriptor_access *access)
{
    static const char *const words[] = {
        [DESCRIPTOR_RW] = "RW",
        [DESCRIPTOR_RDONLY] = "RDONLY",
        [DESCRIPTOR_NOACCESS] = "NOACCESS",
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(words); i++) {
        if (!line_is(word, words[i]))
            continue;
        *access = (enum descriptor_access)i;
        return true;
    }
    return false;
}

/* What follows the type: a name in quotes, then an offset. */
static int extent_name(struct line l, struct descriptor_extent *x,
                       struct rhea_error *err)
{
    l = line_trim(l);
    if (!l.len)
        return 0;
    struct line name, offset;
    if (*l.text == '"') {
        const char *end = memchr(l.text + 1, '"', l.len - 1);
        if (!end)
            return -EINVAL;
        name = (struct line){l.text + 1, (size_t)(end - l.text - 1)};
        l.len -= (size_t)(end + 1 - l.text);
        l.text = end + 1;
    } else {
        name = line_word(&l);
    }
    x->name = strndup(name.text, name.len);
    if (!x->name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    offset = line_word(&l);
    return !offset.len || line_number(offset, 10, &x->offset) ? 0 : -EINVAL;
}

static int extent_parse(struct line l, struct descriptor_extent *x,
                        struct rhea_error *err)
{
    struct line rest = l;
    (void)line_word(&rest);
    struct line sectors = line_word(&rest), type = line_word(&rest);
    int ret = 0;
    if (!line_number(sectors, 10, &x->sectors) || !type.len ||
        type.len >= sizeof(x->type))
        ret = -EINVAL;
    for (size_t i = 0; !ret && i < type.len; i++)
        x->type[i] = (char)toupper((unsigned char)type.text[i]);
    if (!ret)
        ret = extent_name(rest, x, err);
    if (!ret && (x->sectors == 0 || x->sectors > INT64_MAX / VMDK_SECTOR ||
                 x->offset > INT64_MAX / VMDK_SECTOR))
        ret = -EINVAL;
    return ret == -EINVAL
               ? rhea_error_set(err, EINVAL,
                                "the descriptor's line \"%.*s\" describes no "
                                "extent",
                                (int)RHEA_MIN(l.len, (size_t)200), l.text)
               : ret;
}

static bool line_is_extent(struct line l, enum descriptor_access *access)
{
    struct line rest = l;
    return extent_access(line_word(&rest), access) &&
           !memchr(l.text, '=', RHEA_MIN(l.len, (size_t)12));
}

static int parse_extents(struct descriptor *d, struct rhea_error *err)
{
    enum descriptor_access access;
    struct line l;
    size_t at = 0;
    while (line_next(d->text, d->length, &at, &l)) {
        if (!line_is_extent(l, &access))
            continue;
        if (d->n_extents == VMDK_EXTENTS_MAX)
            return rhea_error_set(err, EINVAL,
                                  "the image has more than %d extents",
                                  VMDK_EXTENTS_MAX);
        struct descriptor_extent *x =
            reallocarray(d->extents, d->n_extents + 1, sizeof(*d->extents));
        if (!x)
            return rhea_error_set(err, ENOMEM, "out of memory");
        d->extents = x;
        x += d->n_extents++;
        *x = (struct descriptor_extent){.access = access};
        int ret = extent_parse(l, x, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* A content id; *CID stays as it is where there is none, or none that can be
 * one: the guest's data do not depend on it. */
static bool parse_cid(const struct descriptor *d, const char *name,
                      uint32_t *cid)
{
    size_t offset, len;
    uint64_t n;
    if (!descriptor_find(d, name, &offset, &len) ||
        !line_first_number((struct line){d->text + offset, len}, 16, &n) ||
        n > UINT32_MAX)
        return false;
    *cid = (uint32_t)n;
    return true;
}

/* QEMU and VMware's programs write 1, 2 or 3; one that is not there is 1. */
static int parse_version(const struct descriptor *d, struct rhea_error *err)
{
    size_t offset, len;
    uint64_t n;
    if (!descriptor_find(d, "version", &offset, &len) ||
        (line_first_number((struct line){d->text + offset, len}, 10, &n) &&
         n >= 1 && n <= 3))
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          "the descriptor is of version %.*s; known are 1 to 3",
                          (int)RHEA_MIN(len, (size_t)40), d->text + offset);
}

static int parse_cids(struct descriptor *d, struct rhea_error *err)
{
    d->parent_cid = (uint32_t)DESCRIPTOR_NO_CID;
    d->has_cid = parse_cid(d, "CID", &d->cid);
    if (parse_cid(d, "parentCID", &d->parent_cid) || !d->parent)
        return 0;
    return rhea_error_set(err, EINVAL,
                          "the descriptor names a parent, and has no line "
                          "\"parentCID\" that says which state of it");
}

int descriptor_parse(struct descriptor *d, struct rhea_error *err)
{
    if (!descriptor_probe(d->text, d->length))
        return rhea_error_set(err, EINVAL,
                              "the descriptor begins neither with its title "
                              "nor with a version from 1 to 3");
    int ret = parse_version(d, err);
    if (!ret)
        ret = parse_extents(d, err);
    if (ret)
        return ret;
    RHEA_AUTO_FREE char *encoding = descriptor_get(d, "encoding");
    d->create_type = descriptor_get(d, "createType");
    d->parent =
        encoding_convert(encoding, descriptor_get(d, "parentFileNameHint"));
    for (size_t i = 0; i < d->n_extents; i++)
        d->extents[i].name = encoding_convert(encoding, d->extents[i].name);
    if (d->parent && !*d->parent) {
        free(d->parent);
        d->parent = NULL;
    }
    return parse_cids(d, err);
}

/* The line of the last extent, which begins at FROM and ends before TO, with
 * its line end if it has one. */
static void resize_line(FILE *out, const struct descriptor *d, struct line l,
                        size_t from, size_t to, uint64_t sectors,
                        const char *more)
{
    struct line rest = l;
    (void)line_word(&rest);
    struct line number = line_word(&rest);
    size_t at = (size_t)(number.text - d->text);
    fwrite(d->text + from, 1, at - from, out);
    fprintf(out, "%" PRIu64, sectors);
    at += number.len;
    fwrite(d->text + at, 1, to - at, out);
    if (*more && d->text[to - 1] != '\n')
        fputc('\n', out);
    fputs(more, out);
}

char *descriptor_resize(const struct descriptor *d, size_t last,
                        uint64_t sectors, const char *more)
{
    char *text = NULL;
    size_t len, at = 0, from = 0, index = 0;
    enum descriptor_access access;
    struct line l;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return NULL;
    for (; line_next(d->text, d->length, &at, &l); from = at) {
        bool extent = line_is_extent(l, &access);
        if (extent && index == last)
            resize_line(out, d, l, from, at, sectors, more);
        else if (!extent || index < last)
            fwrite(d->text + from, 1, at - from, out);
        index += extent;
    }
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}

int descriptor_read(struct descriptor *d, struct rhea_storage *file,
                    uint64_t offset, uint64_t len, struct rhea_error *err)
{
    if (len > DESCRIPTOR_MAX)
        return rhea_error_set(err, EFBIG,
                              "the descriptor is longer than %d bytes",
                              DESCRIPTOR_MAX);
    d->offset = offset;
    d->room = len;
    d->text = calloc(1, (size_t)len + 1);
    if (!d->text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        len ? rhea_storage_read_padded(file, d->text, (size_t)len, offset, err)
            : 0;
    if (ret)
        return ret;
    d->length = strlen(d->text);
    return descriptor_parse(d, err);
}

void descriptor_finish(struct descriptor *d)
{
    for (size_t i = 0; i < d->n_extents; i++)
        free(d->extents[i].name);
    free(d->extents);
    free(d->text);
    free(d->create_type);
    free(d->parent);
    *d = (struct descriptor){0};
}
