/* Holders: a run that forks have shared is freed when the last of those who hold it lets go, dies or becomes
   another program; and a child for whose name there is no place has a copy. */
#define _GNU_SOURCE
#include "check.h"

#include "roster.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static mpshm_arena *arena;
static int to_child[2], to_parent[2];

static void
open_arena(void)
{
    arena = arena_of(paged());
    CHECK_EQ(0, pipe2(to_child, O_CLOEXEC));
    CHECK_EQ(0, pipe2(to_parent, O_CLOEXEC));
}

static uint64_t
chunks(uint32_t count)
{
    return (uint64_t) count << paged().chunk_shift;
}

static uint64_t
word_at(uint32_t chunk_id)
{
    return atomic_load(&arena->segments[0]->runs[chunk_id].word);
}

/* A child that says it is there and waits to be killed. */
static int
start_holder(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        go(to_parent);
        pause();
    }
    await(to_parent);
    return pid;
}

/* Names */

static void
each_fork_adds_a_name(void)
{
    int pids[3];

    open_arena();
    char *data = lease_new(arena, chunks(6), 1);

    CHECK_EQ(RUN_LEASED, RUN_STATE(word_at(0)));
    for (int i = 0; i < 3; i++) {
        pids[i] = start_holder();
        CHECK_EQ(2 + i, holders(arena, 0, 0));
    }
    for (int i = 0; i < 3; i++) {
        uint64_t word = word_at(0);

        kill_child(pids[i]);
        mpshm_reap(arena);
        CHECK_EQ(3 - i, holders(arena, 0, 0));
        CHECK_EQ(SHARED_MORE(word), word_at(0)); /* L7: whoever looked over the names meanwhile sees it */
    }
    mpshm_release(data);
    CHECK_EQ(RUN_FREE, RUN_STATE(word_at(0)));
    close_clean(arena);
}

/* As many places as the run has further chunks; a view without one is a copy, and its release frees nothing. */
static void
who_finds_no_place_has_a_copy(void)
{
    for (uint32_t count = 1; count <= 4; count++) {
        uint32_t places = count < 3 ? 0 : count - 1, most = places == 0 ? 0 : places - 1;
        int pids[5];

        open_arena();
        char *data = lease_new(arena, chunks(count), 1);

        for (uint32_t i = 0; i < 5; i++) {
            pids[i] = fork_hooked();
            if (pids[i] == 0) {
                CHECK(is_filled(data, chunks(count), 1));
                fill(data, chunks(count), 2 + i);
                go(to_parent);
                await(to_child);
                CHECK(is_filled(data, chunks(count), 2 + i));
                mpshm_release(data);
                go(to_parent);
                pause();
            }
            await(to_parent);
            CHECK_EQ(i < most ? 2 + i : places, holders(arena, 0, 0));
        }
        CHECK(is_filled(data, chunks(count), 1));
        fill(data, chunks(count), 9);
        for (int i = 0; i < 5; i++) {
            go(to_child);
        }
        for (int i = 0; i < 5; i++) {
            await(to_parent);
        }
        CHECK(is_filled(data, chunks(count), 9));
        CHECK_EQ(1, runs_in_use(arena));
        CHECK_EQ(places == 0 ? 0 : 1, holders(arena, 0, 0));
        mpshm_release(data);
        CHECK_EQ(0, runs_in_use(arena));
        for (int i = 0; i < 5; i++) {
            kill_child(pids[i]);
        }
        close_clean(arena);
    }
}

/* The run goes its way, and the copy and its copies theirs. */
static void
a_copy_is_no_share_in_its_run(void)
{
    open_arena();
    char *data = lease_new(arena, chunks(3), 1);
    int holder = start_holder(), pid = fork_hooked();

    if (pid == 0) {
        await(to_child); /* the holder is gone, so there is a place by now */
        int grandchild = fork_hooked();

        if (grandchild == 0) {
            CHECK(is_filled(data, chunks(3), 1));
            exit(0);
        }
        wait_child(grandchild);
        go(to_parent);
        await(to_child); /* and the run is another's */
        CHECK(is_filled(data, chunks(3), 1));
        exit(0);
    }
    CHECK_EQ(2, holders(arena, 0, 0));
    kill_child(holder);
    mpshm_reap(arena);
    CHECK_EQ(1, holders(arena, 0, 0));
    go(to_child);
    await(to_parent);
    CHECK_EQ(1, holders(arena, 0, 0));
    mpshm_release(data);
    CHECK_EQ(0, runs_in_use(arena));
    data = lease_new(arena, chunks(3), 2);
    CHECK(data == arena->segments[0]->now->data);
    go(to_child);
    wait_child(pid);
    mpshm_release(data);
    close_clean(arena);
}

/* A long run has no more than HOLDERS_MOST places. */
static void
sixty_three_hold_a_long_run_and_others_have_copies(void)
{
    enum { MANY = 70 };
    int pids[MANY];
    mpshm_geometry geometry = paged();

    open_arena();
    mpshm_arena_close(arena);
    geometry.segment_bytes = chunks(100);
    arena = arena_of(geometry);
    char *data = lease_new(arena, chunks(90), 1);

    for (int i = 0; i < MANY; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            data[0] = (char) i;
            go(to_parent);
            await(to_child);
            CHECK_EQ((char) i, data[0]);
            data[0] = 0;
            fill(data, 1, 1);
            CHECK(is_filled(data, chunks(90), 1));
            exit(0);
        }
        await(to_parent);
    }
    CHECK_EQ(HOLDERS_MOST, holders(arena, 0, 0));
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    for (int i = 0; i < MANY; i++) {
        go(to_child);
    }
    for (int i = 0; i < MANY; i++) {
        wait_child(pids[i]);
    }
    mpshm_reap(arena);
    CHECK_EQ(1, holders(arena, 0, 0));
    CHECK(is_filled(data, chunks(90), 1));
    mpshm_release(data);
    close_clean(arena);
}

/* The end of a holder */

static void
release_it(char *data)
{
    mpshm_release(data);
    exit(0);
}

static void
leave_it(char *data)
{
    (void) data;
    exit(0);
}

static void
be_killed_with_it(char *data)
{
    (void) data;
    die();
}

/* The same pid lives on, without the memory. */
static void
become_another_program(char *data)
{
    (void) data;
    /* By the descriptors that every shell can name. */
    if (dup2(to_parent[1], STDOUT_FILENO) >= 0 && dup2(to_child[0], STDIN_FILENO) >= 0) {
        execl("/bin/sh", "sh", "-c", "printf g; read x", NULL);
    }
    _exit(1);
}

/* 200 of them one after another: each has a name, for the places of those before are free again. */
static void
check_ends(void (*end)(char *), int count, bool reaps)
{
    open_arena();
    char *data = lease_new(arena, chunks(3), 1);

    for (int i = 0; i < count; i++) {
        int status, pid = fork_hooked();

        if (pid == 0) {
            end(data);
        }
        if (end == become_another_program) {
            await(to_parent);
        } else {
            while (waitpid(pid, &status, 0) == -1) {
            }
        }
        if (reaps) {
            CHECK_EQ(2, holders(arena, 0, 0));
            mpshm_reap(arena);
        }
        CHECK_EQ(1, holders(arena, 0, 0));
        CHECK(is_filled(data, chunks(3), 1));
        if (end == become_another_program) {
            CHECK_EQ(2, write(to_child[1], "g\n", 2));
            wait_child(pid);
        }
    }
    mpshm_release(data);
    CHECK_EQ(0, runs_in_use(arena));
    close_clean(arena);
}

static void
child_that_releases_is_no_holder(void)
{
    check_ends(release_it, 200, false);
}

static void
child_that_exits_is_no_holder_at_the_next_reap(void)
{
    check_ends(leave_it, 200, true);
}

static void
killed_child_is_no_holder_at_the_next_reap(void)
{
    check_ends(be_killed_with_it, 200, true);
}

static void
child_that_became_another_program_is_no_holder_at_the_next_reap(void)
{
    check_ends(become_another_program, 5, true);
}

/* While a living process holds an array that a fork has shared, what was shared with killed ones comes back. */
static void
one_living_holder_pins_nothing_of_the_dead(void)
{
    open_arena();
    char *kept = lease_new(arena, chunks(3), 1);
    int living = start_holder();

    for (int i = 0; i < 20; i++) {
        char *data = lease_new(arena, chunks(5), 2);
        int pid = start_holder();

        mpshm_release(data);
        CHECK_EQ(2, runs_in_use(arena));
        kill_child(pid);
        mpshm_reap(arena);
        CHECK_EQ(1, runs_in_use(arena));
    }
    CHECK(is_filled(kept, chunks(3), 1));
    CHECK_EQ(2, holders(arena, 0, 0));
    mpshm_release(kept);
    CHECK_EQ(1, runs_in_use(arena));
    kill_child(living);
    close_clean(arena);
}

/* Three holders go in that order, by release or killed; the run stays until the last. */
static void
check_order(const int order[3], bool by_release)
{
    int control[3][2];
    int *pids = mmap(NULL, 3 * sizeof *pids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    open_arena();
    CHECK(pids != MAP_FAILED);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(0, pipe(control[i]));
    }
    if (fork_hooked() == 0) { /* the first holder is a child as well, so that it can be killed */
        char *data = lease_new(arena, chunks(4), 1);
        int me = 0;

        for (int i = 1; i < 3 && me == 0; i++) {
            me = fork_hooked() == 0 ? i : 0;
        }
        pids[me] = getpid();
        go(to_parent);
        await(control[me]);
        CHECK(is_filled(data, chunks(4), 1));
        mpshm_release(data);
        go(to_parent);
        pause();
    }
    for (int i = 0; i < 3; i++) {
        await(to_parent);
    }
    for (int k = 0; k < 3; k++) {
        uint32_t left = 3 - (uint32_t) k;

        CHECK_EQ(1, gauges(arena).runs_leased);
        CHECK_EQ(left, holders(arena, 0, 0));
        if (by_release) {
            go(control[order[k]]);
            await(to_parent);
        } else {
            CHECK_EQ(0, kill(pids[order[k]], SIGKILL));
            while (holders(arena, 0, 0) == left) { /* it may be no child of ours, so nobody tells */
                mpshm_reap(arena);
            }
        }
    }
    CHECK_EQ(0, runs_in_use(arena));
    for (int k = 0; k < 3; k++) {
        (void) kill(pids[k], SIGKILL);
    }
    close_clean(arena);
}

static void
last_holder_frees_the_run_in_every_order(void)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

    for (int i = 0; i < 6; i++) {
        check_order(orders[i], true);
        check_order(orders[i], false);
    }
}

/* Reapers */

/* One who reaps after the names are beside the run, and before its word says that they count. */
static void
reaper_between_the_names_and_the_word_frees_nothing(void)
{
    open_arena();
    char *data = lease_new(arena, chunks(4), 1);
    name dead = NAME(7, 7);

    for (uint32_t i = 1; i < 4; i++) { /* what was there before says nothing */
        atomic_store(&arena->segments[0]->runs[i].more, i == 1 ? HOLDER(arena->me) : HOLDER(dead));
    }
    mpshm_reap(arena);
    CHECK_EQ(RUN_WORD(RUN_TAG(word_at(0)), arena->me, RUN_LEASED), word_at(0));
    int pid = start_holder();

    mpshm_reap(arena);
    CHECK_EQ(2, holders(arena, 0, 0));
    mpshm_release(data);
    CHECK_EQ(1, holders(arena, 0, 0));
    kill_child(pid);
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    close_clean(arena);
}

static void
reapers_beside_forks_free_nothing_too_early_and_lose_nothing(void)
{
    int reapers[2];

    open_arena();
    for (int i = 0; i < 2; i++) {
        reapers[i] = fork_hooked();
        while (reapers[i] == 0) {
            mpshm_reap(arena);
        }
    }
    for (unsigned i = 0; i < 300; i++) {
        if (runs_in_use(arena) > 10) { /* the reapers may have had no time */
            mpshm_reap(arena);
        }
        char *data = lease_new(arena, chunks(3 + i % 3), i);
        int pid = fork_hooked();

        if (pid == 0) {
            CHECK(is_filled(data, chunks(3 + i % 3), i));
            if (i % 3 == 0) {
                mpshm_release(data);
            } else if (i % 3 == 1) {
                die();
            }
            _exit(0);
        }
        if (i % 2 == 0) {
            while (waitpid(pid, NULL, 0) == -1) {
            }
        }
        CHECK(is_filled(data, chunks(3 + i % 3), i));
        mpshm_release(data);
        if (i % 2 != 0) {
            while (waitpid(pid, NULL, 0) == -1) {
            }
        }
    }
    kill_child(reapers[0]);
    kill_child(reapers[1]);
    close_clean(arena);
}

/* What lies beside a run and is no name, such as the length of a run that began there once: not a reaper's. */
static void
number_that_is_no_name_is_never_dropped(void)
{
    open_arena();
    char *data = lease_new(arena, chunks(6), 1);
    int pid = start_holder();
    _Atomic uint64_t *place = &arena->segments[0]->runs[4].more;

    kill_child(pid);
    atomic_store(place, NAME(9, 9)); /* without the sign: no living process's number, as a name */
    mpshm_reap(arena);
    CHECK_EQ(NAME(9, 9), atomic_load(place));
    CHECK_EQ(2, holders(arena, 0, 0));
    atomic_store(place, HOLDER(NAME(9, 9)));
    mpshm_reap(arena);
    CHECK_EQ(0, atomic_load(place));
    mpshm_release(data);
    close_clean(arena);
}

/* A reaper that noted a dead name was stopped; the run has been freed since, and a shorter one begins there, and
   another where the name lay.  Its step fails: the word is not the one that it saw. */
static void
dead_name_beside_a_run_born_again_is_nobodys(void)
{
    open_arena();
    char *data = lease_new(arena, chunks(6), 1);
    int pid = start_holder();
    name dead = (name) (atomic_load(&arena->segments[0]->runs[2].more) & NAME_MASK);

    kill_child(pid);
    uint64_t seen = word_at(0);

    mpshm_reap(arena);
    mpshm_release(data);
    CHECK_EQ(0, runs_in_use(arena));
    char *one = lease_new(arena, chunks(2), 2), *other = lease_new(arena, chunks(4), 3);

    CHECK_EQ(2, (other - arena->segments[0]->now->data) >> paged().chunk_shift);
    CHECK(atomic_load(&arena->segments[0]->runs[2].more) != HOLDER(dead));
    CHECK(!IS_HOLDER(atomic_load(&arena->segments[0]->runs[2].more)));
    CHECK(word_at(0) != seen);
    CHECK(RUN_TAG(word_at(0)) != RUN_TAG(seen));
    pid = start_holder(); /* `other` is SHARED now; `one` is too short for it */
    CHECK_EQ(0, holders(arena, 0, 0));
    CHECK_EQ(2, holders(arena, 0, 2));
    CHECK(is_filled(one, chunks(2), 2));
    CHECK(is_filled(other, chunks(4), 3));
    kill_child(pid);
    mpshm_reap(arena);
    CHECK_EQ(1, holders(arena, 0, 2));
    mpshm_release(one);
    mpshm_release(other);
    close_clean(arena);
}

static void
forget_the_word(void)
{
    char *data = lease_new(arena, chunks(4), 1);
    struct segment *seg = arena->segments[0];

    CHECK(data != NULL);
    atomic_store(&seg->runs[1].more, 0); /* its only name is gone, and it is not FREE yet */
    atomic_store(&seg->runs[2].more, 0);
    atomic_store(&seg->runs[3].more, 0);
    atomic_store(&seg->runs[0].word, RUN_WORD(RUN_TAG(word_at(0)), 5, RUN_SHARED));
}

static void
die_after_the_last_name(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        forget_the_word();
        die();
    }
    wait_killed(pid);
    arena_lock(arena);
    struct segment *seg;

    CHECK_EQ(0, segment_map(arena, 0, &seg));
    arena_unlock(arena);
}

static void
run_without_a_name_is_freed_by_the_next_reaper(void)
{
    open_arena();
    die_after_the_last_name();
    CHECK_EQ(1, runs_in_use(arena));
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    close_clean(arena);
}

/* Heirs */

static int opened; /* files opened anew, by number: once for each try to make a lock */

int
open(const char *path, int flags, ...)
{
    va_list rest;

    va_start(rest, flags);
    int mode = va_arg(rest, int);

    va_end(rest);
    opened += strncmp(path, "/proc/self/fd/", 14) == 0;
    return (int) syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static void
lower_limit(int what, rlim_t to)
{
    struct rlimit limit;

    CHECK_EQ(0, getrlimit(what, &limit));
    limit.rlim_cur = to;
    CHECK_EQ(0, setrlimit(what, &limit));
}

/* Where the roster has no record for the child, each view is copied, and that is found out once for each fork. */
static void
family_without_a_free_record_gives_its_children_copies(void)
{
    enum { LIMIT = 64, VIEWS = 20 };
    char *views[VIEWS];
    int pids[LIMIT - 1];
    struct roster *family;

    lower_limit(RLIMIT_FSIZE, ROSTER_BYTES(LIMIT));
    process_lock();
    CHECK_EQ(0, roster_family(&family));
    process_unlock();
    lower_limit(RLIMIT_FSIZE, RLIM_INFINITY);
    open_arena();
    CHECK_EQ(LIMIT, family->limit);
    mpshm_reap(arena); /* joins */
    for (int i = 0; i < LIMIT - 1; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            mpshm_reap(arena);
            CHECK(arena->me != 0);
            go(to_parent);
            pause();
        }
        await(to_parent);
    }
    for (unsigned i = 0; i < VIEWS; i++) {
        views[i] = lease_new(arena, chunks(3), i);
    }
    opened = 0;
    int pid = fork_hooked();

    CHECK_EQ(1, opened);
    if (pid == 0) {
        for (unsigned i = 0; i < VIEWS; i++) {
            CHECK(is_filled(views[i], chunks(3), i));
            fill(views[i], chunks(3), i + 1);
            mpshm_release(views[i]);
        }
        exit(0);
    }
    wait_child(pid);
    for (unsigned i = 0; i < VIEWS; i++) {
        CHECK(is_filled(views[i], chunks(3), i));
    }
    CHECK_EQ(VIEWS, gauges(arena).runs_leased);
    kill_child(pids[7]);
    uint32_t shared = 0;

    while (shared == 0) { /* now there is one, and it is looked for now and then */
        char *data = lease_new(arena, chunks(3), 7);
        struct segment *seg = arena->segments[arena->hot];

        opened = 0;
        pid = fork_hooked();
        CHECK(opened <= 1);
        if (pid == 0) {
            CHECK(is_filled(data, chunks(3), 7));
            exit(0);
        }
        wait_child(pid);
        for (uint32_t at = 0; at < seg->count; at++) {
            shared += holders(arena, seg->id, at) == 2;
        }
        mpshm_release(data);
    }
    CHECK_EQ(1, shared);
    for (unsigned i = 0; i < VIEWS; i++) {
        mpshm_release(views[i]);
    }
    for (int i = 0; i < LIMIT - 1; i++) {
        if (i != 7) {
            kill_child(pids[i]);
        }
    }
    close_clean(arena);
}

/* A fork that fails leaves a name that nobody has. */
static void
fork_that_fails_leaves_nothing(void)
{
    open_arena();
    char *data = lease_new(arena, chunks(3), 1);

#if !SANITIZED
    lower_limit(RLIMIT_NPROC, 0);
    if (geteuid() == 0) {
        CHECK_EQ(0, setresuid(12345, 12345, (uid_t) -1));
    }
    CHECK_EQ(-1, fork());
    CHECK_EQ(EAGAIN, errno);
    CHECK_EQ(2, holders(arena, 0, 0));
#endif
    mpshm_reap(arena);
    CHECK(holders(arena, 0, 0) <= 1);
    CHECK(is_filled(data, chunks(3), 1));
    mpshm_release(data);
    CHECK_EQ(0, runs_in_use(arena));
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(each_fork_adds_a_name),
    TEST(who_finds_no_place_has_a_copy),
    TEST(a_copy_is_no_share_in_its_run),
    TEST(sixty_three_hold_a_long_run_and_others_have_copies),
    TEST(child_that_releases_is_no_holder),
    TEST(child_that_exits_is_no_holder_at_the_next_reap),
    TEST(killed_child_is_no_holder_at_the_next_reap),
    TEST(child_that_became_another_program_is_no_holder_at_the_next_reap),
    TEST(one_living_holder_pins_nothing_of_the_dead),
    TEST_THAT_NEEDS(madvice, last_holder_frees_the_run_in_every_order),
    TEST(reaper_between_the_names_and_the_word_frees_nothing),
    TEST(reapers_beside_forks_free_nothing_too_early_and_lose_nothing),
    TEST(number_that_is_no_name_is_never_dropped),
    TEST(dead_name_beside_a_run_born_again_is_nobodys),
    TEST(run_without_a_name_is_freed_by_the_next_reaper),
    TEST(family_without_a_free_record_gives_its_children_copies),
    TEST(fork_that_fails_leaves_nothing),
};
RUN_TESTS(tests)
