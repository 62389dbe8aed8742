/* Waking: which of a ring's sleepers a message or free room wakes.

   A message wakes one sleeper.  But a wake-up costs ten times what a message does, and in a flood the
   sleeper mostly finds that a receiver at work was quicker.  So a message wakes nobody while a receiver
   spins, and in a flood nobody while there is a backup, which finds what those at work leave behind.

   A process that should wake another may be killed before it does.  So each sleeps no longer than until its
   watch (watch.c), and whoever wakes by its watch looks round for all that wait at this queue.

   Knows the ring's words about waiters, which are hints (struct waiters in layout.h), and how many slots
   are claimed and taken; of a slot only whether there is one to take, or to claim.  Does not know how one sleeps
   (waiters.c).

   Invariants: A4, G4, G6, W4 (invariants.h).

   Memory order: see waiters.c. */
#include "internal.h"

#include <limits.h>

#include "ring.h"
#include "stream.h"

/* More messages than this are too many to wait for the backup. */
#define BACKUP_BACKLOG_MAX 64
/* All senders are woken when no more slots than this are claimed. */
#define ALMOST_EMPTY 8

/* Receivers. */

/* Let up to `most` sleepers look for themselves.  If fewer were asleep, the flag is cleared, and then all
   are woken that fell asleep before it was.  G4 */
void
waiters_call(mpshm_arena *arena, int most)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (!waiters_may_sleep(waiters)) {
        return;
    }
    uint32_t count = atomic_fetch_add(&waiters->wakeups, ONE_WAKE_UP) + ONE_WAKE_UP;

    if (futex_wake(&waiters->wakeups, most) < most
        && atomic_compare_exchange_strong(&waiters->wakeups, &count, count & ~MAY_SLEEP)) {
        (void) futex_wake(&waiters->wakeups, INT_MAX);
    }
}

/* There are `count` messages that perhaps no receiver knows of.  G6 */
void
waiters_rouse(mpshm_arena *arena, int count)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (!waiters_may_sleep(waiters)) {
        return;
    }
    int64_t now = now_ns();

    if (waiters_is_ahead(&waiters->backup_at_ns, now) && chain_backlog(arena) <= BACKUP_BACKLOG_MAX) {
        return;
    }
    count -= waiters_is_ahead(&waiters->spin_until_ns, now); /* that one sees it by itself */
    if (count > 0) {
        waiters_call(arena, count);
    }
}

/* Senders. */

static int
call_senders(struct waiters *waiters, int most)
{
    atomic_fetch_add(&waiters->room_wakeups, 1);
    return futex_wake(&waiters->room_wakeups, most);
}

/* Let all look for themselves. */
void
waiters_call_senders(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (atomic_load(&waiters->room_mark) != 0 && atomic_exchange(&waiters->room_mark, 0) != 0) {
        (void) call_senders(waiters, INT_MAX);
    }
}

/* For how many senders there is room: all are woken where the position says whose turn it is.  The backlog does not say
   what has passed behind a slot that stops the head, so there are places for at least as many as have passed now. */
static int
room_for(const mpshm_arena *arena, int passed)
{
    int64_t places = (int64_t) arena->bound - chain_backlog(arena);

    return arena->bytes_limit != 0 ? INT_MAX : places > passed ? (int) places : passed;
}

/* Senders of a bounded queue: as many are woken as there are places.  The mark stays until fewer were asleep:
   see waiters_call. */
static void
let_in_each(mpshm_arena *arena, int passed)
{
    struct waiters *waiters = &arena->chain->waiters;
    int most = room_for(arena, passed);
    uint32_t mark = ROOM_MARK_EACH;

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
waiters_let_in(mpshm_arena *arena, int passed)
{
    struct waiters *waiters = &arena->chain->waiters;
    uint32_t mark = atomic_load(&waiters->room_mark);

    if (mark == 0) {
        return;
    }
    if (mark == ROOM_MARK_EACH) {
        let_in_each(arena, passed);
        return;
    }
    int64_t backlog = chain_backlog(arena);
    bool all = mark <= ALMOST_EMPTY || backlog <= ALMOST_EMPTY;
    int most = all ? (int) arena->zero.slots : 1;

    if (backlog <= (int64_t) mark
        && atomic_compare_exchange_strong(&waiters->room_mark, &mark, all ? 0 : mark / 2)
        && call_senders(waiters, most) == most && all) {
        atomic_store(&waiters->room_mark, ALMOST_EMPTY);
    }
}

/* All of them. */

/* Wake senders for whom there is room, whatever the mark says. */
static void
let_in_unasked(mpshm_arena *arena)
{
    bool has_room = arena->bytes_limit != 0 ? turn_is_missed(arena) : !chain_is_full(arena);

    if (has_room) {
        bool many = waiters_wakes_each(arena) || chain_backlog(arena) <= ALMOST_EMPTY;

        (void) call_senders(&arena->chain->waiters, many ? room_for(arena, 1) : 1);
    }
}

/* A watch is over.  Mend what the dead left, and wake those that wait for what is there, though a word says that
   nobody does: it may have been cleared by one that was killed before it woke them.  W4 */
static void
look_round(mpshm_arena *arena)
{
    (void) stream_mend(arena);
    chain_reap(arena);
    stream_reap(arena);
    if (ring_is_ready(arena)) {
        (void) atomic_fetch_or(&arena->chain->waiters.wakeups, MAY_SLEEP);
        waiters_call(arena, 1);
    }
    let_in_unasked(arena);
    tasks_look_again(arena);
}

void
waiters_look_round(mpshm_arena *arena)
{
    arena_lock(arena); /* it has its name, for its parent may be one of the dead */
    roster_census(arena->roster);
    look_round(arena);
    arena_unlock(arena);
}

/* A process has died.  Besides, one receiver looks whether anybody is left at the other end, and wakes the others
   if nobody is; and all senders do, for some do not ask that.  Under arena_lock. */
void
waiters_see_death(mpshm_arena *arena)
{
    INVARIANT(A4, arena_is_locked(arena));
    pressure_call_unasked(arena);
    (void) futex_wake(&arena->header->tracked, INT_MAX);
    if (arena->chain != NULL) {
        look_round(arena);
        waiters_call(arena, 1);
        stream_call(arena);
        if (atomic_load(&arena->chain->waiters.room_mark) != 0) {
            (void) call_senders(&arena->chain->waiters, INT_MAX);
        }
    }
}
