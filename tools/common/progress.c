/* SPDX-License-Identifier: MIT */
#include <time.h>

#include "common/common.h"

/* Seconds until a phase is worth a line. */
#define PROGRESS_DELAY 0.3

static double progress_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void progress_print(struct tool_progress *p, double percent)
{
    if (p->phases)
        fprintf(p->stream, "%s  (%.2f/100%%)   \r", p->phase, percent);
    else
        fprintf(p->stream, "    (%.2f/100%%)\r", percent);
    fflush(p->stream);
    p->shown = percent;
}

void tool_progress_report(void *progress, const char *phase, uint64_t done,
                          uint64_t total)
{
    struct tool_progress *p = progress;
    double percent = total ? 100.0 * (double)done / (double)total : 0;

    if (!p->enabled) {
        if (tool_signals_progress_asked())
            fprintf(stderr, "    (%.2f/100%%)\n", percent);
        return;
    }
    if (!p->phase || (p->phases && strcmp(phase, p->phase))) {
        tool_progress_finish(p, true);
        p->phase = phase;
        p->started = progress_now();
        p->shown = -1;
    }
    if (p->shown >= 0 && percent < p->shown + p->step &&
        !(percent >= 100 && p->shown < 100))
        return;
    if (p->phases && p->shown < 0 &&
        progress_now() < p->started + PROGRESS_DELAY)
        return;
    progress_print(p, percent);
}

void tool_progress_finish(struct tool_progress *p, bool complete)
{
    if (!p->enabled || !p->phase)
        return;
    if (p->shown >= 0) {
        if (complete && (p->shown < 100 || !p->phases))
            progress_print(p, 100);
        fputc('\n', p->stream);
        fflush(p->stream);
    }
    p->phase = NULL;
}
