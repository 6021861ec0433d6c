/* SPDX-License-Identifier: MIT */
/*
 * LUKS headers: the parser, then all that the driver does with an image. An
 * input that begins as a header does is the file; any other is a recipe, bytes
 * to be changed in a sound header: offset, value, offset, value. Iterations are
 * kept low, so that nothing but the bound on them keeps time short.
 */
#include <string.h>

#include <rhea/secret.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "crypto/luks.h"
#include "fuzz.h"
#include "storage/memory.h"

enum { GUEST = 65536, ITERATIONS = 1000 };

static void add_secret(const char *id, const char *data)
{
    struct rhea_option o[] = {{"id", id}, {"data", data}};

    FUZZ_REQUIRE(!rhea_secret_add(o, 2, NULL), "secret");
}

/* A sound image, made once. */
static struct rhea_storage *sound(void)
{
    static const struct rhea_option options[] = {{"key-secret", "right"},
                                                 {"iter-time", "1"},
                                                 {"cipher-alg", "aes-128"},
                                                 {"cipher-mode", "cbc"},
                                                 {"hash-alg", "sha1"}};
    static struct rhea_storage *image;
    struct rhea_create how = {.size = GUEST,
                              .options = options,
                              .n_options = RHEA_ARRAY_SIZE(options)};

    if (image)
        return image;
    add_secret("right", "right");
    add_secret("wrong", "wrong");
    FUZZ_REQUIRE(!rhea_memory_open(&image, INT64_MAX, NULL), "memory");
    FUZZ_REQUIRE(!rhea_format_find("luks")->create(image, &how, NULL),
                 "create");
    return image;
}

static void limit(struct rhea_storage *s, uint64_t at)
{
    uint8_t n[4];

    if (rhea_storage_read(s, n, 4, at, NULL) || load_be32(n) <= ITERATIONS)
        return;
    store_be32(n, ITERATIONS);
    FUZZ_REQUIRE(!rhea_storage_write(s, n, 4, at, NULL), "memory");
}

static struct rhea_storage *build(const uint8_t *data, size_t size)
{
    struct rhea_storage *s;

    if (size >= sizeof(luks_magic) &&
        !memcmp(data, luks_magic, sizeof(luks_magic))) {
        FUZZ_REQUIRE(!rhea_memory_open(&s, INT64_MAX, NULL), "memory");
        FUZZ_REQUIRE(!rhea_storage_write(s, data, size, 0, NULL), "memory");
        FUZZ_REQUIRE(!rhea_storage_truncate(s, 4 << 20, NULL), "memory");
    } else {
        s = fuzz_clone(sound());
        for (; size >= 3; data += 3, size -= 3)
            FUZZ_REQUIRE(!rhea_storage_write(s, data + 2, 1,
                                             load_be16(data) % LUKS_HEADER,
                                             NULL),
                         "memory");
    }
    limit(s, LUKS_AT_ITERATIONS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        limit(s, LUKS_AT_SLOTS + i * LUKS_SLOT_BYTES + LUKS_SLOT_ITERATIONS);
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

    return rhea_format_find("luks")->open(f, &how, NULL);
}

static void look(struct rhea_storage *s)
{
    struct rhea_format *f;
    struct rhea_facts facts = {0};
    struct rhea_extent x;

    if (open_with(&f, s, NULL, RHEA_FORMAT_NO_IO))
        return;
    FUZZ_REQUIRE(f->size <= INT64_MAX, "a disk of %" PRIu64, f->size);
    FUZZ_REQUIRE(!f->ops->facts(f, &facts, NULL) && !facts.failed, "facts");
    rhea_facts_free(&facts);
    if (f->size)
        FUZZ_REQUIRE(!f->ops->map(f, 0, f->size, &x, NULL) &&
                         x.length == f->size,
                     "an extent");
    f->ops->close(f, NULL);
}

static void use(struct rhea_storage *s)
{
    static const char text[] = "across two sectors";
    uint8_t got[sizeof(text)];
    struct rhea_format *f;
    uint64_t at = 505;

    if (open_with(&f, s, "right", RHEA_FORMAT_WRITE))
        return;
    if (f->size >= 2048) {
        FUZZ_REQUIRE(!f->ops->write(f, at, text, sizeof(text), NULL), "write");
        FUZZ_REQUIRE(!f->ops->read(f, at, got, sizeof(got), NULL), "read");
        FUZZ_REQUIRE(!memcmp(got, text, sizeof(text)), "other bytes");
    }
    struct rhea_option erase[] = {{"state", "inactive"},
                                  {"old-secret", "wrong"}};
    FUZZ_REQUIRE(f->ops->amend(f, erase, 2, false, NULL, NULL) < 0,
                 "a passphrase that is not there was erased");
    f->ops->close(f, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rhea_storage *s;

    sound();
    s = build(data, RHEA_MIN(size, (size_t)(1 << 20)));
    look(s);
    use(s);
    rhea_storage_close(s);
    return 0;
}
