/* SPDX-License-Identifier: MIT */
/* Secrets as options name them. */
#include <rhea/secret.h>

#include <errno.h>

#include "lib/test.h"

static struct rhea_error err;

/* Up to six options; NULL ends them. */
static int add(const char *n0, const char *v0, const char *n1, const char *v1,
               const char *n2, const char *v2, const char *n3, const char *v3,
               const char *n4, const char *v4)
{
    struct rhea_option o[] = {{n0, v0}, {n1, v1}, {n2, v2}, {n3, v3}, {n4, v4}};
    size_t n = 0;

    while (n < 5 && o[n].name)
        n++;
    return rhea_secret_add(o, n, &err);
}
#define ADD2(a, b, c, d) add(a, b, c, d, 0, 0, 0, 0, 0, 0)
#define ADD3(a, b, c, d, e, f) add(a, b, c, d, e, f, 0, 0, 0, 0)

static void check_holds(const char *id, const void *bytes, size_t len)
{
    uint8_t *got = NULL;
    size_t n = 0;

    if (!CHECK_OK(rhea_secret_get(id, &got, &n, &err), &err))
        return;
    if (CHECK_EQ(n, len)) {
        CHECK_MEM(got, bytes, len);
        CHECK_EQ(got[n], 0);
    }
    rhea_secret_free(got, n);
}

static void a_secret_is_found_by_its_id(void)
{
    uint8_t *got;
    size_t n;

    CHECK_OK(ADD2("id", "sec0", "data", "letmein"), &err);
    check_holds("sec0", "letmein", 7);
    CHECK_EQ(rhea_secret_get("sec1", &got, &n, &err), -ENOENT);
    CHECK_EQ(ADD2("id", "sec0", "data", "other"), -EEXIST);
    check_holds("sec0", "letmein", 7);
    rhea_secret_remove("sec0");
    CHECK_EQ(rhea_secret_get("sec0", &got, &n, &err), -ENOENT);
    CHECK_OK(ADD3("qom-type", "secret", "id", "sec0", "data", ""), &err);
    check_holds("sec0", "", 0);
    rhea_secret_remove("sec0");
}

static void base64_is_decoded(void)
{
    static const struct {
        const char *coded, *plain;
    } good[] = {{"", ""},
                {"Zg==", "f"},
                {"Zm8=", "fo"},
                {"Zm9v", "foo"},
                {"Zm9v\nYmE=\n", "fooba"},
                {"+/+/", "\xfb\xff\xbf"}};
    static const char *const bad[] = {
        "Zg", "Zg=", "Z===", "Zg==Zg==", "Z*==", "="};

    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        CHECK_OK(ADD3("id", "a", "format", "base64", "data", good[i].coded),
                 &err);
        check_holds("a", good[i].plain, strlen(good[i].plain));
        rhea_secret_remove("a");
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        CHECK_EQ(ADD3("id", "a", "format", "base64", "data", bad[i]), -EINVAL);
}

static void a_file_is_taken_whole(void)
{
    const char *path = test_path("secret");
    static char text[10000];
    FILE *f = fopen(path, "w");

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\n';
    fwrite(text, 1, sizeof(text), f);
    fclose(f);
    CHECK_OK(ADD2("id", "f", "file", path), &err);
    check_holds("f", text, sizeof(text));
    rhea_secret_remove("f");
    CHECK_EQ(ADD2("id", "f", "file", test_path("absent")), -ENOENT);
}

/* The ciphertext is openssl's: printf 123456 | openssl enc -aes-256-cbc -a
 * -K 30..(64 digits "30") -iv 31..(32 digits "31"). */
static void an_encrypted_secret_is_decrypted(void)
{
    static const char key[] = "00000000000000000000000000000000";
    static const char iv[] = "MTExMTExMTExMTExMTExMQ==";
    static const char coded[] = "ZNMxV0Ry3nX8SKY2UeZfJA==";

    CHECK_OK(ADD2("id", "master", "data", key), &err);
    CHECK_OK(add("id", "s", "keyid", "master", "iv", iv, "data", coded,
                 "format", "base64"),
             &err);
    check_holds("s", "123456", 6);
    rhea_secret_remove("s");
    CHECK_EQ(add("id", "s", "keyid", "none", "iv", iv, "data", coded, "format",
                 "base64"),
             -ENOENT);
    CHECK_EQ(add("id", "s", "keyid", "master", "iv", "MTEx", "data", coded,
                 "format", "base64"),
             -EINVAL);
    /* Not whole blocks, and nothing at all. */
    CHECK_EQ(add("id", "s", "keyid", "master", "iv", iv, "data", "MTEx",
                 "format", "base64"),
             -EINVAL);
    CHECK_EQ(add("id", "s", "keyid", "master", "iv", iv, "data", "", "format",
                 "base64"),
             -EINVAL);
    /* Another iv, by which the padding comes out wrong. */
    CHECK_EQ(add("id", "s", "keyid", "master", "iv", "MTExMTExMTExMTExMTEx/w==",
                 "data", coded, "format", "base64") == 0,
             false);
    rhea_secret_remove("master");
}

static void nonsense_is_refused(void)
{
    CHECK_EQ(ADD2("data", "x", NULL, NULL), -EINVAL);
    CHECK_EQ(ADD2("id", "a", NULL, NULL), -EINVAL);
    CHECK_EQ(ADD2("id", "1a", "data", "x"), -EINVAL);
    CHECK_EQ(ADD2("id", "a b", "data", "x"), -EINVAL);
    CHECK_EQ(ADD2("id", "", "data", "x"), -EINVAL);
    CHECK_EQ(ADD3("id", "a", "data", "x", "file", "y"), -EINVAL);
    CHECK_EQ(ADD3("id", "a", "data", "x", "format", "hex"), -EINVAL);
    CHECK_EQ(ADD3("id", "a", "data", "x", "colour", "red"), -EINVAL);
    CHECK_EQ(ADD3("id", "a", "data", "x", "keyid", "b"), -EINVAL);
    CHECK_EQ(ADD3("qom-type", "iothread", "id", "a", "data", "x"), -ENOTSUP);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_secret_is_found_by_its_id);
    TEST(base64_is_decoded);
    TEST(a_file_is_taken_whole);
    TEST(an_encrypted_secret_is_decrypted);
    TEST(nonsense_is_refused);
    return test_finish();
}
