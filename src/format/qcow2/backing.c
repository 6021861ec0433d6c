/* SPDX-License-Identifier: MIT */
/*
 * Another backing file. Only the header changes, in the order that
 * header_write.c states: after a crash one of the two backing files is named.
 */
#include <errno.h>

#include "format/qcow2/qcow2.h"

static int backing_check(const struct qcow2 *q, const char *file,
                         const char *format, struct rhea_error *err)
{
    if (file && q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
        return rhea_error_set(err, EINVAL,
                              "an image whose data file is raw cannot have a "
                              "backing file");
    if (file && strlen(file) > QCOW2_MAX_BACKING_NAME)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the backing file's name is longer than %d bytes",
                              QCOW2_MAX_BACKING_NAME);
    if (format && strlen(format) > QCOW2_MAX_BACKING_FORMAT)
        return rhea_error_set(err, EINVAL,
                              "the backing format's name is longer than %d "
                              "bytes",
                              QCOW2_MAX_BACKING_FORMAT);
    return 0;
}

int qcow2_set_backing(struct rhea_format *f, const char *file,
                      const char *format, struct rhea_format *parent,
                      struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    RHEA_AUTO_FREE char *new_file = NULL, *new_format = NULL;
    char *old_file, *old_format;
    int r;

    (void)parent;
    if (file && !*file)
        file = NULL;
    if (!file || (format && !*format))
        format = NULL;
    RHEA_LOCKED(&q->lock);
    r = backing_check(q, file, format, err);
    if (r == 0)
        r = qcow2_write_begin(q, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    if (r < 0)
        return r;
    new_file = file ? strdup(file) : NULL;
    new_format = format ? strdup(format) : NULL;
    if ((file && !new_file) || (format && !new_format))
        return rhea_error_set(err, ENOMEM, "out of memory");

    old_file = q->backing_file;
    old_format = q->backing_format;
    q->backing_file = new_file;
    q->backing_format = new_format;
    r = qcow2_header_update(q, err);
    if (r < 0) {
        q->backing_file = old_file;
        q->backing_format = old_format;
        return r;
    }
    /* The old ones go. */
    new_file = old_file;
    new_format = old_format;
    return 0;
}
