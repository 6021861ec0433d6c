/* SPDX-License-Identifier: MIT */
/* The files that an image names: none outside of its folder, whatever it is
 * called; parents by names of any system; searching; making and undoing. */
#include <errno.h>
#include <fcntl.h>
#include <rhea/image.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "lib/test.h"

static struct rhea_error err;

static void put(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
    CHECK(f != NULL);
}

static bool is_there(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0;
}

/* What the file NAME holds, as a string. */
static const char *contents(const char *name)
{
    static char buf[64];
    FILE *f = fopen(name, "r");
    size_t n = f ? fread(buf, 1, sizeof(buf) - 1, f) : 0;
    buf[n] = 0;
    if (f)
        fclose(f);
    return f ? buf : NULL;
}

static struct image_files *begin(const char *beside, unsigned flags)
{
    struct image_files *files = image_files_new(beside, flags, &err);
    if (!CHECK(files != NULL))
        exit(1);
    return files;
}

/* What FILES opens as NAME begins with TEXT. */
static bool opens(struct image_files *files, const char *name, const char *text)
{
    struct rhea_storage *storage = NULL;
    char buf[64] = "";
    int ret = files->ops.open(files->ops.opaque, name, false, &storage, &err);
    if (!ret)
        ret = rhea_storage_read_padded(storage, buf, strlen(text), 0, &err);
    return test_ok(ret, &err, __FILE__, __LINE__, name) &&
           test_equal_string(buf, text, __FILE__, __LINE__, name);
}

static int open_fails(struct image_files *files, const char *name)
{
    struct rhea_storage *storage = NULL;
    int ret = files->ops.open(files->ops.opaque, name, false, &storage, &err);
    test_report(ret < 0, __FILE__, __LINE__, "'%s' was opened", name);
    return ret;
}

static int create(struct image_files *files, const char *name,
                  struct rhea_storage **out)
{
    return files->ops.create(files->ops.opaque, name, out, &err);
}

static int create_fails(struct image_files *files, const char *name)
{
    struct rhea_storage *storage = NULL;
    int ret = create(files, name, &storage);
    test_report(ret < 0, __FILE__, __LINE__, "'%s' was made", name);
    return ret;
}

static void files_of_the_folder_and_below_are_opened(void)
{
    mkdir("in/sub", 0777);
    put("in/part", "part");
    put("in/sub/part", "below");
    put("in/..part", "dots");
    CHECK_EQ(symlink("sub/part", "in/link"), 0);
    struct image_files *files = begin("in/image", 0);
    opens(files, "part", "part");
    opens(files, "./part", "part");
    opens(files, "sub/part", "below");
    opens(files, "sub//part", "below");
    opens(files, "..part", "dots");
    opens(files, "link", "below");
    CHECK_EQ(open_fails(files, "missing"), -ENOENT);
    CHECK_CONTAINS(err.text, "in/missing");
    image_files_close(files, false);

    /* An image that is called without its folder. */
    CHECK_EQ(chdir("in"), 0);
    files = begin("image", 0);
    opens(files, "part", "part");
    opens(files, "sub/part", "below");
    image_files_close(files, false);
    files = begin("file:image", 0);
    opens(files, "part", "part");
    image_files_close(files, false);
    CHECK_EQ(chdir(".."), 0);
}

/* No part of such a name is a protocol, also where the folder is called so. */
static void names_with_colons_are_files(void)
{
    put("in/a:b", "colon");
    put("in/nbd:localhost:10809", "nbd");
    put("in/json:{}", "json");
    put("in/file:part", "file");
    mkdir("in/c:d", 0777);
    put("in/c:d/part", "folder");
    static const char *const besides[] = {"in/image", "in/c:d/../image"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(besides); i++) {
        struct image_files *files = begin(besides[i], 0);
        opens(files, "a:b", "colon");
        opens(files, "nbd:localhost:10809", "nbd");
        opens(files, "json:{}", "json");
        opens(files, "file:part", "file");
        opens(files, "c:d/part", "folder");
        CHECK_EQ(open_fails(files, "https://localhost/part"), -ENOENT);
        image_files_close(files, false);
    }
    CHECK_EQ(chdir("in"), 0);
    struct image_files *files = begin("file:c:d/image", 0);
    opens(files, "part", "folder");
    image_files_close(files, false);
    files = begin("image", 0);
    opens(files, "a:b", "colon");
    image_files_close(files, false);
    CHECK_EQ(chdir(".."), 0);
}

static void no_name_leads_out_of_the_folder(void)
{
    put("out/secret", "secret");
    char absolute[4096 + 16];
    RHEA_AUTO_FREE char *out = realpath("out", NULL);
    CHECK(out != NULL);
    snprintf(absolute, sizeof(absolute), "%s/secret", out ? out : "");
    CHECK_EQ(symlink("../out/secret", "in/leads-out"), 0);
    CHECK_EQ(symlink(absolute, "in/leads-out-too"), 0);
    CHECK_EQ(symlink("../out", "in/folder-out"), 0);
    /* A folder whose name only begins like the image's. */
    mkdir("inside", 0777);
    put("inside/secret", "secret");
    CHECK_EQ(symlink("../inside/secret", "in/alike"), 0);
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    static const char *const names[] = {
        "../out/secret",     "..",     "sub/../../out/secret",
        "./../out/secret",   "",       "/etc/passwd",
        "leads-out",         "alike",  "leads-out-too",
        "folder-out/secret", "sub/..", "folder-out/../secret",
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        CHECK_EQ(open_fails(files, names[i]), -EACCES);
        CHECK_EQ(create_fails(files, names[i]), -EACCES);
    }
    CHECK_EQ(open_fails(files, absolute), -EACCES);
    CHECK_CONTAINS(err.text, absolute);
    CHECK_EQ(create_fails(files, absolute), -EACCES);
    image_files_close(files, false);
    CHECK_STR(contents("out/secret"), "secret");
    CHECK_STR(contents("inside/secret"), "secret");
}

/* An image that was moved, or made elsewhere. */
static void other_systems_names_mean_files_of_the_folder(void)
{
    char own[4096 + 16], away[4096 + 16];
    RHEA_AUTO_FREE char *folder = realpath("in", NULL);
    snprintf(own, sizeof(own), "%s/below/Deep", folder ? folder : "");
    snprintf(away, sizeof(away), "%s/../out/moved", folder ? folder : "");
    mkdir("in/below", 0777);
    put("in/moved", "moved");
    put("in/below/Deep", "deep");
    put("out/moved", "secret");
    const char *const names[] = {
        "C:\\vm\\moved",
        "/vmfs/volumes/5f/vm/moved",
        "\\\\server\\vm\\moved",
        ".\\moved",
        "..\\vm\\moved",
        "D:moved",
        "Moved",
        "C:\\vm\\MOVED",
        away,
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        struct image_files *files = begin("in/image", 0);
        opens(files, names[i], "moved");
        image_files_close(files, false);
    }
    struct image_files *files = begin("in/image", 0);
    opens(files, own, "deep");
    image_files_close(files, false);
    files = begin("in/image", 0);
    opens(files, ".\\below\\Deep", "deep");
    CHECK_EQ(open_fails(files, "C:\\vm\\below"), -EISDIR);
    CHECK_EQ(open_fails(files, "C:\\vm\\none"), -ENOENT);
    CHECK_EQ(open_fails(files, "elsewhere/moved"), -ENOENT);
    /* By their last parts these are one file, and were two. */
    opens(files, "C:\\one\\moved", "moved");
    CHECK_EQ(open_fails(files, "C:\\two\\moved"), -EINVAL);
    image_files_close(files, false);
    /* Which of the two is meant nobody knows. */
    put("in/MOVED", "other");
    files = begin("in/image", 0);
    CHECK_EQ(open_fails(files, "Moved"), -ENOENT);
    image_files_close(files, false);
    CHECK_EQ(unlink("in/moved"), 0);
    CHECK_EQ(unlink("in/MOVED"), 0);
}

/* What is not there yet cannot be looked at, but the way to it can. */
static void nothing_is_made_outside_of_the_folder(void)
{
    CHECK_EQ(symlink("../out/new", "in/dangling"), 0);
    CHECK_EQ(symlink("dangling", "in/dangling-on"), 0);
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_EQ(create_fails(files, "dangling"), -EACCES);
    CHECK_EQ(create_fails(files, "dangling-on"), -EACCES);
    CHECK_EQ(create_fails(files, "folder-out/new"), -EACCES);
    CHECK_EQ(create_fails(files, "no-folder/new"), -ENOENT);
    image_files_close(files, true);
    CHECK(!is_there("out/new"));
    CHECK(is_there("in/dangling"));
}

static void what_is_no_file_is_not_waited_for(void)
{
    CHECK_EQ(mkfifo("in/fifo", 0666), 0);
    CHECK_EQ(symlink("/dev/zero", "in/zero"), 0);
    struct image_files *files = begin("in/image", 0);
    open_fails(files, "fifo");
    CHECK_EQ(open_fails(files, "sub"), -EISDIR);
    CHECK_EQ(open_fails(files, "zero"), -EACCES);
    image_files_close(files, false);
}

static void an_image_in_no_folder_has_no_others(void)
{
    struct image_files *files = begin(NULL, 0);
    char *found = NULL;
    CHECK_EQ(open_fails(files, "part"), -EINVAL);
    CHECK_EQ(create_fails(files, "part"), -EINVAL);
    CHECK_OK(files->ops.search(files->ops.opaque, NULL, NULL, &found, &err),
             &err);
    CHECK(found == NULL);
    image_files_close(files, false);
}

static int make_text(struct image_files *files, const char *name,
                     const char *text)
{
    struct rhea_storage *storage = NULL;
    int ret = create(files, name, &storage);
    return ret ? ret : rhea_storage_write(storage, text, strlen(text), 0, &err);
}

static void what_was_made_is_undone_and_nothing_else(void)
{
    put("in/old", "a long text that was there");
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_OK(make_text(files, "new", "new"), &err);
    CHECK_OK(make_text(files, "sub/new", "new"), &err);
    CHECK_OK(make_text(files, "n:w", "new"), &err);
    CHECK_OK(make_text(files, "old", "new"), &err);
    CHECK_STR(contents("in/new"), "new");
    CHECK_STR(contents("in/n:w"), "new");
    image_files_close(files, true);
    CHECK(!is_there("in/new"));
    CHECK(!is_there("in/sub/new"));
    CHECK(!is_there("in/n:w"));
    CHECK_STR(contents("in/old"), "new");

    files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_OK(make_text(files, "new", "stays"), &err);
    image_files_close(files, false);
    CHECK_STR(contents("in/new"), "stays");
}

static int lock(const char *name, unsigned perm, unsigned shared,
                struct rhea_storage **out)
{
    int ret = rhea_file_open(out, name, RHEA_FILE_WRITE, &err);
    return ret ? ret : rhea_storage_lock(*out, perm, shared, &err);
}

/* As QEMU locks a file that it writes to. */
static struct rhea_storage *lock_as_writer(const char *name)
{
    struct rhea_storage *storage = NULL;
    CHECK_OK(lock(name, RHEA_LOCK_READ | RHEA_LOCK_WRITE | RHEA_LOCK_RESIZE,
                  RHEA_LOCK_READ | RHEA_LOCK_UNCHANGED, &storage),
             &err);
    return storage;
}

static void members_are_locked_as_the_image_is(void)
{
    struct rhea_storage *other, *member;
    put("in/part", "part");
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_OK(files->ops.open(files->ops.opaque, "part", true, &member, &err),
             &err);
    /* A second writer, and a reader who cannot bear writers. */
    CHECK_EQ(lock("in/part", RHEA_LOCK_WRITE, RHEA_LOCK_ALL, &other), -EBUSY);
    rhea_storage_close(other);
    CHECK_EQ(lock("in/part", RHEA_LOCK_READ, RHEA_LOCK_READ, &other), -EBUSY);
    rhea_storage_close(other);
    /* Twice a member of one image. */
    CHECK_EQ(open_fails(files, "part"), -EBUSY);
    image_files_close(files, false);

    /* For reading only, where the rest is written to. */
    files = begin("in/image", RHEA_IMAGE_WRITE);
    opens(files, "part", "part");
    CHECK_OK(lock("in/part", RHEA_LOCK_READ, RHEA_LOCK_READ, &other), &err);
    rhea_storage_close(other);
    CHECK_EQ(lock("in/part", RHEA_LOCK_WRITE, RHEA_LOCK_ALL, &other), -EBUSY);
    rhea_storage_close(other);
    image_files_close(files, false);

    other = lock_as_writer("in/part");
    files = begin("in/image", 0);
    CHECK_EQ(open_fails(files, "part"), -EBUSY);
    image_files_close(files, false);
    files = begin("in/image", RHEA_IMAGE_NO_LOCK);
    opens(files, "part", "part");
    image_files_close(files, false);
    rhea_storage_close(other);
}

/* Somebody uses it: it keeps its contents, and it is not removed. */
static void a_file_in_use_is_not_made_anew(void)
{
    put("in/used", "in use");
    struct rhea_storage *other = lock_as_writer("in/used");
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_EQ(create_fails(files, "used"), -EBUSY);
    image_files_close(files, true);
    CHECK_STR(contents("in/used"), "in use");
    rhea_storage_close(other);
}

static void only_so_many_files_are_opened(void)
{
    struct image_files *files = begin("in/image", 0);
    struct rhea_storage *storage;
    /* As if so many were open already. */
    files->n_opened = 4096;
    CHECK_EQ(files->ops.open(files->ops.opaque, "part", false, &storage, &err),
             -EMFILE);
    files->n_opened = 0;
    image_files_close(files, false);
}

/* --- Replacing and removing --- */

static int replace(struct image_files *files, const char *name,
                   const char *text)
{
    return files->ops.replace(files->ops.opaque, name, text, strlen(text),
                              &err);
}

static unsigned count_files(const char *folder)
{
    FILE *f = NULL;
    unsigned n = 0;
    char command[128];
    snprintf(command, sizeof(command), "ls -A %s | wc -l", folder);
    f = popen(command, "r");
    if (!CHECK(f && fscanf(f, "%u", &n) == 1))
        n = 0;
    if (f)
        pclose(f);
    return n;
}

static void a_file_is_replaced_whole(void)
{
    struct stat before, after;
    put("in/text", "the text before");
    CHECK_EQ(chmod("in/text", 0640), 0);
    CHECK_EQ(stat("in/text", &before), 0);
    unsigned n = count_files("in");
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_OK(replace(files, "text", "after"), &err);
    CHECK_STR(contents("in/text"), "after");
    CHECK_EQ(stat("in/text", &after), 0);
    /* Another file, so that a reader of the old one sees it as it was. */
    CHECK(before.st_ino != after.st_ino);
    CHECK_EQ(after.st_mode, before.st_mode);
    CHECK_EQ(count_files("in"), n);
    /* A link is followed, and stays one. */
    put("in/sub/real", "before");
    CHECK_EQ(symlink("sub/real", "in/to-real"), 0);
    CHECK_OK(replace(files, "to-real", "after"), &err);
    CHECK_STR(contents("in/sub/real"), "after");
    CHECK_EQ(lstat("in/to-real", &after), 0);
    CHECK(S_ISLNK(after.st_mode));
    CHECK_EQ(replace(files, "missing", "x"), -ENOENT);
    CHECK_EQ(replace(files, "leads-out", "x"), -EACCES);
    CHECK_EQ(replace(files, "../out/secret", "x"), -EACCES);
    CHECK_STR(contents("out/secret"), "secret");
    image_files_close(files, false);

    files = begin("in/image", 0);
    CHECK_EQ(replace(files, "text", "x"), -EBADF);
    CHECK_EQ(files->ops.remove(files->ops.opaque, "text", &err), -EBADF);
    image_files_close(files, false);
    CHECK_STR(contents("in/text"), "after");
}

static void a_file_is_removed_only_where_it_may_be(void)
{
    put("in/gone", "gone");
    struct image_files *files = begin("in/image", RHEA_IMAGE_WRITE);
    CHECK_OK(files->ops.remove(files->ops.opaque, "gone", &err), &err);
    CHECK(!is_there("in/gone"));
    CHECK_EQ(files->ops.remove(files->ops.opaque, "gone", &err), -ENOENT);
    CHECK_EQ(files->ops.remove(files->ops.opaque, "leads-out", &err), -EACCES);
    CHECK_EQ(files->ops.remove(files->ops.opaque, "folder-out/secret", &err),
             -EACCES);
    CHECK_EQ(files->ops.remove(files->ops.opaque, "/etc/none", &err), -EACCES);
    CHECK(is_there("in/leads-out"));
    CHECK(is_there("out/secret"));
    image_files_close(files, false);
}

/* --- Parents --- */

/* What the only name NAME means to the image in/image. */
static const char *parent_of(const char *image, const char *name)
{
    static char result[4096];
    struct image_files *files = begin(image, 0);
    char *found = NULL;
    int ret = files->ops.find_parent(files->ops.opaque, &name, 1, &found, &err);
    snprintf(result, sizeof(result), "%s", ret ? "none" : found);
    free(found);
    image_files_close(files, false);
    return result;
}

static const char *parent(const char *name)
{
    return parent_of("in/image", name);
}

static void parents_are_found_by_names_of_any_system(void)
{
    put("in/base.vhd", "");
    put("in/my base.vhd", "");
    put("in/sub/deep.vhd", "");
    put("in/per%25cent", "");
    static const char *const names[][2] = {
        {"base.vhd", "base.vhd"},
        {"sub/deep.vhd", "sub/deep.vhd"},
        {"C:\\vm\\base.vhd", "base.vhd"},
        {"c:base.vhd", "base.vhd"},
        {"\\\\server\\share\\base.vhd", "base.vhd"},
        {"\\\\?\\C:\\vm\\base.vhd", "base.vhd"},
        {"\\vm\\base.vhd", "base.vhd"},
        {".\\base.vhd", "base.vhd"},
        {".\\sub\\deep.vhd", "sub/deep.vhd"},
        {"sub\\deep.vhd", "sub/deep.vhd"},
        {"..\\vm\\base.vhd", "base.vhd"},
        {"C:/vm/base.vhd", "base.vhd"},
        {"/vm/of/another/system/base.vhd", "base.vhd"},
        {"file:///vm/base.vhd", "base.vhd"},
        {"file:///C:/vm/base.vhd", "base.vhd"},
        {"file:///vm/my%20base.vhd", "my base.vhd"},
        {"file://server/share/my%20base.vhd", "my base.vhd"},
        {"file://localhost/vm/base.vhd", "base.vhd"},
        {"file:///vm/per%2525cent", "per%25cent"},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++)
        test_equal_string(parent(names[i][0]), names[i][1], __FILE__, __LINE__,
                          names[i][0]);
}

/* Nothing is there: the error about opening it will say what was meant. */
static void a_missing_parent_is_named_as_meant(void)
{
    CHECK_STR(parent("/vm/missing.vhd"), "/vm/missing.vhd");
    CHECK_STR(parent("missing.vhd"), "missing.vhd");
    CHECK_STR(parent("C:\\vm\\missing.vhd"), "missing.vhd");
    CHECK_STR(parent(".\\sub\\missing.vhd"), "sub/missing.vhd");
    CHECK_STR(parent("file:///vm/missing%20one.vhd"), "/vm/missing one.vhd");
    CHECK_STR(parent(""), "none");
    /* Never upwards by a name of another system. */
    CHECK_STR(parent("..\\missing.vhd"), "missing.vhd");
    CHECK_STR(parent("C:\\vm\\.."), "none");
}

static void the_best_of_several_names_is_taken(void)
{
    static const char *const names[] = {"C:\\none.vhd", "/none/base.vhd",
                                        ".\\sub\\deep.vhd"};
    static const char *const none[] = {"", "C:\\none.vhd", "/none/either"};
    struct image_files *files = begin("in/image", 0);
    char *found = NULL;
    CHECK_OK(files->ops.find_parent(files->ops.opaque, names, 3, &found, &err),
             &err);
    CHECK_STR(found, "base.vhd");
    free(found);
    CHECK_OK(files->ops.find_parent(files->ops.opaque, none, 3, &found, &err),
             &err);
    CHECK_STR(found, "none.vhd");
    free(found);
    CHECK_EQ(files->ops.find_parent(files->ops.opaque, none, 1, &found, &err),
             -EINVAL);
    CHECK_EQ(files->ops.find_parent(files->ops.opaque, none, 0, &found, &err),
             -EINVAL);
    image_files_close(files, false);
}

/* --- Searching --- */

struct search {
    const char *text;
    int result;
    unsigned seen;
};

static int search_accept(void *opaque, struct rhea_storage *file)
{
    struct search *s = opaque;
    char buf[32] = "";
    s->seen++;
    if (rhea_storage_read_padded(file, buf, strlen(s->text), 0, NULL))
        return 0;
    return strcmp(buf, s->text) == 0 ? s->result : 0;
}

static char *search(const char *beside, struct search *s, int want)
{
    struct image_files *files = begin(beside, 0);
    char *found = NULL;
    CHECK_EQ(
        files->ops.search(files->ops.opaque, search_accept, s, &found, &err),
        want);
    image_files_close(files, false);
    return found;
}

static void a_file_is_found_by_what_it_holds(void)
{
    mkdir("vm", 0777);
    mkdir("vm/Snapshots", 0777);
    mkdir("vm/other", 0777);
    put("vm/Snapshots/child", "child");
    put("vm/Snapshots/a:sibling", "sibling");
    put("vm/base:1", "base");
    put("vm/other/cousin", "cousin");
    CHECK_EQ(mkfifo("vm/Snapshots/fifo", 0666), 0);
    struct search s = {"sibling", 1, 0};
    RHEA_AUTO_FREE char *sibling = search("vm/Snapshots/child", &s, 0);
    CHECK_STR(sibling, "./a:sibling");
    /* The child itself was not looked at. */
    CHECK_EQ(s.seen, 1);
    s = (struct search){"base", 1, 0};
    RHEA_AUTO_FREE char *base = search("vm/Snapshots/child", &s, 0);
    CHECK_STR(base, "../base:1");
    s = (struct search){"cousin", 1, 0};
    CHECK(search("vm/Snapshots/child", &s, 0) == NULL);
    CHECK_EQ(s.seen, 2);
    /* Above another folder nothing is searched. */
    s = (struct search){"base", 1, 0};
    CHECK(search("vm/other/none", &s, 0) == NULL);
    CHECK_EQ(s.seen, 1);
    /* An error ends it. */
    s = (struct search){"sibling", -EIO, 0};
    CHECK(search("vm/Snapshots/child", &s, -EIO) == NULL);
    /* What was found is what the image then opens. */
    CHECK_EQ(chdir("vm/Snapshots"), 0);
    s = (struct search){"base", 1, 0};
    RHEA_AUTO_FREE char *here = search("child", &s, 0);
    CHECK_STR(here, "../base:1");
    CHECK_EQ(chdir("../.."), 0);
}

/* Of a virtual machine of VirtualBox's that was moved. */
static void the_parents_of_snapshots_are_above_them(void)
{
    put("vm/moved.vhd", "");
    static const char *const names[] = {
        "/old/vm/moved.vhd",
        "C:\\Users\\u\\VirtualBox VMs\\vm\\moved.vhd",
        "file:///old/vm/moved.vhd",
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        CHECK_STR(parent_of("vm/Snapshots/child", names[i]), "../moved.vhd");
        CHECK(strstr(parent_of("vm/other/none", names[i]), "..") == NULL);
    }
    /* One beside it goes first. */
    put("vm/Snapshots/moved.vhd", "");
    CHECK_STR(parent_of("vm/Snapshots/child", names[0]), "moved.vhd");
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    RHEA_AUTO_FREE char *folder = strdup(test_path("work"));
    if (!folder || mkdir(folder, 0777) || chdir(folder) || mkdir("in", 0777) ||
        mkdir("out", 0777)) {
        perror("scratch folder");
        return 99;
    }
    TEST(files_of_the_folder_and_below_are_opened);
    TEST(names_with_colons_are_files);
    TEST(no_name_leads_out_of_the_folder);
    TEST(other_systems_names_mean_files_of_the_folder);
    TEST(nothing_is_made_outside_of_the_folder);
    TEST(what_is_no_file_is_not_waited_for);
    TEST(an_image_in_no_folder_has_no_others);
    TEST(what_was_made_is_undone_and_nothing_else);
    TEST(members_are_locked_as_the_image_is);
    TEST(a_file_in_use_is_not_made_anew);
    TEST(only_so_many_files_are_opened);
    TEST(a_file_is_replaced_whole);
    TEST(a_file_is_removed_only_where_it_may_be);
    TEST(parents_are_found_by_names_of_any_system);
    TEST(a_missing_parent_is_named_as_meant);
    TEST(the_best_of_several_names_is_taken);
    TEST(a_file_is_found_by_what_it_holds);
    TEST(the_parents_of_snapshots_are_above_them);
    return test_finish();
}
