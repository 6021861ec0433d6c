/* SPDX-License-Identifier: MIT */
/*
 * rhea-img compare
 *
 * Threads look through the part that both images have, windows of it in turn,
 * and say nothing: what they find alike is alike. Where there is little to read
 * they would only wait for each other at the images' tables, and one goes on
 * alone. From the first window on in which anything is different or cannot be
 * read, the images are gone through again from front to back, and that tells
 * what there is to tell.
 */
#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/checked.h"
#include "convert/source.h"
#include "convert/zero.h"
#include "tool.h"

enum {
    COMPARE_IDENTICAL = 0,
    COMPARE_DIFFERENT = 1,
    COMPARE_OPEN_FAILED = 2,
    COMPARE_MAP_FAILED = 3,
    COMPARE_READ_FAILED = 4,

    COMPARE_CHUNK = 256 << 10, /* stays in a cache */
    COMPARE_SECTOR = 512,      /* differences are told by sector */
    COMPARE_WINDOW = 64 << 20, /* what a thread takes at a time */
    COMPARE_DENSE = 4 << 20,   /* read of a window: enough for many threads */
    COMPARE_THREADS = 4,
};

struct compare_side {
    const char *filename, *format;
    struct rhea_image *image;
    uint64_t size;
    unsigned char *buf;
    bool silent; /* errors are not printed */
};

struct compare {
    struct compare_side a, b;
    bool quiet, strict, image_opts;
    const char *cache;
    unsigned flags;
    struct tool_progress progress;
    uint64_t compared; /* bytes that both have, and are alike */
    uint64_t read;     /* bytes that had to be read */
    uint64_t mismatch; /* offset of the first difference; UINT64_MAX: none */
};

/* What compare looks at of an extent. */
struct compare_status {
    uint64_t length;
    bool allocated, zero, data, compressed;
    bool hole; /* data that reads as zeroes: preallocated, and never written */
};

static void compare_tell(const struct compare *c, const char *fmt, ...)
    RHEA_PRINTF(2, 3);

static void compare_tell(const struct compare *c, const char *fmt, ...)
{
    va_list ap;

    if (c->quiet)
        return;
    va_start(ap, fmt);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is started */
    vprintf(fmt, ap);
    va_end(ap);
}

static int compare_differ(struct compare *c, uint64_t offset)
{
    c->mismatch = align_down(offset, COMPARE_SECTOR);
    return COMPARE_DIFFERENT;
}

static int compare_fail(const struct compare_side *s, struct rhea_error *err,
                        int code)
{
    return s->silent ? code : tool_fail(s->filename, err, code);
}

static int compare_status(const struct compare_side *s, uint64_t offset,
                          uint64_t length, struct compare_status *status)
{
    struct rhea_image_extent e;
    struct rhea_error err;

    if (rhea_image_map(s->image, offset, length, &e, &err) < 0)
        return compare_fail(s, &err, COMPARE_MAP_FAILED);
    *status = (struct compare_status){
        .length = e.extent.length,
        .allocated = e.extent.kind != RHEA_EXTENT_UNALLOCATED,
        .zero = e.extent.kind == RHEA_EXTENT_ZERO ||
                e.extent.kind == RHEA_EXTENT_UNALLOCATED,
        .data = e.extent.kind == RHEA_EXTENT_DATA ||
                e.extent.kind == RHEA_EXTENT_COMPRESSED ||
                e.extent.kind == RHEA_EXTENT_ENCRYPTED,
        .compressed = e.extent.kind == RHEA_EXTENT_COMPRESSED,
    };
    /* What is read in one piece need not be asked about. */
    if (e.extent.length > COMPARE_CHUNK &&
        convert_find_hole(&e.extent, &status->hole, &status->length, &err) < 0)
        return compare_fail(s, &err, COMPARE_MAP_FAILED);
    return 0;
}

static int compare_read(const struct compare_side *s, uint64_t offset,
                        size_t len)
{
    struct rhea_error err;

    if (rhea_image_read(s->image, s->buf, len, offset, &err) < 0)
        return compare_fail(s, &err, COMPARE_READ_FAILED);
    return 0;
}

/* Whether one image's data is zeroes after all. */
static int compare_with_zero(struct compare *c, const struct compare_side *s,
                             uint64_t offset, size_t len)
{
    size_t at, n;
    int code = compare_read(s, offset, len);

    if (code || zero_is(s->buf, len))
        return code;
    for (at = 0; at < len; at += n) {
        n = RHEA_MIN(COMPARE_SECTOR - (offset + at) % COMPARE_SECTOR, len - at);
        if (!zero_is(s->buf + at, n))
            break;
    }
    return compare_differ(c, offset + at);
}

static int compare_data(struct compare *c, uint64_t offset, size_t len)
{
    size_t at = 0;
    int code = compare_read(&c->a, offset, len);

    if (!code)
        code = compare_read(&c->b, offset, len);
    if (code || !memcmp(c->a.buf, c->b.buf, len))
        return code;
    while (c->a.buf[at] == c->b.buf[at])
        at++;
    return compare_differ(c, offset + at);
}

/* One run that is alike within each image; *LEN is what was looked at. */
static int compare_run(struct compare *c, uint64_t offset, uint64_t *len)
{
    struct compare_status a = {0}, b = {0};
    int code = compare_status(&c->a, offset, *len, &a);

    if (!code)
        code = compare_status(&c->b, offset, *len, &b);
    if (code)
        return code;
    *len = RHEA_MIN(a.length, b.length);
    if (c->strict && (a.allocated != b.allocated || a.zero != b.zero ||
                      a.compressed != b.compressed)) {
        compare_tell(c, "Strict mode: Offset %ju block status mismatch!\n",
                     (uintmax_t)offset);
        return COMPARE_DIFFERENT;
    }
    a.data = a.data && !a.hole;
    b.data = b.data && !b.hole;
    if (!a.data && !b.data)
        return 0;
    *len = RHEA_MIN(*len, COMPARE_CHUNK);
    c->read += *len;
    if (a.data && b.data)
        return compare_data(c, offset, *len);
    return compare_with_zero(c, a.data ? &c->a : &c->b, offset, *len);
}

/* What the longer image has past the shorter one's end. */
static int compare_rest(struct compare *c, uint64_t offset, uint64_t total)
{
    const struct compare_side *s = c->a.size > c->b.size ? &c->a : &c->b;
    struct compare_status status = {0};
    int code;

    for (; offset < total; offset += status.length) {
        code = compare_status(s, offset, total - offset, &status);
        if (!code && status.data && !status.hole) {
            status.length = RHEA_MIN(status.length, COMPARE_CHUNK);
            code = compare_with_zero(c, s, offset, status.length);
        }
        if (code)
            return code;
        tool_progress_report(&c->progress, "comparing", offset, total);
    }
    return 0;
}

/* --- Many windows at a time --- */

struct compare_pool {
    const struct compare *c; /* silent, to be copied */
    uint64_t common, total;
    pthread_mutex_t lock;
    uint64_t next; /* up to here everything is alike or taken */
    uint64_t bad;  /* the first window that is to be looked at again */
    bool dense;    /* there was enough to read in the last window */
};

static bool pool_wants_more(const struct compare_pool *pool)
{
    return pool->next < pool->common && pool->bad == UINT64_MAX;
}

/* Goes through one window from *OFFSET on, which is moved to where it stopped.
 * A run without data may be longer than any number of windows. */
static int pool_look(struct compare_pool *pool, struct compare *c,
                     uint64_t *offset, bool *dense)
{
    uint64_t end = *offset + COMPARE_WINDOW, before = c->read, len;
    int code = 0;

    while (*offset < RHEA_MIN(end, pool->common)) {
        len = pool->common - *offset;
        code = compare_run(c, *offset, &len);
        if (code)
            break;
        *offset += len;
    }
    *dense = c->read - before >= COMPARE_DENSE;
    return code;
}

/* What is known after the window at OFFSET, which ended at SEEN. */
static void pool_note(struct compare_pool *pool, uint64_t offset, uint64_t seen,
                      bool dense, bool alike)
{
    pool->dense = dense;
    if (alike)
        pool->next = RHEA_MAX(pool->next, seen);
    else
        pool->bad = RHEA_MIN(pool->bad, offset);
}

/* The next window of POOL that is worth a thread of its own; false: there is
 * none, or what comes is of no interest any more. */
static bool pool_take(struct compare_pool *pool, struct compare *c,
                      uint64_t *offset)
{
    bool more, dense;
    uint64_t seen;
    int code;

    pthread_mutex_lock(&pool->lock);
    while (pool_wants_more(pool) && !pool->dense) {
        *offset = seen = pool->next;
        code = pool_look(pool, c, &seen, &dense);
        pool_note(pool, *offset, seen, dense, code == 0);
    }
    more = pool_wants_more(pool);
    *offset = pool->next;
    if (more)
        pool->next +=
            RHEA_MIN(pool->common - *offset, (uint64_t)COMPARE_WINDOW);
    pthread_mutex_unlock(&pool->lock);
    return more;
}

static void pool_run(struct compare_pool *pool, struct compare *c, bool tell)
{
    uint64_t offset, seen;
    bool dense;
    int code;

    while (pool_take(pool, c, &offset)) {
        seen = offset;
        code = pool_look(pool, c, &seen, &dense);
        pthread_mutex_lock(&pool->lock);
        pool_note(pool, offset, seen, dense, code == 0);
        pthread_mutex_unlock(&pool->lock);
        if (tell)
            tool_progress_report(&c->progress, "comparing", offset,
                                 pool->total);
    }
}

static void *pool_thread(void *opaque)
{
    struct compare_pool *pool = opaque;
    struct compare mine = *pool->c;

    mine.a.buf = aligned_alloc(4096, COMPARE_CHUNK);
    mine.b.buf = aligned_alloc(4096, COMPARE_CHUNK);
    /* Without memory the others do it. */
    if (mine.a.buf && mine.b.buf)
        pool_run(pool, &mine, false);
    free(mine.a.buf);
    free(mine.b.buf);
    return NULL;
}

/* The offset up to which both are alike, as far as many threads see it. */
static uint64_t compare_ahead(struct compare *c, uint64_t common,
                              uint64_t total)
{
    struct compare silent = *c, mine;
    struct compare_pool pool = {.c = &silent,
                                .common = common,
                                .total = total,
                                .lock = PTHREAD_MUTEX_INITIALIZER,
                                .bad = UINT64_MAX,
                                .dense = true};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = 0, wanted = (unsigned)RHEA_MIN(processors, COMPARE_THREADS);
    pthread_t threads[COMPARE_THREADS];

    if (processors < 2 || common <= COMPARE_WINDOW)
        return 0;
    silent.quiet = silent.a.silent = silent.b.silent = true;
    mine = silent;
    while (n + 1 < wanted &&
           pthread_create(&threads[n], NULL, pool_thread, &pool) == 0)
        n++;
    pool_run(&pool, &mine, true);
    while (n)
        pthread_join(threads[--n], NULL);
    c->progress = mine.progress;
    return RHEA_MIN(pool.bad, common);
}

/* --- From front to back --- */

static int compare_images(struct compare *c)
{
    uint64_t common = RHEA_MIN(c->a.size, c->b.size);
    uint64_t total = RHEA_MAX(c->a.size, c->b.size);
    uint64_t offset, len;
    int code = 0;

    tool_progress_report(&c->progress, "comparing", 0, total);
    if (c->strict && c->a.size != c->b.size) {
        compare_tell(c, "Strict mode: Image size mismatch!\n");
        return COMPARE_DIFFERENT;
    }
    c->compared = compare_ahead(c, common, total);
    for (offset = c->compared; offset < common; offset += len) {
        len = common - offset;
        code = compare_run(c, offset, &len);
        if (code)
            return code;
        c->compared = offset + len;
        tool_progress_report(&c->progress, "comparing", offset + len, total);
    }
    return c->a.size != c->b.size ? compare_rest(c, offset, total) : 0;
}

/* What has come out, also where an image could not be read to its end. */
static void compare_conclude(const struct compare *c, int code)
{
    uint64_t common = RHEA_MIN(c->a.size, c->b.size);

    if (!c->strict && c->a.size != c->b.size && c->compared >= common)
        compare_tell(c, "Warning: Image size mismatch!\n");
    if (c->mismatch != UINT64_MAX)
        compare_tell(c, "Content mismatch at offset %ju!\n",
                     (uintmax_t)c->mismatch);
    else if (code == COMPARE_IDENTICAL)
        compare_tell(c, "Images are identical.\n");
}

static int compare_open(struct compare *c, struct compare_side *s)
{
    s->buf = aligned_alloc(4096, COMPARE_CHUNK);
    if (!s->buf) {
        tool_error("out of memory");
        return COMPARE_OPEN_FAILED;
    }
    if (tool_image_open(
            &(struct tool_image){
                .name = s->filename,
                .format = s->format,
                .image_opts = c->image_opts,
                .cache = c->cache,
                .flags = c->flags,
            },
            &s->image) < 0)
        return COMPARE_OPEN_FAILED;
    s->size = rhea_image_size(s->image);
    return 0;
}

static int compare_parse(struct compare *c, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"force-share", no_argument, NULL, 'U'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {0},
    };
    int o;

    while ((o = getopt_long(argc, argv, ":hf:F:T:pqsU", long_options, NULL)) !=
           -1) {
        switch (o) {
        case 'f':
            c->a.format = optarg;
            break;
        case 'F':
            c->b.format = optarg;
            break;
        case 'T':
            c->cache = optarg;
            break;
        case 'p':
            c->progress.enabled = true;
            break;
        case 'q':
            c->quiet = true;
            break;
        case 's':
            c->strict = true;
            break;
        case 'U':
            c->flags |= RHEA_IMAGE_NO_LOCK;
            break;
        case TOOL_OPT_IMAGE_OPTS:
            c->image_opts = true;
            break;
        case TOOL_OPT_OBJECT:
            if (tool_object_add(optarg) < 0)
                return COMPARE_OPEN_FAILED;
            break;
        default:
            return tool_other_option(&tool_compare, o, argv);
        }
    }
    if (optind != argc - 2)
        return tool_usage(&tool_compare, "compare: exactly two files are "
                                         "needed");
    c->a.filename = argv[optind];
    c->b.filename = argv[optind + 1];
    if (c->quiet)
        c->progress.enabled = false;
    return -1;
}

static int compare_run_command(int argc, char **argv)
{
    struct compare c = {.progress = {.stream = stdout, .step = 2},
                        .mismatch = UINT64_MAX};
    int code = compare_parse(&c, argc, argv);

    if (code >= 0)
        return code;
    code = compare_open(&c, &c.a);
    if (!code)
        code = compare_open(&c, &c.b);
    if (!code) {
        code = compare_images(&c);
        compare_conclude(&c, code);
    }
    tool_progress_finish(&c.progress, code == COMPARE_IDENTICAL);
    rhea_image_close(c.a.image, NULL);
    rhea_image_close(c.b.image, NULL);
    free(c.a.buf);
    free(c.b.buf);
    return tool_finish_output(code, COMPARE_READ_FAILED);
}

const struct tool_command tool_compare = {
    .name = "compare",
    .summary = "Tell whether two images have the same contents",
    .usage = "[-f FORMAT] [-F FORMAT] [-T CACHE] [-p] [-q] [-s] [-U]\n"
             "                        [--object OBJECT] [--image-opts] FILE "
             "FILE",
    .help =
        "  -f FORMAT          of the first image; else it is found out\n"
        "  -F FORMAT          of the second image\n"
        "  -s                 strictly: same size, same clusters allocated\n"
        "  -T CACHE           none or directsync: past the page cache\n"
        "  -p                 show progress\n"
        "  -q                 print only errors\n"
        "  -U, --force-share  even if the images are in use\n"
        "      --image-opts   each FILE is a list of options\n"
        "      --object=OBJECT  secret,id=ID,file=FILE and such\n"
        "\nExit codes: 0 identical, 1 different, 2 an image could not be\n"
        "opened, 3 its map, or 4 its contents could not be read.\n",
    .run = compare_run_command,
    .usage_code = COMPARE_OPEN_FAILED,
};
