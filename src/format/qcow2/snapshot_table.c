/* SPDX-License-Identifier: MIT */
/*
 * The snapshot table (the spec, "Snapshots"): reading it, and writing another
 * in its place.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

enum {
    TABLE_HEADER = 40,
    TABLE_REQUIRED = 16, /* extra data in version 3: VM state and disk size */
    TABLE_KNOWN = 24,    /* and the instruction count */
};

static void table_free_one(struct qcow2_snapshot *s)
{
    free(s->s.id);
    free(s->s.name);
    free(s->extra);
}

void qcow2_snapshots_free(struct qcow2 *q)
{
    for (uint32_t i = 0; q->snapshots && i < q->n_snapshots; i++)
        table_free_one(&q->snapshots[i]);
    free(q->snapshots);
    q->snapshots = NULL;
}

/* What the extra data of an entry says, or what holds without it. */
static void table_parse_extra(const struct qcow2 *q, struct qcow2_snapshot *s,
                              const uint8_t *extra)
{
    if (s->extra_size >= 8)
        s->s.vm_state_size = load_be64(extra);
    s->s.disk_size = s->extra_size >= 16 ? load_be64(extra + 8) : q->f.size;
    s->s.icount = s->extra_size >= 24 ? load_be64(extra + 16) : UINT64_MAX;
}

/* The parts behind an entry's header, N bytes at DATA. */
static int table_parse_rest(const struct qcow2 *q, struct qcow2_snapshot *s,
                            const uint8_t *data, uint32_t id_size,
                            uint32_t name_size)
{
    const char *text = (const char *)data + s->extra_size;

    table_parse_extra(q, s, data);
    s->s.id = strndup(text, id_size);
    s->s.name = strndup(text + id_size, name_size);
    if (s->extra_size > TABLE_KNOWN) {
        s->extra = malloc(s->extra_size - TABLE_KNOWN);
        if (!s->extra)
            return -ENOMEM;
        memcpy(s->extra, data + TABLE_KNOWN, s->extra_size - TABLE_KNOWN);
    }
    return s->s.id && s->s.name ? 0 : -ENOMEM;
}

/* Entry I at *AT, which moves behind it; *LENGTH is what is kept of it. */
static int table_read_one(struct qcow2 *q, uint32_t i, uint64_t *at,
                          uint64_t *length, struct qcow2_table_repair *repair,
                          struct rhea_error *err)
{
    struct qcow2_snapshot *s = &q->snapshots[i];
    RHEA_AUTO_FREE uint8_t *data = NULL;
    uint32_t id_size, name_size, rest, skip = 0;
    uint8_t h[TABLE_HEADER];
    int r = rhea_storage_read_padded(q->f.storage, h, sizeof(h), *at, err);

    if (r < 0)
        return r;
    s->l1_offset = load_be64(h);
    s->l1_size = load_be32(h + 8);
    id_size = load_be16(h + 12);
    name_size = load_be16(h + 14);
    s->s.date = load_be32(h + 16);
    s->s.date_nsec = load_be32(h + 20);
    s->s.vm_clock_nsec = load_be64(h + 24);
    s->s.vm_state_size = load_be32(h + 32);
    s->extra_size = load_be32(h + 36);
    if (s->extra_size > QCOW2_MAX_SNAPSHOT_EXTRA) {
        if (!repair)
            return rhea_error_set(err, EFBIG,
                                  "snapshot %" PRIu32 " has %" PRIu32
                                  " bytes of extra data, more than %d; `check "
                                  "-r all` would cut them off",
                                  i, s->extra_size, QCOW2_MAX_SNAPSHOT_EXTRA);
        skip = s->extra_size - QCOW2_MAX_SNAPSHOT_EXTRA;
        s->extra_size = QCOW2_MAX_SNAPSHOT_EXTRA;
        repair->cut++;
    }
    rest = s->extra_size + id_size + name_size;
    data = malloc(rest + 1);
    if (!data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    *at += TABLE_HEADER;
    if (s->extra_size)
        r = rhea_storage_read_padded(q->f.storage, data, s->extra_size, *at,
                                     err);
    *at += s->extra_size + (uint64_t)skip;
    if (r == 0 && rest > s->extra_size)
        r = rhea_storage_read_padded(q->f.storage, data + s->extra_size,
                                     rest - s->extra_size, *at, err);
    *at += rest - s->extra_size;
    *length = TABLE_HEADER + rest;
    if (r == 0 && table_parse_rest(q, s, data, id_size, name_size) < 0)
        r = rhea_error_set(err, ENOMEM, "out of memory");
    return r;
}

/* Forget entry I and those behind it, which would make the table too long. */
static void table_discard(struct qcow2 *q, uint32_t i,
                          struct qcow2_table_repair *repair)
{
    for (uint32_t k = i; k < q->n_snapshots; k++)
        table_free_one(&q->snapshots[k]);
    repair->discarded += q->n_snapshots - i;
    q->n_snapshots = i;
}

/* One by one: the table's length is not known before. */
int qcow2_snapshots_read_repair(struct qcow2 *q,
                                struct qcow2_table_repair *repair,
                                struct rhea_error *err)
{
    uint64_t at = q->snapshots_offset, before, size = 0, length = 0;
    int r = 0;

    qcow2_snapshots_free(q);
    q->snapshots_length = 0;
    if (!q->n_snapshots)
        return 0;
    /* What is opened to be checked may have any number. */
    if (q->n_snapshots > QCOW2_MAX_SNAPSHOTS)
        return rhea_error_set(err, EFBIG,
                              "%" PRIu32 " snapshots are more than %u",
                              q->n_snapshots, QCOW2_MAX_SNAPSHOTS);
    q->snapshots = calloc(q->n_snapshots, sizeof(*q->snapshots));
    if (!q->snapshots)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; r == 0 && i < q->n_snapshots; i++) {
        before = at;
        at = align_up(at, 8);
        r = table_read_one(q, i, &at, &size, repair, err);
        if (r < 0)
            break;
        length = align_up(length, 8) + size;
        if (length <= QCOW2_MAX_SNAPSHOT_TABLE &&
            at - q->snapshots_offset <=
                (repair ? INT32_MAX : QCOW2_MAX_SNAPSHOT_TABLE))
            continue;
        if (!repair) {
            r = rhea_error_set(err, EFBIG,
                               "the snapshot table is too long; `check -r all` "
                               "would remove the last %" PRIu32 " snapshots",
                               q->n_snapshots - i);
            break;
        }
        table_discard(q, i, repair);
        at = before;
    }
    if (r < 0) {
        qcow2_snapshots_free(q);
        return r;
    }
    q->snapshots_length = at - q->snapshots_offset;
    return 0;
}

int qcow2_snapshots_read(struct qcow2 *q, struct rhea_error *err)
{
    return qcow2_snapshots_read_repair(q, NULL, err);
}

int qcow2_snapshots_write_count(struct qcow2 *q, struct rhea_error *err)
{
    uint8_t count[4];
    int r;

    store_be32(count, q->n_snapshots);
    r = rhea_storage_write(q->f.storage, count, 4, QCOW2_AT_SNAPSHOTS, err);
    return r < 0 ? r : rhea_storage_flush(q->f.storage, err);
}

uint32_t qcow2_snapshots_incomplete(const struct qcow2 *q, uint32_t version)
{
    uint32_t n = 0;

    for (uint32_t i = 0; version >= 3 && i < q->n_snapshots; i++)
        n += q->snapshots[i].extra_size < TABLE_REQUIRED;
    return n;
}

static uint64_t table_entry_size(const struct qcow2_snapshot *s)
{
    return TABLE_HEADER + RHEA_MAX(s->extra_size, TABLE_KNOWN) +
           strlen(s->s.id) + strlen(s->s.name);
}

static void table_put(uint8_t *at, const struct qcow2_snapshot *s)
{
    size_t id = strlen(s->s.id), name = strlen(s->s.name);
    uint32_t extra = RHEA_MAX(s->extra_size, TABLE_KNOWN);
    uint64_t state = s->s.vm_state_size;

    store_be64(at, s->l1_offset);
    store_be32(at + 8, s->l1_size);
    store_be16(at + 12, (uint16_t)id);
    store_be16(at + 14, (uint16_t)name);
    store_be32(at + 16, (uint32_t)s->s.date);
    store_be32(at + 20, s->s.date_nsec);
    store_be64(at + 24, s->s.vm_clock_nsec);
    /* The small field says 0 where the size does not fit. */
    store_be32(at + 32, state <= UINT32_MAX ? (uint32_t)state : 0);
    store_be32(at + 36, extra);
    at += TABLE_HEADER;
    store_be64(at, state);
    store_be64(at + 8, s->s.disk_size);
    store_be64(at + 16, s->s.icount);
    if (extra > TABLE_KNOWN)
        memcpy(at + TABLE_KNOWN, s->extra, extra - TABLE_KNOWN);
    memcpy(at + extra, s->s.id, id);
    memcpy(at + extra + id, s->s.name, name);
}

int qcow2_alloc_run(struct qcow2 *q, uint64_t bytes, uint64_t *host,
                    struct rhea_error *err)
{
    uint64_t count = div_up(bytes, q->cluster_size), cluster = 0, got;
    bool fresh;
    int r = 0;

    if (count == 1)
        r = qcow2_alloc(q, 1, &cluster, &got, &fresh, err);
    else if (count)
        r = qcow2_alloc_table(q, count, &cluster, err);
    *host = cluster << q->cluster_bits;
    return r;
}

int qcow2_snapshots_stage(struct qcow2 *q, const struct qcow2_snapshot *list,
                          uint32_t n, struct qcow2_staged *staged,
                          struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = NULL;
    uint64_t length = 0, room, at = 0;
    int r;

    for (uint32_t i = 0; i < n; i++)
        length = align_up(length, 8) + table_entry_size(&list[i]);
    if (n > QCOW2_MAX_SNAPSHOTS || length > QCOW2_MAX_SNAPSHOT_TABLE)
        return rhea_error_set(err, EFBIG,
                              "an image can have %d snapshots, in a table of "
                              "%u bytes",
                              QCOW2_MAX_SNAPSHOTS, QCOW2_MAX_SNAPSHOT_TABLE);
    *staged = (struct qcow2_staged){.count = n, .length = length};
    if (!n)
        return 0;
    room = align_up(length, q->cluster_size);
    table = calloc(1, room);
    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        table_put(table + at, &list[i]);
        at = align_up(at + table_entry_size(&list[i]), 8);
    }
    r = qcow2_alloc_run(q, length, &staged->host, err);
    if (r == 0) {
        r = rhea_storage_write(q->f.storage, table, room, staged->host, err);
        if (r < 0)
            (void)qcow2_refcount_add(q, staged->host >> q->cluster_bits,
                                     room >> q->cluster_bits, -1, NULL);
    }
    return r;
}

int qcow2_snapshots_switch(struct qcow2 *q, const struct qcow2_staged *staged,
                           struct rhea_error *err)
{
    uint8_t pointer[12];
    int r;

    store_be32(pointer, staged->count);
    store_be64(pointer + 4, staged->host);
    r = rhea_storage_write(q->f.storage, pointer, sizeof(pointer),
                           QCOW2_AT_SNAPSHOTS, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return qcow2_fail(q, r);
    qcow2_snapshots_free(q);
    q->n_snapshots = staged->count;
    q->snapshots_offset = staged->host;
    return qcow2_fail(q, qcow2_snapshots_read(q, err));
}

/*
 * Order: the refcounts of its clusters and the new table, flush; the header's
 * count and pointer (within one sector), flush; then the old table is free.
 */
int qcow2_snapshots_complete(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t old = q->snapshots_offset >> q->cluster_bits;
    uint64_t count = div_up(q->snapshots_length, q->cluster_size);
    bool lost =
        !qcow2_table_in_file(q, q->snapshots_offset, q->snapshots_length);
    struct qcow2_staged staged;
    int r =
        qcow2_snapshots_stage(q, q->snapshots, q->n_snapshots, &staged, err);

    if (r == 0)
        r = qcow2_refs_write(q, err); /* ends with a flush */
    if (r == 0)
        r = qcow2_snapshots_switch(q, &staged, err);
    if (r == 0 && !lost)
        r = qcow2_refcount_add(q, old, count, -1, err);
    return r == 0 ? qcow2_refs_write(q, err) : r;
}
