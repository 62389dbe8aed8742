/* Descriptors: a process closes all of them and opens files of its own, which get the same numbers.  It goes on,
   and no byte of those files is touched.

   The other files are as long as the arena's and empty, so a mistake would find what it looks for. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NUMBERS 64

static mpshm_arena *arena, *far; /* far: another handle, with a descriptor of its own */
static int ends[2], to_child[2], to_parent[2];
static int kept[] = {-1, -1, -1, -1, -1, -1};
static struct stat others[NUMBERS];
static off_t file_bytes;

static void
open_arena_of(mpshm_geometry geometry)
{
    struct stat status;

    arena = arena_of(geometry);
    far = attach_again(arena);
    CHECK_EQ(0, fstat(mpshm_arena_fd(arena), &status));
    file_bytes = status.st_size;
    CHECK_EQ(0, pipe(ends));
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
    memcpy(kept, ends, sizeof ends);
    memcpy(kept + 2, to_child, sizeof to_child);
    memcpy(kept + 4, to_parent, sizeof to_parent);
}

static void
open_arena(void)
{
    open_arena_of(paged());
}

static uint64_t
chunks(uint32_t count)
{
    return (uint64_t) count << paged().chunk_shift;
}

static bool
is_kept(int fd)
{
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (kept[i] == fd) {
            return true;
        }
    }
    return fd < 3;
}

/* As a daemon does, which was told of the pipes alone. */
static void
lose_every_descriptor(void)
{
    for (int fd = 0; fd < NUMBERS; fd++) {
        if (!is_kept(fd)) {
            close(fd);
        }
    }
    for (int fd = 3; fd < NUMBERS; fd++) {
        if (!is_kept(fd)) {
            CHECK_EQ(fd, memfd_create("other", 0));
            CHECK_EQ(0, ftruncate(fd, file_bytes));
            CHECK_EQ(0, fstat(fd, &others[fd]));
        }
    }
    CHECK_EQ(-1, mpshm_arena_fd(arena));
    CHECK_EQ(-1, mpshm_arena_roster_fd(arena));
}

/* None is closed, or longer, and none holds a byte. */
static void
check_others_untouched(void)
{
    for (int fd = 3; fd < NUMBERS; fd++) {
        struct stat now;

        if (is_kept(fd)) {
            continue;
        }
        CHECK_EQ(0, fstat(fd, &now));
        CHECK_EQ(others[fd].st_ino, now.st_ino);
        CHECK_EQ(file_bytes, now.st_size);
        CHECK_EQ(0, now.st_blocks);
    }
}

/* In a child that loses them; its parent does as it says. */
static int
start_without_descriptors(void (*work)(void))
{
    int pid = fork_hooked();

    if (pid == 0) {
        lose_every_descriptor();
        work();
        check_others_untouched();
        mpshm_arena_close(far);
        mpshm_arena_close(arena);
        check_others_untouched();
        exit(0);
    }
    return pid;
}

static void
close_all(void)
{
    mpshm_reap(arena);
    close_clean(far);
    close_clean(arena);
}

/* Message i is three chunks of seed i. */
static void
send_messages(unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++) {
        mpshm_run run = claim(arena, chunks(3));

        fill(run.data, chunks(3), i);
        CHECK_EQ(0, send_run(ends[1], &run, chunks(3)));
    }
}

static char *
receive_message(unsigned i)
{
    char *data;
    uint64_t size;

    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    CHECK_EQ(chunks(3), size);
    CHECK(is_filled(data, size, i));
    return data;
}

/* Leases, in segments that were mapped and in others */

static void
receive_twelve(void)
{
    uint64_t before = mpshm_leases();

    await(to_child); /* until all are sent */
    for (unsigned i = 0; i < 12; i++) {
        char *data = receive_message(i);

        fill(data, chunks(3), 99);
        mpshm_release(data);
    }
    CHECK_EQ(before, mpshm_leases());
}

static void
messages_are_received(void)
{
    for (int mapped = 0; mapped < 2; mapped++) {
        open_arena();
        char *view = mapped ? lease_new(arena, chunks(3), 7) : NULL; /* the first segment, in the child too */
        int pid = start_without_descriptors(receive_twelve);

        send_messages(0, 12); /* in three segments */
        CHECK(gauges(arena).segments > 2);
        go(to_child);
        wait_child(pid);
        CHECK(!mapped || is_filled(view, chunks(3), 7));
        mpshm_release(view);
        close_all();
    }
}

/* Claims, in segments that are there and in new ones */

static void
send_twelve(void)
{
    send_messages(0, 12);
}

static void
messages_are_sent(void)
{
    for (int mapped = 0; mapped < 2; mapped++) {
        open_arena();
        char *view = mapped ? lease_new(arena, chunks(3), 7) : NULL;

        wait_child(start_without_descriptors(send_twelve));
        CHECK(gauges(arena).segments > 2);
        for (unsigned i = 0; i < 12; i++) {
            mpshm_release(receive_message(i));
        }
        mpshm_release(view);
        close_all();
    }
}

static void
use_all_that_there_is(void)
{
    mpshm_run runs[6];

    for (int i = 0; i < 6; i++) { /* five are made, and the rest is in the parent's */
        runs[i] = claim(arena, i == 5 ? chunks(13) : chunks(16));
        CHECK_EQ((i + 1) % 6, runs[i].mmap_id);
        fill(runs[i].data, runs[i].capacity, (unsigned) i);
    }
    CHECK_EQ(6, gauges(arena).segments);
    CHECK_EQ(0, gauges(arena).bytes_resident); /* it cannot be asked for any more */
    for (int i = 0; i < 6; i++) {
        CHECK(is_filled(runs[i].data, runs[i].capacity, (unsigned) i));
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    mpshm_reap(arena);
}

static void
the_whole_arena_can_be_used(void)
{
    open_arena();
    char *view = lease_new(arena, chunks(3), 7);

    wait_child(start_without_descriptors(use_all_that_there_is));
    CHECK(is_filled(view, chunks(3), 7));
    mpshm_release(view);
    close_all();
}

/* A memory file that its file system may be too small for is reserved by its descriptor. */
static void
claim_in_vain(void)
{
    mpshm_run run;

    CHECK_EQ(-EBADF, mpshm_get_buf(arena, chunks(1), &run));
    CHECK_EQ(0, gauges(arena).segments);
}

static void
what_must_be_reserved_is_not_made(void)
{
    mpshm_geometry geometry = paged();

    open_arena();
    mpshm_arena_close(far);
    mpshm_arena_close(arena);
    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_SHM, "mpshm", 0, NULL, &arena));
    far = attach_again(arena);
    wait_child(start_without_descriptors(claim_in_vain));
    close_all();
}

/* Forks */

static void
fork_with_views_and_loans(void)
{
    char *views[2] = {receive_message(0), receive_message(1)};
    mpshm_run runs[2] = {claim(arena, chunks(2)), claim(arena, chunks(2))};

    for (unsigned k = 0; k < 2; k++) {
        fill(runs[k].data, chunks(2), 20 + k);
    }
    for (unsigned round = 0; round < 3; round++) {
        int pid = fork_hooked();

        if (pid == 0) {
            for (unsigned k = 0; k < 2; k++) {
                CHECK(is_filled(views[k], chunks(3), k + round * 100));
                fill(views[k], chunks(3), 60);
                fill(runs[k].data, chunks(2), 60); /* its parent's: whatever it sees there */
            }
            mpshm_release(views[0]);
            char *own = lease_new(arena, chunks(2), 61);

            CHECK(is_filled(own, chunks(2), 61));
            CHECK(is_filled(views[1], chunks(3), 60));
            mpshm_release(own);
            check_others_untouched();
            exit(0);
        }
        wait_child(pid);
        for (unsigned k = 0; k < 2; k++) {
            CHECK(is_filled(views[k], chunks(3), k + round * 100));
            fill(views[k], chunks(3), k + (round + 1) * 100);
            CHECK(is_filled(runs[k].data, chunks(2), 20 + k));
        }
    }
    go(to_parent); /* it looks at its own, which were leased as well */
    await(to_child);
    for (unsigned k = 0; k < 2; k++) {
        CHECK(is_filled(views[k], chunks(3), k + 300));
        mpshm_release(views[k]);
        CHECK_EQ(0, send_run(ends[1], &runs[k], chunks(2)));
    }
}

static void
forks_keep_views_private_and_loans_whole(void)
{
    open_arena();
    char *view = lease_new(arena, chunks(3), 7), *data;
    uint64_t size;
    int pid = start_without_descriptors(fork_with_views_and_loans);

    send_messages(0, 2);
    await(to_parent);
    CHECK(is_filled(view, chunks(3), 7));
    fill(view, chunks(3), 8);
    go(to_child);
    wait_child(pid);
    for (unsigned k = 0; k < 2; k++) {
        CHECK_EQ(0, receive(arena, ends[0], &data, &size));
        CHECK(is_filled(data, chunks(2), 20 + k));
        mpshm_release(data);
    }
    mpshm_release(view);
    close_all();
}

static int moved; /* mappings: a copy of a view is put in its place so */

void *
mremap(void *at, size_t old_size, size_t new_size, int flags, ...)
{
    va_list rest;

    va_start(rest, flags);
    void *to = va_arg(rest, void *);

    va_end(rest);
    moved++;
    return (void *) syscall(SYS_mremap, at, old_size, new_size, flags, to);
}

/* A view that a fork has copied once is the process's own from then on: what a thread writes at the next fork is
   not lost. */
static void
copy_once(void)
{
    char *view = receive_message(0);

    for (int i = 0; i < 3; i++) {
        moved = 0;
        int pid = fork_hooked();

        if (pid == 0) {
            exit(0);
        }
        wait_child(pid);
        CHECK_EQ(i == 0, moved);
    }
    CHECK(is_filled(view, chunks(3), 0));
    mpshm_release(view);
}

static void
a_view_is_copied_once(void)
{
    open_arena();
    int pid = start_without_descriptors(copy_once);

    send_messages(0, 1);
    wait_child(pid);
    close_all();
}

/* Memory that is given back, and arenas made afterwards */

static void
lease_much_and_die(void)
{
    (void) claim(arena, UINT64_C(40) << 20);
    (void) lease_new(arena, chunks(5), 1);
    die();
}

/* Where the arena's memory would be given back, every other file has some. */
static void
reap_a_storm(void)
{
    int pid = fork_hooked();
    char byte = 1;

    if (pid == 0) {
        lease_much_and_die();
    }
    wait_killed(pid);
    for (int fd = 3; fd < NUMBERS; fd++) {
        for (off_t at = 0; !is_kept(fd) && at < file_bytes; at += 2 << 20) {
            CHECK_EQ(1, pwrite(fd, &byte, 1, at));
        }
        CHECK(is_kept(fd) || fstat(fd, &others[fd]) == 0);
    }
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    CHECK_EQ(0, gauges(arena).bytes_resident);
    for (int fd = 3; fd < NUMBERS; fd++) {
        struct stat now;

        CHECK(is_kept(fd) || (fstat(fd, &now) == 0 && now.st_blocks == others[fd].st_blocks));
    }
    mpshm_arena_close(far);
    mpshm_arena_close(arena);
    for (int fd = 3; fd < NUMBERS; fd++) {
        CHECK_EQ(0, fcntl(fd, F_GETFD));
    }
    exit(0);
}

static void
no_other_file_is_punched_or_closed(void)
{
    mpshm_geometry usual = {.stride = UINT64_C(68) << 20, .segment_bytes = UINT64_C(64) << 20,
                            .segment_limit = 1, .chunk_shift = paged().chunk_shift};

    open_arena_of(usual);
    wait_child(start_without_descriptors(reap_a_storm));
    close_all();
}

static void
make_another(void)
{
    mpshm_arena *another = arena_of(paged()); /* of a new family: the other's roster cannot be handed on */
    char *data = lease_new(another, chunks(3), 5);
    int pid;

    CHECK(mpshm_arena_fd(another) >= NUMBERS);
    CHECK(mpshm_arena_roster_fd(another) >= NUMBERS);
    CHECK(another->header->roster_id != arena->header->roster_id);
    pid = fork_hooked();
    if (pid == 0) {
        CHECK(is_filled(data, chunks(3), 5));
        fill(data, chunks(3), 6);
        exit(0);
    }
    wait_child(pid);
    CHECK(is_filled(data, chunks(3), 5));
    mpshm_release(data);
    close_clean(another);
}

static void
what_is_made_afterwards_is_of_a_new_family(void)
{
    open_arena();
    wait_child(start_without_descriptors(make_another));
    close_all();
}

static const struct test tests[] = {
    TEST_THAT_NEEDS(mremap_of_nothing, messages_are_received),
    TEST_THAT_NEEDS(mremap_of_nothing, messages_are_sent),
    TEST_THAT_NEEDS(mremap_of_nothing, the_whole_arena_can_be_used),
    TEST_THAT_NEEDS(mremap_of_nothing, what_must_be_reserved_is_not_made),
    TEST_THAT_NEEDS(mremap_of_nothing, forks_keep_views_private_and_loans_whole),
    TEST_THAT_NEEDS(mremap_of_nothing, a_view_is_copied_once),
    TEST_THAT_NEEDS(mremap_of_nothing, no_other_file_is_punched_or_closed),
    TEST(what_is_made_afterwards_is_of_a_new_family),
};
RUN_TESTS(tests)
