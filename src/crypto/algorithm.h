/* SPDX-License-Identifier: MIT */
/*
 * The algorithms that images are encrypted with, by the names that QEMU gives
 * them ("aes-256") and that LUKS headers hold ("aes", and a key of 32 bytes).
 */
#ifndef RHEA_CRYPTO_ALGORITHM_H
#define RHEA_CRYPTO_ALGORITHM_H

#include <rhea/base.h>

struct crypto_alg {
    const char *name;
    const char *luks_name;
    unsigned key, block; /* bytes; the key of one cipher, xts takes two */
    int gcrypt;          /* 0: libgcrypt does not have it */
};

struct crypto_hash {
    const char *name;
    unsigned length; /* bytes */
    int gcrypt;
};

enum crypto_mode { CRYPTO_ECB, CRYPTO_CBC, CRYPTO_XTS, CRYPTO_CTR };
enum crypto_ivgen { CRYPTO_PLAIN, CRYPTO_PLAIN64, CRYPTO_ESSIV };

#define CRYPTO_HASH_MAX 64 /* bytes of the longest digest */
#define CRYPTO_KEY_MAX 64  /* bytes of the longest key, two of AES-256 */

/* How sectors are encrypted. */
struct crypto_kind {
    const struct crypto_alg *alg;
    enum crypto_mode mode;
    enum crypto_ivgen ivgen;
    const struct crypto_hash *ivgen_hash; /* NULL: none is named; only essiv
                                             uses it */
};

/* By name; an error names what there is not. */
int crypto_alg_find(const char *name, const struct crypto_alg **alg,
                    struct rhea_error *err);
int crypto_hash_find(const char *name, const struct crypto_hash **hash,
                     struct rhea_error *err);
int crypto_mode_find(const char *name, enum crypto_mode *mode,
                     struct rhea_error *err);
int crypto_ivgen_find(const char *name, enum crypto_ivgen *ivgen,
                      struct rhea_error *err);
/* By the name in a LUKS header and the bytes of one key; NULL: none. */
const struct crypto_alg *crypto_alg_of_luks(const char *name, unsigned key);
const char *crypto_mode_name(enum crypto_mode mode);
const char *crypto_ivgen_name(enum crypto_ivgen ivgen);

/* Bytes of the key that sectors are encrypted with. */
unsigned crypto_kind_key(const struct crypto_kind *kind);
/* Whether its parts go together; an error says why not. */
int crypto_kind_check(const struct crypto_kind *kind, struct rhea_error *err);
/* What encrypts the IVs of essiv: the kind's algorithm, but with a key as long
 * as the digest, as in dm-crypt; NULL: there is none. */
const struct crypto_alg *crypto_kind_essiv(const struct crypto_kind *kind);

#endif
