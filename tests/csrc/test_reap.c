/* Reaping: what the dead held comes back by the names that words say, and nothing of the living does.  What a
   kill at each step leaves is tried in killpoints/. */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ring.h"

#define REAPERS 6

static mpshm_arena *arena;
static int to_parent[2];

static mpshm_geometry
roomy(void)
{
    return (mpshm_geometry) {.stride = UINT64_C(32) << 20, .segment_bytes = UINT64_C(16) << 20,
                             .segment_limit = 4, .chunk_shift = 12};
}

/* A child that calls `begin` and stays, to be killed. */
static int
holder_of(void (*begin)(void))
{
    CHECK_EQ(0, pipe(to_parent));
    int pid = fork_hooked();

    if (pid == 0) {
        begin();
        go(to_parent);
        for (;;) {
            pause();
        }
    }
    await(to_parent);
    return pid;
}

static void
have_each_state(void)
{
    (void) claim(arena, 5000);
    (void) lease_new(arena, 9000, 1);
    char *shared = lease_new(arena, 20000, 2);

    int pid = fork();

    if (pid == 0) { /* a holder of what is shared, who dies at once */
        _exit(shared == NULL);
    }
    wait_child(pid);
}

static void
every_state_in_a_dead_name_comes_back(void)
{
    arena = arena_of(roomy());
    char *mine = lease_new(arena, 30000, 7);
    int pid = holder_of(have_each_state);

    CHECK_EQ(4, runs_in_use(arena));
    mpshm_reap(arena);
    CHECK(runs_in_use(arena) == 4); /* all of the living */
    kill_child(pid);
    mpshm_reap(arena);
    CHECK_EQ(1, runs_in_use(arena));
    CHECK(is_filled(mine, 30000, 7));
    mpshm_release(mine);
    close_clean(arena);
}

static void
hold_many(void)
{
    for (unsigned i = 0; i < 200; i++) {
        (void) lease_new(arena, 1 + i * 97, i);
    }
}

static void
many_reap_at_once_and_some_are_killed(void)
{
    arena = arena_of(roomy());
    char *mine = lease_new(arena, 30000, 7);

    for (int round = 0; round < 5; round++) {
        int reapers[REAPERS], pid = holder_of(hold_many);

        kill_child(pid);
        for (int i = 0; i < REAPERS; i++) {
            reapers[i] = fork_hooked();
            if (reapers[i] == 0) {
                mpshm_reap(arena);
                _exit(0);
            }
        }
        kill(reapers[0], SIGKILL);
        kill(reapers[1], SIGKILL);
        for (int i = 0; i < REAPERS; i++) {
            while (waitpid(reapers[i], NULL, 0) == -1) {
            }
        }
        mpshm_reap(arena);
        CHECK_EQ(1, runs_in_use(arena));
        CHECK_EQ(1, mpshm_arena_is_valid(arena));
    }
    CHECK(is_filled(mine, 30000, 7));
    mpshm_release(mine);
    close_clean(arena);
}

static void
touch_much(void)
{
    for (unsigned i = 0; i < 3; i++) {
        (void) lease_new(arena, UINT64_C(15) << 20, i);
    }
}

static void
memory_goes_back_after_a_death(void)
{
    arena = arena_of(roomy());
    int pid = holder_of(touch_much);

    CHECK(gauges(arena).bytes_resident > UINT64_C(44) << 20);
    kill_child(pid);
    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident < UINT64_C(36) << 20);
    close_clean(arena);
}

/* Lease and release so many runs of 15 MiB at once; nobody dies. */
static void
burst(unsigned runs)
{
    char *views[8];

    for (unsigned i = 0; i < runs; i++) {
        views[i] = lease_new(arena, UINT64_C(15) << 20, i);
    }
    for (unsigned i = 0; i < runs; i++) {
        mpshm_release(views[i]);
    }
}

static void
memory_of_a_burst_goes_back_though_nobody_died(void)
{
    mpshm_geometry geometry = roomy();

    geometry.segment_limit = 8;
    arena = arena_of(geometry);
    burst(3);
    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident > UINT64_C(44) << 20); /* not worth a trim */
    burst(6);
    char *mine = lease_new(arena, 30000, 7);

    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident > UINT64_C(88) << 20); /* something is in use */
    CHECK(is_filled(mine, 30000, 7));
    mpshm_release(mine);
    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident < UINT64_C(36) << 20);
    close_clean(arena);
}

static void
claim_and_abandon(void)
{
    mpshm_run run = claim(arena, 100);

    CHECK_EQ(0, mpshm_abandon(&run));
}

/* Nor does the arena grow, nor anybody call stats(). */
static void
dead_that_nobody_waits_for_are_found_by_who_claims(void)
{
    siginfo_t info;

    arena = arena_of(roomy());
    claim_and_abandon(); /* in a segment of its own */
    int pid = holder_of(have_each_state);

    CHECK_EQ(3, runs_in_use(arena));
    CHECK_EQ(0, kill(pid, SIGKILL));
    CHECK_EQ(0, waitid(P_PID, (id_t) pid, &info, WEXITED | WNOWAIT));
    for (int claims = 0; runs_in_use(arena) > 0; claims++) {
        CHECK(claims < 1000);
        claim_and_abandon();
        usleep(1000);
    }
    wait_killed(pid);
    close_clean(arena);
}

static void
hold_all(void)
{
    mpshm_run run;

    while (mpshm_get_buf(arena, UINT64_C(4) << 20, &run) == 0) {
    }
}

static void
full_arena_of_the_dead_is_swept_by_who_needs_room(void)
{
    arena = arena_of(roomy());
    int pid = holder_of(hold_all);
    mpshm_run run;

    CHECK(mpshm_get_buf(arena, UINT64_C(4) << 20, &run) < 0);
    kill_child(pid);
    usleep(200000); /* a growing arena looks no oftener than every tenth of a second */
    CHECK_EQ(0, mpshm_get_buf(arena, UINT64_C(4) << 20, &run));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
put_at(name who, enum slot_state state)
{
    uint64_t position;

    arena_lock(arena);
    CHECK_EQ(1, ring_claim(arena, SLOT_WRITING, 1, &position));
    atomic_store(&slot_of(arena, position)->word, word_of(arena, position, who, state));
    arena_unlock(arena);
}

static void
join(void)
{
    arena_lock(arena);
    arena_unlock(arena);
}

static void
slots_of_the_dead_pass(void)
{
    arena = queue_arena_of(roomy(), 4, 0, 0);
    arena_lock(arena);
    arena_unlock(arena);
    int pid = holder_of(join);
    name dead = NAME(1, 1);

    CHECK(NAME_NUMBER(arena->me) != 1);
    put_at(dead, SLOT_WRITING);
    put_at(dead, SLOT_HELD);
    put_at(dead, SLOT_TAKING);
    mpshm_reap(arena);
    CHECK_EQ(2, ring_count(arena, true)); /* one is taken, and two may come */
    kill_child(pid);
    mpshm_reap(arena);
    CHECK_EQ(0, ring_count(arena, true));
    CHECK_EQ(3, HEAD_POSITION(atomic_load(&arena->ring->head)));
    CHECK_EQ(2, HEAD_SKIPS(atomic_load(&arena->ring->head)));
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(every_state_in_a_dead_name_comes_back),
    TEST(many_reap_at_once_and_some_are_killed),
    TEST(memory_goes_back_after_a_death),
    TEST(memory_of_a_burst_goes_back_though_nobody_died),
    TEST(dead_that_nobody_waits_for_are_found_by_who_claims),
    TEST(full_arena_of_the_dead_is_swept_by_who_needs_room),
    TEST(slots_of_the_dead_pass),
};
RUN_TESTS(tests)
