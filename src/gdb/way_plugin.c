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

static int load(struct tracer *t, struct rhea_error *err)
{
    return link_load(&t->link, err);
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
