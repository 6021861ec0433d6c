/* SPDX-License-Identifier: MIT */
/* Parallels' growing files: every call that they have, on any image. */
#include "fuzz.h"
#include "reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return reader_fuzz("parallels", data, size);
}
