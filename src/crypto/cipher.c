/* SPDX-License-Identifier: MIT */
#include "crypto/cipher.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/gcrypt.h"

enum { CIPHER_IV = 16 };

struct cipher_handle {
    gcry_cipher_hd_t data, iv; /* iv: of essiv, else NULL */
    struct cipher_handle *next;
};

struct crypto_cipher {
    struct crypto_kind kind;
    uint8_t key[CRYPTO_KEY_MAX];
    pthread_mutex_t lock;
    struct cipher_handle *idle;
};

static void cipher_handle_free(struct cipher_handle *h)
{
    gcry_cipher_close(h->data); /* NULL is fine; wipes */
    gcry_cipher_close(h->iv);
    free(h);
}

static int cipher_open(gcry_cipher_hd_t *out, const struct crypto_alg *alg,
                       int mode, const uint8_t *key, size_t len,
                       struct rhea_error *err)
{
    gcry_error_t code = gcry_cipher_open(out, alg->gcrypt, mode, 0);

    if (!code)
        code = gcry_cipher_setkey(*out, key, len);
    /* Keys that happen to be weak are as good as the ones around them. */
    if (gcry_err_code(code) == GPG_ERR_WEAK_KEY)
        code = 0;
    return code ? gcrypt_error(err, "cannot begin to encrypt", code) : 0;
}

static int cipher_open_essiv(gcry_cipher_hd_t *out, const struct crypto_kind *k,
                             const uint8_t *key, struct rhea_error *err)
{
    uint8_t digest[CRYPTO_HASH_MAX];
    int ret;

    gcry_md_hash_buffer(k->ivgen_hash->gcrypt, digest, key, crypto_kind_key(k));
    ret = cipher_open(out, crypto_kind_essiv(k), GCRY_CIPHER_MODE_ECB, digest,
                      k->ivgen_hash->length, err);
    gcrypt_wipe(digest, sizeof(digest));
    return ret;
}

static struct cipher_handle *cipher_handle_new(const struct crypto_cipher *c,
                                               struct rhea_error *err)
{
    static const int modes[] = {
        [CRYPTO_ECB] = GCRY_CIPHER_MODE_ECB,
        [CRYPTO_CBC] = GCRY_CIPHER_MODE_CBC,
        [CRYPTO_XTS] = GCRY_CIPHER_MODE_XTS,
        [CRYPTO_CTR] = GCRY_CIPHER_MODE_CTR,
    };
    struct cipher_handle *h = calloc(1, sizeof(*h));
    int ret;

    if (!h) {
        rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    ret = cipher_open(&h->data, c->kind.alg, modes[c->kind.mode], c->key,
                      crypto_kind_key(&c->kind), err);
    if (ret == 0 && c->kind.ivgen == CRYPTO_ESSIV)
        ret = cipher_open_essiv(&h->iv, &c->kind, c->key, err);
    if (ret < 0) {
        cipher_handle_free(h);
        return NULL;
    }
    return h;
}

static struct cipher_handle *cipher_take(struct crypto_cipher *c,
                                         struct rhea_error *err)
{
    struct cipher_handle *h;

    pthread_mutex_lock(&c->lock);
    h = c->idle;
    if (h)
        c->idle = h->next;
    pthread_mutex_unlock(&c->lock);
    return h ? h : cipher_handle_new(c, err);
}

static void cipher_give(struct crypto_cipher *c, struct cipher_handle *h)
{
    RHEA_LOCKED(&c->lock);
    h->next = c->idle;
    c->idle = h;
}

int crypto_cipher_new(struct crypto_cipher **out,
                      const struct crypto_kind *kind, const uint8_t *key,
                      struct rhea_error *err)
{
    struct crypto_cipher *c;
    int ret = gcrypt_begin(err);

    if (ret == 0)
        ret = crypto_kind_check(kind, err);
    if (ret < 0)
        return ret;
    c = calloc(1, sizeof(*c));
    if (!c)
        return rhea_error_set(err, ENOMEM, "out of memory");
    c->kind = *kind;
    memcpy(c->key, key, crypto_kind_key(kind));
    pthread_mutex_init(&c->lock, NULL);
    /* What cannot be used shows here and not at the first sector. */
    c->idle = cipher_handle_new(c, err);
    if (!c->idle) {
        crypto_cipher_free(c);
        return -EIO;
    }
    *out = c;
    return 0;
}

void crypto_cipher_free(struct crypto_cipher *c)
{
    if (!c)
        return;
    while (c->idle) {
        struct cipher_handle *h = c->idle;

        c->idle = h->next;
        cipher_handle_free(h);
    }
    pthread_mutex_destroy(&c->lock);
    gcrypt_wipe(c, sizeof(*c));
    free(c);
}

const uint8_t *crypto_cipher_key(const struct crypto_cipher *c)
{
    return c->key;
}

/* Make ready for one sector. */
static gcry_error_t cipher_set_iv(const struct crypto_cipher *c,
                                  struct cipher_handle *h, uint64_t sector)
{
    uint8_t iv[CIPHER_IV] = {0};
    gcry_error_t code = 0;

    if (c->kind.mode == CRYPTO_ECB)
        return 0;
    if (c->kind.ivgen == CRYPTO_PLAIN)
        store_le32(iv, (uint32_t)sector);
    else
        store_le64(iv, sector);
    if (h->iv)
        code = gcry_cipher_encrypt(h->iv, iv, sizeof(iv), NULL, 0);
    if (code)
        return code;
    return c->kind.mode == CRYPTO_CTR
               ? gcry_cipher_setctr(h->data, iv, c->kind.alg->block)
               : gcry_cipher_setiv(h->data, iv, c->kind.alg->block);
}

static int cipher_run(struct crypto_cipher *c, uint64_t sector, uint8_t *buf,
                      size_t len, bool encrypt, struct rhea_error *err)
{
    struct cipher_handle *h = cipher_take(c, err);
    gcry_error_t code = 0;

    if (!h)
        return -ENOMEM;
    for (; len && !code; sector++) {
        size_t n = RHEA_MIN(len, (size_t)CRYPTO_SECTOR);

        code = cipher_set_iv(c, h, sector);
        if (!code)
            code = encrypt ? gcry_cipher_encrypt(h->data, buf, n, NULL, 0)
                           : gcry_cipher_decrypt(h->data, buf, n, NULL, 0);
        buf += n;
        len -= n;
    }
    cipher_give(c, h);
    return code ? gcrypt_error(
                      err, encrypt ? "cannot encrypt" : "cannot decrypt", code)
                : 0;
}

int crypto_encrypt(struct crypto_cipher *c, uint64_t sector, void *buf,
                   size_t len, struct rhea_error *err)
{
    return cipher_run(c, sector, buf, len, true, err);
}

int crypto_decrypt(struct crypto_cipher *c, uint64_t sector, void *buf,
                   size_t len, struct rhea_error *err)
{
    return cipher_run(c, sector, buf, len, false, err);
}
