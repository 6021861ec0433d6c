/* SPDX-License-Identifier: MIT */
#include "base/uuid.h"
#include "lib/test.h"

static struct rhea_error err;
static const char text_of_both[] = "00112233-4455-6677-8899-aabbccddeeff";

static void the_text_follows_the_byte_order(void)
{
    static const uint8_t uuid[] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55,
                                   0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb,
                                   0xcc, 0xdd, 0xee, 0xff};
    static const uint8_t guid[] = {0x33, 0x22, 0x11, 0x00, 0x55, 0x44,
                                   0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb,
                                   0xcc, 0xdd, 0xee, 0xff};
    char text[UUID_TEXT];
    uuid_text(uuid, text);
    CHECK_STR(text, text_of_both);
    guid_text(guid, text);
    CHECK_STR(text, text_of_both);
}

static void the_text_is_read_back(void)
{
    static const char *const bad[] = {
        "",
        "{}",
        "83ed0ec3-24c8-49a6-a959-5e4bf1288bf",
        "83ed0ec3-24c8-49a6-a959-5e4bf1288bfbb",
        "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb",
        "83ed0ec324c849a6a9595e4bf1288bfb",
        "g3ed0ec3-24c8-49a6-a959-5e4bf1288bfb",
    };
    uint8_t uuid[UUID_BYTES];
    char text[UUID_TEXT];
    CHECK(uuid_parse(text_of_both, uuid));
    uuid_text(uuid, text);
    CHECK_STR(text, text_of_both);
    CHECK(guid_parse("{00112233-4455-6677-8899-AABBCCDDEEFF}", uuid));
    guid_text(uuid, text);
    CHECK_STR(text, text_of_both);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        CHECK(!uuid_parse(bad[i], uuid) && !guid_parse(bad[i], uuid));
    guid_text(uuid, text);
    CHECK_STR(text, text_of_both);
}

static void new_ones_are_random_and_say_so(void)
{
    uint8_t a[UUID_BYTES], b[UUID_BYTES], null[UUID_BYTES] = {0};
    char text[UUID_TEXT];
    CHECK_OK(guid_new(a, &err), &err);
    CHECK_OK(guid_new(b, &err), &err);
    CHECK(!uuid_equal(a, b));
    CHECK(!uuid_is_null(a) && uuid_is_null(null));
    guid_text(a, text);
    CHECK_EQ(text[14], '4');
    CHECK(strchr("89ab", text[19]) != NULL);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(the_text_follows_the_byte_order);
    TEST(the_text_is_read_back);
    TEST(new_ones_are_random_and_say_so);
    return test_finish();
}
