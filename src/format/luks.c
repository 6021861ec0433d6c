/* SPDX-License-Identifier: MIT */
/*
 * LUKS version 1: a header with key slots (crypto/luks.h), and behind it the
 * guest's bytes, encrypted sector by sector, as many as the file holds. There
 * is no map: all is data, and what was never written reads as noise. Not
 * supported: LUKS2, headers in a file of their own.
 *
 * A guest write of whole sectors is one write of theirs. A part of a sector is
 * read, decrypted, changed, and the sector written: LOCK is held for writing
 * meanwhile, for reading by everybody else who touches sectors, so that no
 * neighbour's bytes get lost and nobody reads half a sector of either.
 */
#include "format/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/prealloc.h"

extern const struct rhea_format_ops rhea_format_luks;

enum { LUKS_BOUNCE = 1 << 20 };

struct luks_image {
    struct rhea_format base;
    unsigned flags;
    struct luks luks;
    pthread_rwlock_t lock;
};

static void cleanup_rwlock(pthread_rwlock_t **lock)
{
    pthread_rwlock_unlock(*lock);
}
/* Hold the lock to the end of the scope, taken by the function HOW. */
#define LUKS_LOCKED(i, how)                                                    \
    __attribute__((cleanup(cleanup_rwlock), unused))                           \
    pthread_rwlock_t *luks_locked_ = (how(&(i)->lock), &(i)->lock)

static struct luks_image *luks_of(struct rhea_format *f)
{
    return (struct luks_image *)f;
}

static int luks_parse_open(const struct rhea_format_open *how,
                           const char **secret, struct rhea_error *err)
{
    for (size_t i = 0; i < how->n_options; i++) {
        if (strcmp(how->options[i].name, "key-secret") != 0)
            return option_unknown(&how->options[i], "luks", err);
        *secret = how->options[i].value;
    }
    return 0;
}

static int luks_open_image(struct luks_image *image, const char *secret,
                           struct rhea_error *err)
{
    struct rhea_storage *storage = image->base.storage;
    uint64_t size;
    int ret = rhea_storage_size(storage, &size, err);

    if (ret < 0)
        return ret;
    if (size > (INT64_MAX & ~(CRYPTO_SECTOR - 1)))
        return rhea_error_set(err, EFBIG, "the file is too large");
    ret = luks_open(&image->luks, storage, 0, size, err);
    if (ret < 0)
        return ret;
    image->base.size = align_up(size, CRYPTO_SECTOR) - image->luks.payload;
    if (image->flags & RHEA_FORMAT_NO_IO ||
        (image->flags & RHEA_FORMAT_CHECK && !secret))
        return 0;
    return luks_unlock(&image->luks, secret, "key-secret", err);
}

static void luks_release(struct luks_image *image)
{
    luks_finish(&image->luks);
    pthread_rwlock_destroy(&image->lock);
    free(image);
}

static int luks_open_format(struct rhea_format **out,
                            const struct rhea_format_open *how,
                            struct rhea_error *err)
{
    struct luks_image *image;
    const char *secret = NULL;
    int ret = luks_parse_open(how, &secret, err);

    if (ret < 0)
        return ret;
    image = calloc(1, sizeof(*image));
    if (!image)
        return rhea_error_set(err, ENOMEM, "out of memory");
    image->base.ops = &rhea_format_luks;
    image->base.storage = how->storage;
    image->flags = how->flags;
    pthread_rwlock_init(&image->lock, NULL);
    ret = luks_open_image(image, secret, err);
    if (ret < 0) {
        luks_release(image);
        return ret;
    }
    *out = &image->base;
    return 0;
}

static int luks_close(struct rhea_format *f, struct rhea_error *err)
{
    struct luks_image *image = luks_of(f);
    int ret = image->flags & RHEA_FORMAT_WRITE
                  ? rhea_storage_flush(f->storage, err)
                  : 0;

    luks_release(image);
    return ret;
}

static void luks_info(struct rhea_format *f, struct rhea_format_info *info)
{
    *info =
        (struct rhea_format_info){.virtual_size = f->size, .encrypted = true};
}

static int luks_tell_facts(struct rhea_format *f, struct rhea_facts *facts,
                           struct rhea_error *err)
{
    (void)err;
    luks_facts(&luks_of(f)->luks, false, facts);
    return 0;
}

static int luks_map(struct rhea_format *f, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err)
{
    if (offset >= f->size || !len)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    len = RHEA_MIN(len, f->size - offset);
    *extent = (struct rhea_extent){
        .kind = RHEA_EXTENT_ENCRYPTED,
        .length = len,
        .has_host = true,
        .host = luks_of(f)->luks.payload + offset,
        .stored_length = len,
        .storage = f->storage,
    };
    return 0;
}

static int luks_check_io(const struct luks_image *image, uint64_t offset,
                         size_t len, struct rhea_error *err)
{
    if (!image->luks.cipher)
        return rhea_error_set(err, EACCES,
                              "the image was opened without its passphrase");
    if (!range_inside(offset, len, image->base.size))
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset %" PRIu64
                              " are not inside the image",
                              len, offset);
    return 0;
}

/* Whole sectors; the file's last one may be short. Under LOCK. */
static int luks_read_sectors(struct luks_image *image, uint64_t offset,
                             void *buf, size_t len, struct rhea_error *err)
{
    int ret = rhea_storage_read_padded(image->base.storage, buf, len,
                                       image->luks.payload + offset, err);

    return ret < 0 ? ret
                   : crypto_decrypt(image->luks.cipher, offset / CRYPTO_SECTOR,
                                    buf, len, err);
}

/* A part of one sector. */
static int luks_read_part(struct luks_image *image, uint64_t offset, void *buf,
                          size_t len, struct rhea_error *err)
{
    uint8_t sector[CRYPTO_SECTOR];
    uint64_t start = align_down(offset, CRYPTO_SECTOR);
    int ret = luks_read_sectors(image, start, sector, sizeof(sector), err);

    if (ret == 0)
        memcpy(buf, sector + (offset - start), len);
    return ret;
}

/* How much of LEN bytes from OFFSET one step takes: a part of a sector, or as
 * many whole sectors as there are. */
static size_t luks_step(uint64_t offset, size_t len, bool *whole)
{
    size_t in = offset % CRYPTO_SECTOR;

    *whole = !in && len >= CRYPTO_SECTOR;
    return *whole ? len & ~(size_t)(CRYPTO_SECTOR - 1)
                  : RHEA_MIN(len, (size_t)CRYPTO_SECTOR - in);
}

static int luks_read(struct rhea_format *f, uint64_t offset, void *buf,
                     size_t len, struct rhea_error *err)
{
    struct luks_image *image = luks_of(f);
    uint8_t *at = buf;
    int ret = luks_check_io(image, offset, len, err);

    while (ret == 0 && len) {
        bool whole;
        size_t n = luks_step(offset, len, &whole);
        LUKS_LOCKED(image, pthread_rwlock_rdlock);

        ret = whole ? luks_read_sectors(image, offset, at, n, err)
                    : luks_read_part(image, offset, at, n, err);
        at += n;
        offset += n;
        len -= n;
    }
    return ret;
}

/* Encrypt whole sectors in BUF and write them. Under LOCK. */
static int luks_write_sectors(struct luks_image *image, uint64_t offset,
                              void *buf, size_t len, struct rhea_error *err)
{
    int ret = crypto_encrypt(image->luks.cipher, offset / CRYPTO_SECTOR, buf,
                             len, err);

    return ret < 0 ? ret
                   : rhea_storage_write(image->base.storage, buf, len,
                                        image->luks.payload + offset, err);
}

static int luks_write_part(struct luks_image *image, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err)
{
    uint8_t sector[CRYPTO_SECTOR];
    uint64_t start = align_down(offset, CRYPTO_SECTOR);
    LUKS_LOCKED(image, pthread_rwlock_wrlock);
    int ret = luks_read_sectors(image, start, sector, sizeof(sector), err);

    if (ret < 0)
        return ret;
    memcpy(sector + (offset - start), buf, len);
    return luks_write_sectors(image, start, sector, sizeof(sector), err);
}

static int luks_write_whole(struct luks_image *image, uint64_t offset,
                            const uint8_t *buf, size_t len,
                            struct rhea_error *err)
{
    size_t room = RHEA_MIN(len, (size_t)LUKS_BOUNCE);
    RHEA_AUTO_FREE void *bounce = aligned_alloc(4096, align_up(room, 4096));
    LUKS_LOCKED(image, pthread_rwlock_rdlock);
    int ret = 0;

    if (!bounce)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (ret == 0 && len) {
        size_t n = RHEA_MIN(len, room);

        memcpy(bounce, buf, n);
        ret = luks_write_sectors(image, offset, bounce, n, err);
        buf += n;
        offset += n;
        len -= n;
    }
    return ret;
}

static int luks_write(struct rhea_format *f, uint64_t offset, const void *buf,
                      size_t len, struct rhea_error *err)
{
    struct luks_image *image = luks_of(f);
    const uint8_t *at = buf;
    int ret = luks_check_io(image, offset, len, err);

    while (ret == 0 && len) {
        bool whole;
        size_t n = luks_step(offset, len, &whole);

        ret = whole ? luks_write_whole(image, offset, at, n, err)
                    : luks_write_part(image, offset, at, n, err);
        at += n;
        offset += n;
        len -= n;
    }
    return ret;
}

static int luks_flush(struct rhea_format *f, struct rhea_error *err)
{
    return rhea_storage_flush(f->storage, err);
}

static int luks_parse_create(const struct rhea_option *options, size_t n,
                             struct luks_create *luks,
                             const char **preallocation, struct rhea_error *err)
{
    *preallocation = "off";
    for (size_t i = 0; i < n; i++) {
        const struct rhea_option *o = &options[i];
        int ret = 0;

        if (!strcmp(o->name, "preallocation"))
            *preallocation = o->value;
        else if (!luks_create_option(luks, o->name, o->value, &ret, err))
            ret = option_unknown(o, "luks", err);
        if (ret < 0)
            return ret;
    }
    return prealloc_check(*preallocation, err);
}

/* First the file's length, then the header: it needs no order, for until the
 * header is there, written last by luks_create, it is no image. */
static int luks_create_image(struct rhea_storage *storage,
                             const struct rhea_create *how,
                             struct rhea_error *err)
{
    struct luks_create luks = {0};
    const char *preallocation;
    uint64_t size;
    int ret = luks_parse_create(how->options, how->n_options, &luks,
                                &preallocation, err);

    if (ret == 0)
        ret = luks_create_prepare(&luks, "", err);
    if (ret < 0)
        return ret;
    if (how->backing_file)
        return rhea_error_set(err, EINVAL,
                              "a luks image cannot have a backing file");
    if (how->size > (uint64_t)INT64_MAX - CRYPTO_SECTOR - luks.payload)
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    size = luks.payload + align_up(how->size, CRYPTO_SECTOR);
    ret = prealloc_space_told(storage, preallocation, 0, size, how->progress,
                              err);
    return ret < 0 ? ret : luks_create(storage, 0, &luks, err);
}

static int luks_measure(const struct rhea_measure *what,
                        struct rhea_measured *out, struct rhea_error *err)
{
    struct luks_create luks = {0};
    const char *preallocation;
    int ret = luks_parse_create(what->options, what->n_options, &luks,
                                &preallocation, err);

    if (ret == 0)
        ret = luks_create_measure(&luks, err);
    if (ret < 0)
        return ret;
    /* Zeroes are encrypted too. */
    *out = (struct rhea_measured){0};
    if (!add_u64(what->size, luks.payload, &out->required))
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    out->fully_allocated = out->required;
    return 0;
}

static int luks_resize(struct rhea_format *f, const struct rhea_resize *how,
                       struct rhea_error *err)
{
    struct luks_image *image = luks_of(f);
    const char *mode = how->preallocation ? how->preallocation : "off";
    uint64_t old, new, size = align_up(how->size, CRYPTO_SECTOR);
    int ret = prealloc_check(mode, err);

    if (ret < 0)
        return ret;
    if (how->size > (uint64_t)INT64_MAX - CRYPTO_SECTOR - image->luks.payload)
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    if (size < f->size && !how->shrink)
        return rhea_error_set(err, EPERM,
                              "making the image smaller loses what lies "
                              "behind the new end");
    old = image->luks.payload + f->size;
    new = image->luks.payload + size;
    ret = new < old ? rhea_storage_truncate(f->storage, new, err)
                    : prealloc_space_told(f->storage, mode, old, new,
                                          how->progress, err);
    if (ret == 0)
        ret = rhea_storage_flush(f->storage, err);
    if (ret == 0)
        f->size = size;
    return ret;
}

static int luks_amend_image(struct rhea_format *f,
                            const struct rhea_option *options, size_t n,
                            bool force, const struct rhea_progress *progress,
                            struct rhea_error *err)
{
    struct luks_image *image = luks_of(f);
    struct luks_amend how = {.slot = -1};
    int ret = 0;

    (void)progress;
    for (size_t i = 0; ret == 0 && i < n; i++)
        if (!luks_amend_option(&how, options[i].name, options[i].value, &ret,
                               err))
            ret = option_unknown(&options[i], "luks", err);
    if (ret < 0)
        return ret;
    LUKS_LOCKED(image, pthread_rwlock_wrlock);
    return luks_amend(&image->luks, &how, force, err);
}

static const struct rhea_option_help luks_create_help[] = {
    {"size", "size", "Virtual disk size"},
    {"key-secret", "str", "ID of the secret that holds the passphrase"},
    {"cipher-alg", "str", "Encryption algorithm, such as aes-256 (default)"},
    {"cipher-mode", "str", "Its mode: xts (default), cbc, ctr or ecb"},
    {"ivgen-alg", "str", "IV generator: plain64 (default), plain or essiv"},
    {"ivgen-hash-alg", "str", "Hash for the IV generator essiv"},
    {"hash-alg", "str", "Hash that keys are derived by (default: sha256)"},
    {"iter-time", "num", "Milliseconds that trying a passphrase takes (2000)"},
    {"preallocation", "str",
     "Space reserved at once: off (default), falloc or full (written)"},
    {0},
};

static const struct rhea_option_help luks_amend_help[] = {
    {"state", "str", "What key slots are to be: active or inactive"},
    {"keyslot", "num",
     "The key slot, 0 to 7; else a free one, or those of "
     "old-secret"},
    {"old-secret", "str", "ID of the passphrase whose key slots are erased"},
    {"new-secret", "str", "ID of the passphrase to add"},
    {"iter-time", "num", "Milliseconds that trying a passphrase takes (2000)"},
    {0},
};

static const char *const luks_strong_options[] = {"key-secret", NULL};

const struct rhea_format_ops rhea_format_luks = {
    .name = "luks",
    .create_options = luks_create_help,
    .strong_options = luks_strong_options,
    .probe = luks_probe,
    .open = luks_open_format,
    .close = luks_close,
    .info = luks_info,
    .facts = luks_tell_facts,
    .map = luks_map,
    .read = luks_read,
    .write = luks_write,
    .flush = luks_flush,
    .create = luks_create_image,
    .measure = luks_measure,
    .resize = luks_resize,
    .amend_options = luks_amend_help,
    .amend = luks_amend_image,
};
