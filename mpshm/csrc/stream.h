/* Stream records, and what stream.c and stream_get.c give to the queue's files.

   Invariants: T1 to T4 (invariants.h). */
#ifndef MPSHM_STREAM_H
#define MPSHM_STREAM_H

#include "internal.h"

/* A record in one use of it. */
struct stream {
    struct stream_record *record;
    char *piece;         /* its memory */
    uint32_t generation; /* of the record */
};

/* A message on its way through a record, on the taker's side. */
struct mpshm_incoming {
    mpshm_arena *arena;
    struct stream stream;
    uint64_t spot;
    uint32_t generation; /* of the process: a fork's child takes nothing of its parent's */
    uint32_t pieces;     /* that have been copied */
    uint64_t size, have, room;
    char *data;
    bool is_late;        /* the last piece did not come in time */
    uint64_t turn;       /* how many of this process's have begun before it */
    mpshm_incoming *next; /* among the parked */
};

/* stream.c.  Those with (L) need arena_lock. */
void stream_attach(mpshm_arena *arena, const struct arena_header *header);
bool stream_claim(mpshm_arena *arena, mpshm_stream *stream); /* (L) */
bool stream_any_free(const mpshm_arena *arena);
struct stream stream_of(const mpshm_stream *stream);
/* The slot at that spot will name it: write the first piece; what the frame says. */
struct stream_name stream_put_first(mpshm_stream *stream, uint64_t spot, const char *data, uint64_t size);
/* Write a piece behind `pieces` others; more: it is not the last. */
void stream_write(const struct stream *stream, uint32_t pieces, const char *data, uint32_t bytes, bool more);
bool stream_is_read(const struct stream *stream, uint32_t pieces);
void stream_give_up(const struct stream *stream, uint32_t pieces);
/* The owner's, when it will not write any more and no slot names it, or its slot has passed. */
void stream_free(mpshm_arena *arena, const struct stream *stream);
/* The taker's: the record that a frame names.  False: it is another message's. */
bool stream_find(const mpshm_arena *arena, const struct stream_name *name, uint64_t spot, struct stream *stream);
void stream_said_read(const struct stream *stream, uint32_t pieces);
bool stream_owner_is_dead(mpshm_arena *arena, const struct stream *stream);
/* The taker's, when the slot has passed. */
void stream_end(mpshm_arena *arena, const struct stream *stream);
bool stream_take_cold(mpshm_arena *arena, uint32_t number, struct stream *stream); /* (L) */
bool stream_reap(mpshm_arena *arena); /* skip what is broken, free what is nobody's: whether a slot was skipped */
bool stream_mend(mpshm_arena *arena); /* the same, and chain_mend */
void stream_call(mpshm_arena *arena); /* wake all that sleep at a record or for one */
int stream_validate(mpshm_arena *arena, bool rests); /* 1, or -line */
/* What the caller has in its own memory of a message, or this process of all that are parked. */
void stream_close(mpshm_incoming *incoming);
void stream_forget_parked(mpshm_arena *arena);

/* stream_get.c */
/* The slot at that spot, which this process takes, names a stream: begin to take it: 0, or the error. (L) */
int stream_open(mpshm_arena *arena, uint64_t spot, const struct stream_name *name, mpshm_incoming **out);
/* Go on with it, outside of all locks: 1: it is whole; 0: it will not come; -EAGAIN, -EINTR: not yet; else why it
   cannot be had.  In all cases but those two its slot has passed. */
int stream_receive(mpshm_incoming *incoming, int timeout_ms, mpshm_waiter *waiter);
/* One that no thread is at any more, or for now; and the first of those, or NULL. (L) */
void stream_park(mpshm_incoming *incoming);
mpshm_incoming *stream_unpark(mpshm_arena *arena);
static inline bool
stream_is_parked(mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->is_parked, memory_order_relaxed);
}
void stream_drop_parked(mpshm_arena *arena); /* under the process's lock: this process receives no more */

#endif
