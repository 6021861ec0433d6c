/* SPDX-License-Identifier: MIT */
#ifndef RHEA_IMAGE_BLANK_H
#define RHEA_IMAGE_BLANK_H

#include <rhea/storage.h>

/* A device as an empty file; lives in its user's frame, owns nothing. */
struct blank {
    struct rhea_storage head;
    struct rhea_storage *device;
    uint64_t end; /* of what the file would hold */
    bool keep;    /* gaps keep what the device holds */
};
void blank_init(struct blank *b, struct rhea_storage *device, bool keep);

#endif
