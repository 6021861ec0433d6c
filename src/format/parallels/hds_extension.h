/* SPDX-License-Identifier: MIT */
/* The format extension's layout (spec, "Format Extension"). */
#ifndef RHEA_FORMAT_PARALLELS_HDS_EXTENSION_H
#define RHEA_FORMAT_PARALLELS_HDS_EXTENSION_H

#include "base/gcrypt.h"
#include "format/parallels/hds.h"

#define EXT_MAGIC UINT64_C(0xab234cef23dcea87)
#define EXT_DIRTY_BITMAP UINT64_C(0x20385fae252cb34a)
#define EXT_END UINT64_C(0)

enum {
    EXT_CHECKSUM = 8, /* of what follows it */
    EXT_HASH = 16,
    EXT_HEADER = 24,
    /* A feature: */
    EXT_FEATURE_FLAGS = 8,
    EXT_FEATURE_SIZE = 16,
    EXT_FEATURE = 24,
    /* A bitmap: */
    EXT_BITMAP_ID = 8,
    EXT_BITMAP_GRANULARITY = 24,
    EXT_BITMAP_L1_SIZE = 28,
    EXT_BITMAP = 32,
    EXT_MAX_GRANULARITY = 1 << 22, /* sectors: 2 GiB */
    EXT_MAX = 4 << 20, /* of a cluster, the most that features may take */
    EXT_PIECE = 1 << 20,
    EXT_CLUSTER_MAX = 64 << 20, /* all of a cluster is hashed */
};

/* Flags of a feature that is not known. */
enum { EXT_NECESSARY = 1, EXT_TRANSIT = 2 };

/* The checksum of a cluster that begins with the LEN bytes at HEAD; the rest of
 * it is in the file (FROM_FILE), or zeroes. */
int hds_extension_hash(struct hds *h, const uint8_t *head, size_t len,
                       bool from_file, uint8_t hash[EXT_HASH],
                       struct rhea_error *err);

#endif
