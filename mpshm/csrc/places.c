/* Places: how many messages a bounded queue holds, and how many of a joinable one are not done.

   Knows counts in the arena's header and in the peers' records, and waits; knows no slot but its size.

   Invariants:
   Q2  places_used is at least what the ring and the living hold: who is killed makes the queue
       fuller than it is, never emptier, and reap.c finds the difference.  What a peer has pending is
       in no ring. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>

static bool
is_limited(const mpshm_arena *arena)
{
    return arena->header->places != 0 || arena->header->bytes_limit != 0;
}

/* Whether its messages are counted one by one: the others' number is the ring's. */
bool
places_counted(const mpshm_arena *arena)
{
    return is_limited(arena) || arena->header->joinable;
}

void
places_pend(mpshm_arena *arena, int32_t messages)
{
    struct peer *me = peer_self(arena);

    if (me != NULL) {
        atomic_fetch_add(&me->pending, (uint32_t) messages);
    }
}

/* A place for one message and its bytes: its slot and the chunks of its runs, which can be counted
   again.  Under arena_lock.  Q2 */
bool
places_take(mpshm_arena *arena, uint64_t bytes)
{
    struct arena_header *header = arena->header;

    if (!places_counted(arena)) {
        return true;
    }
    if (header->bytes_limit != 0) {
        uint64_t before = atomic_fetch_add(&header->bytes_used, bytes);

        /* One message larger than the limit passes alone. */
        if (before != 0 && before + bytes > header->bytes_limit) {
            atomic_fetch_sub(&header->bytes_used, bytes);
            return false;
        }
    }
    uint32_t used = atomic_load(&header->places_used);
    bool fits;

    do {
        fits = header->places == 0 || used < header->places;
    } while (fits && !atomic_compare_exchange_weak(&header->places_used, &used, used + 1));
    if (!fits) {
        if (header->bytes_limit != 0) {
            atomic_fetch_sub(&header->bytes_used, bytes);
        }
        return false;
    }
    if (header->joinable) {
        atomic_fetch_add(&header->unfinished, 1);
    }
    places_pend(arena, 1);
    return true;
}

/* Not below 0: a forged message leaves a place that it never took. */
static uint32_t
take_away(_Atomic uint32_t *count, uint32_t n)
{
    uint32_t was = atomic_load(count), left;

    do {
        left = was > n ? was - n : 0;
    } while (!atomic_compare_exchange_weak(count, &was, left));
    return left;
}

/* Messages have left the queue. */
void
places_leave(mpshm_arena *arena, uint32_t messages, uint64_t bytes)
{
    struct arena_header *header = arena->header;

    if (places_counted(arena)) {
        take_away(&header->places_used, messages);
    }
    if (header->bytes_limit != 0) {
        uint64_t used = atomic_load(&header->bytes_used), left;

        do {
            left = used > bytes ? used - bytes : 0;
        } while (!atomic_compare_exchange_weak(&header->bytes_used, &used, left));
    }
    if (is_limited(arena) && atomic_load(&header->place_waiters) > 0) {
        futex_wake(&header->places_used, (int) messages);
    }
}

/* Messages that will not come need not be done. */
void
places_undo_unfinished(mpshm_arena *arena, uint32_t messages)
{
    if (arena->header->joinable && take_away(&arena->header->unfinished, messages) == 0) {
        futex_wake(&arena->header->unfinished, INT32_MAX);
    }
}

/* Messages that had a place will not come. */
void
places_forget(mpshm_arena *arena, uint32_t messages, uint64_t bytes)
{
    places_leave(arena, messages, bytes);
    places_undo_unfinished(arena, messages);
}

int
mpshm_place_take(mpshm_arena *arena)
{
    arena_lock(arena);
    bool taken = places_take(arena, 0);

    if (!places_counted(arena)) {
        places_pend(arena, 1);
    }
    arena_unlock(arena);
    return taken ? 0 : MPSHM_E_FULL;
}

void
mpshm_place_give(mpshm_arena *arena)
{
    arena_lock(arena);
    places_pend(arena, -1);
    places_forget(arena, 1, 0);
    arena_unlock(arena);
}

/* Messages that have a place and are not in the ring, of the living as far as kill() knows them. */
static uint32_t
pending_of_living(mpshm_arena *arena)
{
    uint32_t high = atomic_load(&arena->header->peers_high), sum = 0;

    for (uint32_t i = 0; i < high && i < PEER_LIMIT; i++) {
        uint32_t pending = atomic_load(&arena->peers[i].pending);

        if (pending > 0 && !peer_is_dead(arena, i + 1)) {
            sum += pending;
        }
    }
    return sum;
}

int64_t
mpshm_queue_size(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    int64_t size = (int64_t) ring_unread(arena) + pending_of_living(arena);

    pthread_mutex_unlock(&mpshm_process.lock);
    return size;
}

static bool
has_place(const mpshm_arena *arena)
{
    struct arena_header *header = arena->header;

    return (header->places == 0 || atomic_load(&header->places_used) < header->places)
           && (header->bytes_limit == 0 || atomic_load(&header->bytes_used) < header->bytes_limit);
}

/* Whether the places used are more than there are messages, so that reaping may find some. */
static bool
places_are_lost(mpshm_arena *arena)
{
    return mpshm_queue_size(arena) < (int64_t) atomic_load(&arena->header->places_used);
}

int
mpshm_queue_full(mpshm_arena *arena)
{
    if (!has_place(arena) && places_are_lost(arena)) {
        mpshm_reap(arena);
    }
    return !has_place(arena);
}

uint32_t
mpshm_places_used(mpshm_arena *arena)
{
    return atomic_load(&arena->header->places_used);
}

void
mpshm_place_wait(mpshm_arena *arena, uint32_t used, int timeout_ms)
{
    struct arena_header *header = arena->header;

    if (places_are_lost(arena)) {
        mpshm_reap(arena);
    }
    atomic_fetch_add(&header->place_waiters, 1);
    futex_wait(&header->places_used, used, timeout_ms);
    atomic_fetch_sub(&header->place_waiters, 1);
}

int64_t
mpshm_task_done(mpshm_arena *arena)
{
    _Atomic uint32_t *unfinished = &arena->header->unfinished;
    uint32_t left = atomic_load(unfinished);

    do {
        if (left == 0) {
            return -ERANGE;
        }
    } while (!atomic_compare_exchange_weak(unfinished, &left, left - 1));
    if (left == 1 && atomic_load(&arena->header->joiners) > 0) {
        futex_wake(unfinished, INT32_MAX);
    }
    return (int64_t) left - 1;
}

int
mpshm_wait_done(mpshm_arena *arena, int timeout_ms)
{
    struct arena_header *header = arena->header;
    uint32_t left = atomic_load(&header->unfinished);

    if (left > 0) {
        atomic_fetch_add(&header->joiners, 1);
        left = atomic_load(&header->unfinished);
        if (left > 0) {
            futex_wait(&header->unfinished, left, timeout_ms);
        }
        atomic_fetch_sub(&header->joiners, 1);
    }
    return atomic_load(&header->unfinished) == 0 ? 0 : -ETIMEDOUT;
}
