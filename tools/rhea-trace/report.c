/* SPDX-License-Identifier: MIT */
/* rhea-trace report: show what was recorded, or write it in other forms. */
#include "report.h"

#include <errno.h>
#include <inttypes.h>

#include "gdb/ctf.h"

struct report {
    const char *file, *ctf, *tfile;
    bool json;
    struct recorded_filter filter;
    bool filtered;
};

static void help(void)
{
    printf(
        "usage: %s report [OPTION...] FILE\n\n"
        "Show a trace. FILE is gdb's trace file (tsave, gdbserver's, record's)"
        "\n"
        "or a file of trace frames (--file), as it is also left by a crash.\n\n"
        "  -j, --json            a JSON object a line: the trace, its frames,\n"
        "                        the end\n"
        "  -c, --ctf FOLDER      write a CTF trace for babeltrace2 and Trace\n"
        "                        Compass to a new folder\n"
        "  -o, --tfile FILE      write gdb's trace file, for `target tfile`\n"
        "  -r, --frames A-B      only these frames; also A, A- and -B\n"
        "  -n, --tracepoint N    only frames of this tracepoint\n"
        "  -h, --help            tell what there is\n"
        "  -V, --version         tell the version\n",
        tool_name);
}

/* --- options ------------------------------------------------------------- */

static bool parse_number(const char **text, uint64_t *value)
{
    char *end;

    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *value = strtoull(*text, &end, 10);
    *text = end;
    return errno == 0;
}

static int set_frames(struct report *p, const char *text)
{
    struct recorded_filter *f = &p->filter;
    const char *at = text;
    bool has_first = parse_number(&at, &f->first), has_last = false;
    bool good = has_first;

    if (*at == '-') {
        at++;
        has_last = parse_number(&at, &f->last);
        good = has_first || has_last;
        f->first = has_first ? f->first : 0;
    } else {
        f->last = f->first;
    }
    p->filtered = true;
    if (good && !*at && f->first <= f->last)
        return 0;
    tool_error("--frames %s: say A, A-B, A- or -B, numbers from 0 on", text);
    return -EINVAL;
}

static int set_tracepoint(struct report *p, const char *text)
{
    const char *at = text;
    uint64_t n;

    if (!parse_number(&at, &n) || *at || n > UINT32_MAX) {
        tool_error("--tracepoint %s is no number", text);
        return -EINVAL;
    }
    p->filter.tracepoint = (int64_t)n;
    p->filtered = true;
    return 0;
}

/* 1: the program is to end well. */
static int set_option(struct report *p, int c, char **argv)
{
    switch (c) {
    case 'j':
        p->json = true;
        return 0;
    case 'c':
        p->ctf = optarg;
        return 0;
    case 'o':
        p->tfile = optarg;
        return 0;
    case 'r':
        return set_frames(p, optarg);
    case 'n':
        return set_tracepoint(p, optarg);
    default:
        return trace_other_option(c, argv, help);
    }
}

static int set_options(struct report *p, int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"ctf", required_argument, NULL, 'c'},
        {"tfile", required_argument, NULL, 'o'},
        {"frames", required_argument, NULL, 'r'},
        {"tracepoint", required_argument, NULL, 'n'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };
    int c, ret = 0;

    opterr = 0;
    while (ret == 0 &&
           (c = getopt_long(argc, argv, ":jc:o:r:n:hV", options, NULL)) != -1)
        ret = set_option(p, c, argv);
    if (ret != 0)
        return ret;
    if (argc - optind != 1) {
        tool_error("say one file that is to be shown");
        return -EINVAL;
    }
    p->file = argv[optind];
    if ((p->json ? 1 : 0) + (p->ctf ? 1 : 0) + (p->tfile ? 1 : 0) > 1) {
        tool_error("--json, --ctf and --tfile do not go together");
        return -EINVAL;
    }
    if (p->tfile && p->filtered) {
        tool_error("--tfile writes all frames: leave out --frames and "
                   "--tracepoint");
        return -EINVAL;
    }
    return 0;
}

/* --- for all forms ------------------------------------------------------- */

void report_number(char text[REPORT_NUMBER], const uint8_t *bytes, size_t len)
{
    size_t n = 2;

    while (len > 1 && !bytes[len - 1])
        len--;
    snprintf(text, REPORT_NUMBER, "0x%x", len ? bytes[len - 1] : 0);
    n = strlen(text);
    for (size_t i = len; i-- > 1; n += 2)
        snprintf(text + n, REPORT_NUMBER - n, "%02x", bytes[i - 1]);
}

int64_t report_time(const struct recorded *r, uint64_t time)
{
    return (int64_t)(time - r->status.start * 1000);
}

const char *report_variable(const struct recorded *r, unsigned number,
                            char buf[32])
{
    const struct variable *v = number < EXPERIMENT_MAX_VARIABLES
                                   ? r->experiment->variables[number]
                                   : NULL;

    if (v && v->name[0])
        return v->name;
    snprintf(buf, 32, "%u", number);
    return buf;
}

/* --- what is to be done -------------------------------------------------- */

static int fail(const struct report *p, const struct rhea_error *err)
{
    return tool_fail(p->file, err, 1);
}

/* On standard error, for those who do not read it from the output. */
static void tell_trouble(const struct report *p, const struct recorded *r)
{
    char text[512];

    for (unsigned n = 0; recorded_trouble(r, n, text, sizeof(text)); n++)
        tool_error("%s: %s", p->file, text);
}

static int print(const struct report *p, struct recorded *r)
{
    const struct report_form *form = p->json ? &report_json : &report_text;
    struct rhea_error err = {0};
    struct recorded_frame f;
    uint64_t n = 0;
    int ret = form->begin(r), code = 0;

    while (ret == 0 && (ret = recorded_next(r, &f, &err)) > 0) {
        ret = form->frame(r, &f);
        n++;
    }
    if (ret < 0 && err.text[0])
        code = fail(p, &err);
    else if (ret < 0 || form->end(r, n) < 0)
        code = 1;
    tell_trouble(p, r);
    return tool_finish_output(code, 1);
}

static int write_ctf(const struct report *p, struct recorded *r)
{
    struct rhea_error err = {0};
    struct ctf_facts facts;

    if (ctf_write(r, p->ctf, &facts, &err) < 0)
        return fail(p, &err);
    tell_trouble(p, r);
    if (!facts.has_time)
        tool_error("%s: not all frames have a time, so their numbers stand for "
                   "it ($trace_timestamp collects one)",
                   p->file);
    printf("%" PRIu64 " events in %s\n", facts.frames, p->ctf);
    return tool_finish_output(0, 1);
}

static int write_tfile(const struct report *p, struct recorded *r)
{
    struct rhea_error err = {0};

    if (recorded_save(r, p->tfile, &err) < 0)
        return fail(p, &err);
    tell_trouble(p, r);
    return 0;
}

int report_main(int argc, char **argv)
{
    struct report p = {.filter = {0, UINT64_MAX, -1}};
    struct rhea_error err = {0};
    struct recorded r;
    int ret = set_options(&p, argc, argv);

    if (ret != 0)
        return ret < 0 ? 2 : tool_finish_output(0, 1);
    if (recorded_open(&r, p.file, &err) < 0)
        return fail(&p, &err);
    r.filter = p.filter;
    if (p.ctf)
        ret = write_ctf(&p, &r);
    else if (p.tfile)
        ret = write_tfile(&p, &r);
    else
        ret = print(&p, &r);
    recorded_close(&r);
    return ret;
}
