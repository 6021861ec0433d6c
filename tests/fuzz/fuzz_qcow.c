/* SPDX-License-Identifier: MIT */
/* The driver of QCOW version 1: every call that it has, on any image. */
#include "fuzz.h"
#include "reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return reader_fuzz("qcow", data, size);
}
