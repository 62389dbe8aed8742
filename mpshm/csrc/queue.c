/* Queues: making an arena a queue's, and the ends of a queue that this process has open.

   Knows ends, and when a wait ends.  Does not know a frame (queue_put.c, queue_get.c), a slot's word
   (ring.c), nor how a receiver sleeps (waiters.c).

   Invariants: A2, A4, Q3 (invariants.h).  It changes no shared word but those of an arena that has one
   user yet, so it has no memory order of its own. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>

#include "queue.h"

/* How long a receiver that its pipe has woken waits for a message that is still being written. */
#define DUE_NS INT64_C(20000000)
_Static_assert(MPSHM_SLOT_BYTES == RING_DATA_BYTES, "a slot is what the ring holds");

int
mpshm_make_queue(mpshm_arena *arena, uint32_t places, uint64_t bytes, int joinable)
{
    if (arena->ring == NULL) {
        return -EINVAL;
    }
    INVARIANT(A5, arena->stride >= RING_OFFSET + RING_BYTES);
    int error = arena->bounded ? memfile_reserve(arena->fd, 0, RING_OFFSET + RING_BYTES) : 0;

    if (error != 0) {
        return error;
    }
    arena->slot_bytes = arena->header->slot_bytes = MPSHM_SLOT_BYTES;
    arena->header->places = places;
    arena->header->bytes_limit = bytes;
    arena->header->joinable = joinable != 0;
    return 0;
}

uint32_t
mpshm_queue_frame_bytes(mpshm_arena *arena)
{
    return arena->slot_bytes;
}

uint64_t
mpshm_queue_bytes_limit(mpshm_arena *arena)
{
    return arena->header->bytes_limit;
}

void
mpshm_end_open(const mpshm_end *end)
{
    mpshm_arena *arena = end->arena;

    pthread_mutex_lock(&mpshm_process.lock);
    INVARIANT(A2, arena->refs > 0);
    arena->receivers += end->receives != 0;
    arena->refs++; /* at interpreter exit an end may be closed after its arena's handle */
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
mpshm_end_stop_receiving(const mpshm_end *end)
{
    pthread_mutex_lock(&mpshm_process.lock);
    INVARIANT(A2, !end->receives || end->arena->receivers > 0);
    end->arena->receivers -= end->receives != 0;
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
mpshm_end_release(const mpshm_end *end)
{
    if (!end->receives) { /* perhaps the last by which anything could be sent */
        waiters_call(end->arena, INT_MAX);
    }
    arena_let_go(end->arena);
}

/* A receiver that its pipe has woken must not find the queue empty, so this waits until the sender has
   written its message; not for ever, for the sender may be stopped. */
bool
queue_due_is_ready(mpshm_arena *arena)
{
    for (int64_t until = now_ns() + DUE_NS; !ring_is_ready(arena);) {
        if (!ring_is_due(arena) || now_ns() >= until) {
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
    pthread_mutex_lock(&mpshm_process.lock);
    if (end->fd >= 0) {
        ring_watch(end->arena, end->fd);
    }
    pthread_mutex_unlock(&mpshm_process.lock);
}
