/* SPDX-License-Identifier: MIT */
#include "gdb/hit.h"

#include <errno.h>
#include <time.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/payload.h"

int hit_init(struct hit *h, struct frames *frames,
             const struct experiment *experiment, struct rhea_error *err)
{
    *h = (struct hit){.frames = frames, .experiment = experiment};
    h->payload = malloc(FRAMES_MAX_PAYLOAD + HIT_REGISTER_SLACK);
    if (!h->payload)
        return rhea_error_errno(err, ENOMEM, "cannot record trace frames");
    return 0;
}

void hit_finish(struct hit *h)
{
    free(h->payload);
    *h = (struct hit){0};
}

/* Room for LEN more bytes of payload; NULL where it is full. */
static uint8_t *reserve(struct hit *h, size_t len)
{
    if (len > FRAMES_MAX_PAYLOAD - h->len)
        return NULL;
    h->len += len;
    return h->payload + h->len - len;
}

/* --- the machine of expressions ------------------------------------------ */

static bool machine_register(void *opaque, unsigned n, uint64_t *value)
{
    const struct hit *h = opaque;
    const struct layout *l = &h->experiment->layout;
    uint8_t bytes[EXPERIMENT_MAX_REGISTER] = {0};

    /* Wider ones have no value as a number. */
    if (n >= l->n || !l->registers[n].size || l->registers[n].size > 8 ||
        !h->machine->get_register(h->machine->opaque, n, bytes))
        return false;
    *value = load_le64(bytes);
    return true;
}

/* What can be read of LEN bytes at ADDRESS, up to the end of their page. */
static size_t read_page(const struct hit *h, uint64_t address, void *buf,
                        size_t len)
{
    size_t page = FRAMES_PAGE - (size_t)(address % FRAMES_PAGE);

    return h->machine->read(h->machine->opaque, address, buf,
                            RHEA_MIN(len, page));
}

static bool machine_read(void *opaque, uint64_t address, void *buf, size_t len)
{
    uint8_t *p = buf;

    while (len) {
        size_t n = read_page(opaque, address, p, len);

        if (!n)
            return false;
        address += n;
        p += n;
        len -= n;
    }
    return true;
}

static uint64_t microseconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static bool machine_get_variable(void *opaque, unsigned n, int64_t *value)
{
    const struct hit *h = opaque;

    if (n >= EXPERIMENT_MAX_VARIABLES || !h->experiment->variables[n])
        return false;
    if (n == VARIABLE_TIMESTAMP)
        *value = (int64_t)microseconds();
    else if (n == VARIABLE_CPU)
        *value = h->machine ? h->machine->cpu : 0;
    else
        *value = __atomic_load_n(&frames_variable(h->frames, n)->value,
                                 __ATOMIC_RELAXED);
    return true;
}

static bool machine_set_variable(void *opaque, unsigned n, int64_t value)
{
    const struct hit *h = opaque;

    if (n >= EXPERIMENT_MAX_VARIABLES || !h->experiment->variables[n] ||
        h->experiment->variables[n]->builtin)
        return false;
    __atomic_store_n(&frames_variable(h->frames, n)->value, value,
                     __ATOMIC_RELAXED);
    return true;
}

static uint8_t *block_head(uint8_t *at, uint64_t address, size_t len)
{
    at[0] = 'M';
    store_le64(at + 1, address);
    store_le16(at + 9, (uint16_t)len);
    return at + PAYLOAD_MEMORY_HEAD;
}

/* A block of at most LEN bytes: as many as can be read in a row. *DONE: those;
 * 0 where the first cannot be read. */
static bool record_block(struct hit *h, uint64_t address, size_t len,
                         size_t *done)
{
    size_t start = h->len;
    uint8_t *at = reserve(h, PAYLOAD_MEMORY_HEAD + len), *bytes;

    *done = 0;
    if (!at)
        return false;
    bytes = at + PAYLOAD_MEMORY_HEAD;
    while (*done < len) {
        size_t n = read_page(h, address + *done, bytes + *done, len - *done);

        if (!n)
            break;
        *done += n;
    }
    h->len = *done ? start + PAYLOAD_MEMORY_HEAD + *done : start;
    if (*done)
        block_head(at, address, *done);
    return true;
}

/* What cannot be read is left out, a page at a time; gdb then shows it as
 * unavailable. */
static bool machine_record_memory(void *opaque, uint64_t address, uint64_t len)
{
    struct hit *h = opaque;

    while (len) {
        size_t done;

        if (!record_block(h, address,
                          (size_t)RHEA_MIN(len, (uint64_t)PAYLOAD_BLOCK),
                          &done))
            return false;
        if (!done)
            done = (size_t)RHEA_MIN(len, FRAMES_PAGE - address % FRAMES_PAGE);
        address += done;
        len -= done;
    }
    return true;
}

static bool machine_record_string(void *opaque, uint64_t address, uint64_t len)
{
    struct hit *h = opaque;
    size_t max = (size_t)RHEA_MIN(len, (uint64_t)PAYLOAD_BLOCK), n = 0;
    size_t start = h->len;
    uint8_t *at = reserve(h, PAYLOAD_MEMORY_HEAD), *bytes;
    bool ended = false;

    if (!at)
        return false;
    while (n < max && !ended) {
        size_t step = RHEA_MIN(max - n, (size_t)64), got;
        const uint8_t *zero;

        bytes = reserve(h, step);
        if (!bytes)
            return false;
        got = read_page(h, address + n, bytes, step);
        zero = memchr(bytes, 0, got);
        ended = zero || !got;
        got = zero ? (size_t)(zero - bytes) + 1 : got;
        h->len -= step - got;
        n += got;
    }
    if (n)
        block_head(at, address, n);
    else
        h->len = start;
    return true;
}

static bool machine_record_variable(void *opaque, unsigned n)
{
    struct hit *h = opaque;
    int64_t value;
    uint8_t *at;

    if (!machine_get_variable(h, n, &value))
        return true; /* there is nothing to record */
    at = reserve(h, PAYLOAD_VARIABLE);
    if (!at)
        return false;
    at[0] = 'V';
    store_le32(at + 1, n);
    store_le64(at + 5, (uint64_t)value);
    return true;
}

static size_t print_string(void *opaque, uint64_t address, char *buf,
                           size_t room)
{
    const struct hit *h = opaque;
    size_t n = 0;

    while (n < room) {
        size_t got = read_page(h, address + n, buf + n, room - n);
        const char *zero = memchr(buf + n, 0, got);

        if (zero)
            return (size_t)(zero - buf);
        if (!got)
            break;
        n += got;
    }
    return n;
}

static bool machine_print(void *opaque, const char *format,
                          unsigned n_arguments, const uint64_t *arguments)
{
    struct hit *h = opaque;
    size_t n = ax_format(h->text, h->text_room, format, n_arguments, arguments,
                         print_string, h);

    h->text += n;
    h->text_room -= n;
    return true;
}

static const struct ax_machine machine_of_hits = {
    .get_register = machine_register,
    .read = machine_read,
    .get_variable = machine_get_variable,
    .set_variable = machine_set_variable,
    .record_memory = machine_record_memory,
    .record_string = machine_record_string,
    .record_variable = machine_record_variable,
    .print = machine_print,
};

/* --- actions ------------------------------------------------------------- */

static bool record_registers(struct hit *h, const struct register_set *set)
{
    const struct layout *l = &h->experiment->layout;
    unsigned mask_bytes = (l->n + 7) / 8;
    uint8_t *at, *mask;

    if (!(set->bits[0] | set->bits[1] | set->bits[2] | set->bits[3]))
        return true;
    at = reserve(h, 2 + mask_bytes);
    if (!at)
        return false;
    at[0] = 'R';
    at[1] = (uint8_t)mask_bytes;
    mask = at + 2;
    memset(mask, 0, mask_bytes);
    /* All of them have room, as layouts are checked. */
    at = reserve(h, l->bytes);
    if (!at)
        return false;
    h->len -= l->bytes;
    if (h->machine->get_registers) {
        h->len += h->machine->get_registers(h->machine->opaque, set, at, mask);
        return true;
    }
    for (unsigned n = 0; n < l->n; n++) {
        size_t size = l->registers[n].size;

        if (!size || !register_set_has(set, n) ||
            !h->machine->get_register(h->machine->opaque, n, at))
            continue;
        mask[n / 8] |= (uint8_t)(1u << (n % 8));
        h->len += size;
        at += size;
    }
    return true;
}

static enum ax_status record_memory(struct hit *h, const struct action *a)
{
    uint64_t base = 0;

    if (a->base >= 0 && !machine_register(h, (unsigned)a->base, &base))
        return AX_NO_REGISTER;
    return machine_record_memory(h, base + a->offset, a->size) ? AX_OK
                                                               : AX_FULL;
}

static enum ax_status act(struct hit *h, const struct action *a)
{
    switch (a->kind) {
    case ACTION_MEMORY:
        return record_memory(h, a);
    case ACTION_EXPRESSION:
        return ax_run(a->expression.code, a->expression.len, &machine_of_hits,
                      h, NULL);
    default:
        return AX_OK;
    }
}

/* --- hits ---------------------------------------------------------------- */

static void stop_for(struct hit *h, const struct tracepoint *t,
                     enum ax_status status)
{
    frames_stop(h->frames, FRAMES_ERROR, t->number, ax_status_text(status));
}

static void count(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* Whether the guest can be blamed, and not the expression. */
static bool is_fault(enum ax_status status)
{
    return status == AX_MEMORY || status == AX_NO_REGISTER;
}

static bool condition_holds(struct hit *h, const struct tracepoint *t,
                            struct frames_point *point)
{
    enum ax_status status;
    uint64_t value;

    if (!t->condition.code)
        return true;
    status = ax_run(t->condition.code, t->condition.len, &machine_of_hits, h,
                    &value);
    if (status == AX_OK)
        return value != 0;
    if (is_fault(status))
        count(&point->faults, 1);
    else
        stop_for(h, t, status);
    return false;
}

/* Do the actions and store what they recorded. */
static bool collect(struct hit *h, const struct tracepoint *t,
                    const struct actions *actions, uint64_t run, bool step)
{
    struct frames_point *point = frames_point(h->frames, t->slot);
    struct frames_hit hit = {.pc = h->machine->pc,
                             .run = run,
                             .number = t->number,
                             .cpu = (uint16_t)h->machine->cpu,
                             .flags = step ? FRAMES_STEP : 0,
                             .slot = (uint32_t)t->slot};
    enum ax_status status = AX_OK;

    h->len = 0;
    if (!record_registers(h, &actions->registers))
        status = AX_FULL;
    for (size_t i = 0; i < actions->n && status == AX_OK; i++) {
        status = act(h, &actions->list[i]);
        if (is_fault(status)) {
            count(&point->faults, 1);
            status = AX_OK;
        }
    }
    if (status != AX_OK) {
        stop_for(h, t, status);
        return false;
    }
    return frames_append(h->frames, &hit, h->payload, h->len);
}

static uint64_t run_of(const struct hit *h)
{
    return __atomic_load_n(&frames_control(h->frames)->run, __ATOMIC_RELAXED);
}

/* Several processors may be here at once: the one that makes the pass count
 * full stores the last frame, and those behind it none. */
enum hit_result hit_run(struct hit *h, const struct tracepoint *t,
                        const struct hit_machine *machine)
{
    struct frames_point *point = frames_point(h->frames, t->slot);
    uint64_t run = run_of(h), hits;

    if (!frames_is_running(frames_control(h->frames)) ||
        !__atomic_load_n(&point->enabled, __ATOMIC_RELAXED))
        return HIT_IGNORED;
    h->machine = machine;
    count(&point->tests, 1);
    if (!condition_holds(h, t, point))
        return HIT_IGNORED;
    hits = __atomic_add_fetch(&point->hits, 1, __ATOMIC_RELAXED);
    if ((t->pass_count && hits > t->pass_count) ||
        !collect(h, t, &t->actions, run, false)) {
        __atomic_fetch_sub(&point->hits, 1, __ATOMIC_RELAXED);
        return HIT_STOPPED;
    }
    if (t->pass_count && hits == t->pass_count && !t->step_count)
        frames_stop(h->frames, FRAMES_PASS_COUNT, t->number, NULL);
    return HIT_STORED;
}

enum hit_result hit_step(struct hit *h, const struct tracepoint *t, bool last,
                         const struct hit_machine *machine)
{
    struct frames_point *point = frames_point(h->frames, t->slot);

    if (!frames_is_running(frames_control(h->frames)))
        return HIT_STOPPED;
    h->machine = machine;
    if (!collect(h, t, &t->step_actions, run_of(h), true))
        return HIT_STOPPED;
    if (last && t->pass_count &&
        __atomic_load_n(&point->hits, __ATOMIC_RELAXED) >= t->pass_count)
        frames_stop(h->frames, FRAMES_PASS_COUNT, t->number, NULL);
    return HIT_STORED;
}

enum ax_status hit_evaluate(struct hit *h, const struct expression *x,
                            const struct hit_machine *machine, uint64_t *value)
{
    h->machine = machine;
    return ax_run(x->code, x->len, &machine_of_hits, h, value);
}

enum ax_status hit_print(struct hit *h, const struct expression *x,
                         const struct hit_machine *machine, char *buf,
                         size_t room)
{
    if (x->facts.records)
        return AX_FULL;
    h->machine = machine;
    h->text = buf;
    h->text_room = room;
    buf[0] = 0;
    return ax_run(x->code, x->len, &machine_of_hits, h, NULL);
}

int64_t hit_variable(struct hit *h, unsigned n)
{
    int64_t value = 0;

    h->machine = NULL;
    (void)machine_get_variable(h, n, &value);
    return value;
}
