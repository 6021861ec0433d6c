/* SPDX-License-Identifier: MIT */
/* Text and checksums that formats share. */
#include <errno.h>

#include "base/crc32c.h"
#include "base/utf16.h"
#include "lib/test.h"

static struct rhea_error err;

/* RFC 3720, B.4. */
static void crc32c_is_iscsi_s(void)
{
    uint8_t bytes[40];
    CHECK_EQ(crc32c(0, "123456789", 9), 0xe3069283);
    CHECK_EQ(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
    memset(bytes, 0, 32);
    CHECK_EQ(crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    CHECK_EQ(crc32c(0, bytes, 32), 0x62a8ab43);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    CHECK_EQ(crc32c(0, bytes, 32), 0x46dd794e);
    CHECK_EQ(crc32c(0, bytes, 0), 0);
}

static void crc32c_needs_no_instruction(void)
{
    static uint8_t bytes[8000];
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    for (unsigned from = 0; from < 9; from++)
        for (size_t len = 0; len < sizeof(bytes) - from; len += 1 + len / 100)
            CHECK_EQ(crc32c_by_table(from, bytes + from, len),
                     crc32c(from, bytes + from, len));
}

static void check_utf16(const char *text, const void *le, size_t le_len)
{
    uint8_t *bytes = NULL, swapped[64];
    size_t len = 0;
    if (!CHECK_OK(
            utf16_from_utf8(text, UTF16_LITTLE_ENDIAN, &bytes, &len, &err),
            &err))
        return;
    CHECK_EQ(len, le_len);
    CHECK_MEM(bytes, le, len);
    for (size_t i = 0; i < len; i++)
        swapped[i ^ 1] = bytes[i];
    free(bytes);
    CHECK_OK(utf16_from_utf8(text, UTF16_BIG_ENDIAN, &bytes, &len, &err), &err);
    CHECK_EQ(len, le_len);
    CHECK_MEM(bytes, swapped, len);
    free(bytes);
    char *back = utf16_to_utf8(le, le_len, UTF16_LITTLE_ENDIAN);
    CHECK_STR(back, text);
    free(back);
    back = utf16_to_utf8(swapped, le_len, UTF16_BIG_ENDIAN);
    CHECK_STR(back, text);
    free(back);
}

static void utf16_is_read_and_written(void)
{
    check_utf16("", "", 0);
    check_utf16("a\\b", "a\0\\\0b\0", 6);
    /* U+00E9, U+20AC, U+1F600 */
    check_utf16("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
                "\xe9\x00\xac\x20\x3d\xd8\x00\xde", 8);
}

static void utf16_that_is_none_is_seen(void)
{
    static const char *const bad[] = {
        "\x80", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "a\xff"};
    static const struct {
        const char *bytes;
        size_t len;
        const char *text;
    } odd[] = {
        {"\x00\xd8"
         "a\0",
         4,
         "\xef\xbf\xbd"
         "a"}, /* half a pair */
        {"\x00\xdc\x00\xd8", 4, "\xef\xbf\xbd\xef\xbf\xbd"},
        {"a\0\0\0b\0", 6, "a"},
        {"a\0b", 3, "a"},
        {"\x3d\xd8", 2, "\xef\xbf\xbd"},
    };
    uint8_t *bytes;
    size_t len;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        CHECK_EQ(utf16_from_utf8(bad[i], UTF16_BIG_ENDIAN, &bytes, &len, &err),
                 -EILSEQ);
    for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        char *text =
            utf16_to_utf8(odd[i].bytes, odd[i].len, UTF16_LITTLE_ENDIAN);
        CHECK_STR(text, odd[i].text);
        free(text);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(crc32c_is_iscsi_s);
    TEST(crc32c_needs_no_instruction);
    TEST(utf16_is_read_and_written);
    TEST(utf16_that_is_none_is_seen);
    return test_finish();
}
