/* SPDX-License-Identifier: MIT */
/*
 * A storage that passes every call through to another one and keeps a log of
 * all that changes it, for crash.h. Calls are logged in the order in which
 * they were carried out; changes are carried out one at a time.
 */
#ifndef RHEA_STORAGE_RECORD_H
#define RHEA_STORAGE_RECORD_H

#include <rhea/storage.h>

enum record_kind {
    RECORD_WRITE,
    RECORD_ZERO,
    RECORD_TRUNCATE, /* offset is the new size, length 0 */
    RECORD_ALLOCATE, /* changes only the size, to no less than its end */
    RECORD_FLUSH,    /* one that succeeded */
};

struct record_op {
    enum record_kind kind;
    uint64_t offset, length;
    uint8_t *data; /* WRITE: a copy */
};

/* Owns the ops and their data. Life: zeroed, use, record_log_finish. */
struct record_log {
    struct record_op *ops;
    size_t n_ops, ops_size;
    uint64_t bytes; /* of data held */
};

/*
 * Log what happens to INNER, which the new storage owns from then on, not on
 * failure. LOG is the caller's, outlives the storage and is not looked at
 * while calls are under way. A write that fails is logged too, for a part of
 * it may have been done; a flush or a truncate that fails is not.
 */
int record_open(struct rhea_storage **out, struct rhea_storage *inner,
                struct record_log *log, struct rhea_error *err);

void record_log_finish(struct record_log *log);
/* A deep copy, for record_log_swap and the like. */
int record_log_copy(struct record_log *to, const struct record_log *from,
                    struct rhea_error *err);

size_t record_log_flushes(const struct record_log *log);
/* The index of the Nth flush (from 0); n_ops when there is none. */
size_t record_log_find_flush(const struct record_log *log, size_t n);

/* Make a faulty program's log out of a good one's, to test the tests. False
 * where the log has no such place. */
bool record_log_remove_flush(struct record_log *log, size_t n);
/* Swap two ops. */
bool record_log_swap(struct record_log *log, size_t a, size_t b);
/* Swap the last change before the Nth flush with the first one after it. */
bool record_log_swap_across_flush(struct record_log *log, size_t n);

/* "17: write 512 at 0" */
void record_describe(const struct record_log *log, size_t i, char *text,
                     size_t size);

#endif
