/* What the three files of queues share.

   Invariants:
   Q1  A message's slot is put in the window in which its runs are sealed, and taken in the window in
       which they are leased.  So when all peers rest and the ring is empty, a run in flight is an
       orphan.
   Q3  Nothing in these files blocks while it holds the process's lock. */
#ifndef MPSHM_QUEUE_H
#define MPSHM_QUEUE_H

#include "internal.h"

#define LENGTH_BYTES 4
/* Frames on their way between a message and the ring: as many as stay in the first cache. */
#define FEW 8

static inline void
count(uint64_t *messages, uint64_t *all_bytes, uint64_t bytes)
{
    ++*messages;
    *all_bytes += bytes;
}

/* Whether a message can be taken, once that which the pipe shows has been waited for. */
bool queue_due_is_ready(mpshm_arena *arena);

#endif
