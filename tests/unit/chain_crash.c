/* SPDX-License-Identifier: MIT */
/*
 * Commit and rebase survive crashes: whatever of the unflushed writes reaches
 * each of the files, at whatever moment, the guest's bytes through the top
 * image are the same, no image is corrupt, and doing it again completes it.
 *
 * The writes to all files are recorded in the order in which they were done.
 * In a state, each file has some of its own that were not flushed yet.
 */
#include <errno.h>
#include <string.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/record.h"

enum {
    BASE,
    MID,
    TOP,
    NEW,
    N_FILES,
    UNIT = 32 << 10, /* a multiple of all cluster sizes */
    BYTES_MAX = 24 * UNIT,
    ORDER_MAX = 1 << 16,
};

static const char *const names[] = {"base", "mid", "top", "new"};

struct layer {
    const char *format, *option, *value;
    unsigned units; /* size */
};

/* What is done to a chain of base, mid and top. */
static const struct kind {
    const char *name;
    struct layer layers[N_FILES];
    int target; /* of a commit, or the new backing image; -1: none */
    bool rebase;
} kinds[] = {
    {"commit to the backing file",
     {{"raw", NULL, NULL, 20},
      {"qcow2", "cluster_size", "4096", 20},
      {"qcow2", "cluster_size", "4096", 20}},
     MID,
     false},
    {"commit past a layer, growing a raw file",
     {{"raw", NULL, NULL, 9},
      {"qed", "cluster_size", "4096", 12},
      {"qcow2", "extended_l2", "on", 20}},
     BASE,
     false},
    {"commit to a shorter image over a longer one",
     {{"qcow2", "cluster_size", "512", 24},
      {"qcow2", "cluster_size", "16384", 8},
      {"qcow2", "cluster_size", "4096", 20}},
     MID,
     false},
    {"commit from version 2 over a longer image",
     {{"raw", NULL, NULL, 24},
      {"qed", "cluster_size", "8192", 8},
      {"qcow2", "compat", "0.10", 20}},
     MID,
     false},
    {"commit to a shorter QED image over a longer one",
     {{"raw", NULL, NULL, 24},
      {"qed", "cluster_size", "4096", 8},
      {"qcow2", "cluster_size", "4096", 20}},
     MID,
     false},
    {"rebase to another chain",
     {{"raw", NULL, NULL, 12},
      {"qcow2", "cluster_size", "4096", 15},
      {"qcow2", "cluster_size", "4096", 20},
      {"raw", NULL, NULL, 24}},
     NEW,
     true},
    {"rebase within the chain",
     {{"qcow2", "cluster_size", "512", 24},
      {"qed", "cluster_size", "4096", 15},
      {"qcow2", "extended_l2", "on", 20}},
     BASE,
     true},
    {"rebase version 2 from a shorter image to a longer one",
     {{"raw", NULL, NULL, 12},
      {"qcow2", "cluster_size", "4096", 8},
      {"qcow2", "compat", "0.10", 20},
      {"raw", NULL, NULL, 24}},
     NEW,
     true},
    {"flatten",
     {{"raw", NULL, NULL, 12},
      {"qcow2", "cluster_size", "4096", 15},
      {"qed", "cluster_size", "4096", 20}},
     -1,
     true},
};

static struct rhea_error err;

/* All writes of all files, in order: which file's. */
static struct record_log logs[N_FILES];
static unsigned char order[ORDER_MAX];
static size_t n_order;

/* Passes everything on to a recorder, and notes when the log grew. */
struct ticket {
    struct rhea_storage head;
    struct rhea_storage *inner;
    int file; /* -1: INNER is only lent, and not recorded */
};

static struct rhea_storage *ticket_inner(struct rhea_storage *s)
{
    return ((struct ticket *)s)->inner;
}

static int ticket_note(struct rhea_storage *s, size_t before, int ret)
{
    int file = ((struct ticket *)s)->file;

    if (file < 0)
        return ret;
    for (; before < logs[file].n_ops; before++) {
        if (CHECK(n_order < ORDER_MAX))
            order[n_order++] = (unsigned char)file;
    }
    return ret;
}

static size_t ticket_count(const struct rhea_storage *s)
{
    int file = ((const struct ticket *)s)->file;

    return file < 0 ? 0 : logs[file].n_ops;
}

static int64_t ticket_pread(struct rhea_storage *s, void *buf, size_t len,
                            uint64_t offset, struct rhea_error *e)
{
    s = ticket_inner(s);
    return s->ops->pread(s, buf, len, offset, e);
}

static int ticket_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *e)
{
    size_t n = ticket_count(s);

    return ticket_note(
        s, n, rhea_storage_write(ticket_inner(s), buf, len, offset, e));
}

static int ticket_flush(struct rhea_storage *s, struct rhea_error *e)
{
    size_t n = ticket_count(s);

    return ticket_note(s, n, rhea_storage_flush(ticket_inner(s), e));
}

static int ticket_size(struct rhea_storage *s, uint64_t *size,
                       struct rhea_error *e)
{
    return rhea_storage_size(ticket_inner(s), size, e);
}

static int ticket_truncate(struct rhea_storage *s, uint64_t size,
                           struct rhea_error *e)
{
    size_t n = ticket_count(s);

    return ticket_note(s, n, rhea_storage_truncate(ticket_inner(s), size, e));
}

static int ticket_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool punch, struct rhea_error *e)
{
    size_t n = ticket_count(s);

    return ticket_note(
        s, n, rhea_storage_zero(ticket_inner(s), offset, len, punch, e));
}

static int ticket_allocate(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, struct rhea_error *e)
{
    size_t n = ticket_count(s);

    return ticket_note(s, n,
                       rhea_storage_allocate(ticket_inner(s), offset, len, e));
}

static void ticket_close(struct rhea_storage *s)
{
    if (((struct ticket *)s)->file >= 0)
        rhea_storage_close(ticket_inner(s));
    free(s);
}

static const struct rhea_storage_ops ticket_ops = {
    .name = "ticket",
    .pread = ticket_pread,
    .pwrite = ticket_pwrite,
    .flush = ticket_flush,
    .size = ticket_size,
    .truncate = ticket_truncate,
    .zero = ticket_zero,
    .allocate = ticket_allocate,
    .close = ticket_close,
};

static struct rhea_storage *ticket_open(struct rhea_storage *memory, int file)
{
    struct ticket *t = calloc(1, sizeof(*t));

    if (!CHECK(t) ||
        !CHECK_OK(record_open(&t->inner, memory, &logs[file], &err), &err))
        exit(99);
    t->head.ops = &ticket_ops;
    t->head.writable = true;
    t->file = file;
    return &t->head;
}

static struct rhea_storage *ticket_lend(struct rhea_storage *memory)
{
    struct ticket *t = calloc(1, sizeof(*t));

    if (!CHECK(t))
        exit(99);
    t->head.ops = &ticket_ops;
    t->head.writable = true;
    t->inner = memory;
    t->file = -1;
    return &t->head;
}

/* A set of files as the chain finds them; what a chain uses becomes NULL. */
struct files {
    struct rhea_storage *s[N_FILES];
};

static void files_close(struct files *f)
{
    for (int i = 0; i < N_FILES; i++)
        rhea_storage_close(f->s[i]);
}

static struct files files_clone(const struct files *from)
{
    struct files f = {{NULL}};

    for (int i = 0; i < N_FILES; i++) {
        if (from->s[i])
            CHECK_OK(memory_snapshot(&f.s[i], from->s[i], &err), &err);
    }
    return f;
}

/* The image in FILE with all that is below it, by what the headers say. */
static struct rhea_image *chain_open(const struct kind *k, struct files *f,
                                     int file, unsigned flags)
{
    struct rhea_format_info info;
    struct rhea_image *image;
    int below = 0;

    if (!CHECK_OK(rhea_image_open_storage(&image, rhea_steal(f->s[file]),
                                          names[file], k->layers[file].format,
                                          flags | RHEA_IMAGE_NO_BACKING, &err),
                  &err))
        return NULL;
    image->blind = false;
    rhea_image_info(image, &info);
    if (!info.backing_file)
        return image;
    while (strcmp(names[below], info.backing_file) != 0)
        below++;
    image->backing = chain_open(k, f, below, flags);
    if (!image->backing) {
        rhea_image_close(image, NULL);
        return NULL;
    }
    image->format->below = image_read_below;
    image->format->below_opaque = image->backing;
    return image;
}

static struct rhea_storage *layer_make(const struct layer *l, int below)
{
    const struct rhea_format_ops *ops = rhea_format_find(l->format);
    struct rhea_option option = {l->option, l->value};
    struct rhea_create how = {
        .size = (uint64_t)l->units * UNIT,
        .options = &option,
        .n_options = l->option ? 1 : 0,
    };
    struct rhea_storage *s;

    if (below >= 0) {
        how.backing_file = names[below];
        how.backing_format = "raw"; /* the test knows better */
    }
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err) ||
        !CHECK_OK(ops->create(s, &how, &err), &err))
        exit(99);
    return s;
}

/* Some data, some zeroes, and holes. */
static void layer_fill(const struct layer *l, struct rhea_storage *s, int file,
                       uint64_t *random)
{
    static unsigned char bytes[UNIT];
    struct rhea_format *f;

    if (!CHECK_OK(rhea_format_open_over(rhea_format_find(l->format), &f, s,
                                        RHEA_FORMAT_WRITE, &err),
                  &err))
        exit(99);
    for (uint64_t at = 0; at < f->size; at += UNIT) {
        uint64_t what = test_random(random) % 6;

        memset(bytes, (int)(file * 60 + test_random(random) % 50 + 1), UNIT);
        if (what < 3)
            CHECK_OK(f->ops->write(f, at, bytes, UNIT, &err), &err);
        else if (what == 3 && file != BASE)
            CHECK_OK(f->ops->write_zeroes(f, at, UNIT, true, &err), &err);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
}

static struct files files_make(const struct kind *k, uint64_t *random)
{
    struct files f = {{NULL}};

    for (int i = 0; i < N_FILES; i++) {
        if (!k->layers[i].units)
            continue;
        f.s[i] = layer_make(&k->layers[i], i == MID || i == TOP ? i - 1 : -1);
        layer_fill(&k->layers[i], f.s[i], i, random);
    }
    return f;
}

static struct rhea_image *chain_find(struct rhea_image *image, int file)
{
    while (image && strcmp(rhea_image_filename(image), names[file]) != 0)
        image = rhea_image_backing(image);
    return image;
}

/* The commit or rebase. */
static void kind_do(const struct kind *k, struct files *f)
{
    struct rhea_commit_options commit = {.empty = k->target == MID};
    struct rhea_rebase_options rebase = {
        .file = k->target < 0 ? NULL : names[k->target],
        .format = k->target < 0 ? NULL : "raw",
    };
    struct files others = files_clone(f);
    struct rhea_image *top = chain_open(k, f, TOP, RHEA_IMAGE_WRITE);
    struct rhea_image *below = NULL;

    if (!top)
        return files_close(&others);
    if (!k->rebase) {
        CHECK_OK(
            rhea_convert_commit(top, chain_find(top, k->target), &commit, &err),
            &err);
    } else {
        if (k->target >= 0)
            below = chain_open(k, &others, k->target, 0);
        CHECK_OK(rhea_convert_rebase(top, below, &rebase, &err), &err);
    }
    rhea_image_close(below, NULL);
    CHECK_OK(rhea_image_close(top, &err), &err);
    files_close(&others);
}

static bool chain_is_sound(struct rhea_image *image)
{
    for (; image; image = rhea_image_backing(image)) {
        struct rhea_format *f = rhea_image_format(image);
        struct rhea_check check = {0};
        struct rhea_format_info info;

        rhea_image_info(image, &info);
        if (!f->ops->check || info.dirty)
            continue;
        if (!CHECK_OK(f->ops->check(f, 0, &check, &err), &err) ||
            !CHECK_EQ(check.corruptions + check.errors, 0))
            return false;
    }
    return true;
}

/* What the guest sees through the image in FILE; F stays the caller's. */
static bool chain_read(const struct kind *k, const struct files *f, int file,
                       unsigned char *buf)
{
    struct files copy = files_clone(f);
    struct rhea_image *image = chain_open(k, &copy, file, 0);
    bool good = image && chain_is_sound(image);

    memset(buf, 0, BYTES_MAX);
    if (good)
        good =
            CHECK_OK(rhea_image_read(image, buf, (size_t)rhea_image_size(image),
                                     0, &err),
                     &err);
    rhea_image_close(image, NULL);
    files_close(&copy);
    return good;
}

/* What stays of each file when the first N writes of all were begun. */
static struct files state_build(struct crash *crashes, size_t n, unsigned how,
                                uint64_t *random)
{
    struct files f = {{NULL}};
    size_t to[N_FILES] = {0};

    for (size_t i = 0; i < n; i++)
        to[order[i]]++;
    for (unsigned i = 0; i < N_FILES; i++) {
        struct crash_state state = {.kind = CRASH_PREFIX, .to = to[i]};
        size_t from = to[i];

        if (!crashes[i].initial)
            continue;
        while (from && logs[i].ops[from - 1].kind != RECORD_FLUSH)
            from--;
        /* 0: all; 1 to N: not what is unflushed of one file; else: some. */
        if (how == i + 1)
            state.to = from;
        if (how > N_FILES && from < to[i]) {
            state.kind = CRASH_SUBSET;
            state.seed = test_random(random);
        }
        state.from = RHEA_MIN(from, state.to);
        CHECK_OK(crash_build(&crashes[i], &state, &f.s[i], &err), &err);
    }
    return f;
}

static bool state_is_good(const struct kind *k, struct files *state,
                          const unsigned char *want)
{
    static unsigned char got[BYTES_MAX];

    return chain_read(k, state, TOP, got) &&
           CHECK(!memcmp(got, want, BYTES_MAX));
}

static void crash_points(const struct kind *k, struct crash *crashes,
                         const unsigned char *want, uint64_t *random)
{
    size_t step = n_order / 150 + 1;
    bool good = true;

    for (size_t n = 0; n <= n_order && good; n += step) {
        for (unsigned how = 0; how < N_FILES + 4 && good; how++) {
            struct files state = state_build(crashes, n, how, random);

            good = state_is_good(k, &state, want);
            files_close(&state);
            if (!good)
                printf("# %s: after %zu of %zu writes, way %u\n", k->name, n,
                       n_order, how);
        }
    }
}

/* After a commit: all that the top image showed. */
static bool target_holds(const struct kind *k, const struct files *f,
                         const unsigned char *want)
{
    static unsigned char got[BYTES_MAX];

    return chain_read(k, f, k->target, got) &&
           !memcmp(got, want, (size_t)k->layers[TOP].units * UNIT);
}

/* After a crash the same is done again, and completes it. */
static void crash_and_again(const struct kind *k, struct crash *crashes,
                            const unsigned char *want, uint64_t *random)
{
    static unsigned char got[BYTES_MAX];

    for (unsigned i = 0; i < 8; i++) {
        size_t n = test_random(random) % (n_order + 1);
        struct files state = state_build(crashes, n, N_FILES + 1, random);
        struct files lent = {{NULL}};

        for (int file = 0; file < N_FILES; file++) {
            if (state.s[file])
                lent.s[file] = ticket_lend(state.s[file]);
        }
        kind_do(k, &lent);
        files_close(&lent);
        CHECK(chain_read(k, &state, TOP, got) && !memcmp(got, want, BYTES_MAX));
        if (!k->rebase)
            CHECK(target_holds(k, &state, want));
        files_close(&state);
    }
}

static void run_once(const struct kind *k, uint64_t seed)
{
    static unsigned char want[BYTES_MAX], got[BYTES_MAX];
    struct crash crashes[N_FILES] = {{0}};
    uint64_t random = seed;
    struct files before = files_make(k, &random), work, after = {{NULL}};

    n_order = 0;
    CHECK(chain_read(k, &before, TOP, want));
    work = files_clone(&before);
    for (int i = 0; i < N_FILES; i++) {
        if (before.s[i])
            work.s[i] = ticket_open(work.s[i], i);
    }
    kind_do(k, &work);
    files_close(&work);
    for (int i = 0; i < N_FILES; i++) {
        if (before.s[i])
            CHECK_OK(crash_init(&crashes[i], before.s[i], &logs[i], &err),
                     &err);
    }
    crash_points(k, crashes, want, &random);

    after = state_build(crashes, n_order, 0, &random);
    CHECK(chain_read(k, &after, TOP, got) && !memcmp(got, want, BYTES_MAX));
    if (!k->rebase)
        CHECK(target_holds(k, &after, want));
    files_close(&after);
    crash_and_again(k, crashes, want, &random);
    for (int i = 0; i < N_FILES; i++) {
        crash_finish(&crashes[i]);
        record_log_finish(&logs[i]);
        logs[i] = (struct record_log){0};
    }
    files_close(&before);
}

static void run_kinds(bool rebase)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        for (uint64_t seed = 1; seed <= 6 && kinds[i].rebase == rebase; seed++)
            run_once(&kinds[i], seed);
    }
}

static void a_crash_during_commit_changes_no_guest_byte(void)
{
    run_kinds(false);
}

static void a_crash_during_rebase_changes_no_guest_byte(void)
{
    run_kinds(true);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_during_commit_changes_no_guest_byte);
    TEST(a_crash_during_rebase_changes_no_guest_byte);
    return test_finish();
}
