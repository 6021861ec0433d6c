/* SPDX-License-Identifier: MIT */
/* Reading and writing, whichever way a command asks for it. */
#include <errno.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "io.h"

int io_failed(const char *what, int ret, const struct rhea_error *err)
{
    printf("%s failed: %s\n", what, strerror(-ret));
    /* qemu-io says no more than that, and scripts compare what it says. */
    if (strncmp(tool_name, "qemu", 4))
        tool_error("%s", err->text);
    return ret;
}

static int request_check(const struct io *io, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    if (range_inside(offset, len, rhea_image_size(io->image)))
        return 0;
    return rhea_error_set(err, EIO, "that is not inside the image");
}

/* After a write. */
static int request_settle(struct io *io, int ret, unsigned flags,
                          struct rhea_error *err)
{
    if (ret == 0 && (io->writethrough || flags & IO_FUA))
        ret = rhea_image_flush(io->image, err);
    return ret;
}

int io_read(struct io *io, uint8_t *buf, size_t len, uint64_t offset,
            struct rhea_error *err)
{
    int ret = request_check(io, offset, len, err);

    return ret ? ret : rhea_image_read(io->image, buf, len, offset, err);
}

int io_write(struct io *io, const uint8_t *buf, size_t len, uint64_t offset,
             unsigned flags, struct rhea_error *err)
{
    int ret = request_check(io, offset, len, err);

    if (ret == 0)
        ret = rhea_image_write(io->image, buf, len, offset, err);
    return request_settle(io, ret, flags, err);
}

int io_write_zeroes(struct io *io, uint64_t offset, uint64_t len,
                    unsigned flags, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = rhea_image_format(io->image)->ops;
    int ret = request_check(io, offset, len, err);

    if (ret == 0 && flags & IO_NO_FALLBACK && !ops->write_zeroes)
        ret = rhea_error_set(
            err, ENOTSUP, "%s has no quicker way to write zeroes", ops->name);
    if (ret == 0)
        ret = rhea_image_write_zeroes(io->image, offset, len,
                                      flags & IO_UNMAP && !io->how.no_discard,
                                      err);
    return request_settle(io, ret, flags, err);
}

int io_write_compressed(struct io *io, const uint8_t *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    struct rhea_format *f = rhea_image_format(io->image);
    struct rhea_format_info info;
    int ret = request_check(io, offset, len, err);

    rhea_image_info(io->image, &info);
    if (ret == 0 && !f->ops->write_compressed)
        ret = rhea_error_set(err, ENOTSUP, "%s has no compressed clusters",
                             f->ops->name);
    if (ret < 0)
        return ret;
    uint64_t unit = info.cluster_size, end = offset + len;
    if (!is_aligned(offset, unit) || (!is_aligned(end, unit) && end != f->size))
        return rhea_error_set(err, EINVAL,
                              "only whole clusters can be written compressed");
    for (; ret == 0 && offset < end; offset += unit, buf += unit)
        ret = f->ops->write_compressed(
            f, offset, buf, (size_t)RHEA_MIN(unit, end - offset), err);
    return request_settle(io, ret, 0, err);
}

int io_vm_state_read(struct io *io, uint8_t *buf, size_t len, uint64_t offset,
                     struct rhea_error *err)
{
    struct rhea_format *f = rhea_image_format(io->image);

    if (!f->ops->vm_state_read)
        return rhea_error_set(err, ENOTSUP, "%s keeps no VM state",
                              f->ops->name);
    return f->ops->vm_state_read(f, offset, buf, len, err);
}

int io_vm_state_write(struct io *io, const uint8_t *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    struct rhea_format *f = rhea_image_format(io->image);
    int ret;

    if (!f->ops->vm_state_write)
        return rhea_error_set(err, ENOTSUP, "%s keeps no VM state",
                              f->ops->name);
    ret = f->ops->vm_state_write(f, offset, buf, len, err);
    return request_settle(io, ret, 0, err);
}

int io_discard(struct io *io, uint64_t offset, uint64_t len,
               struct rhea_error *err)
{
    int ret = request_check(io, offset, len, err);

    if (ret < 0 || io->how.no_discard)
        return ret;
    return rhea_image_discard(io->image, offset, len, err);
}
