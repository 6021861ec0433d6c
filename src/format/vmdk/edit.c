/* SPDX-License-Identifier: MIT */
/*
 * Changes of the descriptor.
 *
 * Order of writes: where the new text differs from the old one in one sector
 * only, that is written, which is all or nothing; flush. So it is for a new
 * content id. A descriptor in a file of its own is replaced as a whole
 * otherwise (rhea_files.replace); for one inside an extent see edit_inside.c.
 */
#include "format/vmdk/edit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/entropy.h"
#include "base/uuid.h"

/* The sectors of the file in which OLD and NEW differ, both LEN bytes at
 * BASE: [*FROM, *TO) of the text, nothing where FROM is TO. */
static void edit_difference(const char *old, const char *new, size_t len,
                            uint64_t base, size_t *from, size_t *to)
{
    size_t first = 0, last = len;
    while (first < len && old[first] == new[first])
        first++;
    while (last > first && old[last - 1] == new[last - 1])
        last--;
    *from = *to = first;
    if (first == last)
        return;
    uint64_t start = align_down(base + first, VMDK_SECTOR);
    uint64_t end = align_up(base + last, VMDK_SECTOR);
    *from = (size_t)(RHEA_MAX(start, base) - base);
    *to = (size_t)RHEA_MIN(end - base, len);
}

static int edit_write(struct vmdk *v, const char *text, size_t len,
                      const uint8_t *header, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    size_t room = RHEA_MAX(len, d->length), from, to;
    RHEA_AUTO_FREE char *old = calloc(1, room + VMDK_SECTOR);
    RHEA_AUTO_FREE char *new = calloc(1, room + VMDK_SECTOR);
    if (!old || !new)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(old, d->text, d->length);
    memcpy(new, text, len);
    edit_difference(old, new, room, d->offset, &from, &to);
    if (d->offset)
        return vmdk_edit_inside(v, new, len, from, to, header, err);
    if (v->replaced || len != d->length || to - from > VMDK_SECTOR) {
        if (!v->files || !v->files->replace)
            return rhea_error_set(err, ENOTSUP,
                                  "the descriptor cannot be replaced where it "
                                  "is");
        v->replaced = true;
        return v->files->replace(v->files->opaque, NULL, text, len, err);
    }
    int ret = from < to ? rhea_storage_write(v->base.storage, new + from,
                                             to - from, from, err)
                        : 0;
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

int vmdk_edit_store_with(struct vmdk *v, char *text, const uint8_t *header,
                         struct rhea_error *err)
{
    struct descriptor *d = &v->descriptor;
    struct descriptor new = {.text = text, .length = strlen(text)};
    int ret = v->edit_failed
                  ? rhea_error_set(err, EIO,
                                   "an earlier change of the descriptor "
                                   "failed, and its state is not known")
                  : descriptor_parse(&new, err);
    if (!ret) {
        ret = edit_write(v, text, new.length, header, err);
        v->edit_failed = ret && ret != -ENOSPC && ret != -ENOMEM;
    }
    if (ret) {
        descriptor_finish(&new);
        return ret;
    }
    new.offset = d->offset;
    new.room = d->room;
    descriptor_finish(d);
    *d = new;
    return 0;
}

int vmdk_edit_store(struct vmdk *v, char *text, struct rhea_error *err)
{
    return vmdk_edit_store_with(v, text, NULL, err);
}

/* --- Lines --- */

/* TEXT with LEN bytes at AT replaced by WITH; malloc'd. */
static char *edit_splice(const char *text, size_t at, size_t len,
                         const char *with)
{
    char *out = NULL;
    return asprintf(&out, "%.*s%s%s", (int)at, text, with, text + at + len) < 0
               ? NULL
               : out;
}

/* Where the last line ends, without the line end. */
static size_t edit_last_end(const struct descriptor *d)
{
    size_t at = d->length;
    while (at && strchr("\r\n", d->text[at - 1]))
        at--;
    return at;
}

int vmdk_edit_line(char **text, const char *name, const char *value,
                   const char *after, struct rhea_error *err)
{
    const struct descriptor d = {.text = *text, .length = strlen(*text)};
    RHEA_AUTO_FREE char *line = NULL;
    size_t at, len;
    char *new;
    if (descriptor_find(&d, name, &at, &len) && value) {
        new = edit_splice(*text, at, len, value);
    } else if (descriptor_find(&d, name, &at, &len)) {
        while (at && d.text[at - 1] != '\n')
            at--;
        len = strcspn(d.text + at, "\n");
        new = edit_splice(*text, at, len + (d.text[at + len] == '\n'), "");
    } else if (!value) {
        return 0;
    } else if (after && !descriptor_find(&d, after, &at, &len)) {
        return rhea_error_set(err, EINVAL, "the descriptor has no line \"%s\"",
                              after);
    } else {
        at = after ? at + strcspn(d.text + at, "\n") : edit_last_end(&d);
        const char *equals = strncmp(name, "ddb.", 4) == 0 ? " = " : "=";
        const char *quote = strcmp(name, "parentCID") == 0 ? "" : "\"";
        if (asprintf(&line, "\n%s%s%s%s%s", name, equals, quote, value, quote) <
            0)
            line = NULL;
        new = line ? edit_splice(*text, at, 0, line) : NULL;
    }
    if (!new)
        return rhea_error_set(err, ENOMEM, "out of memory");
    free(*text);
    *text = new;
    return 0;
}

/* --- The content id --- */

/* A new one with LEN digits, as text. */
static int edit_new_cid(const struct descriptor *d, size_t len, char cid[9],
                        struct rhea_error *err)
{
    uint32_t n;
    do {
        int ret = entropy_get(&n, sizeof(n), err);
        if (ret)
            return ret;
        if (len < 8)
            n = (uint32_t)(n % ((uint64_t)1 << 4 * len));
        /* Those say "none" and "ask the long one". */
    } while (n == d->cid || n >= UINT32_MAX - 1);
    snprintf(cid, 9, "%0*" PRIx32, (int)len, n);
    return 0;
}

/* VirtualBox's images have a UUID of the same meaning. */
static int edit_modified(const struct descriptor *d, char *text,
                         struct rhea_error *err)
{
    uint8_t uuid[UUID_BYTES];
    char new[UUID_TEXT];
    size_t at, len;
    if (!descriptor_find(d, VMDK_UUID_MODIFIED, &at, &len) ||
        len != UUID_TEXT - 1)
        return 0;
    int ret = uuid_new(uuid, err);
    if (ret)
        return ret;
    uuid_text(uuid, new);
    memcpy(text + at, new, len);
    return 0;
}

/* In place, so that it is one sector's write, save for VirtualBox's UUID, which
 * may be in another one. The long id ends with it. */
static int edit_cid(struct vmdk *v, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    size_t at, len, long_at, long_len;
    char cid[9];
    RHEA_AUTO_FREE char *text = strdup(d->text);
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!descriptor_find(d, "CID", &at, &len))
        return rhea_error_set(err, EINVAL, "the descriptor has no content id");
    /* QEMU leaves leading zeroes out. Few have less than four digits left. */
    size_t digits = len >= 4 && len <= 8 ? len : 8;
    int ret = edit_new_cid(d, digits, cid, err);
    if (!ret)
        ret = edit_modified(d, text, err);
    if (ret)
        return ret;
    if (digits == 8 &&
        descriptor_find(d, "ddb.longContentID", &long_at, &long_len) &&
        long_len == 32)
        memcpy(text + long_at + 24, cid, 8);
    if (digits == len) {
        memcpy(text + at, cid, len);
    } else {
        char *longer = edit_splice(text, at, len, cid);
        free(text);
        text = longer;
    }
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return vmdk_edit_store(v, rhea_steal(text), err);
}

int vmdk_renew_identity(struct rhea_format *f, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    if (atomic_load(&v->renewed))
        return 0;
    RHEA_LOCKED(&v->lock);
    if (v->renewed || !v->descriptor.text)
        return 0;
    int ret = edit_cid(v, err);
    v->renewed = !ret;
    return ret;
}
