/* SPDX-License-Identifier: MIT */
/* Where the guest's bytes are. */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/qed.h"

/* The most spans one lookup joins: it holds the lock, and the next lookup goes
 * on where this one stopped. Enough for half a terabyte of default clusters. */
enum { MAP_SPANS = 1024 };

static enum rhea_extent_kind map_kind(uint64_t entry)
{
    return entry == QED_UNALLOCATED ? RHEA_EXTENT_UNALLOCATED
           : entry == QED_ZERO      ? RHEA_EXTENT_ZERO
                                    : RHEA_EXTENT_DATA;
}

/* How many of N entries continue a run whose next entry is FIRST. */
static uint64_t map_count(const uint64_t *entries, uint64_t n, uint64_t first,
                          uint64_t step)
{
    uint64_t i = 0;
    while (i < n && le64toh(entries[i]) == first) {
        first += step;
        i++;
    }
    return i;
}

/* The run of clusters that begins with CLUSTER, at most WANT. */
static int map_run(struct qed *q, uint64_t cluster, uint64_t want,
                   uint64_t *entry, uint64_t *count, struct rhea_error *err)
{
    struct qed_span span;
    int ret = qed_span_get(q, cluster, want, &span, err);
    if (ret)
        return ret;
    *entry = span.entries ? le64toh(span.entries[0]) : QED_UNALLOCATED;

    uint64_t step = 0;
    if (map_kind(*entry) == RHEA_EXTENT_DATA) {
        if (!qed_range_valid(q, *entry, q->cluster_size))
            return rhea_error_set(err, EIO,
                                  "the image is damaged: guest offset %" PRIu64
                                  " cannot be at offset %" PRIu64
                                  " of the file",
                                  cluster << q->cluster_bits, *entry);
        step = q->cluster_size;
        /* What lies past the end of the file is an error of its own. */
        want = RHEA_MIN(want, (q->blocks.file_end - *entry) >> q->cluster_bits);
    }

    uint64_t n = 0;
    for (unsigned i = 0; i < MAP_SPANS; i++) {
        uint64_t limit = RHEA_MIN(span.count, want - n);
        uint64_t more = span.entries ? map_count(span.entries, limit,
                                                 *entry + n * step, step)
                                     : (*entry == QED_UNALLOCATED ? limit : 0);
        n += more;
        if (more < span.count || n == want)
            break;
        /* A fault further on is the next lookup's. */
        if (qed_span_get(q, cluster + n, want - n, &span, NULL))
            break;
    }
    *count = n;
    return 0;
}

int qed_map(struct blocks *b, uint64_t offset, uint64_t len,
            struct rhea_extent *extent, struct rhea_error *err)
{
    struct qed *q = (struct qed *)b->format;
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t skip = offset & (q->cluster_size - 1);
    uint64_t want = ((offset + len - 1) >> q->cluster_bits) - cluster + 1;
    uint64_t entry = 0, count = 0;
    int ret = map_run(q, cluster, want, &entry, &count, err);
    if (ret)
        return ret;

    *extent = (struct rhea_extent){
        .kind = map_kind(entry),
        .length = RHEA_MIN(len, (count << q->cluster_bits) - skip),
    };
    if (extent->kind == RHEA_EXTENT_DATA) {
        extent->has_host = true;
        extent->host = entry + skip;
        extent->stored_length = extent->length;
        extent->storage = q->base.storage;
    }
    return 0;
}
