/* Fork: nothing inherited is one's own, and what both sides hold stays private to each. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* Two pipes, to take turns by. */
static int to_child[2], to_parent[2];

static void
open_turns(void)
{
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
}

static void
inherited_run_is_not_the_childs_to_use(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);

    open_turns();
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run mine = claim(arena, 16);

        CHECK(mine.mmap_id != run.mmap_id);
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_increase_buf(&run, 16, 0));
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_seal(&run, 16));
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_abandon(&run));
        CHECK_EQ(MPSHM_E_FOREIGN, send_run(to_parent[1], &run, 16));
        CHECK_EQ(0, mpshm_abandon(&mine));
        exit(0);
    }
    wait_child(pid);
    CHECK_EQ(1, gauges(arena).runs_loaned);
    CHECK_EQ(16, mpshm_increase_buf(&run, 16, 16));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
check_views_are_private(mpshm_arena *arena)
{
    mpshm_arena *again = attach_again(arena);
    uint64_t page = UINT64_C(1) << paged().chunk_shift, size = 3 * page;
    char *mine = lease_new(arena, size, 1), *other = lease_new(again, page, 2);

    open_turns();
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(2, mpshm_leases());
        await(to_child); /* the parent has written by now */
        CHECK(is_filled(mine, size, 1));
        CHECK(is_filled(other, page, 2));
        fill(mine, size, 20);
        int grandchild = fork_hooked();

        if (grandchild == 0) {
            CHECK(is_filled(mine, size, 20));
            fill(mine, size, 30);
            CHECK(is_filled(mine, size, 30));
            mpshm_release(mine);
            exit(0); /* with a view of `other` */
        }
        wait_child(grandchild);
        CHECK(is_filled(mine, size, 20));
        go(to_parent);
        await(to_child); /* the parent has released */
        CHECK(is_filled(mine, size, 20));
        CHECK(is_filled(other, page, 2));
        mpshm_release(mine);
        mpshm_release(other);
        CHECK_EQ(0, mpshm_leases());
        exit(0);
    }
    fill(mine, size, 10);
    fill(other, page, 11);
    go(to_child);
    await(to_parent);
    CHECK(is_filled(mine, size, 10));
    CHECK(is_filled(other, page, 11));
    mpshm_release(mine);
    mpshm_release(other);
    CHECK_EQ(0, mpshm_leases());
    CHECK_EQ(1, gauges(arena).runs_leased); /* by the child; of the other, one chunk long, it has a copy */
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    go(to_child);
    wait_child(pid);
    close_clean(again);
    close_clean(arena);
}

static void
views_are_private_to_parent_child_and_grandchild(void)
{
    mpshm_geometry geometry = paged();
    mpshm_arena *arena;

    check_views_are_private(arena_of(geometry));
    /* And where the arena has a roster of its own. */
    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_AUTO, "mpshm", 1, NULL, &arena));
    check_views_are_private(arena);
}

static void
views_that_share_a_page_are_private_too(void)
{
    mpshm_arena *arena = arena_of(tiny);
    char *one = lease_new(arena, 16, 1), *other = lease_new(arena, 48, 2);

    open_turns();
    int pid = fork_hooked();

    if (pid == 0) {
        fill(one, 16, 11);
        await(to_child);
        CHECK(is_filled(one, 16, 11));
        CHECK(is_filled(other, 48, 2));
        mpshm_release(one);
        mpshm_release(other);
        exit(0);
    }
    fill(other, 48, 12);
    CHECK(is_filled(one, 16, 1));
    go(to_child);
    wait_child(pid);
    CHECK(is_filled(one, 16, 1));
    CHECK(is_filled(other, 48, 12));
    mpshm_release(one);
    mpshm_release(other);
    close_clean(arena);
}

/* One mapping for each view would need more mappings than a process may have, and leave the others shared. */
static void
ten_thousand_views_are_private_and_need_few_mappings(void)
{
    enum { VIEWS = 10000 };
    static char *views[VIEWS];
    mpshm_geometry wide = paged();
    uint32_t chunk = UINT32_C(1) << wide.chunk_shift;

    wide.segment_bytes = UINT64_C(5000) * chunk;
    wide.stride = UINT64_C(1) << 30;
    wide.segment_limit = 16;
    mpshm_arena *arena = arena_of(wide);

    for (uint32_t i = 0; i < VIEWS; i++) {
        mpshm_run run = claim(arena, 3 * chunk);

        fill(run.data, 16, i);
        CHECK_EQ(0, mpshm_seal(&run, 3 * chunk));
        CHECK_EQ(0, mpshm_lease(arena, run.mmap_id, run.chunk_id, 3 * chunk, run.tag, &views[i]));
    }
    for (uint32_t i = 0; i < VIEWS; i += 2) { /* every second one kept */
        mpshm_release(views[i]);
    }
    int before = count_mappings(), pid = fork_hooked();

    CHECK(count_mappings() <= before + 16);
    if (pid == 0) {
        for (uint32_t i = 1; i < VIEWS; i += 2) {
            fill(views[i], 16, i + 1);
        }
        exit(0);
    }
    wait_child(pid);
    for (uint32_t i = 1; i < VIEWS; i += 2) {
        CHECK(is_filled(views[i], 16, i));
        mpshm_release(views[i]);
    }
    CHECK(count_mappings() <= before);
    close_clean(arena);
}

/* Nothing is released at exit: a thread may write to the last instruction. */
static void
child_that_just_exits_lets_go_once_it_is_dead(void)
{
    mpshm_arena *arena = arena_of(paged());
    uint64_t size = 3 * (UINT64_C(1) << paged().chunk_shift);
    char *data = lease_new(arena, size, 1);

    for (int i = 0; i < 20; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            data[0]++;
            exit(0);
        }
        wait_child(pid);
        CHECK_EQ(2, holders(arena, 0, 0));
        mpshm_reap(arena);
        CHECK_EQ(1, holders(arena, 0, 0));
    }
    CHECK(is_filled(data, size, 1));
    mpshm_release(data);
    CHECK_EQ(0, runs_in_use(arena)); /* with no reaping */
    close_clean(arena);
}

static char *written;

static void *
write_for_ever(void *argument)
{
    for (unsigned char i = 0;; i++) {
        memset(written, i, 5000);
    }
    return argument;
}

/* It received an array, and ends while a thread of its own writes to it. */
static void
writes_of_an_ending_process_reach_nobody(void)
{
    mpshm_geometry narrow = paged();

    narrow.segment_limit = 1;
    mpshm_arena *arena = arena_of(narrow);

    open_turns();
    for (unsigned i = 0; i < 100; i++) {
        mpshm_run all;
        int pid = fork_hooked();

        if (pid == 0) {
            pthread_t thread;

            written = lease_new(arena, 5000, 1);
            CHECK_EQ(0, pthread_create(&thread, NULL, write_for_ever, NULL));
            go(to_parent);
            usleep(i * 10);
            exit(0);
        }
        await(to_parent);
        do { /* the child's array among it, as soon as it may be */
            mpshm_reap(arena);
        } while (mpshm_get_buf(arena, narrow.segment_bytes, &all) != 0);
        fill(all.data, narrow.segment_bytes, i);
        usleep(300);
        CHECK(is_filled(all.data, narrow.segment_bytes, i));
        CHECK_EQ(0, mpshm_abandon(&all));
        wait_child(pid);
    }
    close_clean(arena);
}

/* After the release the place is an ordinary one again: what is sent through it arrives. */
static void
place_of_a_private_view_is_shared_again_after_release(void)
{
    mpshm_arena *arena = arena_of(paged()), *again = attach_again(arena);
    char *data = lease_new(arena, 5000, 1), *next;
    mpshm_run run;
    int ends[2];
    uint64_t size;

    CHECK_EQ(0, pipe(ends));
    int pid = fork_hooked();

    if (pid == 0) {
        fill(data, 5000, 2);
        mpshm_release(data);
        CHECK_EQ(0, receive(arena, ends[0], &next, &size));
        CHECK(is_filled(next, 5000, 4)); /* at `data`, where the kernel gives the place again; qemu's user mode does not */
        mpshm_release(next);
        exit(0);
    }
    fill(data, 5000, 3);
    mpshm_release(data);
    while (runs_in_use(arena) != 0) { /* the child lets go too */
    }
    run = claim(arena, 5000);
    CHECK_EQ(0, run.chunk_id);
    fill(run.data, 5000, 4);
    CHECK_EQ(0, send_run(ends[1], &run, 5000));
    wait_child(pid);
    data = lease_new(arena, 5000, 5);
    CHECK(is_filled(data, 5000, 5));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

#ifndef __SANITIZE_ADDRESS__
static _Atomic bool stop;

/* Own channel, own arena: sends to itself until told to stop. */
static void *
talk(void *argument)
{
    mpshm_arena *arena = argument;
    char *data;
    uint64_t size;
    int ends[2];

    CHECK_EQ(0, pipe(ends));
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        mpshm_run run = claim(arena, 9000);

        fill(run.data, 100, i);
        CHECK_EQ(0, send_run(ends[1], &run, 100));
        CHECK_EQ(0, receive(arena, ends[0], &data, &size));
        CHECK(is_filled(data, 100, i));
        fill(data, 100, i + 1);
        mpshm_release(data);
    }
    close(ends[0]);
    close(ends[1]);
    return NULL;
}

static void
fork_among_busy_threads_leaves_both_sides_working(void)
{
    mpshm_arena *arenas[2] = {arena_of(paged()), arena_of(paged())};
    pthread_t threads[2];

    for (int i = 0; i < 2; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, talk, arenas[i]));
    }
    for (int i = 0; i < 100; i++) {
        char *data = lease_new(arenas[0], 5000, 3);
        int pid = fork_hooked();

        if (pid == 0) {
            /* The threads are gone; what they had leased comes back by their process's name. */
            fill(data, 5000, 4);
            mpshm_release(lease_new(arenas[1], 5000, 5));
            mpshm_release(data);
            _exit(0);
        }
        wait_child(pid);
        CHECK(is_filled(data, 5000, 3));
        mpshm_release(data);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        close_clean(arenas[i]);
    }
}

#endif

static const struct test tests[] = {
    TEST(inherited_run_is_not_the_childs_to_use),
    TEST(views_are_private_to_parent_child_and_grandchild),
    TEST(views_that_share_a_page_are_private_too),
    TEST(ten_thousand_views_are_private_and_need_few_mappings),
    TEST(child_that_just_exits_lets_go_once_it_is_dead),
    TEST(writes_of_an_ending_process_reach_nobody),
    TEST(place_of_a_private_view_is_shared_again_after_release),
#ifndef __SANITIZE_ADDRESS__
    /* ASan's allocator takes no part in fork: a child may inherit its lock held by another thread. */
    TEST(fork_among_busy_threads_leaves_both_sides_working),
#endif
};
RUN_TESTS(tests)
