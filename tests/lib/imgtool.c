/* SPDX-License-Identifier: MIT */
/*
 * Drives one format straight over a file, without the image layer: what is
 * below the image reads as zeroes, or as the file named with -b, raw.
 *
 *     imgtool [-b RAW] FORMAT FILE COMMAND...
 *
 * Commands, run in turn on one open image (each opens it for writing when it
 * must):
 *     map                       one line for each run
 *     walk                      one line for each host range in use
 *     info                      one line for each fact
 *     dump OUT                  guest bytes to the file OUT
 *     write OFF LEN BYTE        a pattern     zero|unmap OFF LEN
 *     fill OFF LEN SEED         random bytes  compress OFF LEN SEED
 *     copy IN                   write the file IN over the guest
 *     pack IN                   the same, compressed
 *     random SEED COUNT THREADS random writes, zeroes, discards; what must be
 *                               in the image then goes to FILE.expect
 *     snapshot NAME SIZE        a snapshot with so much VM state
 *     apply WHICH               delete WHICH              load WHICH
 *     save OFF LEN SEED         VM state, random bytes
 *     saved LEN OUT             VM state to the file OUT
 *     flush                     quit (exit without closing)
 *     check|fix|leaks           counts of a check (repairing all, leaks)
 *     create SIZE [-b NAME] [-f FMT] [OPTION=VALUE...] (must be the only one)
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rhea/format.h>

#include "base/checked.h"
#include "test.h"

static const struct rhea_format_ops *ops;
static struct rhea_storage *storage, *below;
static struct rhea_format *image;
static const char *file_name;
static unsigned open_flags = ~0U;

static void die(int r, const struct rhea_error *err)
{
    if (r >= 0)
        return;
    printf("error: %s\n", err->text);
    exit(1);
}

static int read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                      struct rhea_error *err)
{
    (void)opaque;
    return rhea_storage_read_padded(below, buf, len, offset, err);
}

static void close_image(void)
{
    struct rhea_error err;

    if (!image)
        return;
    die(ops->close(image, &err), &err);
    rhea_storage_close(storage);
    image = NULL;
}

static void open_image(unsigned flags)
{
    struct rhea_error err;

    if (image && (open_flags | flags) == open_flags)
        return;
    close_image();
    die(rhea_file_open(&storage, file_name,
                       flags & RHEA_FORMAT_WRITE ? RHEA_FILE_WRITE : 0, &err),
        &err);
    die(rhea_format_open_over(ops, &image, storage, flags, &err), &err);
    open_flags = flags;
    if (below) {
        image->below = read_below;
        image->below_opaque = NULL;
    }
}

/* Runs of one kind are joined, so that the output does not depend on how far
 * one call looks. */
static void run_map(void)
{
    static const char *const names[] = {"none", "zero", "data", "compressed"};
    struct rhea_extent run = {0};
    uint64_t start = 0;
    struct rhea_error err;

    for (uint64_t at = 0; at < image->size;) {
        struct rhea_extent x;

        die(ops->map(image, at, image->size - at, &x, &err), &err);
        if (run.length && x.kind == run.kind && x.has_host == run.has_host &&
            x.kind != RHEA_EXTENT_COMPRESSED &&
            (!x.has_host || run.host + run.length == x.host)) {
            run.length += x.length;
        } else {
            if (run.length)
                printf("%" PRIu64 " %" PRIu64 " %s %" PRId64 "\n", start,
                       run.length, names[run.kind],
                       run.has_host ? (int64_t)run.host : -1);
            run = x;
            start = at;
        }
        at += x.length;
    }
    if (run.length)
        printf("%" PRIu64 " %" PRIu64 " %s %" PRId64 "\n", start, run.length,
               names[run.kind], run.has_host ? (int64_t)run.host : -1);
}

static int print_use(void *opaque, enum rhea_use use, uint64_t host,
                     uint64_t length, struct rhea_error *err)
{
    static const char *const names[] = {"header", "table", "data", "compressed",
                                        "other"};
    (void)opaque;
    (void)err;
    printf("%s %" PRIu64 " %" PRIu64 "\n", names[use], host, length);
    return 0;
}

static void run_info(void)
{
    struct rhea_format_info info;
    struct rhea_facts facts = {0};
    struct rhea_error err;

    ops->info(image, &info);
    printf("virtual-size %" PRIu64 "\ncluster-size %" PRIu32 "\n",
           info.virtual_size, info.cluster_size);
    if (info.backing_file)
        printf("backing %s %s\n", info.backing_file,
               info.backing_format ? info.backing_format : "-");
    printf("snapshots %" PRIu32 " bitmaps %" PRIu32 " flags%s%s%s%s%s\n",
           info.snapshots, info.bitmaps, info.encrypted ? " encrypted" : "",
           info.external_data ? " external" : "",
           info.corrupt ? " corrupt" : "", info.dirty ? " dirty" : "",
           info.extensions ? " extensions" : "");
    if (ops->facts)
        die(ops->facts(image, &facts, &err), &err);
    for (size_t i = 0; i < facts.n; i++) {
        const struct rhea_fact *f = &facts.items[i];

        if (f->type == RHEA_FACT_STRING)
            printf("%s %s\n", f->json_name, f->string);
        else if (f->type == RHEA_FACT_BOOL)
            printf("%s %s\n", f->json_name, f->number ? "true" : "false");
        else if (f->type == RHEA_FACT_NUMBER)
            printf("%s %" PRIu64 "\n", f->json_name, f->number);
    }
    rhea_facts_free(&facts);
}

static void read_guest(uint64_t at, uint8_t *buf, size_t len)
{
    struct rhea_error err;

    while (len) {
        struct rhea_extent x;
        size_t n;

        die(ops->map(image, at, len, &x, &err), &err);
        n = (size_t)x.length;
        if (x.kind == RHEA_EXTENT_DATA) {
            die(rhea_storage_read_padded(x.storage, buf, n, x.host, &err),
                &err);
        } else if (x.kind == RHEA_EXTENT_COMPRESSED) {
            die(ops->read(image, at, buf, n, &err), &err);
        } else if (x.kind == RHEA_EXTENT_UNALLOCATED && below) {
            die(read_below(NULL, at, buf, n, &err), &err);
        } else {
            memset(buf, 0, n);
        }
        at += n;
        buf += n;
        len -= n;
    }
}

#define PIECE (1U << 20)

static void run_dump(const char *name)
{
    uint8_t *buf = malloc(PIECE);
    FILE *out = fopen(name, "wb");

    for (uint64_t at = 0; at < image->size; at += PIECE) {
        size_t n = (size_t)RHEA_MIN(PIECE, image->size - at);

        read_guest(at, buf, n);
        if (fwrite(buf, 1, n, out) != n)
            exit(2);
    }
    fclose(out);
    free(buf);
}

static void run_write(uint64_t at, uint64_t len, int byte, uint64_t seed,
                      bool compress)
{
    uint8_t *buf = malloc(len);
    struct rhea_error err;

    if (byte >= 0)
        memset(buf, byte, len);
    else
        test_fill(buf, len, seed);
    if (compress) {
        /* Half of it compresses well. */
        memset(buf, 'z', len / 2);
        die(ops->write_compressed(image, at, buf, len, &err), &err);
    } else {
        die(ops->write(image, at, buf, len, &err), &err);
    }
    free(buf);
}

static bool all_zero(const uint8_t *buf, size_t len)
{
    return !len || (!buf[0] && !memcmp(buf, buf + 1, len - 1));
}

static void run_copy(const char *name, bool compress)
{
    struct rhea_format_info info;
    struct rhea_error err;
    FILE *in = fopen(name, "rb");
    uint8_t *buf;
    uint64_t at = 0;
    size_t n, unit;

    ops->info(image, &info);
    unit = compress ? info.cluster_size : PIECE;
    buf = malloc(unit);
    while ((n = fread(buf, 1, unit, in)) > 0) {
        if (at >= image->size)
            break;
        n = (size_t)RHEA_MIN(n, image->size - at);
        if (!all_zero(buf, n))
            die(compress ? ops->write_compressed(image, at, buf, n, &err)
                         : ops->write(image, at, buf, n, &err),
                &err);
        at += n;
    }
    fclose(in);
    free(buf);
}

/* Threads work on stripes of 64 KiB of their own, so that what the image must
 * hold is known, while clusters are shared between threads. */
struct random_job {
    pthread_t thread;
    uint64_t seed, count;
    unsigned index, of;
    uint8_t *expect;
};

#define STRIPE 24576U

static void random_step(struct random_job *job, uint64_t *state)
{
    uint64_t stripes = div_up(image->size, STRIPE), stripe, at, len, end;
    unsigned what = (unsigned)(test_random(state) % 16);
    struct rhea_error err;

    stripe = test_random(state) % stripes;
    stripe = stripe / job->of * job->of + job->index;
    if (stripe >= stripes)
        return;
    at = stripe * STRIPE;
    end = RHEA_MIN(at + STRIPE, image->size);
    if (job->of == 1) {
        end = at + STRIPE * (1 + test_random(state) % 90);
        end = RHEA_MIN(end, image->size);
    }
    at += test_random(state) % (end - at);
    len = 1 + test_random(state) % (end - at);
    if (test_random(state) % 2) {
        at = align_down(at, 512);
        len = RHEA_MIN(align_up(len, 512), end - at);
    }
    if (what < 10) {
        test_fill(job->expect + at, len, test_random(state));
        die(ops->write(image, at, job->expect + at, len, &err), &err);
    } else if (what < 15) {
        memset(job->expect + at, 0, len);
        die(ops->write_zeroes(image, at, len, what & 1, &err), &err);
    } else if (test_random(state) % 8 == 0) {
        die(ops->flush(image, &err), &err);
    }
}

static void *random_run(void *opaque)
{
    struct random_job *job = opaque;
    uint64_t state = job->seed * 1000 + job->index;

    for (uint64_t i = 0; i < job->count; i++)
        random_step(job, &state);
    return NULL;
}

static void run_random(uint64_t seed, uint64_t count, unsigned threads)
{
    struct random_job jobs[16];
    uint8_t *expect = malloc(image->size);
    char name[4096];
    FILE *out;

    if (!expect || !image->size)
        exit(2);
    threads = RHEA_MIN(threads, 16);
    read_guest(0, expect, image->size);
    for (unsigned i = 0; i < threads; i++) {
        jobs[i] = (struct random_job){.seed = seed,
                                      .count = count,
                                      .index = i,
                                      .of = threads,
                                      .expect = expect};
        pthread_create(&jobs[i].thread, NULL, random_run, &jobs[i]);
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(jobs[i].thread, NULL);
    snprintf(name, sizeof(name), "%s.expect", file_name);
    out = fopen(name, "wb");
    if (fwrite(expect, 1, image->size, out) != image->size)
        exit(2);
    fclose(out);
    free(expect);
}

static void print_finding(void *opaque, bool is_error, const char *text)
{
    (void)opaque;
    fprintf(stderr, "%s %s\n", is_error ? "ERROR" : "leak", text);
}

static void run_check(unsigned fix)
{
    struct rhea_check c = {.finding = print_finding};
    struct rhea_error err;

    open_image(RHEA_FORMAT_CHECK | (fix ? RHEA_FORMAT_WRITE : 0));
    die(ops->check(image, fix, &c, &err), &err);
    printf("corruptions %" PRIu64 "\nleaks %" PRIu64 "\ncheck-errors %" PRIu64
           "\ncorruptions-fixed %" PRIu64 "\nleaks-fixed %" PRIu64
           "\ntotal-clusters %" PRIu64 "\nallocated-clusters %" PRIu64
           "\nfragmented-clusters %" PRIu64 "\ncompressed-clusters %" PRIu64
           "\nimage-end-offset %" PRIu64 "\n",
           c.corruptions, c.leaks, c.errors, c.corruptions_fixed, c.leaks_fixed,
           c.total_clusters, c.allocated_clusters, c.fragmented_clusters,
           c.compressed_clusters, c.image_end);
}

static int run_create(int argc, char **argv)
{
    struct rhea_create how = {.size = strtoull(argv[0], NULL, 0)};
    struct rhea_option options[16];
    struct rhea_error err;
    size_t n = 0;

    for (int i = 1; i < argc && n < 16; i++) {
        char *eq = strchr(argv[i], '=');

        if (!strcmp(argv[i], "-b")) {
            how.backing_file = argv[++i];
        } else if (!strcmp(argv[i], "-f")) {
            how.backing_format = argv[++i];
        } else if (eq) {
            *eq = 0;
            options[n++] = (struct rhea_option){argv[i], eq + 1};
        }
    }
    how.options = options;
    how.n_options = n;
    die(rhea_file_open(&storage, file_name, RHEA_FILE_WRITE | RHEA_FILE_CREATE,
                       &err),
        &err);
    die(rhea_storage_truncate(storage, 0, &err), &err);
    die(ops->create(storage, &how, &err), &err);
    rhea_storage_close(storage);
    return 0;
}

static uint64_t number(char ***arg)
{
    return **arg ? strtoull(*(*arg)++, NULL, 0) : 0;
}

static void run_writer(const char *command, char ***arg)
{
    struct rhea_error err;

    open_image(RHEA_FORMAT_WRITE);
    if (!strcmp(command, "copy") || !strcmp(command, "pack")) {
        run_copy(*(*arg)++, command[0] == 'p');
    } else if (!strcmp(command, "flush")) {
        die(ops->flush(image, &err), &err);
    } else if (!strcmp(command, "random")) {
        uint64_t seed = number(arg), count = number(arg);
        run_random(seed, count, (unsigned)number(arg));
    } else {
        uint64_t at = number(arg), len = number(arg);

        if (!strcmp(command, "write"))
            run_write(at, len, (int)number(arg), 0, false);
        else if (!strcmp(command, "fill"))
            run_write(at, len, -1, number(arg), false);
        else if (!strcmp(command, "compress"))
            run_write(at, len, -1, number(arg), true);
        else if (!strcmp(command, "zero") || !strcmp(command, "unmap"))
            die(ops->write_zeroes(image, at, len, command[0] == 'u', &err),
                &err);
        else
            exit(2);
    }
}

/* VM state: random bytes of SEED to it, or to a file from it. */
static void run_state(uint64_t at, size_t len, uint64_t seed, const char *out)
{
    uint8_t *buf = malloc(len);
    struct rhea_error err;
    FILE *f;

    if (!buf)
        exit(2);
    for (size_t i = 0; i < len; i++)
        buf[i] = (uint8_t)test_random(&seed);
    if (!out) {
        die(ops->vm_state_write(image, at, buf, len, &err), &err);
    } else {
        die(ops->vm_state_read(image, at, buf, len, &err), &err);
        f = fopen(out, "w");
        if (!f || fwrite(buf, 1, len, f) != len || fclose(f))
            exit(2);
    }
    free(buf);
}

/* Whether COMMAND is about snapshots; then it has been done. */
static bool run_snapshot(const char *command, char ***arg)
{
    struct rhea_snapshot what = {.date = 1};
    struct rhea_error err;

    if (!strcmp(command, "load") || !strcmp(command, "saved"))
        open_image(0);
    else if (!strcmp(command, "snapshot") || !strcmp(command, "apply") ||
             !strcmp(command, "delete") || !strcmp(command, "save"))
        open_image(RHEA_FORMAT_WRITE);
    else
        return false;
    if (!strcmp(command, "load")) {
        die(ops->snapshot_load(image, *(*arg)++, &err), &err);
    } else if (!strcmp(command, "apply")) {
        die(ops->snapshot_apply(image, *(*arg)++, &err), &err);
    } else if (!strcmp(command, "delete")) {
        die(ops->snapshot_delete(image, *(*arg)++, &err), &err);
    } else if (!strcmp(command, "snapshot")) {
        what.name = *(*arg)++;
        what.vm_state_size = number(arg);
        die(ops->snapshot_create(image, &what, &err), &err);
    } else {
        uint64_t at = command[4] ? 0 : number(arg), len = number(arg);

        run_state(at, (size_t)len, command[4] ? 0 : number(arg),
                  command[4] ? *(*arg)++ : NULL);
    }
    return true;
}

static void run_command(const char *command, char ***arg)
{
    struct rhea_error err;

    if (!strcmp(command, "check") || !strcmp(command, "fix") ||
        !strcmp(command, "leaks")) {
        run_check(command[0] == 'c'   ? 0
                  : command[0] == 'l' ? RHEA_FIX_LEAKS
                                      : RHEA_FIX_LEAKS | RHEA_FIX_ERRORS);
    } else if (!strcmp(command, "quit")) {
        fflush(stdout);
        _exit(0);
    } else if (!strcmp(command, "map") || !strcmp(command, "info") ||
               !strcmp(command, "walk") || !strcmp(command, "dump")) {
        if (!image)
            open_image(0);
        if (command[0] == 'm')
            run_map();
        else if (command[0] == 'i')
            run_info();
        else if (command[0] == 'd')
            run_dump(*(*arg)++);
        else
            die(ops->walk(image, print_use, NULL, &err), &err);
    } else if (!run_snapshot(command, arg)) {
        run_writer(command, arg);
    }
}

int main(int argc, char **argv)
{
    char **arg = argv + 1;
    struct rhea_error err;

    if (argc > 3 && !strcmp(*arg, "-b")) {
        die(rhea_file_open(&below, arg[1], 0, &err), &err);
        arg += 2;
    }
    if (argc - (arg - argv) < 3)
        return 2;
    ops = rhea_format_find(*arg++);
    file_name = *arg++;
    if (!ops)
        return 2;
    if (!strcmp(*arg, "create"))
        return run_create((int)(argc - (arg - argv)) - 1, arg + 1);
    while (*arg)
        run_command(*arg++, &arg);
    close_image();
    rhea_storage_close(below);
    return 0;
}
