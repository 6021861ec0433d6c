/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of VMDKs: hosted, ESX's and ESXi's sparse
 * extents, and streams. */
#include "format_crash.h"
#include "format_threads.h"
#include "vmdk_lib.h"

static struct rhea_format_ops ops;

/* --- Sparse extents ------------------------------------------------------ */

static struct rhea_storage *make_hosted(bool over, uint64_t seed)
{
    const struct vmdk_shape shape = {
        .kind = VMDK_HOSTED,
        .parent = over,
        .zero_grains = seed % 3 == 0,
        .tables = seed % 4 < 2,
    };
    return vmdk_make_hosted(SIZE, &shape);
}

/* Of ESX's extents it is the extent's file that is watched; the descriptor is
 * another one. */
static struct rhea_storage *descriptor;

static int open_extent(void *opaque, const char *name, bool write,
                       struct rhea_storage **out, struct rhea_error *e)
{
    (void)name;
    (void)write;
    (void)e;
    *out = opaque;
    return 0;
}

static int find_parent(void *opaque, const char *const *names, size_t n,
                       char **out, struct rhea_error *e)
{
    (void)opaque;
    (void)n;
    *out = strdup(names[0]);
    return *out ? 0 : rhea_error_set(e, ENOMEM, "out of memory");
}

static struct rhea_files files = {.open = open_extent,
                                  .find_parent = find_parent};

static int open_beside(struct rhea_format **out,
                       const struct rhea_format_open *how, struct rhea_error *e)
{
    struct rhea_format_open own = *how;
    files.opaque = how->storage;
    own.storage = descriptor;
    own.files = &files;
    return rhea_format_vmdk.open(out, &own, e);
}

static struct rhea_storage *make_cowd(bool over, uint64_t seed)
{
    const struct vmdk_shape shape = {.kind = VMDK_COWD, .parent = over};
    (void)seed;
    rhea_storage_close(descriptor);
    descriptor = vmdk_memory();
    vmdk_put_text(descriptor, 0, SIZE, &shape);
    return vmdk_make_cowd(SIZE);
}

/* Grain tables are for 16 MiB; the first and the last bytes of some. */
enum { SE_SPREAD = 64 << 10, SE_PITCH = (16 << 20) - (32 << 10) };
#define SE_SIZE ((uint64_t)(SIZE / SE_SPREAD + 1) * SE_PITCH)

static struct rhea_storage *make_sesparse(bool over, uint64_t seed)
{
    const struct vmdk_shape shape = {.kind = VMDK_SESPARSE, .parent = over};
    rhea_storage_close(descriptor);
    descriptor = vmdk_memory();
    vmdk_put_text(descriptor, 0, SE_SIZE, &shape);
    return vmdk_make_sesparse(SE_SIZE, (enum vmdk_test_back)(seed % 4));
}

/* Whatever of the guest's writes is there, children can tell. */
static bool content_id_is_new(struct rhea_storage *state, const struct model *m)
{
    static uint8_t guest[SIZE];
    const struct subject plain = {.ops = &ops};
    struct rhea_format *f = subject_open_ok(&plain, state, RHEA_FORMAT_CHECK);
    bool over = ((struct vmdk *)f)->parent;
    bool good = CHECK_OK(read_all(f, guest, over), &err), same = true;
    (void)m;
    for (uint64_t i = 0; i < SIZE && same; i++)
        same = guest[i] == (over ? BELOW : 0);
    good =
        good && CHECK(same || ((struct vmdk *)f)->descriptor.cid != 0x12345678);
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

static const struct subject hosted = {
    .ops = &ops, .make = make_hosted, .judge = content_id_is_new, .judged = 1};
static const struct subject cowd = {.ops = &ops, .make = make_cowd};
static const struct subject sesparse = {
    .ops = &ops, .make = make_sesparse, .spread = SE_SPREAD, .pitch = SE_PITCH};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    ops.open = rhea_format_vmdk.open;
    for (uint64_t seed = 1; seed <= 12; seed++)
        crash_once(&hosted, seed, seed % 2);
}

static void a_crash_anywhere_leaves_a_whole_delta(void)
{
    ops.open = open_beside;
    for (uint64_t seed = 1; seed <= 4; seed++)
        crash_once(&cowd, seed, seed % 2);
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(&sesparse, seed, seed % 2);
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    ops.open = rhea_format_vmdk.open;
    faults_everywhere(&hosted);
    ops.open = open_beside;
    faults_everywhere(&cowd);
    faults_everywhere(&sesparse);
}

static void threads_share_grains(void)
{
    ops.open = rhea_format_vmdk.open;
    threads_share(&hosted);
    ops.open = open_beside;
    threads_share(&cowd);
    threads_share(&sesparse);
}

/* --- Streams ------------------------------------------------------------- */

enum { STREAM_GRAIN = 64 << 10, STREAM_GRAINS = 40 };

/* What each grain holds: 0 or its value; that of the last flush, and now. */
struct stream_model {
    uint8_t flushed[STREAM_GRAINS], now[STREAM_GRAINS];
    bool any; /* was flushed */
};

static struct rhea_storage *stream_make(void)
{
    static const struct rhea_option options[] = {
        {"subformat", "streamOptimized"}};
    const struct rhea_create how = {
        .size = (uint64_t)STREAM_GRAIN * STREAM_GRAINS * 32,
        .options = options,
        .n_options = 1,
    };
    struct rhea_storage *s = vmdk_memory();
    CHECK_OK(rhea_format_vmdk.create(s, &how, &err), &err);
    return s;
}

/* Spread over several tables. */
static uint64_t stream_place(unsigned grain)
{
    return (uint64_t)grain * 32 * STREAM_GRAIN;
}

static int stream_put(struct rhea_format *f, unsigned grain, uint8_t value)
{
    static uint8_t buf[STREAM_GRAIN];
    memset(buf, value, sizeof(buf));
    return f->ops->write_compressed(f, stream_place(grain), buf, sizeof(buf),
                                    &err);
}

static bool stream_holds(struct rhea_storage *state,
                         const struct stream_model *m)
{
    static uint8_t buf[STREAM_GRAIN];
    struct rhea_format *f;
    /* One that nothing was flushed to may be a stream that was cut off. */
    if (rhea_format_open_over(&rhea_format_vmdk, &f, state, 0, &err))
        return CHECK(!m->any) && CHECK(strstr(err.text, "cut off"));
    bool good = true;
    for (unsigned i = 0; i < STREAM_GRAINS && good; i++) {
        struct rhea_extent x;
        uint8_t value = 0;
        good = CHECK_OK(f->ops->map(f, stream_place(i), STREAM_GRAIN, &x, &err),
                        &err);
        if (good && x.kind == RHEA_EXTENT_COMPRESSED) {
            good = CHECK_OK(
                f->ops->read(f, stream_place(i), buf, sizeof(buf), &err), &err);
            value = buf[7];
        }
        good = good && CHECK(value == m->flushed[i] || value == m->now[i]);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

struct stream_moment {
    size_t op;
    struct stream_model model;
};

/* Grains in any order, some more of them each time it is opened. */
static void stream_record(struct recording *r, uint64_t seed,
                          struct stream_moment *moment)
{
    struct stream_model m = {0};
    for (unsigned turn = 0; turn < 3; turn++) {
        struct rhea_format *f;
        CHECK_OK(rhea_format_open_over(&rhea_format_vmdk, &f, r->storage,
                                       RHEA_FORMAT_WRITE, &err),
                 &err);
        for (unsigned i = 0; i < 10; i++) {
            unsigned grain = (unsigned)(test_random(&seed) % STREAM_GRAINS);
            bool flush = test_random(&seed) % 4 == 0;
            if (!m.now[grain]) {
                m.now[grain] = (uint8_t)(1 + turn * 10 + i);
                CHECK_OK(stream_put(f, grain, m.now[grain]), &err);
            }
            if (flush)
                CHECK_OK(f->ops->flush(f, &err), &err);
            *moment++ = (struct stream_moment){r->log.n_ops, m};
            if (flush) {
                memcpy(m.flushed, m.now, sizeof(m.now));
                m.any = true;
            }
        }
        CHECK_OK(f->ops->close(f, &err), &err);
        *moment++ = (struct stream_moment){r->log.n_ops, m};
        memcpy(m.flushed, m.now, sizeof(m.now));
        m.any = true;
    }
}

static bool stream_is_good(const void *opaque, struct rhea_storage *state,
                           const struct crash_state *s)
{
    const struct stream_moment *now = opaque;
    while (now->op < s->to)
        now++;
    return stream_holds(state, &now->model);
}

static void stream_crash_once(uint64_t seed)
{
    static struct stream_moment moments[64];
    const struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    struct recording r;
    recording_begin(&r, stream_make());
    stream_record(&r, seed, moments);
    CHECK(crash_states("a stream", &r, &limits, 400, stream_is_good, moments) >
          100);
    recording_end(&r);
}

static void a_crash_anywhere_leaves_what_was_flushed_of_a_stream(void)
{
    for (uint64_t seed = 1; seed <= 6; seed++)
        stream_crash_once(seed);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    ops = rhea_format_vmdk;
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_crash_anywhere_leaves_a_whole_delta);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_grains);
    TEST(a_crash_anywhere_leaves_what_was_flushed_of_a_stream);
    rhea_storage_close(descriptor);
    return test_finish();
}
