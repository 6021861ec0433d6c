/* SPDX-License-Identifier: MIT */
/* LUKS1 headers and images over memory. */
#include <errno.h>
#include <pthread.h>
#include <rhea/format.h>
#include <rhea/secret.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "crypto/kdf.h"
#include "crypto/luks.h"
#include "lib/test.h"
#include "storage/memory.h"

static struct rhea_error err;

static const struct rhea_format_ops *ops(void)
{
    return rhea_format_find("luks");
}

static void add_secret(const char *id, const char *data)
{
    struct rhea_option o[] = {{"id", id}, {"data", data}};

    CHECK_OK(rhea_secret_add(o, 2, &err), &err);
}

/* OPTIONS: "name=value name=value" behind those that every test wants. */
static size_t parse(struct rhea_option *list, char *text, const char *options)
{
    size_t n = 0;

    snprintf(text, 256, "key-secret=sec0 iter-time=1 %s", options);
    for (char *word = strtok_r(text, " ", &text); word;
         word = strtok_r(NULL, " ", &text)) {
        char *value = strchr(word, '=');

        *value++ = '\0';
        list[n++] = (struct rhea_option){word, value};
    }
    return n;
}

static struct rhea_storage *make(uint64_t size, const char *options)
{
    struct rhea_option list[10];
    char text[256];
    struct rhea_create how = {.size = size, .options = list};
    struct rhea_storage *s = NULL;

    how.n_options = parse(list, text, options);
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    if (!CHECK_OK(ops()->create(s, &how, &err), &err))
        printf("# with %s\n", options);
    return s;
}

static int open_with(struct rhea_format **f, struct rhea_storage *s,
                     const char *secret, unsigned flags)
{
    struct rhea_option o = {"key-secret", secret};
    struct rhea_format_open how = {.storage = s,
                                   .flags = flags,
                                   .options = &o,
                                   .n_options = secret ? 1 : 0};

    return ops()->open(f, &how, &err);
}

static struct rhea_format *open_ok(struct rhea_storage *s, const char *secret)
{
    struct rhea_format *f = NULL;

    if (!CHECK_OK(open_with(&f, s, secret, RHEA_FORMAT_WRITE), &err))
        exit(99);
    return f;
}

static int amend(struct rhea_format *f, const char *n0, const char *v0,
                 const char *n1, const char *v1, bool force)
{
    struct rhea_option o[] = {{n0, v0}, {n1, v1}, {"iter-time", "1"}};
    bool active = !strcmp(v0, "active");

    return f->ops->amend(f, o, active ? 3 : 2, force, NULL, &err);
}

/* The splitter's diffusion, by a computation that shares nothing with it:
 * python's hashlib, over sha1 and a key of 24 bytes, so that the last digest
 * is cut short. */
static void the_splitter_merges_what_python_split(void)
{
    static const uint8_t key[24] = "the master key, 24 bytes";
    const struct crypto_hash *hash = NULL;
    uint8_t split[24 * 5], merged[24];
    static const uint8_t last[24] = {
        0xb1, 0x32, 0xb2, 0x9d, 0xa6, 0x1f, 0x47, 0x02, 0xd9, 0xc3, 0x81, 0xea,
        0x34, 0x8a, 0x74, 0x9d, 0xa0, 0xc0, 0xf8, 0x89, 0x23, 0x85, 0x85, 0x30};

    CHECK_OK(crypto_hash_find("sha1", &hash, &err), &err);
    for (size_t i = 0; i < 24 * 4; i++)
        split[i] = (uint8_t)(i * 7 + 1);
    memcpy(split + 24 * 4, last, 24);
    kdf_merge(hash, split, 24, 5, merged);
    CHECK_MEM(merged, key, 24);
    CHECK_OK(kdf_split(hash, key, 24, 5, split, &err), &err);
    kdf_merge(hash, split, 24, 5, merged);
    CHECK_MEM(merged, key, 24);
}

static void pbkdf2_is_that_of_rfc_6070(void)
{
    static const uint8_t want[20] = {0xea, 0x6c, 0x01, 0x4d, 0xc7, 0x2d, 0x6f,
                                     0x8c, 0xcd, 0x1e, 0xd9, 0x2a, 0xce, 0x1d,
                                     0x41, 0xf0, 0xd8, 0xde, 0x89, 0x57};
    const struct crypto_hash *hash = NULL;
    uint8_t out[20];

    CHECK_OK(crypto_hash_find("sha1", &hash, &err), &err);
    CHECK_OK(kdf_pbkdf2(hash, "password", 8, "salt", 4, 2, out, 20, &err),
             &err);
    CHECK_MEM(out, want, 20);
    CHECK_EQ(
        kdf_pbkdf2(hash, "password", 8, "salt", 4, UINT32_MAX, out, 20, &err),
        -EINVAL);
    CHECK_EQ(kdf_pbkdf2(hash, "password", 8, "salt", 4, 0, out, 20, &err),
             -EINVAL);
}

static void every_cipher_reads_what_it_wrote(void)
{
    static const char *const options[] = {
        "",
        "cipher-alg=aes-128 cipher-mode=cbc ivgen-alg=essiv",
        "cipher-alg=aes-192 cipher-mode=ctr ivgen-alg=plain hash-alg=sha512",
        "cipher-alg=serpent-256 hash-alg=sha1",
        "cipher-alg=serpent-192 cipher-mode=cbc hash-alg=md5",
        "cipher-alg=twofish-256 cipher-mode=ecb hash-alg=ripemd160",
        "cipher-alg=aes-128 hash-alg=whirlpool",
        "cipher-alg=cast5-128 cipher-mode=cbc hash-alg=sha224",
        ("cipher-alg=aes-256 cipher-mode=xts ivgen-alg=essiv "
         "ivgen-hash-alg=md5 hash-alg=sha384"),
    };
    static uint8_t data[10000], got[10000];

    test_fill(data, sizeof(data), 1);
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(options); i++) {
        struct rhea_storage *s = make(1 << 20, options[i]);
        struct rhea_format *f = open_ok(s, "sec0");

        CHECK_EQ(f->size, 1 << 20);
        CHECK_OK(f->ops->write(f, 700, data, sizeof(data), &err), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        f = open_ok(s, "sec0");
        CHECK_OK(f->ops->read(f, 700, got, sizeof(got), &err), &err);
        if (!CHECK_MEM(got, data, sizeof(data)))
            printf("# with %s\n", options[i]);
        CHECK_OK(f->ops->read(f, 1000, got, 700, &err), &err);
        CHECK_MEM(got, data + 300, 700);
        CHECK_OK(f->ops->close(f, &err), &err);
        rhea_storage_close(s);
    }
}

static void options_that_do_not_go_together_are_refused(void)
{
    static const char *const options[] = {
        "cipher-alg=cast5-128",
        "cipher-alg=aes-512",
        "cipher-mode=gcm",
        "ivgen-alg=plain63",
        "hash-alg=crc32",
        "iter-time=0",
        "iter-time=-1",
        "iter-time=x",
        "key-secret=absent",
        "preallocation=some",
        "colour=red",
        "cipher-alg=twofish-192 cipher-mode=cbc",
        "cipher-mode=cbc ivgen-alg=essiv ivgen-hash-alg=sha1",
        "cipher-alg=cast5-128 cipher-mode=cbc ivgen-alg=essiv",
    };

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(options); i++) {
        struct rhea_option list[10];
        char text[256];
        struct rhea_create how = {.size = 1 << 20, .options = list};
        struct rhea_storage *s = NULL;
        uint64_t size = 1;

        how.n_options = parse(list, text, options[i]);
        CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
        if (!CHECK(ops()->create(s, &how, &err) < 0))
            printf("# with %s\n", options[i]);
        CHECK_OK(rhea_storage_size(s, &size, &err), &err);
        CHECK_EQ(size, 0);
        rhea_storage_close(s);
    }
}

static void a_wrong_passphrase_opens_nothing(void)
{
    struct rhea_storage *s = make(1 << 20, "");
    struct rhea_format *f = NULL;
    uint8_t byte;

    CHECK_EQ(open_with(&f, s, "sec1", 0), -EACCES);
    CHECK_EQ(open_with(&f, s, NULL, 0), -EACCES);
    CHECK_EQ(open_with(&f, s, "absent", 0), -ENOENT);
    /* What needs no guest bytes needs no passphrase. */
    if (CHECK_OK(open_with(&f, s, NULL, RHEA_FORMAT_NO_IO), &err)) {
        CHECK_EQ(f->size, 1 << 20);
        CHECK_EQ(f->ops->read(f, 0, &byte, 1, &err), -EACCES);
        CHECK_OK(f->ops->close(f, &err), &err);
    }
    rhea_storage_close(s);
}

/* What another program could have damaged, field by field. */
static void damaged_headers_are_refused(void)
{
    static const struct {
        unsigned at;
        uint32_t value;
    } bad[] = {
        {0, 0},                                    /* magic */
        {4, 0xbabe0002},                           /* version 2 */
        {LUKS_AT_CIPHER, 0x41414141},              /* cipher */
        {LUKS_AT_MODE, 0x41414141},                /* mode */
        {LUKS_AT_HASH, 0x41414141},                /* hash */
        {LUKS_AT_PAYLOAD, 0},                      /* in the header */
        {LUKS_AT_PAYLOAD, 1000},                   /* in the slots */
        {LUKS_AT_PAYLOAD, UINT32_MAX},             /* past the end */
        {LUKS_AT_KEY_BYTES, 0},                    /* no key */
        {LUKS_AT_KEY_BYTES, 63},                   /* no such key */
        {LUKS_AT_KEY_BYTES, UINT32_MAX},           /* nor such a one */
        {LUKS_AT_ITERATIONS, 0},                   /* none */
        {LUKS_AT_SLOTS, 1},                        /* state */
        {LUKS_AT_SLOTS + LUKS_SLOT_ITERATIONS, 0}, /* active, without */
        {LUKS_AT_SLOTS + LUKS_SLOT_OFFSET, 1},     /* in the header */
        {LUKS_AT_SLOTS + LUKS_SLOT_OFFSET, 13},    /* in the next slot */
        {LUKS_AT_SLOTS + LUKS_SLOT_OFFSET, UINT32_MAX},
        {LUKS_AT_SLOTS + LUKS_SLOT_STRIPES, 3999},
    };
    struct rhea_storage *s = make(1 << 20, "");
    uint8_t whole[LUKS_HEADER];
    struct rhea_format *f = NULL;

    CHECK_OK(rhea_storage_read(s, whole, sizeof(whole), 0, &err), &err);
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        uint8_t bytes[4];

        store_be32(bytes, bad[i].value);
        CHECK_OK(rhea_storage_write(s, whole, sizeof(whole), 0, &err), &err);
        CHECK_OK(rhea_storage_write(s, bytes, 4, bad[i].at, &err), &err);
        if (!CHECK(open_with(&f, s, NULL, RHEA_FORMAT_NO_IO) < 0)) {
            printf("# case %zu\n", i);
            f->ops->close(f, NULL);
        }
    }
    /* Names without an end. */
    memset(whole + LUKS_AT_MODE, 'x', LUKS_NAME);
    CHECK_OK(rhea_storage_write(s, whole, sizeof(whole), 0, &err), &err);
    CHECK(open_with(&f, s, NULL, RHEA_FORMAT_NO_IO) < 0);
    /* A file that ends inside of the header, and one inside of the slots. */
    CHECK_OK(rhea_storage_truncate(s, 500, &err), &err);
    CHECK(open_with(&f, s, NULL, RHEA_FORMAT_NO_IO) < 0);
    rhea_storage_close(s);
}

/* Version 1.0 of cryptsetup put key material into any sector, and left fields
 * of slots that were never used as they were. */
static void headers_of_old_programs_are_read(void)
{
    struct rhea_storage *s = make(1 << 20, "");
    struct rhea_format *f = NULL;
    uint8_t material[64 * LUKS_STRIPES], sector[4] = {0, 0, 0, 2};
    unsigned unused = LUKS_AT_SLOTS + 7 * LUKS_SLOT_BYTES + LUKS_SLOT_STRIPES;

    CHECK_OK(rhea_storage_read(s, material, sizeof(material), 4096, &err),
             &err);
    CHECK_OK(rhea_storage_write(s, material, sizeof(material), 1024, &err),
             &err);
    CHECK_OK(rhea_storage_write(s, sector, 4, LUKS_AT_SLOTS + LUKS_SLOT_OFFSET,
                                &err),
             &err);
    CHECK_OK(rhea_storage_write(s, "\0\0\0\0", 4, unused, &err), &err);
    if (!CHECK_OK(open_with(&f, s, "sec0", RHEA_FORMAT_WRITE), &err))
        return;
    struct rhea_option add[] = {{"state", "active"},
                                {"new-secret", "sec1"},
                                {"keyslot", "7"},
                                {"iter-time", "1"}};
    CHECK_OK(f->ops->amend(f, add, 4, false, NULL, &err), &err);
    CHECK_OK(f->ops->close(f, &err), &err);
    CHECK_OK(rhea_storage_read(s, sector, 4, unused, &err), &err);
    CHECK_EQ(load_be32(sector), LUKS_STRIPES);
    CHECK_OK(open_with(&f, s, "sec1", 0), &err);
    f->ops->close(f, NULL);
    rhea_storage_close(s);
}

static void absurd_iterations_take_no_time(void)
{
    struct rhea_storage *s = make(1 << 20, "");
    struct rhea_format *f = NULL;
    uint8_t many[4] = {0xff, 0xff, 0xff, 0xff};

    CHECK_OK(rhea_storage_write(s, many, 4, LUKS_AT_SLOTS + 4, &err), &err);
    CHECK_EQ(open_with(&f, s, "sec0", 0), -EINVAL);
    rhea_storage_close(s);
}

static void passphrases_come_and_go(void)
{
    struct rhea_storage *s = make(1 << 20, "");
    struct rhea_format *f = open_ok(s, "sec0"), *g = NULL;
    uint8_t byte = 7;

    CHECK_OK(f->ops->write(f, 5, &byte, 1, &err), &err);
    /* The last one stays. */
    CHECK_EQ(amend(f, "state", "inactive", "keyslot", "0", false), -EPERM);
    CHECK_EQ(amend(f, "state", "inactive", "old-secret", "sec0", false),
             -EPERM);
    CHECK_EQ(amend(f, "state", "inactive", "keyslot", "3", false), -ENOENT);
    CHECK_EQ(amend(f, "state", "inactive", "keyslot", "8", false), -EINVAL);
    CHECK_OK(amend(f, "state", "active", "new-secret", "sec1", false), &err);
    CHECK_OK(amend(f, "state", "inactive", "old-secret", "sec0", false), &err);
    CHECK_EQ(amend(f, "state", "inactive", "old-secret", "sec0", false),
             -EACCES);
    CHECK_EQ(open_with(&g, s, "sec0", 0), -EACCES);
    CHECK_OK(f->ops->close(f, &err), &err);
    f = open_ok(s, "sec1");
    byte = 0;
    CHECK_OK(f->ops->read(f, 5, &byte, 1, &err), &err);
    CHECK_EQ(byte, 7);
    /* By force, over the only one. */
    struct rhea_option over[] = {{"state", "active"},
                                 {"keyslot", "1"},
                                 {"new-secret", "sec0"},
                                 {"iter-time", "1"}};
    CHECK_EQ(f->ops->amend(f, over, 4, false, NULL, &err), -EEXIST);
    CHECK_OK(f->ops->amend(f, over, 4, true, NULL, &err), &err);
    CHECK_OK(f->ops->close(f, &err), &err);
    CHECK_EQ(open_with(&g, s, "sec1", 0), -EACCES);
    f = open_ok(s, "sec0");
    CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(s);
}

/* QEMU could not be given it. */
static void a_new_passphrase_is_text(void)
{
    static const struct {
        const char *bytes;
        bool text;
    } cases[] = {
        {"", true},
        {"a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", true},
        {"\xff", false},
        {"\xc3", false},
        {"\xc0\xaf", false},
        {"\xe0\x9f\xbf", false},
        {"\xed\xa0\x80", false},
        {"\xf4\x90\x80\x80", false},
        {"a\xbf", false},
    };
    uint8_t *pass = NULL;
    size_t len = 0;

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++) {
        add_secret("text", cases[i].bytes);
        int ret = luks_new_passphrase("text", &pass, &len, &err);
        if (!CHECK_EQ(ret, cases[i].text ? 0 : -EINVAL))
            printf("# case %zu\n", i);
        rhea_secret_free(pass, len);
        rhea_secret_remove("text");
    }
}

static void sizes_change(void)
{
    struct rhea_storage *s = make(1 << 20, "");
    struct rhea_format *f = open_ok(s, "sec0");
    struct rhea_resize how = {.size = 2 << 20};
    uint8_t byte = 9;

    CHECK_OK(f->ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, 2 << 20);
    CHECK_OK(f->ops->write(f, f->size - 1, &byte, 1, &err), &err);
    how.size = 512;
    CHECK_EQ(f->ops->resize(f, &how, &err), -EPERM);
    how.shrink = true;
    CHECK_OK(f->ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, 512);
    CHECK(f->ops->write(f, 512, &byte, 1, &err) < 0);
    CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(s);
}

/* Threads that each write their own bytes of shared sectors. */
struct writer {
    struct rhea_format *f;
    unsigned index;
    bool failed;
};
enum { WRITERS = 4, WRITER_ROUNDS = 300, WRITER_PIECE = 100 };

static void *write_own(void *opaque)
{
    struct writer *w = opaque;
    uint8_t data[WRITER_PIECE], got[WRITER_PIECE];

    memset(data, (int)w->index + 1, sizeof(data));
    for (unsigned i = 0; i < WRITER_ROUNDS && !w->failed; i++) {
        uint64_t at = (uint64_t)(i * WRITERS + w->index) * WRITER_PIECE;

        w->failed = w->f->ops->write(w->f, at, data, sizeof(data), NULL) ||
                    w->f->ops->read(w->f, at, got, sizeof(got), NULL) ||
                    memcmp(data, got, sizeof(got)) != 0;
    }
    return NULL;
}

static void writers_of_one_sector_lose_nothing(void)
{
    struct rhea_storage *s = make(1 << 20, "cipher-mode=cbc");
    struct rhea_format *f = open_ok(s, "sec0");
    struct writer w[WRITERS];
    pthread_t threads[WRITERS];
    static uint8_t got[WRITERS * WRITER_ROUNDS * WRITER_PIECE];

    for (unsigned i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){f, i, false};
        pthread_create(&threads[i], NULL, write_own, &w[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(!w[i].failed);
    }
    CHECK_OK(f->ops->read(f, 0, got, sizeof(got), &err), &err);
    for (size_t i = 0; i < sizeof(got); i++)
        if (got[i] != i / WRITER_PIECE % WRITERS + 1) {
            CHECK_EQ(got[i], i / WRITER_PIECE % WRITERS + 1);
            break;
        }
    CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    add_secret("sec0", "first");
    add_secret("sec1", "second");
    TEST(the_splitter_merges_what_python_split);
    TEST(pbkdf2_is_that_of_rfc_6070);
    TEST(every_cipher_reads_what_it_wrote);
    TEST(options_that_do_not_go_together_are_refused);
    TEST(a_wrong_passphrase_opens_nothing);
    TEST(damaged_headers_are_refused);
    TEST(headers_of_old_programs_are_read);
    TEST(absurd_iterations_take_no_time);
    TEST(passphrases_come_and_go);
    TEST(a_new_passphrase_is_text);
    TEST(sizes_change);
    TEST(writers_of_one_sector_lose_nothing);
    return test_finish();
}
