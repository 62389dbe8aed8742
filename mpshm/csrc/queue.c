/* Queues: the ends of a queue that this process has open, its size, places that are kept for messages to
   come, and the wait for the last task.

   Knows ends, positions, and when a wait ends.  Does not know a frame (queue_put.c, queue_get.c), a slot's
   word (ring.h), nor how a receiver sleeps (waiters.c).

   Invariants: A2, A4, Q2, Q3 (invariants.h).

   Memory order: none of its own, but mpshm_wait_done's, which tasks.c tells. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>

#include "queue.h"
#include "ring.h"
#include "stream.h"

/* How long a receiver that its pipe has woken waits for a message that is still being written. */
#define DUE_NS INT64_C(20000000)
_Static_assert(MPSHM_SLOT_BYTES == RING_DATA_BYTES, "a slot is what the ring holds");

uint32_t
mpshm_queue_frame_bytes(mpshm_arena *arena)
{
    return arena->slot_bytes;
}

uint64_t
mpshm_queue_bytes_limit(mpshm_arena *arena)
{
    return arena->bytes_limit;
}

void
mpshm_end_open(const mpshm_end *end)
{
    mpshm_arena *arena = end->arena;

    process_lock();
    INVARIANT(A2, arena->refs > 0);
    arena->ends++;
    arena->receivers += end->receives != 0;
    arena->writer = end->receives ? arena->writer : end->fd;
    arena->refs++; /* at interpreter exit an end may be closed after its arena's handle */
    process_unlock();
}

void
mpshm_end_stop_receiving(const mpshm_end *end)
{
    process_lock();
    INVARIANT(A2, !end->receives || end->arena->receivers > 0);
    end->arena->receivers -= end->receives != 0;
    if (end->arena->receivers == 0) {
        stream_drop_parked(end->arena);
    }
    end->arena->writer = -1; /* perhaps another's; then one is opened when it is needed */
    process_unlock();
}

void
mpshm_end_release(const mpshm_end *end)
{
    if (!end->receives) { /* perhaps the last by which anything could be sent */
        waiters_call(end->arena, INT_MAX);
    }
    waiters_call_senders(end->arena); /* no receiver may be left now, or this was the end that they wait at */
    process_lock();
    INVARIANT(A2, end->arena->ends > 0);
    bool was_last = --end->arena->ends == 0;

    process_unlock();
    if (was_last && trim_has_memory(end->arena)) {
        trim_at_close(end->arena); /* others may keep the file for long, and this process its handle */
    }
    arena_let_go(end->arena);
}

/* A receiver that its pipe has woken must not find the queue empty, so this waits until the sender has
   written its message; not for ever, for the sender may be stopped. */
bool
queue_due_is_ready(mpshm_arena *arena)
{
    bool is_ready = ring_is_ready(arena);

    if (is_ready || !mirror_is_due(arena)) {
        return is_ready;
    }
    chain_mend(arena); /* perhaps the sender is dead */
    for (int64_t until = now_ns() + DUE_NS; !ring_is_ready(arena);) {
        if (!mirror_is_due(arena) || now_ns() >= until) {
            return false;
        }
        sched_yield();
    }
    return true;
}

int
mpshm_queue_poll(const mpshm_end *end, int timeout_ms)
{
    bool is_there = queue_due_is_ready(end->arena)
                    || waiters_poll(end->arena, end->fd, timeout_ms);

    if (is_there && timeout_ms != 0) {
        waiters_call(end->arena, 1); /* this one only looked: the message may be another receiver's */
    }
    return is_there;
}

void
mpshm_queue_call(const mpshm_end *end)
{
    waiters_call(end->arena, INT_MAX);
}

void
mpshm_queue_watch(const mpshm_end *end)
{
    arena_lock(end->arena);
    if (end->fd >= 0) {
        mirror_watch(end->arena, end->fd);
    }
    arena_unlock(end->arena);
}

uint64_t
mpshm_queue_taken(mpshm_arena *arena)
{
    return chain_taken(arena);
}

int
mpshm_queue_grow(const mpshm_end *end)
{
    arena_lock(end->arena);
    int error = end->arena->me == 0 ? MPSHM_E_CROWDED : chain_grow(end->arena);

    arena_unlock(end->arena);
    return error;
}

/* Places. */

/* Whether each message of the queue has a position from the moment that it is accepted.  Otherwise those
   that the feeders hold are pending. */
static bool
has_positions(const mpshm_arena *arena)
{
    return arena->bytes_limit != 0
           || (arena->places != 0 && (arena->grows || arena->places <= arena->zero.slots));
}

/* How many messages may be pending.  With those that its one ring has slots for, a bounded queue's are as many
   as it has places. */
static int64_t
pending_most(const mpshm_arena *arena)
{
    return arena->places == 0 ? INT64_MAX : (int64_t) arena->places - (int64_t) arena->zero.slots;
}

/* See to it that arena->me is this process's: its parent may be one of the dead. */
static void
look_at_name(mpshm_arena *arena)
{
    arena_lock(arena);
    arena_unlock(arena);
}

int64_t
mpshm_queue_size(mpshm_arena *arena)
{
    look_at_name(arena);
    (void) stream_mend(arena);
    return (int64_t) ring_count(arena, true) + tasks_pending(arena);
}

/* Whether a message of any size is one too many. */
static bool
is_over_bytes(mpshm_arena *arena)
{
    if (arena->bytes_limit == 0) {
        return false;
    }
    arena_lock(arena);
    bool over = !turn_is_next(arena, MPSHM_SLOT_BYTES);

    arena_unlock(arena);
    return over;
}

/* Why no position can be claimed: the queue is full, or only its ring is.  MPSHM_E_FULL, or -EAGAIN. */
int
queue_why_full(mpshm_arena *arena)
{
    bool full = arena->places != 0
                && (has_positions(arena) ? !arena->grows || chain_is_full(arena)
                                         : tasks_pending(arena) >= pending_most(arena));

    return full ? MPSHM_E_FULL : -EAGAIN;
}

int
mpshm_queue_full(mpshm_arena *arena)
{
    if (arena->places == 0 && arena->bytes_limit == 0) {
        return 0;
    }
    look_at_name(arena);
    (void) stream_mend(arena);
    if (!chain_is_full(arena)) {
        return is_over_bytes(arena);
    }
    return has_positions(arena) || tasks_pending(arena) >= pending_most(arena);
}

/* Under arena_lock.  Every process says first what it has pending, and then looks at the sum: so there
   are never too many. */
static int64_t
take_pending(mpshm_arena *arena)
{
    tasks_pend(arena, 1);
    if (tasks_pending(arena) > pending_most(arena)) {
        tasks_pend(arena, -1);
        return MPSHM_E_FULL;
    }
    return MPSHM_PENDING;
}

/* Under arena_lock.  The queue may have places where its rings have none. */
static bool
hold_position(mpshm_arena *arena, uint64_t *spot)
{
    return ring_claim(arena, SLOT_HELD, 1, spot) == 1
           || (arena->grows && !chain_is_full(arena) && chain_grow(arena) == 0
               && ring_claim(arena, SLOT_HELD, 1, spot) == 1);
}

mpshm_place *
mpshm_place_new(mpshm_arena *arena)
{
    mpshm_place *place = malloc(sizeof *place);

    if (place != NULL) {
        *place = (mpshm_place) {.arena = arena, .at = MPSHM_NO_PLACE};
        arena_keep(arena);
    }
    return place;
}

void
mpshm_place_free(mpshm_place *place)
{
    if (place != NULL) {
        mpshm_place_give(place);
        arena_let_go(place->arena);
        free(place);
    }
}

int
mpshm_place_take(mpshm_place *place)
{
    mpshm_arena *arena = place->arena;
    uint64_t position;
    int64_t at = MPSHM_E_FULL;

    arena_lock(arena);
    if (arena->me == 0) {
        at = MPSHM_E_CROWDED;
    } else if (place->at != MPSHM_NO_PLACE) {
        at = -EINVAL;
    } else if (!has_positions(arena)) {
        at = take_pending(arena);
    } else if (hold_position(arena, &position)) {
        at = (int64_t) position;
    }
    if (at >= 0) {
        place->at = at;
        place->generation = mpshm_process.generation;
    }
    arena_unlock(arena);
    return at >= 0 ? 0 : (int) at;
}

void
mpshm_place_give(mpshm_place *place)
{
    mpshm_arena *arena = place->arena;

    arena_lock(arena);
    if (place_is_pending(place)) {
        tasks_pend(arena, -1);
    } else if (place_is_position(place) && ring_is_held(arena, (uint64_t) place->at)) {
        ring_give_up(arena, (uint64_t) place->at);
        waiters_let_in(arena, 1);
    }
    place->at = MPSHM_NO_PLACE;
    arena_unlock(arena);
}

/* Holds no lock while it waits: Q3.  The bell is read before `joiners` says that somebody waits for it,
   and that before the sum: see tasks_settle. */
int
mpshm_wait_done(mpshm_arena *arena, int timeout_ms)
{
    struct waiters *waiters = &arena->chain->waiters;
    uint32_t bell = atomic_load(&waiters->done_bell);

    look_at_name(arena);
    atomic_store(&waiters->joiners, 1);
    if (tasks_unfinished(arena) > 0) {
        (void) stream_mend(arena);
        if (tasks_unfinished(arena) > 0) {
            futex_wait(&waiters->done_bell, bell, watch_shorter(timeout_ms, watch_common_ms(arena)));
            if (watch_common_is_over(arena)) {
                waiters_look_round(arena);
            }
        }
    }
    return tasks_unfinished(arena) > 0 ? -ETIMEDOUT : 0;
}
