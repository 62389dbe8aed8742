/* Reaping: whoever is killed, and with whatever in hand, nothing stays in use.

   The dead are real: children that end by SIGKILL where a word or a step stands as it would stand in
   the middle of the work. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
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
    arena = arena_of(roomy());
    arena->overflow = NULL; /* what is longer than a slot needs a run */
    CHECK_EQ(0, mpshm_make_queue(arena, places, bytes, joinable));
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
    mpshm_reap(arena); /* be a peer: the first, before any child */
    CHECK_EQ(1, arena->me);
}

/* Run it in a child that is killed at its end. */
static void
in_doomed_child(void (*work)(void))
{
    int pid = fork_hooked();

    if (pid == 0) {
        work();
        die();
    }
    wait_killed(pid);
}

static uint32_t
places_used(void)
{
    return atomic_load(&arena->header->places_used);
}

static int
put(uint32_t size, unsigned seed, int place)
{
    static char data[SMALL_RUN_BYTES];

    fill(data, size, seed);
    return mpshm_queue_put_one(END(arena, ends[1]), data, size, place);
}

static int
get(void)
{
    return mpshm_queue_receive_one(batch, 0);
}

static void
check_reaped(void)
{
    mpshm_reap(arena);
    mpshm_batch_discard(batch);
    check_all_free(arena);
    CHECK_EQ(0, places_used());
    CHECK_EQ(0, atomic_load(&arena->header->bytes_used));
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(0, atomic_load(&arena->header->reaper));
}

static void
end_queue(void)
{
    check_reaped();
    free_batch(batch);
    mpshm_arena_close(arena);
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

static void
lease_two(void)
{
    (void) lease_new(arena, 5000, 1);
    (void) lease_new(arena, 100000, 1);
}

static void
seal_without_a_word(void)
{
    mpshm_run run = claim(arena, 100000);
    uint64_t bytes = 0;

    CHECK_EQ(0, mpshm_seal(&run, 50000)); /* trimmed */
    run = claim(arena, 100000);
    CHECK_EQ(0, sender_seal(&run, 50000, &bytes)); /* and not: chunks behind it are nobody's */
}

static void
take_a_slot_raw(void)
{
    char slot[MPSHM_SLOT_BYTES];

    take_raw(arena, slot);
}

static void
claim_bits_alone(void)
{
    mpshm_run run = claim(arena, 1); /* a segment of its own */
    uint32_t start;

    CHECK_EQ(true, freemap_try_claim(arena->segments[run.mmap_id]->map, 256, 71, &start));
    CHECK_EQ(0, mpshm_abandon(&run));
}

static void
take_two_places(void)
{
    CHECK_EQ(0, mpshm_place_take(arena));
    CHECK_EQ(0, mpshm_place_take(arena));
}

static void
drop_word_but_not_bits(void)
{
    mpshm_run run = claim(arena, 9000);

    atomic_store(&arena->segments[run.mmap_id]->runs[run.chunk_id],
                 RUN_WORD(run.tag, 0, 0, RUN_FREE));
}

static void
take_a_bounded_slot_without_leaving(void)
{
    CHECK_EQ(1, put(300, 1, MPSHM_TAKE_PLACE));
    take_a_slot_raw();
}

static void
take_place_but_not_pending(void)
{
    atomic_fetch_add(&arena->header->places_used, 1);
    atomic_fetch_add(&arena->header->bytes_used, 5000);
    mpshm_reap(arena); /* a peer, and one more that is alive: nothing happens to it yet */
    atomic_fetch_add(&arena->header->places_used, 1);
}

static void (*const fates[])(void) = {
    claim_two, begin_parcel, lease_two, seal_without_a_word, claim_bits_alone, take_two_places,
    drop_word_but_not_bits, take_a_bounded_slot_without_leaving, take_place_but_not_pending,
};
#define FATES (sizeof fates / sizeof *fates)

static void
nothing_of_a_killed_peer_stays(void)
{
    for (size_t i = 0; i < FATES; i++) {
        open_queue(7, 1 << 20, 0);
        in_doomed_child(fates[i]);
        end_queue();
    }
}

static void
nothing_of_many_killed_peers_stays(void)
{
    open_queue(60, 1 << 24, 0);
    for (size_t i = 0; i < 2 * FATES; i++) {
        in_doomed_child(fates[i % FATES]);
    }
    end_queue();
}

static void
message_that_a_killed_receiver_took_goes_back(void)
{
    open_queue(7, 1 << 20, 0);
    CHECK_EQ(1, put(300, 1, MPSHM_TAKE_PLACE));
    CHECK_EQ(1, put(30000, 1, MPSHM_TAKE_PLACE));
    in_doomed_child(take_a_slot_raw);
    CHECK_EQ(2, runs_in_use(arena));
    mpshm_reap(arena);
    CHECK_EQ(2, runs_in_use(arena)); /* one is in the ring, and no one can say which */
    CHECK_EQ(1, places_used());
    CHECK_EQ(30000, get());
    CHECK(is_filled(batch->data, 30000, 1));
    CHECK_EQ(1, runs_in_use(arena));
    end_queue();
}

static void
what_is_in_the_ring_outlives_its_producer(void)
{
    open_queue(7, 1 << 20, 1);
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(1, put(300, 1, MPSHM_TAKE_PLACE));
        CHECK_EQ(1, put(10, 2, MPSHM_TAKE_PLACE));
        die();
    }
    wait_killed(pid);
    mpshm_reap(arena);
    CHECK_EQ(2, places_used());
    CHECK_EQ(2, mpshm_queue_size(arena));
    CHECK_EQ(2, atomic_load(&arena->header->unfinished));
    CHECK_EQ(300, get());
    CHECK(is_filled(batch->data, 300, 1));
    CHECK_EQ(10, get());
    CHECK_EQ(1, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_task_done(arena));
    end_queue();
}

static void
unfinished_of_a_killed_producer_is_forgotten(void)
{
    open_queue(7, 0, 1);
    in_doomed_child(take_two_places);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(arena, 1));
    mpshm_reap(arena);
    CHECK_EQ(0, mpshm_wait_done(arena, 1));
    end_queue();
}

/* As who is killed just before its write, or after it: nothing pends in either case. */
static void
take_a_place_and_not_write(void)
{
    CHECK_EQ(0, mpshm_place_take(arena));
    atomic_fetch_sub(&peer_self(arena)->pending, 1);
}

static void
put_one_placed(void)
{
    CHECK_EQ(1, put(300, 1, MPSHM_TAKE_PLACE));
}

static void
producer_killed_as_its_put_returns_has_put(void)
{
    open_queue(1, 0, 1);
    in_doomed_child(put_one_placed);
    mpshm_reap(arena);
    CHECK_EQ(1, places_used()); /* Q2: never emptier than it is */
    CHECK_EQ(MPSHM_E_FULL, put(1, 0, MPSHM_TAKE_PLACE));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(arena, 1));
    CHECK_EQ(300, get());
    CHECK_EQ(0, mpshm_task_done(arena));
    end_queue();
}

static void
nobody_joins_for_a_message_that_was_never_written(void)
{
    open_queue(1, 0, 1);
    in_doomed_child(take_a_place_and_not_write);
    check_reaped();
    CHECK_EQ(0, mpshm_wait_done(arena, 1));
    end_queue();
}

/* Who is in the middle. */

/* An orphan that only the reaping at rest finds, and a run of the dead that any reaping does. */
static void
leave_both(void)
{
    claim_bits_alone();
    (void) claim(arena, 5000);
    atomic_fetch_add(&arena->header->places_used, 1);
}

static uint32_t
bits_lent(void)
{
    uint32_t lent = 0;

    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) == 0) {
            continue;
        }
        pthread_mutex_lock(&mpshm_process.lock);
        CHECK_EQ(0, segment_map(arena, id, &seg));
        pthread_mutex_unlock(&mpshm_process.lock);
        for (uint32_t chunk = 0; chunk < seg->count; chunk++) {
            lent += !freemap_is_free(seg->map, chunk);
        }
    }
    return lent;
}

static void
check_only_the_deads_own_goes_back(void)
{
    in_doomed_child(leave_both);
    CHECK_EQ(73, bits_lent()); /* 71 without a word, two of the run */
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    CHECK_EQ(71, bits_lent());
    CHECK_EQ(1, places_used());
}

static void
living_peer_in_the_middle_of_a_step_defers_the_rest_only(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        go(to_parent);
        await(to_child);
        arena_unlock(arena);
        go(to_parent);
        await(to_child);
        exit(0);
    }
    await(to_parent);
    check_only_the_deads_own_goes_back();
    go(to_child);
    await(to_parent);
    check_reaped(); /* it lives, and rests */
    go(to_child);
    wait_child(pid);
    end_queue();
}

static void
peer_killed_in_the_middle_of_a_step_rests(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        die();
    }
    wait_killed(pid);
    in_doomed_child(leave_both);
    end_queue();
}

static void
stopped_peer_in_the_middle_of_a_step_defers_the_rest_only(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        go(to_parent);
        pause();
    }
    await(to_parent);
    CHECK_EQ(0, kill(pid, SIGSTOP));
    CHECK_EQ(pid, waitpid(pid, NULL, WUNTRACED));
    check_only_the_deads_own_goes_back();
    kill_child(pid);
    end_queue();
}

static int
blocked_reader(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_batch *mine = batch_of(arena, &counts, ends[0], 0);

        go(to_parent);
        CHECK_EQ(300, receive_patiently(mine));
        CHECK(is_filled(mine->data, 300, 7));
        free_batch(mine);
        exit(0);
    }
    await(to_parent);
    wait_sleeper(arena->ring, pid);
    return pid;
}

static void
living_blocked_reader_defers_nothing(void)
{
    open_queue(7, 0, 0);
    int pid = blocked_reader();

    in_doomed_child(leave_both);
    check_reaped();
    CHECK_EQ(1, put(300, 7, MPSHM_TAKE_PLACE));
    wait_child(pid);
    end_queue();
}

static void
stopped_reader_defers_nothing(void)
{
    open_queue(7, 0, 0);
    int pid = blocked_reader();

    CHECK_EQ(0, kill(pid, SIGSTOP));
    CHECK_EQ(pid, waitpid(pid, NULL, WUNTRACED));
    in_doomed_child(leave_both);
    check_reaped(); /* what it wakes to take it will take in a step of its own */
    CHECK_EQ(0, kill(pid, SIGCONT));
    wait_asleep(pid);
    CHECK_EQ(1, put(300, 7, MPSHM_TAKE_PLACE));
    wait_child(pid);
    end_queue();
}

static void
living_peers_own_is_left_alone(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        claim_two();
        lease_two();
        take_two_places();
        CHECK_EQ(1, put(300, 1, MPSHM_TAKE_PLACE));
        go(to_parent);
        await(to_child);
        die();
    }
    await(to_parent);
    uint32_t lent = bits_lent();

    in_doomed_child(leave_both);
    mpshm_reap(arena);
    CHECK_EQ(lent, bits_lent());
    CHECK_EQ(5, runs_in_use(arena));
    CHECK_EQ(3, places_used());
    CHECK_EQ(3, mpshm_queue_size(arena));
    CHECK_EQ(300, get());
    go(to_child);
    wait_killed(pid);
    end_queue();
}

static void
child_not_waited_for_is_dead_too(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        lease_two();
        take_two_places();
        die();
    }
    siginfo_t info;

    CHECK_EQ(0, waitid(P_PID, (id_t) pid, &info, WEXITED | WNOWAIT));
    check_reaped();
    wait_killed(pid);
    end_queue();
}

static void
pid_in_its_second_life_is_dead(void)
{
    open_queue(7, 0, 0);
    in_doomed_child(lease_two);
    /* As if the pid were ours by now: alive, but born at another time. */
    CHECK_EQ(2, atomic_load(&arena->header->peers_high));
    atomic_store(&arena->peers[1].pid, (uint32_t) getpid());
    atomic_store(&arena->peers[1].born, 1);
    end_queue();
}

static void
peer_of_another_pid_namespace_counts_as_alive(void)
{
    open_queue(7, 0, 0);
    in_doomed_child(leave_both);
    uint32_t lent = bits_lent();

    atomic_fetch_add(&arena->peers[1].space, 1);
    mpshm_reap(arena);
    CHECK_EQ(lent, bits_lent());
    atomic_fetch_sub(&arena->peers[1].space, 1);
    end_queue();
}

/* Leases that a fork shares. */

static void
killed_childs_share_goes_back(void)
{
    open_queue(0, 0, 0);
    char *data = lease_new(arena, 50000, 1);
    int pid = fork_hooked();

    if (pid == 0) {
        go(to_parent);
        pause();
    }
    await(to_parent);
    kill_child(pid);
    mpshm_reap(arena);
    CHECK(is_filled(data, 50000, 1)); /* ours still */
    CHECK_EQ(1, gauges(arena).runs_leased);
    mpshm_release(data);
    end_queue();
}

static void
killed_childs_share_goes_back_when_the_parent_let_go_first(void)
{
    open_queue(0, 0, 0);
    char *data = lease_new(arena, 50000, 1);
    int pid = fork_hooked();

    if (pid == 0) {
        await(to_child);
        mpshm_reap(arena);
        CHECK(is_filled(data, 50000, 1));
        die();
    }
    mpshm_release(data);
    mpshm_reap(arena);
    CHECK_EQ(1, gauges(arena).runs_leased); /* the child's */
    go(to_child);
    wait_killed(pid);
    end_queue();
}

static void
killed_parents_share_goes_back(void)
{
    open_queue(0, 0, 0);
    int middle = fork_hooked();

    if (middle == 0) {
        char *data = lease_new(arena, 50000, 1);
        int child = fork_hooked();

        if (child == 0) {
            await(to_child);
            mpshm_reap(arena);
            CHECK(is_filled(data, 50000, 1));
            CHECK_EQ(1, gauges(arena).runs_leased);
            mpshm_release(data);
            go(to_parent);
            pause(); /* alive, and holds nothing */
        }
        CHECK_EQ(sizeof child, write(to_parent[1], &child, sizeof child));
        die();
    }
    int child;

    CHECK_EQ(sizeof child, read(to_parent[0], &child, sizeof child));
    wait_killed(middle);
    mpshm_reap(arena);
    CHECK_EQ(1, gauges(arena).runs_leased); /* the grandchild's */
    go(to_child);
    await(to_parent);
    check_reaped();
    CHECK_EQ(0, kill(child, SIGKILL));
    end_queue();
}

static void
whole_family_killed_leaves_nothing(void)
{
    open_queue(0, 0, 0);
    for (int round = 0; round < 3; round++) {
        int pid = fork_hooked();

        if (pid == 0) {
            char *one = lease_new(arena, 50000, 1), *other = lease_new(arena, 5000, 1);

            for (int i = 0; i < 3; i++) {
                int child = fork_hooked();

                if (child == 0) {
                    if (i == 0) {
                        mpshm_release(one);
                    } else if (i == 1) {
                        mpshm_release(other);
                        (void) fork_hooked(); /* goes on to its own end below */
                    }
                    die();
                }
                wait_killed(child);
            }
            die();
        }
        wait_killed(pid);
    }
    for (int tries = 0; tries < 1000 && runs_in_use(arena) > 0; tries++) {
        usleep(10000); /* an orphaned grandchild may die a moment later */
        mpshm_reap(arena);
    }
    end_queue();
}

static void
exit_after_a_fork_lets_go_of_its_share(void)
{
    open_queue(0, 0, 0);
    char *data = lease_new(arena, 50000, 1);

    for (int i = 0; i < 5; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            exit(0);
        }
        wait_child(pid);
        CHECK_EQ(i < 0, runs_in_use(arena) == 0);
    }
    mpshm_release(data);
    check_all_free(arena); /* with no reaping */
    end_queue();
}

/* Records. */

static void
short_lived_peers_use_records_again(void)
{
    open_queue(0, 0, 0);
    for (int i = 0; i < 2000; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            CHECK_EQ(1, put(300, 1, MPSHM_NO_PLACE));
            mpshm_release_all(); /* as a process does that ends in good order */
            _exit(0);
        }
        wait_child(pid);
        CHECK_EQ(300, get());
    }
    CHECK_EQ(2, atomic_load(&arena->header->peers_high));
    CHECK_EQ(0, atomic_load(&arena->header->crowded));
    in_doomed_child(leave_both);
    end_queue();
}

static void
put_one_and_die(void)
{
    CHECK_EQ(1, put(300, 1, MPSHM_NO_PLACE));
}

static void
killed_peers_records_are_used_again_once_reaped(void)
{
    open_queue(0, 0, 0);
    for (int i = 0; i < 2000; i++) {
        in_doomed_child(put_one_and_die);
        CHECK_EQ(300, get());
        if (i % 500 == 0) {
            mpshm_reap(arena);
        }
    }
    CHECK_EQ(0, atomic_load(&arena->header->crowded));
    in_doomed_child(leave_both);
    end_queue();
}

static void
put_a_short_one_and_die(void)
{
    CHECK_EQ(1, put(10, 1, MPSHM_NO_PLACE));
}

/* Nobody asked for the gauges meanwhile, and the arena never grew. */
static void
records_are_found_though_nobody_reaped(void)
{
    open_queue(0, 0, 0);
    for (uint32_t i = 0; i < PEER_LIMIT + 40; i++) {
        in_doomed_child(put_a_short_one_and_die);
        CHECK_EQ(10, get());
    }
    mpshm_reap(arena);
    in_doomed_child(leave_both);
    end_queue();
}

/* Reapers. */

static void
killed_reaper_is_taken_over(void)
{
    for (int freed = 0; freed < 2; freed++) {
        open_queue(7, 0, 0);
        in_doomed_child(leave_both);
        CHECK_EQ(2, atomic_load(&arena->header->peers_high));
        atomic_store(&arena->header->reaper, 2); /* dead */
        if (freed) { /* it had got as far as its own record, or another's */
            uint32_t number = 2;

            atomic_store(&arena->peers[2].pid, atomic_load(&arena->peers[1].pid));
            atomic_store(&arena->peers[2].space, atomic_load(&arena->peers[1].space));
            atomic_store(&arena->header->peers_high, 3);
            atomic_store(&arena->header->reaper, 3);
            peer_free(arena, number + 1);
        }
        end_queue();
    }
}

static void
senseless_reaper_is_taken_over(void)
{
    open_queue(7, 0, 0);
    in_doomed_child(leave_both);
    atomic_store(&arena->header->reaper, UINT32_MAX);
    end_queue();
}

static void
living_reaper_is_left_to_it(void)
{
    open_queue(7, 0, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_reap(arena);
        atomic_store(&arena->header->reaper, arena->me);
        go(to_parent);
        await(to_child);
        die();
    }
    await(to_parent);
    in_doomed_child(leave_both);
    uint32_t lent = bits_lent();

    mpshm_reap(arena);
    CHECK_EQ(lent, bits_lent());
    go(to_child);
    wait_killed(pid);
    end_queue();
}

static void
reapers_killed_at_any_time_leave_nothing(void)
{
    open_queue(60, 1 << 24, 0);
    for (int i = 0; i < 60; i++) {
        in_doomed_child(fates[i % FATES]);
        int pid = fork_hooked();

        if (pid == 0) {
            go(to_parent);
            for (;;) {
                mpshm_reap(arena);
                claim_bits_alone();
            }
        }
        await(to_parent);
        usleep((useconds_t) (i * 37));
        kill_child(pid);
    }
    end_queue();
}

/* Deaths under load. */

#define CREW 4

static void
live_busily(uint32_t number)
{
    mpshm_run held[8];
    mpshm_batch *mine = batch_of(arena, &counts, ends[0], 0);

    for (unsigned i = 0;; i++) {
        int error = put(number % 2 ? 300 + i % 5000 : i % 300, i, MPSHM_TAKE_PLACE);

        /* Full as well: a slot that a dead peer was writing holds its lap up until it is reaped. */
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
    open_queue(50, 1 << 20, 0);
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

/* One who comes, puts and departs between the reaper's two looks leaves no trace in the table. */
static void
visitors_message_is_not_taken_for_an_orphan(void)
{
    enum { VISITS = 1000, SEGMENTS = 14 };
    mpshm_geometry fine = roomy();
    mpshm_run runs[SEGMENTS];

    fine.chunk_shift = 4; /* a million chunks to search, so that there is time */
    arena = arena_of(fine);
    CHECK_EQ(0, mpshm_make_queue(arena, 0, 0, 0));
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    for (int i = 0; i < SEGMENTS; i++) {
        runs[i] = claim(arena, fine.segment_bytes);
    }
    for (int i = 0; i < SEGMENTS; i++) {
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    int visitor = fork_hooked();

    if (visitor == 0) {
        for (int i = 0; i < VISITS; i++) {
            mpshm_arena *again = attach_again(arena);
            char data[5000];

            fill(data, sizeof data, 3);
            while (mpshm_queue_put_one(END(again, ends[1]), data, sizeof data, MPSHM_NO_PLACE)
                   == -EAGAIN) {
                sched_yield();
            }
            mpshm_arena_close(again);
            usleep((useconds_t) (i * 7 % 500));
        }
        exit(0);
    }
    int reaper = fork_hooked();

    if (reaper == 0) {
        for (;;) {
            mpshm_reap(arena);
        }
    }
    for (int i = 0; i < VISITS; i++) {
        int n;

        while ((n = get()) == -EAGAIN) {
            usleep(20000); /* at rest */
        }
        CHECK_EQ(5000, n);
        CHECK(is_filled(batch->data, 5000, 3));
    }
    wait_child(visitor);
    kill_child(reaper);
    end_queue();
}

static const struct test tests[] = {
    TEST(nothing_of_a_killed_peer_stays),
    TEST(nothing_of_many_killed_peers_stays),
    TEST(message_that_a_killed_receiver_took_goes_back),
    TEST(what_is_in_the_ring_outlives_its_producer),
    TEST(unfinished_of_a_killed_producer_is_forgotten),
    TEST(producer_killed_as_its_put_returns_has_put),
    TEST(nobody_joins_for_a_message_that_was_never_written),
    TEST(living_peer_in_the_middle_of_a_step_defers_the_rest_only),
    TEST(peer_killed_in_the_middle_of_a_step_rests),
    TEST(stopped_peer_in_the_middle_of_a_step_defers_the_rest_only),
    TEST(living_blocked_reader_defers_nothing),
    TEST(stopped_reader_defers_nothing),
    TEST(living_peers_own_is_left_alone),
    TEST(child_not_waited_for_is_dead_too),
    TEST(pid_in_its_second_life_is_dead),
    TEST(peer_of_another_pid_namespace_counts_as_alive),
    TEST(killed_childs_share_goes_back),
    TEST(killed_childs_share_goes_back_when_the_parent_let_go_first),
    TEST(killed_parents_share_goes_back),
    TEST(whole_family_killed_leaves_nothing),
    TEST(exit_after_a_fork_lets_go_of_its_share),
    TEST(short_lived_peers_use_records_again),
    TEST(killed_peers_records_are_used_again_once_reaped),
    TEST(records_are_found_though_nobody_reaped),
    TEST(killed_reaper_is_taken_over),
    TEST(senseless_reaper_is_taken_over),
    TEST(living_reaper_is_left_to_it),
    TEST(reapers_killed_at_any_time_leave_nothing),
    TEST(crew_killed_at_random_leaves_nothing),
    TEST(visitors_message_is_not_taken_for_an_orphan),
};
RUN_TESTS(tests)
