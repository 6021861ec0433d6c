/* SPDX-License-Identifier: MIT */
/* Encrypted qcow2 images over memory, against a shadow. */
#include <errno.h>
#include <rhea/secret.h>

#include "qcow2_lib.h"

enum { SIZE = 1 << 20, ROUNDS = 400 };

static uint8_t shadow[SIZE], lower[SIZE], got[SIZE];

static void add_secret(const char *id, const char *data)
{
    struct rhea_option o[] = {{"id", id}, {"data", data}};

    CHECK_OK(rhea_secret_add(o, 2, &err), &err);
}

static int open_with(struct rhea_format **f, struct rhea_storage *s,
                     const char *secret, unsigned flags)
{
    struct rhea_option o = {"encrypt.key-secret", secret};
    struct rhea_format_open how = {.storage = s,
                                   .flags = flags,
                                   .options = &o,
                                   .n_options = secret ? 1 : 0};

    return qcow2_ops()->open(f, &how, &err);
}

static int below(void *opaque, uint64_t offset, void *buf, size_t len,
                 struct rhea_error *e)
{
    (void)opaque;
    (void)e;
    memset(buf, 0, len);
    if (offset < SIZE)
        memcpy(buf, lower + offset, RHEA_MIN(len, (size_t)(SIZE - offset)));
    return 0;
}

static struct rhea_format *open_ok(struct rhea_storage *s, bool backed)
{
    struct rhea_format *f = NULL;

    if (!CHECK_OK(open_with(&f, s, "sec0", RHEA_FORMAT_WRITE), &err))
        exit(99);
    if (backed)
        f->below = below;
    return f;
}

/* As the image does. */
static void read_all(struct rhea_format *f)
{
    uint64_t at = 0;

    while (at < SIZE) {
        struct rhea_extent x = {0};

        if (!CHECK_OK(f->ops->map(f, at, SIZE - at, &x, &err), &err))
            return;
        CHECK(x.kind != RHEA_EXTENT_DATA);
        if (x.kind == RHEA_EXTENT_ENCRYPTED)
            CHECK_OK(f->ops->read(f, at, got + at, x.length, &err), &err);
        else if (x.kind == RHEA_EXTENT_UNALLOCATED && f->below)
            memcpy(got + at, lower + at, x.length);
        else
            memset(got + at, 0, x.length);
        at += x.length;
    }
}

static bool check_contents(struct rhea_format *f, const char *options)
{
    read_all(f);
    if (CHECK_MEM(got, shadow, SIZE))
        return true;
    printf("# with %s\n", options);
    return false;
}

static void change(struct rhea_format *f, uint64_t *seed)
{
    uint64_t offset = test_random(seed) % SIZE;
    size_t len =
        (size_t)(test_random(seed) % (test_random(seed) % 4 ? 3000 : 100000));
    bool zero = test_random(seed) % 6 == 0;

    if (test_random(seed) % 2)
        offset = align_down(offset, 512);
    len = RHEA_MIN(len, (size_t)(SIZE - offset));
    if (zero) {
        memset(shadow + offset, 0, len);
        CHECK_OK(f->ops->write_zeroes(f, offset, len, true, &err), &err);
    } else {
        test_fill(shadow + offset, len, *seed);
        CHECK_OK(f->ops->write(f, offset, shadow + offset, len, &err), &err);
    }
}

static void random_writes(const char *options, bool backed)
{
    char text[256];
    struct rhea_storage *s;
    struct rhea_format *f;
    uint64_t seed = 7;
    struct rhea_check check;

    snprintf(text, sizeof(text), "encrypt.key-secret=sec0 %s", options);
    s = qcow2_make(SIZE, text, backed ? "lower" : NULL);
    test_fill(lower, SIZE, 99);
    memset(shadow, 0, SIZE);
    if (backed)
        memcpy(shadow, lower, SIZE);
    f = open_ok(s, backed);
    for (unsigned i = 0; i < ROUNDS; i++)
        change(f, &seed);
    check_contents(f, options);
    image_close_ok(f);
    f = open_ok(s, backed);
    if (!check_contents(f, options))
        return;
    check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void random_writes_read_back(void)
{
    static const char *const luks = "encrypt.format=luks encrypt.iter-time=1";
    static const char *const more[] = {
        "", "compat=0.10 cluster_size=512",
        "encrypt.cipher-mode=cbc encrypt.ivgen-alg=essiv cluster_size=4k",
        "extended_l2=on lazy_refcounts=on", "extended_l2=on cluster_size=16k"};
    char text[256];

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(more); i++) {
        snprintf(text, sizeof(text), "%s %s", luks, more[i]);
        random_writes(text, i % 2);
        random_writes(text, !(i % 2));
    }
}

static void the_old_method_reads_back(void)
{
    random_writes("encrypt.format=aes", true);
    random_writes("encryption=on compat=0.10", false);
}

static void a_passphrase_is_needed_for_data_only(void)
{
    struct rhea_storage *s =
        qcow2_make(SIZE,
                   "encrypt.format=luks encrypt.key-secret=sec0 "
                   "encrypt.iter-time=1",
                   NULL);
    struct rhea_format *f = NULL;
    struct rhea_format_info info = {0};
    struct rhea_facts facts = {0};
    uint8_t byte = 1;

    f = open_ok(s, false);
    CHECK_OK(f->ops->write(f, 0, &byte, 1, &err), &err);
    image_close_ok(f);
    CHECK_EQ(open_with(&f, s, NULL, 0), -EACCES);
    CHECK_EQ(open_with(&f, s, "sec1", 0), -EACCES);
    CHECK_OK(open_with(&f, s, NULL, RHEA_FORMAT_NO_IO | RHEA_FORMAT_WRITE),
             &err);
    f->ops->info(f, &info);
    CHECK(info.encrypted);
    CHECK_OK(f->ops->facts(f, &facts, &err), &err);
    CHECK(rhea_facts_find(&facts, "encrypt") != NULL);
    rhea_facts_free(&facts);
    CHECK_EQ(f->ops->write(f, 0, &byte, 1, &err), -EACCES);
    CHECK_EQ(f->ops->read(f, 0, &byte, 1, &err), -EACCES);
    image_close_ok(f);
    CHECK_OK(open_with(&f, s, NULL, RHEA_FORMAT_CHECK), &err);
    CHECK_EQ(image_checked(f, 0).corruptions, 0);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void compressed_data_is_refused(void)
{
    struct rhea_storage *s =
        qcow2_make(SIZE, "encrypt.format=aes encrypt.key-secret=sec0", NULL);
    struct rhea_format *f = open_ok(s, false);

    CHECK_EQ(f->ops->write_compressed(f, 0, shadow, 65536, &err), -ENOTSUP);
    image_close_ok(f);
    rhea_storage_close(s);
}

/* The header's pointer to the encryption header, and what it says. */
static void damaged_headers_are_refused(void)
{
    static const struct {
        unsigned at;
        uint64_t value;
    } bad[] = {
        {0, 0x10200},           /* no cluster's offset */
        {0, UINT64_C(1) << 40}, /* past the end */
        {0, UINT64_C(1) << 63}, /* no offset at all */
        {0, 0},                 /* qcow2's own header */
        {8, 0},                 /* no bytes */
        {8, 4096},              /* less than it takes */
        {8, UINT64_MAX},
    };
    struct rhea_storage *s =
        qcow2_make(SIZE,
                   "encrypt.format=luks encrypt.key-secret=sec0 "
                   "encrypt.iter-time=1",
                   NULL);
    uint8_t head[512] = {0};
    uint64_t at = 112;
    struct rhea_format *f = NULL;

    CHECK_OK(rhea_storage_read(s, head, sizeof(head), 0, &err), &err);
    while (at < 400 && load_be32(head + at) != 0x0537be77)
        at += 8 + align_up(load_be32(head + at + 4), 8);
    if (!CHECK(at < 400))
        return;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        CHECK_OK(rhea_storage_write(s, head, sizeof(head), 0, &err), &err);
        put_be64(s, at + 8 + bad[i].at, bad[i].value);
        if (!CHECK(open_with(&f, s, "sec0", 0) < 0)) {
            printf("# case %zu\n", i);
            f->ops->close(f, NULL);
        }
    }
    CHECK_OK(rhea_storage_write(s, head, sizeof(head), 0, &err), &err);
    put_be32(s, 32, 1); /* the old method, with a header */
    CHECK(open_with(&f, s, "sec0", 0) < 0);
    put_be32(s, 32, 3);
    CHECK(open_with(&f, s, "sec0", 0) < 0);
    put_be32(s, 32, 0);
    CHECK(open_with(&f, s, "sec0", 0) < 0);
    rhea_storage_close(s);
}

static void options_must_agree(void)
{
    static const char *const bad[] = {
        "encrypt.format=luks",
        "encrypt.format=luks encrypt.key-secret=absent",
        "encrypt.key-secret=sec0",
        "encrypt.format=rot13 encrypt.key-secret=sec0",
        "encrypt.format=aes encryption=on encrypt.key-secret=sec0",
        "encryption=on",
        "encrypt.format=luks encrypt.key-secret=sec0 encrypt.colour=red",
    };

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_option list[4];
        struct rhea_create how = {.size = SIZE, .options = list};
        char text[256], *at = text;
        struct rhea_storage *s = NULL;

        snprintf(text, sizeof(text), "%s", bad[i]);
        for (char *word = strtok_r(text, " ", &at); word;
             word = strtok_r(NULL, " ", &at)) {
            char *value = strchr(word, '=');

            *value = 0;
            list[how.n_options++] = (struct rhea_option){word, value + 1};
        }
        CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
        if (!CHECK(qcow2_ops()->create(s, &how, &err) < 0))
            printf("# with %s\n", bad[i]);
        rhea_storage_close(s);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    add_secret("sec0", "first");
    add_secret("sec1", "second");
    TEST(random_writes_read_back);
    TEST(the_old_method_reads_back);
    TEST(a_passphrase_is_needed_for_data_only);
    TEST(compressed_data_is_refused);
    TEST(damaged_headers_are_refused);
    TEST(options_must_agree);
    return test_finish();
}
