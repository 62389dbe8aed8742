/* Waiters: which of a ring's receivers spins, sleeps or polls, which of its senders sleeps, and which of
   them a message or free room wakes.

   A receiver that finds nothing goes through these, and back to its caller from each:

     spin ----in vain----> sleep, until a wake-up or its own watch
       at most one           '----in a flood, at most one----> backup: sleep for 1 ms

   A message wakes one sleeper.  But a wake-up costs ten times what a message does, and in a flood the
   sleeper mostly finds that a receiver at work was quicker.  So a message wakes nobody while one
   receiver spins, nor in a flood, where a backup poller sleeps so shortly that it will find what those
   at work leave behind.

   Sleeping is by event counts (a futex whose word counts wake-ups): read the count, look at the ring,
   sleep if the count is still the same.

   Knows the ring's words about waiters (struct waiters in layout.h: all are hints), head and tail; of
   its slots only whether there is one to take, or room.

   Invariants: G4, G6, G7 (invariants.h).

   Memory order: each of these pairs is store, fence, load on either side, so that one of the two sees
   the other's store.
     a receiver sets MAY_SLEEP, looks at the ring     | ring_put stores READY, waiters_rouse loads MAY_SLEEP
     a receiver ends its spin or its time as backup,  | ring_put stores READY, waiters_rouse loads both
       looks at the ring                              |
     a sender sets room_mark, looks for room          | ring_take frees a slot, waiters_let_in loads room_mark
   The words themselves order nothing else. */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>

/* `wakeups`: the lowest bit, and one wake-up. */
#define MAY_SLEEP UINT32_C(1)
#define WAKE_UP UINT32_C(2)
/* A time further ahead than this is a stray write. */
#define AHEAD_NS INT64_C(1000000000)
/* How often the backup looks, and how late it may be. */
#define BACKUP_MS 1
#define BACKUP_NS INT64_C(2000000)
/* More messages than this are too many to wait for the backup. */
#define BACKUP_BACKLOG 64
/* So many messages, in so many ns each, are a flood. */
#define FLOOD_MESSAGES 16
#define FLOOD_NS 10000
/* A sleeper is the watchdog of one of the next 32 periods of this length. */
#define WATCH_MS 1250
#define WATCHES 32
/* All senders are woken when no more slots than this are claimed. */
#define ALMOST_EMPTY 8

/* Slots claimed and not taken, as far as the hints say. */
static int64_t
backlog_of(struct ring *ring)
{
    return (int64_t) (atomic_load_explicit(&ring->tail, memory_order_relaxed)
                      - atomic_load_explicit(&ring->head, memory_order_relaxed));
}

/* Waking receivers. */

static bool
may_sleep(struct waiters *waiters)
{
    return (atomic_load_explicit(&waiters->wakeups, memory_order_relaxed) & MAY_SLEEP) != 0;
}

/* Wake up to `most` receivers.  When fewer were asleep, clear MAY_SLEEP: a receiver that has set it and
   is not asleep yet finds another count, and one that fell asleep meanwhile is woken.  G4 */
static void
wake(struct waiters *waiters, int most)
{
    uint32_t count = atomic_fetch_add(&waiters->wakeups, WAKE_UP) + WAKE_UP;

    if (futex_wake(&waiters->wakeups, most) < most
        && atomic_compare_exchange_strong(&waiters->wakeups, &count,
                                          (count + WAKE_UP) & ~MAY_SLEEP)) {
        (void) futex_wake(&waiters->wakeups, INT_MAX);
    }
}

/* Let as many of those that sleep look for themselves. */
void
waiters_call(mpshm_arena *arena, int most)
{
    if (may_sleep(&arena->ring->waiters)) {
        wake(&arena->ring->waiters, most);
    }
}

static bool
is_ahead(int64_t at, int64_t now)
{
    return at > now && (uint64_t) at - (uint64_t) now < AHEAD_NS;
}

/* There are `count` messages that perhaps no receiver knows of.  G6 */
void
waiters_rouse(mpshm_arena *arena, int count)
{
    struct waiters *waiters = &arena->ring->waiters;

    if (!may_sleep(waiters)) {
        return;
    }
    int64_t now = now_ns();

    if (is_ahead(atomic_load_explicit(&waiters->backup_at_ns, memory_order_relaxed), now)
        && backlog_of(arena->ring) <= BACKUP_BACKLOG) {
        return;
    }
    /* The one that spins takes one by itself. */
    count -= is_ahead(atomic_load_explicit(&waiters->spin_until_ns, memory_order_relaxed), now);
    if (count > 0) {
        wake(waiters, count);
    }
}

/* Spinning. */

void
waiter_init(mpshm_waiter *waiter, uint32_t spin_us)
{
    *waiter = (mpshm_waiter) {0};
    spin_init(&waiter->spin, spin_us);
}

/* Take back what this receiver has said in one of the ring's words, if it still stands there. */
static bool
take_back(_Atomic int64_t *word, int64_t *said)
{
    int64_t value = *said;

    *said = 0;
    if (value != 0) {
        atomic_compare_exchange_strong(word, &value, 0);
        atomic_thread_fence(memory_order_seq_cst); /* G7: pairs with ring_put's last */
    }
    return value != 0;
}

/* This receiver takes messages, or gives up waiting: it neither spins nor is the backup.  What was put
   while it did may have woken nobody, and it may be away for long: leave it to another.  G7 */
static void
resign(mpshm_waiter *waiter, mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;

    (void) take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    (void) take_back(&waiters->backup_at_ns, &waiter->backup_at_ns);
    if (may_sleep(waiters) && ring_is_ready(arena)) {
        waiters_rouse(arena, 1);
    }
}

/* It took messages, and leaves with them.  Under arena_lock. */
void
waiter_took(mpshm_waiter *waiter, mpshm_arena *arena, uint32_t count)
{
    waiter->taken += count;
    resign(waiter, arena);
}

/* It goes away without a message. */
void
waiter_goes(mpshm_waiter *waiter, mpshm_arena *arena)
{
    if (waiter->spin_until_ns != 0 || waiter->backup_at_ns != 0) {
        resign(waiter, arena);
    }
}

/* Find out whether there is a flood, which others take from as well. */
static void
measure_traffic(mpshm_waiter *waiter, struct ring *ring, int64_t now)
{
    uint64_t head = atomic_load(&ring->head), moved = head - waiter->seen_head;
    int64_t took = now - waiter->seen_ns;

    if (moved >= FLOOD_MESSAGES || took >= FLOOD_MESSAGES * FLOOD_NS) {
        waiter->flood = moved >= FLOOD_MESSAGES && (uint64_t) took / FLOOD_NS <= moved
                        && moved >= waiter->taken + FLOOD_MESSAGES / 2;
        waiter->seen_ns = now;
        waiter->seen_head = head;
        waiter->taken = 0;
    }
}

/* Spin for a while, if that is worth it: 1 when there is a message, -EAGAIN when it is time to sleep,
   -EINTR when the caller is to look for signals before. */
int
waiter_look(mpshm_waiter *waiter, mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;
    int64_t now = now_ns(), other = atomic_load(&waiters->spin_until_ns);

    measure_traffic(waiter, arena->ring, now);
    if (is_ahead(other, now) && other != waiter->spin_until_ns) {
        return -EAGAIN; /* one that spins is enough */
    }
    /* In a flood that others take from, to sleep would be to be woken at once.  Not so in one of its own:
       there it may be that both share a busy CPU, and a receiver that yields it is late. */
    int64_t until = spin_begin(&waiter->spin, waiter->flood);

    if (until == 0 || !atomic_compare_exchange_strong(&waiters->spin_until_ns, &other, until)) {
        return -EAGAIN;
    }
    waiter->spin_until_ns = until;
    bool paid = ring_is_ready(arena);

    while (!paid && spin_goes_on(until)) {
        sched_yield();
        paid = ring_is_ready(arena);
    }
    spin_end(&waiter->spin, until, paid);
    return paid ? 1 : -EINTR;
}

/* Sleeping. */

/* Be the backup, or go on to be, or no longer.  G6 */
static bool
stand_by(mpshm_waiter *waiter, struct waiters *waiters)
{
    int64_t now = now_ns(), at = atomic_load(&waiters->backup_at_ns), next = now + BACKUP_NS;

    if (!waiter->flood) {
        (void) take_back(&waiters->backup_at_ns, &waiter->backup_at_ns);
        return false;
    }
    bool stands = (at == waiter->backup_at_ns || !is_ahead(at, now))
                  && atomic_compare_exchange_strong(&waiters->backup_at_ns, &at, next);

    waiter->backup_at_ns = stands ? next : 0;
    return stands;
}

/* Be the watchdog of the first period that has none: how many periods ahead it ends, from 1 on.  So
   there is one look in each period, however many sleep, while there are not more than WATCHES.  Nobody
   else wakes a sleeper at the end of file, nor when the receiver that a message woke was killed.  The
   others' watches are what makes up for a watchdog that dies.  *first: of the periods. */
static uint32_t
take_watch(struct waiters *waiters, uint32_t *first)
{
    uint64_t seen = atomic_load(&waiters->watches), next;
    uint32_t i;

    *first = (uint32_t) (now_ns() / 1000000 / WATCH_MS);
    do {
        uint32_t passed = *first - (uint32_t) (seen >> 32);
        uint32_t taken = passed < WATCHES ? (uint32_t) seen >> passed : 0;

        i = taken == UINT32_MAX ? WATCHES - 1 : (uint32_t) __builtin_ctz(~taken);
        next = (uint64_t) *first << 32 | taken | UINT32_C(1) << i;
    } while (!atomic_compare_exchange_weak(&waiters->watches, &seen, next));
    return i + 1;
}

/* No longer be the watchdog of that period. */
static void
leave_watch(struct waiters *waiters, uint32_t period)
{
    uint64_t seen = atomic_load(&waiters->watches);
    uint32_t i;

    do {
        i = period - 1 - (uint32_t) (seen >> 32);
    } while (i < WATCHES
             && !atomic_compare_exchange_weak(&waiters->watches, &seen,
                                              seen & ~(UINT64_C(1) << i)));
}

/* Sleep until a wake-up, a signal, or the end of the time. */
static void
sleep_for(mpshm_arena *arena, int ms)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t count = atomic_fetch_or(&waiters->wakeups, MAY_SLEEP) | MAY_SLEEP;

    atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with ring_put's last */
    if (!ring_is_ready(arena)) {
        futex_wait(&waiters->wakeups, count, ms);
    }
}

/* Sleep until a wake-up or a signal, until the time (-1: any) is over, or until this receiver's watch. */
static void
sleep_and_watch(mpshm_arena *arena, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;

    if (timeout_ms >= 0 && timeout_ms <= WATCH_MS) {
        sleep_for(arena, timeout_ms);
        return;
    }
    uint32_t first, watch = take_watch(waiters, &first);
    int ms = (int) watch * WATCH_MS;

    sleep_for(arena, timeout_ms >= 0 && timeout_ms < ms ? timeout_ms : ms);
    leave_watch(waiters, first + watch);
}

/* At the end of file all are to see it, and nobody else tells them. */
static bool
is_at_end(mpshm_arena *arena, int fd)
{
    bool ended = fd < 0 || has_hung_up(fd, POLLHUP | POLLNVAL);

    if (ended) {
        waiters_call(arena, INT_MAX);
    }
    return ended;
}

/* Sleep until there is a message or the end of file: true; or until the time (-1: any) is over, or
   earlier: false.  A receiver that sleeps on comes again. */
bool
waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;

    (void) take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    if (stand_by(waiter, waiters)) {
        sleep_for(arena, BACKUP_MS);
    } else {
        sleep_and_watch(arena, timeout_ms);
    }
    return ring_is_ready(arena);
}

/* The same for a process that would not take the message. */
bool
waiters_poll(mpshm_arena *arena, int fd, int timeout_ms)
{
    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    if (timeout_ms != 0) {
        sleep_and_watch(arena, timeout_ms);
    }
    return ring_is_ready(arena);
}

/* Senders. */

/* Slots were taken.  Senders are not woken as soon as there is room, for one that waits had better find
   much; and not all at once, for one often keeps the receivers at work, and more would take the CPU
   from them.  So one when half the ring is empty, one more whenever what is left has halved again, and
   all before there is nothing. */
void
waiters_let_in(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t mark = atomic_load(&waiters->room_mark);
    int64_t backlog = backlog_of(arena->ring);

    if (mark == 0 || backlog > (int64_t) mark) {
        return;
    }
    bool all = mark <= ALMOST_EMPTY || backlog <= ALMOST_EMPTY;

    if (atomic_compare_exchange_strong(&waiters->room_mark, &mark, all ? 0 : mark / 2)) {
        atomic_fetch_add(&waiters->room_wakeups, 1);
        (void) futex_wake(&waiters->room_wakeups, all ? INT_MAX : 1);
    }
}

/* Sleep until there may be room: 0, -EAGAIN when there is none, after the time or a signal, or -EPIPE
   when nobody is left to take anything. */
int
waiters_room(mpshm_arena *arena, int fd, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t count = atomic_load(&waiters->room_wakeups);
    uint64_t head = atomic_load(&arena->ring->head);

    if (fd < 0 || has_hung_up(fd, POLLERR)) {
        return -EPIPE;
    }
    if (ring_is_full(arena) && timeout_ms > 0) {
        atomic_store(&waiters->room_mark, RING_SLOTS / 2);
        atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with a compare-and-swap of ring_take */
        if (ring_is_full(arena)) {
            futex_wait(&waiters->room_wakeups, count, timeout_ms);
        }
        /* Receivers are at work, though other senders may have been quicker: worth another try. */
        if (atomic_load(&waiters->room_wakeups) != count
            || atomic_load(&arena->ring->head) != head) {
            return 0;
        }
    }
    if (ring_is_full(arena)) { /* perhaps of one message, whose sender is dead */
        arena_lock(arena);
        ring_reap(arena, 0);
        arena_unlock(arena);
    }
    return ring_is_full(arena) ? -EAGAIN : 0;
}
