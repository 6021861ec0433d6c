/* SPDX-License-Identifier: MIT */
#include "gdb/probe.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "gdb/stub.h"

enum {
    TIMEOUT = 1500, /* ms, of each thing: gdb itself waits for 2 seconds */
    CODE = 0x1000,  /* in the guest's memory */
    LOOP = CODE + 1,
    MAX_BASE = 60, /* bytes of the name of the folder for temporary files */
};

/* In a child. */
static void run_qemu(const char *program, bool kvm, const char *socket)
{
    char device[200];
    sigset_t none;

    snprintf(device, sizeof(device), "unix:%s,server=on,wait=off", socket);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (!freopen("/dev/null", "r+", stdin) ||
        !freopen("/dev/null", "w", stdout) ||
        !freopen("/dev/null", "w", stderr))
        _exit(127);
    execl(program, program, "-accel", kvm ? "kvm" : "tcg", "-m", "4",
          "-display", "none", "-monitor", "none", "-serial", "none",
          "-nodefaults", "-S", "-gdb", device, (char *)NULL);
    _exit(127);
}

static bool appears(const char *path, pid_t pid)
{
    int64_t until = wire_now() + TIMEOUT;
    struct stat st;

    while (stat(path, &st) < 0) {
        siginfo_t info = {0};

        if (wire_now() > until ||
            waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 ||
            info.si_pid == pid)
            return false;
        usleep(2000);
    }
    return true;
}

static int set_register(struct stub *s, const struct layout *l,
                        const char *wide, const char *narrow, unsigned value,
                        struct rhea_error *err)
{
    uint8_t bytes[8] = {(uint8_t)value, (uint8_t)(value >> 8)};
    struct packet_text text = {0};
    int n = layout_number(l, wide);

    if (n < 0)
        n = layout_number(l, narrow);
    if (n < 0 || l->registers[n].size > sizeof(bytes))
        return rhea_error_set(err, ENOTSUP, "the stub has no %s", narrow);
    packet_printf(&text, "P%x=", (unsigned)n);
    packet_put_hex(&text, bytes, l->registers[n].size);
    stub_queue(s, text.data ? text.data : "", text.len);
    packet_text_finish(&text);
    return stub_expect_ok(s, "set a register", err);
}

/* Where the program counter is; -1: not known. */
static int64_t program_counter(struct stub *s, const struct layout *l)
{
    const struct layout_register *pc = &l->registers[l->pc];
    const char *reply;
    struct packet_cursor c;
    uint8_t bytes[8];
    size_t got;

    if (pc->size > sizeof(bytes) || stub_callf(s, &reply, NULL, "g") < 0 ||
        strlen(reply) < 2u * (pc->offset + pc->size))
        return -1;
    c = packet_cursor(reply + 2 * (size_t)pc->offset, 2 * (size_t)pc->size);
    if (!packet_bytes(&c, bytes, sizeof(bytes), &got) || got < 2)
        return -1;
    return bytes[0] | bytes[1] << 8; /* the rest is zero */
}

/* Protected mode, since KVM may interpret real mode itself: flat segments from
 * a table at 0, where the processor expects it after a reset; then `nop`, and a
 * loop of `nop` and a jump to it, at which the breakpoint is. */
static int prepare(struct stub *s, const struct layout *l,
                   struct rhea_error *err)
{
    static const struct {
        const char *wide, *narrow;
        unsigned value;
    } registers[] = {
        {"cr0", "cr0", 0x11}, {"cs", "cs", 8},      {"ss", "ss", 16},
        {"ds", "ds", 16},     {"es", "es", 16},     {"fs", "fs", 16},
        {"gs", "gs", 16},     {"rsp", "esp", CODE}, {"rip", "eip", CODE},
    };
    const char *reply;
    /* QEMU lets nobody set a register who has not read its description. */
    int ret =
        stub_callf(s, &reply, err, "qXfer:features:read:target.xml:0,100");

    if (ret < 0)
        return ret;
    stub_queuef(s, "M8,10:ffff0000009bcf00ffff00000093cf00");
    stub_queuef(s, "M%x,4:9090ebfd", CODE);
    ret = stub_expect_ok(s, "write memory", err);
    if (ret == 0)
        ret = stub_expect_ok(s, "write memory", err);
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(registers) && ret == 0; i++)
        ret = set_register(s, l, registers[i].wide, registers[i].narrow,
                           registers[i].value, err);
    return ret;
}

static int meet_breakpoint(struct stub *s, const struct layout *l,
                           struct rhea_error *err)
{
    int ret = prepare(s, l, err);

    if (ret < 0)
        return ret;
    stub_queuef(s, "Z0,%x,1", LOOP);
    ret = stub_expect_ok(s, "insert a breakpoint", err);
    if (ret == 0)
        ret = stub_resume(s, "c", 1, err);
    if (ret == 0)
        ret = stub_wait(s, TIMEOUT, err);
    if (ret < 0)
        return ret;
    if (strncmp(s->stop, "T05", 3) != 0 || program_counter(s, l) != LOOP)
        return rhea_error_set(err, ENOTSUP,
                              "a guest that meets one does not stop there "
                              "(its stub says %.20s)",
                              s->stop);
    return 0;
}

static int try_it(const struct probe *p, const char *program,
                  const char *folder, struct rhea_error *err)
{
    struct stub s = {.wire = {.fd = -1}};
    char socket[100];
    int ret, status;
    pid_t pid;

    snprintf(socket, sizeof(socket), "%s/stub", folder);
    fflush(NULL);
    pid = fork();
    if (pid < 0)
        return rhea_error_errno(err, errno, "cannot start %s", program);
    if (pid == 0)
        run_qemu(program, p->kvm, socket);
    if (!appears(socket, pid))
        ret = rhea_error_set(err, ETIMEDOUT, "%s does not start", program);
    else
        ret = stub_open(&s, socket, TIMEOUT, err);
    if (ret == 0)
        ret = meet_breakpoint(&s, p->layout, err);
    stub_close(&s);
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    unlink(socket);
    return ret;
}

/* The socket's name has to fit into an address, and a comma would end it in
 * QEMU's option. */
static const char *base_folder(void)
{
    const char *base = getenv("TMPDIR");

    return base && *base && strlen(base) <= MAX_BASE && !strchr(base, ',')
               ? base
               : "/tmp";
}

static int find_and_try(const struct probe *p, struct rhea_error *err)
{
    char folder[MAX_BASE + 20], link[64], program[512];
    ssize_t n;
    int ret;

    snprintf(link, sizeof(link), "/proc/%d/exe", (int)p->qemu);
    n = p->qemu > 0 ? readlink(link, program, sizeof(program) - 1) : -1;
    if (n < 0)
        return rhea_error_set(err, ESRCH, "QEMU's program was not found");
    program[n] = 0;
    snprintf(folder, sizeof(folder), "%s/rhea-trace-XXXXXX", base_folder());
    if (!mkdtemp(folder))
        return rhea_error_errno(err, errno, "cannot make a folder %s", folder);
    ret = try_it(p, program, folder, err);
    rmdir(folder);
    return ret;
}

int probe_software(struct probe *p, struct rhea_error *err)
{
    struct rhea_error why = {0};

    if (p->state == PROBE_NEW) {
        int ret = find_and_try(p, &why);

        snprintf(p->why, sizeof(p->why), "%.190s", why.text);
        /* On a busy machine it may work the next time. */
        if (ret != -ETIMEDOUT)
            p->state = ret < 0 ? PROBE_FAILS : PROBE_WORKS;
    }
    if (p->state == PROBE_WORKS)
        return 0;
    return rhea_error_set(err, ENOTSUP, "%s", p->why);
}
