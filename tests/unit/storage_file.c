/* SPDX-License-Identifier: MIT */
/* Files: what is opened, what is reserved, what is given back. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <rhea/storage.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "lib/test.h"
#include "storage/file.h"
#include "storage/record.h"

#define MIB (UINT64_C(1) << 20)

static struct rhea_error err;
static uint8_t buf[4 * MIB], got[4 * MIB];

static struct rhea_storage *create(const char *name)
{
    struct rhea_storage *s = NULL;
    const char *path = test_path(name);
    unlink(path);
    CHECK_OK(rhea_file_open(&s, path, RHEA_FILE_CREATE, &err), &err);
    return s;
}

static uint64_t size_of(struct rhea_storage *s)
{
    uint64_t size = UINT64_MAX;
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    return size;
}

static uint64_t disk_size_of(struct rhea_storage *s)
{
    uint64_t disk_size = UINT64_MAX, device, inode;
    CHECK_EQ(rhea_file_stat(s, &disk_size, &device, &inode), 0);
    return disk_size;
}

static void only_files_and_block_devices_are_opened(void)
{
    struct rhea_storage *s = NULL;
    const char *fifo = test_path("fifo");
    CHECK_EQ(mkfifo(fifo, 0600), 0);
    alarm(20); /* a FIFO must not be waited for */
    CHECK_EQ(rhea_file_open(&s, fifo, 0, &err), -EINVAL);
    CHECK_CONTAINS(err.text, "a pipe");
    CHECK_EQ(rhea_file_open(&s, fifo, RHEA_FILE_WRITE, &err), -EINVAL);
    alarm(0);
    CHECK_EQ(rhea_file_open(&s, "/", 0, &err), -EISDIR);
    CHECK_CONTAINS(err.text, "'/' is a folder");
    CHECK_EQ(rhea_file_open(&s, "/", RHEA_FILE_WRITE, &err), -EISDIR);
    CHECK_EQ(rhea_file_open(&s, "/", RHEA_FILE_CREATE, &err), -EISDIR);
    CHECK_EQ(rhea_file_open(&s, "/dev/null", 0, &err), -EINVAL);
    CHECK_EQ(rhea_file_open(&s, test_path("missing"), 0, &err), -ENOENT);
    CHECK_CONTAINS(err.text, "missing");
    CHECK_EQ(rhea_file_open(&s, "", 0, &err), -ENOENT);
}

static void creating_leaves_an_existing_file_as_it_is(void)
{
    struct rhea_storage *s = create("existing");
    CHECK_OK(rhea_storage_write(s, "hello", 5, 0, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    rhea_storage_close(s);
    if (!CHECK_OK(
            rhea_file_open(&s, test_path("existing"), RHEA_FILE_CREATE, &err),
            &err))
        return;
    CHECK_EQ(size_of(s), 5);
    CHECK(rhea_file_is_regular(s));
    CHECK_OK(rhea_storage_truncate(s, 0, &err), &err);
    CHECK_EQ(size_of(s), 0);
    rhea_storage_close(s);
}

static void a_file_opened_for_reading_cannot_be_written(void)
{
    struct rhea_storage *s = create("read-only");
    CHECK_OK(rhea_storage_write(s, "hello", 5, 0, &err), &err);
    rhea_storage_close(s);
    if (!CHECK_OK(rhea_file_open(&s, test_path("read-only"), 0, &err), &err))
        return;
    CHECK_EQ(rhea_storage_write(s, "x", 1, 0, &err), -EACCES);
    CHECK_OK(rhea_storage_read(s, buf, 5, 0, &err), &err);
    CHECK_MEM(buf, "hello", 5);
    rhea_storage_close(s);
}

static void reserving_takes_blocks_and_changes_no_byte(void)
{
    struct rhea_storage *s = create("reserve");
    test_fill(buf, MIB, 3);
    CHECK_OK(rhea_storage_write(s, buf, 12345, MIB - 12345, &err), &err);
    CHECK_OK(rhea_storage_allocate(s, 777, 3 * MIB, &err), &err);
    CHECK_EQ(size_of(s), 3 * MIB + 777);
    CHECK(disk_size_of(s) >= 3 * MIB);
    memset(got, 1, sizeof(got));
    CHECK_OK(rhea_storage_read(s, got, 3 * MIB + 777, 0, &err), &err);
    CHECK_MEM(got + MIB - 12345, buf, 12345);
    memset(buf, 0, sizeof(buf));
    CHECK_MEM(got, buf, MIB - 12345);
    CHECK_MEM(got + MIB, buf, 2 * MIB + 777);
    /* Again, and inside. */
    CHECK_OK(rhea_storage_allocate(s, 0, 100, &err), &err);
    CHECK_EQ(size_of(s), 3 * MIB + 777);
    rhea_storage_close(s);
}

static void reserving_without_fallocate_takes_blocks_too(void)
{
    struct rhea_storage *s = create("reserve-slowly");
    atomic_store(&((struct file *)s)->missing,
                 FILE_NO_ALLOCATE | FILE_NO_PUNCH | FILE_NO_ZERO_RANGE);
    test_fill(buf, 5000, 3);
    CHECK_OK(rhea_storage_write(s, buf, 5000, MIB, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 2 * MIB, &err), &err);
    CHECK(disk_size_of(s) < MIB);
    CHECK_OK(rhea_storage_allocate(s, 1, 3 * MIB, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    CHECK(disk_size_of(s) >= 3 * MIB);
    CHECK_OK(rhea_storage_read(s, got, 5000, MIB, &err), &err);
    CHECK_MEM(got, buf, 5000);
    CHECK_EQ(size_of(s), 3 * MIB + 1);
    rhea_storage_close(s);
}

static void what_cannot_fit_on_the_disk_is_refused_at_once(void)
{
    struct rhea_storage *s = create("too-large");
    CHECK_OK(rhea_storage_write(s, "hello", 5, 0, &err), &err);
    CHECK_EQ(rhea_storage_allocate(s, 0, UINT64_C(1) << 60, &err), -ENOSPC);
    CHECK_CONTAINS(err.text, "too-large");
    CHECK_EQ(size_of(s), 5);
    CHECK(disk_size_of(s) <= 4096);
    rhea_storage_close(s);
}

static void punching_gives_blocks_back(void)
{
    struct rhea_storage *s = create("punch");
    uint64_t run;
    bool hole;
    test_fill(buf, 2 * MIB, 4);
    CHECK_OK(rhea_storage_write(s, buf, 2 * MIB, 0, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    uint64_t before = disk_size_of(s);
    CHECK_OK(rhea_storage_zero(s, 65536, MIB, true, &err), &err);
    CHECK(disk_size_of(s) <= before - MIB);
    CHECK_EQ(size_of(s), 2 * MIB);
    CHECK_OK(rhea_storage_extent(s, 65536, 10 * MIB, &hole, &run, &err), &err);
    CHECK(hole);
    CHECK_EQ(run, MIB);
    CHECK_OK(rhea_storage_extent(s, 0, 10 * MIB, &hole, &run, &err), &err);
    CHECK(!hole);
    CHECK_EQ(run, 65536);
    /* What lies past the end is a hole as well. */
    CHECK_OK(rhea_storage_extent(s, 3 * MIB, MIB, &hole, &run, &err), &err);
    CHECK(hole);
    CHECK_EQ(run, MIB);
    /* Past the end it grows, without blocks. */
    CHECK_OK(rhea_storage_zero(s, 2 * MIB - 10, 100 * MIB, true, &err), &err);
    CHECK_EQ(size_of(s), 102 * MIB - 10);
    CHECK(disk_size_of(s) < 2 * MIB);
    rhea_storage_close(s);
}

static void zeroing_keeps_blocks(void)
{
    struct rhea_storage *s = create("zero");
    test_fill(buf, 2 * MIB, 4);
    CHECK_OK(rhea_storage_write(s, buf, 2 * MIB, 0, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    CHECK_OK(rhea_storage_zero(s, 1000, MIB, false, &err), &err);
    CHECK(disk_size_of(s) >= 2 * MIB);
    CHECK_OK(rhea_storage_read(s, got, 2 * MIB, 0, &err), &err);
    memset(buf + 1000, 0, MIB);
    CHECK_MEM(got, buf, 2 * MIB);
    rhea_storage_close(s);
}

static void sparse_files_may_be_large(void)
{
    struct rhea_storage *s = create("large");
    uint64_t run;
    bool hole;
    CHECK_OK(rhea_storage_write(s, "end", 3, UINT64_C(1) << 40, &err), &err);
    CHECK_EQ(size_of(s), (UINT64_C(1) << 40) + 3);
    CHECK_OK(rhea_storage_extent(s, 0, INT64_MAX, &hole, &run, &err), &err);
    CHECK(hole);
    CHECK_EQ(run, UINT64_C(1) << 40);
    CHECK_OK(rhea_storage_zero(s, 0, UINT64_C(1) << 40, true, &err), &err);
    CHECK_OK(rhea_storage_read(s, got, 3, UINT64_C(1) << 40, &err), &err);
    CHECK_MEM(got, "end", 3);
    rhea_storage_close(s);
}

/* After lost writes the kernel may say that the next flush was fine. */
static void a_failed_flush_stays_failed(void)
{
    struct rhea_storage *s = create("flush");
    struct file *f = (struct file *)s;
    int pipes[2];
    int saved = dup(f->fd);
    CHECK_EQ(pipe(pipes), 0);
    dup2(pipes[1], f->fd); /* cannot be flushed */
    CHECK_EQ(rhea_storage_flush(s, &err), -EINVAL);
    dup2(saved, f->fd);
    CHECK_EQ(rhea_storage_flush(s, &err), -EINVAL);
    CHECK_CONTAINS(err.text, "earlier flush");
    close(saved);
    close(pipes[0]);
    close(pipes[1]);
    rhea_storage_close(s);
}

/* A call of the system fails where the descriptor cannot do it. */
static void the_system_s_errors_are_told(void)
{
    struct rhea_storage *s = create("errors");
    struct file *f = (struct file *)s;
    uint64_t size;
    close(f->fd);
    f->fd = open("/", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(rhea_storage_read(s, got, 1, 0, &err), -EISDIR);
    CHECK_CONTAINS(err.text, "could not read 1 bytes at offset 0 of");
    CHECK_EQ(rhea_storage_write(s, "x", 1, 9, &err), -EBADF);
    CHECK_CONTAINS(err.text, "could not write 1 bytes at offset 9 of");
    CHECK(rhea_storage_truncate(s, 1, &err) < 0);
    CHECK(rhea_storage_zero(s, 0, 100, true, &err) < 0);
    CHECK(rhea_storage_allocate(s, 0, 100, &err) < 0);
    close(f->fd);
    f->fd = -1;
    CHECK_EQ(rhea_storage_size(s, &size, &err), -EBADF);
    CHECK_EQ(rhea_storage_flush(s, &err), -EBADF);
    rhea_storage_close(s);
}

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) > 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

/* A file system tree of this process's own; who is not root becomes it there.
 */
static bool enter_namespace(void)
{
    char uid_map[64], gid_map[64];
    snprintf(uid_map, sizeof(uid_map), "0 %u 1", getuid());
    snprintf(gid_map, sizeof(gid_map), "0 %u 1", getgid());
    if (unshare(CLONE_NEWNS) < 0 &&
        (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ||
         !write_file("/proc/self/setgroups", "deny") ||
         !write_file("/proc/self/uid_map", uid_map) ||
         !write_file("/proc/self/gid_map", gid_map)))
        return false;
    return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

/* Make FOLDER a file system of 1 MiB that only this process sees. */
static bool mount_small(const char *folder)
{
    return mkdir(folder, 0700) == 0 && enter_namespace() &&
           mount("small", folder, "tmpfs", 0, "size=1m") == 0;
}

static void check_full_disk(const char *path, unsigned missing)
{
    struct rhea_storage *s = NULL;
    unlink(path);
    if (!CHECK_OK(rhea_file_open(&s, path, RHEA_FILE_CREATE, &err), &err))
        return;
    atomic_store(&((struct file *)s)->missing, missing);
    /* More than there is, seen beforehand. */
    CHECK_OK(rhea_storage_write(s, "hello", 5, 0, &err), &err);
    CHECK_EQ(rhea_storage_allocate(s, 5, 2 * MIB, &err), -ENOSPC);
    CHECK_EQ(size_of(s), 5);
    CHECK(disk_size_of(s) <= 4096);
    /* Seen only on the way: a hole in the file takes what there is. */
    CHECK_OK(rhea_storage_truncate(s, 2 * MIB, &err), &err);
    CHECK_EQ(rhea_storage_allocate(s, 0, 2 * MIB + 65536, &err), -ENOSPC);
    CHECK_EQ(size_of(s), 2 * MIB);
    CHECK_OK(rhea_storage_read(s, got, 6, 0, &err), &err);
    CHECK_MEM(got, "hello", 6);
    /* And so does one that leaves too little to grow by. */
    CHECK_OK(rhea_storage_truncate(s, 0, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 3 * MIB / 4, &err), &err);
    CHECK_EQ(rhea_storage_allocate(s, 0, 5 * MIB / 4, &err), -ENOSPC);
    CHECK_EQ(size_of(s), 3 * MIB / 4);
    /* What fits can be had, and then be written for sure. */
    CHECK_OK(rhea_storage_truncate(s, 0, &err), &err);
    CHECK_OK(rhea_storage_allocate(s, 0, MIB - 65536, &err), &err);
    CHECK_EQ(rhea_storage_write(s, buf, 2 * MIB, 0, &err), -ENOSPC);
    CHECK_OK(rhea_storage_write(s, buf, MIB - 65536, 0, &err), &err);
    rhea_storage_close(s);
}

static void a_full_disk_leaves_the_size_as_it_was(void)
{
    char folder[400];
    snprintf(folder, sizeof(folder), "%s", test_path("small"));
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (!mount_small(folder))
            _exit(77);
        char path[512];
        snprintf(path, sizeof(path), "%s/file", folder);
        test_state.checks_failed = 0;
        check_full_disk(path, 0);
        check_full_disk(path, FILE_NO_ALLOCATE);
        fflush(stdout);
        _exit(test_state.checks_failed > 0);
    }
    int status = -1;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        test_skip("no small file system may be mounted here");
    else
        CHECK_EQ(status, 0);
}

/* A device of 1 MiB over a file; its name in DEVICE. */
static bool loop_open(char *device, int size)
{
    char command[600];
    const char *path = test_path("disk");
    if (getuid() != 0 || test_command("truncate -s 1M %s", path))
        return false;
    snprintf(command, sizeof(command), "losetup -f --show %s 2>/dev/null",
             path);
    FILE *f = popen(command, "re");
    bool ok = f && fgets(device, size, f) && strchr(device, '\n');
    if (f)
        pclose(f);
    if (ok)
        *strchr(device, '\n') = 0;
    return ok;
}

static void check_device(struct rhea_storage *s)
{
    CHECK(!rhea_file_is_regular(s));
    CHECK_EQ(size_of(s), MIB);
    test_fill(buf, 2 * MIB, 8);
    CHECK_OK(rhea_storage_lock(s, RHEA_LOCK_ALL, 0, &err), &err);
    CHECK_OK(rhea_storage_write(s, buf, MIB, 0, &err), &err);
    CHECK_EQ(rhea_storage_write(s, buf, 2, MIB - 1, &err), -ENOSPC);
    buf[MIB - 1] = buf[0];
    /* With and without whole blocks, giving back and not. */
    for (unsigned punch = 0; punch < 2; punch++) {
        for (unsigned odd = 0; odd < 2; odd++) {
            uint64_t at = 65536 * (1 + punch * 2 + odd) + odd;
            memset(buf + at, 0, 32768 + odd);
            CHECK_OK(rhea_storage_zero(s, at, 32768 + odd, punch, &err), &err);
        }
    }
    CHECK_EQ(rhea_storage_zero(s, MIB - 512, 513, true, &err), -ENOSPC);
    CHECK_OK(rhea_storage_allocate(s, 0, MIB, &err), &err);
    CHECK_EQ(rhea_storage_allocate(s, 0, MIB + 1, &err), -ENOSPC);
    CHECK_EQ(rhea_storage_truncate(s, MIB / 2, &err), -EOPNOTSUPP);
    CHECK_OK(rhea_storage_truncate(s, MIB, &err), &err);
    CHECK_OK(rhea_storage_flush(s, &err), &err);
    CHECK_OK(rhea_storage_read(s, got, MIB, 0, &err), &err);
    CHECK_MEM(got, buf, MIB);
    CHECK_EQ(rhea_storage_read(s, got, 2, MIB - 1, &err), -EIO);
}

static void a_block_device_has_its_size(void)
{
    char device[64] = "";
    if (!loop_open(device, sizeof(device))) {
        test_skip("no loop device can be made here");
        return;
    }
    for (unsigned direct = 0; direct < 2; direct++) {
        struct rhea_storage *s = NULL;
        unsigned flags = RHEA_FILE_WRITE | (direct ? RHEA_FILE_DIRECT : 0);
        int ret = rhea_file_open(&s, device, flags, &err);
        if (CHECK_OK(ret, &err))
            check_device(s);
        rhea_storage_close(s);
    }
    CHECK_EQ(test_command("losetup -d %s", device), 0);
}

struct worker {
    struct rhea_storage *s;
    unsigned number;
    bool ok;
};

static void *work(void *opaque)
{
    struct worker *w = opaque;
    uint8_t mine[3000], back[3000];
    struct rhea_error e;
    uint64_t run;
    bool hole;
    w->ok = true;
    for (unsigned i = 0; i < 300; i++) {
        uint64_t at = ((uint64_t)(i % 60) * 6 + w->number) * 3000;
        test_fill(mine, sizeof(mine), at + i);
        w->ok &= rhea_storage_write(w->s, mine, 3000, at, &e) == 0;
        /* Growing in ways that look at the size first must not undo the
         * growth of others. */
        if (w->number == 0)
            w->ok &= rhea_storage_allocate(w->s, at, 3000, &e) == 0;
        else if (w->number == 1)
            w->ok &= rhea_storage_zero(w->s, at + 2999, 1, false, &e) == 0;
        w->ok &=
            rhea_storage_extent(w->s, at, 3000, &hole, &run, &e) == 0 && !hole;
        w->ok &= rhea_storage_read(w->s, back, 3000, at, &e) == 0 &&
                 !memcmp(mine, back, 2999);
    }
    return NULL;
}

static void many_threads_may_use_one_file(void)
{
    struct worker workers[6];
    pthread_t threads[6];
    struct rhea_storage *s = create("threads");
    for (unsigned i = 0; i < 6; i++) {
        workers[i] = (struct worker){.s = s, .number = i};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        CHECK(workers[i].ok);
    }
    CHECK_EQ(size_of(s), 360 * 3000);
    rhea_storage_close(s);
}

static void the_same_file_is_known_by_its_identity(void)
{
    struct rhea_storage *a = create("one"), *b = create("two"), *c = NULL;
    struct record_log log = {0};
    uint64_t disk, device_a, device_b, a_inode, b_inode, c_inode;
    CHECK_EQ(symlink(test_path("one"), test_path("link")), 0);
    CHECK_OK(rhea_file_open(&c, test_path("link"), 0, &err), &err);
    CHECK_OK(record_open(&c, c, &log, &err), &err);
    CHECK_EQ(rhea_file_stat(a, &disk, &device_a, &a_inode), 0);
    CHECK_EQ(rhea_file_stat(b, &disk, &device_b, &b_inode), 0);
    CHECK_EQ(device_a, device_b);
    CHECK(a_inode != b_inode);
    CHECK_EQ(rhea_file_stat(c, &disk, &device_b, &c_inode), 0);
    CHECK_EQ(a_inode, c_inode);
    rhea_storage_close(a);
    rhea_storage_close(b);
    rhea_storage_close(c);
    record_log_finish(&log);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(only_files_and_block_devices_are_opened);
    TEST(creating_leaves_an_existing_file_as_it_is);
    TEST(a_file_opened_for_reading_cannot_be_written);
    TEST(reserving_takes_blocks_and_changes_no_byte);
    TEST(reserving_without_fallocate_takes_blocks_too);
    TEST(what_cannot_fit_on_the_disk_is_refused_at_once);
    TEST(punching_gives_blocks_back);
    TEST(zeroing_keeps_blocks);
    TEST(sparse_files_may_be_large);
    TEST(a_failed_flush_stays_failed);
    TEST(the_system_s_errors_are_told);
    TEST(a_full_disk_leaves_the_size_as_it_was);
    TEST(a_block_device_has_its_size);
    TEST(many_threads_may_use_one_file);
    TEST(the_same_file_is_known_by_its_identity);
    return test_finish();
}
