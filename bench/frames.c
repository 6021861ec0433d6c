/* SPDX-License-Identifier: MIT */
/*
 * How long it takes to store many trace frames and to find one of them.
 *
 * usage: bench-frames [N]
 *
 * Frames are small (16 bytes of memory), in a file in $TMPDIR. Times are the
 * shortest of several tries.
 */
#include <errno.h>
#include <inttypes.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "gdb/frames.h"

enum { PAYLOAD = 27, TRIES = 5, LOOKS = 100000 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int start(struct frames *f, struct rhea_error *err)
{
    static const char text[] = "tp T1:1000:E:0:0\n";
    struct experiment *e;
    int ret = experiment_create(&e, err);

    if (ret < 0)
        return ret;
    ret = experiment_load(e, text, sizeof(text) - 1, err);
    if (ret == 0)
        ret = frames_publish(f, e, err);
    if (ret == 0)
        ret = frames_start(f, e, err);
    experiment_destroy(e);
    return ret;
}

/* Program counters are 0x1000, but for the last frame. */
static bool fill(struct frames *f, uint64_t n)
{
    struct frames_hit hit = {
        .pc = 0x1000, .run = frames_control(f)->run, .number = 1};
    uint8_t payload[PAYLOAD] = {'M', 0, 0x20, 0, 0, 0, 0, 0, 0, 16, 0};

    for (uint64_t i = 0; i < n; i++) {
        if (i == n - 1)
            hit.pc = 0x2000;
        payload[11] = (uint8_t)i;
        if (!frames_append(f, &hit, payload, sizeof(payload)))
            return false;
    }
    return true;
}

/* Nanoseconds for frame AT, here and there around it. */
static double time_get(struct frames *f, uint64_t at, uint64_t span)
{
    double best = 1e9;

    for (unsigned i = 0; i < TRIES; i++) {
        double began = now();
        uint64_t sum = 0;

        for (uint64_t j = 0; j < LOOKS; j++) {
            struct frames_frame frame;

            if (frames_get(f, at + j * 7919 % span, &frame))
                sum += frame.payload[11];
        }
        best = RHEA_MIN(best, (now() - began) / LOOKS * 1e9);
        if (sum == 1)
            puts("");
    }
    return best;
}

/* Milliseconds until the last frame is found from the first one on; negative
 * where it is not. */
static double time_find(struct frames *f, uint64_t n)
{
    const struct frames_search search = {.kind = FRAMES_BY_PC, .low = 0x2000};
    double best = 1e9;

    for (unsigned i = 0; i < TRIES; i++) {
        double began = now();

        if (frames_find(f, 0, &search) != (int64_t)(n - 1))
            return -1;
        best = RHEA_MIN(best, (now() - began) * 1e3);
    }
    return best;
}

static int measure(const char *path, uint64_t n, struct rhea_error *err)
{
    uint64_t each = FRAMES_OVERHEAD + (PAYLOAD + 7) / 8 * 8, lost;
    struct frames *f;
    double began, found;
    int ret = frames_create(&f, path, n * each, err);

    if (ret < 0)
        return ret;
    ret = start(f, err);
    began = now();
    if (ret == 0 && !fill(f, n))
        ret = rhea_error_set(err, ENOSPC, "not all frames could be stored");
    if (ret == 0) {
        printf("  %" PRIu64 " frames: %.0f stored a second\n", frames_count(f),
               (double)n / (now() - began));
        found = time_find(f, n);
        printf("  tfind pc, from the first frame to the last: %.1f ms\n",
               found);
        printf("  tfind N: %.0f ns among the first, %.0f ns among the last "
               "1,000; %.0f ns anywhere\n",
               time_get(f, 0, 1000), time_get(f, n - 1000, 1000),
               time_get(f, 0, n));
        if (found < 0)
            ret = rhea_error_set(err, EIO, "the last frame was not found");
    }
    frames_close(f);
    if (ret < 0)
        return ret;
    began = now();
    ret = frames_open(&f, path, &lost, err);
    if (ret < 0)
        return ret;
    printf("  opened again in %.2f s: %" PRIu64 " frames, %" PRIu64 " lost\n",
           now() - began, frames_count(f), lost);
    if (frames_count(f) != n)
        ret = rhea_error_set(err, EIO, "frames are missing");
    frames_close(f);
    return ret;
}

int main(int argc, char **argv)
{
    uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000;
    const char *folder = getenv("TMPDIR");
    struct rhea_error err = {0};
    char path[512];
    int ret;

    if (n < 1000)
        n = 1000;
    snprintf(path, sizeof(path), "%s/bench-frames-%d",
             folder && *folder ? folder : "/tmp", (int)getpid());
    ret = measure(path, n, &err);
    unlink(path);
    if (ret < 0)
        fprintf(stderr, "bench-frames: %s\n", err.text);
    return ret < 0;
}
