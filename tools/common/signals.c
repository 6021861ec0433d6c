/* SPDX-License-Identifier: MIT */
#include <signal.h>

#include "base/checked.h"
#include "common/common.h"

static volatile sig_atomic_t signals_caught, signals_asked;

static void signals_note(int number)
{
    if (!signals_caught)
        signals_caught = number;
}

static void signals_ask(int number)
{
    (void)number;
    signals_asked = 1;
}

void tool_signals_progress(void)
{
    struct sigaction action = {.sa_handler = signals_ask};
    sigset_t set;

    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

bool tool_signals_progress_asked(void)
{
    bool asked = signals_asked;

    signals_asked = 0;
    return asked;
}

void tool_signals_catch(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = signals_note}, old;
    size_t i;

    /* A second signal only finds the flag set; what either interrupts goes
     * on. */
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (i = 0; i < RHEA_ARRAY_SIZE(numbers); i++) {
        /* Under nohup a hangup is still to be ignored. */
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
    /* A reader of the output that goes away must not stop the work. */
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

int tool_signals_caught(void)
{
    return signals_caught;
}

bool tool_signals_cancelled(void *opaque)
{
    (void)opaque;
    return signals_caught != 0;
}
