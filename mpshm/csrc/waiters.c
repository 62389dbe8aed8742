/* Waiters: who of a ring's receivers sleeps, looks or stands guard, who of its senders waits for room,
   and who wakes them.

   Knows the ring's words about them; of its slots only whether there is one to take, or room.

   One receiver at most looks again and again before it sleeps, for others would only take the CPU from
   the senders.  When messages come so fast that each would wake a sleeper to find that another was
   quicker, those at work are left to it: who is always back soon promises so (`spin_until_ns`), and
   one of those who sleep, the guard, looks every millisecond, and takes what it finds.

   Invariants:
   G4  Whoever may sleep says so (`sleepers`, `crowd`) before it looks a last time, and looks again
       after a while: only a kill at the wrong moment costs that while.
   G6  A promise counts only while there is a guard, and a guard that goes calls another if after that
       there is a promise or a message.  Who finds no guard, at a message that it puts or leaves behind,
       wakes a sleeper, unless somebody is awake and looks.
   G7  Whoever no longer says that it looks, looks once more, or has that done. */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>

#include "ring.h"

/* So many wake-ups in a row that woke nobody: those who said that they sleep are dead. */
#define VAIN_WAKES 256
/* The word that counts them: epoch 16 | count 16. */
#define EPOCH UINT32_C(0x10000)
#define EPOCH_MASK UINT32_C(0xffff0000)
/* No receiver looks again, or guards, for longer. */
#define MOST_NS INT64_C(1000000000)
/* How long a receiver sleeps that is the ring's lookout: shortly at first, longer when it has been
   idle for long; and another. */
#define LOOK_FIRST_MS 50
#define LOOK_MOST_MS 800
#define LOOK_POLL_MS 200
#define LOOK_FAR_MS 3000
#define LOOK_GRACE_MS 50
/* How often the guard looks, and how late it may be. */
#define GUARD_MS 1
#define GUARD_NS INT64_C(2000000)
/* Who was back so often within half the time that it would look for is quick, and may find so many
   messages when it is back. */
#define QUICK_TIMES 4
#define QUICK_FINDS 64
/* So many messages in so many ns each are a flood. */
#define FLOOD_MESSAGES 16
#define FLOOD_NS 10000
/* The last senders are woken when so few slots are claimed. */
#define ALMOST_EMPTY 8
/* In `spin_until_ns`, the lowest bit: nobody looks, it is a promise. */
#define PROMISE INT64_C(1)

static bool
anybody_sleeps(struct ring *ring)
{
    return (atomic_load_explicit(&ring->waiters.sleepers, memory_order_relaxed) & ~EPOCH_MASK) != 0;
}

/* A sleeper more; what it is to say when it is awake.  It has read `bell` before. */
static uint32_t
count_sleeper(struct ring *ring)
{
    return atomic_fetch_add(&ring->waiters.sleepers, 1) & EPOCH_MASK;
}

static void
uncount_sleeper(struct ring *ring, uint32_t epoch)
{
    uint32_t was = atomic_load(&ring->waiters.sleepers);

    while ((was & EPOCH_MASK) == epoch && was != epoch
           && !atomic_compare_exchange_weak(&ring->waiters.sleepers, &was, was - 1)) {
    }
}

/* Wake sleepers: how many. */
static int
ring_the_bell(struct ring *ring, int most)
{
    atomic_fetch_add(&ring->waiters.bell, 1);
    return futex_wake(&ring->waiters.bell, most);
}

/* Those counted are dead, or awake and about to say so.  One that is not asleep yet will see that the
   bell has changed, and counts itself anew. */
static void
forget_sleepers(struct ring *ring)
{
    uint32_t was = atomic_load(&ring->waiters.sleepers);

    if (atomic_compare_exchange_strong(&ring->waiters.sleepers, &was, (was & EPOCH_MASK) + EPOCH)) {
        (void) ring_the_bell(ring, INT_MAX);
    }
}

/* Let as many of those who sleep look for themselves. */
void
waiters_call(mpshm_arena *arena, int most)
{
    if (anybody_sleeps(arena->ring)) {
        (void) ring_the_bell(arena->ring, most);
    }
}

static bool
is_ahead(_Atomic int64_t *until, int64_t now)
{
    int64_t at = atomic_load_explicit(until, memory_order_relaxed);

    return at > now && (uint64_t) at - (uint64_t) now < MOST_NS;
}

/* Not of one who is awake and looks. */
static bool
is_promise(struct ring *ring)
{
    return (atomic_load_explicit(&ring->waiters.spin_until_ns, memory_order_relaxed) & PROMISE) != 0;
}

/* There are `count` messages that nobody may know of. */
void
waiters_rouse(mpshm_arena *arena, int count)
{
    struct ring *ring = arena->ring;

    if (!anybody_sleeps(ring)) {
        return;
    }
    int64_t now = now_ns();

    if (is_ahead(&ring->waiters.spin_until_ns, now)) {
        if (!is_ahead(&ring->waiters.backup_at_ns, now)) {
            count -= !is_promise(ring); /* who looks needs no waking */
        } else if (ring_backlog(arena) <= QUICK_FINDS) {
            return; /* G6 */
        }
    }
    if (count == 0) {
        return;
    }
    if (ring_the_bell(ring, count) > 0) {
        arena->vain_wakes = 0;
    } else if (++arena->vain_wakes == VAIN_WAKES) {
        arena->vain_wakes = 0;
        forget_sleepers(ring);
    }
}

/* Looking. */

void
waiter_init(mpshm_waiter *waiter, uint32_t spin_us)
{
    *waiter = (mpshm_waiter) {.look_ms = LOOK_FIRST_MS};
    spin_init(&waiter->spin, spin_us);
}

/* Say until when this receiver looks. */
static void
watchdog_at_ms(mpshm_waiter *waiter, struct ring *ring, int64_t until)
{
    waiter->looks = until != 0;
    atomic_store(&ring->waiters.spin_until_ns, until);
    atomic_thread_fence(memory_order_seq_cst);
}

/* It is back from where it went with its last message. */
void
waiter_is_back(mpshm_waiter *waiter)
{
    if (waiter->left_ns != 0) {
        bool soon = now_ns() - waiter->left_ns <= waiter->spin.ns / 2;

        waiter->quick = !soon ? 0 : waiter->quick + (waiter->quick < QUICK_TIMES);
        waiter->left_ns = 0;
    }
}

/* It took messages, and leaves with them.  Under arena_lock. */
void
waiter_took(mpshm_waiter *waiter, mpshm_arena *arena, uint32_t count)
{
    struct ring *ring = arena->ring;

    waiter->taken += count;
    waiter->look_ms = LOOK_FIRST_MS;
    bool promises = false;

    if (anybody_sleeps(ring)) {
        int64_t now = waiter->left_ns = now_ns(), away_ns = waiter->spin.ns;

        promises = waiter->quick >= QUICK_TIMES && is_ahead(&ring->waiters.backup_at_ns, now);
        /* Not anew for each message: the senders read this word for each of theirs. */
        if (promises && !(is_promise(ring) && is_ahead(&ring->waiters.spin_until_ns, now + away_ns / 2))) {
            watchdog_at_ms(waiter, ring, (now + away_ns) | PROMISE);
            promises = is_ahead(&ring->waiters.backup_at_ns, now); /* G6 */
        }
    } else if (!waiter->looks) {
        return;
    }
    if (!promises && waiter->looks) {
        watchdog_at_ms(waiter, ring, 0);
    }
    /* What was put while it looked woke nobody, and it may be away for long. */
    if (ring_is_ready(arena)) {
        waiters_rouse(arena, 1);
    }
}

/* Is there a flood, which others take from as well? */
static void
count_traffic(mpshm_waiter *waiter, struct ring *ring)
{
    int64_t now = now_ns(), took = now - waiter->seen_ns;
    uint64_t head = HEAD_POSITION(atomic_load(&ring->head)), moved = head - waiter->seen_head;

    if (moved >= FLOOD_MESSAGES || took >= FLOOD_MESSAGES * FLOOD_NS) {
        waiter->shared = moved >= FLOOD_MESSAGES && (uint64_t) took / FLOOD_NS <= moved
                         && moved >= waiter->taken + FLOOD_MESSAGES / 2;
        waiter->seen_ns = now;
        waiter->seen_head = head;
        waiter->taken = 0;
    }
}

/* Look again for a while, if that is worth it: 1 when there is a message, -EAGAIN when it is time to
   sleep, -EINTR when the caller is to look for signals before. */
int
waiter_look(mpshm_waiter *waiter, mpshm_arena *arena)
{
    struct ring *ring = arena->ring;

    count_traffic(waiter, ring);
    if (!waiter->looks && is_ahead(&ring->waiters.spin_until_ns, now_ns())) {
        return -EAGAIN; /* one who looks is enough */
    }
    /* To sleep would be to be woken at once.  Not so in a flood of our own: there it may be that both
       share a busy CPU, and who yields it there is late. */
    int64_t until = spin_begin(&waiter->spin, waiter->shared);

    if (until == 0) {
        return -EAGAIN;
    }
    watchdog_at_ms(waiter, ring, until & ~PROMISE);
    bool paid = ring_is_ready(arena);

    while (!paid && spin_goes_on(until)) {
        sched_yield();
        paid = ring_is_ready(arena);
    }
    spin_end(&waiter->spin, until, paid);
    return paid ? 1 : -EINTR;
}

/* Sleeping. */

/* Be the guard, if somebody is to be guarded for and no other does it; or no longer.  G6 */
static bool
stand_guard(mpshm_waiter *waiter, struct ring *ring)
{
    for (uint32_t tries = 0; tries < RING_SLOTS; tries++) {
        int64_t now = now_ns(), until = atomic_load(&ring->waiters.backup_at_ns);
        bool needed = waiter->shared || is_ahead(&ring->waiters.spin_until_ns, now);

        if (until == 0 || until != waiter->guard_ns) {
            waiter->guard_ns = 0;
            if (!needed || is_ahead(&ring->waiters.backup_at_ns, now)) {
                return false;
            }
        }
        int64_t next = needed ? now + GUARD_NS : 0;

        if (atomic_compare_exchange_strong(&ring->waiters.backup_at_ns, &until, next)) {
            atomic_thread_fence(memory_order_seq_cst); /* G6 */
            waiter->guard_ns = next;
            if (needed) {
                return true;
            } /* else there may be a promise since: see above */
        }
    }
    return false;
}

/* This receiver goes away, with a message or for good: another is to guard if somebody counts on it, or
   to take what was put while this one was said to look.  G6, G7 */
void
waiter_goes(mpshm_waiter *waiter, mpshm_arena *arena)
{
    struct ring *ring = arena->ring;

    bool guarded = waiter->guard_ns != 0
                   && atomic_compare_exchange_strong(&ring->waiters.backup_at_ns, &waiter->guard_ns, 0);
    bool looked = waiter->looks && !is_promise(ring);

    waiter->guard_ns = 0;
    if (looked) {
        watchdog_at_ms(waiter, ring, 0);
    }
    if (guarded || looked) {
        atomic_thread_fence(memory_order_seq_cst); /* G6 */
        if ((guarded && is_ahead(&ring->waiters.spin_until_ns, now_ns())) || ring_is_ready(arena)) {
            waiters_call(arena, 1);
        }
    }
}

/* Nobody is left to send: all are to see it, and nobody else tells them. */
static bool
is_at_end(mpshm_arena *arena, int fd)
{
    bool ended = fd < 0 || has_hung_up(fd, POLLHUP | POLLNVAL);

    if (ended) {
        waiters_call(arena, INT_MAX);
    }
    return ended;
}

/* How long one of those who sleep may: the lookout not long, for nobody wakes anybody at the end of
   file, nor when the one that a message woke was killed.  The others until they might have to take its
   place. */
static int
watch_ms(struct ring *ring, int look_ms, uint64_t *mine)
{
    uint64_t now = (uint64_t) (now_ns() / 1000000), until = atomic_load(&ring->waiters.watchdog_at_ms);
    bool watched = now < until && until < now + 2 * LOOK_FAR_MS;

    *mine = now + (uint64_t) look_ms + LOOK_GRACE_MS;
    if (!watched && atomic_compare_exchange_strong(&ring->waiters.watchdog_at_ms, &until, *mine)) {
        return look_ms;
    }
    *mine = 0;
    return LOOK_FAR_MS;
}

/* Sleep until the bell rings, or the time (-1: any) is over, or it is time to look: for the guard soon,
   for the lookout after look_ms. */
static void
sleep_a_while(mpshm_arena *arena, int timeout_ms, bool guards, int look_ms)
{
    struct ring *ring = arena->ring;
    uint64_t mine = 0;
    int ms = guards ? GUARD_MS : watch_ms(ring, look_ms, &mine);
    uint32_t bell = atomic_load(&ring->waiters.bell);
    uint32_t epoch = count_sleeper(ring);

    atomic_thread_fence(memory_order_seq_cst); /* G4 */
    if (!ring_is_ready(arena)) {
        futex_wait(&ring->waiters.bell, bell, timeout_ms < 0 || timeout_ms > ms ? ms : timeout_ms);
    }
    uncount_sleeper(ring, epoch);
    if (mine != 0) { /* whoever comes next, perhaps we, is the lookout */
        atomic_compare_exchange_strong(&ring->waiters.watchdog_at_ms, &mine, 0);
    }
}

/* Sleep until there is a message or the end of file, or the time (-1: any) is over, or it is time to
   look; whether one is there.  Who sleeps on comes again. */
bool
waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms)
{
    struct ring *ring = arena->ring;

    if (waiter->looks) {
        watchdog_at_ms(waiter, ring, 0);
    }
    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    bool guards = stand_guard(waiter, ring);

    sleep_a_while(arena, timeout_ms, guards, waiter->look_ms);
    if (ring_is_ready(arena)) {
        return true;
    }
    if (!guards) {
        waiter->look_ms = waiter->look_ms < LOOK_MOST_MS ? 2 * waiter->look_ms : LOOK_MOST_MS;
    }
    return false;
}

/* The same for who would not take it. */
bool
waiters_poll(mpshm_arena *arena, int fd, int timeout_ms)
{
    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    if (timeout_ms != 0) {
        sleep_a_while(arena, timeout_ms, false, LOOK_POLL_MS);
    }
    return ring_is_ready(arena);
}

/* Senders. */

/* In `crowd`, of a queue that is bounded: wake for each slot. */
#define EACH UINT32_MAX

/* Wake senders, and say that nobody waits, unless more may. */
static void
let_in(struct waiters *waiters, uint32_t mark, uint32_t next, int most)
{
    if (atomic_compare_exchange_strong(&waiters->crowd, &mark, next)) {
        atomic_fetch_add(&waiters->room, 1);
        if (futex_wake(&waiters->room, most) < most && next == EACH
            && atomic_compare_exchange_strong(&waiters->crowd, &next, 0)) {
            atomic_fetch_add(&waiters->room, 1); /* for one that came meanwhile */
            (void) futex_wake(&waiters->room, INT_MAX);
        }
    }
}

/* Slots have passed.  Senders of a queue without a bound are not woken as soon as there is room, for who
   waits for some had better find much; and not all at once, for one often keeps the receivers at work,
   and more would take the CPU from them.  So one when half the ring is empty, one more whenever what is
   left has halved again, and all before there is nothing.  Those of a bounded queue are woken for each
   place, and all of one that is bounded by bytes, for the position says whose turn it is. */
void
waiters_let_in(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t mark = atomic_load(&waiters->crowd);

    if (mark == 0) {
        return;
    }
    int64_t backlog = ring_backlog(arena);

    if (mark == EACH) {
        int64_t room = (int64_t) arena->bound - backlog;

        let_in(waiters, mark, EACH, arena->bytes_limit != 0 ? INT_MAX : room > 1 ? (int) room : 1);
    } else if (backlog <= (int64_t) mark) {
        bool all = mark <= ALMOST_EMPTY || backlog <= ALMOST_EMPTY;

        let_in(waiters, mark, all ? 0 : mark / 2, all ? INT_MAX : 1);
    }
}

/* Whether a sender may try again: there is room, or it is the turn of its position. */
static bool
may_go(mpshm_arena *arena, int64_t place)
{
    if (place < 0) {
        return !ring_is_full(arena);
    }
    arena_lock(arena);
    bool may = turn_is_here(arena, (uint64_t) place);

    arena_unlock(arena);
    return may;
}

/* Sleep until there may be room, or it is the turn of `place`: 0, -EAGAIN when there is none, after the
   time or a signal, or -EPIPE when nobody is left to take anything. */
int
waiters_room(mpshm_arena *arena, int fd, int64_t place, int timeout_ms)
{
    struct ring *ring = arena->ring;
    struct waiters *waiters = &ring->waiters;
    uint32_t room = atomic_load(&waiters->room);
    uint64_t head = atomic_load(&ring->head);

    if (fd < 0 || has_hung_up(fd, POLLERR)) {
        return -EPIPE;
    }
    if (timeout_ms > 0 && !may_go(arena, place)) {
        bool each = arena->bytes_limit != 0 || arena->bound < arena->slots || arena->places != 0;

        atomic_store(&waiters->crowd, each ? EACH : arena->slots / 2);
        atomic_thread_fence(memory_order_seq_cst); /* G4 */
        if (!may_go(arena, place)) {
            futex_wait(&waiters->room, room, timeout_ms);
        }
    }
    if (!may_go(arena, place)) { /* perhaps of one message, whose sender is dead */
        ring_mend(arena);
    }
    /* Who has waited tries when receivers are at work, though others may have been quicker. */
    bool moves = place < 0 && (atomic_load(&waiters->room) != room
                               || (timeout_ms > 0 && atomic_load(&ring->head) != head));

    return may_go(arena, place) || moves ? 0 : -EAGAIN;
}
