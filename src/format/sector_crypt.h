/* SPDX-License-Identifier: MIT */
/*
 * Guest data that is encrypted by sectors of 512 bytes, read and written at any
 * offset. Where a part of a sector is written, it is read, decrypted, changed,
 * encrypted and written as a whole; neither may a neighbour's write get lost by
 * that nor anybody see half a sector of either. Safe from many threads.
 *
 * Life: sector_crypt_init, use, sector_crypt_finish (safe on all zero bytes).
 */
#ifndef RHEA_FORMAT_SECTOR_CRYPT_H
#define RHEA_FORMAT_SECTOR_CRYPT_H

#include <pthread.h>
#include <rhea/format.h>

#include "crypto/cipher.h"

struct sector_crypt {
    bool ready;
    /* Held for reading while whole sectors are moved, for writing while a part
     * of one is changed. */
    pthread_rwlock_t lock;
    struct crypto_cipher *cipher; /* whoever set it owns it; NULL: locked */
    bool by_host; /* sectors are numbered as they are in the file, not as the
                     guest numbers them */
};

/* Where data is, and whose: HOST is where the guest's byte GUEST is stored.
 * Both are equally far into their sectors. */
struct sector_place {
    struct rhea_storage *storage;
    uint64_t host, guest;
};

void sector_crypt_init(struct sector_crypt *c);
void sector_crypt_finish(struct sector_crypt *c);

/* What lies past the end of the file is noise. */
int sector_crypt_read(struct sector_crypt *c, struct sector_place p, void *buf,
                      size_t len, struct rhea_error *err);
int sector_crypt_write(struct sector_crypt *c, struct sector_place p,
                       const void *buf, size_t len, struct rhea_error *err);

/*
 * The encryption that qcow and qcow2 had first: AES-128, CBC, the number of the
 * guest's sector as initialisation vector, and the passphrase itself as key,
 * cut to 16 bytes or with zeroes behind it. SECRET is the id of the secret that
 * holds it; NULL is an error that says how to name one.
 */
int sector_crypt_aes(struct crypto_cipher **out, const char *secret,
                     struct rhea_error *err);

/*
 * The N options that an image of qcow or qcow2 is opened with: encrypt.format
 * has to agree with its encryption, METHODS[METHOD] (NULL for 0, that it has
 * none; there are N_METHODS), and encrypt.key-secret goes to *SECRET.
 */
struct sector_crypt_options {
    const char *driver;
    const char *const *methods;
    size_t n_methods;
    uint32_t method;
};
int sector_crypt_options(const struct sector_crypt_options *o,
                         const struct rhea_option *options, size_t n,
                         const char **secret, struct rhea_error *err);

#endif
