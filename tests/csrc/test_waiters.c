/* Waiters, by hand: which receiver spins or is the backup, whom a message wakes, who watches when.

   A test is now this receiver, now that sender.  The other sleepers are not there: that one would have
   been woken is seen by the event count.  The waiting code is included once more under other names, with
   a clock that can be set, and futexes that only say what they would have done.  test_wakeups.c has
   processes that do sleep. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

static int64_t skew;                /* of the clock, below */
static int woken;                   /* by each call, or all that were asked for */
static int wakes;                   /* calls */
static void (*before_waking)(void); /* called once, before the next wake-up */
static void (*before_sleeping)(void);
static int slept_ms;                /* how long a process would have slept; -1: not at all */

static int64_t
set_now_ns(void)
{
    return now_ns() + skew;
}

static int
set_futex_wake(_Atomic uint32_t *word, int most)
{
    void (*what)(void) = before_waking;

    (void) word;
    wakes++;
    if (what != NULL) {
        before_waking = NULL;
        what();
    }
    return woken < most ? woken : most;
}

static bool
set_futex_wait(_Atomic uint32_t *word, uint32_t value, int timeout_ms)
{
    void (*what)(void) = before_sleeping;

    if (what != NULL) {
        before_sleeping = NULL;
        what();
    }
    slept_ms = atomic_load(word) == value ? timeout_ms : -1;
    return true;
}

#define now_ns set_now_ns
#define futex_wait set_futex_wait
#define futex_wake set_futex_wake
#define watch_ms set_watch_ms
#define watch_is_over set_watch_is_over
#define watch_common_ms set_watch_common_ms
#define watch_common_is_over set_watch_common_is_over
#define watch_shorter set_watch_shorter
#include "watch.c"
#define waiters_look_round set_waiters_look_round
#define waiters_see_death set_waiters_see_death
#define waiters_call set_waiters_call
#define waiters_call_senders set_waiters_call_senders
#define waiters_rouse set_waiters_rouse
#define waiters_let_in set_waiters_let_in
#define waiters_room set_waiters_room
#define waiters_poll set_waiters_poll
#define waiter_init set_waiter_init
#define waiter_look set_waiter_look
#define waiter_sleep set_waiter_sleep
#define waiter_goes set_waiter_goes
#include "waking.c"
#include "waiters.c"

#define FULL ((uint32_t) RING_SLOTS)
#define AT_ONCE MPSHM_SLOTS_AT_ONCE
#define AHEAD_NS INT64_C(900000000) /* nearly the most that counts as a time ahead */
#define SLOW_US 900000u
#define CREDIT 16 /* for many tries */
#define SECOND_NS INT64_C(1000000000)
#define MS_NS INT64_C(1000000)

static mpshm_arena *arena;
static struct ring_head *ring;
static struct waiters *words;
static mpshm_counts counts;
static mpshm_batch *batch;
static int ends[2];

static void
open_ring(void)
{
    arena = queue_arena_of(tiny, 0, 0, 0);
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    ring = arena->zero.head;
    words = &arena->chain->waiters;
    mpshm_reap(arena); /* be a peer: the first, before any child */
    skew = wakes = 0;
    before_waking = before_sleeping = NULL;
    woken = INT_MAX;
}

static void
end_ring(void)
{
    CHECK_EQ(0, ring_count(arena, false));
    free_batch(batch);
    close_clean(arena);
}

/* As a sender does, but what it wakes is counted. */
static void
put(uint32_t count)
{
    static char frames[AT_ONCE * RING_FRAME_BYTES];
    uint32_t n;

    for (; count > 0; count -= n) {
        arena_lock(arena);
        n = put_frames(arena, ends[1], frames, count < AT_ONCE ? count : AT_ONCE);
        arena_unlock(arena);
        CHECK(n > 0);
        waiters_rouse(arena, (int) n);
    }
}

static void
take(uint32_t count)
{
    static char frames[AT_ONCE * RING_FRAME_BYTES];
    uint32_t n;

    for (; count > 0; count -= n) {
        arena_lock(arena);
        n = take_frames(arena, frames, count < AT_ONCE ? count : AT_ONCE);
        arena_unlock(arena);
        CHECK(n > 0);
        waiters_let_in(arena, (int) n);
    }
}

static void
take_all(void)
{
    take(ring_count(arena, false));
}

/* Whether there was a wake-up since this was asked last. */
static bool
was_woken(void)
{
    static uint32_t seen;
    uint32_t count = atomic_load(&words->wakeups) & ~MAY_SLEEP;
    bool changed = count != seen;

    seen = count;
    return changed;
}

static bool
is_ahead_now(_Atomic int64_t *until)
{
    int64_t left = atomic_load(until) - now_ns();

    return left > 0 && left < SECOND_NS;
}

static void
others_sleep(bool do_)
{
    atomic_store(&words->wakeups, (atomic_load(&words->wakeups) & ~MAY_SLEEP) | do_);
    (void) was_woken();
}

static void
another_spins(bool does)
{
    atomic_store(&words->spin_until_ns, does ? now_ns() + AHEAD_NS : 0);
}

static void
another_is_backup(bool is)
{
    atomic_store(&words->backup_at_ns, is ? now_ns() + AHEAD_NS : 0);
}

/* One that may spin for long, and thinks it worth while. */
static mpshm_waiter
eager(void)
{
    mpshm_waiter waiter;

    waiter_init(&waiter, SLOW_US);
    waiter.spin.credit = CREDIT;
    return waiter;
}

/* One that has measured a flood just now, and will not measure again for a while. */
static mpshm_waiter
flooded(void)
{
    mpshm_waiter waiter = eager();

    waiter.floods = true;
    waiter.measured_ns = now_ns();
    return waiter;
}

static void
leave_with_one(mpshm_waiter *waiter)
{
    take(1);
    waiter_goes(waiter, arena, 1);
}

static bool
nap(mpshm_waiter *waiter)
{
    return waiter_sleep(waiter, arena, ends[0], 1);
}

static void
nap_as_backup(mpshm_waiter *waiter)
{
    CHECK_EQ(false, nap(waiter));
    CHECK(waiter->backup_at_ns != 0);
    CHECK_EQ(waiter->backup_at_ns, atomic_load(&words->backup_at_ns));
    /* A test is slow. */
    waiter->backup_at_ns = now_ns() + AHEAD_NS;
    atomic_store(&words->backup_at_ns, waiter->backup_at_ns);
}

/* Spinning. */

static void
one_receiver_spins_at_a_time(void)
{
    mpshm_waiter first = eager(), second = eager();

    open_ring();
    another_spins(true);
    int64_t until = atomic_load(&words->spin_until_ns);

    CHECK_EQ(-EAGAIN, waiter_look(&first, arena));
    CHECK_EQ(0, first.spin_until_ns);
    CHECK_EQ(0, first.spin.spun); /* it did not even begin */
    CHECK_EQ(until, atomic_load(&words->spin_until_ns));
    another_spins(false);
    put(1);
    CHECK_EQ(1, waiter_look(&first, arena));
    CHECK_EQ(first.spin_until_ns, atomic_load(&words->spin_until_ns));
    CHECK(is_ahead_now(&words->spin_until_ns));
    CHECK_EQ(-EAGAIN, waiter_look(&second, arena));
    CHECK_EQ(1, waiter_look(&first, arena)); /* it itself may */
    leave_with_one(&first);
    CHECK_EQ(0, atomic_load(&words->spin_until_ns));
    CHECK_EQ(0, first.spin_until_ns);
    put(1);
    CHECK_EQ(1, waiter_look(&second, arena));
    leave_with_one(&second);
    end_ring();
}

static void
one_that_spun_in_vain_sleeps_and_says_so(void)
{
    mpshm_waiter waiter;

    open_ring();
    waiter_init(&waiter, 1000);
    waiter.spin.credit = CREDIT;
    CHECK_EQ(-EINTR, waiter_look(&waiter, arena));
    CHECK_EQ(waiter.spin_until_ns, atomic_load(&words->spin_until_ns));
    CHECK_EQ(-EAGAIN, waiter_look(&waiter, arena));
    CHECK_EQ(false, nap(&waiter));
    CHECK_EQ(0, waiter.spin_until_ns);
    CHECK_EQ(0, atomic_load(&words->spin_until_ns));
    CHECK_EQ(MAY_SLEEP, atomic_load(&words->wakeups));
    end_ring();
}

/* Its time is over, another spins now, and it is late to say that it does not. */
static void
late_spinner_does_not_end_the_next_ones_time(void)
{
    mpshm_waiter late = eager();

    open_ring();
    late.spin_until_ns = now_ns() - 1;
    another_spins(true);
    int64_t until = atomic_load(&words->spin_until_ns);

    waiter_goes(&late, arena, 0);
    CHECK_EQ(0, late.spin_until_ns);
    CHECK_EQ(until, atomic_load(&words->spin_until_ns));
    end_ring();
}

static void
message_wakes_nobody_while_one_spins(void)
{
    open_ring();
    others_sleep(true);
    another_spins(true);
    put(1);
    CHECK_EQ(false, was_woken());
    put(2);
    CHECK_EQ(true, was_woken()); /* for the second */
    another_spins(false);
    put(1);
    CHECK_EQ(true, was_woken());
    atomic_store(&words->spin_until_ns, now_ns() - 1); /* it gave up, or was killed */
    put(1);
    CHECK_EQ(true, was_woken());
    others_sleep(false);
    put(1);
    CHECK_EQ(false, was_woken());
    take_all();
    end_ring();
}

static void
one_that_spun_leaves_what_remains_to_a_sleeper(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    others_sleep(true);
    put(1);
    CHECK_EQ(true, was_woken());
    CHECK_EQ(1, waiter_look(&waiter, arena));
    put(1);
    CHECK_EQ(false, was_woken()); /* it spins */
    leave_with_one(&waiter);
    CHECK_EQ(true, was_woken());
    CHECK_EQ(1, waiter_look(&waiter, arena));
    leave_with_one(&waiter);
    CHECK_EQ(false, was_woken()); /* nothing remains */
    end_ring();
}

/* It saw a message, another was quicker, and its time is over; meanwhile one came that woke nobody. */
static void
receiver_that_gives_up_leaves_what_is_there_to_a_sleeper(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    put(1);
    CHECK_EQ(1, waiter_look(&waiter, arena));
    take(1);
    others_sleep(true);
    put(1);
    CHECK_EQ(false, was_woken());
    waiter_goes(&waiter, arena, 0);
    CHECK_EQ(0, atomic_load(&words->spin_until_ns));
    CHECK_EQ(true, was_woken());
    take_all();
    end_ring();
}

/* The backup. */

static void
one_sleeper_is_the_backup_in_a_flood(void)
{
    mpshm_waiter first = flooded(), second = flooded();

    open_ring();
    CHECK_EQ(false, waiter_sleep(&first, arena, ends[0], -1)); /* not for long */
    CHECK(first.backup_at_ns != 0);
    CHECK_EQ(first.backup_at_ns, atomic_load(&words->backup_at_ns));
    nap_as_backup(&first);
    CHECK_EQ(false, nap(&second));
    CHECK_EQ(0, second.backup_at_ns);
    CHECK_EQ(first.backup_at_ns, atomic_load(&words->backup_at_ns));
    nap_as_backup(&first); /* it goes on */
    first.floods = false;
    CHECK_EQ(false, nap(&first));
    CHECK_EQ(0, first.backup_at_ns);
    CHECK_EQ(0, atomic_load(&words->backup_at_ns));
    end_ring();
}

static void
message_wakes_nobody_while_there_is_a_backup(void)
{
    open_ring();
    others_sleep(true);
    another_is_backup(true);
    for (uint32_t i = 1; i <= 64; i++) {
        put(1);
        CHECK_EQ(false, was_woken());
    }
    put(1);
    CHECK_EQ(65, ring_count(arena, false));
    CHECK_EQ(true, was_woken()); /* more than that are too many */
    take(2);
    put(1);
    CHECK_EQ(false, was_woken());
    atomic_store(&words->backup_at_ns, now_ns() - 1); /* late, or killed */
    put(1);
    CHECK_EQ(true, was_woken());
    take_all();
    end_ring();
}

static void
late_backup_is_replaced_and_does_not_end_the_next_ones_time(void)
{
    mpshm_waiter late = flooded(), next = flooded();

    open_ring();
    nap_as_backup(&late);
    late.backup_at_ns = now_ns() - 1;
    atomic_store(&words->backup_at_ns, late.backup_at_ns); /* it was stopped meanwhile */
    nap_as_backup(&next);
    waiter_goes(&late, arena, 0);
    CHECK_EQ(0, late.backup_at_ns);
    CHECK_EQ(next.backup_at_ns, atomic_load(&words->backup_at_ns));
    late.backup_at_ns = 7;
    CHECK_EQ(false, nap(&late));
    CHECK_EQ(0, late.backup_at_ns);
    CHECK_EQ(next.backup_at_ns, atomic_load(&words->backup_at_ns));
    end_ring();
}

static void
backup_that_leaves_messages_behind_wakes_another(void)
{
    mpshm_waiter waiter = flooded();

    open_ring();
    for (int with = 0; with < 2; with++) {
        nap_as_backup(&waiter);
        others_sleep(true);
        put(2);
        CHECK_EQ(false, was_woken());
        take(1);
        waiter_goes(&waiter, arena, (uint32_t) with);
        CHECK_EQ(0, atomic_load(&words->backup_at_ns));
        CHECK_EQ(true, was_woken());
        take(1);
        waiter_goes(&waiter, arena, 0);
        CHECK_EQ(false, was_woken()); /* nothing is left behind */
        others_sleep(false);
    }
    end_ring();
}

/* It may be busy for long with what it took, and the others may be as well. */
static void
every_receiver_that_leaves_messages_behind_wakes_another(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    put(3);
    others_sleep(true);
    leave_with_one(&waiter);
    CHECK_EQ(true, was_woken());
    another_is_backup(true);
    leave_with_one(&waiter);
    CHECK_EQ(false, was_woken()); /* that one will see it */
    another_is_backup(false);
    leave_with_one(&waiter);
    CHECK_EQ(false, was_woken());
    end_ring();
}

/* Traffic: what the others took since it was measured last, and how long that is ago. */
static void
flood_is_what_others_take_quickly(void)
{
    static const struct {
        int64_t us;
        uint32_t all, own;
        bool floods;
    } cases[] = {
        {160, 16, 0, true}, {160, 15, 0, false}, {160, 16, 1, false}, {160, 500, 484, true},
        {160, 500, 485, false}, {1600, 160, 0, true}, {1600, 159, 0, false}, {1000000, 512, 0, false},
        {160, 0, 0, false},
    };

    open_ring();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mpshm_waiter waiter = {0};
        uint64_t taken = atomic_load(&ring->head);

        measure_traffic(&waiter, arena, SECOND_NS);
        CHECK_EQ(taken, waiter.measured_taken);
        put(cases[i].all);
        take_all();
        waiter.took = cases[i].own;
        measure_traffic(&waiter, arena, SECOND_NS + 159999); /* too early to say */
        CHECK_EQ(taken, waiter.measured_taken);
        measure_traffic(&waiter, arena, SECOND_NS + 1000 * cases[i].us);
        CHECK_EQ(cases[i].floods, waiter.floods);
        CHECK_EQ(0, waiter.took);
    }
    end_ring();
}

/* It comes back to the caller, who may not come again. */
static void
timed_receiver_that_gives_up_is_no_backup(void)
{
    open_ring();
    for (int i = 0; i < 3; i++) {
        batch->waiter.floods = true;
        batch->waiter.measured_ns = now_ns() + SECOND_NS; /* it does not measure now */
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 1));
        CHECK_EQ(0, batch->waiter.backup_at_ns);
        CHECK_EQ(0, atomic_load(&words->backup_at_ns));
    }
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, -1)); /* one that comes again */
    CHECK(batch->waiter.backup_at_ns != 0);
    CHECK_EQ(batch->waiter.backup_at_ns, atomic_load(&words->backup_at_ns));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 0));
    CHECK_EQ(0, atomic_load(&words->backup_at_ns));
    end_ring();
}

/* The event count. */

static void
wake_up_that_finds_nobody_clears_the_flag(void)
{
    open_ring();
    woken = 1;
    others_sleep(true);
    put(1);
    CHECK_EQ(1, wakes);
    CHECK_EQ(MAY_SLEEP, atomic_load(&words->wakeups) & MAY_SLEEP); /* there may be another */
    put(2);
    CHECK_EQ(0, atomic_load(&words->wakeups) & MAY_SLEEP);
    CHECK_EQ(3, wakes);
    put(1); /* nobody is left to wake, and no call is made */
    CHECK_EQ(3, wakes);
    take_all();
    end_ring();
}

static void
put_one(void)
{
    put(1);
}

/* It has said that it sleeps, and has looked for the last time. */
static void
receiver_that_is_about_to_sleep_does_not(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    woken = 0; /* for it does not sleep yet */
    before_sleeping = put_one;
    CHECK_EQ(true, waiter_sleep(&waiter, arena, ends[0], 1000));
    CHECK_EQ(-1, slept_ms);
    take(1);
    before_sleeping = put_one;
    CHECK_EQ(true, waiters_poll(arena, ends[0], 1000));
    CHECK_EQ(-1, slept_ms);
    take(1);
    end_ring();
}

static uint32_t late_count;

static void
a_receiver_is_about_to_sleep(void)
{
    late_count = atomic_fetch_or(&words->wakeups, MAY_SLEEP) | MAY_SLEEP;
    if (wakes == 1) {
        woken = 0; /* it does not sleep yet */
    }
}

/* The kernel has found nobody, and then one comes: it must not sleep with the flag cleared. */
static void
receiver_that_comes_before_the_flag_is_cleared_does_not_sleep(void)
{
    open_ring();
    others_sleep(true);
    before_waking = a_receiver_is_about_to_sleep;
    put(1);
    CHECK_EQ(2, wakes); /* the second wakes it if it had fallen asleep before */
    CHECK(late_count != atomic_load(&words->wakeups)); /* or it does not fall asleep */
    take_all();
    end_ring();
}

static void
another_wakes_as_well(void)
{
    woken = 0;
    (void) atomic_fetch_add(&words->wakeups, ONE_WAKE_UP);
}

static void
flag_stays_when_another_wakes_as_well(void)
{
    open_ring();
    others_sleep(true);
    before_waking = another_wakes_as_well;
    put(1);
    CHECK_EQ(1, wakes);
    CHECK_EQ(MAY_SLEEP, atomic_load(&words->wakeups) & MAY_SLEEP);
    take_all();
    end_ring();
}

/* Watches. */

static void
each_sleeper_watches_in_a_period_of_its_own(void)
{
    enum { SLEEPERS = 40 };
    uint32_t watch[SLEEPERS] = {0};

    open_ring();
    skew = (1000 * WATCH_MS - now_ns() / MS_NS) * MS_NS; /* the thousandth begins */
    for (int i = 0; i < SLEEPERS; i++) {
        int most = i < WATCHES ? i + 1 : WATCHES;

        CHECK_EQ(most * WATCH_MS, watch_ms(arena, &watch[i]));
        CHECK_EQ(1000 + most, watch[i]);
    }
    skew += 3 * WATCH_MS * MS_NS;
    CHECK_EQ(7 * WATCH_MS, watch_ms(arena, &watch[9])); /* it keeps the tenth */
    CHECK_EQ(1010, watch[9]);
    CHECK_EQ((WATCHES - 2) * WATCH_MS, watch_ms(arena, &watch[0]));
    CHECK_EQ((WATCHES - 1) * WATCH_MS, watch_ms(arena, &watch[2]));
    skew += 1000 * WATCH_MS * MS_NS; /* all are killed: their periods pass */
    CHECK_EQ(WATCH_MS, watch_ms(arena, &watch[5]));
    end_ring();
}

/* How often `count` idle receivers wake by themselves in so many seconds, from the `since`-th on. */
static int
wake_ups_of(int count, int since_s, int until_s)
{
    static int64_t at[64], now;
    static uint32_t watch[64];
    int times = 0;

    memset(watch, 0, sizeof watch);
    atomic_store(&arena->header->watches, 0);
    for (int i = 0; i < count; i++) {
        at[i] = i; /* they come a millisecond after each other */
    }
    for (now = 0; now < until_s * 1000; now++) {
        skew = (now + 1000 * WATCH_MS) * MS_NS - (set_now_ns() - skew);
        for (int i = 0; i < count; i++) {
            if (at[i] == now) {
                times += now >= since_s * 1000;
                at[i] = now + watch_ms(arena, &watch[i]);
            }
        }
    }
    return times;
}

static void
idle_receivers_wake_at_most_once_a_second_for_all_together(void)
{
    open_ring();
    for (int count = 1; count <= WATCHES; count *= 2) {
        CHECK_EQ(80, wake_ups_of(count, 100, 200));
        CHECK(wake_ups_of(count, 1, 11) <= 10);
    }
    end_ring();
}

static void
sleep_lasts_until_the_time_the_watch_or_the_next_look(void)
{
    static const int times[][2] = {{-1, WATCH_MS}, {1, 1}, {1000, 1000}, {WATCH_MS + 1, WATCH_MS}};
    mpshm_waiter waiter = eager();

    open_ring();
    waiter.measured_ns = SECOND_NS * SECOND_NS; /* it will not measure */
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        for (int floods = 0; floods < 2; floods++) {
            waiter.floods = floods;
            CHECK_EQ(false, waiter_sleep(&waiter, arena, ends[0], times[i][0]));
            CHECK_EQ(floods ? 1 : times[i][1], slept_ms);
        }
        CHECK_EQ(false, waiters_poll(arena, ends[0], times[i][0])); /* its is the next period */
        CHECK_EQ(times[i][0] < 0 ? 2 * WATCH_MS : times[i][0], slept_ms);
    }
    slept_ms = -2;
    CHECK_EQ(false, waiters_poll(arena, ends[0], 0));
    CHECK_EQ(-2, slept_ms);
    put(FULL);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1)); /* pollers' is this process's */
    CHECK_EQ(2 * WATCH_MS, slept_ms);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 5));
    CHECK_EQ(5, slept_ms);
    take_all();
    end_ring();
}

static void
forged_watches_keep_nobody_asleep(void)
{
    static const uint64_t garbage[] = {UINT64_MAX, UINT32_MAX, 1, UINT64_C(1) << 63,
                                       UINT64_C(0xffffffff00000000)};
    static const uint32_t mine[] = {0, 1, UINT32_MAX, 0x80000000};

    open_ring();
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        for (size_t j = 0; j < sizeof mine / sizeof *mine; j++) {
            uint32_t watch = mine[j];

            atomic_store(&arena->header->watches, garbage[i]);
            int ms = watch_ms(arena, &watch);

            CHECK(ms >= WATCH_MS && ms <= WATCHES * WATCH_MS);
            watch = mine[j];
            atomic_store(&arena->header->watches, ((uint64_t) (now_ns() / MS_NS / WATCH_MS) << 32) | garbage[i]);
            ms = watch_ms(arena, &watch);
            CHECK(ms >= WATCH_MS && ms <= WATCHES * WATCH_MS);
        }
    }
    end_ring();
}

/* Senders. */

static void
senders_are_let_in_at_each_mark(void)
{
    open_ring();
    put(FULL);
    atomic_store(&words->room_mark, FULL / 2);
    uint32_t count = atomic_load(&words->room_wakeups), mark = FULL / 2;

    woken = 1;
    for (uint32_t left = FULL; left-- > 0;) {
        take(1);
        if (mark != 0 && left == mark) {
            count++;
            mark = mark == 8 ? 0 : mark / 2;
        }
        CHECK_EQ(count, atomic_load(&words->room_wakeups));
        CHECK_EQ(mark, atomic_load(&words->room_mark));
    }
    CHECK_EQ(0, mark);
    end_ring();
}

static void
all_senders_are_let_in_before_the_ring_is_empty(void)
{
    open_ring();
    woken = 3;
    for (uint32_t at_once = 2; at_once <= AT_ONCE; at_once += 10) {
        put(FULL);
        atomic_store(&words->room_mark, FULL / 2);
        for (uint32_t left = FULL; left > 0;) {
            uint32_t n = left < at_once ? left : at_once;

            take(n);
            left -= n;
        }
        CHECK_EQ(0, atomic_load(&words->room_mark));
    }
    end_ring();
}

/* As many are woken as there are slots, and it may be that more sleep. */
static void
senders_beyond_the_number_of_slots_are_not_forgotten(void)
{
    open_ring();
    put(FULL);
    atomic_store(&words->room_mark, ALMOST_EMPTY);
    take(FULL - ALMOST_EMPTY);
    CHECK_EQ(ALMOST_EMPTY, atomic_load(&words->room_mark));
    CHECK_EQ(1, wakes);
    woken = 1;
    take(1);
    CHECK_EQ(2, wakes);
    CHECK_EQ(0, atomic_load(&words->room_mark));
    take_all();
    CHECK_EQ(2, wakes);
    end_ring();
}

static void
others_take_and_put(void)
{
    take(9);
    put(9);
}

static void
take_one(void)
{
    take(1);
}

static void
sender_that_was_overtaken_tries_again(void)
{
    open_ring();
    put(FULL);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
    CHECK_EQ(0, atomic_load(&words->room_mark)); /* it does not wait */
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 1));
    CHECK_EQ(FULL / 2, atomic_load(&words->room_mark));
    before_sleeping = others_take_and_put;
    CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 1));
    CHECK_EQ(1, slept_ms); /* that was no reason to wake it */
    CHECK_EQ(FULL / 2, atomic_load(&words->room_mark)); /* it is not forgotten */
    before_sleeping = take_all;
    CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 1));
    CHECK_EQ(-1, slept_ms);
    put(FULL);
    before_sleeping = take_one;
    CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 1));
    take_all();
    CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 1));
    end_ring();
}

/* Looking round: what one that wakes by its watch does for the others. */

static void
the_watch_ends(void)
{
    skew += (WATCHES + 1) * WATCH_MS * MS_NS;
}

static void
open_ring_with(uint32_t places, bool joinable, uint64_t bytes)
{
    open_ring();
    free_batch(batch);
    close_clean(arena);
    arena = queue_arena_of(tiny, places, bytes, joinable);
    batch = batch_of(arena, &counts, ends[0], 0);
    ring = arena->zero.head;
    words = &arena->chain->waiters;
    mpshm_reap(arena);
}

static void
receivers_watch_ends(void)
{
    mpshm_waiter waiter = eager();

    before_sleeping = the_watch_ends;
    (void) waiter_sleep(&waiter, arena, ends[0], -1);
}

static void
pollers_watch_ends(void)
{
    before_sleeping = the_watch_ends;
    (void) waiters_poll(arena, ends[0], -1);
}

static void
sender_that_forgot_to_wake(void)
{
    uint64_t position;
    static char frame[RING_FRAME_BYTES];

    the_watch_ends();
    arena_lock(arena);
    CHECK_EQ(1, ring_claim(arena, SLOT_WRITING, 1, &position));
    CHECK_EQ(0, ring_fill(arena, position, frame));
    ring_put(arena, ends[1], &position, 1);
    arena_unlock(arena);
    atomic_store(&words->wakeups, 0); /* as one killed before it wakes those that slept when it cleared the flag */
}

static void
watch_that_finds_a_message_wakes_a_receiver_though_none_says_it_sleeps(void)
{
    void (*const ends_watch[])(void) = {receivers_watch_ends, pollers_watch_ends};

    for (int i = 0; i < 2; i++) {
        mpshm_waiter waiter = eager();

        open_ring();
        (void) was_woken();
        ends_watch[i](); /* there is nothing */
        CHECK_EQ(false, was_woken());
        before_sleeping = sender_that_forgot_to_wake;
        (void) (i == 0 ? waiter_sleep(&waiter, arena, ends[0], -1) : waiters_poll(arena, ends[0], -1));
        CHECK_EQ(true, was_woken());
        take_all();
        end_ring();
    }
}

static void
senders_watch_ends(int64_t place)
{
    before_sleeping = the_watch_ends;
    (void) waiters_room(arena, ends[1], POLLERR, place, -1);
}

static void
receiver_that_forgot_to_wake(void)
{
    static char frame[RING_FRAME_BYTES];

    the_watch_ends();
    arena_lock(arena);
    CHECK_EQ(1, take_frames(arena, frame, 1));
    arena_unlock(arena);
    atomic_store(&words->room_mark, 0); /* as one killed before it wakes those that the mark spoke of */
}

static void
watch_that_finds_room_wakes_senders_though_none_says_it_sleeps(void)
{
    static const struct {
        uint32_t places;
        uint64_t bytes;
    } bounds[] = {{0, 0}, {3, 0}, {0, UINT64_C(1) << 40}};

    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        uint32_t places = bounds[i].places;

        open_ring_with(places, false, bounds[i].bytes);
        put(places == 0 ? FULL : places);
        uint32_t count = atomic_load(&words->room_wakeups);

        senders_watch_ends(MPSHM_NO_PLACE); /* it is full */
        CHECK_EQ(count, atomic_load(&words->room_wakeups));
        before_sleeping = receiver_that_forgot_to_wake;
        CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
        CHECK_EQ(count + 1, atomic_load(&words->room_wakeups));
        take_all();
        end_ring();
    }
}

/* A sender takes a turn, and is not told when it has come; the one that wakes has a later one. */
static void
watch_that_finds_a_turn_wakes_senders(void)
{
    open_ring_with(0, false, 3 * MPSHM_SLOT_BYTES);
    mpshm_place *first = mpshm_place_new(arena), *second = mpshm_place_new(arena);

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, NULL));
    }
    CHECK_EQ(0, mpshm_place_take(first));
    CHECK_EQ(0, mpshm_place_take(second));
    CHECK_EQ(MPSHM_E_FULL, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, second));
    uint32_t count = atomic_load(&words->room_wakeups);

    senders_watch_ends(second->at); /* the first has not said how many bytes it wants */
    CHECK_EQ(count, atomic_load(&words->room_wakeups));
    CHECK_EQ(MPSHM_E_FULL, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, first));
    count = atomic_load(&words->room_wakeups);
    senders_watch_ends(second->at);
    CHECK_EQ(count, atomic_load(&words->room_wakeups));
    before_sleeping = receiver_that_forgot_to_wake;
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, second->at, -1));
    CHECK_EQ(count + 1, atomic_load(&words->room_wakeups));
    CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), "message", 7, first));
    mpshm_place_free(first);
    mpshm_place_free(second);
    take_all();
    end_ring();
}

static void
watch_that_finds_the_last_task_done_rings_though_none_says_it_joins(void)
{
    open_ring_with(0, true, 0);
    put(2);
    CHECK_EQ(0, mpshm_task_done(arena));
    take(2);
    uint32_t bell = atomic_load(&words->done_bell);

    receivers_watch_ends(); /* one is not done */
    CHECK_EQ(bell, atomic_load(&words->done_bell));
    CHECK_EQ(0, atomic_load(&words->joiners)); /* or each task_done would sum up */
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(bell, atomic_load(&words->done_bell)); /* nobody says that it joins */
    receivers_watch_ends();
    CHECK_EQ(bell + 1, atomic_load(&words->done_bell));
    end_ring();
}

/* It held a position in the middle, which no put looks at. */
static void
watch_mends_what_the_dead_left(void)
{
    open_ring_with(3, false, 0);
    put(1);
    int pid = fork_hooked();

    if (pid == 0) {
        uint64_t position;

        arena_lock(arena);
        _exit(ring_claim(arena, SLOT_HELD, 1, &position) != 1);
    }
    wait_child(pid);
    put(1);
    CHECK_EQ(true, chain_is_full(arena));
    take(1);
    put(1);
    CHECK_EQ(true, chain_is_full(arena));
    uint32_t count = atomic_load(&words->room_wakeups);

    before_sleeping = the_watch_ends;
    CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
    CHECK(atomic_load(&words->room_wakeups) > count);
    CHECK_EQ(false, chain_is_full(arena));
    take_all();
    end_ring();
}

/* One of each kind, in one process. */
static void
receivers_and_others_watch_in_turns(void)
{
    mpshm_waiter first = eager(), second = eager();

    open_ring_with(3, false, 0);
    CHECK_EQ(false, waiter_sleep(&first, arena, ends[0], -1));
    CHECK_EQ(WATCH_MS, slept_ms);
    put(3);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
    CHECK_EQ(2 * WATCH_MS, slept_ms);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], 0, MPSHM_NO_PLACE, -1));
    CHECK_EQ(2 * WATCH_MS, slept_ms);
    take_all();
    CHECK_EQ(false, waiter_sleep(&second, arena, ends[0], -1));
    CHECK_EQ(3 * WATCH_MS, slept_ms);
    end_ring();
}

/* It may be long until the next mark, or for ever. */
static void
sender_that_saw_receivers_at_work_looks_again_soon(void)
{
    open_ring();
    put(FULL);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
    CHECK_EQ(WATCH_MS, slept_ms);
    take(1);
    put(1);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
    CHECK_EQ(ROOM_LOOK_MS, slept_ms);
    CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, -1));
    CHECK_EQ(WATCH_MS, slept_ms); /* they do no more */
    take_all();
    end_ring();
}

/* One wakes of those that wait, and looks whether anybody is left. */
static void
death_that_is_noticed_wakes_one_of_each_kind(void)
{
    open_ring();
    others_sleep(true);
    arena_lock(arena);
    waiters_see_death(arena);
    arena_unlock(arena);
    CHECK_EQ(true, was_woken());
    put(FULL);
    uint32_t count = atomic_load(&words->room_wakeups);

    atomic_store(&words->room_mark, FULL / 2);
    arena_lock(arena);
    waiters_see_death(arena);
    arena_unlock(arena);
    CHECK_EQ(count + 1, atomic_load(&words->room_wakeups));
    take_all();
    end_ring();
}

/* Garbage. */

static void
do_all(void)
{
    mpshm_waiter waiter = eager();

    waiter.spin.ns = MS_NS;
    put(2);
    (void) mpshm_queue_receive(batch, 1, 0);
    (void) mpshm_queue_receive(batch, 1, 1);
    (void) mpshm_queue_receive(batch, 9, 1);
    (void) waiter_look(&waiter, arena);
    (void) nap(&waiter);
    waiter.floods = true;
    (void) nap(&waiter);
    put(2);
    waiter_goes(&waiter, arena, 1);
    waiter.backup_at_ns = atomic_load(&words->backup_at_ns);
    waiter.spin_until_ns = atomic_load(&words->spin_until_ns);
    (void) nap(&waiter);
    waiter_goes(&waiter, arena, 0);
    (void) mpshm_queue_poll(batch->end, 1);
    (void) mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1);
    take_all();
}

static void
forged_times_hold_nobody_up(void)
{
    open_ring();
    for (int round = 0; round < 27; round++) {
        int64_t now = now_ns();
        int64_t garbage[] = {1, INT64_MAX, now, now + 1, now - 1, now + SECOND_NS - 1,
                             now + 2 * SECOND_NS, -1, INT64_MIN};
        int64_t value = garbage[round / 3];

        atomic_store(round % 3 == 0 ? &words->spin_until_ns : &words->backup_at_ns, value);
        if (round % 3 == 2) {
            atomic_store(&words->spin_until_ns, value);
            atomic_store(&arena->header->watches, (uint64_t) value);
        }
        others_sleep(true);
        do_all();
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
        atomic_store(&words->room_mark, garbage[i]);
        atomic_store(&words->wakeups, garbage[i]);
        atomic_store(&words->room_wakeups, garbage[i]);
        do_all();
        atomic_store(&words->room_mark, garbage[i]);
        put(FULL);
        take_all();
        put(FULL);
        CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1));
        take_all();
        CHECK_EQ(0, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1));
    }
    end_ring();
}

static void
extreme_traffic_is_no_overflow(void)
{
    mpshm_waiter waiter = eager();

    open_ring();
    waiter.spin.ns = MS_NS;
    waiter.measured_taken = 1;
    waiter.took = UINT64_MAX;
    atomic_store(&ring->head, UINT64_C(1) << 61);
    (void) waiter_look(&waiter, arena);
    atomic_store(&ring->head, 0);
    end_ring();
}

static const struct test tests[] = {
    TEST(one_receiver_spins_at_a_time),
    TEST(one_that_spun_in_vain_sleeps_and_says_so),
    TEST(late_spinner_does_not_end_the_next_ones_time),
    TEST(message_wakes_nobody_while_one_spins),
    TEST(one_that_spun_leaves_what_remains_to_a_sleeper),
    TEST(receiver_that_gives_up_leaves_what_is_there_to_a_sleeper),
    TEST(one_sleeper_is_the_backup_in_a_flood),
    TEST(message_wakes_nobody_while_there_is_a_backup),
    TEST(late_backup_is_replaced_and_does_not_end_the_next_ones_time),
    TEST(backup_that_leaves_messages_behind_wakes_another),
    TEST(every_receiver_that_leaves_messages_behind_wakes_another),
    TEST(flood_is_what_others_take_quickly),
    TEST(timed_receiver_that_gives_up_is_no_backup),
    TEST(wake_up_that_finds_nobody_clears_the_flag),
    TEST(receiver_that_is_about_to_sleep_does_not),
    TEST(receiver_that_comes_before_the_flag_is_cleared_does_not_sleep),
    TEST(flag_stays_when_another_wakes_as_well),
    TEST(each_sleeper_watches_in_a_period_of_its_own),
    TEST(idle_receivers_wake_at_most_once_a_second_for_all_together),
    TEST(sleep_lasts_until_the_time_the_watch_or_the_next_look),
    TEST(forged_watches_keep_nobody_asleep),
    TEST(senders_are_let_in_at_each_mark),
    TEST(all_senders_are_let_in_before_the_ring_is_empty),
    TEST(senders_beyond_the_number_of_slots_are_not_forgotten),
    TEST(sender_that_was_overtaken_tries_again),
    TEST(watch_that_finds_a_message_wakes_a_receiver_though_none_says_it_sleeps),
    TEST(watch_that_finds_room_wakes_senders_though_none_says_it_sleeps),
    TEST(watch_that_finds_a_turn_wakes_senders),
    TEST(watch_that_finds_the_last_task_done_rings_though_none_says_it_joins),
    TEST(watch_mends_what_the_dead_left),
    TEST(receivers_and_others_watch_in_turns),
    TEST(sender_that_saw_receivers_at_work_looks_again_soon),
    TEST(death_that_is_noticed_wakes_one_of_each_kind),
    TEST(forged_times_hold_nobody_up),
    TEST(forged_counts_hold_nobody_up),
    TEST(extreme_traffic_is_no_overflow),
};
RUN_TESTS(tests)
