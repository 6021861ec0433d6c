/* SPDX-License-Identifier: MIT */
#include "gdb/packet.h"

#include <errno.h>
#include <stdarg.h>

#include "base/checked.h"

enum {
    READER_IDLE,
    READER_DATA,
    READER_ESCAPE, /* behind } */
    READER_RUN,    /* behind * */
    READER_SUM_1,  /* behind # */
    READER_SUM_2,
};

enum {
    ESCAPE_XOR = 0x20,
    RUN_BIAS = 29, /* the count's character is so much above the count */
};

int packet_reader_init(struct packet_reader *r, bool runs,
                       struct rhea_error *err)
{
    *r = (struct packet_reader){.runs = runs, .state = READER_IDLE};
    r->data = malloc(PACKET_MAX + 1);
    if (!r->data)
        return rhea_error_errno(err, ENOMEM, "cannot read packets");
    r->data[0] = 0;
    return 0;
}

void packet_reader_finish(struct packet_reader *r)
{
    free(r->data);
    *r = (struct packet_reader){0};
}

static void reader_begin(struct packet_reader *r, bool notice)
{
    r->state = READER_DATA;
    r->len = 0;
    r->sum = 0;
    r->has_last = r->damaged = false;
    r->notice = notice;
}

static void reader_store(struct packet_reader *r, uint8_t byte, size_t count)
{
    if (count > PACKET_MAX - r->len) {
        r->damaged = true;
        return;
    }
    memset(r->data + r->len, byte, count);
    r->len += count;
    r->last = byte;
    r->has_last = true;
}

static enum packet_event reader_idle(struct packet_reader *r, uint8_t byte)
{
    switch (byte) {
    case '$':
    case '%':
        reader_begin(r, byte == '%');
        return PACKET_NONE;
    case '+':
        return PACKET_ACK;
    case '-':
        return PACKET_NACK;
    case PACKET_INTERRUPT_BYTE:
        return PACKET_INTERRUPT;
    default:
        return PACKET_NONE;
    }
}

static void reader_data(struct packet_reader *r, uint8_t byte)
{
    if (byte == '$') {
        /* It never stands in a payload: the packet before lost its end. */
        reader_begin(r, false);
        return;
    }
    if (byte == '#') {
        r->state = READER_SUM_1;
        return;
    }
    r->sum = (uint8_t)(r->sum + byte);
    if (byte == '}')
        r->state = READER_ESCAPE;
    else if (byte == '*' && r->runs && r->has_last)
        r->state = READER_RUN;
    else
        reader_store(r, byte, 1);
}

static enum packet_event reader_end(struct packet_reader *r, uint8_t byte)
{
    int digit = packet_hex_digit((char)byte);

    if (digit < 0)
        r->damaged = true;
    r->want = (uint8_t)(r->want << 4 | (digit & 15));
    if (r->state == READER_SUM_1) {
        r->state = READER_SUM_2;
        return PACKET_NONE;
    }
    r->state = READER_IDLE;
    if (!r->no_check && r->want != r->sum)
        r->damaged = true;
    r->data[r->len] = 0;
    if (r->damaged)
        return r->notice ? PACKET_NONE : PACKET_BAD;
    return r->notice ? PACKET_NOTICE : PACKET_DATA;
}

static enum packet_event reader_byte(struct packet_reader *r, uint8_t byte)
{
    switch (r->state) {
    case READER_IDLE:
        return reader_idle(r, byte);
    case READER_DATA:
        reader_data(r, byte);
        return PACKET_NONE;
    case READER_ESCAPE:
        r->sum = (uint8_t)(r->sum + byte);
        r->state = READER_DATA;
        reader_store(r, byte ^ ESCAPE_XOR, 1);
        return PACKET_NONE;
    case READER_RUN:
        r->sum = (uint8_t)(r->sum + byte);
        r->state = READER_DATA;
        if (byte <= RUN_BIAS)
            r->damaged = true;
        else
            reader_store(r, r->last, byte - RUN_BIAS);
        return PACKET_NONE;
    default:
        return reader_end(r, byte);
    }
}

enum packet_event packet_read(struct packet_reader *r, const uint8_t **bytes,
                              size_t *len)
{
    while (*len) {
        uint8_t byte = *(*bytes)++;
        enum packet_event event;

        (*len)--;
        event = reader_byte(r, byte);
        if (event != PACKET_NONE)
            return event;
    }
    return PACKET_NONE;
}

/* --- text ---------------------------------------------------------------- */

void packet_text_finish(struct packet_text *t)
{
    free(t->data);
    *t = (struct packet_text){0};
}

void packet_text_clear(struct packet_text *t)
{
    t->len = 0;
    t->failed = false;
    if (t->data)
        t->data[0] = 0;
}

/* Room for MORE bytes and the zero behind them. */
static bool text_reserve(struct packet_text *t, size_t more)
{
    /* A frame of the longest payload, all of it escaped. */
    const size_t max = 2 * PACKET_MAX + 16;
    size_t room = t->room ? t->room : 256;
    char *data;

    if (t->failed || more > max - t->len) {
        t->failed = true;
        return false;
    }
    while (room < t->len + more + 1)
        room *= 2;
    if (room == t->room)
        return true;
    data = realloc(t->data, room);
    if (!data) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->room = room;
    return true;
}

void packet_put(struct packet_text *t, const void *bytes, size_t len)
{
    if (!text_reserve(t, len))
        return;
    if (len)
        memcpy(t->data + t->len, bytes, len);
    t->len += len;
    t->data[t->len] = 0;
}

void packet_puts(struct packet_text *t, const char *text)
{
    packet_put(t, text, strlen(text));
}

void packet_printf(struct packet_text *t, const char *fmt, ...)
{
    va_list args;
    int len;

    va_start(args, fmt);
    len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (len < 0 || !text_reserve(t, (size_t)len)) {
        t->failed = true;
        return;
    }
    va_start(args, fmt);
    vsnprintf(t->data + t->len, t->room - t->len, fmt, args);
    va_end(args);
    t->len += (size_t)len;
}

void packet_put_hex(struct packet_text *t, const void *bytes, size_t len)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = bytes;

    if (len > PACKET_MAX || !text_reserve(t, 2 * len)) {
        t->failed = true;
        return;
    }
    for (size_t i = 0; i < len; i++) {
        t->data[t->len++] = digits[p[i] >> 4];
        t->data[t->len++] = digits[p[i] & 15];
    }
    t->data[t->len] = 0;
}

void packet_put_frame(struct packet_text *t, const void *payload, size_t len)
{
    const uint8_t *p = payload;
    uint8_t sum = 0;

    if (len > PACKET_MAX || !text_reserve(t, 2 * len + 4)) {
        t->failed = true;
        return;
    }
    t->data[t->len++] = '$';
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = p[i];

        if (byte == '$' || byte == '#' || byte == '}' || byte == '*') {
            t->data[t->len++] = '}';
            sum = (uint8_t)(sum + '}');
            byte ^= ESCAPE_XOR;
        }
        t->data[t->len++] = (char)byte;
        sum = (uint8_t)(sum + byte);
    }
    t->data[t->len] = 0;
    packet_put(t, "#", 1);
    packet_put_hex(t, &sum, 1);
}

int packet_hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

struct packet_cursor packet_cursor(const void *payload, size_t len)
{
    const char *p = payload;

    return (struct packet_cursor){p, p + len};
}

bool packet_at_end(const struct packet_cursor *c)
{
    return c->at == c->end;
}

bool packet_skip(struct packet_cursor *c, const char *text)
{
    size_t len = strlen(text);

    if ((size_t)(c->end - c->at) < len || memcmp(c->at, text, len))
        return false;
    c->at += len;
    return true;
}

bool packet_number(struct packet_cursor *c, uint64_t *value)
{
    const char *start = c->at;
    uint64_t v = 0;
    int digit;

    while (c->at < c->end && (digit = packet_hex_digit(*c->at)) >= 0) {
        if (v >> 60)
            return false;
        v = v << 4 | (unsigned)digit;
        c->at++;
    }
    *value = v;
    return c->at > start;
}

bool packet_signed(struct packet_cursor *c, int64_t *value)
{
    bool negative = packet_skip(c, "-");
    uint64_t v;

    if (!packet_number(c, &v))
        return false;
    *value = (int64_t)(negative ? -v : v);
    return true;
}

bool packet_bytes(struct packet_cursor *c, void *buf, size_t room, size_t *len)
{
    uint8_t *p = buf;
    size_t n = 0;

    while (c->at < c->end && packet_hex_digit(*c->at) >= 0) {
        int low = c->end - c->at > 1 ? packet_hex_digit(c->at[1]) : -1;

        if (low < 0 || n == room)
            return false;
        p[n++] = (uint8_t)(packet_hex_digit(c->at[0]) << 4 | low);
        c->at += 2;
    }
    *len = n;
    return true;
}
