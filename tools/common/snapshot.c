/* SPDX-License-Identifier: MIT */
/* Internal snapshots: listing them, and what names one. */
#include <errno.h>
#include <time.h>

#include "common/common.h"

static void snapshot_print(const struct rhea_snapshot *s)
{
    char date[64] = "", clock[64], icount[32] = "";
    uint64_t seconds = s->vm_clock_nsec / 1000000000;
    time_t when = (time_t)s->date;
    struct tm tm;

    if (localtime_r(&when, &tm))
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(clock, sizeof(clock), "%02u:%02u:%02u.%03u",
             (unsigned)(seconds / 3600), (unsigned)(seconds / 60 % 60),
             (unsigned)(seconds % 60),
             (unsigned)(s->vm_clock_nsec / 1000000 % 1000));
    if (s->icount != UINT64_MAX)
        snprintf(icount, sizeof(icount), "%ju", (uintmax_t)s->icount);
    char *id = tool_printable(s->id), *name = tool_printable(s->name);
    printf("%-9s %-16s %8s%20s%13s%11s\n", id, name,
           tool_format_size(s->vm_state_size).text, date, clock, icount);
    free(id);
    free(name);
}

void tool_snapshots_print(const struct rhea_snapshot *list, size_t n)
{
    if (!n)
        return;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG",
           "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < n; i++)
        snapshot_print(&list[i]);
}

json_t *tool_snapshots_json(const struct rhea_snapshot *list, size_t n)
{
    json_t *array = json_array();

    for (size_t i = 0; i < n; i++) {
        const struct rhea_snapshot *s = &list[i];
        uint64_t clock = s->vm_clock_nsec;
        json_t *o = json_object();

        if (s->icount != UINT64_MAX)
            json_object_set_new(o, "icount",
                                json_integer((json_int_t)s->icount));
        json_object_set_new(o, "vm-clock-nsec",
                            json_integer((json_int_t)(clock % 1000000000)));
        json_object_set_new(o, "name", tool_json_string(s->name));
        json_object_set_new(o, "date-sec", json_integer(s->date));
        json_object_set_new(o, "date-nsec", json_integer(s->date_nsec));
        json_object_set_new(o, "vm-clock-sec",
                            json_integer((json_int_t)(clock / 1000000000)));
        json_object_set_new(o, "id", tool_json_string(s->id));
        json_object_set_new(o, "vm-state-size",
                            json_integer((json_int_t)s->vm_state_size));
        json_array_append_new(array, o);
    }
    return array;
}

/* The id of the first snapshot that has that id and that name, malloc'd; NULL
 * stands for any. */
static char *snapshot_find(struct rhea_image *image, const char *id,
                           const char *name, struct rhea_error *err)
{
    struct rhea_snapshot *list;
    char *found = NULL;
    size_t n;

    if (rhea_image_snapshot_list(image, &list, &n, err) < 0)
        return NULL;
    for (size_t i = 0; i < n && !found; i++)
        if ((!id || !strcmp(list[i].id, id)) &&
            (!name || !strcmp(list[i].name, name)))
            found = tool_strdup(list[i].id);
    rhea_snapshots_free(list, n);
    if (!found)
        rhea_error_set(err, ENOENT, "there is no snapshot %s%s%s%s%s",
                       id ? "with id " : "", id ? id : "",
                       id && name ? " and name " : "",
                       !id && name ? "with name " : "", name ? name : "");
    return found;
}

char *tool_snapshot_by_name(struct rhea_image *image, const char *name)
{
    struct rhea_error err;
    char *id = snapshot_find(image, NULL, name, &err);

    if (!id)
        tool_fail(rhea_image_filename(image), &err, 1);
    return id;
}

/* "snapshot.id=1,snapshot.name=one", or either. */
static int snapshot_load_parsed(struct rhea_image *image, const char *text,
                                struct rhea_error *err)
{
    struct tool_options o = {0};
    const char *id, *name;
    char *found = NULL;
    int ret = tool_options_add(&o, text);

    for (size_t i = 0; ret == 0 && i < o.n; i++) {
        if (strcmp(o.items[i].name, "snapshot.id") &&
            strcmp(o.items[i].name, "snapshot.name"))
            ret = rhea_error_set(err, EINVAL,
                                 "a snapshot is named by snapshot.id and "
                                 "snapshot.name, not by %s",
                                 o.items[i].name);
    }
    if (ret == 0) {
        id = tool_options_get(&o, "snapshot.id");
        name = tool_options_get(&o, "snapshot.name");
        found = snapshot_find(image, id, name, err);
        ret = found ? rhea_image_load_snapshot(image, found, err) : -ENOENT;
    }
    free(found);
    tool_options_finish(&o);
    return ret;
}

int tool_snapshot_load(struct rhea_image *image, const char *text)
{
    struct rhea_error err = {.text = "the snapshot cannot be made out"};
    int ret = strncmp(text, "snapshot.", 9)
                  ? rhea_image_load_snapshot(image, text, &err)
                  : snapshot_load_parsed(image, text, &err);

    if (ret < 0)
        tool_fail(rhea_image_filename(image), &err, 1);
    return ret;
}
