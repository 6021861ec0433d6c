/* SPDX-License-Identifier: MIT */
/*
 * A crash during a change of a whole bundle, of its snapshots or its size,
 * leaves the disk as it was or as it was to be, and every snapshot that its
 * descriptor has as it was.
 *
 * A folder is kept in memory. Each of its files records its writes by itself.
 * What is done to the folder (a file is made, replaced, removed) divides the
 * change into steps; a crash is in one of them, each file at any point of what
 * it did in that step, and of what it did not flush any part survives.
 */
#include <errno.h>
#include <rhea/format.h>

#include "base/checked.h"
#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/record.h"

enum {
    FILES_MAX = 40,
    STEPS_MAX = 100,
    SECTOR = 512,
    SIZE = 400 * SECTOR,
    LARGEST = 2 * SIZE,
    STATES = 60, /* of each step */
};

static struct rhea_error err;
static uint64_t rng = 1;

/* --- A folder ------------------------------------------------------------- */

struct file {
    char name[128];
    struct rhea_storage *initial, *recorder; /* the recorder owns its storage */
    struct record_log log;
    size_t made, removed; /* before which step; SIZE_MAX: never */
};

struct step {
    size_t n_ops[FILES_MAX]; /* done when it begins */
    char *descriptor;        /* during it */
};

struct folder {
    struct file files[FILES_MAX];
    size_t n;
    struct step steps[STEPS_MAX];
    size_t n_steps;
    char *descriptor;
    struct rhea_files ops;
};

static struct file *folder_find(struct folder *d, const char *name)
{
    for (size_t i = 0; i < d->n; i++)
        if (strcmp(d->files[i].name, name) == 0 &&
            d->files[i].removed == SIZE_MAX)
            return &d->files[i];
    return NULL;
}

/* Another step begins. */
static void folder_step(struct folder *d)
{
    if (!CHECK(d->n_steps < STEPS_MAX))
        exit(99);
    struct step *step = &d->steps[d->n_steps++];
    for (size_t i = 0; i < d->n; i++)
        step->n_ops[i] = d->files[i].log.n_ops;
    step->descriptor = strdup(d->descriptor);
}

static int folder_open(void *opaque, const char *name, bool write,
                       struct rhea_storage **out, struct rhea_error *e)
{
    struct file *file = folder_find(opaque, name);
    (void)write;
    if (!file)
        return rhea_error_set(e, ENOENT, "there is no '%s'", name);
    *out = file->recorder;
    return 0;
}

static int folder_create(void *opaque, const char *name,
                         struct rhea_storage **out, struct rhea_error *e)
{
    struct folder *d = opaque;
    struct rhea_storage *s;
    (void)e;
    if (!CHECK(d->n < FILES_MAX) || !CHECK(!folder_find(d, name)))
        exit(99);
    struct file *file = &d->files[d->n++];
    *file = (struct file){.made = d->n_steps, .removed = SIZE_MAX};
    snprintf(file->name, sizeof(file->name), "%s", name);
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    CHECK_OK(memory_snapshot(&file->initial, s, &err), &err);
    CHECK_OK(record_open(&file->recorder, s, &file->log, &err), &err);
    folder_step(d);
    *out = file->recorder;
    return 0;
}

static int folder_replace(void *opaque, const char *name, const void *data,
                          size_t len, struct rhea_error *e)
{
    struct folder *d = opaque;
    (void)e;
    CHECK(name == NULL);
    free(d->descriptor);
    d->descriptor = strndup(data, len);
    folder_step(d);
    return 0;
}

static int folder_remove(void *opaque, const char *name, struct rhea_error *e)
{
    struct folder *d = opaque;
    struct file *file = folder_find(d, name);
    (void)e;
    if (CHECK(file != NULL))
        file->removed = d->n_steps;
    folder_step(d);
    return 0;
}

static struct folder *folder_new(const char *descriptor)
{
    struct folder *d = calloc(1, sizeof(*d));
    if (!d)
        exit(99);
    d->descriptor = strdup(descriptor);
    d->ops = (struct rhea_files){.open = folder_open,
                                 .create = folder_create,
                                 .replace = folder_replace,
                                 .remove = folder_remove,
                                 .opaque = d};
    return d;
}

static void folder_add(struct folder *d, const char *name,
                       struct rhea_storage *contents)
{
    struct file *file = &d->files[d->n++];
    struct rhea_storage *s;
    *file = (struct file){.removed = SIZE_MAX};
    snprintf(file->name, sizeof(file->name), "%s", name);
    CHECK_OK(memory_snapshot(&file->initial, contents, &err), &err);
    CHECK_OK(memory_snapshot(&s, contents, &err), &err);
    CHECK_OK(record_open(&file->recorder, s, &file->log, &err), &err);
}

static void folder_free(struct folder *d)
{
    for (size_t i = 0; i < d->n; i++) {
        rhea_storage_close(d->files[i].recorder);
        rhea_storage_close(d->files[i].initial);
        record_log_finish(&d->files[i].log);
    }
    for (size_t i = 0; i < d->n_steps; i++)
        free(d->steps[i].descriptor);
    free(d->descriptor);
    free(d);
}

/* As it is now, with nothing recorded yet; D is gone. */
static struct folder *folder_settled(struct folder *d)
{
    struct folder *new = folder_new(d->descriptor);
    for (size_t i = 0; i < d->n; i++)
        if (d->files[i].removed == SIZE_MAX)
            folder_add(new, d->files[i].name, d->files[i].recorder);
    folder_free(d);
    folder_step(new);
    return new;
}

/* --- Its bundle ----------------------------------------------------------- */

static const struct rhea_format_ops *ops(void)
{
    return rhea_format_find("parallels");
}

static struct rhea_format *
bundle_open(struct folder *d, struct rhea_storage **descriptor, unsigned flags)
{
    struct rhea_format *f = NULL;
    CHECK_OK(rhea_memory_open(descriptor, INT64_MAX, &err), &err);
    CHECK_OK(rhea_storage_write(*descriptor, d->descriptor,
                                strlen(d->descriptor), 0, &err),
             &err);
    const struct rhea_format_open how = {
        .storage = *descriptor, .flags = flags, .files = &d->ops};
    return CHECK_OK(ops()->open(&f, &how, &err), &err) ? f : NULL;
}

static void bundle_read(struct rhea_format *f, uint8_t *guest)
{
    for (uint64_t at = 0; at < f->size;) {
        struct rhea_extent x;
        if (!CHECK_OK(f->ops->map(f, at, f->size - at, &x, &err), &err))
            return;
        memset(guest + at, 0, (size_t)x.length);
        if (x.kind == RHEA_EXTENT_DATA)
            CHECK_OK(rhea_storage_read_padded(x.storage, guest + at,
                                              (size_t)x.length, x.host, &err),
                     &err);
        at += x.length;
    }
}

/* What the disk, or a snapshot of it, holds. */
struct state {
    char name[16];
    uint64_t size;
    uint8_t guest[LARGEST];
};

/* What is right: the disk's state before and after, and all snapshots that
 * there may be. */
struct truth {
    struct state before, after;
    struct state snapshots[4];
    size_t n_snapshots;
};

static bool state_is(const struct state *s, const struct rhea_format *f,
                     const uint8_t *guest)
{
    return f->size == s->size && memcmp(guest, s->guest, s->size) == 0;
}

/* A snapshot whose deletion was cut short cannot be read. */
static bool judge_temporary(struct folder *d, const char *id)
{
    struct rhea_storage *descriptor;
    struct rhea_format *f = bundle_open(d, &descriptor, 0);
    bool good = CHECK(f != NULL) &&
                CHECK_EQ(f->ops->snapshot_load(f, id, &err), -EINVAL);
    if (f)
        f->ops->close(f, NULL);
    rhea_storage_close(descriptor);
    return good;
}

static bool judge_snapshots(struct folder *d, struct rhea_format *f,
                            const struct truth *t)
{
    static uint8_t guest[LARGEST];
    struct rhea_snapshot *list = NULL;
    size_t n = 0;
    bool good = CHECK_OK(f->ops->snapshot_list(f, &list, &n, &err), &err);
    for (size_t i = 0; good && i < n; i++) {
        struct rhea_storage *descriptor;
        const struct state *s = NULL;
        if (strcmp(list[i].name, list[i].id) == 0) {
            good = judge_temporary(d, list[i].id);
            continue;
        }
        struct rhea_format *one = bundle_open(d, &descriptor, 0);
        for (size_t k = 0; k < t->n_snapshots; k++)
            if (strcmp(t->snapshots[k].name, list[i].name) == 0)
                s = &t->snapshots[k];
        good = CHECK(s != NULL) && CHECK(one != NULL) &&
               CHECK_OK(one->ops->snapshot_load(one, list[i].id, &err), &err);
        if (good) {
            bundle_read(one, guest);
            good = CHECK(state_is(s, one, guest));
        }
        if (one)
            one->ops->close(one, NULL);
        rhea_storage_close(descriptor);
    }
    rhea_snapshots_free(list, n);
    return good;
}

static bool judge(struct folder *d, const struct truth *t)
{
    static uint8_t guest[LARGEST];
    struct rhea_storage *descriptor;
    struct rhea_check check = {0};
    struct rhea_format *f = bundle_open(d, &descriptor, 0);
    if (!f) {
        rhea_storage_close(descriptor);
        return false;
    }
    bundle_read(f, guest);
    bool good = CHECK(state_is(&t->before, f, guest) ||
                      state_is(&t->after, f, guest)) &&
                judge_snapshots(d, f, t) &&
                CHECK_OK(f->ops->check(f, 0, &check, &err), &err);
    f->ops->close(f, NULL);
    rhea_storage_close(descriptor);
    /* A file that is written to was not closed. */
    return good && CHECK(check.corruptions <= d->n && check.errors == 0);
}

/* --- Crashes -------------------------------------------------------------- */

/* FILE at random, with some of OPS done. */
static struct rhea_storage *crash_file(struct file *file, size_t ops_done)
{
    struct crash crash = {0};
    struct rhea_storage *out = NULL;
    struct crash_state state = {.kind = CRASH_PREFIX, .to = ops_done};
    for (size_t i = 0; i < ops_done; i++)
        if (file->log.ops[i].kind == RECORD_FLUSH)
            state.from = i + 1;
    uint64_t kind = test_random(&rng) % 4;
    state.seed = test_random(&rng);
    if (kind < 2 && state.from < state.to)
        state.kind = CRASH_SUBSET;
    if (kind == 2)
        state.to = state.from; /* nothing that was not flushed */
    CHECK_OK(crash_init(&crash, file->initial, &file->log, &err), &err);
    if (!CHECK_OK(crash_build(&crash, &state, &out, &err), &err))
        exit(99);
    crash_finish(&crash);
    return out;
}

/* D as a crash in step STEP can leave it. */
static struct folder *crash_folder(struct folder *d, size_t step)
{
    struct folder *out = folder_new(d->steps[step].descriptor);
    for (size_t i = 0; i < d->n; i++) {
        struct file *file = &d->files[i];
        if (file->made > step || file->removed <= step)
            continue;
        size_t least = d->steps[step].n_ops[i];
        size_t most = step + 1 < d->n_steps ? d->steps[step + 1].n_ops[i]
                                            : file->log.n_ops;
        size_t at = test_random(&rng) % 3 == 0
                        ? most
                        : least + test_random(&rng) % (most - least + 1);
        struct rhea_storage *s = crash_file(file, at);
        folder_add(out, file->name, s);
        rhea_storage_close(s);
    }
    folder_step(out);
    return out;
}

static void crash_everywhere(struct folder *d, const struct truth *t)
{
    for (size_t step = 0; step < d->n_steps; step++)
        for (unsigned i = 0; i < STATES; i++) {
            uint64_t seed = rng;
            struct folder *crashed = crash_folder(d, step);
            bool good = judge(crashed, t);
            folder_free(crashed);
            if (!good) {
                printf("# in step %zu of %zu, seed %" PRIu64 "\n", step,
                       d->n_steps, seed);
                return;
            }
        }
}

/* --- Histories ------------------------------------------------------------ */

struct history {
    struct folder *d;
    struct truth truth;
};

static void history_read(struct history *h, struct state *s)
{
    struct rhea_storage *descriptor;
    struct rhea_format *f = bundle_open(h->d, &descriptor, 0);
    if (!f)
        exit(99);
    s->size = f->size;
    bundle_read(f, s->guest);
    f->ops->close(f, NULL);
    rhea_storage_close(descriptor);
}

static void history_begin(struct history *h, const char *split,
                          const char *type)
{
    const struct rhea_option options[] = {
        {"bundle", "on"},
        {"cluster_size", "4k"},
        {"type", type},
        {"split", split ? split : "1M"},
    };
    const struct rhea_create how = {
        .size = SIZE, .options = options, .n_options = 4, .files = NULL};
    struct rhea_create own = how;
    struct rhea_storage *s;
    char *text = NULL;
    uint64_t size = 0;
    memset(h, 0, sizeof(*h));
    h->d = folder_new("");
    own.files = &h->d->ops;
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    CHECK_OK(ops()->create(s, &own, &err), &err);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    text = calloc(1, size + 1);
    CHECK_OK(rhea_storage_read(s, text, size, 0, &err), &err);
    free(h->d->descriptor);
    h->d->descriptor = text;
    rhea_storage_close(s);
    h->d = folder_settled(h->d);
}

static void history_write(struct history *h, unsigned n)
{
    struct rhea_storage *descriptor;
    struct rhea_format *f = bundle_open(h->d, &descriptor, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; f && i < n; i++) {
        uint8_t bytes[20 * SECTOR];
        uint64_t count = 1 + test_random(&rng) % 20;
        uint64_t at = test_random(&rng) % (f->size / SECTOR - count);
        memset(bytes, (int)test_random(&rng), sizeof(bytes));
        if (i % 4 == 3)
            CHECK_OK(f->ops->write_zeroes(f, at * SECTOR, count * SECTOR, true,
                                          &err),
                     &err);
        else
            CHECK_OK(f->ops->write(f, at * SECTOR, bytes,
                                   (size_t)count * SECTOR, &err),
                     &err);
    }
    if (f)
        CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(descriptor);
}

enum what { CREATE, APPLY, DELETE, RESIZE };

static int change_do(struct rhea_format *f, enum what what, const char *name,
                     uint64_t size)
{
    const struct rhea_snapshot snapshot = {.name = (char *)name};
    const struct rhea_resize resize = {.size = size, .shrink = true};
    return what == CREATE   ? f->ops->snapshot_create(f, &snapshot, &err)
           : what == APPLY  ? f->ops->snapshot_apply(f, name, &err)
           : what == DELETE ? f->ops->snapshot_delete(f, name, &err)
                            : f->ops->resize(f, &resize, &err);
}

/* Make one change, and look at every crash of it. */
static void history_change(struct history *h, enum what what, const char *name,
                           uint64_t size)
{
    struct rhea_storage *descriptor;
    h->d = folder_settled(h->d);
    history_read(h, &h->truth.before);
    if (what == CREATE) {
        struct state *s = &h->truth.snapshots[h->truth.n_snapshots++];
        *s = h->truth.before;
        snprintf(s->name, sizeof(s->name), "%s", name);
    }
    struct rhea_format *f = bundle_open(h->d, &descriptor, RHEA_FORMAT_WRITE);
    if (f) {
        CHECK_OK(change_do(f, what, name, size), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
    }
    rhea_storage_close(descriptor);
    history_read(h, &h->truth.after);
    if (what == CREATE || what == DELETE)
        CHECK(h->truth.before.size == h->truth.after.size &&
              memcmp(h->truth.before.guest, h->truth.after.guest, SIZE) == 0);
    crash_everywhere(h->d, &h->truth);
}

/* A little of everything, so that snapshots merge up and down. */
static void history_run(const char *split, const char *type)
{
    static struct history h;
    history_begin(&h, split, type);
    history_write(&h, 12);
    history_change(&h, CREATE, "one", 0);
    history_write(&h, 2);
    history_change(&h, CREATE, "two", 0);
    history_write(&h, 30);
    history_change(&h, CREATE, "three", 0);
    history_write(&h, 3);
    history_change(&h, DELETE, "two", 0);
    history_change(&h, APPLY, "one", 0);
    history_write(&h, 2);
    history_change(&h, APPLY, "three", 0);
    history_write(&h, 2);
    history_change(&h, DELETE, "one", 0);
    history_change(&h, DELETE, "three", 0);
    folder_free(h.d);
}

static void a_disk_of_one_file_survives(void)
{
    history_run(NULL, "expanding");
}

static void a_split_disk_survives(void)
{
    history_run("100k", "expanding");
}

static void a_plain_disk_survives(void)
{
    history_run(NULL, "plain");
    history_run("60k", "plain");
}

static void a_resized_disk_survives(void)
{
    static const struct {
        const char *split, *type;
    } kinds[] = {{NULL, "expanding"},
                 {"100k", "expanding"},
                 {NULL, "plain"},
                 {"100k", "plain"}};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        static struct history h;
        history_begin(&h, kinds[i].split, kinds[i].type);
        history_write(&h, 20);
        history_change(&h, RESIZE, NULL, SIZE + 30 * SECTOR);
        history_write(&h, 20);
        history_change(&h, RESIZE, NULL, SIZE + 3 * SECTOR);
        history_change(&h, RESIZE, NULL, 2 * SIZE);
        folder_free(h.d);
    }
}

/* --- Bitmaps of split disks ------------------------------------------------
 */

enum { GRANULE = 2048, BITS = SIZE / GRANULE, BYTES = (BITS + 7) / 8 };
static const char bitmap_name[] = "00000000-0000-4000-8000-000000000001";

/* Each flush of any file begins a step, for the order between files counts. */
static const struct rhea_storage_ops *recorder_ops;
static struct rhea_storage_ops stepping_ops;
static struct folder *stepping;

static int stepping_flush(struct rhea_storage *s, struct rhea_error *e)
{
    int ret = recorder_ops->flush(s, e);
    if (!ret)
        folder_step(stepping);
    return ret;
}

static void step_by_flushes(struct folder *d)
{
    stepping = d;
    for (size_t i = 0; i < d->n; i++) {
        if (d->files[i].recorder->ops != &stepping_ops)
            recorder_ops = d->files[i].recorder->ops;
        stepping_ops = *recorder_ops;
        stepping_ops.flush = stepping_flush;
        d->files[i].recorder->ops = &stepping_ops;
    }
}

/* What a bitmap may be; NULL: not there. */
struct bitmap_truth {
    const uint8_t *before, *after;
};

static bool bitmap_judge(struct folder *d, const struct bitmap_truth *t)
{
    uint8_t bits[BYTES];
    struct rhea_storage *descriptor;
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    struct rhea_format *f = bundle_open(d, &descriptor, 0);
    bool good = CHECK(f != NULL) &&
                CHECK_OK(f->ops->bitmap_list(f, &list, &n, &err), &err) &&
                CHECK(n || !t->before || !t->after);
    if (good && n && !list[0].in_use)
        good = CHECK_OK(f->ops->bitmap_load(f, bitmap_name, bits, BYTES, &err),
                        &err) &&
               CHECK((t->before && !memcmp(bits, t->before, BYTES)) ||
                     (t->after && !memcmp(bits, t->after, BYTES)));
    rhea_bitmaps_free(list, n);
    if (f)
        f->ops->close(f, NULL);
    rhea_storage_close(descriptor);
    return good;
}

static void bitmap_crash(struct folder *d, const struct bitmap_truth *t)
{
    for (size_t step = 0; step < d->n_steps; step++)
        for (unsigned i = 0; i < STATES; i++) {
            uint64_t seed = rng;
            struct folder *crashed = crash_folder(d, step);
            bool good = bitmap_judge(crashed, t);
            folder_free(crashed);
            if (!good) {
                printf("# bitmap, step %zu of %zu, seed %" PRIu64 "\n", step,
                       d->n_steps, seed);
                return;
            }
        }
}

/* From BEFORE to AFTER, which a reader finds then. */
static void bitmap_change(struct history *h, const uint8_t *before,
                          const uint8_t *after)
{
    const struct rhea_bitmap what = {
        .name = (char *)bitmap_name, .granularity = GRANULE, .enabled = true};
    const struct bitmap_truth t = {before, after}, done = {after, after};
    struct rhea_storage *descriptor;
    h->d = folder_settled(h->d);
    struct rhea_format *f = bundle_open(h->d, &descriptor, RHEA_FORMAT_WRITE);
    step_by_flushes(h->d);
    if (!before)
        CHECK_OK(f->ops->bitmap_add(f, &what, &err), &err);
    else if (!after)
        CHECK_OK(f->ops->bitmap_remove(f, bitmap_name, &err), &err);
    else
        CHECK_OK(f->ops->bitmap_store(f, bitmap_name, after, BYTES, &err),
                 &err);
    CHECK(h->d->n_steps > 6);
    CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(descriptor);
    bitmap_crash(h->d, &t);
    h->d = folder_settled(h->d);
    f = bundle_open(h->d, &descriptor, 0);
    uint8_t bits[BYTES];
    CHECK_EQ(f->ops->bitmap_load(f, bitmap_name, bits, BYTES, NULL),
             after ? 0 : -ENOENT);
    f->ops->close(f, NULL);
    rhea_storage_close(descriptor);
    CHECK(bitmap_judge(h->d, &done));
}

/* One that is whole is as it was or as it was to be. */
static void a_bitmap_of_a_split_disk_survives(void)
{
    static struct history h;
    uint8_t zero[BYTES] = {0}, one[BYTES], other[BYTES];
    for (unsigned i = 0; i < BITS; i++) {
        one[i / 8] = (uint8_t)(i % 8 ? one[i / 8] : 0) |
                     (uint8_t)((i % 3 == 0) << i % 8);
        other[i / 8] = (uint8_t)(i % 8 ? other[i / 8] : 0) |
                       (uint8_t)((i % 7 < 2) << i % 8);
    }
    history_begin(&h, "70k", "expanding");
    history_write(&h, 12);
    bitmap_change(&h, NULL, zero);
    bitmap_change(&h, zero, one);
    bitmap_change(&h, one, other);
    bitmap_change(&h, other, zero);
    bitmap_change(&h, zero, one);
    bitmap_change(&h, one, NULL);
    folder_free(h.d);
}

/* A crash between the descriptor and the file: who grows it again sees zeroes,
 * not what the file still has. */
static void what_was_cut_off_does_not_come_back(void)
{
    static const char *const types[] = {"expanding", "plain"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(types); i++) {
        static struct history h, small;
        static struct state grown;
        history_begin(&h, NULL, types[i]);
        history_write(&h, 40);
        history_begin(&small, NULL, types[i]);
        history_change(&small, RESIZE, NULL, SIZE / 2);
        free(h.d->descriptor);
        h.d->descriptor = strdup(small.d->descriptor);
        history_read(&h, &h.truth.before);
        CHECK_EQ(h.truth.before.size, SIZE / 2);
        history_change(&h, RESIZE, NULL, SIZE);
        history_read(&h, &grown);
        CHECK_EQ(grown.size, SIZE);
        CHECK_MEM(grown.guest, h.truth.before.guest, SIZE / 2);
        for (size_t at = SIZE / 2; at < SIZE; at++)
            if (!CHECK_EQ(grown.guest[at], 0))
                break;
        folder_free(h.d);
        folder_free(small.d);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_disk_of_one_file_survives);
    TEST(a_split_disk_survives);
    TEST(a_plain_disk_survives);
    TEST(a_resized_disk_survives);
    TEST(a_bitmap_of_a_split_disk_survives);
    TEST(what_was_cut_off_does_not_come_back);
    return test_finish();
}
