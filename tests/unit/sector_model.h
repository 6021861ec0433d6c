/* SPDX-License-Identifier: MIT */
/* What each sector of a guest's disk may hold after a crash or a fault: what
 * was flushed last, or something written since. */
#ifndef SECTOR_MODEL_H
#define SECTOR_MODEL_H

#include "lib/test.h"

#define SECTOR 512
#ifndef SECTORS
#define SECTORS ((uint64_t)600)
#endif
#define SIZE (SECTORS * SECTOR)

/* Each sector is filled with a number. ALLOWED: the values each sector may
 * have, the one that was flushed last first. */
struct model {
    uint8_t allowed[SECTORS][64];
    unsigned n_allowed[SECTORS];
    bool unknown[SECTORS]; /* the last write failed, perhaps half done */
};

/* GUEST is what all of it holds at first. */
static inline void model_init(struct model *m, const uint8_t *guest)
{
    memset(m, 0, sizeof(*m));
    for (uint64_t i = 0; i < SECTORS; i++) {
        m->allowed[i][0] = guest[i * SECTOR];
        m->n_allowed[i] = 1;
    }
}

static inline void model_write(struct model *m, uint64_t sector, uint64_t count,
                               uint8_t value)
{
    for (uint64_t i = sector; i < sector + count; i++)
        if (CHECK(m->n_allowed[i] < 64))
            m->allowed[i][m->n_allowed[i]++] = value;
}

static inline void model_result(struct model *m, uint64_t sector,
                                uint64_t count, bool failed)
{
    for (uint64_t i = sector; i < sector + count; i++)
        m->unknown[i] = failed;
}

static inline void model_flush(struct model *m)
{
    for (uint64_t i = 0; i < SECTORS; i++) {
        if (m->unknown[i])
            continue;
        m->allowed[i][0] = m->allowed[i][m->n_allowed[i] - 1];
        m->n_allowed[i] = 1;
    }
}

static inline bool model_holds(const struct model *m, const uint8_t *guest)
{
    for (uint64_t i = 0; i < SECTORS; i++) {
        const uint8_t *p = guest + i * SECTOR;
        bool ok = !memcmp(p, p + 1, SECTOR - 1) &&
                  memchr(m->allowed[i], p[0], m->n_allowed[i]);
        if (!ok) {
            printf("# sector %" PRIu64 " holds %u\n", i, p[0]);
            return false;
        }
    }
    return true;
}

#endif
