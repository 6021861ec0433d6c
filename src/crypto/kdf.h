/* SPDX-License-Identifier: MIT */
/* What stands between a passphrase and a master key: PBKDF2 (RFC 8018) and the
 * anti-forensic splitter of LUKS1. */
#ifndef RHEA_CRYPTO_KDF_H
#define RHEA_CRYPTO_KDF_H

#include "crypto/algorithm.h"

/* More are not computed: they would take minutes, and whoever wrote the number
 * down may mean harm. */
#define KDF_ITERATIONS_MAX (UINT32_C(1) << 27)

int kdf_pbkdf2(const struct crypto_hash *hash, const void *pass,
               size_t pass_len, const void *salt, size_t salt_len,
               uint32_t iterations, uint8_t *out, size_t out_len,
               struct rhea_error *err);
/* How many iterations take MS milliseconds of this machine's time, for OUT_LEN
 * bytes; at most KDF_ITERATIONS_MAX. */
int kdf_benchmark(const struct crypto_hash *hash, size_t out_len, uint64_t ms,
                  uint32_t *iterations, struct rhea_error *err);

/* LUKS1 specification, section 2.4. OUT of split, and IN of merge, is STRIPES
 * times LEN bytes (at most CRYPTO_KEY_MAX). */
int kdf_split(const struct crypto_hash *hash, const uint8_t *in, size_t len,
              unsigned stripes, uint8_t *out, struct rhea_error *err);
void kdf_merge(const struct crypto_hash *hash, const uint8_t *in, size_t len,
               unsigned stripes, uint8_t *out);

#endif
