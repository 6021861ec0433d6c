/* SPDX-License-Identifier: MIT */
#include "judge.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rhea/image.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "storage/memory.h"

extern char **environ;

void judge_init(struct judge *j, const char *name)
{
    snprintf(j->path, sizeof(j->path), "%s/%s", j->folder, name);
}

void judge_finish(struct judge *j)
{
    unlink(j->path);
}

static bool judge_refuse(struct judge *j, const char *fmt, ...)
    RHEA_PRINTF(2, 3);
static bool judge_refuse(struct judge *j, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(j->why, sizeof(j->why), fmt, args);
    va_end(args);
    return false;
}

/* Run a program; its exit code, and what it printed in OUTPUT. */
static int judge_run(struct judge *j, const char *const argv[])
{
    posix_spawn_file_actions_t actions;
    int ends[2], status = -1;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC))
        return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    int ret =
        posix_spawnp(&pid, argv[0], &actions, NULL, (char **)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);

    size_t used = 0;
    while (!ret) {
        char rest[512];
        size_t room = sizeof(j->output) - 1 - used;
        ssize_t n = room ? read(ends[0], j->output + used, room)
                         : read(ends[0], rest, sizeof(rest));
        if (n <= 0)
            break;
        used += room ? (size_t)n : 0;
    }
    j->output[used] = 0;
    close(ends[0]);
    if (ret || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

/* "KEY": NUMBER in what was printed; 0 where it is not there. */
static uint64_t judge_number(const struct judge *j, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof(quoted), "\"%s\": ", key);
    const char *at = strstr(j->output, quoted);
    return at ? strtoull(at + strlen(quoted), NULL, 10) : 0;
}

/* qemu-img check divides by the cluster size less one when it counts a QED
 * file's clusters, and calls the surplus leaks. */
static uint64_t judge_false_leaks(const uint8_t *head, uint64_t size)
{
    uint64_t cluster = load_le32(head + 4);
    return memcmp(head, "QED", 4) ? 0 : size / cluster / (cluster - 1);
}

static const char *judge_format(const uint8_t *head)
{
    if (!memcmp(head, "QFI\xfb", 4))
        return "qcow2";
    return memcmp(head, "QED", 4) ? NULL : "qed";
}

/* --- our own reader ------------------------------------------------------- */

static bool judge_same_bytes(struct judge *j, struct rhea_image *a,
                             struct rhea_image *b)
{
    static uint8_t x[1 << 20], y[1 << 20];
    struct rhea_error err;
    uint64_t size = rhea_image_size(a);
    if (rhea_image_size(b) != size)
        return judge_refuse(j, "the disk's size changed");
    for (uint64_t at = 0; at < size; at += sizeof(x)) {
        size_t n = (size_t)RHEA_MIN(size - at, sizeof(x));
        if (rhea_image_read(a, x, n, at, &err) ||
            rhea_image_read(b, y, n, at, &err))
            return judge_refuse(j, "%s", err.text);
        if (memcmp(x, y, n))
            return judge_refuse(j, "guest bytes differ after %" PRIu64, at);
    }
    return true;
}

static bool judge_ourselves(struct judge *j, const char *format)
{
    struct rhea_image *state = NULL, *guest = NULL;
    struct rhea_error err;
    bool good = false;
    if (rhea_image_open(&state, j->path, format, 0, &err) ||
        rhea_image_open(&guest, j->guest, j->guest_format, 0, &err))
        judge_refuse(j, "%s", err.text);
    else
        good = judge_same_bytes(j, state, guest);
    rhea_image_close(state, NULL);
    rhea_image_close(guest, NULL);
    return good;
}

/* --- QEMU ------------------------------------------------------------------
 */

static bool judge_check(struct judge *j, const char *format, bool leaks_allowed,
                        uint64_t false_leaks)
{
    /* With -q it prints no JSON either. */
    const char *const argv[] = {"qemu-img",      "check", "-f", format,
                                "--output=json", j->path, NULL};
    int code = judge_run(j, argv);
    uint64_t corruptions = judge_number(j, "corruptions");
    uint64_t leaks = judge_number(j, "leaks");
    bool is_source = !strcmp(format, j->source);

    if (is_source && code == 2 && corruptions <= j->source_corruptions)
        return true;
    if ((code != 0 && code != 3) || corruptions)
        return judge_refuse(j, "qemu-img check: exit %d: %s", code, j->output);
    if (!leaks_allowed && leaks != false_leaks)
        return judge_refuse(
            j, "%" PRIu64 " leaks, of which %" PRIu64 " are QEMU's mistake",
            leaks, false_leaks);
    return true;
}

static bool judge_compare(struct judge *j, const char *format)
{
    const char *const argv[] = {"qemu-img", "compare", "-f",
                                format,     "-F",      j->guest_format,
                                j->path,    j->guest,  NULL};
    int code = judge_run(j, argv);
    if (code || strstr(j->output, "Warning"))
        return judge_refuse(j, "qemu-img compare: exit %d: %s", code,
                            j->output);
    return true;
}

/* Its first bytes, and a file of it. */
static bool judge_dump(struct judge *j, struct rhea_storage *state,
                       uint8_t head[64], uint64_t *size)
{
    struct rhea_error err;
    if (rhea_storage_size(state, size, &err) ||
        rhea_storage_read_padded(state, head, 64, 0, &err) ||
        memory_dump(state, j->path, &err))
        return judge_refuse(j, "%s", err.text);
    j->n_judged++;
    return true;
}

static bool judge_any(struct judge *j, struct rhea_storage *state,
                      const char *target, bool leaks_allowed)
{
    uint8_t head[64];
    uint64_t size;
    if (!judge_dump(j, state, head, &size))
        return false;
    const char *format = judge_format(head);
    if (!format)
        return judge_refuse(j, "it begins as neither format does");
    if (target && strcmp(format, target))
        return judge_refuse(j, "its format is %s, not %s", format, target);
    if (!strcmp(format, j->source) && !j->qemu_opens_source)
        return judge_ourselves(j, format);
    return judge_check(j, format, leaks_allowed,
                       judge_false_leaks(head, size)) &&
           judge_compare(j, format);
}

bool judge_source(struct judge *j, struct rhea_storage *source)
{
    j->source_corruptions = UINT64_MAX;
    if (!judge_any(j, source, j->source, true))
        return false;
    j->source_corruptions =
        j->qemu_opens_source ? judge_number(j, "corruptions") : 0;
    /* judge_compare came last. */
    uint8_t head[64];
    uint64_t size;
    if (j->qemu_opens_source && judge_dump(j, source, head, &size)) {
        judge_check(j, j->source, true, 0);
        j->source_corruptions = judge_number(j, "corruptions");
    }
    return true;
}

bool judge_state(struct judge *j, struct rhea_storage *state)
{
    return judge_any(j, state, NULL, true);
}

bool judge_finished(struct judge *j, struct rhea_storage *state,
                    const char *target)
{
    return judge_any(j, state, target, false);
}
