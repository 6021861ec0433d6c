/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "storage/record.h"

void record_log_finish(struct record_log *log)
{
    for (size_t i = 0; i < log->n_ops; i++)
        free(log->ops[i].data);
    free(log->ops);
    *log = (struct record_log){0};
}

int record_log_copy(struct record_log *to, const struct record_log *from,
                    struct rhea_error *err)
{
    *to = (struct record_log){0};
    to->ops = calloc(from->n_ops + 1, sizeof(*to->ops));
    if (!to->ops)
        return rhea_error_set(err, ENOMEM, "out of memory");
    to->ops_size = from->n_ops + 1;
    for (; to->n_ops < from->n_ops; to->n_ops++) {
        struct record_op *op = &to->ops[to->n_ops];
        *op = from->ops[to->n_ops];
        if (!op->data)
            continue;
        op->data = malloc((size_t)op->length);
        if (!op->data) {
            record_log_finish(to);
            return rhea_error_set(err, ENOMEM, "out of memory");
        }
        memcpy(op->data, from->ops[to->n_ops].data, (size_t)op->length);
        to->bytes += op->length;
    }
    return 0;
}

size_t record_log_flushes(const struct record_log *log)
{
    size_t n = 0;
    for (size_t i = 0; i < log->n_ops; i++)
        n += log->ops[i].kind == RECORD_FLUSH;
    return n;
}

size_t record_log_find_flush(const struct record_log *log, size_t n)
{
    size_t i = 0;
    for (; i < log->n_ops; i++) {
        if (log->ops[i].kind == RECORD_FLUSH && n-- == 0)
            break;
    }
    return i;
}

bool record_log_remove_flush(struct record_log *log, size_t n)
{
    size_t i = record_log_find_flush(log, n);
    if (i == log->n_ops)
        return false;
    log->n_ops--;
    memmove(log->ops + i, log->ops + i + 1,
            (log->n_ops - i) * sizeof(*log->ops));
    return true;
}

bool record_log_swap(struct record_log *log, size_t a, size_t b)
{
    if (a >= log->n_ops || b >= log->n_ops)
        return false;
    struct record_op op = log->ops[a];
    log->ops[a] = log->ops[b];
    log->ops[b] = op;
    return true;
}

bool record_log_swap_across_flush(struct record_log *log, size_t n)
{
    size_t flush = record_log_find_flush(log, n);
    size_t before = flush, after = flush;
    while (before > 0 && log->ops[before - 1].kind == RECORD_FLUSH)
        before--;
    while (after < log->n_ops && log->ops[after].kind == RECORD_FLUSH)
        after++;
    if (before == 0 || after >= log->n_ops)
        return false;
    return record_log_swap(log, before - 1, after);
}

void record_describe(const struct record_log *log, size_t i, char *text,
                     size_t size)
{
    const struct record_op *op = &log->ops[i];
    switch (op->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
    case RECORD_ALLOCATE:
        snprintf(text, size, "%zu: %s %" PRIu64 " at %" PRIu64, i,
                 op->kind == RECORD_WRITE  ? "write"
                 : op->kind == RECORD_ZERO ? "zero"
                                           : "allocate",
                 op->length, op->offset);
        break;
    case RECORD_TRUNCATE:
        snprintf(text, size, "%zu: truncate to %" PRIu64, i, op->offset);
        break;
    case RECORD_FLUSH:
        snprintf(text, size, "%zu: flush", i);
        break;
    }
}
