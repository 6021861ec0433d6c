/* SPDX-License-Identifier: MIT */
/*
 * UUIDs (RFC 4122) of 16 bytes. A "uuid" has its fields in big endian, as the
 * RFC does; a "guid" has the first three in little endian, as Microsoft and
 * VirtualBox store them. The text of both is the same.
 */
#ifndef RHEA_BASE_UUID_H
#define RHEA_BASE_UUID_H

#include <rhea/base.h>

enum { UUID_BYTES = 16, UUID_TEXT = 37 }; /* the text with its end */

/* A random one, version 4. */
int uuid_new(uint8_t uuid[UUID_BYTES], struct rhea_error *err);
int guid_new(uint8_t guid[UUID_BYTES], struct rhea_error *err);
/* Lower case, without braces. */
void uuid_text(const uint8_t uuid[UUID_BYTES], char text[UUID_TEXT]);
void guid_text(const uint8_t guid[UUID_BYTES], char text[UUID_TEXT]);
/* The text back, of either case, perhaps in braces; false: it is none. */
bool uuid_parse(const char *text, uint8_t uuid[UUID_BYTES]);
bool guid_parse(const char *text, uint8_t guid[UUID_BYTES]);
bool uuid_is_null(const uint8_t uuid[UUID_BYTES]);
bool uuid_equal(const uint8_t a[UUID_BYTES], const uint8_t b[UUID_BYTES]);

#endif
