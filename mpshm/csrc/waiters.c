/* Waiters: which of a ring's receivers spins, polls or sleeps, and how its senders sleep.  waking.c says which of
   them a message or free room wakes.

   A receiver that finds nothing goes through these, and from each back to its caller, which comes again:

     spin (one at a time) --in vain--> sleep, until a wake-up or its watch
                                         '--in a flood, one at a time--> backup: sleep 1 ms

   Sleepers use event counts: futexes that count wake-ups.  Read the count, look at the ring, and sleep
   only while the count is the same.

   Knows the ring's words about waiters, which are hints (struct waiters in layout.h), and how many slots
   are claimed and taken; of a slot only whether there is one to take, or to claim.

   Invariants: G4, G6, G7, W4 (invariants.h).

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
#include "stream.h"

/* How long the backup sleeps, and when it counts as dead or stopped. */
#define BACKUP_MS 1
#define BACKUP_LATE_NS INT64_C(2000000)
/* It is a flood when the others have taken a message in each FLOOD_NS of at least FLOOD_MIN_NS. */
#define FLOOD_NS INT64_C(10000)
#define FLOOD_MIN_NS INT64_C(160000)
/* Receivers at work may stop between two marks: so long a sender sleeps that saw them at work. */
#define ROOM_LOOK_MS 200

/* Receivers. */

/* Whether there is something to go on with: a message in the ring, or one that this process takes and no thread is at. */
static bool
has_message(mpshm_arena *arena)
{
    return ring_is_ready(arena) || stream_is_parked(arena);
}

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
    struct waiters *waiters = &arena->chain->waiters;

    waiter->took += took;
    take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    take_back(&waiters->backup_at_ns, &waiter->backup_at_ns);
    if (waiters_may_sleep(waiters) && ring_is_ready(arena)) {
        waiters_rouse(arena, 1);
    }
}

/* Find out whether there is a flood. */
static void
measure_traffic(mpshm_waiter *waiter, const mpshm_arena *arena, int64_t now)
{
    int64_t period_ns = now - waiter->measured_ns;

    if (period_ns >= FLOOD_MIN_NS) {
        uint64_t taken = chain_taken(arena);
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
    _Atomic int64_t *word = &arena->chain->waiters.spin_until_ns;
    int64_t now = now_ns(), other = atomic_load(word);

    measure_traffic(waiter, arena, now);
    if (waiters_is_ahead(word, now) && other != waiter->spin_until_ns) {
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
    bool is_free = at == waiter->backup_at_ns || !waiters_is_ahead(&waiters->backup_at_ns, now);
    bool is_mine = is_free && atomic_compare_exchange_strong(&waiters->backup_at_ns, &at, next);

    waiter->backup_at_ns = is_mine ? next : 0;
    return is_mine;
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
message_has_come(mpshm_arena *arena, const void *wakeups)
{
    return has_message(arena) || atomic_load(&arena->chain->waiters.wakeups) != *(const uint32_t *) wakeups;
}

static bool
sleep_for_message(mpshm_arena *arena, int fd, int ms)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (has_message(arena)) {
        return true;
    }
    if (ms == 0) {
        return is_at_end(arena, fd);
    }
    uint32_t count = atomic_fetch_or(&waiters->wakeups, MAY_SLEEP) | MAY_SLEEP;

    atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with ring_put's last */
    if (!has_message(arena)) {
        if (is_at_end(arena, fd)) { /* the last sender that closes its end wakes those that have said so */
            return true;
        }
        futex_wait(&waiters->wakeups, count, trim_before_sleep(arena, message_has_come, &count, ms));
    }
    return has_message(arena);
}

/* Sleep until there is a message or the end of file: true; or until the time (-1: any) is over, or
   earlier: false. */
bool
waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms)
{
    struct waiters *waiters = &arena->chain->waiters;

    take_back(&waiters->spin_until_ns, &waiter->spin_until_ns);
    INVARIANT(G7, waiter->spin_until_ns == 0);
    bool backs = is_backup(waiter, waiters);
    int most_ms = backs ? BACKUP_MS : watch_ms(arena, &waiter->watch);
    bool is_there = sleep_for_message(arena, fd, watch_shorter(timeout_ms, most_ms));

    if (!backs && watch_is_over(waiter->watch)) {
        waiters_look_round(arena);
    }
    return is_there;
}

/* The same for one that would not take the message. */
bool
waiters_poll(mpshm_arena *arena, int fd, int timeout_ms)
{
    if (timeout_ms == 0) {
        return sleep_for_message(arena, fd, 0);
    }
    int most_ms = watch_common_ms(arena);
    bool is_there = sleep_for_message(arena, fd, watch_shorter(timeout_ms, most_ms));

    if (watch_common_is_over(arena)) {
        waiters_look_round(arena);
    }
    return is_there;
}

/* Senders. */

/* What a sender waits for. */
struct room {
    int64_t place; /* that it is the turn of this position; -1: that there is room, in the last ring or in the queue: */
    short gone;    /* POLLERR or 0, as for waiters_room */
};

/* Whether it may try. */
static bool
may_try(mpshm_arena *arena, struct room room)
{
    int64_t place = room.place;

    if (place < 0) {
        return room.gone != 0 ? chain_has_room(arena) : !chain_is_full(arena);
    }
    arena_lock(arena);
    bool may = turn_is_here(arena, (uint64_t) place);

    arena_unlock(arena);
    return may;
}

static bool
is_deserted(int fd, short gone)
{
    return fd < 0 || (gone != 0 && has_hung_up(fd, gone));
}

static bool
room_has_come(mpshm_arena *arena, const void *room)
{
    return may_try(arena, *(const struct room *) room);
}

/* Half a full ring, or of what is there, if there are several. */
static uint32_t
half_of(const mpshm_arena *arena)
{
    int64_t open = chain_backlog(arena), slots = arena->zero.slots;

    return (uint32_t) ((open > slots ? open : slots) / 2);
}

/* Sleep until a wake-up or a signal, or until the time (-1: any) or this process's watch is over. */
static void
sleep_for_room(mpshm_arena *arena, int fd, struct room room, uint32_t count, int timeout_ms)
{
    struct waiters *waiters = &arena->chain->waiters;
    bool each = waiters_wakes_each(arena);
    int most_ms = watch_common_ms(arena);
    uint64_t taken = chain_taken(arena);

    if (!each && atomic_exchange(&arena->room_seen, taken) != taken) {
        most_ms = watch_shorter(most_ms, ROOM_LOOK_MS);
    }

    atomic_store(&waiters->room_mark, each ? ROOM_MARK_EACH : half_of(arena));
    atomic_thread_fence(memory_order_seq_cst); /* G4: pairs with ring_take's compare-and-swap */
    if (!may_try(arena, room) && !is_deserted(fd, room.gone)) {
        int ms = watch_shorter(timeout_ms, most_ms);

        futex_wait(&waiters->room_wakeups, count, trim_before_sleep(arena, room_has_come, &room, ms));
    }
    if (watch_common_is_over(arena)) {
        waiters_look_round(arena);
    }
}

/* Sleep until there may be room, or until it is the turn of `place` (-1: none): 0; or -EAGAIN: it is not so,
   and the time (-1: any) is over, or earlier; or -EPIPE when no receiver is left.  gone: POLLERR says that, and the
   last ring must have the room; or 0, wait all the same, for a place in the queue. */
int
waiters_room(mpshm_arena *arena, int fd, short gone, int64_t place, int timeout_ms)
{
    struct waiters *waiters = &arena->chain->waiters;
    uint32_t count = atomic_load(&waiters->room_wakeups);
    uint64_t taken = chain_taken(arena);
    struct room room = {place, gone};

    if (is_deserted(fd, gone)) {
        waiters_call_senders(arena); /* they are to see it, and nobody else wakes them */
        return -EPIPE;
    }
    if (timeout_ms != 0 && !may_try(arena, room)) {
        sleep_for_room(arena, fd, room, count, timeout_ms);
        /* Receivers are at work: worth another try, though other senders may have been quicker. */
        if (place < 0
            && (atomic_load(&waiters->room_wakeups) != count || chain_taken(arena) != taken)) {
            return 0;
        }
    }
    if (!may_try(arena, room) && stream_mend(arena)) { /* the dead were in the way, of others as well */
        waiters_let_in(arena, INT_MAX);
    }
    return may_try(arena, room) ? 0 : -EAGAIN;
}

