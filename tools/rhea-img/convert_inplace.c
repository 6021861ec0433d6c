/* SPDX-License-Identifier: MIT */
/* rhea-img convert-inplace */
#include <errno.h>
#include <signal.h>
#include <time.h>

#include <rhea/inplace.h>

#include "inplace_report.h"

struct inplace_arguments {
    struct inplace_report report;
    struct rhea_inplace_options how;
    struct tool_options options;
    struct tool_progress progress;
    bool json, quiet;
};

static double inplace_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Called before anything is written. */
static void inplace_planned(void *opaque, const struct rhea_inplace_plan *plan)
{
    struct inplace_arguments *a = opaque;

    a->report.plan = *plan;
    a->report.has_plan = true;
}

static int inplace_exit_code(const struct inplace_report *r)
{
    if (r->ret == 0)
        return 0;
    /* As if the signal had ended the program, which it did. */
    if (r->ret == -ECANCELED && r->signal)
        return 128 + r->signal;
    return 1;
}

static int inplace_do(struct inplace_arguments *a)
{
    struct inplace_report *r = &a->report;
    const struct rhea_progress progress = {
        .report = tool_progress_report,
        .cancelled = tool_signals_cancelled,
        .opaque = &a->progress,
    };
    struct rhea_inplace_plan plan;
    double start = inplace_now();
    int code;

    a->how.options = a->options.items;
    a->how.n_options = a->options.n;
    a->how.progress = &progress;
    a->how.planned = inplace_planned;
    a->how.opaque = a;
    tool_signals_catch();
    r->ret =
        rhea_inplace_convert(r->filename, &a->how, &plan, &r->outcome, &r->err);
    r->seconds = inplace_now() - start;
    if (r->ret == 0)
        inplace_planned(a, &plan);
    r->signal = tool_signals_caught();
    tool_progress_finish(&a->progress, r->ret == 0);

    code = inplace_exit_code(r);
    if (r->ret < 0)
        inplace_report_failure(r);
    if (a->json)
        inplace_report_json(r);
    else if (r->ret == 0 && a->how.dry_run && !a->quiet)
        inplace_report_plan(r);
    else if (r->ret == 0 && !a->quiet)
        inplace_report_summary(r);
    return tool_finish_output(code, 1);
}

/* "snapshots,bitmaps" */
static int inplace_get_losses(struct inplace_arguments *a, const char *list)
{
    char *copy = tool_strdup(list), *rest = copy, *name;
    int code = -1;

    while (code < 0 && (name = strsep(&rest, ","))) {
        unsigned bit = rhea_loss_find(name);

        if (!bit)
            code = tool_usage(&tool_convert_inplace,
                              "convert-inplace: nothing that can be lost is "
                              "called '%s'",
                              name);
        a->how.allow_loss |= bit;
    }
    free(copy);
    return code;
}

static int inplace_option(struct inplace_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'f':
        a->how.source_format = optarg;
        return -1;
    case 'O':
        a->how.target_format = optarg;
        return -1;
    case 'o':
        return tool_options_add(&a->options, optarg) < 0 ? 1 : -1;
    case 'p':
        a->progress.enabled = true;
        return -1;
    case 'n':
        a->how.dry_run = true;
        a->report.dry_run = true;
        return -1;
    case 'q':
        a->quiet = true;
        return -1;
    case TOOL_OPT_JSON:
        a->json = true;
        return -1;
    case TOOL_OPT_ALLOW_LOSS:
        return inplace_get_losses(a, optarg);
    default:
        return tool_other_option(&tool_convert_inplace, c, argv);
    }
}

static int inplace_check(struct inplace_arguments *a)
{
    const char *formats[] = {a->how.source_format, a->how.target_format};
    size_t i;

    if (!a->how.target_format)
        return tool_usage(&tool_convert_inplace,
                          "convert-inplace: which format? Say -O");
    for (i = 0; i < 2; i++) {
        if (formats[i] && !rhea_format_find(formats[i]))
            return tool_usage(&tool_convert_inplace,
                              "convert-inplace: there is no format '%s'",
                              formats[i]);
    }
    return -1;
}

static int inplace_parse(struct inplace_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"dry-run", no_argument, NULL, 'n'},
        {"json", no_argument, NULL, TOOL_OPT_JSON},
        {"allow-loss", required_argument, NULL, TOOL_OPT_ALLOW_LOSS},
        {0},
    };
    /* Of the creation options those that make sense for an image that is
     * there. */
    static const char *const kept[] = {"cluster_size",  "compat",
                                       "refcount_bits", "lazy_refcounts",
                                       "table_size",    NULL};
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:O:o:pnq", long_options, NULL)) !=
           -1) {
        code = inplace_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    code = inplace_check(a);
    if (code >= 0)
        return code;
    if (a->options.help)
        return tool_options_help(a->how.target_format, NULL, kept);
    if (optind != argc - 1)
        return tool_usage(&tool_convert_inplace,
                          "convert-inplace: exactly one file is needed");
    a->report.filename = argv[optind];
    if (a->quiet)
        a->progress.enabled = false;
    return -1;
}

static int inplace_run(int argc, char **argv)
{
    struct inplace_arguments a = {
        .progress = {.stream = stderr, .phases = true, .step = 0.5},
    };
    int code = inplace_parse(&a, argc, argv);

    if (code < 0)
        code = inplace_do(&a);
    tool_options_finish(&a.options);
    return code;
}

const struct tool_command tool_convert_inplace = {
    .name = "convert-inplace",
    .summary = "Change an image's format in the file itself, crash-safely",
    .usage = "[-f FORMAT] -O FORMAT [-o OPTIONS] [-p] [-n]\n"
             "                                [--json] [--allow-loss=WHAT,..] "
             "[-q] FILE",
    .help =
        "  -f FORMAT               of the image; else it is found out\n"
        "  -O FORMAT               what it is to become\n"
        "  -o a=b,..               options of that format\n"
        "  -n, --dry-run           print the plan, and write nothing\n"
        "      --allow-loss=WHAT   accept to lose, separated by commas:\n"
        "                          snapshots, bitmaps, extensions,\n"
        "                          backing-format\n"
        "      --json              print plan and outcome for scripts\n"
        "  -p                      show progress\n"
        "  -q                      print only errors\n"
        "\nWhatever interrupts this, the file remains a whole image of one\n"
        "format or the other with the same contents, and the same command\n"
        "finishes the job.\n"
        "\nExit codes: 0 done, 1 failed, 130 or 143 stopped by SIGINT or\n"
        "SIGTERM.\n",
    .run = inplace_run,
    .usage_code = 1,
};
