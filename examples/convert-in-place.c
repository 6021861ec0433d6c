/* SPDX-License-Identifier: MIT */
/*
 * Convert an image to another format in its own file, or, with -n, only say
 * what that would take:
 *
 *     cc convert-in-place.c -o convert-in-place \
 *         $(pkg-config --cflags --libs librhea-image)
 *     ./convert-in-place -n qcow2 qed disk.img
 */
#include <inttypes.h>
#include <rhea/inplace.h>
#include <stdio.h>
#include <string.h>

/* Called before the first write, and in a dry run too. */
static void print_plan(void *opaque, const struct rhea_inplace_plan *plan)
{
    (void)opaque;
    if (plan->action == RHEA_INPLACE_NOTHING) {
        printf("nothing to do\n");
        return;
    }
    printf("%s to %s: %" PRIu64 " bytes stay, %" PRIu64 " are rewritten, "
           "the file grows by at most %" PRIu64 "\n",
           plan->source, plan->target, plan->kept, plan->rewritten,
           plan->extra);
}

static const char *outcome_text(enum rhea_inplace_outcome outcome)
{
    switch (outcome) {
    case RHEA_INPLACE_UNTOUCHED:
        return "the file is as it was";
    case RHEA_INPLACE_SOURCE:
        return "the image still has its old format";
    case RHEA_INPLACE_EITHER:
        return "the image is whole, of one format or the other";
    case RHEA_INPLACE_TARGET:
        return "the image has its new format; run this again to tidy up";
    case RHEA_INPLACE_DONE:
        return "done";
    }
    return "unknown";
}

int main(int argc, char **argv)
{
    struct rhea_inplace_options options = {.planned = print_plan};
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;

    if (argc == 5 && !strcmp(argv[1], "-n")) {
        options.dry_run = true;
        argv++;
    } else if (argc != 4) {
        fprintf(stderr, "usage: convert-in-place [-n] FROM TO IMAGE\n");
        return 2;
    }
    options.source_format = argv[1];
    options.target_format = argv[2];

    int ret = rhea_inplace_convert(argv[3], &options, NULL, &outcome, &err);
    if (ret < 0) {
        fprintf(stderr, "convert-in-place: %s (%s)\n", err.text,
                outcome_text(outcome));
        return 1;
    }
    if (!options.dry_run)
        printf("%s\n", outcome_text(outcome));
    return 0;
}
