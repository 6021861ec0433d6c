/* SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <errno.h>

#include "base/checked.h"
#include "inplace_report.h"

enum { REPORT_LOSSES = 32 }; /* bits of a mask */

/* "QCOW2": a format's name as a sentence has it. */
struct report_name {
    char text[24];
};

static struct report_name report_upper(const char *format)
{
    struct report_name name = {""};
    size_t i;

    for (i = 0; i < sizeof(name.text) - 1 && format[i]; i++)
        name.text[i] = (char)toupper((unsigned char)format[i]);
    return name;
}

static const char *report_outcome(enum rhea_inplace_outcome outcome)
{
    switch (outcome) {
    case RHEA_INPLACE_UNTOUCHED:
        return "untouched";
    case RHEA_INPLACE_SOURCE:
        return "source";
    case RHEA_INPLACE_EITHER:
        return "either";
    case RHEA_INPLACE_TARGET:
        return "target";
    case RHEA_INPLACE_DONE:
        return "done";
    }
    return "unknown";
}

static const char *report_action(enum rhea_inplace_action action)
{
    switch (action) {
    case RHEA_INPLACE_CONVERT:
        return "convert";
    case RHEA_INPLACE_FINISH:
        return "finish";
    case RHEA_INPLACE_NOTHING:
        return "nothing";
    }
    return "unknown";
}

static void report_state(const struct inplace_report *r)
{
    const char *file = r->filename;
    /* The names are known wherever something was written. */
    const char *source = r->has_plan ? r->plan.source : "source";
    const char *target = r->has_plan ? r->plan.target : "target";

    switch (r->outcome) {
    case RHEA_INPLACE_UNTOUCHED:
        fprintf(stderr, "%s was not changed.\n", file);
        break;
    case RHEA_INPLACE_SOURCE:
        fprintf(stderr,
                "%s is still a whole %s image, with the same "
                "contents.\n",
                file, report_upper(source).text);
        break;
    case RHEA_INPLACE_EITHER:
        fprintf(stderr,
                "%s is a whole image with the same contents, either %s or %s: "
                "run the same command again to finish.\n",
                file, report_upper(source).text, report_upper(target).text);
        break;
    case RHEA_INPLACE_TARGET:
        fprintf(stderr,
                "%s is a whole %s image with the same contents, but has unused "
                "space left in it: run the same command again to finish.\n",
                file, report_upper(target).text);
        break;
    case RHEA_INPLACE_DONE:
        fprintf(stderr, "%s is a whole %s image.\n", file,
                report_upper(target).text);
        break;
    }
}

void inplace_report_failure(const struct inplace_report *r)
{
    if (r->ret == -ECANCELED && r->signal)
        tool_error("convert-inplace: %s: stopped by SIG%s", r->filename,
                   sigabbrev_np(r->signal));
    else
        tool_error("convert-inplace: %s: %s", r->filename, r->err.text);
    report_state(r);
}

static void report_add(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

static json_t *report_losses(unsigned losses)
{
    json_t *array = json_array();
    unsigned bit;

    for (bit = 0; bit < REPORT_LOSSES; bit++) {
        if (losses & 1u << bit)
            json_array_append_new(array,
                                  json_string(rhea_loss_name(1u << bit)));
    }
    return array;
}

static void report_json_plan(json_t *o, const struct rhea_inplace_plan *p)
{
    json_object_set_new(o, "action", json_string(report_action(p->action)));
    json_object_set_new(o, "source", json_string(p->source));
    json_object_set_new(o, "target", json_string(p->target));
    report_add(o, "virtual-size", p->virtual_size);
    report_add(o, "source-cluster-size", p->source_cluster_size);
    report_add(o, "target-cluster-size", p->target_cluster_size);
    report_add(o, "file-size", p->file_size);
    report_add(o, "final-file-size", p->final_file_size);
    report_add(o, "kept", p->kept);
    report_add(o, "rewritten", p->rewritten);
    report_add(o, "filled", p->filled);
    report_add(o, "blank", p->blank);
    report_add(o, "tables", p->tables);
    report_add(o, "moved", p->moved);
    report_add(o, "written", p->written);
    report_add(o, "extra", p->extra);
    json_object_set_new(o, "losses", report_losses(p->losses));
    report_add(o, "snapshots-lost", p->snapshots);
    report_add(o, "bitmaps-lost", p->bitmaps);
    json_object_set_new(o, "unverified-backing-format",
                        json_boolean(p->unverified_backing_format));
    json_object_set_new(o, "details", tool_json_string(p->details));
}

void inplace_report_json(const struct inplace_report *r)
{
    json_t *o = json_object();
    const char *reason;

    json_object_set_new(o, "file", tool_json_string(r->filename));
    json_object_set_new(o, "dry-run", json_boolean(r->dry_run));
    if (r->has_plan)
        report_json_plan(o, &r->plan);
    json_object_set_new(o, "outcome", json_string(report_outcome(r->outcome)));
    json_object_set_new(o, "seconds", json_real(r->seconds));
    if (r->ret < 0) {
        reason = strerrorname_np(-r->ret);
        json_object_set_new(o, "error", tool_json_string(r->err.text));
        json_object_set_new(o, "reason",
                            json_string(reason ? reason : "unknown"));
    }
    if (r->signal)
        json_object_set_new(o, "signal", json_integer(r->signal));
    tool_json_print(o);
}

static void report_bytes(const char *what, uint64_t n)
{
    printf("%-23s%s (%ju bytes)\n", what, tool_format_size(n).text,
           (uintmax_t)n);
}

static void report_print_losses(const struct rhea_inplace_plan *p)
{
    const char *separator = "";
    unsigned bit;

    printf("%-23s", "would be lost:");
    for (bit = 0; bit < REPORT_LOSSES; bit++) {
        unsigned loss = p->losses & 1u << bit;

        if (!loss)
            continue;
        printf("%s%s", separator, rhea_loss_name(loss));
        if (loss == RHEA_LOSS_SNAPSHOTS)
            printf(" (%u)", p->snapshots);
        if (loss == RHEA_LOSS_BITMAPS)
            printf(" (%u)", p->bitmaps);
        separator = ", ";
    }
    printf("%s\n", p->losses ? "" : "nothing");
}

static void report_print_cost(const struct rhea_inplace_plan *p)
{
    report_bytes("stays in place:", p->kept);
    report_bytes("is rewritten:", p->rewritten);
    if (p->filled)
        report_bytes("is filled up:", p->filled);
    if (p->blank)
        report_bytes("zeroes, as holes:", p->blank);
    report_bytes("tables and header:", p->tables);
    report_bytes("moved, at most:", p->moved);
    report_bytes("written, at most:", p->written);
    report_bytes("extra space, at peak:", p->extra);
    report_bytes("size of the file:", p->file_size);
    report_bytes("afterwards:", p->final_file_size);
}

void inplace_report_plan(const struct inplace_report *r)
{
    const struct rhea_inplace_plan *p = &r->plan;

    printf("%-23s%s\n", "file:", r->filename);
    if (p->action == RHEA_INPLACE_NOTHING) {
        printf("%-23sit is a %s image already\n",
               "nothing to do:", report_upper(p->target).text);
        return;
    }
    printf("%-23s%s to %s%s\n", "conversion:", report_upper(p->source).text,
           report_upper(p->target).text,
           p->action == RHEA_INPLACE_FINISH ? ", of which only tidying up is "
                                              "left"
                                            : "");
    report_bytes("virtual size:", p->virtual_size);
    printf("%-23s%s, afterwards %s\n",
           "cluster size:", tool_format_size(p->source_cluster_size).text,
           tool_format_size(p->target_cluster_size).text);
    report_print_cost(p);
    report_print_losses(p);
    if (p->unverified_backing_format)
        printf("%-23sthe backing file's format is not recorded, and the file "
               "could not be looked at\n",
               "note:");
    if (p->details[0])
        printf("%-23s%s\n", "details:", p->details);
}

void inplace_report_summary(const struct inplace_report *r)
{
    const struct rhea_inplace_plan *p = &r->plan;

    switch (p->action) {
    case RHEA_INPLACE_NOTHING:
        printf("%s is a %s image already; nothing was left to do.\n",
               r->filename, report_upper(p->target).text);
        return;
    case RHEA_INPLACE_FINISH:
        printf("%s is a %s image; what was left to tidy up is done (%.2f s).\n",
               r->filename, report_upper(p->target).text, r->seconds);
        return;
    case RHEA_INPLACE_CONVERT:
        break;
    }
    printf("%s is a %s image now: %s stayed in place, %s of data were "
           "rewritten (%.2f s).\n",
           r->filename, report_upper(p->target).text,
           tool_format_size(p->kept).text,
           tool_format_size(p->rewritten + p->filled).text, r->seconds);
}
