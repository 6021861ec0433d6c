/* SPDX-License-Identifier: MIT */
/* Encryption inside the qcow2 driver; see crypt.c. */
#ifndef RHEA_FORMAT_QCOW2_CRYPT_H
#define RHEA_FORMAT_QCOW2_CRYPT_H

#include <rhea/format.h>

#include "crypto/luks.h"
#include "format/sector_crypt.h"

struct qcow2;

struct qcow2_crypt {
    struct sector_crypt sectors;
    struct luks *luks;         /* method 2, else NULL */
    struct crypto_cipher *aes; /* method 1, once unlocked */
};

/* After the header was read. OPTIONS are all that are to do with encryption. */
int qcow2_crypt_open(struct qcow2 *q, const struct rhea_option *options,
                     size_t n, struct rhea_error *err);
void qcow2_crypt_finish(struct qcow2 *q);
/* Refuse guest data that cannot be decrypted. */
int qcow2_crypt_refuse(const struct qcow2 *q, struct rhea_error *err);
void qcow2_crypt_facts(const struct qcow2 *q, struct rhea_facts *facts);
/* Move guest data from and to the file, which may be another one, encrypted if
 * the image is: HOST is where the byte at GUEST is stored. Any alignment. What
 * lies past the end of the file reads as zeroes (if encrypted, as noise). */
int qcow2_data_read(struct qcow2 *q, struct rhea_storage *storage,
                    uint64_t host, uint64_t guest, void *buf, size_t len,
                    struct rhea_error *err);
int qcow2_data_write(struct qcow2 *q, struct rhea_storage *storage,
                     uint64_t host, uint64_t guest, const void *buf, size_t len,
                     struct rhea_error *err);
/* Guest bytes that were mapped as ENCRYPTED. Not under LOCK. */
int qcow2_crypt_read(struct qcow2 *q, uint64_t offset, uint8_t *buf, size_t len,
                     struct rhea_error *err);
/* Creation: give it each option, then prepare. */
struct qcow2_crypt_create {
    struct luks_create luks;
    const char *format;
    bool old, any;
    uint32_t method; /* of the header */
};
bool qcow2_crypt_create_option(struct qcow2_crypt_create *c,
                               const struct rhea_option *o, int *result,
                               struct rhea_error *err);
/* MEASURE: no secret is needed. */
int qcow2_crypt_prepare(struct qcow2_crypt_create *c, bool measure,
                        struct rhea_error *err);
/* Amending: begin with .slot = -1. */
bool qcow2_crypt_amend_option(struct luks_amend *how,
                              const struct rhea_option *o, int *result,
                              struct rhea_error *err);
int qcow2_crypt_amend(struct qcow2 *q, const struct luks_amend *how, bool force,
                      struct rhea_error *err);

#endif
