/* SPDX-License-Identifier: MIT */
/*
 * The memory storage's own functions, for what builds on it (crash.h).
 *
 * Bytes live in pages, pages in regions of PER_REGION pages, regions in an
 * array sorted by offset. An absent page or region reads as zeroes. Pages and
 * regions are reference counted and shared by clones; one that is shared is
 * copied before it changes. So a clone costs memory only where it differs, and
 * a byte at an offset of a tebibyte costs a page and a region.
 */
#ifndef RHEA_STORAGE_MEMORY_H
#define RHEA_STORAGE_MEMORY_H

#include <rhea/storage.h>

#define MEMORY_PAGE 4096

/* A copy of S, a memory storage, that shares all pages with it. */
int memory_clone(struct rhea_storage **out, struct rhea_storage *s,
                 struct rhea_error *err);

/* A memory storage with the bytes of any other storage, holes skipped. */
int memory_snapshot(struct rhea_storage **out, struct rhea_storage *from,
                    struct rhea_error *err);

/* A number that tells contents apart (size and bytes; whether zeroes are a
 * hole or were written makes no difference). Not safe against malice. */
uint64_t memory_digest(struct rhea_storage *s);

/* Write the contents to the file PATH, made anew and sparse. */
int memory_dump(struct rhea_storage *s, const char *path,
                struct rhea_error *err);

/* Bytes of all pages S has, shared ones included. */
uint64_t memory_resident(const struct rhea_storage *s);

#endif
