/* SPDX-License-Identifier: MIT */
/*
 * LUKS version 1: the header that holds a master key, encrypted by up to eight
 * passphrases ("LUKS1 On-Disk Format Specification", version 1.2.3, called
 * "the spec"). It stands at the beginning of a file, or in clusters of a qcow2
 * image. What is between the two is this file's; where sectors of data are is
 * its users'.
 *
 * Invariants of an open header: all numbers were checked; key material lies
 * between the header and the payload, no two slots' overlap.
 *
 * Life: luks_open reads the header; luks_unlock makes it usable for data;
 * luks_finish wipes (safe on a zeroed struct).
 */
#ifndef RHEA_CRYPTO_LUKS_H
#define RHEA_CRYPTO_LUKS_H

#include <rhea/storage.h>

#include "crypto/cipher.h"

enum {
    LUKS_SLOTS = 8,
    LUKS_STRIPES = 4000,
    LUKS_HEADER = 592, /* bytes of the header proper */
    LUKS_SALT = 32,
    LUKS_DIGEST = 20,
    LUKS_UUID = 40,
    LUKS_ALIGN = 4096, /* new key material begins and ends at multiples of it */
    LUKS_ITER_TIME = 2000,
};

struct luks_slot {
    bool active;
    uint32_t iterations;
    uint64_t offset; /* bytes, from the header's beginning */
};

struct luks {
    struct rhea_storage *storage;
    uint64_t base;            /* where the header stands in it */
    uint8_t raw[LUKS_HEADER]; /* as it is on disk */
    struct crypto_kind kind;
    const struct crypto_hash *hash;
    unsigned key_len;
    uint32_t iterations; /* of the master key's digest */
    uint64_t payload;    /* bytes from the header's beginning to the data */
    char uuid[LUKS_UUID + 1];
    struct luks_slot slots[LUKS_SLOTS];
    struct crypto_cipher *cipher; /* for data; NULL: locked */
};

/* How sure it is, 0 to 100, that these bytes begin a LUKS1 header. */
int luks_probe(const uint8_t *head, size_t len);

/* Read and check the header at BASE, which takes at most ROOM bytes with its
 * key material. */
int luks_open(struct luks *l, struct rhea_storage *storage, uint64_t base,
              uint64_t room, struct rhea_error *err);
/* Find the master key by the passphrase that the secret SECRET holds; NULL is
 * refused, saying that OPTION is missing. -EACCES: no slot takes it. */
int luks_unlock(struct luks *l, const char *secret, const char *option,
                struct rhea_error *err);
void luks_finish(struct luks *l);

/* A new header. Fill in by luks_create_option, then prepare, then create. */
struct luks_create {
    struct crypto_kind kind;
    const struct crypto_hash *hash;
    const char *secret;
    uint64_t iter_time; /* ms; 0: LUKS_ITER_TIME */
    bool has_mode, has_ivgen;
    uint64_t payload; /* set by prepare: bytes the header takes */
};
/* Whether NAME, without any prefix, is one of them; *RESULT is 0 or an error.
 */
bool luks_create_option(struct luks_create *how, const char *name,
                        const char *value, int *result, struct rhea_error *err);
/* Fill in what was left out, and find whatever makes it impossible. PREFIX
 * stands before option names in messages. */
int luks_create_prepare(struct luks_create *how, const char *prefix,
                        struct rhea_error *err);
/* The same but for the secret: to measure. */
int luks_create_measure(struct luks_create *how, struct rhea_error *err);
/* Write it to BASE, where PAYLOAD bytes are free, and make it durable. The
 * header comes last: a file that is cut short has none. */
int luks_create(struct rhea_storage *storage, uint64_t base,
                const struct luks_create *how, struct rhea_error *err);

/* Changing key slots; see luks_amend.c for the order of writes. */
struct luks_amend {
    bool has_state, active;
    int slot; /* -1: not said */
    const char *old_secret, *new_secret;
    uint64_t iter_time; /* 0: not said */
};
bool luks_amend_option(struct luks_amend *how, const char *name,
                       const char *value, int *result, struct rhea_error *err);
/* L is unlocked where a slot is to become active. FORCE: also overwrite an
 * active slot, and erase the last one. */
int luks_amend(struct luks *l, const struct luks_amend *how, bool force,
               struct rhea_error *err);

/* Between the files of this folder. */
enum {
    LUKS_AT_VERSION = 6,
    LUKS_AT_CIPHER = 8,
    LUKS_AT_MODE = 40,
    LUKS_AT_HASH = 72,
    LUKS_AT_PAYLOAD = 104,
    LUKS_AT_KEY_BYTES = 108,
    LUKS_AT_DIGEST = 112,
    LUKS_AT_DIGEST_SALT = 132,
    LUKS_AT_ITERATIONS = 164,
    LUKS_AT_UUID = 168,
    LUKS_AT_SLOTS = 208,
    LUKS_SLOT_BYTES = 48,
    LUKS_SLOT_ITERATIONS = 4,
    LUKS_SLOT_SALT = 8,
    LUKS_SLOT_OFFSET = 40,
    LUKS_SLOT_STRIPES = 44,
    LUKS_NAME = 32,
};
#define LUKS_ACTIVE 0x00ac71f3U
#define LUKS_INACTIVE 0x0000deadU
extern const uint8_t luks_magic[6];

/* A secret that is to be a passphrase: one that QEMU can be given too, which
 * is text. (Others may open what cryptsetup made with them.) */
int luks_new_passphrase(const char *secret, uint8_t **pass, size_t *len,
                        struct rhea_error *err);
/* Bytes that the key material of a slot takes, with what it is padded by. */
uint64_t luks_material_room(unsigned key_len);
/* Make the parsed members those of L->raw. */
int luks_parse(struct luks *l, uint64_t room, struct rhea_error *err);
/* The master key by PASS and one slot: 1, 0 where it does not fit. */
int luks_slot_load(struct luks *l, unsigned slot, const uint8_t *pass,
                   size_t pass_len, uint8_t *key, struct rhea_error *err);
/* Store KEY in an inactive slot, which becomes active. */
int luks_slot_store(struct luks *l, unsigned slot, const uint8_t *pass,
                    size_t pass_len, const uint8_t *key, uint64_t iter_time,
                    struct rhea_error *err);
/* Make a slot inactive, then overwrite its key material. */
int luks_slot_erase(struct luks *l, unsigned slot, struct rhea_error *err);

#endif
