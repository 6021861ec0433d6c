/* SPDX-License-Identifier: MIT */
/* The VHD driver: every call that it has, on any image. */
#include "fuzz.h"
#include "reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return reader_fuzz("vpc", data, size);
}
