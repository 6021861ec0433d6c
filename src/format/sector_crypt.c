/* SPDX-License-Identifier: MIT */
#include "format/sector_crypt.h"

#include <errno.h>
#include <inttypes.h>
#include <rhea/secret.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/gcrypt.h"
#include "format/option.h"

enum { CRYPT_BOUNCE = 1 << 20, CRYPT_AES_KEY = 16 };

void sector_crypt_init(struct sector_crypt *c)
{
    pthread_rwlock_init(&c->lock, NULL);
    c->ready = true;
}

void sector_crypt_finish(struct sector_crypt *c)
{
    if (c->ready)
        pthread_rwlock_destroy(&c->lock);
    c->ready = false;
}

int sector_crypt_aes(struct crypto_cipher **out, const char *secret,
                     struct rhea_error *err)
{
    struct crypto_kind kind = {.mode = CRYPTO_CBC, .ivgen = CRYPTO_PLAIN64};
    uint8_t key[CRYPT_AES_KEY] = {0}, *pass;
    size_t len;
    if (!secret)
        return rhea_error_set(err, EACCES,
                              "the image is encrypted: its passphrase is "
                              "needed, as --object secret,id=ID,... and the "
                              "option encrypt.key-secret=ID");
    int ret = crypto_alg_find("aes-128", &kind.alg, err);
    if (!ret)
        ret = rhea_secret_get(secret, &pass, &len, err);
    if (ret)
        return ret;
    memcpy(key, pass, RHEA_MIN(len, sizeof(key)));
    rhea_secret_free(pass, len);
    ret = crypto_cipher_new(out, &kind, key, err);
    gcrypt_wipe(key, sizeof(key));
    return ret;
}

static struct sector_place crypt_back(struct sector_place p, size_t n)
{
    return (struct sector_place){p.storage, p.host - n, p.guest - n};
}

static struct sector_place crypt_on(struct sector_place p, size_t n)
{
    return (struct sector_place){p.storage, p.host + n, p.guest + n};
}

static uint64_t crypt_sector(const struct sector_crypt *c,
                             struct sector_place p)
{
    return (c->by_host ? p.host : p.guest) / CRYPTO_SECTOR;
}

/* What one step of LEN bytes takes: a part of a sector, or whole sectors. */
static size_t crypt_step(struct sector_place p, size_t len, bool *whole)
{
    size_t in = p.host % CRYPTO_SECTOR;
    *whole = !in && len >= CRYPTO_SECTOR;
    return *whole ? len & ~(size_t)(CRYPTO_SECTOR - 1)
                  : RHEA_MIN(len, (size_t)CRYPTO_SECTOR - in);
}

static int crypt_read_sectors(struct sector_crypt *c, struct sector_place p,
                              void *buf, size_t len, struct rhea_error *err)
{
    int ret = rhea_storage_read_padded(p.storage, buf, len, p.host, err);
    return ret ? ret
               : crypto_decrypt(c->cipher, crypt_sector(c, p), buf, len, err);
}

/* Encrypts in BUF itself. */
static int crypt_write_sectors(struct sector_crypt *c, struct sector_place p,
                               void *buf, size_t len, struct rhea_error *err)
{
    int ret = crypto_encrypt(c->cipher, crypt_sector(c, p), buf, len, err);
    return ret ? ret : rhea_storage_write(p.storage, buf, len, p.host, err);
}

static int crypt_read_part(struct sector_crypt *c, struct sector_place p,
                           void *buf, size_t len, struct rhea_error *err)
{
    uint8_t sector[CRYPTO_SECTOR];
    size_t in = p.host % CRYPTO_SECTOR;
    int ret =
        crypt_read_sectors(c, crypt_back(p, in), sector, sizeof(sector), err);
    if (!ret)
        memcpy(buf, sector + in, len);
    return ret;
}

static int crypt_write_part(struct sector_crypt *c, struct sector_place p,
                            const void *buf, size_t len, struct rhea_error *err)
{
    uint8_t sector[CRYPTO_SECTOR];
    size_t in = p.host % CRYPTO_SECTOR;
    int ret =
        crypt_read_sectors(c, crypt_back(p, in), sector, sizeof(sector), err);
    if (ret)
        return ret;
    memcpy(sector + in, buf, len);
    return crypt_write_sectors(c, crypt_back(p, in), sector, sizeof(sector),
                               err);
}

int sector_crypt_read(struct sector_crypt *c, struct sector_place p, void *buf,
                      size_t len, struct rhea_error *err)
{
    uint8_t *at = buf;
    int ret = 0;
    while (!ret && len) {
        bool whole;
        size_t n = crypt_step(p, len, &whole);
        pthread_rwlock_rdlock(&c->lock);
        ret = whole ? crypt_read_sectors(c, p, at, n, err)
                    : crypt_read_part(c, p, at, n, err);
        pthread_rwlock_unlock(&c->lock);
        at += n;
        len -= n;
        p = crypt_on(p, n);
    }
    return ret;
}

/* Whole sectors, by way of BOUNCE, which has room for CRYPT_BOUNCE. */
static int crypt_write_whole(struct sector_crypt *c, struct sector_place p,
                             const uint8_t *buf, size_t len, void *bounce,
                             struct rhea_error *err)
{
    int ret = 0;
    while (!ret && len) {
        size_t n = RHEA_MIN(len, (size_t)CRYPT_BOUNCE);
        memcpy(bounce, buf, n);
        pthread_rwlock_rdlock(&c->lock);
        ret = crypt_write_sectors(c, p, bounce, n, err);
        pthread_rwlock_unlock(&c->lock);
        buf += n;
        len -= n;
        p = crypt_on(p, n);
    }
    return ret;
}

int sector_crypt_write(struct sector_crypt *c, struct sector_place p,
                       const void *buf, size_t len, struct rhea_error *err)
{
    const uint8_t *at = buf;
    RHEA_AUTO_FREE void *bounce = aligned_alloc(
        4096, RHEA_MIN(align_up(len, 4096), (size_t)CRYPT_BOUNCE));
    if (!bounce)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    while (!ret && len) {
        bool whole;
        size_t n = crypt_step(p, len, &whole);
        if (whole) {
            ret = crypt_write_whole(c, p, at, n, bounce, err);
        } else {
            pthread_rwlock_wrlock(&c->lock);
            ret = crypt_write_part(c, p, at, n, err);
            pthread_rwlock_unlock(&c->lock);
        }
        at += n;
        len -= n;
        p = crypt_on(p, n);
    }
    return ret;
}

int sector_crypt_options(const struct sector_crypt_options *o,
                         const struct rhea_option *options, size_t n,
                         const char **secret, struct rhea_error *err)
{
    const char *format = NULL;
    *secret = NULL;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(options[i].name, "encrypt.format") == 0)
            format = options[i].value;
        else if (strcmp(options[i].name, "encrypt.key-secret") == 0)
            *secret = options[i].value;
        else
            return option_unknown(&options[i], o->driver, err);
    }
    if (o->method >= o->n_methods)
        return rhea_error_set(err, ENOTSUP,
                              "the encryption method %" PRIu32
                              " is not known to this program",
                              o->method);
    /* A secret that is not needed does no harm: QEMU takes it, too. */
    if (!o->method && format)
        return rhea_error_set(err, EINVAL,
                              "the image is not encrypted, but encrypt.format "
                              "says so");
    if (format && strcmp(format, o->methods[o->method]) != 0)
        return rhea_error_set(err, EINVAL,
                              "the image is encrypted as '%s', not as '%s'",
                              o->methods[o->method], format);
    return 0;
}
