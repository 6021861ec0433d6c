/* SPDX-License-Identifier: MIT */
/* Text in UTF-16, as other systems keep names, from and to UTF-8. */
#ifndef RHEA_BASE_UTF16_H
#define RHEA_BASE_UTF16_H

#include <rhea/base.h>

enum utf16_order { UTF16_LITTLE_ENDIAN, UTF16_BIG_ENDIAN };

/* LEN bytes, up to a NUL character if there is one, as malloc'd UTF-8; what is
 * no character becomes U+FFFD. NULL: out of memory. */
char *utf16_to_utf8(const void *bytes, size_t len, enum utf16_order order);

/* *OUT is malloc'd, *LEN its bytes, without a NUL at the end. -EILSEQ: TEXT is
 * not UTF-8. */
int utf16_from_utf8(const char *text, enum utf16_order order, uint8_t **out,
                    size_t *len, struct rhea_error *err);

#endif
