/* SPDX-License-Identifier: MIT */
/* Messages. */
#include "common/common.h"

const char *tool_name = "rhea";
static const char *tool_own_name = "rhea";

/* The version of QEMU's programs whose options these take. */
#define QEMU_VERSION "7.2.0"

void tool_set_name(const char *argv0, const char *own, const char *qemu)
{
    const char *slash = argv0 ? strrchr(argv0, '/') : NULL;
    const char *base = slash ? slash + 1 : argv0;

    tool_name = base && !strcmp(base, qemu) ? qemu : own;
    tool_own_name = own;
    rhea_set_notice(tool_finding);
}

void tool_finding(bool is_error, const char *text)
{
    char *clean = tool_printable(text);

    fflush(stdout);
    fprintf(stderr, "%s%s\n", is_error ? "ERROR " : "", clean);
    free(clean);
}

void tool_print_version(void)
{
    /* Scripts look for "qemu-img version 7.2.0", to know what it can do. */
    if (tool_name != tool_own_name)
        printf("%s version %s (%s %s)\n", tool_name, QEMU_VERSION,
               tool_own_name, rhea_version());
    else
        printf("%s %s\n", tool_name, rhea_version());
}

void tool_error_list(const char *fmt, va_list ap)
{
    fflush(stdout);
    char *text = NULL, *line = NULL;

    /* Only the program's own words have lines. */
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    fprintf(stderr, "%s: ", tool_name);
    for (char *rest = text; (line = strsep(&rest, "\n"));) {
        char *clean = tool_printable(line);
        fprintf(stderr, "%s\n", clean);
        free(clean);
    }
    free(text);
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
    if (strstr(err->text, filename))
        tool_error("%s", err->text);
    else
        tool_error("%s: %s", filename, err->text);
    return code;
}

void *tool_realloc(void *p, size_t size)
{
    p = realloc(p, size);
    if (!p) {
        tool_error("out of memory");
        exit(1);
    }
    return p;
}

char *tool_strdup(const char *s)
{
    size_t size = strlen(s) + 1;

    return memcpy(tool_realloc(NULL, size), s, size);
}
