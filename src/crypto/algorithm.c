/* SPDX-License-Identifier: MIT */
#include "crypto/algorithm.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/gcrypt.h"

static const struct crypto_alg algs[] = {
    {"aes-128", "aes", 16, 16, GCRY_CIPHER_AES128},
    {"aes-192", "aes", 24, 16, GCRY_CIPHER_AES192},
    {"aes-256", "aes", 32, 16, GCRY_CIPHER_AES256},
    {"cast5-128", "cast5", 16, 8, GCRY_CIPHER_CAST5},
    {"serpent-128", "serpent", 16, 16, GCRY_CIPHER_SERPENT128},
    {"serpent-192", "serpent", 24, 16, GCRY_CIPHER_SERPENT192},
    {"serpent-256", "serpent", 32, 16, GCRY_CIPHER_SERPENT256},
    {"twofish-128", "twofish", 16, 16, GCRY_CIPHER_TWOFISH128},
    {"twofish-192", "twofish", 24, 16, 0},
    {"twofish-256", "twofish", 32, 16, GCRY_CIPHER_TWOFISH},
};

static const struct crypto_hash hashes[] = {
    {"md5", 16, GCRY_MD_MD5},          {"sha1", 20, GCRY_MD_SHA1},
    {"sha224", 28, GCRY_MD_SHA224},    {"sha256", 32, GCRY_MD_SHA256},
    {"sha384", 48, GCRY_MD_SHA384},    {"sha512", 64, GCRY_MD_SHA512},
    {"ripemd160", 20, GCRY_MD_RMD160}, {"whirlpool", 64, GCRY_MD_WHIRLPOOL},
};

static const char *const modes[] = {"ecb", "cbc", "xts", "ctr"};
static const char *const ivgens[] = {"plain", "plain64", "essiv"};

static int crypto_unknown(struct rhea_error *err, const char *what,
                          const char *name)
{
    return rhea_error_set(err, ENOTSUP, "the %s '%s' is not known", what, name);
}

int crypto_alg_find(const char *name, const struct crypto_alg **alg,
                    struct rhea_error *err)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(algs); i++) {
        *alg = &algs[i];
        if (!strcmp(algs[i].name, name))
            return 0;
    }
    return crypto_unknown(err, "encryption algorithm", name);
}

int crypto_hash_find(const char *name, const struct crypto_hash **hash,
                     struct rhea_error *err)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(hashes); i++) {
        *hash = &hashes[i];
        if (!strcmp(hashes[i].name, name))
            return 0;
    }
    return crypto_unknown(err, "hash", name);
}

static int crypto_word(const char *const *words, size_t n, const char *name,
                       const char *what, unsigned *index,
                       struct rhea_error *err)
{
    for (*index = 0; *index < n; ++*index)
        if (!strcmp(words[*index], name))
            return 0;
    return crypto_unknown(err, what, name);
}

int crypto_mode_find(const char *name, enum crypto_mode *mode,
                     struct rhea_error *err)
{
    unsigned index;
    int ret = crypto_word(modes, RHEA_ARRAY_SIZE(modes), name,
                          "encryption mode", &index, err);

    *mode = (enum crypto_mode)index;
    return ret;
}

int crypto_ivgen_find(const char *name, enum crypto_ivgen *ivgen,
                      struct rhea_error *err)
{
    unsigned index;
    int ret = crypto_word(ivgens, RHEA_ARRAY_SIZE(ivgens), name, "IV generator",
                          &index, err);

    *ivgen = (enum crypto_ivgen)index;
    return ret;
}

const struct crypto_alg *crypto_alg_of_luks(const char *name, unsigned key)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(algs); i++)
        if (!strcmp(algs[i].luks_name, name) && algs[i].key == key)
            return &algs[i];
    return NULL;
}

const char *crypto_mode_name(enum crypto_mode mode)
{
    return modes[mode];
}

const char *crypto_ivgen_name(enum crypto_ivgen ivgen)
{
    return ivgens[ivgen];
}

unsigned crypto_kind_key(const struct crypto_kind *kind)
{
    return kind->alg->key * (kind->mode == CRYPTO_XTS ? 2 : 1);
}

const struct crypto_alg *crypto_kind_essiv(const struct crypto_kind *kind)
{
    return kind->ivgen_hash && kind->alg->block == 16
               ? crypto_alg_of_luks(kind->alg->luks_name,
                                    kind->ivgen_hash->length)
               : NULL;
}

int crypto_kind_check(const struct crypto_kind *kind, struct rhea_error *err)
{
    const struct crypto_alg *iv = kind->alg;

    if (kind->mode == CRYPTO_XTS && kind->alg->block != 16)
        return rhea_error_set(err, EINVAL,
                              "xts takes an algorithm of 16 byte blocks, which "
                              "%s is not",
                              kind->alg->name);
    if (kind->ivgen == CRYPTO_ESSIV)
        iv = crypto_kind_essiv(kind);
    if (!iv)
        return rhea_error_set(err, EINVAL,
                              "essiv is not possible for %s with the hash %s: "
                              "the algorithm takes no such key",
                              kind->alg->name,
                              kind->ivgen_hash ? kind->ivgen_hash->name
                                               : "(none)");
    if (!kind->alg->gcrypt || !iv->gcrypt)
        return rhea_error_set(err, ENOTSUP,
                              "libgcrypt, which this program encrypts with, "
                              "does not have %s",
                              kind->alg->gcrypt ? iv->name : kind->alg->name);
    return 0;
}
