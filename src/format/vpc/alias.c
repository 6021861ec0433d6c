/* SPDX-License-Identifier: MIT */
/*
 * Mac OS alias records: what the "Mac " parent locator holds. As described by
 * the Python library mac_alias and by Apple's Alias Manager; big endian.
 *
 * Version 2 is a fixed part of 150 bytes, in which the file's name is a Pascal
 * string at 50, and then tagged data: type, length, bytes, a byte more where
 * the length is odd; type -1 ends it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/utf16.h"
#include "format/vpc/vpc.h"

enum {
    ALIAS_SIZE = 4,
    ALIAS_VERSION = 6,
    ALIAS_NAME = 50,
    ALIAS_NAME_MAX = 63,
    ALIAS_TAGS = 150,

    TAG_UNICODE_NAME = 14,
    TAG_POSIX_PATH = 18, /* from the volume's root on */
    TAG_MOUNT_POINT = 19,
    TAG_END = 0xffff,
};

struct alias_part {
    const uint8_t *bytes;
    size_t length;
};

/* The data of type WANTED. */
static struct alias_part alias_find(const uint8_t *alias, size_t len,
                                    unsigned wanted)
{
    struct alias_part part = {0};
    for (size_t at = ALIAS_TAGS; at + 4 <= len;) {
        unsigned tag = load_be16(alias + at);
        size_t n = load_be16(alias + at + 2);
        if (tag == TAG_END || n > len - at - 4)
            break;
        if (tag == wanted)
            return (struct alias_part){alias + at + 4, n};
        at += 4 + n + n % 2;
    }
    return part;
}

/* Where the volume is mounted, and the path on it. */
static char *alias_path(const uint8_t *alias, size_t len)
{
    struct alias_part mount = alias_find(alias, len, TAG_MOUNT_POINT);
    struct alias_part path = alias_find(alias, len, TAG_POSIX_PATH);
    char *out = NULL;
    while (mount.length && mount.bytes[mount.length - 1] == '/')
        mount.length--;
    while (path.length && path.bytes[0] == '/') {
        path.bytes++;
        path.length--;
    }
    if (!path.length)
        return strdup("");
    return asprintf(&out, "%.*s/%.*s", (int)mount.length,
                    mount.bytes ? (const char *)mount.bytes : "",
                    (int)path.length, (const char *)path.bytes) < 0
               ? NULL
               : out;
}

/* The name, in MacRoman, of which the first half is ASCII, or in UTF-16. */
static char *alias_name(const uint8_t *alias, size_t len)
{
    struct alias_part wide = alias_find(alias, len, TAG_UNICODE_NAME);
    if (wide.length > 2)
        return utf16_to_utf8(wide.bytes + 2, wide.length - 2, UTF16_BIG_ENDIAN);
    size_t n = alias[ALIAS_NAME];
    if (n > ALIAS_NAME_MAX)
        return strdup("");
    for (size_t i = 0; i < n; i++)
        if (alias[ALIAS_NAME + 1 + i] >= 0x80)
            return strdup("");
    return strndup((const char *)alias + ALIAS_NAME + 1, n);
}

int mac_alias_names(const uint8_t *alias, size_t len, char **path, char **name,
                    struct rhea_error *err)
{
    *path = *name = NULL;
    if (len < ALIAS_TAGS || load_be16(alias + ALIAS_VERSION) != 2)
        return 0;
    len = RHEA_MIN(len, load_be16(alias + ALIAS_SIZE));
    *path = alias_path(alias, len);
    *name = alias_name(alias, len);
    if (*path && *name)
        return 0;
    free(*path);
    free(*name);
    *path = *name = NULL;
    return rhea_error_set(err, ENOMEM, "out of memory");
}
