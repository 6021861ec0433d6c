/* SPDX-License-Identifier: MIT */
/* The QCOW2 driver: every call that it has, on any image. */
#include "fuzz.h"
#include "reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct rhea_format_ops *format = rhea_format_find("qcow2");
    struct fuzz_input in = {data, size};
    uint64_t seed = size;
    for (size_t i = size < 8 ? 0 : size - 8; i < size; i++)
        seed = seed << 8 ^ seed >> 56 ^ data[i];

    struct rhea_storage *image = fuzz_image(&in, format);
    if (image)
        reader_run(format, image, seed);
    rhea_storage_close(image);
    return 0;
}
