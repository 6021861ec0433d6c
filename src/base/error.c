/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <rhea/base.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int rhea_error_set(struct rhea_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
        err->code = code;
    }
    return -code;
}

int rhea_error_errno(struct rhea_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
        size_t used = strlen(err->text);
        char words[128];
        snprintf(err->text + used, sizeof(err->text) - used, ": %s",
                 strerror_r(code, words, sizeof(words)));
        err->code = code;
    }
    return -code;
}

int rhea_error_prefix(struct rhea_error *err, const char *fmt, ...)
{
    if (!err)
        return -EINVAL;

    char text[sizeof(err->text)];
    memcpy(text, err->text, sizeof(text));
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    size_t used = strlen(err->text);
    snprintf(err->text + used, sizeof(err->text) - used, ": %s", text);
    return err->code ? -err->code : -EINVAL;
}
