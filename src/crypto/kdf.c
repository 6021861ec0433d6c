/* SPDX-License-Identifier: MIT */
#include "crypto/kdf.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/entropy.h"
#include "base/gcrypt.h"

/* Long enough for a clock to tell apart from what else goes on. */
#define KDF_BENCHMARK_NS 30000000

int kdf_pbkdf2(const struct crypto_hash *hash, const void *pass,
               size_t pass_len, const void *salt, size_t salt_len,
               uint32_t iterations, uint8_t *out, size_t out_len,
               struct rhea_error *err)
{
    gcry_error_t code;
    int ret = gcrypt_begin(err);

    if (ret < 0)
        return ret;
    if (!iterations || iterations > KDF_ITERATIONS_MAX)
        return rhea_error_set(err, EINVAL,
                              "%u iterations of PBKDF2 are not computed: this "
                              "program does 1 to %u",
                              iterations, KDF_ITERATIONS_MAX);
    code = gcry_kdf_derive(pass, pass_len, GCRY_KDF_PBKDF2, hash->gcrypt, salt,
                           salt_len, iterations, out_len, out);
    return code ? gcrypt_error(err, "cannot derive a key", code) : 0;
}

static uint64_t kdf_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int kdf_benchmark(const struct crypto_hash *hash, size_t out_len, uint64_t ms,
                  uint32_t *iterations, struct rhea_error *err)
{
    uint8_t salt[32] = {0}, out[CRYPTO_HASH_MAX];
    uint64_t blocks = div_up(out_len, hash->length), took = 0;
    uint32_t n = 1 << 12;
    double want;

    for (;;) {
        uint64_t start = kdf_now();
        int ret = kdf_pbkdf2(hash, "benchmark", 9, salt, sizeof(salt), n, out,
                             hash->length, err);

        if (ret < 0)
            return ret;
        took = kdf_now() - start;
        if (took >= KDF_BENCHMARK_NS || n >= KDF_ITERATIONS_MAX / 4)
            break;
        n *= took < KDF_BENCHMARK_NS / 8 ? 4 : 2;
    }
    want = (double)n * 1e6 / (double)RHEA_MAX(took, 1) * (double)ms /
           (double)blocks;
    *iterations =
        want < KDF_ITERATIONS_MAX ? (uint32_t)want : KDF_ITERATIONS_MAX;
    return 0;
}

/* The diffusion of the splitter: each digest's worth of BLOCK is replaced by
 * the digest of its number and itself. */
static void kdf_diffuse(const struct crypto_hash *hash, uint8_t *block,
                        size_t len)
{
    uint8_t in[4 + CRYPTO_HASH_MAX], digest[CRYPTO_HASH_MAX];

    for (uint32_t i = 0; len; i++) {
        size_t n = RHEA_MIN(len, (size_t)hash->length);

        store_be32(in, i);
        memcpy(in + 4, block, n);
        gcry_md_hash_buffer(hash->gcrypt, digest, in, 4 + n);
        memcpy(block, digest, n);
        block += n;
        len -= n;
    }
    gcrypt_wipe(in, sizeof(in));
    gcrypt_wipe(digest, sizeof(digest));
}

static void kdf_xor(uint8_t *to, const uint8_t *a, size_t len)
{
    for (size_t i = 0; i < len; i++)
        to[i] ^= a[i];
}

int kdf_split(const struct crypto_hash *hash, const uint8_t *in, size_t len,
              unsigned stripes, uint8_t *out, struct rhea_error *err)
{
    uint8_t block[CRYPTO_KEY_MAX] = {0};
    uint8_t *last = out + (stripes - 1) * len;
    int ret = entropy_get(out, (stripes - 1) * len, err);

    if (ret < 0)
        return ret;
    for (; out < last; out += len) {
        kdf_xor(block, out, len);
        kdf_diffuse(hash, block, len);
    }
    memcpy(last, in, len);
    kdf_xor(last, block, len);
    gcrypt_wipe(block, sizeof(block));
    return 0;
}

void kdf_merge(const struct crypto_hash *hash, const uint8_t *in, size_t len,
               unsigned stripes, uint8_t *out)
{
    memset(out, 0, len);
    for (unsigned i = 0; i + 1 < stripes; i++, in += len) {
        kdf_xor(out, in, len);
        kdf_diffuse(hash, out, len);
    }
    kdf_xor(out, in, len);
}
