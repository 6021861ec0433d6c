/* SPDX-License-Identifier: MIT */
#include <rhea/secret.h>

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/gcrypt.h"

enum { SECRET_BYTES_MAX = 16 << 20, SECRET_BLOCK = 16, SECRET_KEY = 32 };

/* Bytes with a zero behind them. */
struct secret_bytes {
    uint8_t *data;
    size_t len;
};

struct secret {
    char *id;
    struct secret_bytes bytes;
    struct secret *next;
};

/* What the user said. */
struct secret_how {
    const char *id, *data, *file, *keyid, *iv;
    bool base64;
};

static pthread_mutex_t secret_lock = PTHREAD_MUTEX_INITIALIZER;
static struct secret *secrets;

void rhea_secret_free(uint8_t *bytes, size_t len)
{
    gcrypt_wipe(bytes, len);
    free(bytes);
}

static void cleanup_secret_bytes(struct secret_bytes *b)
{
    rhea_secret_free(b->data, b->len);
    *b = (struct secret_bytes){0};
}
#define SECRET_AUTO __attribute__((cleanup(cleanup_secret_bytes)))

static int secret_copy(struct secret_bytes *out, const void *data, size_t len,
                       struct rhea_error *err)
{
    out->data = malloc(len + 1);
    if (!out->data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(out->data, data, len);
    out->data[len] = 0;
    out->len = len;
    return 0;
}

/* One under LOCK, NULL: none. */
static struct secret **secret_find(const char *id)
{
    struct secret **at = &secrets;

    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    return at;
}

static bool secret_id_is_good(const char *id)
{
    if (!isascii((unsigned char)*id) || !isalpha((unsigned char)*id))
        return false;
    for (; *id; id++)
        if (!isascii((unsigned char)*id) ||
            (!isalnum((unsigned char)*id) && !strchr("-._", *id)))
            return false;
    return true;
}

static int secret_option(struct secret_how *how, const struct rhea_option *o,
                         struct rhea_error *err)
{
    if (!strcmp(o->name, "id"))
        how->id = o->value;
    else if (!strcmp(o->name, "data"))
        how->data = o->value;
    else if (!strcmp(o->name, "file"))
        how->file = o->value;
    else if (!strcmp(o->name, "keyid"))
        how->keyid = o->value;
    else if (!strcmp(o->name, "iv"))
        how->iv = o->value;
    else if (!strcmp(o->name, "format") &&
             (!strcmp(o->value, "raw") || !strcmp(o->value, "base64")))
        how->base64 = o->value[0] == 'b';
    else if (!strcmp(o->name, "format"))
        return rhea_error_set(err, EINVAL,
                              "a secret's format is 'raw' or 'base64', not "
                              "'%s'",
                              o->value);
    else if (strcmp(o->name, "qom-type") != 0)
        return rhea_error_set(err, EINVAL, "a secret has no option '%s'",
                              o->name);
    else if (strcmp(o->value, "secret") != 0)
        return rhea_error_set(
            err, ENOTSUP, "objects of type '%s' are not supported", o->value);
    return 0;
}

static int secret_parse(struct secret_how *how,
                        const struct rhea_option *options, size_t n,
                        struct rhea_error *err)
{
    int ret = 0;

    for (size_t i = 0; ret == 0 && i < n; i++)
        ret = secret_option(how, &options[i], err);
    if (ret < 0)
        return ret;
    if (!how->id)
        return rhea_error_set(err, EINVAL, "a secret needs an id");
    if (!secret_id_is_good(how->id))
        return rhea_error_set(err, EINVAL,
                              "'%s' is no id: it begins with a letter, and "
                              "letters, digits and -._ follow",
                              how->id);
    if (!how->data == !how->file)
        return rhea_error_set(err, EINVAL,
                              "the secret '%s' needs either data or a file",
                              how->id);
    if (!how->keyid != !how->iv)
        return rhea_error_set(err, EINVAL,
                              "an encrypted secret, '%s', needs both keyid and "
                              "iv",
                              how->id);
    return 0;
}

/* Read to the end: pipes and /dev/fd have no size. */
static int secret_read_file(struct secret_bytes *out, const char *path,
                            struct rhea_error *err)
{
    RHEA_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    SECRET_AUTO struct secret_bytes b = {0};
    size_t room = 4096;

    if (fd < 0)
        return rhea_error_errno(err, errno, "cannot open '%s'", path);
    b.data = malloc(room);
    while (b.data) {
        ssize_t n = read(fd, b.data + b.len, room - b.len - 1);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rhea_error_errno(err, errno, "cannot read '%s'", path);
        if (n == 0)
            break;
        b.len += (size_t)n;
        if (b.len > SECRET_BYTES_MAX)
            return rhea_error_set(err, EFBIG, "'%s' is too long for a secret",
                                  path);
        if (b.len + 1 < room)
            continue;
        /* Not realloc, which would leave a copy behind. */
        uint8_t *more = malloc(room * 2);
        if (more) {
            room *= 2;
            memcpy(more, b.data, b.len);
        }
        rhea_secret_free(b.data, b.len);
        b.data = more;
    }
    if (!b.data) {
        b.len = 0;
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    b.data[b.len] = 0;
    *out = b;
    b.data = NULL;
    b.len = 0;
    return 0;
}

static int secret_digit(uint8_t c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;

    return at ? (int)(at - digits) : -1;
}

/* RFC 4648, section 4; white space may stand anywhere, as in files. */
static bool secret_decode(uint8_t *out, size_t *out_len, const uint8_t *in,
                          size_t in_len)
{
    unsigned bits = 0, n = 0, padding = 0;

    *out_len = 0;
    for (size_t i = 0; i < in_len; i++) {
        int digit = secret_digit(in[i]);

        if (in[i] == ' ' || (in[i] >= '\t' && in[i] <= '\r'))
            continue;
        if (in[i] == '=') {
            padding++;
            continue;
        }
        if (digit < 0 || padding)
            return false;
        bits = bits << 6 | (unsigned)digit;
        if (++n % 4 != 1)
            out[(*out_len)++] = (uint8_t)(bits >> (6 - (n - 1) % 4 * 2));
    }
    return (n + padding) % 4 == 0 && padding < 3;
}

static int secret_base64(struct secret_bytes *b, const char *what,
                         struct rhea_error *err)
{
    SECRET_AUTO struct secret_bytes coded = *b;

    *b = (struct secret_bytes){malloc(coded.len + 1), 0};
    if (!b->data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!secret_decode(b->data, &b->len, coded.data, coded.len))
        return rhea_error_set(err, EINVAL, "%s is not valid base64", what);
    b->data[b->len] = 0;
    return 0;
}

static int secret_cbc(struct secret_bytes *b, const struct secret_bytes *key,
                      const struct secret_bytes *iv, struct rhea_error *err)
{
    gcry_cipher_hd_t cipher;
    gcry_error_t code;
    int ret = gcrypt_begin(err);

    if (ret < 0)
        return ret;
    code =
        gcry_cipher_open(&cipher, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_CBC, 0);
    if (code)
        return gcrypt_error(err, "cannot use AES-256", code);
    code = gcry_cipher_setkey(cipher, key->data, key->len);
    if (!code)
        code = gcry_cipher_setiv(cipher, iv->data, iv->len);
    if (!code)
        code = gcry_cipher_decrypt(cipher, b->data, b->len, NULL, 0);
    gcry_cipher_close(cipher);
    return code ? gcrypt_error(err, "cannot decrypt the secret", code) : 0;
}

/* AES-256 in CBC mode, with PKCS #7 padding. */
static int secret_decrypt(struct secret_bytes *b, const struct secret_how *how,
                          struct rhea_error *err)
{
    SECRET_AUTO struct secret_bytes key = {0}, iv = {0};
    int ret = rhea_secret_get(how->keyid, &key.data, &key.len, err);

    if (ret == 0)
        ret = secret_copy(&iv, how->iv, strlen(how->iv), err);
    if (ret == 0)
        ret = secret_base64(&iv, "the iv", err);
    if (ret < 0)
        return ret;
    if (key.len != SECRET_KEY || iv.len != SECRET_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "the key must have 32 bytes and the iv 16, not "
                              "%zu and %zu",
                              key.len, iv.len);
    if (!b->len || b->len % SECRET_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "%zu encrypted bytes are not whole blocks of 16",
                              b->len);
    ret = secret_cbc(b, &key, &iv, err);
    if (ret < 0)
        return ret;
    uint8_t padding = b->data[b->len - 1];
    if (!padding || padding > SECRET_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "the secret cannot be decrypted: key or iv is "
                              "not the one it was encrypted with");
    b->len -= padding;
    b->data[b->len] = 0;
    return 0;
}

static int secret_load(struct secret_bytes *b, const struct secret_how *how,
                       struct rhea_error *err)
{
    int ret = how->file ? secret_read_file(b, how->file, err)
                        : secret_copy(b, how->data, strlen(how->data), err);

    if (ret == 0 && how->base64)
        ret = secret_base64(b, "what it holds", err);
    if (ret == 0 && how->keyid)
        ret = secret_decrypt(b, how, err);
    if (ret < 0)
        rhea_error_prefix(err, "secret '%s'", how->id);
    return ret;
}

static int secret_enter(const char *id, struct secret_bytes *b,
                        struct rhea_error *err)
{
    struct secret *s = calloc(1, sizeof(*s));
    char *name = strdup(id);
    struct secret **at;

    RHEA_LOCKED(&secret_lock);
    at = secret_find(id);
    if (*at || !s || !name) {
        free(s);
        free(name);
        return *at ? rhea_error_set(err, EEXIST, "the id '%s' is taken", id)
                   : rhea_error_set(err, ENOMEM, "out of memory");
    }
    *s = (struct secret){name, *b, NULL};
    *b = (struct secret_bytes){0};
    *at = s;
    return 0;
}

int rhea_secret_add(const struct rhea_option *options, size_t n,
                    struct rhea_error *err)
{
    SECRET_AUTO struct secret_bytes b = {0};
    struct secret_how how = {0};
    int ret = secret_parse(&how, options, n, err);

    if (ret == 0)
        ret = secret_load(&b, &how, err);
    return ret < 0 ? ret : secret_enter(how.id, &b, err);
}

void rhea_secret_remove(const char *id)
{
    RHEA_LOCKED(&secret_lock);
    struct secret **at = secret_find(id), *s = *at;

    if (!s)
        return;
    *at = s->next;
    rhea_secret_free(s->bytes.data, s->bytes.len);
    free(s->id);
    free(s);
}

int rhea_secret_get(const char *id, uint8_t **bytes, size_t *len,
                    struct rhea_error *err)
{
    struct secret_bytes copy = {0};
    int ret;

    RHEA_LOCKED(&secret_lock);
    struct secret *s = *secret_find(id);
    if (!s)
        return rhea_error_set(err, ENOENT,
                              "there is no secret '%s'; name it with --object "
                              "secret,id=%s,...",
                              id, id);
    ret = secret_copy(&copy, s->bytes.data, s->bytes.len, err);
    *bytes = copy.data;
    *len = copy.len;
    return ret;
}

/* At the end of the program (or of the library's life in it). */
__attribute__((destructor)) static void secret_forget_all(void)
{
    while (secrets)
        rhea_secret_remove(secrets->id);
}
