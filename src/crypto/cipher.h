/* SPDX-License-Identifier: MIT */
/*
 * Encryption of sectors of 512 bytes, each by itself. Safe from many threads
 * at once: each that is at work has a handle of libgcrypt of its own, which
 * the next one takes over.
 *
 * Life: crypto_cipher_new, use, crypto_cipher_free (safe on NULL), which wipes
 * the key.
 */
#ifndef RHEA_CRYPTO_CIPHER_H
#define RHEA_CRYPTO_CIPHER_H

#include "crypto/algorithm.h"

#define CRYPTO_SECTOR 512

struct crypto_cipher;

/* KEY has crypto_kind_key(KIND) bytes. */
int crypto_cipher_new(struct crypto_cipher **out,
                      const struct crypto_kind *kind, const uint8_t *key,
                      struct rhea_error *err);
void crypto_cipher_free(struct crypto_cipher *c);
const uint8_t *crypto_cipher_key(const struct crypto_cipher *c);

/* In place. BUF begins with the sector of that number; only the last one may
 * be short, and is whole blocks even then. */
int crypto_encrypt(struct crypto_cipher *c, uint64_t sector, void *buf,
                   size_t len, struct rhea_error *err);
int crypto_decrypt(struct crypto_cipher *c, uint64_t sector, void *buf,
                   size_t len, struct rhea_error *err);

#endif
