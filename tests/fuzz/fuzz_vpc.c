/* SPDX-License-Identifier: MIT */
/*
 * The VHD driver: every call that it has, on any image. What is damaged in its
 * footers and header would be refused for their checksums; so these are made
 * right, as a rule.
 */
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "fuzz.h"
#include "reader.h"

enum {
    FOOTER = 512,
    HEADER = 1024,
    HEADER_AT = 16,
    FOOTER_SUM = 64,
    HEADER_SUM = 36,
};

static void seal(struct rhea_storage *s, uint64_t at, size_t len, size_t sum_at,
                 const char *cookie)
{
    uint8_t bytes[HEADER], word[4];
    uint32_t sum = 0;
    if (rhea_storage_read(s, bytes, len, at, NULL) ||
        memcmp(bytes, cookie, 8) != 0)
        return;
    for (size_t i = 0; i < len; i++)
        sum += i < sum_at || i >= sum_at + 4 ? bytes[i] : 0;
    store_be32(word, ~sum);
    FUZZ_REQUIRE(!rhea_storage_write(s, word, 4, at + sum_at, NULL), "memory");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct rhea_format_ops *format = rhea_format_find("vpc");
    struct fuzz_input in = {data, size};
    uint64_t seed = reader_seed(data, size);
    uint8_t head_at[8] = {0};

    struct rhea_storage *image = fuzz_image(&in, format);
    if (image && seed % 8) {
        uint64_t end = fuzz_size(image);
        rhea_storage_read_padded(image, head_at, 8, HEADER_AT, NULL);
        seal(image, RHEA_MIN(load_be64(head_at), INT64_MAX - HEADER), HEADER,
             HEADER_SUM, "cxsparse");
        seal(image, 0, FOOTER, FOOTER_SUM, "conectix");
        if (end >= FOOTER)
            seal(image, end - FOOTER, FOOTER, FOOTER_SUM, "conectix");
    }
    if (image)
        reader_run(format, image, seed);
    rhea_storage_close(image);
    return 0;
}
