/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "fuzz.h"
#include "storage/memory.h"

/* --- input bytes --------------------------------------------------------- */

uint8_t fuzz_u8(struct fuzz_input *in)
{
    if (!in->len)
        return 0;
    in->len--;
    return *in->data++;
}

uint16_t fuzz_u16(struct fuzz_input *in)
{
    unsigned low = fuzz_u8(in);
    return (uint16_t)(low | (unsigned)fuzz_u8(in) << 8);
}

uint64_t fuzz_u64(struct fuzz_input *in)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < 8; i++)
        v |= (uint64_t)fuzz_u8(in) << (8 * i);
    return v;
}

uint64_t fuzz_below(struct fuzz_input *in, uint64_t n)
{
    if (n <= 256)
        return fuzz_u8(in) % n;
    if (n <= 65536)
        return fuzz_u16(in) % n;
    return fuzz_u64(in) % n;
}

uint64_t fuzz_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void fuzz_fill(void *buf, size_t len, uint64_t seed)
{
    uint8_t *p = buf;
    while (len) {
        uint64_t word = fuzz_random(&seed);
        size_t n = RHEA_MIN(len, sizeof(word));
        memcpy(p, &word, n);
        p += n;
        len -= n;
    }
}

/* --- storages ------------------------------------------------------------ */

static struct rhea_storage *common_memory(void)
{
    struct rhea_storage *s;
    FUZZ_REQUIRE(!rhea_memory_open(&s, INT64_MAX, NULL), "memory");
    return s;
}

/* Bytes as they are, but for the trailer. */
static struct rhea_storage *common_load(const uint8_t *data, size_t len)
{
    struct rhea_storage *s = common_memory();
    uint64_t size = len;
    if (len >= 16 && !memcmp(data + len - 16, FUZZ_TRAILER, 8)) {
        size = load_le64(data + len - 8) & INT64_MAX;
        len = (size_t)RHEA_MIN(size, len - 16);
    }
    FUZZ_REQUIRE(!rhea_storage_write(s, data, len, 0, NULL), "memory");
    FUZZ_REQUIRE(!rhea_storage_truncate(s, size, NULL), "memory");
    return s;
}

/* What IN is an image of; NULL: of nothing that a target takes. INPLACE: of
 * nothing that can be converted in place. */
static const struct rhea_format_ops *common_probe(const struct fuzz_input *in,
                                                  bool inplace)
{
    uint8_t head[2048] = {0};
    if (in->len < 64)
        return NULL;
    memcpy(head, in->data, RHEA_MIN(in->len, sizeof(head)));
    const struct rhea_format_ops *found = rhea_format_probe(head, sizeof(head));
    const struct rhea_format_ops *vpc = rhea_format_find("vpc");
    /* A fixed VHD is told by its end. */
    if (!found->check && in->len >= 512 &&
        vpc->probe_tail(in->data + in->len - 512, 512, in->len))
        found = vpc;
    return (inplace ? found->walk != NULL : found->check != NULL) ? found
                                                                  : NULL;
}

bool fuzz_is_image(const struct fuzz_input *in)
{
    return common_probe(in, true) != NULL;
}

struct rhea_storage *fuzz_image(struct fuzz_input *in,
                                const struct rhea_format_ops *format)
{
    static const char *const names[] = {"qcow2", "qed"};
    const char *dump = getenv("FUZZ_DUMP");
    struct rhea_storage *s;
    if (common_probe(in, !format)) {
        s = common_load(in->data, in->len);
    } else {
        if (!format)
            format = rhea_format_find(names[fuzz_below(in, 2)]);
        s = generate_image(in, format);
    }
    if (s && dump)
        memory_dump(s, dump, NULL);
    return s;
}

struct rhea_storage *fuzz_clone(struct rhea_storage *s)
{
    struct rhea_storage *copy;
    FUZZ_REQUIRE(!memory_clone(&copy, s, NULL), "memory");
    return copy;
}

uint64_t fuzz_size(struct rhea_storage *s)
{
    uint64_t size;
    FUZZ_REQUIRE(!rhea_storage_size(s, &size, NULL), "memory");
    return size;
}

/* --- what lies below ----------------------------------------------------- */

void fuzz_base_bytes(uint64_t offset, void *buf, size_t len)
{
    uint8_t *p = buf;
    memset(buf, 0, len);
    if (offset >= FUZZ_BASE_SIZE)
        return;
    len = (size_t)RHEA_MIN(len, FUZZ_BASE_SIZE - offset);
    for (size_t i = 0; i < len; i++) {
        uint64_t at = offset + i;
        p[i] = at / 1024 % 5 == 2 ? 0 : (uint8_t)(at * 37 + at / 512 * 11 + 1);
    }
}

int fuzz_base_below(void *opaque, uint64_t offset, void *buf, size_t len,
                    struct rhea_error *err)
{
    (void)opaque;
    (void)err;
    fuzz_base_bytes(offset, buf, len);
    return 0;
}

/* --- mutation of inputs that are images ---------------------------------- */

/*
 * libFuzzer's mutations seldom hit a table entry in a way that means anything.
 * Half of the time, where the input holds an image file, damage that instead,
 * as mutate.c does.
 */
#ifdef FUZZ_LIBFUZZER
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                               unsigned seed)
{
    uint64_t state = seed;
    if (fuzz_random(&state) % 2)
        return LLVMFuzzerMutate(data, size, max_size);

    struct fuzz_input image = {data, size};
    const struct rhea_format_ops *format = common_probe(&image, false);
    bool trailer = image.len >= 16 &&
                   !memcmp(image.data + image.len - 16, FUZZ_TRAILER, 8);
    if (!format || trailer)
        return LLVMFuzzerMutate(data, size, max_size);

    uint8_t random[256];
    fuzz_fill(random, sizeof(random), fuzz_random(&state));
    struct fuzz_input in = {random, sizeof(random)};
    struct rhea_storage *s = common_load(image.data, image.len);
    mutate_image(s, format, 1 + (unsigned)(fuzz_random(&state) % 3), &in);

    size_t len = (size_t)RHEA_MIN(fuzz_size(s), max_size);
    FUZZ_REQUIRE(!rhea_storage_read(s, data, len, 0, NULL), "memory");
    rhea_storage_close(s);
    return len;
}
#endif
