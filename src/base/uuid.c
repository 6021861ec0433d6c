/* SPDX-License-Identifier: MIT */
#include "base/uuid.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/entropy.h"

/* Both ways: the first three fields change their byte order. */
static void uuid_swap(const uint8_t in[UUID_BYTES], uint8_t out[UUID_BYTES])
{
    static const uint8_t order[UUID_BYTES] = {3, 2, 1,  0,  5,  4,  7,  6,
                                              8, 9, 10, 11, 12, 13, 14, 15};
    for (unsigned i = 0; i < UUID_BYTES; i++)
        out[i] = in[order[i]];
}

int uuid_new(uint8_t uuid[UUID_BYTES], struct rhea_error *err)
{
    int ret = entropy_get(uuid, UUID_BYTES, err);
    if (ret)
        return ret;
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    return 0;
}

int guid_new(uint8_t guid[UUID_BYTES], struct rhea_error *err)
{
    uint8_t uuid[UUID_BYTES];
    int ret = uuid_new(uuid, err);
    if (!ret)
        uuid_swap(uuid, guid);
    return ret;
}

void uuid_text(const uint8_t u[UUID_BYTES], char text[UUID_TEXT])
{
    snprintf(text, UUID_TEXT,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10],
             u[11], u[12], u[13], u[14], u[15]);
}

void guid_text(const uint8_t guid[UUID_BYTES], char text[UUID_TEXT])
{
    uint8_t uuid[UUID_BYTES];
    uuid_swap(guid, uuid);
    uuid_text(uuid, text);
}

static int uuid_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool uuid_parse(const char *text, uint8_t uuid[UUID_BYTES])
{
    uint8_t bytes[UUID_BYTES];
    bool braces = *text == '{';
    text += braces;
    for (unsigned i = 0; i < UUID_BYTES; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        int high = uuid_digit(text[0]);
        int low = high < 0 ? -1 : uuid_digit(text[1]);
        if (low < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    if (strcmp(text, braces ? "}" : "") != 0)
        return false;
    memcpy(uuid, bytes, UUID_BYTES);
    return true;
}

bool guid_parse(const char *text, uint8_t guid[UUID_BYTES])
{
    uint8_t uuid[UUID_BYTES];
    bool ok = uuid_parse(text, uuid);
    if (ok)
        uuid_swap(uuid, guid);
    return ok;
}

bool uuid_is_null(const uint8_t uuid[UUID_BYTES])
{
    static const uint8_t null[UUID_BYTES];
    return uuid_equal(uuid, null);
}

bool uuid_equal(const uint8_t a[UUID_BYTES], const uint8_t b[UUID_BYTES])
{
    return memcmp(a, b, UUID_BYTES) == 0;
}
