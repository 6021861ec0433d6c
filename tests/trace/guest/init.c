/* SPDX-License-Identifier: MIT */
/*
 * The only program of a Linux guest. It does what `work` says, `count` times,
 * then calls `ready`, where a debugger sets the next work; the first time once
 * it has found the kernel's symbols.
 *
 *     WORK_GETPPID     getppid()
 *     WORK_OPEN        openat(AT_FDCWD, "/no/such/file-N", N), N = 0, 1, ...
 *     WORK_WRITE       write(a file, "line N of many\n", its length)
 *     WORK_EVERYWHERE  a process on each processor calls getpgid(1000 + CPU)
 *     WORK_HIGH        openat with the path at the highest address that there
 * is
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the kernel's system call functions get, in its order. */
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si,
        di, orig_ax, ip, cs, flags, sp, ss;
};

enum work {
    WORK_NONE,
    WORK_GETPPID,
    WORK_OPEN,
    WORK_WRITE,
    WORK_EVERYWHERE,
    WORK_HIGH,
};

volatile enum work work;
volatile unsigned long count;
volatile unsigned long done; /* pieces of work, ever */
volatile unsigned long spin; /* turns of an empty loop after each getppid */
volatile int processors;
volatile int switches_tables; /* each system call does (Linux's PTI) */
char *volatile high;          /* the path of WORK_HIGH */

/* For the debugger: expressions need the type. */
struct pt_regs *volatile regs_type;

struct symbol {
    const char *name;
    unsigned long address;
} symbols[] = {
    {"_text", 0},
    {"__x64_sys_getppid", 0},
    {"__x64_sys_getpgid", 0},
    {"__x64_sys_openat", 0},
    {"__x64_sys_write", 0},
    {"do_sys_openat2", 0},
};

__attribute__((noinline)) void ready(void)
{
    __asm__ volatile("");
}

static void find_symbols(void)
{
    char line[512], name[256];
    unsigned long address;
    FILE *f = fopen("/proc/kallsyms", "r");

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%lx %*c %255s", &address, name) != 2)
            continue;
        for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++)
            if (!strcmp(name, symbols[i].name))
                symbols[i].address = address;
    }
    if (f)
        fclose(f);
}

static void find_processor(void)
{
    char line[4096];
    FILE *f = fopen("/proc/cpuinfo", "r");

    while (f && fgets(line, sizeof(line), f))
        if (!strncmp(line, "flags", 5) && strstr(line, " pti"))
            switches_tables = 1;
    if (f)
        fclose(f);
}

/* On 5 levels of tables addresses have 56 bits for user programs. */
static void find_high(void)
{
    static const unsigned long places[] = {0xfffff000UL << 24,
                                           0x7ffff000UL << 16};

    for (size_t i = 0; i < 2 && !high; i++) {
        char *p =
            mmap((void *)places[i], 4096, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

        if (p == (char *)places[i])
            high = strcpy(p + 4070, "/high/above");
        else if (p != MAP_FAILED)
            munmap(p, 4096);
    }
}

static void run_on(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static void everywhere(unsigned long n)
{
    for (int cpu = 0; cpu < processors; cpu++) {
        if (fork() != 0)
            continue;
        run_on(cpu);
        while (n--)
            syscall(SYS_getpgid, 1000 + cpu);
        _exit(0);
    }
    while (wait(NULL) > 0)
        ;
}

static void do_work(unsigned long n, int fd)
{
    char text[64];

    if (work == WORK_EVERYWHERE) {
        everywhere(count);
        return;
    }
    switch (work) {
    case WORK_GETPPID:
        syscall(SYS_getppid);
        for (unsigned long i = spin; i; i--)
            __asm__ volatile("");
        break;
    case WORK_OPEN:
        snprintf(text, sizeof(text), "/no/such/file-%lu", n);
        syscall(SYS_openat, AT_FDCWD, text, n);
        break;
    case WORK_WRITE:
        syscall(SYS_write, fd, text,
                snprintf(text, sizeof(text), "line %lu of many\n", n));
        break;
    case WORK_HIGH:
        syscall(SYS_openat, AT_FDCWD, high, 0);
        break;
    default:
        break;
    }
}

int main(void)
{
    int fd;

    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    find_symbols();
    find_high();
    find_processor();
    processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
    fd = open("/out", O_CREAT | O_RDWR, 0644);
    run_on(0);
    for (;;) {
        ready();
        for (unsigned long n = 0; n < count; n++) {
            do_work(n, fd);
            done++;
            if (work == WORK_EVERYWHERE)
                break;
        }
    }
}
