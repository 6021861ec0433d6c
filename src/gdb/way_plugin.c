/* SPDX-License-Identifier: MIT */
/* Hits are noticed, and frames stored, by our plugin inside QEMU: all that is
 * done here is to tell it when the experiment has changed. */
#include "gdb/tracer.h"

static int insert(struct tracer *t, const struct tracepoint *p,
                  struct rhea_error *err)
{
    (void)t;
    (void)p;
    (void)err;
    return 0;
}

static void take_out(struct tracer *t, const struct tracepoint *p)
{
    (void)t;
    (void)p;
}

/* A QEMU that did not answer in time, since it was stopped for a while, say,
 * may do now. */
static int load(struct tracer *t, struct rhea_error *err)
{
    struct link *l = &t->link;
    int ret = 0;

    if (l->fd < 0) {
        ret = link_open(l, l->path, l->pid, l->timeout, err);
        if (ret == 0)
            ret = link_attach(l, t->frames, err);
    }
    if (ret == 0)
        return link_load(l, err);
    link_close(l);
    return ret;
}

static void unload(struct tracer *t)
{
    (void)link_unload(&t->link, NULL);
}

const struct way way_plugin = {
    .name = "plugin",
    .text = "in QEMU's translated code",
    .insert = insert,
    .remove = take_out,
    .load = load,
    .unload = unload,
};
