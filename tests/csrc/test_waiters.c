/* Waiters: who of the receivers looks, sleeps or stands guard, who of the senders waits for room, and
   who wakes them.

   Most is done by hand: a test is now this receiver, now that sender, and "sleepers" are a number in
   the ring, for whether somebody would have been woken is seen by the bell.  The waiting code proper is
   included once more under other names, with a clock that can be set and a hook in the middle of what
   is one step elsewhere.  Hammers at the end. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int64_t skew;                              /* of the clock, below */
static void (*before_looking_word)(void);         /* is next written, below */
static mpshm_arena *arena;
static struct ring *ring;

static int64_t
set_now_ns(void)
{
    return now_ns() + skew;
}

static void
hook(const volatile void *at)
{
    void (*what)(void) = before_looking_word;

    if (what != NULL && at == (const volatile void *) &ring->spin_until_ns) {
        before_looking_word = NULL;
        what();
    }
}

#define now_ns set_now_ns
#define waiters_call set_waiters_call
#define waiters_rouse set_waiters_rouse
#define waiters_let_in set_waiters_let_in
#define waiters_room set_waiters_room
#define waiters_poll set_waiters_poll
#define waiter_init set_waiter_init
#define waiter_is_back set_waiter_is_back
#define waiter_took set_waiter_took
#define waiter_look set_waiter_look
#define waiter_sleep set_waiter_sleep
#define waiter_goes set_waiter_goes
#undef atomic_store
#define atomic_store(at, value) \
    (hook(at), atomic_store_explicit(at, value, memory_order_seq_cst))
#include "waiters.c"
#undef atomic_store
#define atomic_store(at, value) atomic_store_explicit(at, value, memory_order_seq_cst)
#undef now_ns
#undef waiters_call
#undef waiters_rouse
#undef waiters_let_in
#undef waiters_room
#undef waiters_poll
#undef waiter_init
#undef waiter_is_back
#undef waiter_took
#undef waiter_look
#undef waiter_sleep
#undef waiter_goes

#define FULL ((uint32_t) RING_SLOTS)
#define AT_ONCE MPSHM_SLOTS_AT_ONCE
#define AHEAD_NS INT64_C(900000000) /* nearly the most that counts as a time ahead */
#define SLOW_US 900000u
#define CREDIT 16 /* for many tries */
#define SECOND_NS INT64_C(1000000000)
/* Of messages that only a guard can have taken in time: the others are made to sleep for 3 s. */
#define GUARDED_NS (2 * SECOND_NS)

static mpshm_counts counts;
static mpshm_batch *batch;
static int ends[2], to_parent[2];

static void
open_ring_of(mpshm_geometry geometry)
{
    arena = arena_of(geometry);
    CHECK_EQ(0, mpshm_make_queue(arena, 0, 0, 0));
    make_pipe(ends);
    CHECK_EQ(0, pipe(to_parent));
    batch = batch_of(arena, &counts, ends[0], 0);
    ring = arena->ring;
    mpshm_reap(arena); /* be a peer: the first, before any child */
    skew = 0;
}

static void
open_ring(void)
{
    open_ring_of(tiny);
}

static void
end_ring(void)
{
    CHECK_EQ(0, ring_unread(arena));
    free_batch(batch);
    close(ends[0]);
    close(ends[1]);
    mpshm_arena_close(arena);
}

static void
put(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, MPSHM_NO_PLACE));
    }
}

static void
take_some(uint32_t count)
{
    static char frames[AT_ONCE * RING_FRAME_BYTES];

    arena_lock(arena);
    CHECK_EQ(count, take_and_let_in(arena, frames, count));
    arena_unlock(arena);
}

static void
take_all(void)
{
    for (uint32_t n; (n = ring_unread(arena)) > 0;) {
        take_some(n < AT_ONCE ? n : AT_ONCE);
    }
}

static uint32_t
bell(void)
{
    return atomic_load(&ring->bell);
}

static bool
is_ahead_now(_Atomic int64_t *until)
{
    int64_t left = atomic_load(until) - now_ns();

    return left > 0 && left < SECOND_NS;
}

/* Others, that are not there: only the bell says that they would have been woken. */
static void
others_sleep(uint32_t count)
{
    atomic_store(&ring->sleepers, count);
}

static void
another_looks(bool does)
{
    atomic_store(&ring->spin_until_ns, does ? (now_ns() + AHEAD_NS) & ~INT64_C(1) : 0);
}

static void
another_guards(bool does)
{
    atomic_store(&ring->backup_at_ns, does ? now_ns() + AHEAD_NS : 0);
}

/* Somebody else is the lookout for so long: nobody takes a message because it looked by chance. */
static void
nobody_looks_out(void)
{
    atomic_store(&ring->watchdog_at_ms, (uint64_t) (now_ns() / 1000000) + 5500);
}

static bool
was_rung(void)
{
    static uint32_t heard;
    bool rung = bell() != heard;

    heard = bell();
    return rung;
}

/* One that may look for long, and thinks it worth while. */
static mpshm_waiter
eager(void)
{
    mpshm_waiter waiter;

    waiter_init(&waiter, SLOW_US);
    waiter.spin.credit = CREDIT;
    return waiter;
}

static mpshm_waiter
quick(void)
{
    mpshm_waiter waiter = eager();

    for (int i = 0; i < 4; i++) {
        waiter.left_ns = now_ns();
        waiter_is_back(&waiter);
    }
    return waiter;
}

/* It takes one message, and leaves with it. */
static void
leave_with_one(mpshm_waiter *waiter)
{
    char frame[RING_FRAME_BYTES];

    arena_lock(arena);
    CHECK_EQ(1, take_and_let_in(arena, frame, 1));
    waiter_took(waiter, arena, 1);
    arena_unlock(arena);
}

/* It goes to sleep for a moment. */
static bool
nap(mpshm_waiter *waiter)
{
    return waiter_sleep(waiter, arena, ends[0], 1);
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

/* It does, and is the guard. */
static void
nap_on_guard(mpshm_waiter *waiter)
{
    CHECK_EQ(false, nap(waiter));
    CHECK_EQ(waiter->guard_ns, atomic_load(&ring->backup_at_ns));
    CHECK(waiter->guard_ns != 0);
}

/* A child that receives one message, with a batch that does not look again. */
static int
blocked_receiver(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(7, receive_patiently(batch));
        go(to_parent);
        _exit(0);
    }
    return pid;
}

/* A child that sleeps, and is the guard, because another looks or has promised. */
static int
guard(void)
{
    atomic_store(&ring->spin_until_ns, now_ns() + AHEAD_NS);
    int pid = blocked_receiver();

    while (!is_ahead_now(&ring->backup_at_ns)) {
        another_looks(true);
        nobody_looks_out();
        sched_yield();
    }
    return pid;
}

/* Looking. */

static void
one_receiver_looks_at_a_time(void)
{
    mpshm_waiter first = eager(), second = eager();

    open_ring();
    another_looks(true);
    int64_t until = atomic_load(&ring->spin_until_ns);

    CHECK_EQ(-EAGAIN, waiter_look(&first, arena));
    CHECK_EQ(false, first.looks);
    CHECK_EQ(0, first.spin.spun); /* it did not even begin */
    CHECK_EQ(until, atomic_load(&ring->spin_until_ns));
    another_looks(false);
    put(1);
    CHECK_EQ(1, waiter_look(&first, arena));
    CHECK_EQ(true, first.looks);
    CHECK(is_ahead_now(&ring->spin_until_ns));
    CHECK_EQ(-EAGAIN, waiter_look(&second, arena));
    CHECK_EQ(1, waiter_look(&first, arena)); /* it itself may */
    leave_with_one(&first);
    CHECK_EQ(0, atomic_load(&ring->spin_until_ns));
    CHECK_EQ(false, first.looks);
    put(1);
    CHECK_EQ(1, waiter_look(&second, arena));
    leave_with_one(&second);
    end_ring();
}

static void
one_who_looked_in_vain_sleeps_and_says_so(void)
{
    mpshm_waiter waiter;

    open_ring();
    waiter_init(&waiter, 1000);
    waiter.spin.credit = CREDIT;
    CHECK_EQ(-EINTR, waiter_look(&waiter, arena));
    CHECK_EQ(true, waiter.looks);
    CHECK_EQ(-EAGAIN, waiter_look(&waiter, arena));
    another_looks(true); /* what is there is what it said: it may not yet be over */
    CHECK_EQ(false, nap(&waiter));
    CHECK_EQ(false, waiter.looks);
    CHECK_EQ(0, atomic_load(&ring->spin_until_ns));
    CHECK_EQ(0, atomic_load(&ring->sleepers));
    end_ring();
}

static void
message_wakes_nobody_while_one_looks(void)
{
    open_ring();
    others_sleep(3);
    (void) was_rung();
    another_looks(true);
    put(1);
    CHECK_EQ(false, was_rung());
    another_looks(false);
    put(1);
    CHECK_EQ(true, was_rung());
    atomic_store(&ring->spin_until_ns, now_ns() - 1); /* it gave up, or was killed */
    put(1);
    CHECK_EQ(true, was_rung());
    others_sleep(0);
    put(1);
    CHECK_EQ(false, was_rung());
    take_all();
    end_ring();
}

static void
three_messages_wake_two_while_one_looks(void)
{
    static const uint32_t sizes[] = {1, 1, 1};
    int pids[3];

    open_ring();
    for (int i = 0; i < 3; i++) {
        pids[i] = sleeper(ring, to_parent);
    }
    another_looks(true);
    CHECK_EQ(3, mpshm_queue_put_some(END(arena, ends[1]), "abc", sizes, 3, MPSHM_NO_PLACE));
    CHECK_EQ(2, woken_within(LONG_MS, 2));
    CHECK_EQ(0, woken_within(50, 1));
    waiters_call(arena, INT_MAX);
    for (int i = 0; i < 3; i++) {
        wait_child(pids[i]);
    }
    take_all();
    end_ring();
}

static void
one_who_looked_leaves_what_remains_to_a_sleeper(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    others_sleep(1);
    (void) was_rung();
    put(1);
    CHECK_EQ(true, was_rung());
    CHECK_EQ(1, waiter_look(&waiter, arena));
    put(1);
    CHECK_EQ(false, was_rung()); /* it looks */
    leave_with_one(&waiter);
    CHECK_EQ(true, was_rung());
    CHECK_EQ(1, waiter_look(&waiter, arena));
    leave_with_one(&waiter);
    CHECK_EQ(false, was_rung()); /* nothing remains */
    others_sleep(0);
    end_ring();
}

/* Promises. */

static void
four_times_back_soon_is_quick(void)
{
    mpshm_waiter waiter = eager();

    waiter_is_back(&waiter); /* nobody slept when it left */
    CHECK_EQ(0, waiter.quick);
    for (uint32_t i = 1; i <= 6; i++) {
        waiter.left_ns = now_ns();
        waiter_is_back(&waiter);
        CHECK_EQ(i < 4 ? i : 4, waiter.quick);
        CHECK_EQ(0, waiter.left_ns);
    }
    waiter.left_ns = now_ns() - SLOW_US * INT64_C(1000);
    waiter_is_back(&waiter);
    CHECK_EQ(0, waiter.quick);
    waiter_init(&waiter, 0); /* who never looks again is never quick */
    waiter.left_ns = now_ns() - 1;
    waiter_is_back(&waiter);
    CHECK_EQ(0, waiter.quick);
}

static void
quick_receiver_promises_with_a_guard_only(void)
{
    for (int case_ = 0; case_ < 8; case_++) {
        bool guarded = case_ & 1, is_quick = case_ & 2, slept = case_ & 4;
        mpshm_waiter waiter = is_quick ? quick() : eager();

        open_ring();
        others_sleep(slept);
        another_guards(guarded);
        put(1);
        leave_with_one(&waiter);
        bool promised = guarded && is_quick && slept;

        CHECK_EQ(promised, is_ahead_now(&ring->spin_until_ns));
        CHECK_EQ(promised, waiter.looks);
        CHECK_EQ(slept, waiter.left_ns != 0);
        others_sleep(0);
        end_ring();
    }
}

static void
promise_is_not_given_anew_for_each_message(void)
{
    mpshm_waiter waiter = quick();

    open_ring();
    others_sleep(1);
    another_guards(true);
    put(3);
    leave_with_one(&waiter);
    int64_t until = atomic_load(&ring->spin_until_ns);

    leave_with_one(&waiter);
    CHECK_EQ(until, atomic_load(&ring->spin_until_ns));
    atomic_store(&ring->spin_until_ns, now_ns() + 1000000);
    leave_with_one(&waiter);
    CHECK(atomic_load(&ring->spin_until_ns) > now_ns() + 2000000);
    others_sleep(0);
    end_ring();
}

static void
promise_ends_with_the_guard(void)
{
    mpshm_waiter waiter = quick();

    open_ring();
    others_sleep(1);
    another_guards(true);
    put(3);
    leave_with_one(&waiter);
    CHECK(is_ahead_now(&ring->spin_until_ns));
    (void) was_rung();
    another_guards(false);
    leave_with_one(&waiter);
    CHECK_EQ(0, atomic_load(&ring->spin_until_ns));
    CHECK_EQ(true, was_rung()); /* for the third */
    leave_with_one(&waiter);
    CHECK_EQ(false, was_rung());
    others_sleep(0);
    end_ring();
}

static void
end_guard(void)
{
    another_guards(false);
}

/* The guard resigns after the promiser has seen it, and before it promises. */
static void
promise_crossed_by_the_guards_resignation_is_none(void)
{
    mpshm_waiter waiter = quick();
    char frame[RING_FRAME_BYTES];

    open_ring();
    others_sleep(1);
    another_guards(true);
    put(2);
    (void) was_rung();
    before_looking_word = end_guard;
    arena_lock(arena);
    CHECK_EQ(1, take_and_let_in(arena, frame, 1));
    set_waiter_took(&waiter, arena, 1);
    arena_unlock(arena);
    CHECK(before_looking_word == NULL); /* it was about to promise */
    CHECK_EQ(0, atomic_load(&ring->spin_until_ns));
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

static void
back_and_with_nothing_to_do_it_takes_its_promise_back(void)
{
    mpshm_waiter waiter = quick();

    open_ring();
    others_sleep(1);
    another_guards(true);
    put(1);
    leave_with_one(&waiter);
    CHECK(is_ahead_now(&ring->spin_until_ns));
    waiter.spin.credit = 0;
    waiter.spin.waits = 0;
    CHECK_EQ(-EAGAIN, waiter_look(&waiter, arena));
    CHECK_EQ(false, nap(&waiter));
    CHECK_EQ(0, atomic_load(&ring->spin_until_ns));
    others_sleep(0);
    end_ring();
}

static void
message_under_a_guarded_promise_wakes_nobody(void)
{
    mpshm_waiter waiter = quick();

    open_ring();
    others_sleep(5);
    another_guards(true);
    put(1);
    leave_with_one(&waiter);
    (void) was_rung();
    for (uint32_t i = 1; i <= 64; i++) {
        another_guards(true);
        another_looks(true);
        put(1);
        CHECK_EQ(i, ring_unread(arena));
        CHECK_EQ(false, was_rung());
    }
    put(1);
    CHECK_EQ(65, ring_unread(arena));
    CHECK_EQ(true, was_rung()); /* more than that are too many */
    take_some(1);
    put(1);
    CHECK_EQ(true, was_rung());
    take_some(2);
    another_guards(true);
    another_looks(true);
    put(1);
    CHECK_EQ(64, ring_unread(arena));
    CHECK_EQ(false, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

/* The guard. */

static void
one_sleeper_stands_guard_while_another_looks(void)
{
    mpshm_waiter first = eager(), second = eager();

    open_ring();
    CHECK_EQ(false, nap(&first));
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns)); /* for whom? */
    another_looks(true);
    CHECK_EQ(false, waiter_sleep(&first, arena, ends[0], -1)); /* not for long */
    CHECK(first.guard_ns != 0);
    CHECK_EQ(first.guard_ns, atomic_load(&ring->backup_at_ns));
    another_guards(true);
    first.guard_ns = atomic_load(&ring->backup_at_ns); /* for a test is slow */
    nobody_looks_out();
    CHECK_EQ(false, nap(&second));
    CHECK_EQ(0, second.guard_ns);
    CHECK_EQ(first.guard_ns, atomic_load(&ring->backup_at_ns));
    CHECK_EQ(false, nap(&first)); /* it goes on */
    CHECK(first.guard_ns != 0);
    CHECK_EQ(first.guard_ns, atomic_load(&ring->backup_at_ns));
    end_ring();
}

static void
guard_resigns_when_nobody_looks(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    another_looks(true);
    nap_on_guard(&waiter);
    another_looks(false);
    CHECK_EQ(false, nap(&waiter));
    CHECK_EQ(0, waiter.guard_ns);
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    end_ring();
}

static void
one_in_a_shared_flood_guards_with_nobody_looking_yet(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    waiter.shared = true;
    nap_on_guard(&waiter);
    waiter.shared = false;
    CHECK_EQ(false, nap(&waiter));
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    end_ring();
}

static void
late_guard_is_replaced_and_does_not_end_the_new_ones(void)
{
    mpshm_waiter late = eager(), next = eager();

    open_ring();
    another_looks(true);
    CHECK_EQ(false, nap(&late));
    late.guard_ns = now_ns() - 1;
    atomic_store(&ring->backup_at_ns, late.guard_ns); /* it was stopped meanwhile */
    CHECK_EQ(false, nap(&next));
    CHECK(next.guard_ns != 0);
    another_guards(true);
    next.guard_ns = atomic_load(&ring->backup_at_ns);
    waiter_goes(&late, arena);
    CHECK_EQ(0, late.guard_ns);
    CHECK_EQ(next.guard_ns, atomic_load(&ring->backup_at_ns));
    late.guard_ns = 7;
    CHECK_EQ(false, nap(&late));
    CHECK_EQ(0, late.guard_ns);
    CHECK_EQ(next.guard_ns, atomic_load(&ring->backup_at_ns));
    end_ring();
}

static void
guard_that_leaves_calls_another_to_guard(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    another_looks(true);
    CHECK_EQ(false, nap(&waiter));
    others_sleep(1);
    (void) was_rung();
    waiter_goes(&waiter, arena);
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    CHECK_EQ(true, was_rung());
    waiter_goes(&waiter, arena); /* once */
    CHECK_EQ(false, was_rung());
    CHECK_EQ(false, nap(&waiter));
    another_looks(false);
    waiter_goes(&waiter, arena);
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    CHECK_EQ(false, was_rung()); /* nobody counts on it, and nothing is left behind */
    others_sleep(0);
    end_ring();
}

/* The same through the front door: the second sleeper takes its place. */
static void
guard_that_leaves_is_succeeded(void)
{
    open_ring();
    int first = guard(), second;

    second = blocked_receiver();
    wait_sleepers(ring, 2);
    int64_t was = atomic_load(&ring->backup_at_ns);

    another_looks(true);
    nobody_looks_out();
    waiters_call(arena, 1);
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    int status, gone;

    while ((gone = waitpid(-1, &status, 0)) == -1) {
    }
    CHECK_EQ(0, status);
    int64_t since = now_ns();

    do { /* whichever it was */
        another_looks(true);
        nobody_looks_out();
        CHECK(now_ns() - since < GUARDED_NS);
        sched_yield();
    } while (!is_ahead_now(&ring->backup_at_ns) || atomic_load(&ring->backup_at_ns) <= was);
    another_looks(false);
    put(1);
    wait_child(gone == first ? second : first);
    end_ring();
}

static void
guard_takes_what_was_left_behind(void)
{
    open_ring();
    int pid = guard();

    nobody_looks_out();
    (void) was_rung();
    /* A promise that will not be kept; the guard may be late for a while where others are busy. */
    do {
        another_looks(true);
    } while (!is_ahead_now(&ring->backup_at_ns));
    int64_t since = now_ns();

    put(1);
    bool rung = was_rung();

    another_looks(false); /* its time is over */
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    CHECK(rung || now_ns() - since < GUARDED_NS);
    wait_child(pid);
    end_ring();
}


static void
promiser_that_is_stopped_costs_a_while(void)
{
    for (int killed = 0; killed < 2; killed++) {
        mpshm_waiter promiser = quick();

        open_ring();
        int pid = guard();
        int64_t since;
        bool promised = false, rung;

        nobody_looks_out();
        /* The promiser is we: a process that takes a message, promises, and is never heard of again.
           The message is put and taken in one go, lest the guard have it. */
        while (!promised) {
            arena_lock(arena);
            atomic_store(&ring->spin_until_ns, now_ns() + 1000000);
            promiser.looks = true;
            if (is_ahead_now(&ring->backup_at_ns)) {
                promiser.spin.ns = killed ? 50000 : 30000000;
                waiter_took(&promiser, arena, 1);
                promised = promiser.looks;
            }
            arena_unlock(arena);
        }
        (void) was_rung();
        since = now_ns();
        put(1);
        rung = was_rung();
        CHECK_EQ(1, woken_within(LONG_MS, 1));
        CHECK(rung || now_ns() - since < GUARDED_NS);
        wait_child(pid);
        end_ring();
    }
}

/* Killed, and everybody else asleep.  The lookout has it, or one of the others in 3 s. */
static void
killed_guard_costs_a_while(void)
{
    open_ring();
    int first = guard(), second = blocked_receiver();

    wait_sleepers(ring, 2);
    kill_child(first);
    another_looks(true);
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(second);
    end_ring();
}

static void
killed_looker_costs_a_while(void)
{
    open_ring();
    int sleeping = blocked_receiver();

    wait_sleepers(ring, 1);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_batch *its = batch_of(arena, &counts, ends[0], SLOW_US);

        its->waiter.spin.credit = CREDIT;
        (void) mpshm_queue_receive(its, 1, -1);
        pause();
    }
    while (!is_ahead_now(&ring->spin_until_ns)) {
        sched_yield();
    }
    kill_child(pid);
    put(1);
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(sleeping);
    end_ring();
}

/* Timed receives. */

static void
timed_receiver_that_gives_up_is_no_guard(void)
{
    open_ring();
    another_looks(true);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 1));
        CHECK_EQ(0, batch->waiter.guard_ns);
        CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    }
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, -1)); /* one that comes again */
    CHECK(batch->waiter.guard_ns != 0);
    CHECK_EQ(batch->waiter.guard_ns, atomic_load(&ring->backup_at_ns));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 0));
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
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

/* Senders. */

static void
senders_are_let_in_at_each_mark(void)
{
    open_ring();
    put(FULL);
    atomic_store(&ring->crowd, FULL / 2);
    uint32_t room = atomic_load(&ring->room), mark = FULL / 2;

    for (uint32_t left = FULL; left-- > 0;) {
        take_some(1);
        if (mark != 0 && left == mark) {
            room++;
            mark = mark == 8 ? 0 : mark / 2;
        }
        CHECK_EQ(room, atomic_load(&ring->room));
        CHECK_EQ(mark, atomic_load(&ring->crowd));
    }
    CHECK_EQ(0, mark);
    end_ring();
}

static void
senders_are_woken_one_by_one_then_all(void)
{
    enum { SENDERS = 9 };
    int pids[SENDERS], awake = 0;

    open_ring();
    put(FULL);
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = waiting_sender(arena, ends[1], to_parent);
    }
    for (uint32_t left = FULL; left-- > 0;) {
        take_some(1);
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
    CHECK_EQ(0, atomic_load(&ring->crowd));
    end_ring();
}

/* The one that is let in is killed before it puts anything. */
static void
killed_sender_does_not_keep_the_others_out(void)
{
    enum { SENDERS = 4 };
    int pids[SENDERS];

    open_ring();
    put(FULL);
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = waiting_sender(arena, ends[1], to_parent);
    }
    kill_child(pids[0]);
    kill_child(pids[1]);
    for (uint32_t left = FULL; left > 0; left--) {
        take_some(1);
    }
    CHECK_EQ(2, woken_within(LONG_MS, 2));
    wait_child(pids[2]);
    wait_child(pids[3]);
    end_ring();
}

static void
sender_alone_is_not_forgotten_while_the_ring_fills_again(void)
{
    open_ring();
    put(FULL);
    int pid = waiting_sender(arena, ends[1], to_parent);

    for (int round = 0; round < 3; round++) { /* others are always quicker */
        take_some(9);
        put(9);
    }
    CHECK_EQ(FULL / 2, atomic_load(&ring->crowd));
    take_all();
    CHECK_EQ(1, woken_within(LONG_MS, 1));
    wait_child(pid);
    end_ring();
}

/* Garbage. */

static void
look_at_garbage(void)
{
    mpshm_waiter waiter = quick();

    waiter.spin.ns = 1000000;
    put(2);
    (void) mpshm_queue_receive(batch, 1, 0);
    (void) mpshm_queue_receive(batch, 1, 1);
    (void) mpshm_queue_receive(batch, 9, 1);
    (void) waiter_look(&waiter, arena);
    (void) nap(&waiter);
    put(2);
    arena_lock(arena);
    waiter_took(&waiter, arena, 1);
    arena_unlock(arena);
    waiter_goes(&waiter, arena);
    waiter.guard_ns = atomic_load(&ring->backup_at_ns);
    (void) nap(&waiter);
    waiter_goes(&waiter, arena);
    (void) mpshm_queue_poll(batch->end, 1);
    (void) mpshm_queue_wait_room(END(arena, ends[1]), 1);
    take_all();
}

static void
forged_times_hold_nobody_up(void)
{
    open_ring();
    for (int round = 0; round < 24; round++) {
        int64_t now = now_ns();
        int64_t garbage[] = {1, INT64_MAX, now, now + 1, now - 1, now + SECOND_NS - 1,
                             now + 2 * SECOND_NS, -1};
        int64_t value = garbage[round / 3];

        atomic_store(round % 3 == 0 ? &ring->spin_until_ns : &ring->backup_at_ns, value);
        if (round % 3 == 2) {
            atomic_store(&ring->spin_until_ns, value);
            atomic_store(&ring->watchdog_at_ms, (uint64_t) value);
        }
        others_sleep(1 + (uint32_t) round * 0x1357);
        look_at_garbage();
    }
    end_ring();
}

static void
forged_counts_hold_nobody_up(void)
{
    static const uint32_t garbage[] = {1, 7, 8, 9, 255, 257, 0x8000, 0xffff, 0x10000, 0x7fffffff,
                                       0x80000000, UINT32_MAX};

    open_ring();
    for (uint32_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        atomic_store(&ring->crowd, garbage[i]);
        atomic_store(&ring->sleepers, garbage[i]);
        atomic_store(&ring->bell, garbage[i]);
        atomic_store(&ring->room, garbage[i]);
        look_at_garbage();
        atomic_store(&ring->crowd, garbage[i]);
        put(FULL);
        take_all();
        put(FULL);
        CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(arena, ends[1]), 1));
        take_all();
        CHECK_EQ(0, mpshm_queue_wait_room(END(arena, ends[1]), 1));
    }
    end_ring();
}

/* A word that says somebody looks, or guards, for ever is not believed: a sleeper still gets its
   message. */
static void
forged_time_does_not_keep_a_message_from_a_sleeper(void)
{
    open_ring();
    for (int i = 0; i < 3; i++) {
        int pid = blocked_receiver();

        wait_sleepers(ring, 1);
        int64_t for_ever = i == 0 ? INT64_MAX : now_ns() + 3600 * SECOND_NS;

        atomic_store(&ring->spin_until_ns, for_ever);
        atomic_store(&ring->backup_at_ns, i == 2 ? 0 : for_ever);
        put(1);
        CHECK_EQ(1, woken_within(LONG_MS, 1));
        wait_child(pid);
    }
    end_ring();
}

/* Found by reading: what is left behind between two who count on each other. */

/* It took one under a promise, and left one to who promised; by the time that it goes the promise is
   over. */
static void
guard_that_leaves_messages_behind_calls_another(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    another_looks(true);
    CHECK_EQ(false, nap(&waiter));
    another_guards(true);
    waiter.guard_ns = atomic_load(&ring->backup_at_ns);
    others_sleep(2);
    (void) was_rung();
    put(2);
    leave_with_one(&waiter);
    CHECK_EQ(false, was_rung());
    another_looks(false);
    waiter_goes(&waiter, arena);
    CHECK_EQ(0, atomic_load(&ring->backup_at_ns));
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

/* The same, but what was put came when it had taken its own already. */
static void
message_put_while_the_guard_leaves_wakes_another(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    another_looks(true);
    CHECK_EQ(false, nap(&waiter));
    put(1);
    leave_with_one(&waiter);
    another_looks(true);
    another_guards(true);
    waiter.guard_ns = atomic_load(&ring->backup_at_ns);
    others_sleep(1);
    (void) was_rung();
    put(1);
    CHECK_EQ(false, was_rung());
    skew = 2 * AHEAD_NS;
    set_waiter_goes(&waiter, arena);
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

/* It saw a message, another was quicker, and its time is over. */
static void
receiver_that_gives_up_looks_no_longer(void)
{
    open_ring();
    batch->waiter = eager();
    put(1);
    CHECK_EQ(1, waiter_look(&batch->waiter, arena));
    take_some(1);
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 0));
    others_sleep(1);
    (void) was_rung();
    put(1);
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

/* One was put while it looked, and so woke nobody. */
static void
receiver_that_gives_up_leaves_what_is_there_to_a_sleeper(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    put(1);
    CHECK_EQ(1, waiter_look(&waiter, arena));
    take_some(1);
    others_sleep(1);
    (void) was_rung();
    put(1);
    CHECK_EQ(false, was_rung());
    waiter_goes(&waiter, arena); /* as mpshm_queue_receive has it go, when it was too slow once more */
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

static void
promise_without_a_guard_counts_for_nothing(void)
{
    mpshm_waiter waiter = quick();

    open_ring();
    others_sleep(1);
    another_guards(true);
    put(1);
    leave_with_one(&waiter);
    CHECK(is_ahead_now(&ring->spin_until_ns));
    another_guards(false); /* it left, and called another, who left as well */
    (void) was_rung();
    put(1);
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

static void
somebody_sleeps_and_a_message_comes(void)
{
    others_sleep(1);
    put(1);
}

static void
sleeper_that_comes_while_one_stops_looking_is_not_forgotten(void)
{
    mpshm_waiter waiter = eager();
    char frame[RING_FRAME_BYTES];

    open_ring();
    put(1);
    CHECK_EQ(1, set_waiter_look(&waiter, arena));
    arena_lock(arena);
    CHECK_EQ(1, take_and_let_in(arena, frame, 1));
    arena_unlock(arena);
    before_looking_word = somebody_sleeps_and_a_message_comes; /* it has seen that nobody does */
    (void) was_rung();
    set_waiter_took(&waiter, arena, 1);
    CHECK(before_looking_word == NULL);
    CHECK_EQ(true, was_rung());
    take_all();
    others_sleep(0);
    end_ring();
}

static void
all_senders_are_let_in_before_the_ring_is_empty(void)
{
    open_ring();
    for (uint32_t at_once = 2; at_once <= AT_ONCE; at_once += 10) {
        put(FULL);
        atomic_store(&ring->crowd, FULL / 2);
        for (uint32_t left = FULL; left > 0;) {
            uint32_t n = left < at_once ? left : at_once;

            take_some(n);
            left -= n;
        }
        CHECK_EQ(0, atomic_load(&ring->crowd));
    }
    end_ring();
}

static void
extreme_words_are_no_overflow(void)
{
    open_ring();
    for (int i = 0; i < 3; i++) {
        atomic_store(i == 0 ? &ring->spin_until_ns : &ring->backup_at_ns, INT64_MIN);
        others_sleep(1);
        look_at_garbage();
        if (i == 2) {
            mpshm_waiter waiter = eager();

            waiter.spin.ns = 1000000;
            atomic_store(&ring->head, UINT64_C(1) << 61);
            waiter.seen_head = 1;
            (void) waiter_look(&waiter, arena);
            atomic_store(&ring->head, 0);
        }
    }
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
    CHECK(arena->overflow != NULL);
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
    while ((n = mpshm_queue_put_one(END(arena, ends[1]), data, size, MPSHM_NO_PLACE)) == -EAGAIN) {
        n = mpshm_queue_wait_room(END(arena, ends[1]), 20);
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

/* A burst, and all of it is to be taken before the next.  Nobody looks out, so a message that was
   forgotten would stay for three seconds. */
static void
every_burst_is_taken_though_nobody_looks_out(void)
{
    int receiving[MOST_CREW];
    unsigned seed = 1;
    uint32_t seq = 0;

    open_hammer();
    nobody_looks_out();
    for (uint32_t i = 0; i < MOST_CREW; i++) {
        receiving[i] = hammer_receiver(i, false);
    }
    for (int64_t end = now_ns() + 3 * SECOND_NS / 2; now_ns() < end;) {
        uint32_t count = 1 + (uint32_t) rand_r(&seed) % (rand_r(&seed) % 2 ? 6 : 100);
        int64_t since = now_ns();

        nobody_looks_out();
        while (count-- > 0 && seq < MOST_NOTES) {
            put_note(0, seq++);
        }
        while (atomic_load(&shared->got) < atomic_load(&shared->put)) {
            CHECK(now_ns() - since < GUARDED_NS);
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

    CHECK_EQ(0, ring_unread(arena));
    CHECK(atomic_load(&shared->got) <= put_in_all);
    CHECK(atomic_load(&shared->got) + kills >= put_in_all);
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    end_ring();
}

static const struct test tests[] = {
    TEST(one_receiver_looks_at_a_time),
    TEST(one_who_looked_in_vain_sleeps_and_says_so),
    TEST(message_wakes_nobody_while_one_looks),
    TEST(three_messages_wake_two_while_one_looks),
    TEST(one_who_looked_leaves_what_remains_to_a_sleeper),
    TEST(four_times_back_soon_is_quick),
    TEST(quick_receiver_promises_with_a_guard_only),
    TEST(promise_is_not_given_anew_for_each_message),
    TEST(promise_ends_with_the_guard),
    TEST(promise_crossed_by_the_guards_resignation_is_none),
    TEST(back_and_with_nothing_to_do_it_takes_its_promise_back),
    TEST(message_under_a_guarded_promise_wakes_nobody),
    TEST(one_sleeper_stands_guard_while_another_looks),
    TEST(guard_resigns_when_nobody_looks),
    TEST(one_in_a_shared_flood_guards_with_nobody_looking_yet),
    TEST(late_guard_is_replaced_and_does_not_end_the_new_ones),
    TEST(guard_that_leaves_calls_another_to_guard),
    TEST(guard_that_leaves_is_succeeded),
    TEST(guard_takes_what_was_left_behind),
    TEST(promiser_that_is_stopped_costs_a_while),
    TEST(killed_guard_costs_a_while),
    TEST(killed_looker_costs_a_while),
    TEST(timed_receiver_that_gives_up_is_no_guard),
    TEST(receivers_with_and_without_a_time_get_one_each),
    TEST(senders_are_let_in_at_each_mark),
    TEST(senders_are_woken_one_by_one_then_all),
    TEST(killed_sender_does_not_keep_the_others_out),
    TEST(sender_alone_is_not_forgotten_while_the_ring_fills_again),
    TEST(forged_times_hold_nobody_up),
    TEST(forged_counts_hold_nobody_up),
    TEST(forged_time_does_not_keep_a_message_from_a_sleeper),
    TEST(guard_that_leaves_messages_behind_calls_another),
    TEST(message_put_while_the_guard_leaves_wakes_another),
    TEST(receiver_that_gives_up_looks_no_longer),
    TEST(receiver_that_gives_up_leaves_what_is_there_to_a_sleeper),
    TEST(promise_without_a_guard_counts_for_nothing),
    TEST(sleeper_that_comes_while_one_stops_looking_is_not_forgotten),
    TEST(all_senders_are_let_in_before_the_ring_is_empty),
    TEST(extreme_words_are_no_overflow),
    TEST(one_sender_and_four_receivers_lose_and_double_nothing),
    TEST(four_senders_and_four_receivers_lose_and_double_nothing),
    TEST(every_burst_is_taken_though_nobody_looks_out),
    TEST(receivers_killed_at_random_hold_nobody_up),
};
RUN_TESTS(tests)
