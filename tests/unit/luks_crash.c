/* SPDX-License-Identifier: MIT */
/*
 * Changing passphrases survives crashes: whatever reaches the disk, one of the
 * passphrases unlocks the image, one that was not touched always does, and the
 * guest's bytes are what they were.
 */
#include <errno.h>
#include <rhea/format.h>
#include <rhea/secret.h>

#include "base/checked.h"
#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/record.h"

static struct rhea_error err;
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
    static const struct rhea_option options[] = {{"key-secret", "old"},
                                                 {"iter-time", "1"},
                                                 {"cipher-alg", "aes-128"},
                                                 {"cipher-mode", "cbc"},
                                                 {"hash-alg", "sha1"}};
    struct rhea_create how = {.size = 4096,
                              .options = options,
                              .n_options = RHEA_ARRAY_SIZE(options)};
    struct rhea_storage *s = NULL;
    struct rhea_format *f;

    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    CHECK_OK(rhea_format_find("luks")->create(s, &how, &err), &err);
    f = open_by(s, "old", RHEA_FORMAT_WRITE);
    if (!CHECK(f != NULL))
        exit(99);
    CHECK_OK(f->ops->write(f, 100, text, sizeof(text), &err), &err);
    CHECK_OK(f->ops->close(f, &err), &err);
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
    CHECK_OK(f->ops->close(f, &err), &err);
}

static void judge(struct crash *crash, const struct crash_state *state,
                  const struct change *change)
{
    struct rhea_storage *s = NULL;
    char name[80];

    if (!CHECK_OK(crash_build(crash, state, &s, &err), &err))
        return;
    bool old = unlocks(s, "old");
    if (!CHECK(old || (!change->old_stays && unlocks(s, "new")))) {
        crash_describe(state, name, sizeof(name));
        printf("# %s: %s\n", change->name, name);
    }
    rhea_storage_close(s);
}

static void run(struct rhea_storage *s, const struct change *change)
{
    static const struct crash_limits limits = {
        .seed = 1, .subsets = 2, .torn = 6, .orders = 1};
    struct rhea_storage *before = NULL, *recorder = NULL;
    struct record_log log = {0};
    struct crash crash = {0};
    struct crash_plan plan = {0};

    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    amend(recorder, change->words);
    if (!CHECK(unlocks(recorder, change->after)))
        printf("# %s\n", change->name);
    CHECK_OK(crash_init(&crash, before, &log, &err), &err);
    CHECK_OK(crash_plan(&log, &limits, &plan, &err), &err);
    for (size_t i = 0; i < plan.n_states; i++)
        judge(&crash, &plan.states[i], change);
    printf("# %s: %zu states\n", change->name, plan.n_states);
    crash_plan_finish(&plan);
    crash_finish(&crash);
    record_log_finish(&log);
    rhea_storage_close(recorder);
    rhea_storage_close(before);
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
