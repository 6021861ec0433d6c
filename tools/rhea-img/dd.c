/* SPDX-License-Identifier: MIT */
/* rhea-img dd */
#include <errno.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "tool.h"

enum { DD_BLOCK_MAX = INT32_MAX, DD_PIECE = 1 << 20, DD_ALIGN = 4096 };

struct dd_arguments {
    struct tool_image in;
    const char *out_name, *out_format;
    uint64_t block;
    uint64_t count; /* UINT64_MAX: all */
    uint64_t skip;
    uint64_t seek;
    struct tool_progress progress;
};

struct dd {
    struct dd_arguments *arguments;
    struct rhea_image *in, *out;
    uint64_t from, to; /* of the input */
    uint64_t seek;     /* in the output */
    unsigned char *buf;
};

/* The part of the input that is wanted. */
static int dd_find_range(struct dd *d)
{
    const struct dd_arguments *a = d->arguments;
    uint64_t bytes;

    d->to = rhea_image_size(d->in);
    if (mul_u64(a->count, a->block, &bytes))
        d->to = RHEA_MIN(d->to, bytes);
    if (!mul_u64(a->seek, a->block, &d->seek) || d->seek > INT64_MAX) {
        tool_error("seek=%ju is too far", (uintmax_t)a->seek);
        return 1;
    }
    if (!mul_u64(a->skip, a->block, &d->from) || d->from > d->to) {
        /* As dd does: say so, and copy nothing. */
        tool_error("%s: it ends before what skip= leaves out", a->in.name);
        d->from = d->to;
    }
    return 0;
}

static int dd_create(struct dd *d)
{
    const struct dd_arguments *a = d->arguments;
    struct rhea_create how = {.size = d->seek + (d->to - d->from)};
    struct tool_image out = {
        .name = a->out_name,
        .format = a->out_format,
        .flags = RHEA_IMAGE_WRITE,
    };
    struct rhea_error err;

    if (rhea_convert_check_target(d->in, a->out_name, &err) < 0 ||
        rhea_image_create(a->out_name, a->out_format, &how, false, &err) < 0)
        return tool_fail(a->out_name, &err, 1);
    return tool_image_open(&out, &d->out) < 0;
}

/* Larger than a block where that is small: what is written is the same. */
static size_t dd_piece(const struct dd *d)
{
    uint64_t block = d->arguments->block;

    if (block < DD_PIECE)
        block = DD_PIECE - DD_PIECE % block;
    return (size_t)RHEA_MIN(block, (uint64_t)DD_PIECE);
}

static int dd_copy(struct dd *d)
{
    uint64_t from = d->from, to = d->seek;
    size_t piece = dd_piece(d), n;
    struct rhea_error err;

    d->buf = aligned_alloc(DD_ALIGN, DD_PIECE);
    if (!d->buf) {
        tool_error("out of memory");
        return 1;
    }
    for (; from < d->to; from += n, to += n) {
        n = (size_t)RHEA_MIN(d->to - from, (uint64_t)piece);
        tool_progress_report(&d->arguments->progress, "copying", from - d->from,
                             d->to - d->from);
        if (rhea_image_read(d->in, d->buf, n, from, &err) < 0)
            return tool_fail(d->arguments->in.name, &err, 1);
        if (rhea_image_write(d->out, d->buf, n, to, &err) < 0)
            return tool_fail(d->arguments->out_name, &err, 1);
    }
    return 0;
}

static int dd_do(struct dd_arguments *a)
{
    struct dd d = {.arguments = a};
    struct rhea_error err;
    int code;

    if (tool_image_open(&a->in, &d.in) < 0)
        return 1;
    code = dd_find_range(&d);
    if (!code)
        code = dd_create(&d);
    if (!code)
        code = dd_copy(&d);
    tool_progress_finish(&a->progress, !code);
    free(d.buf);
    if (rhea_image_close(d.out, &err) < 0 && !code)
        code = tool_fail(a->out_name, &err, 1);
    rhea_image_close(d.in, NULL);
    return tool_finish_output(code, 1);
}

static int dd_get_number(const char *name, const char *text, uint64_t *value,
                         uint64_t min, uint64_t max)
{
    if (tool_get_size(name, text, value) < 0)
        return -EINVAL;
    if (*value >= min && *value <= max)
        return 0;
    tool_error("%s=%s: it is to be from %ju to %ju", name, text, (uintmax_t)min,
               (uintmax_t)max);
    return -EINVAL;
}

/* One NAME=VALUE. */
static int dd_operand(struct dd_arguments *a, const char *operand)
{
    const struct {
        const char *name;
        const char **text;
        uint64_t *number, min, max;
    } known[] = {
        {"bs", NULL, &a->block, 1, DD_BLOCK_MAX},
        {"count", NULL, &a->count, 0, INT64_MAX},
        {"if", &a->in.name, NULL, 0, 0},
        {"of", &a->out_name, NULL, 0, 0},
        {"seek", NULL, &a->seek, 0, INT64_MAX},
        {"skip", NULL, &a->skip, 0, INT64_MAX},
    };
    size_t len = strcspn(operand, "="), i;

    for (i = 0; operand[len] && i < RHEA_ARRAY_SIZE(known); i++) {
        if (strlen(known[i].name) != len ||
            strncmp(known[i].name, operand, len) != 0)
            continue;
        if (known[i].text) {
            *known[i].text = operand + len + 1;
            return 0;
        }
        return dd_get_number(known[i].name, operand + len + 1, known[i].number,
                             known[i].min, known[i].max);
    }
    tool_usage(&tool_dd, "dd: there is no operand '%s'", operand);
    return -EINVAL;
}

static int dd_check(const struct dd_arguments *a)
{
    const struct rhea_format_ops *ops = rhea_format_find(a->out_format);

    if (!a->in.name || !a->out_name)
        return tool_usage(&tool_dd, "dd: both if=FILE and of=FILE are needed");
    if (ops && ops->create && ops->write)
        return -1;
    tool_error(ops ? "%s images cannot be created" : "there is no format '%s'",
               a->out_format);
    return 1;
}

static int dd_parse(struct dd_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"force-share", no_argument, NULL, 'U'},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:O:pU", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 'O':
            a->out_format = optarg;
            break;
        case 'p':
            a->progress.enabled = true;
            break;
        default:
            code = tool_image_option(&tool_dd, &a->in, c, argv);
            if (code >= 0)
                return code;
        }
    }
    for (; optind < argc; optind++) {
        if (dd_operand(a, argv[optind]) < 0)
            return 1;
    }
    return dd_check(a);
}

static int dd_run(int argc, char **argv)
{
    struct dd_arguments a = {
        .out_format = "raw",
        .block = 512,
        .count = UINT64_MAX,
        .progress = {.stream = stdout, .step = 1},
    };
    int code = dd_parse(&a, argc, argv);

    return code < 0 ? dd_do(&a) : code;
}

const struct tool_command tool_dd = {
    .name = "dd",
    .summary = "Copy a part of an image into a new one",
    .usage = "[-f FORMAT] [-O FORMAT] [-p] [-U] [--object OBJECT] "
             "[--image-opts]\n"
             "                   [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] "
             "[seek=BLOCKS]\n"
             "                   if=FILE of=FILE",
    .help =
        "  -f FORMAT          of the input; else it is found out\n"
        "  -O FORMAT          of the output (raw)\n"
        "  -p                 show progress\n"
        "  -U, --force-share  even if the input is in use\n"
        "  --object OBJECT    such as a secret that the input needs\n"
        "  --image-opts       the input is a list of options, "
        "NAME=VALUE,...\n"
        "  bs=SIZE            of a block (512)\n"
        "  count=BLOCKS       how far to go in the input, counted from its\n"
        "                     beginning (to its end)\n"
        "  skip=BLOCKS        where to begin in the input (0)\n"
        "  seek=BLOCKS        where to begin in the output (0)\n",
    .run = dd_run,
    .usage_code = 1,
};
