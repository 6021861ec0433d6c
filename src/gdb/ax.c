/* SPDX-License-Identifier: MIT */
#include "gdb/ax.h"

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/ax_code.h"

/* The stack grows up; S[N - 1] is the top. */
struct run {
    const uint8_t *code;
    const struct ax_machine *machine;
    void *opaque;
    uint64_t s[AX_STACK];
    size_t n, at; /* AT: behind the opcode */
};

/* The low BITS of V, extended from the highest of them. */
static uint64_t sign_extend(uint64_t v, unsigned bits)
{
    if (bits == 0 || bits >= 64)
        return v;
    return (uint64_t)((int64_t)(v << (64 - bits)) >> (64 - bits));
}

static uint64_t zero_extend(uint64_t v, unsigned bits)
{
    return bits >= 64 ? v : v & ((UINT64_C(1) << bits) - 1);
}

static enum ax_status divide(uint8_t opcode, uint64_t a, uint64_t b,
                             uint64_t *result)
{
    /* The lowest number divided by -1 overflows; negation is the answer that
     * wraps, as for all else. */
    bool negate = b == UINT64_MAX;

    if (b == 0)
        return AX_DIVIDE_BY_ZERO;
    switch (opcode) {
    case AX_DIV_SIGNED:
        *result = negate ? -a : (uint64_t)((int64_t)a / (int64_t)b);
        break;
    case AX_DIV_UNSIGNED:
        *result = a / b;
        break;
    case AX_REM_SIGNED:
        *result = negate ? 0 : (uint64_t)((int64_t)a % (int64_t)b);
        break;
    default:
        *result = a % b;
        break;
    }
    return AX_OK;
}

/* A shift by 64 bits or more leaves nothing, or the sign. */
static uint64_t shift(uint8_t opcode, uint64_t a, uint64_t b)
{
    switch (opcode) {
    case AX_LSH:
        return b < 64 ? a << b : 0;
    case AX_RSH_UNSIGNED:
        return b < 64 ? a >> b : 0;
    default:
        return (uint64_t)((int64_t)a >> RHEA_MIN(b, UINT64_C(63)));
    }
}

/* Of two values one. */
static enum ax_status binary(uint8_t opcode, uint64_t a, uint64_t b,
                             uint64_t *result)
{
    switch (opcode) {
    case AX_ADD:
        *result = a + b;
        return AX_OK;
    case AX_SUB:
        *result = a - b;
        return AX_OK;
    case AX_MUL:
        *result = a * b;
        return AX_OK;
    case AX_LSH:
    case AX_RSH_SIGNED:
    case AX_RSH_UNSIGNED:
        *result = shift(opcode, a, b);
        return AX_OK;
    case AX_BIT_AND:
        *result = a & b;
        return AX_OK;
    case AX_BIT_OR:
        *result = a | b;
        return AX_OK;
    case AX_BIT_XOR:
        *result = a ^ b;
        return AX_OK;
    case AX_EQUAL:
        *result = a == b;
        return AX_OK;
    case AX_LESS_SIGNED:
        *result = (int64_t)a < (int64_t)b;
        return AX_OK;
    case AX_LESS_UNSIGNED:
        *result = a < b;
        return AX_OK;
    default:
        return divide(opcode, a, b, result);
    }
}

static enum ax_status run_ref(struct run *r, size_t size)
{
    uint8_t bytes[8] = {0};
    uint64_t *top = &r->s[r->n - 1];

    if (!r->machine->read(r->opaque, *top, bytes, size))
        return AX_MEMORY;
    *top = load_le64(bytes); /* the guests that we trace are little-endian */
    return AX_OK;
}

static enum ax_status run_record(struct run *r, uint8_t opcode)
{
    const uint8_t *operand = r->code + r->at;
    uint64_t *top = &r->s[r->n - 1];
    bool room;

    switch (opcode) {
    case AX_TRACE:
    case AX_TRACENZ:
        room = (opcode == AX_TRACE
                    ? r->machine->record_memory
                    : r->machine->record_string)(r->opaque, top[-1], top[0]);
        r->n -= 2;
        break;
    case AX_TRACE_QUICK:
        room = r->machine->record_memory(r->opaque, *top, *operand);
        break;
    default:
        room = r->machine->record_memory(r->opaque, *top, load_be16(operand));
        break;
    }
    return room ? AX_OK : AX_FULL;
}

static enum ax_status run_variable(struct run *r, uint8_t opcode)
{
    unsigned n = load_be16(r->code + r->at);
    int64_t value;

    switch (opcode) {
    case AX_GETV:
        if (!r->machine->get_variable(r->opaque, n, &value))
            return AX_NO_VARIABLE;
        r->s[r->n++] = (uint64_t)value;
        return AX_OK;
    case AX_SETV:
        value = (int64_t)r->s[r->n - 1];
        return r->machine->set_variable(r->opaque, n, value) ? AX_OK
                                                             : AX_NO_VARIABLE;
    default:
        return r->machine->record_variable(r->opaque, n) ? AX_OK : AX_FULL;
    }
}

/* gdb pushes the last argument first, then channel and function, which no agent
 * has a use for. */
static enum ax_status run_print(struct run *r)
{
    const uint8_t *operand = r->code + r->at;
    uint64_t arguments[AX_MAX_ARGUMENTS];
    unsigned n = operand[0];

    r->n -= 2;
    for (unsigned i = 0; i < n; i++)
        arguments[i] = r->s[--r->n];
    r->at += load_be16(operand + 1);
    return r->machine->print(r->opaque, (const char *)operand + 3, n, arguments)
               ? AX_OK
               : AX_FULL;
}

static void run_constant(struct run *r, unsigned size)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < size; i++)
        v = v << 8 | r->code[r->at + i];
    r->s[r->n++] = v;
}

static void run_stack(struct run *r, uint8_t opcode)
{
    uint64_t *end = r->s + r->n, v;

    switch (opcode) {
    case AX_DUP:
        *end = end[-1];
        r->n++;
        break;
    case AX_POP:
        r->n--;
        break;
    case AX_SWAP:
        v = end[-1];
        end[-1] = end[-2];
        end[-2] = v;
        break;
    case AX_PICK:
        *end = end[-1 - r->code[r->at]];
        r->n++;
        break;
    default: /* rot: a b c => c a b */
        v = end[-1];
        end[-1] = end[-2];
        end[-2] = end[-3];
        end[-3] = v;
        break;
    }
}

static enum ax_status run_opcode(struct run *r, uint8_t opcode)
{
    uint64_t *top = &r->s[r->n ? r->n - 1 : 0];

    switch (opcode) {
    case AX_LOG_NOT:
        *top = !*top;
        return AX_OK;
    case AX_BIT_NOT:
        *top = ~*top;
        return AX_OK;
    case AX_EXT:
        *top = sign_extend(*top, r->code[r->at]);
        return AX_OK;
    case AX_ZERO_EXT:
        *top = zero_extend(*top, r->code[r->at]);
        return AX_OK;
    case AX_REF8:
    case AX_REF16:
    case AX_REF32:
    case AX_REF64:
        return run_ref(r, (size_t)1 << (opcode - AX_REF8));
    case AX_CONST8:
    case AX_CONST16:
    case AX_CONST32:
    case AX_CONST64:
        run_constant(r, 1u << (opcode - AX_CONST8));
        return AX_OK;
    case AX_REG:
        if (!r->machine->get_register(r->opaque, load_be16(r->code + r->at),
                                      &r->s[r->n]))
            return AX_NO_REGISTER;
        r->n++;
        return AX_OK;
    case AX_DUP:
    case AX_POP:
    case AX_SWAP:
    case AX_PICK:
    case AX_ROT:
        run_stack(r, opcode);
        return AX_OK;
    case AX_GETV:
    case AX_SETV:
    case AX_TRACEV:
        return run_variable(r, opcode);
    case AX_TRACE:
    case AX_TRACE_QUICK:
    case AX_TRACE16:
    case AX_TRACENZ:
        return run_record(r, opcode);
    case AX_PRINTF:
        return run_print(r);
    default:
        r->n--;
        return binary(opcode, top[-1], top[0], &top[-1]);
    }
}

enum ax_status ax_run(const uint8_t *code, size_t len,
                      const struct ax_machine *machine, void *opaque,
                      uint64_t *value)
{
    struct run r;

    (void)len; /* a verified expression does not leave it */
    r.code = code;
    r.machine = machine;
    r.opaque = opaque;
    r.n = r.at = 0;
    for (unsigned steps = 0; steps < AX_MAX_STEPS; steps++) {
        uint8_t opcode = code[r.at++];
        enum ax_status status;

        if (opcode == AX_END) {
            if (value && r.n == 0)
                return AX_EMPTY;
            if (value)
                *value = r.s[r.n - 1];
            return AX_OK;
        }
        if (opcode == AX_GOTO || (opcode == AX_IF_GOTO && r.s[--r.n] != 0)) {
            r.at = load_be16(code + r.at);
            continue;
        }
        if (opcode != AX_IF_GOTO) {
            status = run_opcode(&r, opcode);
            if (status != AX_OK)
                return status;
        }
        r.at += ax_shapes[opcode].operands;
    }
    return AX_TOO_LONG;
}

const char *ax_status_text(enum ax_status status)
{
    static const char *const texts[] = {
        [AX_OK] = "no error",
        [AX_MEMORY] = "memory that cannot be read",
        [AX_NO_REGISTER] = "a register that is not there",
        [AX_NO_VARIABLE] = "a trace state variable that is not there",
        [AX_DIVIDE_BY_ZERO] = "division by zero",
        [AX_TOO_LONG] = "too many steps",
        [AX_FULL] = "more data than there is room for",
        [AX_EMPTY] = "no value",
    };

    return texts[status];
}
