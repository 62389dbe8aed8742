/* Reaping: whoever is killed, and with whatever in hand, nothing stays in use; and nothing of the living goes.

   The dead are real: children that end by SIGKILL where a word stands as it would stand in the middle of the work. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static mpshm_arena *arena;
static mpshm_batch *batch;
static mpshm_counts counts;
static int ends[2], to_child[2], to_parent[2];

static mpshm_geometry
roomy(void)
{
    return (mpshm_geometry) {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20,
                             .segment_limit = 16, .chunk_shift = 12};
}

static void
open_queue(uint32_t places, uint64_t bytes, int joinable)
{
    arena = queue_arena_of(roomy(), places, bytes, joinable);
    arena->overflowing = false; /* what is longer than a slot needs a run */
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
    mpshm_reap(arena); /* have a name, before any child */
}

static int
put(uint32_t size, unsigned seed)
{
    static char data[SMALL_RUN_BYTES];

    fill(data, size, seed);
    return mpshm_queue_put_one(END(arena, ends[1]), data, size, NULL);
}

static int
get(void)
{
    return mpshm_queue_receive_one(batch, 0);
}

/* Empty, by all that can be asked, and usable to the last place and chunk. */
static void
check_reaped(void)
{
    mpshm_run runs[16];
    uint32_t whole = 0;

    mpshm_reap(arena);
    mpshm_batch_discard(batch);
    CHECK_EQ(0, runs_in_use(arena));
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        if (DIR_SHIFT(atomic_load(&arena->header->segment[id])) == arena->chunk_shift) {
            runs[whole++] = claim(arena, roomy().segment_bytes);
        }
    }
    for (uint32_t i = 0; i < whole; i++) {
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    check_all_free(arena);
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(0, mpshm_queue_full(arena));
    CHECK_EQ(1, ring_validate(arena, true));
    CHECK(!arena->joinable || mpshm_wait_done(arena, 1) == 0);
    for (uint32_t i = 0; i < arena->places; i++) {
        CHECK_EQ(1, put(300, i));
    }
    CHECK(arena->places == 0 || put(300, 0) == MPSHM_E_FULL);
    for (uint32_t i = 0; i < arena->places; i++) {
        CHECK_EQ(300, get());
        CHECK(is_filled(batch->data, 300, i));
        CHECK(!arena->joinable || mpshm_task_done(arena) >= 0);
    }
}

static void
end_queue(void)
{
    check_reaped();
    free_batch(batch);
    mpshm_arena_close(arena);
    close(ends[0]);
    close(ends[1]);
}

/* What a child may be killed with. */

static void
claim_two(void)
{
    (void) claim(arena, 5000);
    (void) claim(arena, 100000);
}

static void
begin_parcel(void)
{
    mpshm_parcel *parcel = parcel_of(arena);
    char data[5000] = {0};

    for (int i = 0; i < 9; i++) {
        CHECK_EQ(0, mpshm_put_buffer(parcel, data, sizeof data, UINT64_MAX));
    }
    CHECK_EQ(0, mpshm_settle(parcel, 10, UINT64_MAX));
}

/* A new run's entry, to set it as it would be in the middle of anything. */
static struct run *
new_entry(uint64_t size)
{
    mpshm_run run = claim(arena, size);

    return &arena->segments[run.mmap_id]->runs[run.chunk_id];
}

static void
lease_two(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct run *entry = new_entry(i == 0 ? 5000 : 100000);

        atomic_store(&entry->word, RUN_WORD(i, arena->me, RUN_LEASED));
    }
}

/* With further names: none, its own, one that was to go, and one of an older death. */
static void
share_four(void)
{
    for (uint32_t i = 0; i < 4; i++) {
        struct run *entry = new_entry(20000);

        for (uint32_t k = 1; k < 5; k++) {
            atomic_store(&entry[k].more, k == i ? HOLDER(arena->me) : k == 2 && i == 3 ? HOLDER(NAME(9, 9)) : 0);
        }
        atomic_store(&entry->word, RUN_WORD(i, i, RUN_SHARED));
    }
}

static void
free_without_a_hint(void)
{
    atomic_store(&new_entry(9000)->word, RUN_WORD(7, 0, RUN_FREE));
}

static void
hold_a_lock(void)
{
    mpshm_run run = claim(arena, 5000);

    arena_lock(arena);
    CHECK(segment_try_lock(arena->segments[run.mmap_id]));
    freemap_clear(arena->segments[run.mmap_id]->map, 0, 256);
}

/* The position is claimed, its runs are sealed, and it was not READY. */
static void
seal_and_not_put(void)
{
    mpshm_run runs[2] = {claim(arena, 5000), claim(arena, 90000)};
    uint64_t position, bytes = 0;

    arena_lock(arena);
    CHECK_EQ(1, ring_claim(arena, SLOT_WRITING, 1, &position));
    CHECK_EQ(0, run_seal(&runs[0], 300, position, &bytes)); /* one with a tail */
    CHECK_EQ(0, run_seal(&runs[1], 90000, position, &bytes));
}

static void
put_and_take(void)
{
    char frame[RING_FRAME_BYTES];
    uint64_t position;

    CHECK_EQ(1, put(300, 1));
    arena_lock(arena);
    CHECK_EQ(1, ring_take(arena, frame, &position, 1));
}

static void
take_two_places(void)
{
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(0, mpshm_place_take(mpshm_place_new(arena)));
    }
}

static void
have_three_pending(void)
{
    arena_lock(arena);
    tasks_pend(arena, 3);
}

static void (*const fates[])(void) = {
    claim_two,   begin_parcel,     lease_two,    share_four,      free_without_a_hint,
    hold_a_lock, seal_and_not_put, put_and_take, take_two_places, have_three_pending,
};
#define FATES (sizeof fates / sizeof *fates)

static void
nothing_of_a_killed_process_stays(void)
{
    for (size_t i = 0; i < FATES; i++) {
        for (int joinable = 0; joinable < 2; joinable++) {
            open_queue(i == 9 ? 0 : 7, 0, joinable);
            in_doomed_child(fates[i]);
            if (fates[i] == put_and_take && joinable) { /* it is for ever unfinished, as with stock */
                CHECK_EQ(0, mpshm_task_done(arena));
            }
            end_queue();
        }
    }
}

static void
nothing_of_many_killed_processes_stays(void)
{
    open_queue(60, 0, 0);
    for (size_t i = 0; i < 2 * FATES; i++) {
        in_doomed_child(fates[i % FATES]);
    }
    end_queue();
}

static void
child_not_waited_for_is_dead_too(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();
    siginfo_t info;

    if (pid == 0) {
        lease_two();
        take_two_places();
        die();
    }
    CHECK_EQ(0, waitid(P_PID, (id_t) pid, &info, WEXITED | WNOWAIT));
    check_reaped();
    wait_killed(pid);
    end_queue();
}

static void
whole_family_killed_leaves_nothing(void)
{
    open_queue(0, 0, 0);
    CHECK_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1)); /* of orphaned grandchildren as well */
    for (int round = 0; round < 3; round++) {
        int pid = fork_hooked();

        if (pid == 0) {
            claim_two();
            for (int i = 0; i < 3; i++) {
                int child = fork_hooked();

                if (child == 0) {
                    claim_two();
                    if (i == 1) {
                        (void) fork_hooked(); /* goes on to its own end below */
                        lease_two();
                    }
                    die();
                }
                wait_killed(child);
            }
            die();
        }
        wait_killed(pid);
    }
    while (waitpid(-1, NULL, 0) != -1) { /* a grandchild may die a moment later */
    }
    end_queue();
}

/* What is in the ring */

static void
message_that_a_killed_consumer_took_is_gone_with_its_memory(void)
{
    open_queue(7, 0, 0);
    CHECK_EQ(1, put(300, 1));
    CHECK_EQ(1, put(30000, 2));
    int pid = fork_hooked();

    if (pid == 0) {
        char frame[RING_FRAME_BYTES];
        uint64_t position;

        arena_lock(arena);
        CHECK_EQ(1, ring_take(arena, frame, &position, 1));
        die();
    }
    wait_killed(pid);
    CHECK_EQ(2, runs_in_use(arena));
    mpshm_reap(arena);
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(1, mpshm_queue_size(arena));
    CHECK_EQ(30000, get());
    CHECK(is_filled(batch->data, 30000, 2));
    CHECK_EQ(-EAGAIN, get());
    end_queue();
}

static void
what_is_in_the_ring_outlives_its_producer(void)
{
    open_queue(7, 0, 1);
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(1, put(300, 1));
        CHECK_EQ(1, put(10, 2));
        die();
    }
    wait_killed(pid);
    mpshm_reap(arena);
    CHECK_EQ(2, mpshm_queue_size(arena));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(arena, 1));
    CHECK_EQ(300, get());
    CHECK(is_filled(batch->data, 300, 1));
    CHECK_EQ(10, get());
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(-ERANGE, mpshm_task_done(arena));
    end_queue();
}

static void
nobody_joins_for_what_a_killed_producer_did_not_put(void)
{
    open_queue(7, 0, 1);
    in_doomed_child(take_two_places);
    CHECK_EQ(0, mpshm_wait_done(arena, LONG_MS)); /* with no reaping */
    CHECK_EQ(-ERANGE, mpshm_task_done(arena));
    end_queue();
}

/* The living */

static int
start_living(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody stopped */
        claim_two();
        lease_two();
        CHECK_EQ(1, put(300, 1));
        take_two_places();
        go(to_parent);
        await(to_child);
        die();
    }
    await(to_parent);
    return pid;
}

static void
check_living_keeps_its_own(int pid)
{
    in_doomed_child(claim_two);
    in_doomed_child(seal_and_not_put);
    mpshm_reap(arena);
    CHECK_EQ(5, runs_in_use(arena));
    CHECK_EQ(2, gauges(arena).runs_loaned);
    CHECK_EQ(2, gauges(arena).runs_leased);
    CHECK_EQ(3, mpshm_queue_size(arena)); /* and two places, on their way into it */
    CHECK_EQ(300, get());
    CHECK_EQ(0, kill(pid, SIGKILL));
    wait_killed(pid);
}

static void
living_process_keeps_its_own_and_defers_nothing(void)
{
    open_queue(7, 0, 0);
    check_living_keeps_its_own(start_living());
    end_queue();
}

static void
stopped_process_keeps_its_own_and_defers_nothing(void)
{
    open_queue(7, 0, 0);
    int pid = start_living();

    CHECK_EQ(0, kill(pid, SIGSTOP));
    CHECK_EQ(pid, waitpid(pid, NULL, WUNTRACED));
    check_living_keeps_its_own(pid);
    end_queue();
}

/* It is in the middle of a step, and stays there. */
static void
process_that_holds_its_own_lock_defers_nothing(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        go(to_parent);
        pause();
    }
    await(to_parent);
    in_doomed_child(claim_two);
    check_reaped();
    kill_child(pid);
    end_queue();
}

static void
waiting_consumer_defers_nothing(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_batch *mine = batch_of(arena, &counts, ends[0], 0);

        CHECK_EQ(300, receive_patiently(mine));
        CHECK(is_filled(mine->data, 300, 7));
        free_batch(mine);
        exit(0);
    }
    wait_asleep(pid);
    in_doomed_child(claim_two);
    in_doomed_child(seal_and_not_put);
    mpshm_reap(arena);
    check_all_free(arena);
    CHECK_EQ(1, put(300, 7));
    wait_child(pid);
    end_queue();
}

/* Who finds the dead */

/* As the package does after waitpid(). */
static void
the_next_claim_after_a_noticed_death_reaps(void)
{
    open_queue(0, 0, 0);
    mpshm_run run = claim(arena, 100); /* in a segment that is there for the next */

    CHECK_EQ(0, mpshm_abandon(&run));
    int pid = fork_hooked();

    if (pid == 0) {
        claim_two();
        die();
    }
    wait_killed(pid);
    run = claim(arena, 100);
    CHECK_EQ(0, mpshm_abandon(&run));
    CHECK_EQ(2, runs_in_use(arena)); /* nobody knows yet */
    mpshm_process_ended(pid);
    run = claim(arena, 100);
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(0, mpshm_abandon(&run));
    end_queue();
}

/* A process that never sleeps finds them too. */
static void
death_that_nobody_noticed_is_found_by_claims(void)
{
    open_queue(0, 0, 0);
    int grandchild, pid = fork_hooked();

    if (pid == 0) {
        grandchild = fork_hooked();
        if (grandchild == 0) {
            claim_two();
            go(to_parent);
        }
        die();
    }
    wait_killed(pid);
    await(to_parent);
    while (runs_in_use(arena) > 0) {
        for (int i = 0; i < 500; i++) {
            mpshm_run run = claim(arena, 100);

            CHECK_EQ(0, mpshm_abandon(&run));
        }
    }
    end_queue();
}

static void
claim_all_there_is(void)
{
    for (uint32_t i = 0; i < reserve_first(arena); i++) {
        (void) claim(arena, UINT64_C(1) << 20);
    }
}

static void
arena_that_is_full_of_the_deads_is_not_full(void)
{
    open_queue(0, 0, 0);
    in_doomed_child(claim_all_there_is);
    CHECK_EQ(12, runs_in_use(arena));
    mpshm_run run = claim(arena, UINT64_C(1) << 20);

    CHECK_EQ(0, mpshm_abandon(&run));
    end_queue();
}

static void
put_one_and_die(void)
{
    CHECK_EQ(1, put(300, 1));
}

static void
short_lived_processes_use_names_again(void)
{
    open_queue(0, 0, 0);
    for (int i = 0; i < 300; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            put_one_and_die();
            die();
        }
        wait_killed(pid);
        mpshm_process_ended(pid);
        CHECK_EQ(300, get());
    }
    CHECK(roster_high(arena->roster) <= 3);
    end_queue();
}

/* Reapers */

static void
reapers_may_be_many_and_be_killed_anywhere(void)
{
    open_queue(60, 0, 0);
    for (int i = 0; i < 40; i++) {
        int pids[3];

        in_doomed_child(fates[i % FATES]);
        for (int k = 0; k < 3; k++) {
            pids[k] = fork_hooked();
            if (pids[k] == 0) {
                go(to_parent);
                for (;;) {
                    mpshm_reap(arena);
                    share_four(); /* its own go with the next one's reaping */
                    if (k == 0) {
                        mpshm_run run = claim(arena, 9000);

                        CHECK_EQ(0, mpshm_abandon(&run));
                    }
                    if (gauges(arena).runs_leased > 40) {
                        die();
                    }
                }
            }
        }
        for (int k = 0; k < 3; k++) {
            await(to_parent);
        }
        usleep((useconds_t) (i * 37));
        for (int k = 0; k < 3; k++) {
            kill_child(pids[k]);
        }
        if (i % 8 == 7) {
            mpshm_reap(arena);
            CHECK_EQ(0, runs_in_use(arena));
        }
    }
    end_queue();
}

static void
reaper_beside_a_busy_queue_takes_nothing(void)
{
    enum { MESSAGES = 3000 };

    open_queue(0, 0, 0);
    int producer = fork_hooked();

    if (producer == 0) {
        for (unsigned i = 0; i < MESSAGES; i++) {
            while (put(5000, i) != 1) {
                sched_yield();
            }
        }
        exit(0);
    }
    int reaper = fork_hooked();

    while (reaper == 0) {
        mpshm_reap(arena);
    }
    for (unsigned i = 0; i < MESSAGES; i++) {
        int n;

        while ((n = get()) == -EAGAIN) {
            sched_yield();
        }
        CHECK_EQ(5000, n);
        CHECK(is_filled(batch->data, 5000, i));
    }
    wait_child(producer);
    kill_child(reaper);
    end_queue();
}

/* Deaths under load */

#define CREW 4

static void
live_busily(uint32_t number)
{
    mpshm_run held[8];
    mpshm_batch *mine = batch_of(arena, &counts, ends[0], 0);

    for (unsigned i = 0;; i++) {
        int error = put(number % 2 ? 300 + i % 5000 : i % 300, i);

        CHECK(error == 1 || error == MPSHM_E_FULL || error == -EAGAIN);
        error = mpshm_queue_receive(mine, 1 + i % 3, number % 3 ? 0 : 1);
        CHECK(error > 0 || error == -EAGAIN);
        for (int j = 0; j < error; j++) {
            CHECK_EQ(0, mine->messages[j].error);
        }
        if (i >= 8) {
            CHECK_EQ(0, mpshm_abandon(&held[i % 8]));
        }
        held[i % 8] = claim(arena, 100 + i % 9000);
    }
}

static void
crew_killed_at_random_leaves_nothing(void)
{
    open_queue(50, 0, 0);
    for (uint32_t round = 0; round < 12; round++) {
        int pids[CREW];

        for (uint32_t i = 0; i < CREW; i++) {
            pids[i] = fork_hooked();
            if (pids[i] == 0) {
                live_busily(round + i);
            }
        }
        for (uint32_t i = 0; i < CREW; i++) {
            usleep(3000 + (round * CREW + i) * 211 % 5000);
            kill_child(pids[i]);
            mpshm_reap(arena);
        }
        for (int n; (n = mpshm_queue_receive(batch, 32, 0)) != -EAGAIN;) {
            CHECK(n > 0);
            for (int i = 0; i < n; i++) {
                CHECK_EQ(0, batch->messages[i].error);
            }
        }
        check_reaped();
    }
    end_queue();
}

/* Memory */

#define LARGE (UINT64_C(12) << 20)

static void
open_large(uint32_t segments)
{
    mpshm_geometry large = {.stride = UINT64_C(18) << 20, .segment_bytes = UINT64_C(16) << 20,
                            .segment_limit = segments, .chunk_shift = 12};

    arena = arena_of(large);
    mpshm_reap(arena);
}

static void
fill_five(void)
{
    for (unsigned i = 0; i < 5; i++) {
        memset(claim(arena, LARGE).data, 1, LARGE);
        (void) claim(arena, 1);
    }
}

static void
share_five(void)
{
    for (unsigned i = 0; i < 5; i++) {
        mpshm_run run = claim(arena, LARGE);

        memset(run.data, 1, LARGE);
        CHECK_EQ(0, mpshm_seal(&run, LARGE));
        char *data;

        CHECK_EQ(0, mpshm_lease(arena, run.mmap_id, run.chunk_id, LARGE, run.tag, &data));
        mpshm_release(lease_new(arena, 1, 1));
    }
    int pid = fork();

    if (pid == 0) {
        _exit(0);
    }
    wait_child(pid);
}

static void
memory_is_given_back_after_a_storm(void)
{
    static void (*const storms[])(void) = {fill_five, share_five};

    for (size_t i = 0; i < sizeof storms / sizeof *storms; i++) {
        open_large(6);
        in_doomed_child(storms[i]);
        CHECK(gauges(arena).bytes_resident >= 5 * LARGE);
        mpshm_reap(arena);
        CHECK_EQ(0, runs_in_use(arena));
        CHECK(gauges(arena).bytes_resident <= (UINT64_C(34) << 20));
        mpshm_run run = claim(arena, LARGE);

        fill(run.data, LARGE, 1);
        CHECK(is_filled(run.data, LARGE, 1));
        CHECK_EQ(0, mpshm_abandon(&run));
        close_clean(arena);
    }
}

static void
memory_in_use_is_never_given_back(void)
{
    open_large(6);
    mpshm_run run = claim(arena, LARGE);

    fill(run.data, LARGE, 1);
    in_doomed_child(fill_five);
    mpshm_reap(arena);
    CHECK(is_filled(run.data, LARGE, 1));
    CHECK_EQ(0, mpshm_abandon(&run));
    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident <= (UINT64_C(34) << 20));
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

/* Whoever asks for stats() between two messages must not make the next one cold. */
static void
memory_that_the_living_used_lately_stays_though_nothing_is_in_use(void)
{
    open_large(8);
    burst(6);
    mpshm_reap(arena);
    CHECK(gauges(arena).bytes_resident > UINT64_C(88) << 20);
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(nothing_of_a_killed_process_stays),
    TEST(nothing_of_many_killed_processes_stays),
    TEST(child_not_waited_for_is_dead_too),
    TEST_THAT_NEEDS(subreapers, whole_family_killed_leaves_nothing),
    TEST(message_that_a_killed_consumer_took_is_gone_with_its_memory),
    TEST(what_is_in_the_ring_outlives_its_producer),
    TEST(nobody_joins_for_what_a_killed_producer_did_not_put),
    TEST(living_process_keeps_its_own_and_defers_nothing),
    TEST(stopped_process_keeps_its_own_and_defers_nothing),
    TEST(process_that_holds_its_own_lock_defers_nothing),
    TEST(waiting_consumer_defers_nothing),
    TEST(the_next_claim_after_a_noticed_death_reaps),
    TEST(death_that_nobody_noticed_is_found_by_claims),
    TEST(arena_that_is_full_of_the_deads_is_not_full),
    TEST(short_lived_processes_use_names_again),
    TEST(reapers_may_be_many_and_be_killed_anywhere),
    TEST(reaper_beside_a_busy_queue_takes_nothing),
    TEST(crew_killed_at_random_leaves_nothing),
    TEST_THAT_NEEDS(madvice, memory_is_given_back_after_a_storm),
    TEST_THAT_NEEDS(madvice, memory_in_use_is_never_given_back),
    TEST(memory_that_the_living_used_lately_stays_though_nothing_is_in_use),
};
RUN_TESTS(tests)
