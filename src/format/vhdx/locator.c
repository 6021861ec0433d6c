/* SPDX-License-Identifier: MIT */
/*
 * The parent locator (2.6.2.6): keys and values in UTF-16 that say which file
 * the parent is, and which state of it.
 *
 * Windows' names lead nowhere here, so the file is looked for beside the child;
 * only "relative_path" means the same on both sides. A parent that was named by
 * an absolute path of this system is under a key of our own besides, which
 * others pass over.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/utf16.h"
#include "format/vhdx/vhdx.h"

/* B04AEFB7-D19E-4A81-B789-25B8E9445913 */
static const uint8_t locator_vhdx[UUID_BYTES] = {
    0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a,
    0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13,
};

/* Windows writes five. */
enum { KEYS_MAX = 64 };

static char *locator_string(const uint8_t *bytes, size_t len, uint32_t offset,
                            uint16_t length, struct rhea_error *err)
{
    if (!range_inside(offset, length, len)) {
        rhea_error_set(err, EINVAL,
                       "the parent locator of this VHDX image is damaged");
        return NULL;
    }
    char *text = utf16_to_utf8(bytes + offset, length, UTF16_LITTLE_ENDIAN);
    if (!text)
        rhea_error_set(err, ENOMEM, "out of memory");
    return text;
}

static int locator_guid(const char *text, uint8_t guid[UUID_BYTES],
                        struct rhea_error *err)
{
    return guid_parse(text, guid)
               ? 0
               : rhea_error_set(err, EINVAL,
                                "the parent locator of this VHDX image has no "
                                "GUID of the parent, but '%.100s'",
                                text);
}

/* Takes VALUE. */
static int locator_take(struct vhdx_locator *l, const char *key, char *value,
                        bool *linked, struct rhea_error *err)
{
    static const struct {
        const char *key;
        size_t at;
    } paths[] = {
        {"relative_path", offsetof(struct vhdx_locator, relative)},
        {"volume_path", offsetof(struct vhdx_locator, volume)},
        {"absolute_win32_path", offsetof(struct vhdx_locator, absolute)},
        {"absolute_posix_path", offsetof(struct vhdx_locator, posix)},
    };
    RHEA_AUTO_FREE char *own = value;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(paths); i++) {
        char **path = (char **)(void *)((char *)l + paths[i].at);
        if (strcmp(key, paths[i].key) == 0 && !*path)
            *path = rhea_steal(own);
    }
    if (!own)
        return 0;
    if (strcmp(key, "parent_linkage") == 0) {
        *linked = true;
        return locator_guid(own, l->linkage, err);
    }
    if (strcmp(key, "parent_linkage2") == 0) {
        l->has_linkage2 = true;
        return locator_guid(own, l->linkage2, err);
    }
    return 0;
}

int vhdx_locator_parse(struct vhdx_locator *l, const uint8_t *bytes, size_t len,
                       struct rhea_error *err)
{
    char name[UUID_TEXT];
    bool linked = false;
    uint16_t n = load_le16(bytes + VHDX_L_COUNT);
    if (!uuid_equal(bytes, locator_vhdx)) {
        guid_text(bytes, name);
        return rhea_error_set(err, ENOTSUP,
                              "the parent of this VHDX image is of a kind that "
                              "this program does not know, %s",
                              name);
    }
    if (n > KEYS_MAX || n > (len - VHDX_L_ENTRIES) / VHDX_LE_BYTES)
        return rhea_error_set(
            err, EINVAL, "the parent locator of this VHDX image is damaged");
    int ret = 0;
    for (unsigned i = 0; i < n && !ret; i++) {
        const uint8_t *e = bytes + VHDX_L_ENTRIES + i * VHDX_LE_BYTES;
        RHEA_AUTO_FREE char *key =
            locator_string(bytes, len, load_le32(e + VHDX_LE_KEY),
                           load_le16(e + VHDX_LE_KEY_LENGTH), err);
        char *value =
            !key ? NULL
                 : locator_string(bytes, len, load_le32(e + VHDX_LE_VALUE),
                                  load_le16(e + VHDX_LE_VALUE_LENGTH), err);
        ret = value ? locator_take(l, key, value, &linked, err) : -EINVAL;
    }
    if (!ret && !linked)
        ret = rhea_error_set(err, EINVAL,
                             "the parent locator of this VHDX image does not "
                             "identify the parent");
    return ret;
}

void vhdx_locator_finish(struct vhdx_locator *l)
{
    free(l->relative);
    free(l->volume);
    free(l->absolute);
    free(l->posix);
    *l = (struct vhdx_locator){0};
}

/* A relative name as this system writes it, malloc'd: "..\a\b" is "../a/b". It
 * never looks like a protocol's. */
static char *locator_from_windows(const char *name)
{
    char *path = NULL;
    while (name[0] == '.' && (name[1] == '\\' || name[1] == '/'))
        name += 2;
    if (asprintf(&path, "%s%s", strchr(name, ':') ? "./" : "", name) < 0)
        return NULL;
    for (char *p = path; *p; p++)
        if (*p == '\\')
            *p = '/';
    return path;
}

/* No drive, no share. */
static bool locator_is_relative(const char *name)
{
    return *name && *name != '\\' && *name != '/' && name[1] != ':';
}

int vhdx_locator_find(struct vhdx *v, const struct rhea_files *files,
                      struct rhea_error *err)
{
    const struct vhdx_locator *l = &v->locator;
    const char *names[4];
    size_t n = 0;
    RHEA_AUTO_FREE char *relative =
        l->relative && locator_is_relative(l->relative)
            ? locator_from_windows(l->relative)
            : NULL;
    if (l->posix && *l->posix == '/')
        names[n++] = l->posix;
    if (relative)
        names[n++] = relative;
    else if (l->relative)
        names[n++] = l->relative;
    if (l->volume)
        names[n++] = l->volume;
    if (l->absolute)
        names[n++] = l->absolute;
    if (!n)
        return rhea_error_set(err, EINVAL,
                              "this VHDX image has a parent, but does not say "
                              "where it is");
    if (files)
        return files->find_parent(files->opaque, names, n, &v->parent, err);
    v->parent = strdup(names[0]);
    return v->parent ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* --- Building --- */

enum { PAIRS_MAX = 3 };

struct locator_text {
    uint8_t *bytes;
    size_t len;
};

struct locator_pairs {
    struct locator_text text[PAIRS_MAX][2]; /* key, value */
    size_t n;
};

static void pairs_finish(struct locator_pairs *p)
{
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        free(p->text[i][0].bytes);
        free(p->text[i][1].bytes);
    }
}

static int pairs_add(struct locator_pairs *p, const char *key,
                     const char *value, struct rhea_error *err)
{
    struct locator_text *t = p->text[p->n++];
    int ret =
        utf16_from_utf8(key, UTF16_LITTLE_ENDIAN, &t[0].bytes, &t[0].len, err);
    if (!ret)
        ret = utf16_from_utf8(value, UTF16_LITTLE_ENDIAN, &t[1].bytes,
                              &t[1].len, err);
    if (!ret && t[1].len > UINT16_MAX)
        ret =
            rhea_error_set(err, ENAMETOOLONG, "the parent's name is too long");
    return ret;
}

/* "../a/b" is "..\a\b", "a" is ".\a"; of an absolute name only the last part
 * means anything to Windows. */
static char *locator_to_windows(const char *name)
{
    char *path = NULL;
    const char *last = strrchr(name, '/');
    if (*name == '/')
        name = last + 1;
    while (name[0] == '.' && name[1] == '/')
        name += 2;
    if (asprintf(&path, "%s%s", strncmp(name, "../", 3) == 0 ? "" : ".\\",
                 name) < 0)
        return NULL;
    for (char *p = path; *p; p++)
        if (*p == '/')
            *p = '\\';
    return path;
}

static int pairs_fill(struct locator_pairs *p, const char *name,
                      const uint8_t linkage[UUID_BYTES], struct rhea_error *err)
{
    char guid[UUID_TEXT], braces[UUID_TEXT + 2];
    RHEA_AUTO_FREE char *windows = locator_to_windows(name);
    if (!windows)
        return rhea_error_set(err, ENOMEM, "out of memory");
    guid_text(linkage, guid);
    snprintf(braces, sizeof(braces), "{%s}", guid);
    int ret = pairs_add(p, "parent_linkage", braces, err);
    if (!ret)
        ret = pairs_add(p, "relative_path", windows, err);
    if (!ret && *name == '/')
        ret = pairs_add(p, "absolute_posix_path", name, err);
    return ret;
}

static int pairs_store(const struct locator_pairs *p, uint8_t **out,
                       size_t *len, struct rhea_error *err)
{
    size_t at = VHDX_L_ENTRIES + p->n * VHDX_LE_BYTES;
    *len = at;
    for (size_t i = 0; i < p->n; i++)
        *len += p->text[i][0].len + p->text[i][1].len;
    uint8_t *b = calloc(1, *len);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(b + VHDX_L_TYPE, locator_vhdx, UUID_BYTES);
    store_le16(b + VHDX_L_COUNT, (uint16_t)p->n);
    for (size_t i = 0; i < p->n; i++) {
        const struct locator_text *t = p->text[i];
        uint8_t *e = b + VHDX_L_ENTRIES + i * VHDX_LE_BYTES;
        store_le32(e + VHDX_LE_KEY, (uint32_t)at);
        store_le16(e + VHDX_LE_KEY_LENGTH, (uint16_t)t[0].len);
        memcpy(b + at, t[0].bytes, t[0].len);
        at += t[0].len;
        store_le32(e + VHDX_LE_VALUE, (uint32_t)at);
        store_le16(e + VHDX_LE_VALUE_LENGTH, (uint16_t)t[1].len);
        memcpy(b + at, t[1].bytes, t[1].len);
        at += t[1].len;
    }
    *out = b;
    return 0;
}

/* What a locator cannot hold. */
static int locator_check_name(const char *name, struct rhea_error *err)
{
    size_t plain = strcspn(name, ":/");
    const char *last = strrchr(name, '/');
    if (name[plain] == ':')
        return rhea_error_set(err, ENOTSUP,
                              "a VHDX image names its parent by a path, not as "
                              "'%.300s'",
                              name);
    if (strchr(name, '\\') || !*(last ? last + 1 : name))
        return rhea_error_set(
            err, EINVAL, "a VHDX image cannot name its parent '%.300s'", name);
    return 0;
}

int vhdx_locator_build(const char *name, const uint8_t linkage[UUID_BYTES],
                       uint8_t **out, size_t *len, struct rhea_error *err)
{
    struct locator_pairs pairs = {0};
    int ret = locator_check_name(name, err);
    if (!ret)
        ret = pairs_fill(&pairs, name, linkage, err);
    if (!ret)
        ret = pairs_store(&pairs, out, len, err);
    pairs_finish(&pairs);
    return ret;
}
