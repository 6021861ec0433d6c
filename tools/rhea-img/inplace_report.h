/* SPDX-License-Identifier: MIT */
/* What convert-inplace says: the plan, the outcome, and where a failure left
 * the file. */
#ifndef RHEA_IMG_INPLACE_REPORT_H
#define RHEA_IMG_INPLACE_REPORT_H

#include <rhea/inplace.h>

#include "tool.h"

struct inplace_report {
    const char *filename;
    bool dry_run;
    bool has_plan;
    struct rhea_inplace_plan plan;
    int ret;
    struct rhea_error err; /* where ret < 0 */
    enum rhea_inplace_outcome outcome;
    int signal; /* that asked to stop; 0: none */
    double seconds;
};

/* The error, and the state of the file, on standard error. */
void inplace_report_failure(const struct inplace_report *r);
/* All of it as one JSON object. */
void inplace_report_json(const struct inplace_report *r);
/* For --dry-run. */
void inplace_report_plan(const struct inplace_report *r);
/* One line when all is done. */
void inplace_report_summary(const struct inplace_report *r);

#endif
