/* SPDX-License-Identifier: MIT */
/* New headers, laid out as cryptsetup and QEMU do. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <rhea/secret.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/entropy.h"
#include "base/gcrypt.h"
#include "base/uuid.h"
#include "crypto/kdf.h"
#include "crypto/luks.h"
#include "crypto/luks_number.h"

/* The digest of the master key costs an eighth of a slot's time, as in
 * cryptsetup. */
enum { DIGEST_SHARE = 8, DIGEST_ITERATIONS_MIN = 1000 };

bool luks_create_option(struct luks_create *how, const char *name,
                        const char *value, int *result, struct rhea_error *err)
{
    *result = 0;
    if (!strcmp(name, "key-secret")) {
        how->secret = value;
    } else if (!strcmp(name, "cipher-alg")) {
        *result = crypto_alg_find(value, &how->kind.alg, err);
    } else if (!strcmp(name, "cipher-mode")) {
        *result = crypto_mode_find(value, &how->kind.mode, err);
        how->has_mode = true;
    } else if (!strcmp(name, "ivgen-alg")) {
        *result = crypto_ivgen_find(value, &how->kind.ivgen, err);
        how->has_ivgen = true;
    } else if (!strcmp(name, "ivgen-hash-alg")) {
        *result = crypto_hash_find(value, &how->kind.ivgen_hash, err);
    } else if (!strcmp(name, "hash-alg")) {
        *result = crypto_hash_find(value, &how->hash, err);
    } else if (!strcmp(name, "iter-time")) {
        *result = luks_number(name, value, 1, UINT32_MAX, &how->iter_time, err);
    } else {
        return false;
    }
    return true;
}

int luks_create_measure(struct luks_create *how, struct rhea_error *err)
{
    struct rhea_error *ignored = NULL;
    int ret;

    if (!how->has_mode)
        how->kind.mode = CRYPTO_XTS;
    if (!how->has_ivgen)
        how->kind.ivgen = CRYPTO_PLAIN64;
    if (!how->iter_time)
        how->iter_time = LUKS_ITER_TIME;
    ret = how->kind.alg ? 0 : crypto_alg_find("aes-256", &how->kind.alg, err);
    if (ret == 0 && !how->hash)
        ret = crypto_hash_find("sha256", &how->hash, err);
    if (ret == 0 && how->kind.ivgen == CRYPTO_ESSIV && !how->kind.ivgen_hash)
        ret = crypto_hash_find("sha256", &how->kind.ivgen_hash, ignored);
    if (ret == 0)
        ret = crypto_kind_check(&how->kind, err);
    if (ret < 0)
        return ret;
    how->payload = LUKS_ALIGN +
                   LUKS_SLOTS * luks_material_room(crypto_kind_key(&how->kind));
    return 0;
}

/* RFC 3629, and no zero byte. */
static bool create_is_text(const uint8_t *p, size_t len)
{
    static const uint32_t least[] = {1, 0x80, 0x800, 0x10000};

    while (len) {
        unsigned more = *p < 0x80             ? 0
                        : (*p & 0xe0) == 0xc0 ? 1
                        : (*p & 0xf0) == 0xe0 ? 2
                        : (*p & 0xf8) == 0xf0 ? 3
                                              : 4;
        uint32_t c = more ? *p & (0x3fU >> more) : *p;

        if (more > 3 || len <= more)
            return false;
        for (unsigned i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80)
                return false;
            c = c << 6 | (p[i] & 0x3f);
        }
        if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return false;
        p += more + 1;
        len -= more + 1;
    }
    return true;
}

int luks_new_passphrase(const char *secret, uint8_t **pass, size_t *len,
                        struct rhea_error *err)
{
    int ret = rhea_secret_get(secret, pass, len, err);

    if (ret < 0 || create_is_text(*pass, *len))
        return ret;
    rhea_secret_free(*pass, *len);
    *pass = NULL;
    *len = 0;
    return rhea_error_set(err, EINVAL,
                          "the secret '%s' is not valid UTF-8, and as a "
                          "passphrase QEMU would not take it",
                          secret);
}

int luks_create_prepare(struct luks_create *how, const char *prefix,
                        struct rhea_error *err)
{
    uint8_t *pass;
    size_t len;
    int ret = luks_create_measure(how, err);

    if (ret < 0)
        return ret;
    if (!how->secret)
        return rhea_error_set(err, EINVAL,
                              "an encrypted image needs the option "
                              "%skey-secret, the id of the secret with its "
                              "passphrase",
                              prefix);
    ret = luks_new_passphrase(how->secret, &pass, &len, err);
    if (ret == 0)
        rhea_secret_free(pass, len);
    return ret;
}

static int create_uuid(uint8_t *field, struct rhea_error *err)
{
    uint8_t uuid[UUID_BYTES];
    char text[UUID_TEXT];
    int ret = uuid_new(uuid, err);

    if (ret)
        return ret;
    uuid_text(uuid, text);
    memcpy(field, text, strlen(text));
    return 0;
}

/* Everything but the digest; no slot is active. */
static int create_header(struct luks *l, const struct luks_create *how,
                         struct rhea_error *err)
{
    const struct crypto_kind *k = &how->kind;
    uint64_t at = LUKS_ALIGN,
             room = luks_material_room(crypto_kind_key(&how->kind));
    char mode[LUKS_NAME];

    memcpy(l->raw, luks_magic, sizeof(luks_magic));
    store_be16(l->raw + LUKS_AT_VERSION, 1);
    memcpy(l->raw + LUKS_AT_CIPHER, k->alg->luks_name,
           strlen(k->alg->luks_name));
    snprintf(mode, sizeof(mode), "%s-%s%s%s", crypto_mode_name(k->mode),
             crypto_ivgen_name(k->ivgen), k->ivgen_hash ? ":" : "",
             k->ivgen_hash ? k->ivgen_hash->name : "");
    memcpy(l->raw + LUKS_AT_MODE, mode, strlen(mode));
    memcpy(l->raw + LUKS_AT_HASH, how->hash->name, strlen(how->hash->name));
    store_be32(l->raw + LUKS_AT_PAYLOAD,
               (uint32_t)(how->payload / CRYPTO_SECTOR));
    store_be32(l->raw + LUKS_AT_KEY_BYTES, crypto_kind_key(k));
    for (unsigned i = 0; i < LUKS_SLOTS; i++, at += room) {
        uint8_t *slot = l->raw + LUKS_AT_SLOTS + i * LUKS_SLOT_BYTES;

        store_be32(slot, LUKS_INACTIVE);
        store_be32(slot + LUKS_SLOT_OFFSET, (uint32_t)(at / CRYPTO_SECTOR));
        store_be32(slot + LUKS_SLOT_STRIPES, LUKS_STRIPES);
    }
    return create_uuid(l->raw + LUKS_AT_UUID, err);
}

static int create_digest(struct luks *l, const struct luks_create *how,
                         const uint8_t *key, struct rhea_error *err)
{
    uint32_t n = 0;
    int ret = entropy_get(l->raw + LUKS_AT_DIGEST_SALT, LUKS_SALT, err);

    if (ret == 0)
        ret = kdf_benchmark(how->hash, LUKS_DIGEST, how->iter_time, &n, err);
    if (ret < 0)
        return ret;
    n = RHEA_MAX(n / DIGEST_SHARE, (uint32_t)DIGEST_ITERATIONS_MIN);
    store_be32(l->raw + LUKS_AT_ITERATIONS, n);
    return kdf_pbkdf2(how->hash, key, crypto_kind_key(&how->kind),
                      l->raw + LUKS_AT_DIGEST_SALT, LUKS_SALT, n,
                      l->raw + LUKS_AT_DIGEST, LUKS_DIGEST, err);
}

static int create_with_key(struct luks *l, const struct luks_create *how,
                           const uint8_t *key, struct rhea_error *err)
{
    uint8_t *pass = NULL;
    size_t len = 0;
    int ret = create_header(l, how, err);

    if (ret == 0)
        ret = create_digest(l, how, key, err);
    if (ret == 0)
        ret = luks_parse(l, how->payload, err);
    if (ret == 0)
        ret = luks_new_passphrase(how->secret, &pass, &len, err);
    if (ret == 0)
        ret = luks_slot_store(l, 0, pass, len, key, how->iter_time, err);
    rhea_secret_free(pass, len);
    return ret;
}

int luks_create(struct rhea_storage *storage, uint64_t base,
                const struct luks_create *how, struct rhea_error *err)
{
    struct luks l = {.storage = storage, .base = base};
    uint8_t key[CRYPTO_KEY_MAX];
    int ret = entropy_get(key, sizeof(key), err);

    if (ret == 0)
        ret = create_with_key(&l, how, key, err);
    gcrypt_wipe(key, sizeof(key));
    return ret;
}
