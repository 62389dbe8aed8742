/* Wake-ups: processes that sleep at a ring, and are woken, or killed; and hammers.

   test_waiters.c goes through the same code by hand. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FULL ((uint32_t) RING_SLOTS)
#define AT_ONCE MPSHM_SLOTS_AT_ONCE
#define AHEAD_NS INT64_C(900000000) /* nearly the most that counts as a time ahead */
#define SLOW_US 900000u
#define SECOND_NS INT64_C(1000000000)

static mpshm_arena *arena;
static struct waiters *words;
static mpshm_counts counts;
static mpshm_batch *batch;
static int ends[2], to_parent[2];

static void
open_ring_as(mpshm_geometry geometry, uint32_t places)
{
    arena = queue_arena_of(geometry, places, 0, 0);
    make_pipe(ends);
    CHECK_EQ(0, pipe(to_parent));
    batch = batch_of(arena, &counts, ends[0], 0);
    words = &arena->chain->waiters;
    mpshm_reap(arena); /* be a peer: the first, before any child */
}

static void
open_ring_of(mpshm_geometry geometry)
{
    open_ring_as(geometry, 0);
}

static void
open_ring_with(uint32_t places)
{
    open_ring_as(tiny, places);
}

static void
open_ring(void)
{
    open_ring_of(tiny);
}

static void
end_ring(void)
{
    CHECK_EQ(0, ring_count(arena, false));
    free_batch(batch);
    close(ends[0]);
    close(ends[1]);
    mpshm_arena_close(arena);
}

/* Nor any receiver. */
static void
no_receiver_watches_soon(void)
{
    nobody_watches_soon(arena);
    batch->waiter.watch = atomic_load(&arena->watch);
}

static void
put(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, NULL));
    }
}

static void
take(uint32_t count)
{
    static char frames[AT_ONCE * RING_FRAME_BYTES];
    uint32_t n;

    for (; count > 0; count -= n) {
        arena_lock(arena);
        n = take_and_let_in(arena, frames, count < AT_ONCE ? count : AT_ONCE);
        arena_unlock(arena);
        CHECK(n > 0);
    }
}

static bool
is_ahead_now(_Atomic int64_t *until)
{
    int64_t left = atomic_load(until) - now_ns();

    return left > 0 && left < SECOND_NS;
}

static int
woken_within(int ms, int at_most)
{
    struct pollfd woken = {.fd = to_parent[0], .events = POLLIN};
    int count = 0;

    while (count < at_most && poll(&woken, 1, ms) == 1) {
        await(to_parent);
        count++;
    }
    return count;
}

/* A child that receives what this expects, with a batch that does not spin. */
static int
blocked_receiver(int expected)
{
    int pid = fork_hooked();

    if (pid == 0) {
        close(ends[1]);
        CHECK_EQ(expected, receive_patiently(batch));
        go(to_parent);
        _exit(0);
    }
    return pid;
}

static int
sleeping_receiver(void)
{
    int pid = blocked_receiver(7);

    wait_sleeper(arena->chain, pid);
    return pid;
}

/* A child that receives, and in a flood is the backup. */
static int
backup(void)
{
    batch->waiter.floods = true;
    batch->waiter.measured_ns = now_ns() + 100 * SECOND_NS; /* it will not measure again */
    int pid = blocked_receiver(7);

    batch->waiter.floods = false;
    while (!is_ahead_now(&words->backup_at_ns)) {
        sched_yield();
    }
    return pid;
}

/* Receivers. */

static void
one_message_wakes_one_sleeper(void)
{
    enum { SLEEPERS = 4 };
    static const uint32_t sizes[] = {1, 1};
    int pids[SLEEPERS];

    open_ring();
    for (uint32_t i = 0; i < SLEEPERS; i++) {
        pids[i] = sleeper(arena->chain, to_parent);
    }
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    CHECK_EQ(0, woken_within(50, 1));
    CHECK_EQ(2, mpshm_queue_put_some(END(arena, ends[1]), "ab", sizes, 2, NULL));
    CHECK_EQ(2, woken_within(LONG_MS, 2));
    CHECK_EQ(0, woken_within(50, 1));
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    for (int i = 0; i < SLEEPERS; i++) {
        wait_child(pids[i]);
    }
    take(4);
    end_ring();
}

static void
three_messages_wake_two_while_one_spins(void)
{
    static const uint32_t sizes[] = {1, 1, 1};
    int pids[3];

    open_ring();
    for (int i = 0; i < 3; i++) {
        pids[i] = sleeper(arena->chain, to_parent);
    }
    atomic_store(&words->spin_until_ns, now_ns() + AHEAD_NS);
    CHECK_EQ(3, mpshm_queue_put_some(END(arena, ends[1]), "abc", sizes, 3, NULL));
    CHECK_EQ(2, woken_within(LONG_MS, 2));
    CHECK_EQ(0, woken_within(50, 1));
    waiters_call(arena, INT_MAX);
    for (int i = 0; i < 3; i++) {
        wait_child(pids[i]);
    }
    take(3);
    end_ring();
}

static void
blocked_receivers_get_one_each(void)
{
    enum { RECEIVERS = 6 };
    int pids[RECEIVERS];

    open_ring();
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < RECEIVERS; i++) {
            pids[i] = sleeping_receiver();
        }
        put(RECEIVERS);
        for (int i = 0; i < RECEIVERS; i++) {
            wait_child(pids[i]);
        }
        CHECK_EQ(0, ring_count(arena, false));
    }
    end_ring();
}

static void
receivers_with_and_without_a_time_get_one_each(void)
{
    enum { RECEIVERS = 6 };
    int pids[RECEIVERS];

    open_ring();
    for (int i = 0; i < RECEIVERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            mpshm_batch *its = batch_of(arena, &counts, ends[0], i % 3 ? 50 : 0);
            int n;

            while ((n = mpshm_queue_receive_one(its, i % 2 ? -1 : 3)) == -EAGAIN || n == -EINTR) {
            }
            _exit(n != 7);
        }
    }
    for (int i = 0; i < RECEIVERS; i++) {
        usleep(2000);
        put(1);
    }
    for (int i = 0; i < RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    end_ring();
}

/* A poller is woken as a receiver would be, and takes nothing: the message is the receiver's. */
static void
poller_does_not_keep_a_receivers_wake_up(void)
{
    open_ring();
    no_receiver_watches_soon();
    for (int round = 0; round < 2; round++) {
        int poller = fork_hooked();

        if (poller == 0) {
            while (!mpshm_queue_poll(batch->end, -1)) {
            }
            _exit(0);
        }
        wait_sleeper(arena->chain, poller);
        int receiver = sleeping_receiver();

        put(1);
        wait_child(receiver);
        CHECK_EQ(1, woken_within(LONG_MS, 1));
        CHECK_EQ(0, kill(poller, SIGKILL)); /* it may have seen nothing of it */
        while (waitpid(poller, NULL, 0) == -1) {
        }
        CHECK_EQ(0, ring_count(arena, false));
    }
    end_ring();
}

static void
end_of_file_is_seen_by_all_who_sleep(void)
{
    enum { RECEIVERS = 3 };
    int pids[RECEIVERS];

    open_ring();
    for (int i = 0; i < RECEIVERS; i++) {
        pids[i] = blocked_receiver(MPSHM_E_END);
        wait_sleeper(arena->chain, pids[i]);
    }
    close(ends[1]); /* as by a kill: nobody is told */
    for (int i = 0; i < RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    CHECK_EQ(1, mpshm_queue_poll(batch->end, -1));
    end_ring();
}

/* Nobody watches soon, so they would see it after 40 s. */
static void
death_of_the_last_sender_is_seen_when_its_parent_notes_it(void)
{
    enum { RECEIVERS = 3 };
    int pids[RECEIVERS];

    open_ring();
    no_receiver_watches_soon();
    int sender = fork_hooked();

    if (sender == 0) {
        put(1);
        pause();
    }
    for (int i = 0; i < RECEIVERS; i++) {
        pids[i] = blocked_receiver(i == 0 ? 7 : MPSHM_E_END);
        if (i > 0) {
            wait_sleeper(arena->chain, pids[i]);
        } else {
            wait_child(pids[i]);
        }
    }
    close(ends[1]);
    int64_t since = now_ns();

    kill_child(sender);
    mpshm_process_ended(sender);
    for (int i = 1; i < RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
    end_ring();
}

static void
death_of_the_last_receiver_is_seen_when_its_parent_notes_it(void)
{
    enum { SENDERS = 3 };
    int pids[SENDERS];

    open_ring();
    no_receiver_watches_soon();
    put(FULL);
    int receiver = fork_hooked();

    if (receiver == 0) {
        mpshm_reap(arena); /* it has its name */
        go(to_parent);
        pause();
    }
    await(to_parent);
    close(ends[0]);
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            int error;

            while ((error = mpshm_queue_wait_room(END(arena, ends[1]), NULL, LONG_MS)) != -EPIPE) {
                CHECK(error == 0 || error == -EAGAIN); /* woken: worth another try */
            }
            _exit(0);
        }
        while (atomic_load(&words->room_mark) == 0) {
            sched_yield();
        }
        wait_asleep(pids[i]);
    }
    int64_t since = now_ns();

    kill_child(receiver);
    mpshm_process_ended(receiver);
    for (int i = 0; i < SENDERS; i++) {
        wait_child(pids[i]);
    }
    CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
    take(FULL);
    end_ring();
}

static void
do_nothing(int number)
{
    (void) number;
}

static void
sleeper_is_interrupted_by_a_signal(void)
{
    open_ring();
    no_receiver_watches_soon();
    int pid = fork_hooked();

    if (pid == 0) {
        struct sigaction action = {.sa_handler = do_nothing};

        sigaction(SIGUSR1, &action, NULL);
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, -1));
        go(to_parent);
        _exit(0);
    }
    wait_sleeper(arena->chain, pid);
    CHECK_EQ(0, kill(pid, SIGUSR1));
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(pid);
    end_ring();
}

/* The dead. */

/* One wake-up finds nobody, and then no sender calls the kernel in vain any more. */
static void
killed_sleepers_cost_one_futile_wake_up(void)
{
    open_ring();
    for (int i = 0; i < 3; i++) {
        kill_child(sleeper(arena->chain, to_parent));
    }
    put(1);
    uint32_t count = atomic_load(&words->wakeups);

    CHECK_EQ(0, count & 1);
    put(1);
    CHECK_EQ(count, atomic_load(&words->wakeups));
    take(2);
    int pid = sleeping_receiver();

    put(1);
    wait_child(pid);
    end_ring();
}

/* The one that the message woke is killed before it takes it; the next to watch has it. */
static void
message_whose_wake_up_was_lost_is_taken_by_the_next_to_watch(void)
{
    open_ring();
    for (int i = 0; i < 2; i++) {
        int first = sleeping_receiver(), second = sleeping_receiver();

        CHECK_EQ(0, kill(first, SIGSTOP)); /* it will be woken: it sleeps the longest */
        put(1);
        kill_child(first);
        wait_child(second);
        CHECK_EQ(1, woken_within(LONG_MS, 1));
    }
    end_ring();
}

static void
killed_spinner_costs_a_while(void)
{
    open_ring();
    int sleeping = sleeping_receiver(), pid = fork_hooked();

    if (pid == 0) {
        mpshm_batch *its = batch_of(arena, &counts, ends[0], SLOW_US);

        its->waiter.spin.credit = 16;
        (void) mpshm_queue_receive(its, 1, -1);
        pause();
    }
    while (!is_ahead_now(&words->spin_until_ns)) {
        sched_yield();
    }
    kill_child(pid);
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(sleeping);
    end_ring();
}

static void
killed_backup_costs_a_while(void)
{
    open_ring();
    int first = backup(), second = sleeping_receiver();

    kill_child(first);
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(second);
    end_ring();
}

/* A word that says somebody spins, or is the backup, for ever is not believed. */
static void
forged_time_does_not_keep_a_message_from_a_sleeper(void)
{
    open_ring();
    no_receiver_watches_soon();
    for (int i = 0; i < 3; i++) {
        int pid = sleeping_receiver();
        int64_t for_ever = i == 0 ? INT64_MAX : now_ns() + 3600 * SECOND_NS;

        atomic_store(&words->spin_until_ns, for_ever);
        atomic_store(&words->backup_at_ns, i == 2 ? 0 : for_ever);
        put(1);
        CHECK_EQ(1, woken_within(LONG_MS, 1));
        wait_child(pid);
    }
    end_ring();
}

/* The backup. */

static void
backup_takes_what_was_left_behind(void)
{
    open_ring();
    no_receiver_watches_soon();
    for (int i = 0; i < 20; i++) {
        int64_t since = now_ns();
        int pid = backup();

        put(1); /* it wakes nobody, unless the backup is late just now */
        CHECK_EQ(1, woken_within(LONG_MS, 1));
        CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
        wait_child(pid);
    }
    end_ring();
}

/* What no one was woken for while there was a backup: when it leaves, each leaver wakes the next. */
static void
backup_that_leaves_hands_the_rest_on(void)
{
    enum { SLEEPERS = 4 };
    int pids[SLEEPERS];

    open_ring();
    no_receiver_watches_soon();
    for (int i = 0; i < SLEEPERS; i++) {
        pids[i] = sleeping_receiver();
    }
    int64_t since = now_ns();
    int first = backup();

    CHECK_EQ(0, kill(first, SIGSTOP));
    do { /* so that all are there when it looks */
        atomic_store(&words->backup_at_ns, now_ns() + AHEAD_NS);
    } while (ring_count(arena, false) < SLEEPERS && (put(1), true));
    put(1);
    atomic_store(&words->backup_at_ns, 0);
    CHECK_EQ(0, kill(first, SIGCONT));
    CHECK_EQ(SLEEPERS + 1, woken_within(LONG_MS, SLEEPERS + 1));
    CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
    wait_child(first);
    for (int i = 0; i < SLEEPERS; i++) {
        wait_child(pids[i]);
    }
    end_ring();
}

/* Senders. */

static void
senders_are_woken_one_by_one_then_all(void)
{
    enum { SENDERS = 9 };
    int pids[SENDERS], awake = 0;

    open_ring();
    no_receiver_watches_soon();
    put(FULL);
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = waiting_sender(arena, ends[1], to_parent);
    }
    for (uint32_t left = FULL; left-- > 0;) {
        take(1);
        if (left == 256 || left == 128 || left == 64 || left == 32 || left == 16) {
            CHECK_EQ(1, woken_within(LONG_MS, 1));
            awake++;
        }
        if (left == 255 || left == 20) {
            CHECK_EQ(0, woken_within(30, 1));
        }
    }
    CHECK_EQ(SENDERS - awake, woken_within(LONG_MS, SENDERS - awake));
    for (int i = 0; i < SENDERS; i++) {
        wait_child(pids[i]);
    }
    CHECK_EQ(0, atomic_load(&words->room_mark));
    end_ring();
}

/* The one that is let in is killed before it puts anything. */
static void
killed_sender_does_not_keep_the_others_out(void)
{
    enum { SENDERS = 4 };
    int pids[SENDERS];

    open_ring();
    no_receiver_watches_soon();
    put(FULL);
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = waiting_sender(arena, ends[1], to_parent);
    }
    kill_child(pids[0]);
    kill_child(pids[1]);
    take(FULL);
    CHECK_EQ(2, woken_within(LONG_MS, 2));
    wait_child(pids[2]);
    wait_child(pids[3]);
    end_ring();
}

/* Receivers have made a little room, not enough to wake anybody, and are busy for ever. */
static void
sender_finds_room_at_its_watch(void)
{
    open_ring();
    put(FULL);
    int pid = waiting_sender(arena, ends[1], to_parent);

    take(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(pid);
    take(FULL - 1);
    end_ring();
}

/* The head does not move, for one place is only held. */
static void
places_behind_a_stopped_head_wake_one_sender_each(void)
{
    enum { SENDERS = 4, PLACES = 8 };
    int pids[SENDERS];

    open_ring_with(PLACES);
    mpshm_place *place = mpshm_place_new(arena);

    CHECK_EQ(0, mpshm_place_take(place));
    put(PLACES - 1);
    take(2);
    put(2);
    no_receiver_watches_soon();
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = waiting_sender(arena, ends[1], to_parent);
    }
    CHECK_EQ(SENDERS - 1, mpshm_queue_receive(batch, SENDERS - 1, 0));
    CHECK_EQ(SENDERS - 1, woken_within(LONG_MS, SENDERS - 1));
    CHECK_EQ(0, woken_within(50, 1));
    mpshm_place_give(place);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    for (int i = 0; i < SENDERS; i++) {
        wait_child(pids[i]);
    }
    mpshm_place_free(place);
    take(PLACES - SENDERS);
    end_ring();
}

static void
sender_that_waits_for_room_sees_that_nobody_receives(void)
{
    open_ring();
    put(FULL);
    int reader = ends[0];

    CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1));
    close(reader);
    CHECK_EQ(-EPIPE, mpshm_queue_wait_room(END(arena, ends[1]), NULL, LONG_MS));
    CHECK_EQ(-EPIPE, mpshm_queue_put_one(END(arena, ends[1]), "x", 1, NULL));
    take(FULL);
    end_ring();
}

/* Hammers. */

#define MOST_CREW 4
#define MOST_NOTES (1u << 19)

struct shared {
    _Atomic uint64_t put, got;
    _Atomic uint32_t stop;
    _Atomic uint8_t seen[MOST_CREW][MOST_NOTES];
};
static struct shared *shared;

static mpshm_geometry
roomy(void)
{
    return (mpshm_geometry) {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20,
                             .segment_limit = 16, .chunk_shift = 12};
}

static void
open_hammer(void)
{
    open_ring_of(roomy());
    CHECK(arena->overflowing);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(shared != MAP_FAILED);
}

/* Mostly short, now and then at the edges of what a slot holds, and its overflow. */
static uint32_t
size_of_note(uint32_t seq)
{
    static const uint32_t sizes[] = {8, 124, 125, 31, 1148, 9, 1149, 132, 64, 1000, 8, 8, 123, 12,
                                     1147, 3000};

    return sizes[seq * 7 % 16];
}

static void
put_note(uint32_t sender, uint32_t seq)
{
    char data[3000];
    uint32_t names[] = {sender, seq}, size = size_of_note(seq);
    int n;

    fill(data, size, sender * 31 + seq);
    memcpy(data, names, sizeof names);
    while ((n = mpshm_queue_put_one(END(arena, ends[1]), data, size, NULL)) == -EAGAIN) {
        n = mpshm_queue_wait_room(END(arena, ends[1]), NULL, 20);
        CHECK(n == 0 || n == -EAGAIN);
    }
    CHECK_EQ(1, n);
    atomic_fetch_add(&shared->put, 1);
}

static void
note_taken(const char *data, uint64_t size)
{
    static char whole[3000];
    static uint32_t last[MOST_CREW];
    uint32_t names[2];

    CHECK(size >= 8);
    memcpy(names, data, sizeof names);
    CHECK(names[0] < MOST_CREW && names[1] < MOST_NOTES);
    CHECK_EQ(size_of_note(names[1]), size);
    fill(whole, size, names[0] * 31 + names[1]);
    CHECK(memcmp(whole + 8, data + 8, size - 8) == 0); /* torn, or another's */
    CHECK(names[1] >= last[names[0]]);
    last[names[0]] = names[1] + 1;
    CHECK_EQ(0, atomic_fetch_add(&shared->seen[names[0]][names[1]], 1));
    atomic_fetch_add(&shared->got, 1);
}

/* Until the end of file.  Some are quick, some have a long task now and then, some will wait for a few
   ms only, some take all they can. */
static void
receive_all(uint32_t number, bool singly)
{
    mpshm_batch *its = batch_of(arena, &counts, ends[0], 50);
    uint32_t most = number % 4 == 3 && !singly ? AT_ONCE : 1;
    unsigned seed = number + (unsigned) getpid();
    int n;

    close(ends[1]);
    for (uint32_t i = 0;; i++) {
        n = mpshm_queue_receive(its, most, number % 4 == 2 ? (int) (i % 4) : -1);
        if (n == MPSHM_E_END) {
            _exit(0);
        }
        CHECK(n > 0 || n == -EAGAIN || n == -EINTR);
        for (int j = 0; j < n; j++) {
            CHECK_EQ(0, its->messages[j].error);
            note_taken(its->data + its->messages[j].at, its->messages[j].size);
        }
        if (n > 0 && number % 4 != 0 && rand_r(&seed) % 32 == 0) {
            usleep(rand_r(&seed) % 3000);
        }
    }
}

static int
hammer_receiver(uint32_t number, bool singly)
{
    int pid = fork_hooked();

    if (pid == 0) {
        receive_all(number, singly);
    }
    return pid;
}

static int
hammer_sender(uint32_t number, uint32_t notes)
{
    int pid = fork_hooked();

    if (pid == 0) {
        unsigned seed = number;

        for (uint32_t seq = 0; seq < notes && !atomic_load(&shared->stop); seq++) {
            put_note(number, seq);
            if (rand_r(&seed) % 200 == 0) {
                usleep(rand_r(&seed) % 1000);
            }
        }
        _exit(0);
    }
    return pid;
}

static void
end_of_sending(void)
{
    close(ends[1]);
    waiters_call(arena, INT_MAX);
}

static void
hammer(uint32_t senders, uint32_t receivers, uint32_t notes)
{
    int sending[MOST_CREW], receiving[MOST_CREW];

    open_hammer();
    for (uint32_t i = 0; i < receivers; i++) {
        receiving[i] = hammer_receiver(i, false);
    }
    for (uint32_t i = 0; i < senders; i++) {
        sending[i] = hammer_sender(i, notes);
    }
    for (uint32_t i = 0; i < senders; i++) {
        wait_child(sending[i]);
    }
    end_of_sending();
    for (uint32_t i = 0; i < receivers; i++) {
        wait_child(receiving[i]);
    }
    CHECK_EQ((uint64_t) senders * notes, atomic_load(&shared->got));
    for (uint32_t i = 0; i < senders; i++) {
        for (uint32_t seq = 0; seq < notes; seq++) {
            CHECK_EQ(1, atomic_load(&shared->seen[i][seq]));
        }
    }
    CHECK_EQ(0, runs_in_use(arena));
    end_ring();
}

static void
one_sender_and_four_receivers_lose_and_double_nothing(void)
{
    hammer(1, 4, SANITIZED ? 20000 : 100000);
}

static void
four_senders_and_four_receivers_lose_and_double_nothing(void)
{
    hammer(4, 4, SANITIZED ? 5000 : 25000);
}

/* A burst, and all of it is to be taken before the next.  Nobody watches soon, so a message that was
   forgotten would stay for 40 seconds. */
static void
every_burst_is_taken_though_nobody_watches_soon(void)
{
    int receiving[MOST_CREW];
    unsigned seed = 1;
    uint32_t seq = 0;

    open_hammer();
    for (uint32_t i = 0; i < MOST_CREW; i++) {
        receiving[i] = hammer_receiver(i, false);
    }
    for (int64_t end = now_ns() + 3 * SECOND_NS / 2; now_ns() < end;) {
        uint32_t count = 1 + (uint32_t) rand_r(&seed) % (rand_r(&seed) % 2 ? 6 : 100);
        int64_t since = now_ns();

        /* All periods but the last are others'. */
        atomic_store(&arena->header->watches, (uint64_t) (now_ns() / 1000000 / WATCH_MS) << 32 | INT32_MAX);
        while (count-- > 0 && seq < MOST_NOTES) {
            put_note(0, seq++);
        }
        while (atomic_load(&shared->got) < atomic_load(&shared->put)) {
            CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
            sched_yield();
        }
        if (rand_r(&seed) % 4 == 0) {
            usleep(rand_r(&seed) % 300);
        }
    }
    end_of_sending();
    for (uint32_t i = 0; i < MOST_CREW; i++) {
        wait_child(receiving[i]);
    }
    CHECK_EQ(seq, atomic_load(&shared->got));
    end_ring();
}

/* A message is lost only in the hand of one that was killed. */
static void
receivers_killed_at_random_hold_nobody_up(void)
{
    enum { SENDERS = 2 };
    int sending[SENDERS], receiving[MOST_CREW];
    unsigned seed = (unsigned) now_ns();
    uint64_t kills = 0;

    open_hammer();
    for (uint32_t i = 0; i < MOST_CREW; i++) {
        receiving[i] = hammer_receiver(i, true);
    }
    for (uint32_t i = 0; i < SENDERS; i++) {
        sending[i] = hammer_sender(i, MOST_NOTES);
    }
    for (int64_t end = now_ns() + 3 * SECOND_NS / 2; now_ns() < end; kills++) {
        uint32_t i = (uint32_t) rand_r(&seed) % MOST_CREW;

        usleep(rand_r(&seed) % 4000);
        if (rand_r(&seed) % 4 == 0) { /* stopped for a while, and goes on */
            CHECK_EQ(0, kill(receiving[i], SIGSTOP));
            usleep(rand_r(&seed) % 10000);
            CHECK_EQ(0, kill(receiving[i], SIGCONT));
        }
        kill_child(receiving[i]);
        receiving[i] = hammer_receiver(i, true);
    }
    uint64_t got = atomic_load(&shared->got);

    while (atomic_load(&shared->got) < got + 2 * FULL) { /* the living go on, or this hangs */
        usleep(1000);
    }
    atomic_store(&shared->stop, 1);
    for (uint32_t i = 0; i < SENDERS; i++) {
        wait_child(sending[i]);
    }
    end_of_sending();
    for (uint32_t i = 0; i < MOST_CREW; i++) {
        wait_child(receiving[i]);
    }
    uint64_t put_in_all = atomic_load(&shared->put);

    CHECK_EQ(0, ring_count(arena, false));
    CHECK(atomic_load(&shared->got) <= put_in_all);
    CHECK(atomic_load(&shared->got) + kills >= put_in_all);
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    end_ring();
}

/* In one process, for the thread sanitizer. */

#define THREADS 3

static void *
receive_in_thread(void *number)
{
    mpshm_batch *its = batch_of(arena, &counts, ends[0], 50);

    while (mpshm_queue_receive(its, number == NULL ? 1 : 8, -1) != MPSHM_E_END) {
        for (uint32_t i = 0; i < its->count; i++) {
            atomic_fetch_add(&shared->got, 1);
        }
    }
    free_batch(its);
    return NULL;
}

static void *
send_in_thread(void *number)
{
    mpshm_counts mine = {0};
    mpshm_end end = {arena, &mine, ends[1], false};

    for (uint32_t seq = 0; seq < 3000; seq++) {
        while (mpshm_queue_put_one(&end, "message", 7, NULL) == -EAGAIN) {
            (void) mpshm_queue_wait_room(&end, NULL, number == NULL ? -1 : 5);
        }
        if (seq % 200 == 0) {
            usleep(300);
        }
    }
    return NULL;
}

static void
threads_wake_each_other(void)
{
    pthread_t senders[THREADS], receivers[THREADS];

    open_hammer();
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK_EQ(0, pthread_create(&receivers[i], NULL, receive_in_thread, (void *) i));
        CHECK_EQ(0, pthread_create(&senders[i], NULL, send_in_thread, (void *) i));
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(0, pthread_join(senders[i], NULL));
    }
    end_of_sending();
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(0, pthread_join(receivers[i], NULL));
    }
    CHECK_EQ(THREADS * 3000, atomic_load(&shared->got));
    end_ring();
}

static const struct test tests[] = {
    TEST(one_message_wakes_one_sleeper),
    TEST(three_messages_wake_two_while_one_spins),
    TEST(blocked_receivers_get_one_each),
    TEST(receivers_with_and_without_a_time_get_one_each),
    TEST(poller_does_not_keep_a_receivers_wake_up),
    TEST(end_of_file_is_seen_by_all_who_sleep),
    TEST(death_of_the_last_sender_is_seen_when_its_parent_notes_it),
    TEST(death_of_the_last_receiver_is_seen_when_its_parent_notes_it),
    TEST(sleeper_is_interrupted_by_a_signal),
    TEST(killed_sleepers_cost_one_futile_wake_up),
    TEST(message_whose_wake_up_was_lost_is_taken_by_the_next_to_watch),
    TEST(killed_spinner_costs_a_while),
    TEST(killed_backup_costs_a_while),
    TEST(forged_time_does_not_keep_a_message_from_a_sleeper),
    TEST(backup_takes_what_was_left_behind),
    TEST(backup_that_leaves_hands_the_rest_on),
    TEST(senders_are_woken_one_by_one_then_all),
    TEST(killed_sender_does_not_keep_the_others_out),
    TEST(sender_finds_room_at_its_watch),
    TEST(places_behind_a_stopped_head_wake_one_sender_each),
    TEST(sender_that_waits_for_room_sees_that_nobody_receives),
    TEST(one_sender_and_four_receivers_lose_and_double_nothing),
    TEST(four_senders_and_four_receivers_lose_and_double_nothing),
    TEST(every_burst_is_taken_though_nobody_watches_soon),
    TEST(receivers_killed_at_random_hold_nobody_up),
    TEST(threads_wake_each_other),
};
RUN_TESTS(tests)
