/* SPDX-License-Identifier: MIT */
#include "format/finding.h"

#include <stdarg.h>
#include <stdio.h>

void check_tell(const struct rhea_check *check, bool is_error, const char *fmt,
                ...)
{
    char text[256];
    va_list args;
    if (!check->finding)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    check->finding(check->opaque, is_error, text);
}
