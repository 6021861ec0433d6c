/* SPDX-License-Identifier: MIT */
#include "inplace/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/path.h"

int source_init(struct source *src, struct rhea_storage *storage,
                const char *filename, const struct rhea_format_ops *format,
                struct rhea_error *err)
{
    *src = (struct source){.storage = storage, .filename = filename};
    int ret = rhea_storage_size(storage, &src->file_size, err);
    if (!ret)
        ret = rhea_format_open_over(format, &src->format, storage,
                                    RHEA_FORMAT_NO_IO, err);
    if (ret)
        return ret;
    format->info(src->format, &src->info);
    src->has_backing = src->info.backing_file && src->info.backing_file[0];
    return 0;
}

void source_finish(struct source *src)
{
    if (src->format)
        src->format->ops->close(src->format, NULL);
    if (src->backing)
        rhea_image_close(src->backing, NULL);
    src->format = NULL;
    src->backing = NULL;
}

static int source_open_backing(struct source *src, struct rhea_error *err)
{
    if (src->backing)
        return 0;

    RHEA_AUTO_FREE char *path =
        image_resolve_path(src->filename, src->info.backing_file);
    if (!path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        rhea_image_open(&src->backing, path, src->info.backing_format, 0, err);
    if (ret)
        return rhea_error_prefix(err, "its backing file is needed to rewrite "
                                      "some clusters");
    return 0;
}

static int source_read_backing(struct source *src, uint64_t guest, uint8_t *buf,
                               size_t len, struct rhea_error *err)
{
    size_t inside = 0;
    if (src->has_backing) {
        int ret = source_open_backing(src, err);
        if (ret)
            return ret;
        uint64_t size = rhea_image_size(src->backing);
        if (guest < size)
            inside = (size_t)RHEA_MIN(len, size - guest);
        if (inside)
            ret = rhea_image_read(src->backing, buf, inside, guest, err);
        if (ret)
            return ret;
    }
    memset(buf + inside, 0, len - inside);
    return 0;
}

/* QEMU leaves the last cluster of a file short where the rest is zero. What
 * was in the file and is no longer there must not become zeroes. */
static int source_read_own(const struct source *src, uint8_t *buf, size_t len,
                           uint64_t host, struct rhea_error *err)
{
    size_t inside = 0;
    int ret = 0;
    if (host < src->file_size)
        inside = (size_t)RHEA_MIN(len, src->file_size - host);
    if (inside)
        ret = rhea_storage_read(src->storage, buf, inside, host, err);
    memset(buf + inside, 0, len - inside);
    return ret;
}

static int source_read_extent(struct source *src, uint64_t guest,
                              const struct rhea_extent *e, uint8_t *buf,
                              size_t len, struct rhea_error *err)
{
    switch (e->kind) {
    case RHEA_EXTENT_DATA:
        return source_read_own(src, buf, len, e->host, err);
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        return src->format->ops->read(src->format, guest, buf, len, err);
    case RHEA_EXTENT_UNALLOCATED:
        return source_read_backing(src, guest, buf, len, err);
    case RHEA_EXTENT_ZERO:
        break;
    }
    memset(buf, 0, len);
    return 0;
}

int source_read(struct source *src, uint64_t guest, void *buf, size_t len,
                struct rhea_error *err)
{
    uint8_t *p = buf;
    uint64_t size = src->info.virtual_size;
    if (guest >= size || len > size - guest) {
        size_t inside = guest < size ? (size_t)(size - guest) : 0;
        memset(p + inside, 0, len - inside);
        len = inside;
    }
    while (len) {
        struct rhea_extent e;
        int ret = src->format->ops->map(src->format, guest, len, &e, err);
        if (ret)
            return ret;
        size_t n = (size_t)RHEA_MIN(len, e.length);
        ret = source_read_extent(src, guest, &e, p, n, err);
        if (ret)
            return ret;
        p += n;
        guest += n;
        len -= n;
    }
    return 0;
}

/* Formats that QEMU recognises by what the file begins with, so that leaving
 * their name out changes nothing. */
static const struct {
    const char *name;
    const char *magic;
    size_t length;
} magics[] = {
    {"qcow2", "QFI\xfb\0\0\0", 7}, /* then 2 or 3 */
    {"qcow", "QFI\xfb\0\0\0\1", 8},
    {"qed", "QED\0", 4},
    {"vmdk", "KDMV", 4},
    {"vhdx", "vhdxfile", 8},
    {"parallels", "WithoutFreeSpace", 16},
    {"parallels", "WithouFreSpacExt", 16},
    {"luks", "LUKS\xba\xbe", 6},
    {"bochs", "Bochs Virtual HD Image", 22},
    {"vpc", "conectix", 8},
};

static bool probe_matches(const char *format, const uint8_t *head, size_t len)
{
    if (!strcmp(format, "vdi"))
        return len >= 0x44 && load_le32(head + 0x40) == UINT32_C(0xbeda107f);
    if (!strcmp(format, "qcow2") && (len < 8 || head[7] < 2))
        return false;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(magics); i++) {
        if (!strcmp(magics[i].name, format) && len >= magics[i].length &&
            !memcmp(head, magics[i].magic, magics[i].length))
            return true;
    }
    return false;
}

/* Whether files of this format always carry a mark at their beginning; a
 * fixed VHD, for one, does not. */
static bool probe_knows(const char *format)
{
    if (!strcmp(format, "vpc"))
        return false;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(magics); i++) {
        if (!strcmp(magics[i].name, format))
            return true;
    }
    return !strcmp(format, "vdi");
}

enum source_backing source_probe_backing(const struct source *src)
{
    uint8_t head[512];
    const char *format = src->info.backing_format;
    RHEA_AUTO_FREE char *path =
        image_resolve_path(src->filename, src->info.backing_file);
    RHEA_AUTO_CLOSE int fd =
        path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof(head), 0);
    if (n < 0)
        return probe_knows(format) ? SOURCE_BACKING_UNKNOWN
                                   : SOURCE_BACKING_DIFFERS;
    return probe_matches(format, head, (size_t)n) ? SOURCE_BACKING_SAME
                                                  : SOURCE_BACKING_DIFFERS;
}
