/* SPDX-License-Identifier: MIT */
/* Streams: extents with compressed grains, written from start to end. */
#ifndef RHEA_FORMAT_VMDK_STREAM_H
#define RHEA_FORMAT_VMDK_STREAM_H

#include "format/vmdk/vmdk.h"

/*
 * What ends a stream, at offset AT of the file: the grain directory, SECTORS of
 * it, behind a marker, a footer that is HEADER with the directory's place, and
 * the end marker; durable. *DIRECTORY_AT is where the directory is, *END is
 * behind all.
 */
int stream_write_tail(struct rhea_storage *storage, const uint8_t *header,
                      const uint8_t *directory, uint64_t sectors, uint64_t at,
                      uint64_t *directory_at, uint64_t *end,
                      struct rhea_error *err);

/* Whether X, a stream, can be written to. */
int vmdk_stream_check(const struct vmdk_extent *x, struct rhea_error *err);
/* Write back, end the stream. Nothing where nothing was written. With the
 * lock. */
int vmdk_stream_finish(struct vmdk_extent *x, struct rhea_error *err);
void vmdk_stream_free(struct vmdk_extent *x);

/* Grain table INDEX, for the map: whether the writer has it in memory, then
 * *ENTRIES, or else its place, 0: none. With the lock. */
bool vmdk_stream_table(const struct vmdk_extent *x, uint64_t index,
                       const uint8_t **entries, uint64_t *table);

/* For a stream that was cut off: its directory is empty, and what is written
 * goes to END of the file. Then what is there is entered, and it is finished.
 */
int vmdk_stream_restart(struct vmdk_extent *x, uint64_t end,
                        struct rhea_error *err);
/* GRAIN is at offset HOST of the file. */
int vmdk_stream_enter(struct vmdk_extent *x, uint64_t grain, uint64_t host,
                      struct rhea_error *err);
/* stream_recover.c: all of that, as far as FIX says. With the lock. */
int vmdk_stream_recover(struct vmdk_extent *x, unsigned fix,
                        struct rhea_check *check, struct rhea_error *err);

/* Guest bytes at AT of X: whole grains, none of which was written yet. */
int vmdk_stream_write(struct vmdk_extent *x, uint64_t at, const uint8_t *buf,
                      size_t len, struct rhea_error *err);
int vmdk_stream_write_zeroes(struct vmdk_extent *x, uint64_t at, uint64_t len,
                             struct rhea_error *err);

/* See rhea_format_ops. */
int vmdk_write_compressed(struct rhea_format *f, uint64_t offset,
                          const void *buf, size_t len, struct rhea_error *err);
int vmdk_pack(struct rhea_format *f, uint64_t offset, const void *buf,
              size_t len, void *packed, size_t *n, struct rhea_error *err);
int vmdk_write_packed(struct rhea_format *f, uint64_t offset,
                      const void *packed, size_t n, struct rhea_error *err);

/* pack.c: a grain as it is stored: marker, compressed bytes, zeroes up to a
 * sector. PACKED has room for what pack_max says. */
size_t pack_max(uint64_t grain_size);
int pack_grain(struct vmdk *v, uint64_t sector, const void *buf, size_t len,
               uint64_t grain_size, uint8_t *packed, size_t *n,
               struct rhea_error *err);
void pack_finish(struct vmdk *v);

#endif
