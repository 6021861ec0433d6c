/* SPDX-License-Identifier: MIT */
/* An image in use is refused, by us and by QEMU, whoever came first. */
#include <errno.h>
#include <fcntl.h>
#include <rhea/storage.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "lib/test.h"

static struct rhea_error err;

/* What a converter in place takes, and what a reader takes. */
#define CHANGER_PERM RHEA_LOCK_ALL
#define CHANGER_SHARED 0u
#define READER_PERM RHEA_LOCK_READ
#define READER_SHARED (RHEA_LOCK_READ | RHEA_LOCK_UNCHANGED)

static struct rhea_storage *open_image(bool writable)
{
    struct rhea_storage *s = NULL;
    const char *path = test_path("image");
    if (access(path, F_OK) < 0 &&
        !CHECK_EQ(test_command("truncate -s 1M %s", path), 0))
        return NULL;
    CHECK_OK(rhea_file_open(&s, path, writable ? RHEA_FILE_WRITE : 0, &err),
             &err);
    return s;
}

static int lock_to_change(struct rhea_storage *s)
{
    return rhea_storage_lock(s, CHANGER_PERM, CHANGER_SHARED, &err);
}

static int lock_to_read(struct rhea_storage *s)
{
    return rhea_storage_lock(s, READER_PERM, READER_SHARED, &err);
}

static void one_changer_or_many_readers(void)
{
    struct rhea_storage *a = open_image(true), *b = open_image(true);
    struct rhea_storage *c = open_image(false), *d = open_image(false);

    CHECK_OK(lock_to_change(a), &err);
    CHECK_EQ(lock_to_change(b), -EBUSY);
    CHECK_CONTAINS(err.text, "in use by another program");
    CHECK_EQ(lock_to_read(c), -EBUSY);

    /* Closing another descriptor of the file releases nothing. */
    rhea_storage_close(b);
    CHECK_EQ(lock_to_read(c), -EBUSY);
    CHECK_OK(rhea_storage_lock(a, 0, RHEA_LOCK_ALL, &err), &err);

    CHECK_OK(lock_to_read(c), &err);
    CHECK_OK(lock_to_read(d), &err);
    CHECK_EQ(lock_to_change(a), -EBUSY);
    rhea_storage_close(c);
    CHECK_EQ(lock_to_change(a), -EBUSY);
    rhea_storage_close(d);
    CHECK_OK(lock_to_change(a), &err);
    rhea_storage_close(a);
}

static void a_refused_lock_leaves_the_old_one(void)
{
    struct rhea_storage *a = open_image(true), *b = open_image(true);
    struct rhea_storage *c = open_image(true);
    CHECK_OK(lock_to_read(a), &err);
    CHECK_OK(lock_to_read(b), &err);
    CHECK_EQ(lock_to_change(b), -EBUSY);
    /* B is still a reader, and no more than that. */
    CHECK_EQ(lock_to_change(c), -EBUSY);
    CHECK_OK(lock_to_read(c), &err);
    rhea_storage_close(a);
    rhea_storage_close(c);
    c = open_image(true);
    CHECK_EQ(lock_to_change(c), -EBUSY);
    rhea_storage_close(b);
    CHECK_OK(lock_to_change(c), &err);
    rhea_storage_close(c);
}

static void a_foreign_exclusive_lock_is_respected(void)
{
    struct rhea_storage *a = open_image(true);
    int fd = open(test_path("image"), O_RDWR | O_CLOEXEC);
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK_EQ(fcntl(fd, F_OFD_SETLK, &all), 0);
    CHECK_EQ(lock_to_change(a), -EBUSY);
    CHECK_EQ(lock_to_read(a), -EBUSY);
    close(fd);
    CHECK_OK(lock_to_change(a), &err);
    rhea_storage_close(a);
}

static void memory_need_not_be_locked(void)
{
    struct rhea_storage *s;
    if (!CHECK_OK(rhea_memory_open(&s, 100, &err), &err))
        return;
    CHECK_OK(lock_to_change(s), &err);
    rhea_storage_close(s);
}

struct race {
    atomic_uint round, arrived, holders, won, most;
};

static void race_child(struct race *race, unsigned rounds, unsigned children)
{
    for (unsigned round = 1; round <= rounds; round++) {
        struct rhea_storage *s = open_image(true);
        if (!s)
            _exit(1);
        /* All at once. */
        atomic_fetch_add(&race->arrived, 1);
        while (atomic_load(&race->arrived) < round * children)
            sched_yield();
        if (lock_to_change(s) == 0) {
            unsigned now = atomic_fetch_add(&race->holders, 1) + 1;
            if (now > atomic_load(&race->most))
                atomic_store(&race->most, now);
            atomic_fetch_add(&race->won, 1);
            usleep(200);
            atomic_fetch_sub(&race->holders, 1);
        }
        rhea_storage_close(s);
    }
    _exit(test_state.checks_failed > 0);
}

static void two_that_race_do_not_both_win(void)
{
    enum { CHILDREN = 4, ROUNDS = 100 };
    struct race *race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[CHILDREN];
    test_path("image");
    fflush(stdout);
    for (unsigned i = 0; i < CHILDREN; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            race_child(race, ROUNDS, CHILDREN);
    }
    for (unsigned i = 0; i < CHILDREN; i++) {
        int status = -1;
        CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
        CHECK_EQ(status, 0);
    }
    CHECK_EQ(atomic_load(&race->most), 1);
    printf("# %u locks won in %d rounds\n", atomic_load(&race->won), ROUNDS);
    munmap(race, sizeof(*race));
}

/* Start COMMAND, which returns once the image is in use and leaves a process
 * behind whose number is in the file "pid". */
static bool start(const char *program, const char *command)
{
    if (!test_have_program(program)) {
        test_skip("QEMU's programs are not installed");
        return false;
    }
    rhea_storage_close(open_image(true)); /* makes the file */
    unlink(test_path("pid"));
    return CHECK_EQ(test_command("cd %s && %s", test_state.folder, command), 0);
}

/* Not our child, so it is asked after until it is gone. It is told to end more
 * than once, for qemu-nbd forgets a signal that comes just as it starts. */
static void stop(void)
{
    char line[32] = "";
    FILE *f = fopen(test_path("pid"), "re");
    pid_t pid =
        f && fgets(line, sizeof(line), f) ? (pid_t)strtol(line, NULL, 10) : 0;
    if (f)
        fclose(f);
    if (!CHECK(pid > 1))
        return;
    for (unsigned i = 0; i < 2000; i++) {
        if (kill(pid, i % 20 == 0 ? SIGTERM : 0) < 0)
            return;
        usleep(10000);
    }
    CHECK(kill(pid, SIGKILL) < 0); /* it had 20 seconds */
}

/* With the image in use for writing by a program that START ran. */
static void check_in_use(void)
{
    struct rhea_storage *s = open_image(true);
    CHECK_EQ(lock_to_change(s), -EBUSY);
    CHECK_CONTAINS(err.text, "in use by another program");
    printf("# %s\n", err.text);
    CHECK_EQ(lock_to_read(s), -EBUSY);
    rhea_storage_close(s);
    stop();
    s = open_image(true);
    CHECK_OK(lock_to_change(s), &err);
    rhea_storage_close(s);
}

static void the_image_of_a_running_vm_is_refused(void)
{
    if (start("qemu-system-x86_64",
              "qemu-system-x86_64 -machine q35,accel=tcg -nodefaults "
              "-display none -S -daemonize -pidfile pid "
              "-drive file=image,format=raw,if=virtio"))
        check_in_use();
}

static void the_image_of_an_nbd_server_is_refused(void)
{
    if (start("qemu-nbd",
              "qemu-nbd --fork --persistent --pid-file=pid -k $PWD/nbd.sock "
              "-f raw image"))
        check_in_use();
}

static void the_image_of_a_storage_daemon_is_refused(void)
{
    if (start("qemu-storage-daemon",
              "qemu-storage-daemon --daemonize --pidfile pid "
              "--blockdev file,node-name=f,filename=image "
              "--nbd-server addr.type=unix,addr.path=qsd.sock "
              "--export nbd,id=e,node-name=f,writable=on"))
        check_in_use();
}

/* A program that only reads lets others read, but not change. */
static void the_image_of_a_reader_can_be_read(void)
{
    if (!start("qemu-nbd",
               "qemu-nbd --fork --persistent --read-only --pid-file=pid "
               "-k $PWD/nbd.sock -f raw image"))
        return;
    struct rhea_storage *s = open_image(true);
    CHECK_EQ(lock_to_change(s), -EBUSY);
    CHECK_CONTAINS(err.text, "does not let others");
    CHECK_OK(lock_to_read(s), &err);
    rhea_storage_close(s);
    stop();
}

/* The exit code of a command over the image; its output must speak of locks
 * if it fails. */
static int qemu(const char *command)
{
    int ret = test_command("cd %s && %s >out 2>&1", test_state.folder, command);
    if (ret)
        CHECK_EQ(test_command("grep -q 'Failed to get .* lock' %s",
                              test_path("out")),
                 0);
    return ret;
}

static void qemu_is_refused_what_we_change(void)
{
    if (!test_have_program("qemu-io") ||
        !test_have_program("qemu-system-x86_64")) {
        test_skip("QEMU's programs are not installed");
        return;
    }
    struct rhea_storage *s = open_image(true);
    CHECK_OK(lock_to_change(s), &err);
    CHECK(qemu("qemu-io -f raw -c 'write 0 512' image") > 0);
    CHECK(qemu("qemu-io -f raw -r -c 'read 0 512' image") > 0);
    CHECK(qemu("qemu-img convert -f raw -O raw image copy") > 0);
    CHECK(qemu("timeout -k 5 20 qemu-system-x86_64 -machine q35,accel=tcg "
               "-nodefaults -display none -S "
               "-drive file=image,format=raw,if=virtio") > 0);
    CHECK_EQ(qemu("qemu-img info -U -f raw image"), 0);

    /* Only reading, we let others read. */
    CHECK_OK(lock_to_read(s), &err);
    CHECK(qemu("qemu-io -f raw -c 'write 0 512' image") > 0);
    CHECK_EQ(qemu("qemu-io -f raw -r -c 'read 0 512' image"), 0);
    CHECK_EQ(qemu("qemu-img info -f raw image"), 0);

    rhea_storage_close(s);
    CHECK_EQ(qemu("qemu-io -f raw -c 'write 0 512' image"), 0);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(one_changer_or_many_readers);
    TEST(a_refused_lock_leaves_the_old_one);
    TEST(a_foreign_exclusive_lock_is_respected);
    TEST(memory_need_not_be_locked);
    TEST(two_that_race_do_not_both_win);
    TEST(the_image_of_a_running_vm_is_refused);
    TEST(the_image_of_an_nbd_server_is_refused);
    TEST(the_image_of_a_storage_daemon_is_refused);
    TEST(the_image_of_a_reader_can_be_read);
    TEST(qemu_is_refused_what_we_change);
    return test_finish();
}
