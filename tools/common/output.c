/* SPDX-License-Identifier: MIT */
#include <errno.h>

#include "common/common.h"

struct tool_size tool_format_size(uint64_t bytes)
{
    static const char prefixes[][3] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    struct tool_size size;
    double n = (double)bytes;
    unsigned i = 0;

    /* At most three digits before the point. */
    while (n >= 1000 && i < 6) {
        n /= 1024;
        i++;
    }
    snprintf(size.text, sizeof(size.text), "%0.3g %.2sB", n, prefixes[i]);
    return size;
}

json_t *tool_json_string(const char *s)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    json_t *value = json_string(s);
    char *copy, *p;

    if (value)
        return value;
    p = copy = tool_realloc(NULL, strlen(s) * 3 + 1);
    for (; *s; s++) {
        if ((unsigned char)*s < 0x80) {
            *p++ = *s;
        } else {
            memcpy(p, replacement, 3);
            p += 3;
        }
    }
    *p = '\0';
    value = json_string(copy);
    free(copy);
    return value;
}

int tool_json_print(json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(4) | JSON_REAL_PRECISION(6) |
                                       JSON_ENSURE_ASCII);

    json_decref(value);
    if (!text) {
        tool_error("out of memory");
        return 1;
    }
    puts(text);
    free(text);
    return tool_finish_output(0, 1);
}

int tool_finish_output(int exit_code, int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return exit_code;
    tool_error("cannot write the output: %s", strerror(errno));
    return code;
}
