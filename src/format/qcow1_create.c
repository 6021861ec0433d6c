/* SPDX-License-Identifier: MIT */
/*
 * New images, and how large they would be.
 *
 * Order of writes: the file grows to hold the header and the L1 table, all
 * zeroes, flush, the header, flush. Before the header the file is no image.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <rhea/secret.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/measure.h"
#include "format/option.h"
#include "format/qcow1.h"

const struct rhea_option_help qcow1_create_options[] = {
    {"size", "size", "Virtual disk size"},
    {"backing_file", "str", "File that shows through where nothing is written"},
    {"backing_fmt", "str", "Format of the backing file; it is not recorded"},
    {"cluster_size", "size",
     "Cluster size, 512 to 64k (default: 4k, with a backing file 512)"},
    {"encrypt.format", "str", "Encrypt the image: aes, which is weak"},
    {"encrypt.key-secret", "str", "ID of the secret with the passphrase"},
    {"encryption", "bool (on/off)", "Old form of encrypt.format=aes"},
    {0},
};

struct create {
    struct qcow1 q;        /* only what the header is made of */
    uint64_t cluster_size; /* 0: as it suits */
    bool encryption;
    const char *format, *secret;
};

static int create_option(struct create *c, const struct rhea_option *o,
                         struct rhea_error *err)
{
    if (strcmp(o->name, "cluster_size") == 0)
        return option_size(o, &c->cluster_size, err);
    if (strcmp(o->name, "encryption") == 0)
        return option_bool(o, &c->encryption, err);
    if (strcmp(o->name, "encrypt.format") == 0)
        c->format = o->value;
    else if (strcmp(o->name, "encrypt.key-secret") == 0)
        c->secret = o->value;
    else
        return option_unknown(o, "qcow", err);
    return 0;
}

static int create_crypt(struct create *c, bool need_secret,
                        struct rhea_error *err)
{
    uint8_t *pass;
    size_t len;
    if (c->encryption && c->format)
        return rhea_error_set(err, EINVAL,
                              "encryption and encrypt.format say the same: "
                              "leave out encryption");
    if (c->format && strcmp(c->format, "aes") != 0)
        return rhea_error_set(err, EINVAL,
                              "encrypt.format of a qcow image is 'aes', not "
                              "'%s'",
                              c->format);
    c->q.crypt_method = c->format || c->encryption;
    if (!c->q.crypt_method)
        return c->secret ? rhea_error_set(err, EINVAL,
                                          "encrypt.format is missing: aes")
                         : 0;
    if (!need_secret)
        return 0;
    if (!c->secret)
        return rhea_error_set(err, EINVAL,
                              "an encrypted image needs the option "
                              "encrypt.key-secret, the id of the secret with "
                              "its passphrase");
    int ret = rhea_secret_get(c->secret, &pass, &len, err);
    if (!ret)
        rhea_secret_free(pass, len);
    return ret;
}

/* As QEMU chooses it: with a backing file, no more of that is copied than the
 * guest's sector. */
static int create_geometry(struct create *c, bool child, struct rhea_error *err)
{
    uint64_t size = c->cluster_size ? c->cluster_size : child ? 512 : 4096;
    if (!is_power_of_2(size) || size < 1u << QCOW1_MIN_CLUSTER_BITS ||
        size > 1u << QCOW1_MAX_CLUSTER_BITS)
        return rhea_error_set(err, EINVAL,
                              "cluster_size is a power of 2 from %u to %u "
                              "bytes",
                              1u << QCOW1_MIN_CLUSTER_BITS,
                              1u << QCOW1_MAX_CLUSTER_BITS);
    c->q.cluster_bits = log2_u64(size);
    c->q.cluster_size = (uint32_t)size;
    c->q.l2_bits = size < 4096 ? 12 : c->q.cluster_bits - 3;
    c->q.l2_bytes = (uint64_t)QCOW1_ENTRY << c->q.l2_bits;
    return 0;
}

static int create_prepare(struct create *c, const struct rhea_option *options,
                          size_t n, uint64_t size, size_t name_length,
                          bool need_secret, struct rhea_error *err)
{
    *c = (struct create){0};
    for (size_t i = 0; i < n; i++) {
        int ret = create_option(c, &options[i], err);
        if (ret)
            return ret;
    }
    int ret = create_crypt(c, need_secret, err);
    if (!ret)
        ret = create_geometry(c, name_length, err);
    if (ret)
        return ret;
    if (!size)
        return rhea_error_set(err, EINVAL,
                              "a qcow image cannot have a size of 0");
    if (name_length > QCOW1_BACKING_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the backing file's name is longer than %d bytes",
                              QCOW1_BACKING_NAME_MAX);
    c->q.base.size = align_up(size, QCOW1_SECTOR);
    c->q.l1_offset = align_up(QCOW1_HEADER + name_length, QCOW1_SECTOR);
    c->q.l1_size = qcow1_l1_entries(&c->q, c->q.base.size);
    return 0;
}

static uint64_t create_end(const struct create *c)
{
    return align_up(qcow1_l1_end(&c->q), QCOW1_SECTOR);
}

int qcow1_create(struct rhea_storage *storage, const struct rhea_create *how,
                 struct rhea_error *err)
{
    struct create c;
    uint8_t h[QCOW1_HEADER + QCOW1_BACKING_NAME_MAX] = {0};
    size_t name_length = how->backing_file ? strlen(how->backing_file) : 0;
    int ret = create_prepare(&c, how->options, how->n_options, how->size,
                             name_length, true, err);
    if (ret)
        return ret;
    store_be32(h + QCOW1_H_MAGIC, QCOW1_MAGIC);
    store_be32(h + QCOW1_H_VERSION, 1);
    store_be64(h + QCOW1_H_SIZE, c.q.base.size);
    h[QCOW1_H_CLUSTER_BITS] = (uint8_t)c.q.cluster_bits;
    h[QCOW1_H_L2_BITS] = (uint8_t)c.q.l2_bits;
    store_be32(h + QCOW1_H_CRYPT, c.q.crypt_method);
    store_be64(h + QCOW1_H_L1_OFFSET, c.q.l1_offset);
    if (name_length) {
        store_be64(h + QCOW1_H_BACKING_OFFSET, QCOW1_HEADER);
        store_be32(h + QCOW1_H_BACKING_SIZE, (uint32_t)name_length);
        memcpy(h + QCOW1_HEADER, how->backing_file, name_length);
    }
    ret = rhea_storage_truncate(storage, create_end(&c), err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret =
            rhea_storage_write(storage, h, QCOW1_HEADER + name_length, 0, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    return ret;
}

int qcow1_measure(const struct rhea_measure *what, struct rhea_measured *out,
                  struct rhea_error *err)
{
    struct create c;
    uint64_t clusters, tables;
    int ret = create_prepare(&c, what->options, what->n_options, what->size, 0,
                             false, err);
    if (!ret)
        ret = measure_blocks(what, c.q.cluster_size, &clusters, err);
    if (!ret)
        ret = measure_blocks(what, (uint64_t)c.q.cluster_size << c.q.l2_bits,
                             &tables, err);
    if (ret)
        return ret;
    uint64_t table = align_up(c.q.l2_bytes, c.q.cluster_size);
    uint64_t all = div_up(what->size, c.q.cluster_size);
    uint64_t start = create_end(&c);
    *out = (struct rhea_measured){.required = start};
    if (clusters)
        out->required = align_up(start, c.q.cluster_size) +
                        clusters * c.q.cluster_size + tables * table;
    out->fully_allocated = align_up(start, c.q.cluster_size) +
                           all * c.q.cluster_size + c.q.l1_size * table;
    return 0;
}
