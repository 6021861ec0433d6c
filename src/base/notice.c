/* SPDX-License-Identifier: MIT */
#include "base/notice.h"

#include <stdatomic.h>
#include <stdio.h>

#include <rhea/base.h>

static _Atomic(rhea_notice_fn *) notice_fn;

void rhea_set_notice(rhea_notice_fn *fn)
{
    atomic_store(&notice_fn, fn);
}

void notice(bool is_error, const char *text)
{
    rhea_notice_fn *fn = atomic_load(&notice_fn);
    if (fn)
        fn(is_error, text);
}
