/* SPDX-License-Identifier: MIT */
/* Reading and checking the header (the spec, section 3). It may come from
 * anybody: every number is checked against what QEMU and cryptsetup take. */
#include "crypto/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <rhea/secret.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/gcrypt.h"

const uint8_t luks_magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

int luks_probe(const uint8_t *head, size_t len)
{
    return len >= LUKS_AT_CIPHER &&
                   !memcmp(head, luks_magic, sizeof(luks_magic)) &&
                   load_be16(head + LUKS_AT_VERSION) == 1
               ? 100
               : 0;
}

/* Whole sectors, then whole LUKS_ALIGN: that is how cryptsetup counts, since
 * 1.1; before, whole sectors were enough for it. */
uint64_t luks_material_room(unsigned key_len)
{
    return align_up((uint64_t)key_len * LUKS_STRIPES, LUKS_ALIGN);
}

static int luks_bad(struct rhea_error *err, const char *what)
{
    return rhea_error_set(err, EINVAL, "the LUKS header is damaged: %s", what);
}

/* A name of the header, which must end inside its field. */
static int luks_name(const struct luks *l, unsigned at, char *name,
                     struct rhea_error *err)
{
    const char *field = (const char *)l->raw + at;

    if (!memchr(field, 0, LUKS_NAME))
        return luks_bad(err, "a name in it has no end");
    memcpy(name, field, LUKS_NAME);
    for (char *c = name; *c; c++)
        if (*c < ' ' || *c > '~')
            return luks_bad(err, "a name in it is no text");
    return 0;
}

/* <mode>-<ivgen>[:<hash>] */
static int luks_parse_mode(struct luks *l, char *mode, struct rhea_error *err)
{
    char *ivgen = strchr(mode, '-'), *hash;
    int ret;

    if (!ivgen)
        return rhea_error_set(
            err, EINVAL, "the LUKS header names no IV generator in '%s'", mode);
    *ivgen++ = '\0';
    hash = strchr(ivgen, ':');
    if (hash)
        *hash++ = '\0';
    ret = crypto_mode_find(mode, &l->kind.mode, err);
    if (ret == 0)
        ret = crypto_ivgen_find(ivgen, &l->kind.ivgen, err);
    l->kind.ivgen_hash = NULL;
    if (ret == 0 && hash)
        ret = crypto_hash_find(hash, &l->kind.ivgen_hash, err);
    return ret;
}

static int luks_parse_names(struct luks *l, struct rhea_error *err)
{
    char cipher[LUKS_NAME] = "", mode[LUKS_NAME] = "", hash[LUKS_NAME] = "";
    unsigned key;
    int ret = luks_name(l, LUKS_AT_CIPHER, cipher, err);

    if (ret == 0)
        ret = luks_name(l, LUKS_AT_MODE, mode, err);
    if (ret == 0)
        ret = luks_name(l, LUKS_AT_HASH, hash, err);
    if (ret == 0)
        ret = crypto_hash_find(hash, &l->hash, err);
    if (ret == 0)
        ret = luks_parse_mode(l, mode, err);
    if (ret < 0)
        return ret;
    key = l->kind.mode == CRYPTO_XTS ? l->key_len / 2 : l->key_len;
    l->kind.alg = crypto_alg_of_luks(cipher, key);
    if (!l->kind.alg || crypto_kind_key(&l->kind) != l->key_len)
        return rhea_error_set(err, ENOTSUP,
                              "the encryption algorithm '%s' with a key of %u "
                              "bytes is not known",
                              cipher, l->key_len);
    if (l->kind.ivgen == CRYPTO_ESSIV && !crypto_kind_essiv(&l->kind))
        return luks_bad(err, "essiv goes with no such hash");
    return 0;
}

static int luks_parse_slot(struct luks *l, unsigned i, struct rhea_error *err)
{
    const uint8_t *at = l->raw + LUKS_AT_SLOTS + i * LUKS_SLOT_BYTES;
    struct luks_slot *s = &l->slots[i];
    uint64_t room =
        align_up((uint64_t)l->key_len * LUKS_STRIPES, CRYPTO_SECTOR);

    s->active = load_be32(at) == LUKS_ACTIVE;
    s->iterations = load_be32(at + LUKS_SLOT_ITERATIONS);
    s->offset = (uint64_t)load_be32(at + LUKS_SLOT_OFFSET) * CRYPTO_SECTOR;
    if (!s->active && load_be32(at) != LUKS_INACTIVE)
        return luks_bad(err, "a key slot is neither active nor inactive");
    /* What cryptsetup 1.0 left in slots that it had not used is of no
     * matter: whoever fills one writes all its fields. */
    if (s->active && load_be32(at + LUKS_SLOT_STRIPES) != LUKS_STRIPES)
        return luks_bad(err, "a key slot has not 4000 stripes");
    if (s->active && !s->iterations)
        return luks_bad(err, "a key slot has no iterations");
    if (s->offset < LUKS_HEADER)
        return luks_bad(err, "a key slot overlaps the header");
    if (s->offset + room > l->payload)
        return luks_bad(err, "a key slot overlaps the encrypted data");
    for (unsigned k = 0; k < i; k++)
        if (s->offset < l->slots[k].offset + room &&
            l->slots[k].offset < s->offset + room)
            return luks_bad(err, "two key slots overlap");
    return 0;
}

int luks_parse(struct luks *l, uint64_t room, struct rhea_error *err)
{
    int ret;

    if (memcmp(l->raw, luks_magic, sizeof(luks_magic)) != 0)
        return rhea_error_set(err, EINVAL, "there is no LUKS header");
    if (load_be16(l->raw + LUKS_AT_VERSION) != 1)
        return rhea_error_set(err, ENOTSUP, "LUKS version %u is not supported",
                              load_be16(l->raw + LUKS_AT_VERSION));
    l->payload = (uint64_t)load_be32(l->raw + LUKS_AT_PAYLOAD) * CRYPTO_SECTOR;
    l->key_len = load_be32(l->raw + LUKS_AT_KEY_BYTES);
    l->iterations = load_be32(l->raw + LUKS_AT_ITERATIONS);
    if (!l->key_len || l->key_len > CRYPTO_KEY_MAX)
        return luks_bad(err, "its key has an impossible length");
    if (l->payload < LUKS_HEADER)
        return luks_bad(err, "the encrypted data overlaps it");
    if (l->payload > room)
        return luks_bad(err, "the encrypted data begins past the end");
    if (!l->iterations)
        return luks_bad(err, "the key's digest has no iterations");
    ret = luks_parse_names(l, err);
    for (unsigned i = 0; ret == 0 && i < LUKS_SLOTS; i++)
        ret = luks_parse_slot(l, i, err);
    memcpy(l->uuid, l->raw + LUKS_AT_UUID, LUKS_UUID);
    l->uuid[LUKS_UUID] = '\0';
    for (char *c = l->uuid; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    return ret;
}

int luks_open(struct luks *l, struct rhea_storage *storage, uint64_t base,
              uint64_t room, struct rhea_error *err)
{
    int ret;

    *l = (struct luks){.storage = storage, .base = base};
    if (room < LUKS_HEADER)
        return rhea_error_set(err, EINVAL,
                              "there is no room for a LUKS header");
    ret = rhea_storage_read(storage, l->raw, sizeof(l->raw), base, err);
    return ret < 0 ? ret : luks_parse(l, room, err);
}

/* All active slots, in their order. */
static int luks_find_key(struct luks *l, const uint8_t *pass, size_t len,
                         uint8_t *key, struct rhea_error *err)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int ret =
            l->slots[i].active ? luks_slot_load(l, i, pass, len, key, err) : 0;

        if (ret)
            return ret < 0 ? ret : 0;
    }
    return rhea_error_set(err, EACCES,
                          "the passphrase is wrong: it opens no key slot");
}

int luks_unlock(struct luks *l, const char *secret, const char *option,
                struct rhea_error *err)
{
    uint8_t key[CRYPTO_KEY_MAX], *pass = NULL;
    size_t len = 0;
    int ret;

    if (!secret)
        return rhea_error_set(err, EACCES,
                              "the image is encrypted: its passphrase is "
                              "needed, as --object secret,id=ID,... and the "
                              "option %s=ID",
                              option);
    ret = crypto_kind_check(&l->kind, err);
    if (ret == 0)
        ret = rhea_secret_get(secret, &pass, &len, err);
    if (ret < 0)
        return ret;
    ret = luks_find_key(l, pass, len, key, err);
    rhea_secret_free(pass, len);
    if (ret == 0)
        ret = crypto_cipher_new(&l->cipher, &l->kind, key, err);
    gcrypt_wipe(key, sizeof(key));
    return ret;
}

void luks_finish(struct luks *l)
{
    crypto_cipher_free(l->cipher);
    l->cipher = NULL;
}
