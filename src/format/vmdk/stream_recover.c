/* SPDX-License-Identifier: MIT */
/*
 * Streams that were cut off, by a transfer that ended or a program that died:
 * the directory and the footer at the end are missing, but each grain says by
 * its marker which it is ("Stream-Optimized Compressed").
 *
 * What is whole gets a new directory behind it, when that is asked for; the
 * rest of the disk reads as zeroes, or shows what is below. Nobody reads such a
 * stream unasked, for it would not be seen that something is missing.
 *
 * Order of writes: a new content id; the half grain at the end is cut off;
 * flush; tables; then as any stream is ended. Until its footer is there the
 * stream is one that was cut off, with some tables at its end.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/vmdk/header.h"
#include "format/vmdk/stream.h"

enum { RECOVER_PIECE = 1 << 20, RECOVER_STEPS = 1024 };

/* What a walk over the markers comes to. */
struct recover {
    struct vmdk_extent *x;
    struct rhea_check *check;
    uint64_t start, end;   /* of the grains and tables that are whole */
    uint64_t grains, last; /* how many; where in the guest the last one ends */
    uint64_t damaged;      /* more, which cannot be decompressed */
    bool enter;            /* put them into the directory */
    uint8_t *buf;          /* a grain */
};

/* What the marker at offset AT begins: *NEXT is behind it; not a grain: *GRAIN
 * is UINT64_MAX. False: nothing that is whole. */
static bool recover_parse(const struct recover *r, const uint8_t *p,
                          uint64_t at, uint64_t *grain, uint64_t *next)
{
    const struct vmdk_header *h = &r->x->h;
    uint64_t value = load_le64(p + MARKER_SECTORS);
    uint64_t size = load_le32(p + MARKER_SIZE);
    uint64_t left = r->x->file_size - at, sectors = h->grain_size / VMDK_SECTOR;
    *grain = UINT64_MAX;
    if (size) {
        *grain = value / sectors;
        *next = align_up(at + MARKER_GRAIN_BYTES + size, VMDK_SECTOR);
        return value % sectors == 0 && value < h->capacity / VMDK_SECTOR &&
               size <= 2 * h->grain_size && MARKER_GRAIN_BYTES + size <= left;
    }
    *next = at + VMDK_SECTOR + value * VMDK_SECTOR;
    return load_le32(p + MARKER_TYPE) != MARKER_END &&
           load_le32(p + MARKER_TYPE) <= MARKER_FOOTER &&
           value < left / VMDK_SECTOR;
}

/* GRAIN is stored at [AT, NEXT). Files that others have filled up with zeroes
 * have whole markers before them. */
static int recover_grain(struct recover *r, uint64_t grain, uint64_t at,
                         uint64_t next, struct rhea_error *err)
{
    struct vmdk_extent *x = r->x;
    uint64_t size = x->h.grain_size, offset = grain * size;
    const struct rhea_extent e = {
        .kind = RHEA_EXTENT_COMPRESSED,
        .host = at,
        .stored_length = next - at,
        .storage = x->file,
    };
    uint64_t least = x->size > offset ? RHEA_MIN(size, x->size - offset) : size;
    if (vmdk_packed_load(x, offset, &e, r->buf, (size_t)least, NULL)) {
        r->damaged += !r->enter;
        return 0;
    }
    if (r->enter)
        return vmdk_stream_enter(x, grain, at, err);
    r->grains++;
    r->last = RHEA_MAX(r->last, offset + size);
    return 0;
}

/* From marker to marker. Up to r->end, where that is set. */
static int recover_walk(struct recover *r, struct rhea_error *err)
{
    struct vmdk_extent *x = r->x;
    uint64_t at = r->start, stop = r->enter ? r->end : x->file_size;
    int ret = 0;
    for (unsigned i = 0; !ret && at + VMDK_SECTOR <= stop; i++) {
        uint8_t p[MARKER_TYPE + sizeof(uint32_t)];
        uint64_t grain, next;
        if (i % RECOVER_STEPS == 0)
            rhea_progress_report(r->check->progress, "check", at, stop);
        if (rhea_progress_cancelled(r->check->progress))
            return rhea_error_set(err, ECANCELED, "the check was stopped");
        ret = rhea_storage_read(x->file, p, sizeof(p), at, err);
        if (ret || !recover_parse(r, p, at, &grain, &next))
            break;
        if (grain != UINT64_MAX)
            ret = recover_grain(r, grain, at, next, err);
        at = next;
    }
    if (!r->enter)
        r->end = at;
    return ret;
}

/* Whether what follows may be given up: a part of a grain, or zeroes. */
static int recover_rest(const struct recover *r, bool *good,
                        struct rhea_error *err)
{
    uint64_t at = r->end, size = r->x->file_size;
    *good = at >= size || size - at <= pack_max(r->x->h.grain_size);
    if (*good)
        return 0;
    RHEA_AUTO_FREE uint8_t *buf = malloc(RECOVER_PIECE);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (at < size) {
        bool hole;
        uint64_t run;
        int ret =
            rhea_storage_extent(r->x->file, at, size - at, &hole, &run, err);
        if (!ret && !hole) {
            run = RHEA_MIN(run, (uint64_t)RECOVER_PIECE);
            ret = rhea_storage_read(r->x->file, buf, (size_t)run, at, err);
            if (!ret && (buf[0] || memcmp(buf, buf + 1, (size_t)run - 1) != 0))
                return 0;
        }
        if (ret)
            return ret;
        at += run;
    }
    *good = true;
    return 0;
}

static int recover_write(struct recover *r, struct rhea_error *err)
{
    int ret = vmdk_stream_restart(r->x, r->end, err);
    r->enter = true;
    if (!ret)
        ret = recover_walk(r, err);
    return ret ? ret : vmdk_stream_finish(r->x, err);
}

static void recover_tell(const struct recover *r, bool good, bool mend)
{
    check_tell(r->check, true,
               "the extent is cut off: %" PRIu64 " grains are whole, the last "
               "of which ends at guest offset %" PRIu64 "%s",
               r->grains, r->x->start + r->last,
               !good  ? "; behind them is something that is no grain"
               : mend ? "; they can be read now, and the rest is lost"
                      : "");
    if (r->damaged)
        check_tell(r->check, true,
                   "%" PRIu64 " grains more cannot be decompressed",
                   r->damaged);
}

/* The walk, and what is to be done about it. */
static int recover_run(struct recover *r, unsigned fix, struct rhea_error *err)
{
    bool good = false;
    int ret = recover_walk(r, err);
    if (!ret && r->start <= r->x->file_size)
        ret = recover_rest(r, &good, err);
    if (ret)
        return ret;
    bool mend = good && (fix & RHEA_FIX_ERRORS);
    recover_tell(r, good, mend);
    r->check->corruptions += !mend;
    r->check->corruptions_fixed += mend;
    return mend ? recover_write(r, err) : 0;
}

int vmdk_stream_recover(struct vmdk_extent *x, unsigned fix,
                        struct rhea_check *check, struct rhea_error *err)
{
    uint64_t front =
        RHEA_MAX(x->h.overhead, x->h.descriptor + x->h.descriptor_size);
    RHEA_AUTO_FREE uint8_t *buf = malloc((size_t)x->h.grain_size);
    struct recover r = {
        .x = x,
        .check = check,
        .start = align_up(RHEA_MAX(front, (uint64_t)VMDK_SECTOR), VMDK_SECTOR),
        .buf = buf,
    };
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return recover_run(&r, fix, err);
}
