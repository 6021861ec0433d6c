/* SPDX-License-Identifier: MIT */
/*
 * The names of a differencing image's parent. The header has the file's own
 * name in UTF-16 (big endian) and up to eight parent locators, each the name
 * for one system:
 *   W2ru, W2ku  relative and absolute path on Windows, UTF-16 (little endian)
 *   Wi2r, Wi2k  the same in some code page, as Virtual PC wrote them too
 *   MacX        a file URL, UTF-8
 *   Mac         an alias record of Mac OS
 * The specification counts the room for a locator's data in sectors.
 * Microsoft's programs, and so all others, count it in bytes.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/utf16.h"
#include "format/vpc/vpc.h"

enum {
    LOCATOR_MAX = 64 << 10, /* bytes of one that are looked at */
    LOCATOR_LEAST = 1024,   /* room for another name, one day */
};

static const uint8_t *locator_entry(const struct vpc *v, unsigned i)
{
    return v->header + VPC_H_LOCATORS + (size_t)i * VPC_L_BYTES;
}

bool vpc_locator_range(const struct vpc *v, unsigned i, uint64_t *offset,
                       uint64_t *space, uint32_t *length)
{
    const uint8_t *e = locator_entry(v, i);
    *offset = load_be64(e + VPC_L_OFFSET);
    *space = load_be32(e + VPC_L_SPACE);
    *length = load_be32(e + VPC_L_LENGTH);
    if (*space < VPC_SECTOR)
        *space *= VPC_SECTOR;
    *space = RHEA_MAX(*space, *length);
    return v->type == VPC_DIFFERENCING && load_be32(e + VPC_L_CODE) &&
           *offset >= VPC_FOOTER &&
           range_inside(*offset, *space, v->found.file_size);
}

/* --- Reading --- */

/* Text in some code page: what is not UTF-8 is taken for Latin-1. */
static char *locator_plain(const uint8_t *bytes, size_t len)
{
    uint8_t *check = NULL;
    size_t n;
    RHEA_AUTO_FREE char *text = strndup((const char *)bytes, len);
    if (!text)
        return NULL;
    if (utf16_from_utf8(text, UTF16_LITTLE_ENDIAN, &check, &n, NULL) == 0) {
        free(check);
        return rhea_steal(text);
    }
    len = strlen(text);
    RHEA_AUTO_FREE uint8_t *wide = calloc(len, 2);
    for (size_t i = 0; wide && i < len; i++)
        wide[2 * i] = (uint8_t)text[i];
    return wide ? utf16_to_utf8(wide, 2 * len, UTF16_LITTLE_ENDIAN) : NULL;
}

/* XenServer's tools write relative names into URLs: "file://./base.vhd". */
static char *locator_url(const uint8_t *bytes, size_t len)
{
    char *text = locator_plain(bytes, len);
    if (text && strncmp(text, "file://.", 8) == 0)
        memmove(text, text + 7, strlen(text + 7) + 1);
    return text;
}

/* The names in order of trust: relative to the child before absolute, which
 * is of no use once both have been moved. */
static const char locator_order[][5] = {"W2ru", "MacX", "W2ku",
                                        "Wi2r", "Wi2k", "Mac "};

/* Those of one locator. */
static int locator_names(const struct vpc *v, unsigned i, const char *code,
                         char *names[2], struct rhea_error *err)
{
    uint64_t offset, space;
    uint32_t length;
    names[0] = names[1] = NULL;
    if (memcmp(locator_entry(v, i), code, 4) != 0 ||
        !vpc_locator_range(v, i, &offset, &space, &length) || !length ||
        length > LOCATOR_MAX)
        return 0;
    RHEA_AUTO_FREE uint8_t *data = malloc(length);
    if (!data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read(v->base.storage, data, length, offset, err);
    if (ret)
        return ret;
    if (strcmp(code, "Mac ") == 0)
        return mac_alias_names(data, length, &names[0], &names[1], err);
    names[0] = strcmp(code, "MacX") == 0 ? locator_url(data, length)
               : strncmp(code, "W2", 2) == 0
                   ? utf16_to_utf8(data, length, UTF16_LITTLE_ENDIAN)
                   : locator_plain(data, length);
    return names[0] ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

int vpc_parent_names(const struct vpc *v, char *names[VPC_LOCATORS * 2 + 2],
                     struct rhea_error *err)
{
    int n = 0, ret = 0;
    for (size_t o = 0; o < RHEA_ARRAY_SIZE(locator_order); o++) {
        for (unsigned i = 0; i < VPC_LOCATORS && !ret; i++) {
            char *found[2];
            ret = locator_names(v, i, locator_order[o], found, err);
            for (unsigned k = 0; k < 2 && !ret; k++) {
                if (found[k] && *found[k] &&
                    strlen(found[k]) <= RHEA_BACKING_NAME_MAX)
                    names[n++] = found[k];
                else
                    free(found[k]);
            }
        }
    }
    char *own = ret ? NULL
                    : utf16_to_utf8(v->header + VPC_H_PARENT_NAME,
                                    VPC_H_PARENT_NAME_BYTES, UTF16_BIG_ENDIAN);
    if (own && *own)
        names[n++] = own;
    else
        free(own);
    if (!ret && own)
        return n;
    while (n)
        free(names[--n]);
    return ret ? ret : rhea_error_set(err, ENOMEM, "out of memory");
}

/* --- Making --- */

static bool name_is_absolute(const char *name)
{
    return *name == '/' || *name == '\\' ||
           (isalpha((unsigned char)name[0]) && name[1] == ':' && name[2]);
}

static const char *name_last_part(const char *name)
{
    for (const char *p = name; *p; p++)
        if ((*p == '/' || *p == '\\') && p[1])
            name = p + 1;
    return name;
}

/* As Windows writes a relative name: ".\a\b". */
static char *name_for_windows(const char *file)
{
    char *out = NULL;
    bool dots = file[0] == '.' &&
                (file[1] == '/' || (file[1] == '.' && file[2] == '/'));
    if (asprintf(&out, "%s%s", dots ? "" : ".\\", file) < 0)
        return NULL;
    for (char *p = out; *p; p++)
        if (*p == '/')
            *p = '\\';
    return out;
}

static bool url_keeps(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || (c && strchr("-._~/", c));
}

/* A relative one as XenServer's tools write it, which is no URL: nobody decodes
 * it. */
static char *name_for_url(const char *file)
{
    static const char digits[] = "0123456789ABCDEF";
    bool relative = *file != '/';
    const char *start = relative && *file != '.' ? "file://./" : "file://";
    size_t n = strlen(start);
    char *out = malloc(n + 3 * strlen(file) + 1);
    if (!out)
        return NULL;
    memcpy(out, start, n);
    for (; *file; file++) {
        uint8_t byte = (uint8_t)*file;
        if (relative || url_keeps(*file)) {
            out[n++] = *file;
            continue;
        }
        out[n++] = '%';
        out[n++] = digits[byte >> 4];
        out[n++] = digits[byte & 15];
    }
    out[n] = 0;
    return out;
}

static int locators_add(struct vpc_locators *l, const char *code,
                        const char *text, bool wide, struct rhea_error *err)
{
    struct vpc_locator *item = &l->items[l->n];
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(item->code, code, 4);
    if (wide) {
        int ret = utf16_from_utf8(text, UTF16_LITTLE_ENDIAN, &item->data,
                                  &item->length, err);
        l->n += !ret;
        return ret;
    }
    item->data = (uint8_t *)strdup(text);
    item->length = strlen(text);
    l->n += item->data != NULL;
    return item->data ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* An absolute path of this system has nothing relative to say. What looks like
 * another system's is put down as it is. */
int vpc_locators_make(struct vpc_locators *l, const char *file,
                      struct rhea_error *err)
{
    bool absolute = name_is_absolute(file);
    bool foreign = strchr(file, '\\') || (absolute && *file != '/');
    RHEA_AUTO_FREE char *relative =
        absolute || foreign ? strdup(file) : name_for_windows(file);
    RHEA_AUTO_FREE char *url = name_for_url(file);
    RHEA_AUTO_FREE uint8_t *own = NULL;
    size_t own_length = 0;
    *l = (struct vpc_locators){0};
    int ret = foreign ? 0 : locators_add(l, "MacX", url, false, err);
    if (!ret)
        ret = locators_add(l, "W2ku", relative, true, err);
    if (!ret && !absolute)
        ret = locators_add(l, "W2ru", relative, true, err);
    if (!ret)
        ret = utf16_from_utf8(name_last_part(file), UTF16_BIG_ENDIAN, &own,
                              &own_length, err);
    if (!ret)
        memcpy(l->name, own,
               RHEA_MIN(own_length, (size_t)VPC_H_PARENT_NAME_BYTES));
    if (ret)
        vpc_locators_finish(l);
    return ret ? rhea_error_prefix(err, "the parent's name") : 0;
}

void vpc_locators_finish(struct vpc_locators *l)
{
    for (unsigned i = 0; i < l->n; i++)
        free(l->items[i].data);
    l->n = 0;
}

uint64_t vpc_locator_space(const struct vpc_locator *l)
{
    return align_up(RHEA_MAX(l->length, (size_t)LOCATOR_LEAST), VPC_SECTOR);
}

void vpc_locator_put(uint8_t header[VPC_HEADER], unsigned i,
                     const struct vpc_locator *l, uint64_t offset,
                     uint64_t space)
{
    uint8_t *e = header + VPC_H_LOCATORS + (size_t)i * VPC_L_BYTES;
    memset(e, 0, VPC_L_BYTES);
    memcpy(e + VPC_L_CODE, l->code, 4);
    store_be32(e + VPC_L_SPACE, (uint32_t)space);
    store_be32(e + VPC_L_LENGTH, (uint32_t)l->length);
    store_be64(e + VPC_L_OFFSET, offset);
}
