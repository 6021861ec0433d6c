/* SPDX-License-Identifier: MIT */
/*
 * Changing passphrases survives crashes: whatever reaches the disk, one of the
 * passphrases unlocks the image, one that was not touched always does, and the
 * guest's bytes are what they were.
 */
#include <errno.h>
#include <rhea/secret.h>

#include "crash_states.h"
#include "image_lib.h"

static const char text[] = "what the guest wrote";

static void add_secret(const char *id, const char *data)
{
    struct rhea_option o[] = {{"id", id}, {"data", data}};

    CHECK_OK(rhea_secret_add(o, 2, &err), &err);
}

static struct rhea_format *open_by(struct rhea_storage *s, const char *secret,
                                   unsigned flags)
{
    struct rhea_option o = {"key-secret", secret};
    struct rhea_format_open how = {
        .storage = s, .flags = flags, .options = &o, .n_options = 1};
    struct rhea_format *f = NULL;

    return rhea_format_find("luks")->open(&f, &how, &err) == 0 ? f : NULL;
}

/* Keys of 16 bytes, so that there is little to try. */
static struct rhea_storage *make(void)
{
    const struct rhea_create how = {.size = 4096};
    struct rhea_storage *s = image_make(
        rhea_format_find("luks"), how,
        "key-secret=old iter-time=1 cipher-alg=aes-128 cipher-mode=cbc "
        "hash-alg=sha1");
    struct rhea_format *f = open_by(s, "old", RHEA_FORMAT_WRITE);

    if (!CHECK(f != NULL))
        exit(99);
    CHECK_OK(f->ops->write(f, 100, text, sizeof(text), &err), &err);
    image_close_ok(f);
    return s;
}

/* Up to four options in pairs, NULL ends them. */
struct change {
    const char *name;
    const char *words[8];
    bool old_stays;    /* OLD always unlocks the image */
    const char *after; /* what does when all is done */
};

static bool unlocks(struct rhea_storage *s, const char *secret)
{
    struct rhea_format *f = open_by(s, secret, 0);
    char got[sizeof(text)];

    if (!f)
        return false;
    CHECK_OK(f->ops->read(f, 100, got, sizeof(got), &err), &err);
    CHECK_MEM(got, text, sizeof(text));
    f->ops->close(f, NULL);
    return true;
}

static void amend(struct rhea_storage *s, const char *const *words)
{
    struct rhea_format *f = open_by(s, "old", RHEA_FORMAT_WRITE);
    struct rhea_option options[4];
    size_t n = 0;

    for (; n < 4 && words[n * 2]; n++)
        options[n] = (struct rhea_option){words[n * 2], words[n * 2 + 1]};
    if (!CHECK(f != NULL))
        return;
    CHECK_OK(f->ops->amend(f, options, n, true, NULL, &err), &err);
    image_close_ok(f);
}

static bool state_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct change *change = opaque;

    (void)s;
    return CHECK(unlocks(state, "old") ||
                 (!change->old_stays && unlocks(state, "new")));
}

static void run(struct rhea_storage *s, const struct change *change)
{
    static const struct crash_limits limits = {
        .seed = 1, .subsets = 2, .torn = 6, .orders = 1};
    struct recording r;

    recording_begin(&r, s);
    amend(r.storage, change->words);
    if (!CHECK(unlocks(r.storage, change->after)))
        printf("# %s\n", change->name);
    size_t n = crash_states(change->name, &r, &limits, SIZE_MAX, state_is_good,
                            change);
    printf("# %s: %zu states\n", change->name, n);
    recording_end(&r);
}

static void adding_a_passphrase(void)
{
    static const struct change change = {
        "add",
        {"state", "active", "new-secret", "new", "iter-time", "1"},
        true,
        "new"};

    run(make(), &change);
}

/* Its fields lie in two sectors. */
static void adding_one_in_slot_6(void)
{
    static const struct change change = {"add in slot 6",
                                         {"state", "active", "new-secret",
                                          "new", "iter-time", "1", "keyslot",
                                          "6"},
                                         true,
                                         "new"};

    run(make(), &change);
}

static void replacing_the_only_one(void)
{
    static const struct change change = {"replace",
                                         {"state", "active", "new-secret",
                                          "new", "iter-time", "1", "keyslot",
                                          "0"},
                                         false,
                                         "new"};

    run(make(), &change);
}

static void erasing_one_of_two(void)
{
    static const char *const add[] = {"state",   "active",    "new-secret",
                                      "new",     "iter-time", "1",
                                      "keyslot", "6"};
    static const struct change one = {
        "erase slot 6", {"state", "inactive", "keyslot", "6"}, true, "old"};
    static const struct change other = {
        "erase slot 0",
        {"state", "inactive", "old-secret", "old"},
        false,
        "new"};
    struct rhea_storage *s = make();

    amend(s, add);
    run(s, &one);
    s = make();
    amend(s, add);
    run(s, &other);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    add_secret("old", "old");
    add_secret("new", "new");
    TEST(adding_a_passphrase);
    TEST(adding_one_in_slot_6);
    TEST(replacing_the_only_one);
    TEST(erasing_one_of_two);
    return test_finish();
}
