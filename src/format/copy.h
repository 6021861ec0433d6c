/* SPDX-License-Identifier: MIT */
/*
 * Parts of a file that get a copy at another place of it: blocks that move, or
 * that a check finds with more than one user. Holes and zeroes stay ones, and
 * memory is bounded.
 */
#ifndef RHEA_FORMAT_COPY_H
#define RHEA_FORMAT_COPY_H

#include <rhea/storage.h>

/* Copy LEN bytes from FROM to TO, ranges that do not overlap. What lies past
 * the end of the file is zeroes. FRESH: TO holds zeroes, or is past the end,
 * which may then stay where it is. */
int copy_range(struct rhea_storage *s, uint64_t from, uint64_t to, uint64_t len,
               bool fresh, struct rhea_error *err);

/*
 * How much a check may copy. A stranger's image may name one block any number
 * of times; a sound one that was damaged has less to copy than it holds.
 */
struct copy_budget {
    uint64_t length; /* how much longer the file may become, bytes */
    uint64_t data;   /* how many bytes that are no holes may be copied */
    bool spent;      /* something had no room: there is no more */
};

/* What the file has, or a little. */
int copy_budget_init(struct copy_budget *budget, struct rhea_storage *s,
                     struct rhea_error *err);
/* Whether LEN bytes at FROM can be copied too; if so, they are paid for. */
int copy_budget_take(struct copy_budget *budget, struct rhea_storage *s,
                     uint64_t from, uint64_t len, bool *may,
                     struct rhea_error *err);

/* For the finding about a block that stays as it is for want of a budget. */
#define COPY_REFUSED                                                           \
    "; left so, because copies of all such would make the file several times " \
    "as large"

#endif
