/* SPDX-License-Identifier: MIT */
/*
 * Key slots (the spec, sections 4.1 to 4.4).
 *
 * Order of writes. A slot's fields lie in two sectors for slot 6, so that the
 * one that makes it count, `active`, is always written by itself:
 *   to fill a slot: key material, and the header with salt and iterations but
 *     still inactive; flush; the header with it active; flush.
 *   to erase one: the header with it inactive, else unchanged; flush; random
 *     bytes over the key material, and no salt nor iterations; flush.
 * So after a crash a slot is as it was or as it is to be, or inactive, and the
 * other slots are untouched.
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/entropy.h"
#include "base/gcrypt.h"
#include "crypto/kdf.h"
#include "crypto/luks.h"

enum { SLOT_WIPES = 3, SLOT_ITERATIONS_MIN = 1000 };

static uint8_t *slot_raw(struct luks *l, unsigned slot)
{
    return l->raw + LUKS_AT_SLOTS + slot * LUKS_SLOT_BYTES;
}

static size_t slot_material(const struct luks *l)
{
    return (size_t)l->key_len * LUKS_STRIPES;
}

/* Wiped and freed at the end of the scope. */
struct slot_buffer {
    uint8_t *data;
    size_t len;
};

static void cleanup_slot_buffer(struct slot_buffer *b)
{
    gcrypt_wipe(b->data, b->len);
    free(b->data);
}
#define SLOT_AUTO __attribute__((cleanup(cleanup_slot_buffer)))

static int slot_buffer(struct slot_buffer *b, size_t len,
                       struct rhea_error *err)
{
    *b = (struct slot_buffer){calloc(1, len), len};
    return b->data ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

static int slot_write_header(struct luks *l, struct rhea_error *err)
{
    int ret = rhea_storage_write(l->storage, l->raw, LUKS_HEADER, l->base, err);

    return ret < 0 ? ret : rhea_storage_flush(l->storage, err);
}

/* What a slot's key material is encrypted with. */
static int slot_cipher(struct luks *l, unsigned slot, const uint8_t *pass,
                       size_t pass_len, struct crypto_cipher **cipher,
                       struct rhea_error *err)
{
    uint8_t key[CRYPTO_KEY_MAX];
    int ret = kdf_pbkdf2(l->hash, pass, pass_len,
                         slot_raw(l, slot) + LUKS_SLOT_SALT, LUKS_SALT,
                         load_be32(slot_raw(l, slot) + LUKS_SLOT_ITERATIONS),
                         key, l->key_len, err);

    if (ret < 0)
        return rhea_error_prefix(err, "key slot %u", slot);
    ret = crypto_cipher_new(cipher, &l->kind, key, err);
    gcrypt_wipe(key, sizeof(key));
    return ret;
}

static int slot_read(struct luks *l, unsigned slot, const uint8_t *pass,
                     size_t pass_len, uint8_t *split, struct rhea_error *err)
{
    struct crypto_cipher *cipher;
    int ret;

    /* Before the long computation, in case there is nothing. */
    ret = rhea_storage_read(l->storage, split, slot_material(l),
                            l->base + l->slots[slot].offset, err);
    if (ret == 0)
        ret = slot_cipher(l, slot, pass, pass_len, &cipher, err);
    if (ret < 0)
        return ret;
    ret = crypto_decrypt(cipher, 0, split, slot_material(l), err);
    crypto_cipher_free(cipher);
    return ret;
}

int luks_slot_load(struct luks *l, unsigned slot, const uint8_t *pass,
                   size_t pass_len, uint8_t *key, struct rhea_error *err)
{
    SLOT_AUTO struct slot_buffer split = {0};
    uint8_t digest[LUKS_DIGEST];
    int ret = slot_buffer(&split, slot_material(l), err);

    if (ret == 0)
        ret = slot_read(l, slot, pass, pass_len, split.data, err);
    if (ret < 0)
        return ret;
    kdf_merge(l->hash, split.data, l->key_len, LUKS_STRIPES, key);
    ret = kdf_pbkdf2(l->hash, key, l->key_len, l->raw + LUKS_AT_DIGEST_SALT,
                     LUKS_SALT, l->iterations, digest, LUKS_DIGEST, err);
    if (ret < 0)
        return ret;
    return !memcmp(digest, l->raw + LUKS_AT_DIGEST, LUKS_DIGEST);
}

/* Salt and iterations, in memory. */
static int slot_prepare(struct luks *l, unsigned slot, uint64_t iter_time,
                        struct rhea_error *err)
{
    uint8_t *raw = slot_raw(l, slot);
    uint32_t iterations = 0;
    int ret = entropy_get(raw + LUKS_SLOT_SALT, LUKS_SALT, err);

    if (ret == 0)
        ret = kdf_benchmark(l->hash, l->key_len, iter_time, &iterations, err);
    store_be32(raw + LUKS_SLOT_STRIPES, LUKS_STRIPES);
    store_be32(raw + LUKS_SLOT_ITERATIONS,
               RHEA_MAX(iterations, (uint32_t)SLOT_ITERATIONS_MIN));
    return ret;
}

static int slot_fill(struct luks *l, unsigned slot, const uint8_t *pass,
                     size_t pass_len, const uint8_t *key,
                     struct rhea_error *err)
{
    SLOT_AUTO struct slot_buffer split = {0};
    struct crypto_cipher *cipher = NULL;
    int ret = slot_buffer(&split, slot_material(l), err);

    if (ret == 0)
        ret =
            kdf_split(l->hash, key, l->key_len, LUKS_STRIPES, split.data, err);
    if (ret == 0)
        ret = slot_cipher(l, slot, pass, pass_len, &cipher, err);
    if (ret < 0)
        return ret;
    ret = crypto_encrypt(cipher, 0, split.data, split.len, err);
    crypto_cipher_free(cipher);
    if (ret == 0)
        ret = rhea_storage_write(l->storage, split.data, split.len,
                                 l->base + l->slots[slot].offset, err);
    return ret;
}

int luks_slot_store(struct luks *l, unsigned slot, const uint8_t *pass,
                    size_t pass_len, const uint8_t *key, uint64_t iter_time,
                    struct rhea_error *err)
{
    int ret = slot_prepare(l, slot, iter_time, err);

    if (ret == 0)
        ret = slot_fill(l, slot, pass, pass_len, key, err);
    if (ret == 0)
        ret = slot_write_header(l, err);
    if (ret < 0)
        return ret;
    store_be32(slot_raw(l, slot), LUKS_ACTIVE);
    ret = slot_write_header(l, err);
    l->slots[slot].active = true;
    l->slots[slot].iterations =
        load_be32(slot_raw(l, slot) + LUKS_SLOT_ITERATIONS);
    return ret;
}

static int slot_wipe(struct luks *l, unsigned slot, struct rhea_error *err)
{
    SLOT_AUTO struct slot_buffer noise = {0};
    int ret = slot_buffer(&noise, slot_material(l), err);

    /* A disk may keep what one write replaces; so several, each flushed. */
    for (unsigned i = 0; ret == 0 && i < SLOT_WIPES; i++) {
        ret = entropy_get(noise.data, noise.len, err);
        if (ret == 0)
            ret = rhea_storage_write(l->storage, noise.data, noise.len,
                                     l->base + l->slots[slot].offset, err);
        if (ret == 0)
            ret = rhea_storage_flush(l->storage, err);
    }
    return ret;
}

int luks_slot_erase(struct luks *l, unsigned slot, struct rhea_error *err)
{
    uint8_t *raw = slot_raw(l, slot);
    int ret;

    store_be32(raw, LUKS_INACTIVE);
    ret = slot_write_header(l, err);
    if (ret < 0)
        return ret;
    l->slots[slot].active = false;
    l->slots[slot].iterations = 0;
    memset(raw + LUKS_SLOT_ITERATIONS, 0, 4);
    memset(raw + LUKS_SLOT_SALT, 0, LUKS_SALT);
    ret = slot_wipe(l, slot, err);
    return ret < 0 ? ret : slot_write_header(l, err);
}
