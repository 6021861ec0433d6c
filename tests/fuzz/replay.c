/* SPDX-License-Identifier: MIT */
/*
 * Runs a fuzz target on files, for builds without libFuzzer:
 *
 *     replay-NAME FILE-OR-FOLDER...
 *
 * Each input is a test point. One that fails ends the program, its name being
 * the last that was printed.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"

static unsigned count;

static int replay_file(const char *path)
{
    uint8_t *data = NULL;
    size_t len = 0, room = 0;
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    for (;;) {
        if (len == room) {
            room = room ? 2 * room : 65536;
            data = realloc(data, room);
            FUZZ_REQUIRE(data, "memory");
        }
        size_t n = fread(data + len, 1, room - len, file);
        if (!n)
            break;
        len += n;
    }
    fclose(file);
    /* Of its very size, so that a sanitizer sees who reads past it. */
    data = realloc(data, len ? len : 1);
    printf("# %s\n", path);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, len);
    printf("ok %u - %s\n", ++count, path);
    free(data);
    return 0;
}

static int replay_any(const char *path)
{
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    int failed = 0;
    if (n < 0 && errno == ENOTDIR)
        return replay_file(path);
    if (n < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    for (int i = 0; i < n; i++) {
        char *name = NULL;
        if (entries[i]->d_name[0] != '.' &&
            asprintf(&name, "%s/%s", path, entries[i]->d_name) > 0)
            failed |= replay_any(name);
        free(name);
        free(entries[i]);
    }
    free(entries);
    return failed;
}

__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0;
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        failed |= replay_any(argv[i]);
    printf("1..%u\n", count);
    return failed;
}
