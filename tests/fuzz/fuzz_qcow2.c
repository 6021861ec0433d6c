/* SPDX-License-Identifier: MIT */
/* The QCOW2 driver: every call that it has, on any image. */
#include "fuzz.h"
#include "reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return reader_fuzz("qcow2", data, size);
}
