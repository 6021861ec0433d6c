/* SPDX-License-Identifier: MIT */
/*
 * Frames of gdb's remote protocol ("Overview" of the manual's appendix on it):
 * `$payload#xx`, the acknowledgements `+` and `-`, the interrupt byte 0x03 and
 * the escapes inside a payload. No input or output is done here: bytes go in as
 * they came, in pieces of any size, and events come out.
 *
 * And the text of payloads: hexadecimal bytes and numbers, a buffer to which
 * replies are written.
 */
#ifndef RHEA_GDB_PACKET_H
#define RHEA_GDB_PACKET_H

#include <rhea/base.h>

enum {
    PACKET_MAX =
        65536, /* bytes of a payload, once unescaped; more is refused */
    PACKET_INTERRUPT_BYTE = 3,
};

enum packet_event {
    PACKET_NONE,      /* all bytes were taken and no event is complete */
    PACKET_DATA,      /* a payload, in reader.data */
    PACKET_NOTICE,    /* the same, sent with `%`: nobody acknowledges it */
    PACKET_BAD,       /* a payload that came damaged: ask for it again */
    PACKET_ACK,       /* + */
    PACKET_NACK,      /* - */
    PACKET_INTERRUPT, /* 0x03 outside of a packet */
};

/* Owns nothing but memory: packet_reader_init, packet_read in a loop,
 * packet_reader_finish (safe on all zero bytes). */
struct packet_reader {
    uint8_t *data; /* the payload, with a zero byte behind; valid until the
                      next call */
    size_t len;
    bool runs;     /* expand run-length encoding, which only servers use */
    bool no_check; /* take any checksum, as in no-acknowledgement mode */
    /* private */
    int state;
    uint8_t sum, want;
    uint8_t last; /* the last byte, raw, for a run */
    bool has_last, notice, damaged;
};

int packet_reader_init(struct packet_reader *r, bool runs,
                       struct rhea_error *err);
void packet_reader_finish(struct packet_reader *r);
/* Take bytes from *BYTES on, up to the end of the next event; moves *BYTES and
 * *LEN along. Bytes that belong to no packet are skipped. */
enum packet_event packet_read(struct packet_reader *r, const uint8_t **bytes,
                              size_t *len);

/* --- text ---------------------------------------------------------------- */

/* Text that grows up to PACKET_MAX bytes; what does not fit sets `failed` and
 * is left out, as does want of memory. Always ends in a zero byte that does not
 * count. All zero bytes are an empty one. */
struct packet_text {
    char *data;
    size_t len, room;
    bool failed;
};

void packet_text_finish(struct packet_text *t);
void packet_text_clear(struct packet_text *t);
void packet_put(struct packet_text *t, const void *bytes, size_t len);
void packet_puts(struct packet_text *t, const char *text);
void packet_printf(struct packet_text *t, const char *fmt, ...)
    RHEA_PRINTF(2, 3);
void packet_put_hex(struct packet_text *t, const void *bytes, size_t len);
/* `$payload#xx` of any bytes, escaped where the protocol wants it. */
void packet_put_frame(struct packet_text *t, const void *payload, size_t len);

/* The value of a hexadecimal digit; -1 for any other character. */
int packet_hex_digit(char c);

/* What is left of a payload, as it is parsed from the left. */
struct packet_cursor {
    const char *at, *end;
};

struct packet_cursor packet_cursor(const void *payload, size_t len);
bool packet_at_end(const struct packet_cursor *c);
/* Skip TEXT where it is next. */
bool packet_skip(struct packet_cursor *c, const char *text);
/* A number of 1 to 16 hexadecimal digits. */
bool packet_number(struct packet_cursor *c, uint64_t *value);
/* The same with `-` in front allowed. */
bool packet_signed(struct packet_cursor *c, int64_t *value);
/* Bytes in hexadecimal, as many as there are, ROOM at most; false where more
 * follow or the last one is only half there. */
bool packet_bytes(struct packet_cursor *c, void *buf, size_t room, size_t *len);

#endif
