/* SPDX-License-Identifier: MIT */
/*
 * What format_crash.h promises, of VHDX, and more: wherever a crash comes, an
 * image whose header names a log has a whole sequence in it (2.3.3 refuses it
 * otherwise), and QEMU brings it into the same order as this program does.
 */
#include "format_crash.h"
#include "format_threads.h"
#include "vhdx_lib.h"

enum { BLOCK = 1 << 20, SPREAD = 100 * SECTOR };

/* Six blocks, and one that nothing is written to. */
#define DISK ((uint64_t)7 * BLOCK)

/* The file has places that nobody uses, with anything in them, for new blocks
 * to go to. */
static void leave_gaps(struct rhea_storage *s, unsigned n)
{
    static uint8_t junk[SPREAD];
    uint64_t end;
    memset(junk, 0xee, sizeof(junk));
    CHECK_OK(rhea_storage_size(s, &end, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, end + n * BLOCK, &err), &err);
    for (unsigned i = 0; i < n; i++)
        CHECK_OK(rhea_storage_write(s, junk, SPREAD, end + i * BLOCK, &err),
                 &err);
}

static struct rhea_storage *make(bool over, uint64_t seed)
{
    const char *options = seed % 3 == 2
                              ? "block_size=1M logical_sector_size=4096"
                          : seed % 4 == 0 ? "block_size=1M block_state_zero=off"
                                          : "block_size=1M";
    struct rhea_storage *s = over ? vhdx_make_child(DISK, options, options)
                                  : vhdx_make(DISK, options, NULL);
    leave_gaps(s, seed % 5 < 2 ? 3 : 0);
    return s;
}

/* A log that is in use is one that can be replayed. */
static bool has_whole_log(struct rhea_storage *state)
{
    struct rhea_format *f = vhdx_open_ok(state, RHEA_FORMAT_CHECK);
    const struct vhdx *v = (const struct vhdx *)f;
    bool good = CHECK(uuid_is_null(v->header.log_guid) || v->overlay);
    image_close_ok(f);
    return good;
}

/* QEMU reads the same; of images that it can open. */
static bool qemu_agrees(struct rhea_storage *state, const struct model *m)
{
    static uint8_t guest[SIZE];
    char *image = strdup(test_path("judged.vhdx"));
    char *raw = strdup(test_path("judged.raw"));
    bool good =
        CHECK_OK(memory_dump(state, image, &err), &err) &&
        CHECK_EQ(test_command("qemu-img check -q -f vhdx -r all %s", image),
                 0) &&
        CHECK_EQ(test_command("qemu-img check -q -f vhdx %s", image), 0) &&
        CHECK_EQ(
            test_command("qemu-img convert -f vhdx -O raw %s %s", image, raw),
            0);
    FILE *file = good ? fopen(raw, "rb") : NULL;
    for (uint64_t at = 0; file && at < SIZE; at += SPREAD) {
        CHECK_EQ(fseek(file, (long)(at / SPREAD * BLOCK), SEEK_SET), 0);
        CHECK_EQ(fread(guest + at, 1, SPREAD, file), SPREAD);
    }
    if (file)
        fclose(file);
    good = good && CHECK(model_holds(m, guest));
    free(image);
    free(raw);
    return good;
}

static bool judge(struct rhea_storage *state, const struct model *m)
{
    (void)m;
    return has_whole_log(state);
}

static bool judge_with_qemu(struct rhea_storage *state, const struct model *m)
{
    return has_whole_log(state) && qemu_agrees(state, m);
}

static struct subject subject = {
    .make = make,
    .tells_unclean = true,
    .spread = SPREAD,
    .pitch = BLOCK,
    .judge = judge,
    .judged = 1,
};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 10; seed++)
        crash_once(&subject, seed, seed % 2);
}

static void qemu_replays_what_a_crash_leaves(void)
{
    struct subject t = subject;
    if (!test_have_program("qemu-img")) {
        test_skip("no qemu-img");
        return;
    }
    t.judge = judge_with_qemu;
    t.judged = 17;
    for (uint64_t seed = 100; seed < 103; seed++)
        if (seed % 3 != 2) /* sectors of 4,096 bytes */
            crash_once(&t, seed, false);
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    faults_everywhere(&subject);
}

static void a_crash_while_it_shrinks_loses_nothing_of_the_rest(void)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        shrink_survives(&subject, seed, seed % 2,
                        seed * BLOCK + SPREAD / 2 / 4096 * 4096);
}

static void threads_share_blocks(void)
{
    threads_share(&subject);
}

/* Of what follows. */
static const struct crash_limits limits = {
    .seed = 7, .subsets = 4, .torn = 1, .orders = 2};

/* --- A ring that is full ------------------------------------------------- */

/* Each is a change of the BAT, and so an entry of the log. */
enum { WRITES = 150 };
static size_t ring_ops[WRITES]; /* when it was flushed */
static unsigned ring_looks;

static bool ring_look(const void *opaque, struct rhea_storage *state,
                      const struct crash_state *s)
{
    uint8_t sector[SECTOR];
    (void)opaque;
    bool good = has_whole_log(state);
    struct rhea_format *f = vhdx_open_ok(state, RHEA_FORMAT_WRITE);
    struct rhea_check check = image_checked(f, 0);
    good = good && CHECK_EQ(check.corruptions + check.errors, 0);
    for (unsigned i = 0; good && i < WRITES; i++) {
        CHECK_OK(image_read(f, sector, SECTOR, (uint64_t)i * BLOCK, 0), &err);
        good = CHECK(sector[0] == i + 1 ||
                     (sector[0] == 0 && ring_ops[i] > s->from));
    }
    image_close_ok(f);
    if (good && ring_looks++ % 40 == 0 && test_have_program("qemu-img")) {
        const char *image = test_path("ring.vhdx");
        good =
            CHECK_OK(memory_dump(state, image, &err), &err) &&
            CHECK_EQ(test_command("qemu-img check -q -f vhdx -r all %s", image),
                     0);
    }
    return good;
}

static void the_log_begins_anew_where_its_ring_ends(void)
{
    struct rhea_storage *s =
        vhdx_make((uint64_t)WRITES * BLOCK, "block_size=1M", NULL);
    struct recording r;
    uint8_t sector[SECTOR];
    recording_begin(&r, s);
    struct rhea_format *f = vhdx_open_ok(r.storage, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; i < WRITES; i++) {
        memset(sector, (int)i + 1, sizeof(sector));
        CHECK_OK(f->ops->write(f, (uint64_t)i * BLOCK, sector, SECTOR, &err),
                 &err);
        CHECK_OK(f->ops->flush(f, &err), &err);
        ring_ops[i] = r.log.n_ops;
    }
    image_close_ok(f);
    /* With entries of two sectors it was full once. */
    CHECK(WRITES * 2 * VHDX_LOG_SECTOR > VHDX_LOG_MIN);
    crash_states("a full ring", &r, &limits, 400, ring_look, NULL);
    recording_end(&r);
}

/* --- More than one entry at once ----------------------------------------- */

/* Each is in a chunk of its own, and so has a bitmap of its own: several
 * entries of the log. */
enum { CHUNKS = 40 };
#define CHUNK ((uint64_t)4 << 30)
static size_t chunks_op; /* when all were flushed */

static bool chunks_look(const void *opaque, struct rhea_storage *state,
                        const struct crash_state *s)
{
    uint8_t sector[SECTOR];
    (void)opaque;
    bool good = has_whole_log(state);
    struct rhea_format *f = vhdx_open_ok(state, RHEA_FORMAT_WRITE);
    struct rhea_check check = image_checked(f, 0);
    good = good && CHECK_EQ(check.corruptions + check.errors, 0);
    for (unsigned i = 0; good && i < CHUNKS; i++) {
        CHECK_OK(image_read(f, sector, SECTOR, i * CHUNK, BELOW), &err);
        good = CHECK(sector[0] == i + 10 ||
                     (sector[0] == BELOW && chunks_op > s->from));
        CHECK_OK(image_read(f, sector, SECTOR, i * CHUNK + SECTOR, BELOW),
                 &err);
        good = good && CHECK_EQ(sector[0], BELOW);
    }
    image_close_ok(f);
    return good;
}

/* Bitmaps whose bits are set, though no block is present: they mean nothing. */
static void set_stale_bits(struct rhea_storage *s)
{
    uint8_t ones[VHDX_LOG_SECTOR];
    uint64_t end;
    CHECK_OK(rhea_storage_size(s, &end, &err), &err);
    memset(ones, 0xff, sizeof(ones));
    struct rhea_format *f = vhdx_open_ok(s, 0);
    const struct vhdx *v = (const struct vhdx *)f;
    for (unsigned i = 0; i < CHUNKS; i++, end += VHDX_BITMAP_BYTES) {
        put_bytes(s, end, ones, sizeof(ones));
        put_le64(s, vhdx_bitmap_place(v, i * CHUNK / BLOCK),
                 end | VHDX_FULLY_PRESENT);
    }
    CHECK_OK(rhea_storage_truncate(s, end, &err), &err);
    image_close_ok(f);
}

static void chunks_once(bool stale)
{
    struct rhea_storage *s =
        vhdx_make_child(CHUNKS * CHUNK, "block_size=2M", "block_size=1M");
    if (stale)
        set_stale_bits(s);
    struct recording r;
    uint8_t sector[SECTOR];
    recording_begin(&r, s);
    struct rhea_format *f = vhdx_open_ok(r.storage, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; i < CHUNKS; i++) {
        memset(sector, (int)i + 10, sizeof(sector));
        CHECK_OK(f->ops->write(f, i * CHUNK, sector, SECTOR, &err), &err);
    }
    CHECK_OK(f->ops->flush(f, &err), &err);
    chunks_op = r.log.n_ops;
    image_close_ok(f);
    crash_states("chunks", &r, &limits, 200, chunks_look, NULL);
    recording_end(&r);
}

static void many_bitmaps_are_written_in_order(void)
{
    chunks_once(false);
    chunks_once(true);
}

/* --- Changes of a whole image -------------------------------------------- */

#define LARGE ((uint64_t)200 << 30)
/* Ends inside of a block, and of what is written of it. */
#define SMALL (3 * BLOCK + SPREAD / 2 / 4096 * 4096)

/* What it is now, before or after the change. */
static struct {
    uint8_t guest[SIZE]; /* where its parent is all nines */
    bool below_shows;
    uint64_t sizes[2];
} whole;

static int change_empty(struct rhea_format *f)
{
    return f->ops->make_empty(f, &err);
}

static int change_none(struct rhea_format *f)
{
    return f->ops->set_backing(f, NULL, NULL, NULL, &err);
}

static struct rhea_format *other;

static int change_other(struct rhea_format *f)
{
    return f->ops->set_backing(f, "../a/rather/long/name/of/a/parent.vhdx",
                               "vhdx", other, &err);
}

static int change_size(struct rhea_format *f, uint64_t size)
{
    struct rhea_resize how = {.size = size};
    return f->ops->resize(f, &how, &err);
}

static int change_grow(struct rhea_format *f)
{
    return change_size(f, DISK + 4 * BLOCK - 4096);
}

static int change_shrink(struct rhea_format *f)
{
    struct rhea_resize how = {.size = SMALL, .shrink = true};
    return f->ops->resize(f, &how, &err);
}

static int change_sector(struct rhea_format *f)
{
    static const struct rhea_option options[] = {
        {"physical_sector_size", "4096"}, {"disk_id", "new"}};
    return f->ops->amend(f, options, 2, false, NULL, &err);
}

static int change_grow_bat(struct rhea_format *f)
{
    return change_size(f, LARGE);
}

/* Where the disk is smaller, it is as whole.guest has it. */
static bool whole_read(struct rhea_format *f, uint8_t *guest)
{
    memcpy(guest, whole.guest, SIZE);
    for (uint64_t at = 0; at < SIZE; at += SPREAD) {
        uint64_t offset = at / SPREAD * BLOCK;
        uint64_t end = RHEA_MIN(offset + SPREAD, f->size);
        if (offset < end &&
            !CHECK_EQ(image_read(f, guest + at, (size_t)(end - offset), offset,
                                 BELOW),
                      0))
            return false;
    }
    return true;
}

/* A sector of the guest's is what it was, or what is below where the change
 * makes it so, or zeroes where there is to be nothing below. */
static bool whole_holds(const uint8_t *guest)
{
    for (uint64_t i = 0; i < SIZE; i += SECTOR) {
        bool same = memcmp(guest + i, whole.guest + i, SECTOR) == 0;
        bool below = whole.below_shows &&
                     (guest[i] == BELOW || guest[i] == 0) &&
                     !memcmp(guest + i, guest + i + 1, SECTOR - 1);
        if (!same && !below) {
            printf("# sector %" PRIu64 " holds %u\n", i / SECTOR, guest[i]);
            return false;
        }
    }
    return true;
}

static bool whole_look(const void *opaque, struct rhea_storage *state,
                       const struct crash_state *s)
{
    static uint8_t guest[SIZE];
    (void)opaque;
    (void)s;
    (void)opaque;
    bool good = has_whole_log(state);
    for (unsigned pass = 0; good && pass < 2; pass++) {
        struct rhea_format *f =
            vhdx_open_ok(state, pass ? RHEA_FORMAT_WRITE : RHEA_FORMAT_CHECK);
        struct rhea_check check = image_checked(f, 0);
        good = CHECK(check.corruptions + check.errors <= !pass) &&
               CHECK(f->size == whole.sizes[0] || f->size == whole.sizes[1]) &&
               CHECK(whole_read(f, guest)) && CHECK(whole_holds(guest));
        image_close_ok(f);
    }
    return good;
}

static void change_once(const char *name, bool child, uint64_t seed,
                        int (*change)(struct rhea_format *f), bool below,
                        uint64_t size)
{
    struct recording r;
    static struct moment moments[64];
    printf("# %s, seed %" PRIu64 "\n", name, seed);
    recording_begin(&r, make(child, seed));
    crash_record(&subject, &r, child, seed, moments);
    recording_again(&r);
    struct rhea_format *f = vhdx_open_ok(r.storage, RHEA_FORMAT_WRITE);
    CHECK_OK(subject_read(&subject, f, whole.guest, true), &err);
    whole.below_shows = below;
    whole.sizes[0] = f->size;
    whole.sizes[1] = size;
    CHECK_OK(change(f), &err);
    image_close_ok(f);
    CHECK(r.log.n_ops > 4);
    crash_states("a change", &r, &limits, 200, whole_look, NULL);
    recording_end(&r);
}

static void changes_of_the_whole_image_survive_crashes(void)
{
    for (uint64_t seed = 1; seed < 3; seed++) {
        struct rhea_storage *s = make(false, seed);
        other = vhdx_open_ok(s, 0);
        change_once("empty", true, seed, change_empty, true, DISK);
        change_once("no parent", true, seed, change_none, true, DISK);
        change_once("other parent", true, seed, change_other, false, DISK);
        change_once("first parent", false, seed, change_other, false, DISK);
        change_once("grow", seed % 2, seed, change_grow, false,
                    DISK + 4 * BLOCK - 4096);
        change_once("shrink", seed % 2, seed, change_shrink, false, SMALL);
        change_once("physical sector", seed % 2, seed, change_sector, false,
                    DISK);
        change_once("grow the BAT", seed % 2, seed, change_grow_bat, false,
                    LARGE);
        image_close_ok(other);
        rhea_storage_close(s);
    }
}

/* --- Places that became free ---------------------------------------------- */

/* Blocks 4 and 5 lie before those that stay when the disk shrinks; what is
 * written when it has grown again goes to where they were, or, where the BAT
 * moves, to where that was. */
enum { STAYS = 3, WRITTEN = 4, FREED = 2 };

static struct {
    uint64_t large;
    size_t ops[WRITTEN]; /* when it was durable */
} reuse;

static bool reuse_block_holds(struct rhea_format *f, unsigned i, size_t durable)
{
    static uint8_t b[SPREAD];
    bool again = i >= STAYS && i < STAYS + WRITTEN;
    if ((uint64_t)(i + 1) * BLOCK > f->size)
        return CHECK(i >= STAYS && (!again || durable < reuse.ops[i - STAYS]));
    CHECK_OK(image_read(f, b, SPREAD, (uint64_t)i * BLOCK, BELOW), &err);
    if (!CHECK(memcmp(b, b + 1, SPREAD - 1) == 0))
        return false;
    if (!again)
        return CHECK_EQ(b[0], i + 1);
    bool before = b[0] == i + 1 || b[0] == 0 || b[0] == BELOW;
    return CHECK(b[0] == 0x40 + i ||
                 (before && durable < reuse.ops[i - STAYS]));
}

static bool reuse_look(const void *opaque, struct rhea_storage *state,
                       const struct crash_state *s)
{
    (void)opaque;
    bool good = has_whole_log(state);
    struct rhea_format *f = vhdx_open_ok(state, RHEA_FORMAT_WRITE);
    struct rhea_check check = image_checked(f, 0);
    good = good && CHECK_EQ(check.corruptions + check.errors, 0) &&
           CHECK(f->size == DISK || f->size == STAYS * BLOCK ||
                 f->size == reuse.large);
    for (unsigned i = 0; good && i < STAYS + WRITTEN; i++)
        good = reuse_block_holds(f, i, s->from);
    image_close_ok(f);
    return good;
}

static int reuse_write(struct rhea_format *f, unsigned block, unsigned value)
{
    static uint8_t bytes[SPREAD];
    memset(bytes, (int)value, sizeof(bytes));
    return f->ops->write(f, (uint64_t)block * BLOCK, bytes, SPREAD, &err);
}

/* Returns how much longer the file has become. */
static uint64_t reuse_record(struct recording *r)
{
    const struct rhea_resize less = {.size = STAYS * BLOCK, .shrink = true};
    uint64_t before = 0, after = 0;
    struct rhea_format *f = vhdx_open_ok(r->storage, RHEA_FORMAT_WRITE);
    CHECK_OK(rhea_storage_size(r->storage, &before, &err), &err);
    CHECK_OK(f->ops->resize(f, &less, &err), &err);
    CHECK_OK(change_size(f, reuse.large), &err);
    for (unsigned i = 0; i < WRITTEN; i++) {
        CHECK_OK(reuse_write(f, STAYS + i, 0x40 + STAYS + i), &err);
        if (i % 2)
            CHECK_OK(f->ops->flush(f, &err), &err);
        reuse.ops[i & ~1U] = reuse.ops[i] = r->log.n_ops;
    }
    image_close_ok(f);
    CHECK_OK(rhea_storage_size(r->storage, &after, &err), &err);
    return after - before;
}

static void reuse_once(bool child, uint64_t large, uint64_t grown)
{
    static const unsigned order[] = {4, 5, 0, 1, 2};
    struct rhea_storage *s = make(child, 3);
    struct recording r;
    struct rhea_format *f = vhdx_open_ok(s, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(order); i++)
        CHECK_OK(reuse_write(f, order[i], order[i] + 1), &err);
    image_close_ok(f);
    reuse.large = large;
    recording_begin(&r, s);
    CHECK_EQ(reuse_record(&r), grown * BLOCK);
    crash_states("places used again", &r, &limits, 300, reuse_look, NULL);
    recording_end(&r);
}

static void a_place_that_became_free_is_used_again(void)
{
    for (unsigned child = 0; child < 2; child++) {
        reuse_once(child, DISK, WRITTEN - FREED);
        /* The new BAT, of 2 MiB, goes to the end, and leaves 1 MiB. */
        reuse_once(child, LARGE, 2 + WRITTEN - FREED - 1);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    subject.ops = vhdx_ops();
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(qemu_replays_what_a_crash_leaves);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(a_crash_while_it_shrinks_loses_nothing_of_the_rest);
    TEST(threads_share_blocks);
    TEST(the_log_begins_anew_where_its_ring_ends);
    TEST(many_bitmaps_are_written_in_order);
    TEST(changes_of_the_whole_image_survive_crashes);
    TEST(a_place_that_became_free_is_used_again);
    return test_finish();
}
