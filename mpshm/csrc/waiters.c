/* Waiters: which of a ring's receivers spins, polls or sleeps, which of its senders sleeps, and which of
   them a message or free room wakes.

   A receiver that finds nothing goes through these, and from each back to its caller, which comes again:

     spin (one at a time) --in vain--> sleep, until a wake-up or its watch
                                         '--in a flood, one at a time--> backup: sleep 1 ms

   A message wakes one sleeper.  But a wake-up costs ten times what a message does, and in a flood the
   sleeper mostly finds that a receiver at work was quicker.  So a message wakes nobody while a receiver
   spins, and in a flood nobody while there is a backup, which finds what those at work leave behind.

   Sleepers use event counts: futexes that count wake-ups.  Read the count, look at the ring, and sleep
   only while the count is the same.

   Knows the ring's words about waiters, which are hints (struct waiters in layout.h), and how many slots
   are claimed and taken; of a slot only whether there is one to take, or to claim.

   Invariants: G4, G6, G7, W3 (invariants.h).

   Memory order: the words order nothing.  Each pair below is a store and a load on either side, with a
   sequentially consistent fence between them (for FREE, the compare-and-swap itself is sequentially
   consistent), so that one of the two sees the other's store:

     receiver: sets MAY_SLEEP, looks at the ring           sender: READY (ring_put), reads MAY_SLEEP
     receiver: takes back its time as spinner or backup,   sender: READY (ring_put), reads these times
               looks at the ring
     sender:   sets room_mark, looks at the ring           receiver: passes a slot, reads room_mark */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>

#include "ring.h"

/* In `wakeups`: the flag, and one wake-up. */
#define MAY_SLEEP UINT32_C(1)
#define ONE_WAKE_UP UINT32_C(2)
/* A time further ahead than this is a stray write. */
#define AHEAD_MAX_NS INT64_C(1000000000)
/* How long the backup sleeps, and when it counts as dead or stopped. */
#define BACKUP_MS 1
#define BACKUP_LATE_NS INT64_C(2000000)
/* More messages than this are too many to wait for the backup. */
#define BACKUP_BACKLOG_MAX 64
/* It is a flood when the others have taken a message in each FLOOD_NS of at least FLOOD_MIN_NS. */
#define FLOOD_NS INT64_C(10000)
#define FLOOD_MIN_NS INT64_C(160000)
/* A watch is one of the next WATCHES periods, of so many ms: for receivers, and for senders. */
#define WATCHES 32
#define WATCH_MS 1250
#define ROOM_WATCH_MS 200
/* All senders are woken when no more slots than this are claimed. */
#define ALMOST_EMPTY 8
/* In `room_mark`, of a bounded queue. */
#define EACH UINT32_MAX

/* How far the ring has been emptied. */
static uint64_t
taken_of(const mpshm_arena *arena)
{
    return HEAD_POSITION(atomic_load_explicit(&arena->ring->head, memory_order_relaxed));
}

/* Waking receivers. */

static bool
may_sleep(struct waiters *waiters)
{
    return (atomic_load_explicit(&waiters->wakeups, memory_order_relaxed) & MAY_SLEEP) != 0;
}

/* Let up to `most` sleepers look for themselves.  If fewer were asleep, the flag is cleared, and then all
   are woken that fell asleep before it was.  G4 */
void
waiters_call(mpshm_arena *arena, int most)
{
    struct waiters *waiters = &arena->ring->waiters;

    if (!may_sleep(waiters)) {
        return;
    }
    uint32_t count = atomic_fetch_add(&waiters->wakeups, ONE_WAKE_UP) + ONE_WAKE_UP;

    if (futex_wake(&waiters->wakeups, most) < most
        && atomic_compare_exchange_strong(&waiters->wakeups, &count, count & ~MAY_SLEEP)) {
        (void) futex_wake(&waiters->wakeups, INT_MAX);
    }
}

static bool
is_ahead(_Atomic int64_t *time_ns, int64_t now)
{
    int64_t at = atomic_load_explicit(time_ns, memory_order_relaxed);

    return at > now && (uint64_t) at - (uint64_t) now < AHEAD_MAX_NS;
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

    if (is_ahead(&waiters->backup_at_ns, now) && ring_backlog(arena) <= BACKUP_BACKLOG_MAX) {
        return;
    }
    count -= is_ahead(&waiters->spin_until_ns, now); /* that one sees it by itself */
    if (count > 0) {
        waiters_call(arena, count);
    }
}

/* Receivers. */

void
waiter_init(mpshm_waiter *waiter, uint32_t spin_us)
{
    *waiter = (mpshm_waiter) {0};
    spin_init(&waiter->spin, spin_us);
}

/* Take back the time that this receiver has stored in a word, if it still stands there.  The caller looks
   at the ring afterwards.  G7 */
static void
take_back(_Atomic int64_t *word, int64_t *mine)
{
    if (*mine != 0) {
        atomic_compare_exchange_strong(word, mine, 0);
        atomic_thread_fence(memory_order_seq_cst); /* pairs with ring_put's last */
        *mine = 0;
    }
}

/* It leaves, perhaps for long, with so many messages: it neither spins nor is the backup any more.  What
   was put meanwhile may have woken nobody, so if there is something this wakes another.  G7 */
void
waiter_goes(mpshm_waiter *waiter, mpshm_arena *arena, uint32_t took)
{
    struct waiters *waiters = &arena->ring->waiters;

    waiter->took += took;
    take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    take_back(&waiters->backup_at_ns, &waiter->backup_at_ns);
    if (may_sleep(waiters) && ring_is_ready(arena)) {
        waiters_rouse(arena, 1);
    }
}

/* Find out whether there is a flood. */
static void
measure_traffic(mpshm_waiter *waiter, const mpshm_arena *arena, int64_t now)
{
    int64_t period_ns = now - waiter->measured_ns;

    if (period_ns >= FLOOD_MIN_NS) {
        uint64_t taken = taken_of(arena);
        int64_t by_others = position_ahead(taken, waiter->measured_taken) - (int64_t) waiter->took;

        waiter->floods = by_others >= period_ns / FLOOD_NS;
        waiter->measured_ns = now;
        waiter->measured_taken = taken;
        waiter->took = 0;
    }
}

/* Spin, if that is worth it and no other does: 1 when there is a message, -EAGAIN when it is time to
   sleep, -EINTR when the caller is to look for signals first. */
int
waiter_look(mpshm_waiter *waiter, mpshm_arena *arena)
{
    _Atomic int64_t *word = &arena->ring->waiters.spin_until_ns;
    int64_t now = now_ns(), other = atomic_load(word);

    measure_traffic(waiter, arena, now);
    if (is_ahead(word, now) && other != waiter->spin_until_ns) {
        return -EAGAIN;
    }
    /* In a flood a sleeper would be woken at once.  Only others' takes count as one: when this receiver
       and the sender share a CPU, the one that yields it is late. */
    int64_t until = spin_begin(&waiter->spin, waiter->floods);

    if (until == 0 || !atomic_compare_exchange_strong(word, &other, until)) {
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

/* In a flood, be the backup if no other is; else be it no longer.  G6 */
static bool
is_backup(mpshm_waiter *waiter, struct waiters *waiters)
{
    int64_t now = now_ns(), next = now + BACKUP_LATE_NS, at = atomic_load(&waiters->backup_at_ns);

    if (!waiter->floods) {
        take_back(&waiters->backup_at_ns, &waiter->backup_at_ns);
        return false;
    }
    bool is_free = at == waiter->backup_at_ns || !is_ahead(&waiters->backup_at_ns, now);
    bool is_mine = is_free && atomic_compare_exchange_strong(&waiters->backup_at_ns, &at, next);

    waiter->backup_at_ns = is_mine ? next : 0;
    return is_mine;
}

/* How long one may sleep: until its watch is over.  Nobody wakes a sleeper when the process that was to do
   it is killed, or was the last at the other end.  So each wakes by itself at the end of its watch, the
   first of the next periods that was nobody's; from WATCHES sleepers on several have the last one.  One
   wakes in each period, however many sleep; when some are killed, another does some periods later. */
static int
watch_of(_Atomic uint64_t *watches, uint32_t *mine, int period_ms)
{
    uint32_t now = (uint32_t) (now_ns() / 1000000 / period_ms);

    if (*mine - now - 1 >= WATCHES) { /* its last one is over */
        uint64_t seen = atomic_load(watches);
        uint32_t passed = now - (uint32_t) (seen >> 32);
        uint32_t others = passed < WATCHES ? (uint32_t) seen >> passed : 0;
        uint32_t i = ~others != 0 ? (uint32_t) __builtin_ctz(~others) : WATCHES - 1;

        /* If another is quicker, both may have the same. */
        atomic_compare_exchange_strong(watches, &seen,
                                       (uint64_t) now << 32 | others | UINT32_C(1) << i);
        *mine = now + 1 + i;
    }
    INVARIANT(W3, *mine - now - 1 < WATCHES);
    return (int) (*mine - now) * period_ms;
}

/* The same for a watch that the threads of this process have in common. */
static int
common_watch(_Atomic uint64_t *watches, _Atomic uint32_t *common, int period_ms)
{
    uint32_t mine = atomic_load_explicit(common, memory_order_relaxed);
    int ms = watch_of(watches, &mine, period_ms);

    atomic_store_explicit(common, mine, memory_order_relaxed);
    return ms;
}

static int
shorter(int timeout_ms, int most_ms)
{
    return timeout_ms < 0 || timeout_ms > most_ms ? most_ms : timeout_ms;
}

/* Whether no sender is left.  The others that sleep are to see it, and nobody else wakes them. */
static bool
is_at_end(mpshm_arena *arena, int fd)
{
    bool ended = fd < 0 || has_hung_up(fd, POLLHUP | POLLNVAL);

    if (ended) {
        waiters_call(arena, INT_MAX);
    }
    return ended;
}

static bool
message_wait_is_over(mpshm_arena *arena, const void *until_ns)
{
    return ring_is_ready(arena) || now_ns() >= *(const int64_t *) until_ns;
}

static bool
sleep_for_message(mpshm_arena *arena, int fd, int ms)
{
    struct waiters *waiters = &arena->ring->waiters;

    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    if (ms == 0) {
        return false;
    }
    uint32_t count = atomic_fetch_or(&waiters->wakeups, MAY_SLEEP) | MAY_SLEEP;

    atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with ring_put's last */
    if (!ring_is_ready(arena)) {
        if (trim_is_due(arena)) {
            int64_t until = now_ns() + (int64_t) ms * 1000000;

            trim_if_due(arena, message_wait_is_over, &until);
            ms = ms_until(until);
        }
        futex_wait(&waiters->wakeups, count, ms);
    }
    return ring_is_ready(arena);
}

/* Sleep until there is a message or the end of file: true; or until the time (-1: any) is over, or
   earlier: false. */
bool
waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;

    take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    INVARIANT(G7, waiter->spin_until_ns == 0);
    int most_ms = is_backup(waiter, waiters)
                      ? BACKUP_MS
                      : watch_of(&waiters->watches, &waiter->watch, WATCH_MS);

    return sleep_for_message(arena, fd, shorter(timeout_ms, most_ms));
}

/* The same for one that would not take the message. */
bool
waiters_poll(mpshm_arena *arena, int fd, int timeout_ms)
{
    if (timeout_ms != 0) {
        int watch_ms = common_watch(&arena->ring->waiters.watches, &arena->poll_watch, WATCH_MS);

        timeout_ms = shorter(timeout_ms, watch_ms);
    }
    return sleep_for_message(arena, fd, timeout_ms);
}

/* Senders. */

static int
call_senders(struct waiters *waiters, int most)
{
    atomic_fetch_add(&waiters->room_wakeups, 1);
    return futex_wake(&waiters->room_wakeups, most);
}

/* Senders of a bounded queue: as many are woken as there are places, and all where the position says whose
   turn it is.  The mark stays until fewer were asleep: see waiters_call. */
static void
let_in_each(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;
    int64_t places = (int64_t) arena->bound - ring_backlog(arena);
    int most = arena->bytes_limit != 0 ? INT_MAX : places > 1 ? (int) places : 1;
    uint32_t mark = EACH;

    if (call_senders(waiters, most) < most
        && atomic_compare_exchange_strong(&waiters->room_mark, &mark, 0)) {
        (void) call_senders(waiters, INT_MAX);
    }
}

/* Slots have passed.  A sender that waits for a ring without a bound had better find much room; and one
   often keeps the receivers at work, while more would take the CPU from them.  So one is woken when half the
   ring is empty, another whenever what is left has halved again, and when almost nothing is left as many
   as there are slots: then the mark stays if more may sleep. */
void
waiters_let_in(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t mark = atomic_load(&waiters->room_mark);

    if (mark == 0) {
        return;
    }
    if (mark == EACH) {
        let_in_each(arena);
        return;
    }
    int64_t backlog = ring_backlog(arena);
    bool all = mark <= ALMOST_EMPTY || backlog <= ALMOST_EMPTY;
    int most = all ? (int) arena->slots : 1;

    if (backlog <= (int64_t) mark
        && atomic_compare_exchange_strong(&waiters->room_mark, &mark, all ? 0 : mark / 2)
        && call_senders(waiters, most) == most && all) {
        atomic_store(&waiters->room_mark, ALMOST_EMPTY);
    }
}

/* Whether a sender may try: there is room, or it is the turn of its position. */
static bool
may_try(mpshm_arena *arena, int64_t place)
{
    if (place < 0) {
        return !ring_is_full(arena);
    }
    arena_lock(arena);
    bool may = turn_is_here(arena, (uint64_t) place);

    arena_unlock(arena);
    return may;
}

struct place_wait {
    int64_t place, until_ns;
};

static bool
place_wait_is_over(mpshm_arena *arena, const void *what)
{
    const struct place_wait *wait = what;

    return may_try(arena, wait->place) || now_ns() >= wait->until_ns;
}

/* Sleep until a wake-up or a signal, or until the time (-1: any) or this process's watch is over. */
static void
sleep_for_room(mpshm_arena *arena, int64_t place, uint32_t count, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;
    bool each = arena->places != 0 || arena->bytes_limit != 0;
    int watch_ms = common_watch(&waiters->room_watches, &arena->room_watch, ROOM_WATCH_MS);

    atomic_store(&waiters->room_mark, each ? EACH : arena->slots / 2);
    atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with ring_take's compare-and-swap */
    if (!may_try(arena, place)) {
        int ms = shorter(timeout_ms, watch_ms);

        if (trim_is_due(arena)) {
            int64_t until = now_ns() + (int64_t) ms * 1000000;

            trim_if_due(arena, place_wait_is_over, &(struct place_wait) {place, until});
            ms = ms_until(until);
        }
        futex_wait(&waiters->room_wakeups, count, ms);
    }
}

/* Sleep until there may be room, or until it is the turn of `place` (-1: none): 0; or -EAGAIN: it is not so,
   and the time (-1: any) is over, or earlier; or -EPIPE when no receiver is left. */
int
waiters_room(mpshm_arena *arena, int fd, int64_t place, int timeout_ms)
{
    struct waiters *waiters = &arena->ring->waiters;
    uint32_t count = atomic_load(&waiters->room_wakeups);
    uint64_t taken = taken_of(arena);

    if (fd < 0 || has_hung_up(fd, POLLERR)) {
        if (atomic_exchange(&waiters->room_mark, 0) != 0) {
            (void) call_senders(waiters, INT_MAX); /* they are to see it, and nobody else wakes them */
        }
        return -EPIPE;
    }
    if (timeout_ms != 0 && !may_try(arena, place)) {
        sleep_for_room(arena, place, count, timeout_ms);
        /* Receivers are at work: worth another try, though other senders may have been quicker. */
        if (place < 0
            && (atomic_load(&waiters->room_wakeups) != count || taken_of(arena) != taken)) {
            return 0;
        }
    }
    if (!may_try(arena, place) && ring_mend(arena)) { /* the dead were in the way, of others as well */
        waiters_let_in(arena);
    }
    return may_try(arena, place) ? 0 : -EAGAIN;
}
