/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/tracing.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum {
    MAX_VCPUS = 4096,
    MAX_STEPPING = 256, /* tracepoints that one processor steps for */
    ADJUST = 2,         /* a return address is behind the call */
};

/* An offset in a page. */
struct place {
    uint64_t offset;
    size_t n;
    const struct tracepoint **points;
};

struct tracing {
    struct frames *frames;
    struct experiment *experiment;
    struct guest_sources sources;
    bool steps; /* every instruction is looked at */
    struct place places[FRAMES_PAGE];
    const struct tracepoint *points[]; /* by place */
};

struct stepping {
    const struct tracepoint *point;
    uint64_t left;
};

/* Where a repeated instruction was seen last. */
struct repeat {
    uint64_t pc, count, from, to;
};

struct vcpu {
    struct guest_cpu guest;
    struct hit hit;
    struct hit_machine machine;
    struct repeat last;
    unsigned n_stepping;
    struct stepping stepping[MAX_STEPPING];
};

/* Guards the making of processors against a change of what is traced. Callbacks
 * do without. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vcpu *vcpus[MAX_VCPUS];
static struct tracing *current;
static char fault[sizeof(((struct rhea_error *)0)->text)];

const char *tracing_fault(void)
{
    return fault[0] ? fault : NULL;
}

void tracing_set_fault(const char *text)
{
    snprintf(fault, sizeof(fault), "%s", text);
    fprintf(stderr, "rhea-trace's plugin cannot trace here: %s\n", fault);
}

/* --- processors ---------------------------------------------------------- */

static void assign(struct vcpu *v, struct tracing *t)
{
    v->n_stepping = 0;
    v->last = (struct repeat){.pc = UINT64_MAX};
    v->hit.frames = t ? t->frames : NULL;
    v->hit.experiment = t ? t->experiment : NULL;
    v->guest.layout = t ? &t->experiment->layout : NULL;
    v->guest.sources = t ? &t->sources : NULL;
    if (t)
        guest_prepare(&v->guest);
}

static struct vcpu *make_vcpu(unsigned index, struct rhea_error *err)
{
    struct qemu_cpu *cpu = qemu.cpu((int)index);
    struct vcpu *v;

    if (!cpu) {
        rhea_error_set(err, ENOENT,
                       "QEMU does not have the processor that it "
                       "tells of");
        return NULL;
    }
    if (index == 0 && guest_find(cpu, err) < 0)
        return NULL;
    v = calloc(1, sizeof(*v));
    if (!v || hit_init(&v->hit, NULL, NULL, err) < 0) {
        free(v);
        rhea_error_errno(err, ENOMEM, "cannot trace a processor");
        return NULL;
    }
    v->guest.cpu = cpu;
    v->guest.bytes = qemu.new_bytes(FRAMES_PAGE);
    v->machine = (struct hit_machine){.get_register = guest_register,
                                      .get_registers = guest_registers,
                                      .read = guest_read,
                                      .opaque = &v->guest,
                                      .cpu = index};
    return v;
}

void tracing_vcpu(unsigned index)
{
    struct rhea_error err;
    struct vcpu *v;

    if (index >= MAX_VCPUS || tracing_fault() || vcpus[index])
        return;
    v = make_vcpu(index, &err);
    if (!v) {
        tracing_set_fault(err.text);
        return;
    }
    pthread_mutex_lock(&lock);
    assign(v, current);
    __atomic_store_n(&vcpus[index], v, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

/* --- what is traced ------------------------------------------------------ */

/* Each place's tracepoints are in a row, in gdb's order. */
static void sort_by_place(struct tracing *t)
{
    const struct experiment *e = t->experiment;
    size_t at = 0;

    for (size_t i = 0; i < e->n_points; i++)
        if (!e->points[i]->watch.len)
            t->places[e->points[i]->address % FRAMES_PAGE].n++;
    for (size_t offset = 0; offset < FRAMES_PAGE; offset++) {
        struct place *p = &t->places[offset];

        p->offset = offset;
        p->points = &t->points[at];
        at += p->n;
        p->n = 0;
    }
    for (size_t i = 0; i < e->n_points; i++) {
        struct place *p = &t->places[e->points[i]->address % FRAMES_PAGE];

        /* rhea-trace sees to these. */
        if (e->points[i]->watch.len)
            continue;
        p->points[p->n++] = e->points[i];
        t->steps |= e->points[i]->step_count > 0;
    }
}

static int load_text(struct experiment *e, struct frames *f,
                     struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    uint64_t generation;
    size_t len = 0;
    int ret = frames_text(f, &text, &len, &generation, err);

    return ret < 0 ? ret : experiment_load(e, text, len, err);
}

int tracing_load(struct tracing **out, struct frames *f, struct rhea_error *err)
{
    struct experiment *e = NULL;
    struct tracing *t;
    int ret = experiment_create(&e, err);

    if (ret < 0)
        return ret;
    ret = load_text(e, f, err);
    if (ret == 0)
        ret = frames_prepare(f, err);
    t = ret < 0 ? NULL
                : calloc(1, sizeof(*t) + e->n_points * sizeof(e->points[0]));
    if (!t) {
        experiment_destroy(e);
        return ret < 0 ? ret : rhea_error_errno(err, ENOMEM, "cannot trace");
    }
    t->frames = f;
    t->experiment = e;
    guest_find_sources(&t->sources, &e->layout);
    sort_by_place(t);
    *out = t;
    return 0;
}

void tracing_free(struct tracing *t)
{
    if (!t)
        return;
    experiment_destroy(t->experiment);
    free(t);
}

struct replacement {
    struct tracing *new, *old;
    pthread_mutex_t lock;
    pthread_cond_t done_changed;
    bool done;
};

/* No virtual processor runs. */
static void replace(struct qemu_cpu *cpu, void *opaque)
{
    struct replacement *r = opaque;

    pthread_mutex_lock(&lock);
    r->old = current;
    current = r->new;
    for (size_t i = 0; i < MAX_VCPUS; i++)
        if (vcpus[i])
            assign(vcpus[i], current);
    pthread_mutex_unlock(&lock);
    qemu.flush(cpu);
    pthread_mutex_lock(&r->lock);
    r->done = true;
    pthread_cond_signal(&r->done_changed);
    pthread_mutex_unlock(&r->lock);
}

/* We do not hold QEMU's big lock, so a processor that is about to fall asleep
 * may miss that it has something to do: it is woken until it has done it. */
static void wait_until_done(struct replacement *r, struct qemu_cpu *cpu)
{
    enum { AGAIN = 2000000 /* ns */ };
    struct timespec until;

    pthread_mutex_lock(&r->lock);
    while (!r->done) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += AGAIN;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        if (pthread_cond_timedwait(&r->done_changed, &r->lock, &until) ==
            ETIMEDOUT)
            qemu.kick(cpu);
    }
    pthread_mutex_unlock(&r->lock);
}

int tracing_replace(struct tracing *t, struct tracing **old,
                    struct rhea_error *err)
{
    struct replacement r = {.new = t,
                            .lock = PTHREAD_MUTEX_INITIALIZER,
                            .done_changed = PTHREAD_COND_INITIALIZER};
    struct vcpu *first = __atomic_load_n(&vcpus[0], __ATOMIC_ACQUIRE);

    if (!first)
        return rhea_error_set(err, EAGAIN,
                              "QEMU has not made its processors yet");
    qemu.run_safely(first->guest.cpu, replace, &r);
    wait_until_done(&r, first->guest.cpu);
    *old = r.old;
    return 0;
}

/* --- hits ---------------------------------------------------------------- */

static bool is_string_instruction(const uint8_t *code, size_t n)
{
    bool repeats = false;

    for (size_t i = 0; i < n; i++) {
        uint8_t c = code[i];

        if (c == 0xf2 || c == 0xf3)
            repeats = true;
        else if ((c >= 0x6c && c <= 0x6f) || (c >= 0xa4 && c <= 0xa7) ||
                 (c >= 0xaa && c <= 0xaf))
            return repeats;
        else if (c != 0x66 && c != 0x67 && (c & 0xf0) != 0x40 && c != 0x26 &&
                 c != 0x2e && c != 0x36 && c != 0x3e && c != 0x64 && c != 0x65)
            return false;
    }
    return false;
}

/* QEMU begins a repeated instruction anew for each time. Only the first is an
 * arrival, as it is for a breakpoint. */
static bool is_repeated(struct vcpu *v, uint64_t pc)
{
    struct repeat last = v->last;
    uint8_t code[6];
    size_t n;

    v->last = (struct repeat){.pc = pc,
                              .count = guest_general(&v->guest, GUEST_RCX),
                              .from = guest_general(&v->guest, GUEST_RSI),
                              .to = guest_general(&v->guest, GUEST_RDI)};
    if (last.pc != pc || last.count != v->last.count + 1 ||
        (last.from == v->last.from && last.to == v->last.to))
        return false;
    n = RHEA_MIN(sizeof(code), (size_t)(FRAMES_PAGE - pc % FRAMES_PAGE));
    return is_string_instruction(code, guest_read(&v->guest, pc, code, n));
}

static void begin_stepping(struct vcpu *v, const struct tracepoint *t)
{
    if (v->n_stepping == MAX_STEPPING)
        frames_stop(v->hit.frames, FRAMES_ERROR, t->number,
                    "too many tracepoints step at once");
    else
        v->stepping[v->n_stepping++] =
            (struct stepping){.point = t, .left = t->step_count};
}

static void step(struct vcpu *v)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < v->n_stepping; i++) {
        struct stepping s = v->stepping[i];

        s.left--;
        if (hit_step(&v->hit, s.point, s.left == 0, &v->machine) != HIT_STORED)
            s.left = 0;
        if (s.left)
            v->stepping[kept++] = s;
    }
    v->n_stepping = kept;
}

static void arrive(struct vcpu *v, const struct place *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct tracepoint *t = p->points[i];

        if (t->address == v->machine.pc &&
            hit_run(&v->hit, t, &v->machine) == HIT_STORED && t->step_count)
            begin_stepping(v, t);
    }
}

static void come(struct vcpu *v, const struct place *p)
{
    uint64_t pc;

    if (!p->n && !v->n_stepping)
        return;
    if (!frames_is_running(frames_control(v->hit.frames)) ||
        frames_is_paused(frames_control(v->hit.frames))) {
        v->n_stepping = 0;
        return;
    }
    pc = guest_pc(&v->guest, p->offset);
    if (is_repeated(v, pc))
        return;
    v->guest.pc = v->machine.pc = pc;
    if (v->n_stepping)
        step(v);
    arrive(v, p);
}

/* The processor, as it looks at an instruction that is about to run. */
static struct vcpu *vcpu_at(unsigned index, void *code, bool first)
{
    struct vcpu *v = index < MAX_VCPUS ? vcpus[index] : NULL;

    if (!v || !v->hit.frames)
        return NULL;
    v->guest.code = (uintptr_t)code - ADJUST;
    v->guest.first = first;
    return v;
}

static void on_first(unsigned index, void *opaque)
{
    struct vcpu *v = vcpu_at(index, __builtin_return_address(0), true);

    if (v && guest_wants_to_learn())
        guest_learn(&v->guest);
    if (v)
        come(v, opaque);
}

static void on_other(unsigned index, void *opaque)
{
    struct vcpu *v = vcpu_at(index, __builtin_return_address(0), false);

    if (v)
        come(v, opaque);
}

void tracing_block(struct qemu_block *block)
{
    struct tracing *t = current;
    size_t n;

    if (!t)
        return;
    n = qemu.block_size(block);
    for (size_t i = 0; i < n; i++) {
        struct qemu_insn *insn = qemu.block_insn(block, i);
        struct place *p = &t->places[qemu.insn_address(insn) % FRAMES_PAGE];

        if (p->n || t->steps || (i == 0 && guest_wants_to_learn()))
            qemu.on_insn(insn, i ? on_other : on_first, QEMU_READS_REGISTERS,
                         p);
    }
}
