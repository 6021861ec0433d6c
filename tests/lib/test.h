/* SPDX-License-Identifier: MIT */
/*
 * A small helper for unit tests. Output is TAP: one line for each test
 * function, so that Meson can list them ('tap' protocol).
 *
 *     static void reads_past_the_end_fail(void)
 *     {
 *         struct rhea_error err;
 *         if (!CHECK_OK(rhea_memory_open(&s, 100, &err), &err))
 *             return;
 *         CHECK_EQ(rhea_storage_read(s, buf, 1, 100, &err), -EIO);
 *     }
 *
 *     int main(int argc, char **argv)
 *     {
 *         test_init(argc, argv);
 *         TEST(reads_past_the_end_fail);
 *         return test_finish();
 *     }
 *
 * A failed check is printed and counted, and the test function goes on; each
 * check is an expression that is true when it held. A word as the program's
 * argument runs only the tests whose names contain it.
 */
#ifndef RHEA_TEST_H
#define RHEA_TEST_H

#include <ftw.h>
#include <inttypes.h>
#include <rhea/base.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    unsigned run, failed;   /* test functions */
    unsigned checks_failed; /* in the test function that runs now */
    const char *filter;
    char skipped[256];
    char folder[256];
} test_state;

static inline void test_init(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_state.filter = argc > 1 ? argv[1] : NULL;
}

static inline bool test_report(bool held, const char *file, int line,
                               const char *fmt, ...) RHEA_PRINTF(4, 5);
static inline bool test_report(bool held, const char *file, int line,
                               const char *fmt, ...)
{
    if (!held) {
        va_list args;
        va_start(args, fmt);
        printf("# %s:%d: ", file, line);
        vprintf(fmt, args);
        putchar('\n');
        va_end(args);
        test_state.checks_failed++;
    }
    return held;
}

static inline bool test_ok(int64_t ret, const struct rhea_error *err,
                           const char *file, int line, const char *text)
{
    return test_report(ret >= 0, file, line, "%s failed with %" PRId64 ": %s",
                       text, ret, err && ret < 0 ? err->text : "");
}

static inline bool test_equal(int64_t a, int64_t b, const char *file, int line,
                              const char *a_text, const char *b_text)
{
    return test_report(a == b, file, line,
                       "%s is %" PRId64 " (0x%" PRIx64 "), not %s, %" PRId64
                       " (0x%" PRIx64 ")",
                       a_text, a, (uint64_t)a, b_text, b, (uint64_t)b);
}

static inline bool test_equal_string(const char *a, const char *b,
                                     const char *file, int line,
                                     const char *a_text)
{
    a = a ? a : "(null)";
    b = b ? b : "(null)";
    return test_report(!strcmp(a, b), file, line, "%s is \"%s\", not \"%s\"",
                       a_text, a, b);
}

static inline bool test_contains(const char *a, const char *b, const char *file,
                                 int line, const char *a_text)
{
    a = a ? a : "(null)";
    return test_report(strstr(a, b) != NULL, file, line,
                       "%s is \"%s\", without \"%s\"", a_text, a, b);
}

static inline bool test_equal_bytes(const void *a, const void *b, size_t len,
                                    const char *file, int line,
                                    const char *a_text)
{
    const uint8_t *x = (const uint8_t *)a, *y = (const uint8_t *)b;
    size_t i = 0;
    while (i < len && x[i] == y[i])
        i++;
    return test_report(i == len, file, line,
                       "%s: byte %zu is 0x%02x, not 0x%02x", a_text, i,
                       i < len ? x[i] : 0, i < len ? y[i] : 0);
}

/* COND holds. */
#define CHECK(cond)                                                            \
    test_report((cond), __FILE__, __LINE__, "not true: %s", #cond)
/* RET, a negative errno on failure, is none; prints ERR's text otherwise. */
#define CHECK_OK(ret, err) test_ok((ret), (err), __FILE__, __LINE__, #ret)
/* Two integers are equal. */
#define CHECK_EQ(a, b)                                                         \
    test_equal((int64_t)(a), (int64_t)(b), __FILE__, __LINE__, #a, #b)
#define CHECK_STR(a, b) test_equal_string((a), (b), __FILE__, __LINE__, #a)
#define CHECK_MEM(a, b, len)                                                   \
    test_equal_bytes((a), (b), (len), __FILE__, __LINE__, #a)
/* The string A contains B. */
#define CHECK_CONTAINS(a, b) test_contains((a), (b), __FILE__, __LINE__, #a)

/* The test function that runs now could not test (all it should), because
 * WHY; it returns on its own. */
static inline void test_skip(const char *why)
{
    snprintf(test_state.skipped, sizeof(test_state.skipped), "%s", why);
}

static inline void test_run(void (*function)(void), const char *name)
{
    if (test_state.filter && !strstr(name, test_state.filter))
        return;
    test_state.checks_failed = 0;
    test_state.skipped[0] = 0;
    function();
    test_state.run++;
    bool failed = test_state.checks_failed > 0;
    test_state.failed += failed;
    printf("%s %u - %s%s%s\n", failed ? "not ok" : "ok", test_state.run, name,
           test_state.skipped[0] ? " # SKIP " : "", test_state.skipped);
}

#define TEST(function) test_run((function), #function)

static inline int test_remove(const char *path, const struct stat *st, int type,
                              struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* The program's exit code; removes the scratch folder. */
static inline int test_finish(void)
{
    if (test_state.folder[0])
        nftw(test_state.folder, test_remove, 16, FTW_DEPTH | FTW_PHYS);
    printf("1..%u\n# %u of %u test functions passed\n", test_state.run,
           test_state.run - test_state.failed, test_state.run);
    return test_state.failed > 0;
}

/* The path of NAME in a scratch folder of this program's own. Lives until the
 * fourth call after it. */
static inline const char *test_path(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    if (!test_state.folder[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(test_state.folder, sizeof(test_state.folder),
                 "%s/rhea-test-XXXXXX", base && *base ? base : "/tmp");
        if (!mkdtemp(test_state.folder)) {
            perror(test_state.folder);
            exit(99); /* a hard error, to Meson */
        }
    }
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", test_state.folder, name);
    return path;
}

/* Run a shell command; its exit code, -1 where it died of a signal. */
static inline int test_command(const char *fmt, ...) RHEA_PRINTF(1, 2);
static inline int test_command(const char *fmt, ...)
{
    char command[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(command, sizeof(command), fmt, args);
    va_end(args);
    int status = system(command);
    return status != -1 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline bool test_have_program(const char *name)
{
    return test_command("command -v %s >/dev/null 2>&1", name) == 0;
}

/* The next number of a repeatable sequence that STATE, any number, starts. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline void test_fill(void *buf, size_t len, uint64_t seed)
{
    uint8_t *p = (uint8_t *)buf;
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)test_random(&seed);
}

#endif
