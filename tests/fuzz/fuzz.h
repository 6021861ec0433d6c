/* SPDX-License-Identifier: MIT */
/*
 * What the fuzz targets share. A target is one file fuzz_NAME.c with
 * LLVMFuzzerTestOneInput. Linked with libFuzzer it searches; linked with
 * replay.c, as in every other build, it runs the inputs of corpus/NAME as an
 * ordinary test.
 *
 * An image for a target comes from input bytes in one of two ways: they are an
 * image file (they begin with a format's magic), or they are a recipe from
 * which our own drivers build a sound image that is then damaged a little
 * (generate.c). The same input always does the same.
 */
#ifndef RHEA_FUZZ_H
#define RHEA_FUZZ_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <rhea/format.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                               unsigned seed);
/* libFuzzer's own. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* A promise of the program's; the process dies where it is broken. */
#define FUZZ_REQUIRE(cond, ...)                                                \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s: ", __FILE__, __LINE__, #cond); \
            fprintf(stderr, __VA_ARGS__);                                      \
            fputc('\n', stderr);                                               \
            abort();                                                           \
        }                                                                      \
    } while (0)

/* What a target does, told with FUZZ_TRACE=1 in the environment. */
#define FUZZ_TRACE(...)                                                        \
    do {                                                                       \
        if (getenv("FUZZ_TRACE")) {                                            \
            fprintf(stderr, "# " __VA_ARGS__);                                 \
            fputc('\n', stderr);                                               \
        }                                                                      \
    } while (0)

/* --- input bytes --------------------------------------------------------- */

/* What is left of an input; reads as zeroes once it is used up. */
struct fuzz_input {
    const uint8_t *data;
    size_t len;
};

uint8_t fuzz_u8(struct fuzz_input *in);
uint16_t fuzz_u16(struct fuzz_input *in);
uint64_t fuzz_u64(struct fuzz_input *in);
/* 0 to N - 1, of one byte where N allows; N > 0. */
uint64_t fuzz_below(struct fuzz_input *in, uint64_t n);

/* A repeatable sequence that STATE, any number, starts. */
uint64_t fuzz_random(uint64_t *state);
void fuzz_fill(void *buf, size_t len, uint64_t seed);

/* --- storages ------------------------------------------------------------ */

/* Where an image file ends in 16 bytes "RHEA-END" and a little-endian size,
 * these are cut off and the file is made so large instead. */
#define FUZZ_TRAILER "RHEA-END"

/* The cluster size, or for a format without one that of a sector. */
static inline uint32_t fuzz_cluster(const struct rhea_format_info *info)
{
    return info->cluster_size ? info->cluster_size : 512;
}

/* Whether IN is an image file, not a recipe. */
bool fuzz_is_image(const struct fuzz_input *in);

/* The image that is left in IN; NULL where there is none. FORMAT NULL: any.
 * With FUZZ_DUMP=FILE in the environment it is written there too, for a look
 * at what a recipe has made. */
struct rhea_storage *fuzz_image(struct fuzz_input *in,
                                const struct rhea_format_ops *format);
struct rhea_storage *fuzz_clone(struct rhea_storage *s);
uint64_t fuzz_size(struct rhea_storage *s);

/* --- what lies below ----------------------------------------------------- */

/* The one backing file that exists: raw, FUZZ_BASE_SIZE bytes of a pattern
 * that has zeroes too. A function as struct rhea_format's below. */
#define FUZZ_BASE_NAME "base.raw"
#define FUZZ_BASE_SIZE 100352
void fuzz_base_bytes(uint64_t offset, void *buf, size_t len);
int fuzz_base_below(void *opaque, uint64_t offset, void *buf, size_t len,
                    struct rhea_error *err);

/* --- generate.c ---------------------------------------------------------- */

/* Build an image of FORMAT from a recipe. NULL where the recipe asks for what
 * the format does not do. */
struct rhea_storage *generate_image(struct fuzz_input *in,
                                    const struct rhea_format_ops *format);

/* --- mutate.c ------------------------------------------------------------ */

/* Damage the image N times, mostly in its header and its tables. */
void mutate_image(struct rhea_storage *s, const struct rhea_format_ops *format,
                  unsigned n, struct fuzz_input *in);

#endif
