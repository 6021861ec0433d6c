/* SPDX-License-Identifier: MIT */
/*
 * Conversion in place. Any image to any format: either it is refused, and then
 * every byte is as it was, or the result holds the same guest bytes. And with
 * a fault or a wish to stop at any point: what is left is a whole image with
 * the same guest bytes, and a second run finishes.
 *
 * The last CONTROL bytes of an input say what to do with the image. They belong
 * to an image file nevertheless, so that any image is an input; a recipe
 * (fuzz.h) ends before them.
 */
#include <rhea/inplace.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "fuzz.h"
#include "guest.h"
#include "reader.h"
#include "storage/fault.h"
#include "storage/memory.h"

enum { CONTROL = 16 };

/* --- a folder with the base file and nothing else ------------------------ */

static char folder[64];

static int inplace_remove(const char *path, const struct stat *st, int type,
                          struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void inplace_clean(void)
{
    nftw(folder, inplace_remove, 4, FTW_DEPTH | FTW_PHYS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static uint8_t base[FUZZ_BASE_SIZE];
    char path[128];
    (void)argc;
    (void)argv;
    snprintf(folder, sizeof(folder), "/tmp/rhea-fuzz-XXXXXX");
    FUZZ_REQUIRE(mkdtemp(folder), "%s", folder);
    atexit(inplace_clean);
    snprintf(path, sizeof(path), "%s/%s", folder, FUZZ_BASE_NAME);
    fuzz_base_bytes(0, base, sizeof(base));
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    FUZZ_REQUIRE(fd >= 0 && write(fd, base, sizeof(base)) == sizeof(base), "%s",
                 path);
    close(fd);
    return 0;
}

/* --- what to do ---------------------------------------------------------- */

struct job {
    struct rhea_inplace_options options;
    struct rhea_option list[4];
    char filename[128];

    /* Stop when the progress is asked or told for this time; 0: never. */
    unsigned stop_at, calls;
    struct rhea_progress progress;
    struct fault_plan fault;

    struct guest guest;
    bool opens;   /* the source does */
    bool foreign; /* the source has the target's format already: whatever is to
                     be tidied up in it, somebody else has written */
    bool sound;   /* and has no corruption */
    /* A QCOW2 image that is to be no larger than this once it was converted
     * there and back; 0: it may be. */
    uint64_t most;
};

static bool inplace_cancelled(void *opaque)
{
    struct job *job = opaque;
    return job->stop_at && ++job->calls >= job->stop_at;
}

static void inplace_reported(void *opaque, const char *phase, uint64_t done,
                             uint64_t total)
{
    (void)opaque;
    (void)done;
    (void)total;
    FUZZ_REQUIRE(phase && *phase, "a phase without a name");
}

static void job_option(struct job *job, const char *name, const char *value)
{
    if (value)
        job->list[job->options.n_options++] =
            (struct rhea_option){.name = name, .value = value};
}

static void job_read_options(struct job *job, struct fuzz_input *in)
{
    static const char *const qed_clusters[] = {
        NULL, NULL, NULL, "4096", "8192", "64K", "1M", "64M", "512"};
    static const char *const tables[] = {NULL, NULL, NULL, "1",
                                         "2",  "4",  "16", "3"};
    static const char *const qcow2_clusters[] = {NULL, NULL,  "512", "1024",
                                                 "4K", "16K", "64K", "2M"};
    static const char *const bits[] = {NULL, NULL, NULL, "1", "2",
                                       "8",  "16", "32", "64"};
    static const char *const compats[] = {NULL, NULL, "1.1", "0.10"};
    static const char *const lazies[] = {NULL, NULL, NULL, "on"};
    uint8_t a = fuzz_u8(in), b = fuzz_u8(in), c = fuzz_u8(in);
    if (!strcmp(job->options.target_format, "qed")) {
        job_option(job, "cluster_size",
                   qed_clusters[a % RHEA_ARRAY_SIZE(qed_clusters)]);
        job_option(job, "table_size", tables[b % RHEA_ARRAY_SIZE(tables)]);
    } else {
        job_option(job, "cluster_size",
                   qcow2_clusters[a % RHEA_ARRAY_SIZE(qcow2_clusters)]);
        job_option(job, "refcount_bits", bits[b % RHEA_ARRAY_SIZE(bits)]);
        job_option(job, "compat", compats[c % 4]);
        job_option(job, "lazy_refcounts", lazies[c / 4 % 4]);
    }
    job->options.options = job->list;
}

/* A third of the inputs meets a fault, a third is stopped. */
static void job_read_trouble(struct job *job, struct fuzz_input *in)
{
    static const unsigned classes[] = {
        FAULT_ANY,  FAULT_READ,     FAULT_WRITE,   FAULT_FLUSH,
        FAULT_ZERO, FAULT_TRUNCATE, FAULT_ALLOCATE};
    uint8_t kind = fuzz_u8(in), which = fuzz_u8(in);
    unsigned at = 1 + fuzz_u16(in) % 500;
    if (kind % 3 == 1) {
        job->stop_at = at;
    } else if (kind % 3 == 2) {
        job->fault.classes = classes[which % RHEA_ARRAY_SIZE(classes)];
        job->fault.at = at;
        job->fault.code = which & 64 ? ENOSPC : EIO;
        job->fault.forever = which & 32;
        job->fault.half_done = which & 128;
    }
}

static void job_read(struct job *job, struct fuzz_input *control,
                     const struct rhea_format_ops *format)
{
    uint8_t flags = fuzz_u8(control);
    bool qed = !strcmp(format->name, "qed") == !(flags & 128);
    *job = (struct job){.options = {.target_format = qed ? "qcow2" : "qed"}};
    job->foreign = !strcmp(format->name, job->options.target_format);
    job->options.source_format = flags & 1 ? format->name : NULL;
    job->options.allow_loss = fuzz_u8(control) & 15;
    job_read_options(job, control);
    job_read_trouble(job, control);
    job->progress = (struct rhea_progress){.report = inplace_reported,
                                           .cancelled = inplace_cancelled,
                                           .opaque = job};
    job->options.progress = &job->progress;
    snprintf(job->filename, sizeof(job->filename), "%s/image", folder);
    FUZZ_TRACE("%s to %s, stop at %u, fault %" PRIu64 " of classes 0x%x",
               format->name, job->options.target_format, job->stop_at,
               job->fault.at, job->fault.classes);
    for (size_t i = 0; i < job->options.n_options; i++)
        FUZZ_TRACE("%s=%s", job->list[i].name, job->list[i].value);
}

/* --- what must be true --------------------------------------------------- */

static const struct rhea_format_ops *inplace_probe(struct rhea_storage *s)
{
    uint8_t head[2048];
    FUZZ_REQUIRE(!rhea_storage_read_padded(s, head, sizeof(head), 0, NULL),
                 "memory");
    return rhea_format_probe(head, sizeof(head));
}

/* S is a whole image with the guest bytes of the source; SOUND: which has to
 * have no corruption, NEAT: and no leak. */
static void inplace_verify(const struct job *job, struct rhea_storage *s,
                           bool sound, bool neat, const char *when)
{
    const struct rhea_format_ops *format = inplace_probe(s);
    struct rhea_format *f;
    struct rhea_error err;
    struct rhea_check found;
    if (!job->opens)
        return;
    int ret = rhea_format_open_over(format, &f, s, 0, &err);
    FUZZ_REQUIRE(!ret, "%s: does not open: %s", when, err.text);
    guest_compare(&job->guest, f, when);
    format->close(f, NULL);
    if (!sound || !format->check)
        return;
    FUZZ_REQUIRE(reader_check(format, s, 0, &found), "%s: no check", when);
    FUZZ_REQUIRE(!found.corruptions && !found.errors,
                 "%s: %" PRIu64 " corruptions, %" PRIu64 " errors", when,
                 found.corruptions, found.errors);
    FUZZ_REQUIRE(!neat || !found.leaks, "%s: %" PRIu64 " leaks", when,
                 found.leaks);
}

static int inplace_run(struct rhea_storage *s,
                       const struct rhea_inplace_options *options,
                       const char *filename, struct rhea_inplace_plan *plan,
                       enum rhea_inplace_outcome *outcome,
                       struct rhea_error *err)
{
    *outcome = (enum rhea_inplace_outcome)99;
    int ret =
        rhea_inplace_convert_storage(s, filename, options, plan, outcome, err);
    FUZZ_REQUIRE(*outcome <= RHEA_INPLACE_DONE, "no outcome");
    FUZZ_REQUIRE(ret <= 0, "returned %d", ret);
    return ret;
}

/* After the target's format is reached: a second run has nothing to do. */
static void inplace_again(const struct job *job, struct rhea_storage *s)
{
    struct rhea_inplace_options options = job->options;
    struct rhea_inplace_plan plan = {0};
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    uint64_t digest = memory_digest(s);
    options.progress = NULL;
    int ret = inplace_run(s, &options, job->filename, &plan, &outcome, &err);
    FUZZ_REQUIRE(!ret, "a second run: %s", err.text);
    FUZZ_REQUIRE(plan.action == RHEA_INPLACE_NOTHING,
                 "a second run finds something to do");
    FUZZ_REQUIRE(memory_digest(s) == digest, "a second run changes the file");
}

static void inplace_back(const struct job *job, struct rhea_storage *s)
{
    struct rhea_inplace_options options = {.allow_loss = 15};
    struct rhea_inplace_plan plan;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    bool qed = !strcmp(job->options.target_format, "qed");
    options.target_format = qed ? "qcow2" : "qed";
    int ret = inplace_run(s, &options, job->filename, &plan, &outcome, &err);
    FUZZ_REQUIRE(!ret, "converting back: %s", err.text);
    inplace_verify(job, s, true, true, "converted back");
    FUZZ_REQUIRE(!job->most || fuzz_size(s) <= job->most,
                 "converted back, it has %" PRIu64 " bytes, not %" PRIu64,
                 fuzz_size(s), job->most);
}

static void inplace_done(const struct job *job, struct rhea_storage *s,
                         const struct rhea_inplace_plan *plan)
{
    const struct rhea_format_ops *format = inplace_probe(s);
    FUZZ_REQUIRE(!strcmp(format->name, job->options.target_format),
                 "done, but it is %s", format->name);
    if (plan->action == RHEA_INPLACE_NOTHING)
        return;
    FUZZ_REQUIRE(!job->guest.broken || plan->action == RHEA_INPLACE_FINISH,
                 "what could not be read was converted");
    uint64_t size = fuzz_size(s);
    FUZZ_REQUIRE(size <= plan->final_file_size,
                 "%" PRIu64 " bytes in the end, not %" PRIu64, size,
                 plan->final_file_size);
    /* A reference count that somebody else has made too high stays so; this
     * program makes none, and finishes what it began without a leak. Where that
     * is a corruption, to a check, it stays one. */
    inplace_verify(job, s, !job->foreign || job->sound, !job->foreign,
                   "converted");
    inplace_again(job, s);
    if (plan->action == RHEA_INPLACE_CONVERT)
        inplace_back(job, s);
}

/* --- runs ---------------------------------------------------------------- */

/* A dry run changes nothing, and what it says is kept to: the file may grow by
 * just as much as it announces. Then the same again, with the run's outcome. */
static void inplace_plain(const struct job *job, struct rhea_storage *image)
{
    struct rhea_inplace_options options = job->options;
    struct rhea_inplace_plan plan = {0}, dry = {0};
    enum rhea_inplace_outcome outcome;
    struct rhea_storage *s = fuzz_clone(image), *limited;
    struct rhea_error err, dry_err;
    uint64_t digest = memory_digest(s);
    options.progress = NULL;
    options.dry_run = true;
    s->writable = false;
    int dry_ret =
        inplace_run(s, &options, job->filename, &dry, &outcome, &dry_err);
    s->writable = true;
    FUZZ_REQUIRE(memory_digest(s) == digest, "a dry run changes the file");

    struct fault_plan limit = {.limit_growth = true, .budget = dry.extra};
    FUZZ_REQUIRE(!fault_open(&limited, s, &limit, NULL), "memory");
    options.dry_run = false;
    int ret =
        inplace_run(limited, &options, job->filename, &plan, &outcome, &err);
    FUZZ_REQUIRE(!dry_ret || ret, "done, but not when dry: %s", dry_err.text);
    switch (outcome) {
    case RHEA_INPLACE_UNTOUCHED:
        FUZZ_REQUIRE(ret, "neither done nor failed");
        FUZZ_REQUIRE(memory_digest(s) == digest,
                     "a refusal changes the file: %s", err.text);
        FUZZ_REQUIRE(dry_ret, "refused, but not when dry: %s", err.text);
        break;
    case RHEA_INPLACE_SOURCE:
        FUZZ_REQUIRE(ret && fault_hits(limited) == 0,
                     "grows by more than %" PRIu64 " bytes", dry.extra);
        FUZZ_REQUIRE(fuzz_size(s) == fuzz_size(image), "the size");
        inplace_verify(job, s, false, false, "after a failure");
        break;
    case RHEA_INPLACE_EITHER:
    case RHEA_INPLACE_TARGET:
        FUZZ_REQUIRE(false, "fails half-way: %s", err.text);
        break;
    case RHEA_INPLACE_DONE:
        FUZZ_REQUIRE(!ret, "done, but: %s", err.text);
        inplace_done(job, s, &plan);
    }
    rhea_storage_close(limited);
}

/* Something comes in between; then the rest is done in a second run. */
static void inplace_troubled(struct job *job, struct rhea_storage *image)
{
    struct rhea_inplace_options options = job->options;
    struct rhea_inplace_plan plan = {0};
    enum rhea_inplace_outcome outcome;
    struct rhea_storage *s = fuzz_clone(image), *faulty;
    struct rhea_error err;
    uint64_t digest = memory_digest(s);
    FUZZ_REQUIRE(!fault_open(&faulty, s, &job->fault, NULL), "memory");
    int ret =
        inplace_run(faulty, &options, job->filename, &plan, &outcome, &err);
    bool sound =
        outcome >= RHEA_INPLACE_TARGET && plan.action == RHEA_INPLACE_CONVERT;
    FUZZ_REQUIRE(!ret == (outcome == RHEA_INPLACE_DONE),
                 "outcome %d of result %d", (int)outcome, ret);
    if (outcome == RHEA_INPLACE_UNTOUCHED)
        FUZZ_REQUIRE(memory_digest(s) == digest,
                     "a refusal changes the file: %s", err.text);
    inplace_verify(job, s, sound, false, "after trouble");

    bool stopped = ret && (fault_hits(faulty) || ret == -ECANCELED);
    options.progress = NULL;
    if (stopped) {
        ret = inplace_run(s, &options, job->filename, &plan, &outcome, &err);
        FUZZ_REQUIRE(!ret || outcome <= RHEA_INPLACE_SOURCE,
                     "a second run fails half-way: %s", err.text);
        FUZZ_REQUIRE(!ret || !sound, "a second run fails: %s", err.text);
        if (!ret)
            inplace_done(job, s, &plan);
    }
    rhea_storage_close(faulty);
}

/* The names of files in an image are not ours to try: only such in our own
 * folder, where there is none but the base file. */
static bool inplace_names_are_safe(const struct rhea_format_info *info)
{
    return !info->backing_file || !strchr(info->backing_file, '/');
}

static int inplace_find_compressed(void *opaque, enum rhea_use use,
                                   uint64_t host, uint64_t length,
                                   struct rhea_error *err)
{
    (void)opaque;
    (void)host;
    (void)length;
    (void)err;
    return use == RHEA_USE_COMPRESSED ? -1 : 0;
}

/* Whether F, a sound image, is such that what is promised of its size holds:
 * see "Space" in docs/in-place.md. */
static uint64_t inplace_most(const struct job *job, struct rhea_format *f,
                             const struct rhea_format_info *info)
{
    struct rhea_check found;
    struct rhea_facts facts = {0};
    uint64_t bits = 16;
    if (f->ops->facts && f->ops->facts(f, &facts, NULL) == 0) {
        const struct rhea_fact *fact = rhea_facts_find(&facts, "refcount-bits");
        bits = fact ? fact->number : 16;
    }
    rhea_facts_free(&facts);
    if (strcmp(f->ops->name, "qcow2") || info->cluster_size < 4096 ||
        !f->size || bits < 16 || info->backing_file || job->options.n_options ||
        job->guest.known < f->size ||
        !reader_check(f->ops, f->storage, 0, &found) || found.corruptions ||
        found.errors || f->ops->walk(f, inplace_find_compressed, NULL, NULL))
        return 0;
    return align_up(fuzz_size(f->storage), info->cluster_size);
}

static bool inplace_load(struct job *job, struct rhea_storage *image,
                         const struct rhea_format_ops *format)
{
    struct rhea_format_info info = {0};
    struct rhea_format *f;
    bool safe = true;
    if (rhea_format_open_over(format, &f, image, 0, NULL))
        return true;
    format->info(f, &info);
    if (!inplace_names_are_safe(&info)) {
        safe = false;
    } else {
        bool base =
            info.backing_file && !strcmp(info.backing_file, FUZZ_BASE_NAME) &&
            (!info.backing_format || !strcmp(info.backing_format, "raw"));
        job->opens = true;
        guest_load(&job->guest, f, base);
        job->most = inplace_most(job, f, &info);
    }
    format->close(f, NULL);
    if (job->foreign && safe) {
        struct rhea_check found;
        job->sound = format->check && reader_check(format, image, 0, &found) &&
                     !found.corruptions && !found.errors;
    }
    return safe;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size <= CONTROL)
        return 0;
    struct fuzz_input control = {data + size - CONTROL, CONTROL};
    struct fuzz_input in = {data, size};
    if (!fuzz_is_image(&in))
        in.len -= CONTROL;
    struct rhea_storage *image = fuzz_image(&in, NULL);
    if (!image)
        return 0;

    struct job job;
    const struct rhea_format_ops *format = inplace_probe(image);
    job_read(&job, &control, format);
    image->writable = false;
    if (inplace_load(&job, image, format)) {
        inplace_plain(&job, image);
        if (job.stop_at || job.fault.at)
            inplace_troubled(&job, image);
    }
    if (job.opens)
        guest_finish(&job.guest);
    rhea_storage_close(image);
    return 0;
}
