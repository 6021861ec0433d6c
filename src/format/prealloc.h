/* SPDX-License-Identifier: MIT */
/* Space that a file has before anything is written to it. */
#ifndef RHEA_FORMAT_PREALLOC_H
#define RHEA_FORMAT_PREALLOC_H

#include <rhea/storage.h>

/* Whether MODE is off, metadata, falloc or full. */
int prealloc_check(const char *mode, struct rhea_error *err);
/* The file reaches to TO. What is between FROM, where it ended, and there is a
 * hole unless MODE is falloc or full. */
int prealloc_space(struct rhea_storage *storage, const char *mode,
                   uint64_t from, uint64_t to, struct rhea_error *err);
/* Zeroes that are really written. */
int prealloc_fill(struct rhea_storage *storage, uint64_t from, uint64_t to,
                  struct rhea_error *err);
/* The same, which tell PROGRESS (NULL: nobody) how far they are. */
int prealloc_space_told(struct rhea_storage *storage, const char *mode,
                        uint64_t from, uint64_t to,
                        const struct rhea_progress *progress,
                        struct rhea_error *err);
int prealloc_fill_told(struct rhea_storage *storage, uint64_t from, uint64_t to,
                       const struct rhea_progress *progress,
                       struct rhea_error *err);

#endif
