/* SPDX-License-Identifier: MIT */
/*
 * Adding and erasing passphrases. luks_slot.c has the order of writes of one
 * slot. An active slot that is to be overwritten (only by force) may hold the
 * one usable key: so the new key goes into a free slot first, durably, and
 * from there nothing is lost whatever happens. Where no slot is free, there
 * are seven others.
 */
#include "crypto/luks_number.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <rhea/secret.h>

#include "base/gcrypt.h"
#include "crypto/luks.h"

struct amend_pass {
    uint8_t *data;
    size_t len;
};

static void cleanup_amend_pass(struct amend_pass *p)
{
    rhea_secret_free(p->data, p->len);
}
#define AMEND_AUTO __attribute__((cleanup(cleanup_amend_pass)))

int luks_number(const char *name, const char *value, uint64_t min, uint64_t max,
                uint64_t *number, struct rhea_error *err)
{
    char *end;

    errno = 0;
    *number = strtoull(value, &end, 10);
    if (*value >= '0' && *value <= '9' && !*end && !errno && *number >= min &&
        *number <= max)
        return 0;
    return rhea_error_set(err, EINVAL,
                          "option %s is a number from %" PRIu64 " to %" PRIu64
                          ", not '%s'",
                          name, min, max, value);
}

bool luks_amend_option(struct luks_amend *how, const char *name,
                       const char *value, int *result, struct rhea_error *err)
{
    *result = 0;
    if (!strcmp(name, "state")) {
        how->has_state = true;
        how->active = !strcmp(value, "active");
        if (!how->active && strcmp(value, "inactive") != 0)
            *result = rhea_error_set(err, EINVAL,
                                     "option state is 'active' or 'inactive', "
                                     "not '%s'",
                                     value);
    } else if (!strcmp(name, "keyslot")) {
        uint64_t slot = 0;

        *result = luks_number(name, value, 0, LUKS_SLOTS - 1, &slot, err);
        how->slot = (int)slot;
    } else if (!strcmp(name, "old-secret")) {
        how->old_secret = value;
    } else if (!strcmp(name, "new-secret")) {
        how->new_secret = value;
    } else if (!strcmp(name, "iter-time")) {
        *result = luks_number(name, value, 1, UINT32_MAX, &how->iter_time, err);
    } else {
        return false;
    }
    return true;
}

static int amend_free_slot(const struct luks *l)
{
    for (int i = 0; i < LUKS_SLOTS; i++)
        if (!l->slots[i].active)
            return i;
    return -1;
}

static unsigned amend_count(const struct luks *l)
{
    unsigned n = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        n += l->slots[i].active;
    return n;
}

static int amend_store(struct luks *l, int slot, const struct amend_pass *pass,
                       uint64_t iter_time, struct rhea_error *err)
{
    const uint8_t *key = crypto_cipher_key(l->cipher);
    int spare = l->slots[slot].active ? amend_free_slot(l) : -1, ret = 0;

    if (spare >= 0)
        ret = luks_slot_store(l, (unsigned)spare, pass->data, pass->len, key,
                              iter_time, err);
    if (ret == 0 && l->slots[slot].active)
        ret = luks_slot_erase(l, (unsigned)slot, err);
    if (ret == 0)
        ret = luks_slot_store(l, (unsigned)slot, pass->data, pass->len, key,
                              iter_time, err);
    if (ret == 0 && spare >= 0)
        ret = luks_slot_erase(l, (unsigned)spare, err);
    return ret;
}

static int amend_activate(struct luks *l, const struct luks_amend *how,
                          bool force, struct rhea_error *err)
{
    AMEND_AUTO struct amend_pass pass = {0};
    int slot = how->slot >= 0 ? how->slot : amend_free_slot(l), ret;

    if (!how->new_secret)
        return rhea_error_set(err, EINVAL,
                              "to fill a key slot takes new-secret, the id of "
                              "the secret with the new passphrase");
    if (how->old_secret)
        return rhea_error_set(err, EINVAL,
                              "old-secret goes with state=inactive only");
    if (slot < 0)
        return rhea_error_set(err, ENOSPC, "all key slots are in use");
    if (l->slots[slot].active && !force)
        return rhea_error_set(err, EEXIST,
                              "key slot %d is in use; erase it first", slot);
    if (!l->cipher)
        return rhea_error_set(err, EACCES,
                              "to add a passphrase, the image must be opened "
                              "with one that it has");
    ret = luks_new_passphrase(how->new_secret, &pass.data, &pass.len, err);
    if (ret < 0)
        return ret;
    return amend_store(l, slot, &pass,
                       how->iter_time ? how->iter_time : LUKS_ITER_TIME, err);
}

/* Which slots to erase, as bits. */
static int amend_choose(struct luks *l, const struct luks_amend *how,
                        unsigned *slots, struct rhea_error *err)
{
    AMEND_AUTO struct amend_pass pass = {0};
    uint8_t key[CRYPTO_KEY_MAX];
    int ret = 0;

    *slots = how->slot >= 0 ? 1U << how->slot : (1U << LUKS_SLOTS) - 1;
    if (!how->old_secret)
        return 0;
    ret = rhea_secret_get(how->old_secret, &pass.data, &pass.len, err);
    for (unsigned i = 0; ret >= 0 && i < LUKS_SLOTS; i++) {
        if (!(*slots >> i & 1))
            continue;
        ret = l->slots[i].active
                  ? luks_slot_load(l, i, pass.data, pass.len, key, err)
                  : 0;
        if (ret == 0)
            *slots &= ~(1U << i);
    }
    gcrypt_wipe(key, sizeof(key));
    if (ret < 0)
        return ret;
    if (!*slots)
        return rhea_error_set(err, EACCES,
                              how->slot >= 0
                                  ? "the key slot does not hold that passphrase"
                                  : "no key slot holds that passphrase");
    return 0;
}

static int amend_erase(struct luks *l, const struct luks_amend *how, bool force,
                       struct rhea_error *err)
{
    unsigned slots;
    int ret;

    if (how->new_secret || how->iter_time)
        return rhea_error_set(err, EINVAL, "%s goes with state=active only",
                              how->new_secret ? "new-secret" : "iter-time");
    if (how->slot < 0 && !how->old_secret)
        return rhea_error_set(err, EINVAL,
                              "to erase key slots takes keyslot or old-secret");
    ret = amend_choose(l, how, &slots, err);
    if (ret < 0)
        return ret;
    if (how->slot >= 0 && !l->slots[how->slot].active && !force)
        return rhea_error_set(err, ENOENT, "key slot %d holds no passphrase",
                              how->slot);
    if (!force && (unsigned)__builtin_popcount(slots) >= amend_count(l))
        return rhea_error_set(err, EPERM,
                              "that would erase the last passphrase, and with "
                              "it all data; add another one first, or use "
                              "--force");
    for (unsigned i = 0; ret == 0 && i < LUKS_SLOTS; i++)
        if (slots >> i & 1)
            ret = luks_slot_erase(l, i, err);
    return ret;
}

int luks_amend(struct luks *l, const struct luks_amend *how, bool force,
               struct rhea_error *err)
{
    if (!how->has_state)
        return rhea_error_set(err, EINVAL,
                              "to change key slots, state=active or "
                              "state=inactive must be given");
    return how->active ? amend_activate(l, how, force, err)
                       : amend_erase(l, how, force, err);
}
