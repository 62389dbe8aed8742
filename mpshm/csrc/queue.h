/* What queue.c, queue_put.c and queue_get.c share.

   Invariants: Q1, Q3 (invariants.h). */
#ifndef MPSHM_QUEUE_H
#define MPSHM_QUEUE_H

#include "internal.h"

#define LENGTH_BYTES 4
/* How many frames are between a message and the ring at a time: as many as stay in the first cache. */
#define FEW 8

static inline void
count(uint64_t *messages, uint64_t *all_bytes, uint64_t bytes)
{
    ++*messages;
    *all_bytes += bytes;
}

/* Whether a message can be taken.  Waits for one that the pipe shows, for a moment. */
bool queue_due_is_ready(mpshm_arena *arena);
int queue_why_full(mpshm_arena *arena);
int queue_look_at_end(const mpshm_end *end);
int queue_put_stream(const mpshm_end *end, mpshm_stream *stream, const char *data, uint64_t size, mpshm_place *place);

/* Whether that place is a position of this process. */
static inline bool
place_is_position(const mpshm_place *place)
{
    return place != NULL && place->at >= 0 && place->at != MPSHM_PENDING
           && place->generation == mpshm_process.generation;
}

static inline bool
place_is_pending(const mpshm_place *place)
{
    return place != NULL && place->at == MPSHM_PENDING
           && place->generation == mpshm_process.generation;
}

#endif
