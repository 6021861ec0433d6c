/* SPDX-License-Identifier: MIT */
/* A program of threads and processes, for rhea-trace in front of gdbserver. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, TURNS = 50 };

volatile int counts[THREADS], signals, child_status = -1, sum;

__attribute__((noinline)) int work(int thread, int turn)
{
    counts[thread]++;
    return thread * 1000 + turn;
}

__attribute__((noinline)) void finished(void)
{
    __asm__ volatile("");
}

static void *run(void *arg)
{
    int thread = (int)(long)arg;

    for (int i = 0; i < TURNS; i++)
        sum += work(thread, i);
    return NULL;
}

static void handle(int number)
{
    (void)number;
    signals++;
}

static void make_child(void)
{
    pid_t pid = fork();
    int status;

    if (pid == 0)
        _exit(work(0, 7) == 7 ? 0 : 1);
    waitpid(pid, &status, 0);
    child_status = status;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];

    (void)argv;
    signal(SIGUSR1, handle);
    while (argc > 2) { /* without end */
        work(0, 1);
        usleep(1000);
    }
    if (argc > 1) { /* a child */
        make_child();
    } else {
        for (long i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, run, (void *)i);
        for (int i = 0; i < 20; i++) {
            raise(SIGUSR1);
            usleep(1000);
        }
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    finished();
    return 3;
}
