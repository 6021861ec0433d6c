/* SPDX-License-Identifier: MIT */
/* What the programs' own files need of tools/common, without output: in the
 * place of message.c and output.c. */
#include <stdarg.h>
#include <string.h>

#include "common/common.h"
#include "fuzz.h"

const char *tool_name = "fuzz";

void tool_error_list(const char *fmt, va_list ap)
{
    char text[256];

    vsnprintf(text, sizeof(text), fmt, ap);
}

void tool_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tool_error_list(fmt, ap);
    va_end(ap);
}

int tool_fail(const char *filename, const struct rhea_error *err, int code)
{
    FUZZ_REQUIRE(strlen(err->text) < sizeof(err->text), "%s: a message",
                 filename);
    return code;
}

void *tool_realloc(void *p, size_t size)
{
    p = realloc(p, size ? size : 1);
    FUZZ_REQUIRE(p, "memory");
    return p;
}

char *tool_strdup(const char *s)
{
    char *copy = strdup(s);

    FUZZ_REQUIRE(copy, "memory");
    return copy;
}

int tool_finish_output(int exit_code, int code)
{
    (void)code;
    return exit_code;
}
