/* SPDX-License-Identifier: MIT */
/* Streams: extents with compressed grains, written from start to end. */
#ifndef RHEA_FORMAT_VMDK_STREAM_H
#define RHEA_FORMAT_VMDK_STREAM_H

#include "format/vmdk/vmdk.h"

/*
 * What ends a stream, at offset AT of the file: the grain directory, SECTORS of
 * it, behind a marker, a footer that is HEADER with the directory's place, and
 * the end marker. *END is behind it.
 */
int stream_write_tail(struct rhea_storage *storage, const uint8_t *header,
                      const uint8_t *directory, uint64_t sectors, uint64_t at,
                      uint64_t *end, struct rhea_error *err);

#endif
