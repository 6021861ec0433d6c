/* SPDX-License-Identifier: MIT */
/*
 * Encryption (the spec, "Full disk encryption header pointer", "Data
 * encryption"). Method 2 has a LUKS header in clusters of its own and numbers
 * sectors by their host offset; method 1, the old one, takes a passphrase of
 * 16 bytes as an AES-128 key and numbers them by guest offset. Only data
 * clusters are encrypted, neither tables nor compressed clusters; QEMU writes
 * none of the latter here, and neither does this driver.
 */
#include <errno.h>
#include <inttypes.h>

#include <rhea/secret.h>

#include "format/luks.h"
#include "format/option.h"
#include "format/qcow2/qcow2.h"

static const char crypt_prefix[] = "encrypt.";

static bool crypt_has_prefix(const char *name)
{
    return !strncmp(name, crypt_prefix, sizeof(crypt_prefix) - 1);
}

/* What a name of the form "encrypt.NAME" names, else NULL. */
static const char *qcow2_crypt_option_name(const char *name)
{
    return crypt_has_prefix(name) ? name + sizeof(crypt_prefix) - 1 : NULL;
}

static int crypt_open_aes(struct qcow2 *q, const char *secret,
                          struct rhea_error *err)
{
    int r = sector_crypt_aes(&q->crypt.aes, secret, err);

    q->crypt.sectors.cipher = q->crypt.aes;
    return r;
}

static int crypt_open_luks(struct qcow2 *q, const char *secret, bool unlock,
                           struct rhea_error *err)
{
    int r;

    if (!q->crypto_offset)
        return rhea_error_set(err, EINVAL,
                              "the image is encrypted, but has no encryption "
                              "header");
    q->crypt.luks = calloc(1, sizeof(*q->crypt.luks));
    if (!q->crypt.luks)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = luks_open(q->crypt.luks, q->f.storage, q->crypto_offset,
                  q->crypto_length, err);
    if (r == 0 && unlock)
        r = luks_unlock(q->crypt.luks, secret, "encrypt.key-secret", err);
    q->crypt.sectors.cipher = q->crypt.luks->cipher;
    return r;
}

int qcow2_crypt_open(struct qcow2 *q, const struct rhea_option *options,
                     size_t n, struct rhea_error *err)
{
    static const char *const methods[] = {NULL, "aes", "luks"};
    const struct sector_crypt_options own = {
        "qcow2", methods, RHEA_ARRAY_SIZE(methods), q->crypt_method};
    const char *secret;
    bool unlock;
    int r;

    sector_crypt_init(&q->crypt.sectors);
    q->crypt.sectors.by_host = q->crypt_method == 2;
    r = sector_crypt_options(&own, options, n, &secret, err);
    if (r < 0 || !q->crypt_method)
        return r;
    unlock = !(q->flags & RHEA_FORMAT_NO_IO) &&
             (secret || !(q->flags & RHEA_FORMAT_CHECK));
    if (q->crypt_method == 2)
        return crypt_open_luks(q, secret, unlock, err);
    return unlock ? crypt_open_aes(q, secret, err) : 0;
}

void qcow2_crypt_finish(struct qcow2 *q)
{
    if (q->crypt.luks)
        luks_finish(q->crypt.luks);
    free(q->crypt.luks);
    crypto_cipher_free(q->crypt.aes);
    sector_crypt_finish(&q->crypt.sectors);
}

int qcow2_crypt_refuse(const struct qcow2 *q, struct rhea_error *err)
{
    return !q->crypt_method || q->crypt.sectors.cipher
               ? 0
               : rhea_error_set(err, EACCES,
                                "the image is encrypted, and was opened "
                                "without its passphrase");
}

void qcow2_crypt_facts(const struct qcow2 *q, struct rhea_facts *facts)
{
    if (!q->crypt_method)
        return;
    rhea_facts_object(facts, "encrypt", "encrypt");
    if (q->crypt.luks)
        luks_facts(q->crypt.luks, true, facts);
    else
        rhea_facts_string(facts, "format", "format", "aes");
    rhea_facts_end(facts);
}

int qcow2_data_read(struct qcow2 *q, struct rhea_storage *storage,
                    uint64_t host, uint64_t guest, void *buf, size_t len,
                    struct rhea_error *err)
{
    struct sector_place p = {storage, host, guest};
    int r = qcow2_crypt_refuse(q, err);

    if (!q->crypt_method)
        return rhea_storage_read_padded(storage, buf, len, host, err);
    return r < 0 ? r : sector_crypt_read(&q->crypt.sectors, p, buf, len, err);
}

int qcow2_data_write(struct qcow2 *q, struct rhea_storage *storage,
                     uint64_t host, uint64_t guest, const void *buf, size_t len,
                     struct rhea_error *err)
{
    struct sector_place p = {storage, host, guest};
    int r = qcow2_crypt_refuse(q, err);

    if (!q->crypt_method)
        return rhea_storage_write(storage, buf, len, host, err);
    return r < 0 ? r : sector_crypt_write(&q->crypt.sectors, p, buf, len, err);
}

/* The next run of guest bytes as it is now; the data lock is held where it is
 * data. */
static int crypt_map(struct qcow2 *q, uint64_t offset, size_t len,
                     struct rhea_extent *x, struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_map_locked(q, offset, len, x, err);
    if (r == 0 && x->kind == RHEA_EXTENT_DATA)
        pthread_rwlock_rdlock(&q->data);
    return r;
}

int qcow2_crypt_read(struct qcow2 *q, uint64_t offset, uint8_t *buf, size_t len,
                     struct rhea_error *err)
{
    while (len) {
        struct rhea_extent x;
        size_t n;
        int r = crypt_map(q, offset, len, &x, err);

        if (r < 0)
            return r;
        n = (size_t)RHEA_MIN(len, x.length);
        if (x.kind == RHEA_EXTENT_DATA) {
            r = qcow2_data_read(q, x.storage, x.host, offset, buf, n, err);
            pthread_rwlock_unlock(&q->data);
        } else {
            /* Written anew since the caller looked. */
            r = qcow2_read_guest(q, offset, buf, n, err);
        }
        if (r < 0)
            return r;
        offset += n;
        buf += n;
        len -= n;
    }
    return 0;
}

bool qcow2_crypt_create_option(struct qcow2_crypt_create *c,
                               const struct rhea_option *o, int *result,
                               struct rhea_error *err)
{
    const char *name = qcow2_crypt_option_name(o->name);
    bool on = false;

    *result = 0;
    if (!strcmp(o->name, "encryption")) {
        *result = option_bool(o, &on, err);
        c->old = on;
        return true;
    }
    if (!name)
        return false;
    c->any = true;
    if (!strcmp(name, "format")) {
        c->format = o->value;
        return true;
    }
    return luks_create_option(&c->luks, name, o->value, result, err);
}

/* The old method has no options but the key. */
static int crypt_prepare_aes(struct qcow2_crypt_create *c,
                             struct rhea_error *err)
{
    uint8_t *pass;
    size_t len;
    int r;

    c->method = 1;
    if (!c->luks.secret)
        return rhea_error_set(err, EINVAL,
                              "an encrypted image needs the option "
                              "encrypt.key-secret, the id of the secret with "
                              "its passphrase");
    r = rhea_secret_get(c->luks.secret, &pass, &len, err);
    if (r == 0)
        rhea_secret_free(pass, len);
    return r;
}

int qcow2_crypt_prepare(struct qcow2_crypt_create *c, bool measure,
                        struct rhea_error *err)
{
    const char *format = c->format ? c->format : c->old ? "aes" : NULL;

    if (c->old && c->format)
        return rhea_error_set(err, EINVAL,
                              "encryption and encrypt.format say the same: "
                              "leave out encryption");
    if (!format && c->any)
        return rhea_error_set(err, EINVAL, "encrypt.format is missing: luks");
    if (!format)
        return 0;
    if (!strcmp(format, "aes"))
        return measure ? 0 : crypt_prepare_aes(c, err);
    if (strcmp(format, "luks") != 0)
        return rhea_error_set(err, EINVAL,
                              "encrypt.format is 'luks' or, of old, 'aes', not "
                              "'%s'",
                              format);
    c->method = 2;
    return measure ? luks_create_measure(&c->luks, err)
                   : luks_create_prepare(&c->luks, crypt_prefix, err);
}

bool qcow2_crypt_amend_option(struct luks_amend *how,
                              const struct rhea_option *o, int *result,
                              struct rhea_error *err)
{
    const char *name = qcow2_crypt_option_name(o->name);

    *result = 0;
    return name && luks_amend_option(how, name, o->value, result, err);
}

/* Key slots are written in place, in the order of crypto/luks_slot.c; no other
 * metadata has to do with them. */
int qcow2_crypt_amend(struct qcow2 *q, const struct luks_amend *how, bool force,
                      struct rhea_error *err)
{
    RHEA_LOCKED(&q->lock);
    if (!q->crypt.luks)
        return rhea_error_set(err, ENOTSUP,
                              q->crypt_method
                                  ? "an image encrypted as 'aes' has no "
                                    "passphrases that could be changed"
                                  : "the image is not encrypted");
    return luks_amend(q->crypt.luks, how, force, err);
}
