/* SPDX-License-Identifier: MIT */
/* What the targets for one format do with an image. */
#ifndef RHEA_FUZZ_READER_H
#define RHEA_FUZZ_READER_H

#include "fuzz.h"

/*
 * Put IMAGE, of which nothing is known, through all that FORMAT can do with
 * it. The image stays as it is; changes are made to copies.
 */
void reader_run(const struct rhea_format_ops *format,
                struct rhea_storage *image, uint64_t seed);

/* Check S; *FOUND is what there is. False where it cannot be checked. */
bool reader_check(const struct rhea_format_ops *format, struct rhea_storage *s,
                  unsigned fix, struct rhea_check *found);

/* The SEED for input bytes. */
uint64_t reader_seed(const uint8_t *data, size_t size);
/* A whole target: the image that the input bytes are, or are a recipe for.
 * Returns 0. */
int reader_fuzz(const char *format, const uint8_t *data, size_t size);

#endif
