/* SPDX-License-Identifier: MIT */
/* The file of trace frames: made, mapped, closed. */
#include "gdb/frames_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/crc32c.h"

/* More would make offsets of the file overflow long before. */
static const uint64_t max_limit = UINT64_C(1) << 44;

static int sys_error(const struct frames *f, const char *what,
                     struct rhea_error *err)
{
    return rhea_error_errno(err, errno, "%s: cannot %s", f->path, what);
}

/* --- the layout of the file ---------------------------------------------- */

static void lay_out(struct frames_control *c)
{
    *c = (struct frames_control){
        .magic = FRAMES_MAGIC,
        .bytes = sizeof(*c),
        .n_points = EXPERIMENT_MAX_POINTS,
        .n_variables = EXPERIMENT_MAX_VARIABLES,
    };
    c->points = align_up(sizeof(*c), FRAMES_PAGE);
    c->variables = align_up(
        c->points + c->n_points * sizeof(struct frames_point), FRAMES_PAGE);
    c->text =
        align_up(c->variables + c->n_variables * sizeof(struct frames_variable),
                 FRAMES_PAGE);
    c->ring = c->text + UINT64_C(2) * FRAMES_TEXT;
}

static void lay_out_ring(struct frames_control *c, uint64_t limit)
{
    c->limit = limit;
    c->n_entries = limit / FRAMES_OVERHEAD + 1;
    c->data = align_up(c->ring + c->n_entries * sizeof(struct frames_entry),
                       FRAMES_PAGE);
    c->data_bytes = align_up(limit + 1, FRAMES_PAGE);
}

/* Whether the control page is one of this version, and the file as long as it
 * says. */
static int check_layout(const struct frames *f, const struct frames_control *c,
                        struct rhea_error *err)
{
    struct frames_control want;
    struct stat st;

    if (c->magic != FRAMES_MAGIC)
        return rhea_error_set(err, EINVAL, "%s is not a file of trace frames",
                              f->path);
    lay_out(&want);
    if (c->bytes != want.bytes || c->n_points != want.n_points ||
        c->n_variables != want.n_variables || c->points != want.points ||
        c->variables != want.variables || c->text != want.text ||
        c->ring != want.ring)
        return rhea_error_set(
            err, EINVAL, "%s is of another version of this program", f->path);
    if (c->limit > max_limit)
        return rhea_error_set(err, EINVAL, "%s: the buffer's size is damaged",
                              f->path);
    lay_out_ring(&want, c->limit);
    if (fstat(f->fd, &st) < 0)
        return sys_error(f, "look at it", err);
    if (c->n_entries != want.n_entries || c->data != want.data ||
        c->data_bytes != want.data_bytes ||
        (uint64_t)st.st_size < want.data + want.data_bytes)
        return rhea_error_set(err, EINVAL, "%s is damaged, or cut off",
                              f->path);
    return 0;
}

/* --- mappings ------------------------------------------------------------ */

static int map_fixed(struct frames *f, struct rhea_error *err)
{
    struct frames_control c;

    lay_out(&c);
    f->fixed_bytes = c.ring;
    f->fixed = mmap(NULL, f->fixed_bytes, PROT_READ | PROT_WRITE,
                    f->private ? MAP_PRIVATE : MAP_SHARED, f->fd, 0);
    if (f->fixed == MAP_FAILED) {
        f->fixed = NULL;
        return sys_error(f, "map it", err);
    }
    f->control = (struct frames_control *)(void *)f->fixed;
    f->points = (struct frames_point *)(void *)(f->fixed + c.points);
    f->variables = (struct frames_variable *)(void *)(f->fixed + c.variables);
    return 0;
}

static void unmap_ring(struct frames *f)
{
    if (f->entries)
        munmap(f->entries, f->n_entries * sizeof(*f->entries));
    if (f->data)
        munmap(f->data, 2 * f->data_bytes);
    f->entries = NULL;
    f->data = NULL;
}

/* The bytes twice in a row, so that what begins near the end goes on. */
static uint8_t *map_twice(const struct frames *f, uint64_t offset, size_t len)
{
    int how = f->private ? MAP_PRIVATE : MAP_SHARED;
    uint8_t *room = mmap(NULL, 2 * len, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (room == MAP_FAILED)
        return NULL;
    for (unsigned i = 0; i < 2; i++) {
        if (mmap(room + i * len, len,
                 f->private ? PROT_READ : PROT_READ | PROT_WRITE,
                 how | MAP_FIXED, f->fd, (off_t)offset) == MAP_FAILED) {
            munmap(room, 2 * len);
            return NULL;
        }
    }
    return room;
}

int frames_map_ring(struct frames *f, struct rhea_error *err)
{
    const struct frames_control *c = f->control;
    void *entries;

    if (f->data && f->ring_generation == c->ring_generation)
        return 0;
    unmap_ring(f);
    f->n_entries = c->n_entries;
    f->data_bytes = c->data_bytes;
    f->lap_first = f->lap_next = f->lap_data = 0;
    entries =
        mmap(NULL, f->n_entries * sizeof(*f->entries), PROT_READ | PROT_WRITE,
             f->private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED, f->fd,
             (off_t)c->ring);
    f->entries = entries == MAP_FAILED ? NULL : entries;
    f->data = f->entries ? map_twice(f, c->data, f->data_bytes) : NULL;
    if (!f->data) {
        unmap_ring(f);
        return sys_error(f, "map it", err);
    }
    f->ring_generation = c->ring_generation;
    return 0;
}

/* --- life ---------------------------------------------------------------- */

void frames_close(struct frames *f)
{
    if (!f)
        return;
    if (f->owner && f->control) {
        frames_stop(f, FRAMES_STOPPED, 0, NULL);
        __atomic_store_n(&f->control->clean, 1, __ATOMIC_RELEASE);
    }
    unmap_ring(f);
    if (f->fixed)
        munmap(f->fixed, f->fixed_bytes);
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f);
}

static int allocate(const struct frames *f, uint64_t from, uint64_t to,
                    struct rhea_error *err)
{
    int ret = posix_fallocate(f->fd, (off_t)from, (off_t)(to - from));

    if (ret)
        return rhea_error_errno(err, ret,
                                "%s: there is no room for %" PRIu64
                                " bytes of trace frames",
                                f->path, to - from);
    return 0;
}

static int init_lock(struct frames_control *c, struct rhea_error *err)
{
    pthread_mutexattr_t how;
    int ret = pthread_mutexattr_init(&how);

    if (ret == 0) {
        pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
        ret = pthread_mutex_init(&c->lock, &how);
        pthread_mutexattr_destroy(&how);
    }
    return ret ? rhea_error_errno(err, ret, "cannot make a lock") : 0;
}

static int check_limit(uint64_t limit, struct rhea_error *err)
{
    if (limit == 0 || limit > max_limit)
        return rhea_error_set(err, EINVAL,
                              "a trace buffer cannot be of %" PRIu64 " bytes",
                              limit);
    return 0;
}

static int create(struct frames *f, uint64_t limit, struct rhea_error *err)
{
    struct frames_control c;
    int ret;

    lay_out(&c);
    lay_out_ring(&c, limit);
    /* The texts are written, not stored to, so they need no room yet. */
    ret = allocate(f, 0, c.text, err);
    if (ret == 0)
        ret = allocate(f, c.ring, c.data + c.data_bytes, err);
    if (ret == 0)
        ret = map_fixed(f, err);
    if (ret < 0)
        return ret;
    c.ring_generation = 1;
    if (getrandom(&c.run, sizeof(c.run), 0) != sizeof(c.run))
        return sys_error(f, "find a random number for it", err);
    *f->control = c;
    ret = init_lock(f->control, err);
    return ret < 0 ? ret : frames_map_ring(f, err);
}

static struct frames *new_frames(const char *path, struct rhea_error *err)
{
    struct frames *f = calloc(1, sizeof(*f));

    if (f) {
        f->fd = -1;
        f->path = strdup(path);
    }
    if (!f || !f->path) {
        free(f);
        rhea_error_errno(err, ENOMEM, "%s: cannot open it", path);
        return NULL;
    }
    return f;
}

int frames_create(struct frames **out, const char *path, uint64_t limit,
                  struct rhea_error *err)
{
    struct frames *f;
    int ret = check_limit(limit, err);

    if (ret < 0)
        return ret;
    f = new_frames(path, err);
    if (!f)
        return -ENOMEM;
    f->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (f->fd < 0) {
        ret = sys_error(f, "make it", err);
    } else {
        /* The descriptor is what the plugin gets, too: while either of them
         * lives, it is locked. */
        (void)flock(f->fd, LOCK_EX | LOCK_NB);
        ret = create(f, limit, err);
        if (ret < 0)
            unlink(path);
        f->owner = ret == 0;
    }
    if (ret < 0)
        frames_close(f);
    else
        *out = f;
    return ret;
}

/* Look at the control page before anything is mapped. */
static int look_at_file(const struct frames *f, struct rhea_error *err)
{
    struct frames_control c;
    ssize_t n;

    n = pread(f->fd, &c, sizeof(c), 0);
    if (n < 0)
        return sys_error(f, "read it", err);
    if (n < (ssize_t)sizeof(c))
        return rhea_error_set(err, EINVAL, "%s is not a file of trace frames",
                              f->path);
    return check_layout(f, &c, err);
}

static int open_file(struct frames *f, int flags, struct rhea_error *err)
{
    f->fd = open(f->path, flags | O_CLOEXEC);
    if (f->fd < 0)
        return sys_error(f, "open it", err);
    return look_at_file(f, err);
}

/* Takes FD over. */
static int attach(struct frames **out, const char *name, int fd,
                  struct rhea_error *err)
{
    struct frames *f = new_frames(name, err);
    int ret;

    if (!f) {
        close(fd);
        return -ENOMEM;
    }
    f->fd = fd;
    ret = look_at_file(f, err);
    if (ret == 0)
        ret = map_fixed(f, err);
    if (ret < 0)
        frames_close(f);
    else
        *out = f;
    return ret;
}

int frames_attach(struct frames **out, const char *path, struct rhea_error *err)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return rhea_error_errno(err, errno, "%s: cannot open it", path);
    return attach(out, path, fd, err);
}

int frames_attach_fd(struct frames **out, int fd, struct rhea_error *err)
{
    return attach(out, "the file of trace frames", fd, err);
}

/* Faults that only map a page take as long as all the rest of a small frame. */
static void populate(void *at, uint64_t len)
{
    enum { MOST = 256 << 20 };

#ifdef MADV_POPULATE_READ
    (void)madvise(at, (size_t)RHEA_MIN(len, (uint64_t)MOST),
                  MADV_POPULATE_READ);
#else
    (void)at;
    (void)len;
#endif
}

int frames_prepare(struct frames *f, struct rhea_error *err)
{
    int ret;

    frames_lock(f);
    ret = frames_map_ring(f, err);
    frames_unlock(f);
    if (ret == 0) {
        populate(f->data, f->data_bytes);
        populate(f->entries, f->n_entries * sizeof(*f->entries));
        frames_go_ahead(f);
    }
    return ret;
}

static void make_writable(uint8_t *at, uint64_t len)
{
#ifdef MADV_POPULATE_WRITE
    uint64_t before = (uintptr_t)at % FRAMES_PAGE;

    (void)madvise(at - before, before + len, MADV_POPULATE_WRITE);
#else
    (void)at;
    (void)len;
#endif
}

/* A ring of SIZE bytes, of which those from POSITION on are next. */
static void go_ahead(uint8_t *ring, uint64_t size, uint64_t position,
                     uint64_t most, uint64_t *ahead)
{
    uint64_t end = position + RHEA_MIN(most, size), from, len, first;

    /* It started again, or nobody came in time. */
    if (*ahead < position || *ahead > end)
        *ahead = position;
    len = end - *ahead;
    if (len < RHEA_MIN(most, size) / 4)
        return;
    from = *ahead % size;
    first = RHEA_MIN(len, size - from);
    make_writable(ring + from, first);
    if (len > first)
        make_writable(ring, len - first);
    *ahead = end;
}

/* A page of a file is read-only until it is first stored to, and again when it
 * has been written to the disk. That a page becomes writable takes as long as
 * two frames, and longer on a busy disk. */
void frames_go_ahead(struct frames *f)
{
    enum { MOST = 64 << 20, PART = 8 /* of that for the index */ };
    const struct frames_control *c = f->control;
    uint64_t position, next, n_entries, data_bytes;
    struct frames_entry *entries;
    uint8_t *data;

    /* The ring stays while tracing goes on. */
    frames_lock(f);
    position = c->position;
    next = c->next;
    data = f->data;
    data_bytes = f->data_bytes;
    entries = f->entries;
    n_entries = f->n_entries;
    frames_unlock(f);
    if (!data || !entries)
        return;
    go_ahead(data, data_bytes, position, MOST, &f->data_ahead);
    go_ahead((uint8_t *)entries, n_entries * sizeof(*entries),
             next * sizeof(*entries), MOST / PART, &f->entries_ahead);
}

/* Whether frame N is all there. */
static bool is_whole(const struct frames *f, uint64_t n)
{
    struct frames_frame frame;

    return frames_look(f, n, &frame) && frame.head.frame == n &&
           frame.head.check ==
               frames_check(f->control->run, n, &frame.entry, &frame.head,
                            crc32c(0, frame.payload, frame.head.size));
}

/* Keep the frames that are whole, in their order, and find those that were
 * stored after the control page got to the disk. The index is a private copy
 * here, of which only what moves takes memory. */
static uint64_t recover(struct frames *f)
{
    struct frames_control *c = f->control;
    uint64_t kept = c->first, n;

    for (n = c->first; n < c->first + f->n_entries; n++) {
        if (!is_whole(f, n)) {
            if (n >= c->next)
                break;
            continue;
        }
        if (kept != n)
            f->entries[kept % f->n_entries] = f->entries[n % f->n_entries];
        kept++;
    }
    n = RHEA_MAX(n, c->next) - kept;
    c->next = kept;
    return n;
}

static bool is_held(const struct frames *f)
{
    return flock(f->fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

/* Frames of a circular buffer that somebody stores into make room while they
 * are looked at. A plugin notices after a moment that rhea-trace was killed. */
static int wait_for_writers(const struct frames *f, struct rhea_error *err)
{
    enum { PAUSE = 10 /* ms */, PATIENCE = 3000 };

    for (unsigned waited = 0; is_held(f); waited += PAUSE) {
        if (!frames_is_running(f->control) ||
            !__atomic_load_n(&f->control->circular, __ATOMIC_RELAXED))
            return 0;
        if (waited >= PATIENCE)
            return rhea_error_set(err, EBUSY,
                                  "%s: tracing goes on, and its frames make "
                                  "room for new ones: stop it first",
                                  f->path);
        usleep(PAUSE * 1000);
    }
    return 0;
}

int frames_open(struct frames **out, const char *path, uint64_t *n_lost,
                struct rhea_error *err)
{
    struct frames *f = new_frames(path, err);
    uint64_t lost = 0;
    int ret;

    if (!f)
        return -ENOMEM;
    f->private = true;
    ret = open_file(f, O_RDONLY, err);
    if (ret == 0)
        ret = map_fixed(f, err);
    if (ret == 0)
        ret = wait_for_writers(f, err);
    if (ret == 0) {
        /* Private, so that it stays as it is now from the next line on. */
        f->control->bytes = sizeof(*f->control);
        ret = check_layout(f, f->control, err);
    }
    if (ret == 0)
        ret = frames_map_ring(f, err);
    if (ret == 0 && (f->control->first > f->control->next ||
                     f->control->next - f->control->first > f->n_entries))
        ret = rhea_error_set(err, EINVAL, "%s: the number of frames is damaged",
                             path);
    if (ret < 0) {
        frames_close(f);
        return ret;
    }
    if (!f->control->clean) {
        lost = recover(f);
        if (f->control->running)
            f->control->stop = FRAMES_CRASHED;
        f->control->running = 0;
    }
    f->control->reason[FRAMES_REASON - 1] = 0;
    if (n_lost)
        *n_lost = lost;
    *out = f;
    return 0;
}

struct frames_control *frames_control(struct frames *f)
{
    return f->control;
}

struct frames_point *frames_point(struct frames *f, unsigned slot)
{
    return &f->points[slot];
}

struct frames_variable *frames_variable(struct frames *f, unsigned number)
{
    return &f->variables[number];
}

const char *frames_path(const struct frames *f)
{
    return f->path;
}

int frames_fd(const struct frames *f)
{
    return f->fd;
}

/* --- another size -------------------------------------------------------- */

int frames_resize(struct frames *f, uint64_t limit, struct rhea_error *err)
{
    struct frames_control *c = f->control, grown = *c;
    int ret = check_limit(limit, err);

    if (ret < 0)
        return ret;
    if (frames_is_running(c))
        return rhea_error_set(err, EBUSY,
                              "the trace buffer cannot change its size while "
                              "tracing goes on");
    lay_out_ring(&grown, limit);
    /* The file does not shrink: others may still have mapped it all. */
    ret = allocate(f, c->ring, grown.data + grown.data_bytes, err);
    if (ret < 0)
        return ret;
    frames_lock(f);
    c->limit = grown.limit;
    c->n_entries = grown.n_entries;
    c->data = grown.data;
    c->data_bytes = grown.data_bytes;
    c->first = c->next = c->used = c->position = 0;
    c->ring_generation++;
    ret = frames_map_ring(f, err);
    frames_unlock(f);
    return ret;
}

/* --- the experiment ------------------------------------------------------ */

static int write_text(struct frames *f, const char *text, size_t len,
                      struct rhea_error *err)
{
    struct frames_control *c = f->control;
    uint64_t generation = c->generation + 1;
    uint64_t at = c->text + (generation & 1) * FRAMES_TEXT;

    if (len > FRAMES_TEXT)
        return rhea_error_set(err, EFBIG,
                              "the tracepoints and their actions take %zu "
                              "bytes, more than %d",
                              len, FRAMES_TEXT);
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(f->fd, text + done, len - done, (off_t)(at + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return sys_error(f, "write the experiment to it", err);
        done += (size_t)n;
    }
    c->slots[generation & 1].len = len;
    c->slots[generation & 1].check = crc32c(0, text, len);
    __atomic_store_n(&c->generation, generation, __ATOMIC_RELEASE);
    return 0;
}

int frames_publish(struct frames *f, const struct experiment *e,
                   struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    size_t len = 0;
    FILE *file = open_memstream(&text, &len);
    int ret;

    if (!file)
        return rhea_error_errno(err, errno, "cannot write the experiment");
    ret = experiment_save(e, file);
    if (fclose(file) != 0 || ret < 0)
        return rhea_error_errno(err, ENOMEM, "cannot write the experiment");
    for (; f->n_published < e->n_points; f->n_published++)
        f->points[f->n_published] = (struct frames_point){
            .enabled = e->points[f->n_published]->enabled};
    return write_text(f, text, len, err);
}

static int read_text(const struct frames *f, uint64_t g, char **out,
                     size_t *out_len, struct rhea_error *err)
{
    const struct frames_control *c = f->control;
    uint64_t len = c->slots[g & 1].len;
    int ret = 0;
    char *text;

    if (len > FRAMES_TEXT)
        return rhea_error_set(err, EINVAL, "%s: the experiment is damaged",
                              f->path);
    text = malloc(len + 1);
    if (!text)
        return rhea_error_errno(err, ENOMEM, "cannot read the experiment");
    memcpy(text, f->fixed + c->text + (g & 1) * FRAMES_TEXT, len);
    text[len] = 0;
    if (__atomic_load_n(&c->generation, __ATOMIC_ACQUIRE) != g)
        ret = rhea_error_set(err, EAGAIN, "the experiment is being changed");
    else if (crc32c(0, text, len) != c->slots[g & 1].check)
        ret = rhea_error_set(err, EINVAL, "%s: the experiment is damaged",
                             f->path);
    if (ret < 0) {
        free(text);
        return ret;
    }
    *out = text;
    *out_len = len;
    return 0;
}

/* After a crash of the system the last text may not be there, or not all of it.
 * The one before tells of the same tracepoints: what is published while there
 * are frames is a note, or another tracepoint. */
int frames_text(struct frames *f, char **out, size_t *out_len,
                uint64_t *generation, struct rhea_error *err)
{
    struct frames_control *c = f->control;
    uint64_t g = __atomic_load_n(&c->generation, __ATOMIC_ACQUIRE);
    int ret = read_text(f, g, out, out_len, err);

    if (ret == -EINVAL && f->private && g > 1) {
        c->generation = --g;
        ret = read_text(f, g, out, out_len, err);
    }
    if (ret == 0)
        *generation = g;
    return ret;
}
