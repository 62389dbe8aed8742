/* The stage: one queue, or one connection, and the messages that go through it.  By mpshm.h alone. */
#ifndef STAGE_H
#define STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "mpshm.h"

enum kind_number { UNBOUNDED, BOUNDED, JOINABLE, BOTH, BYTES, SIMPLE, TMPFS, LARGE, GROWING, GROWING_TMPFS,
                   GROWN, PIPE, SOCKET, STRANGERS, LARGE_PIPE, KINDS };
extern const char *const kind_names[KINDS + 1];
#define KIND(number) (1u << (number))
#define CONNECTIONS (KIND(PIPE) | KIND(SOCKET) | KIND(STRANGERS))
/* Of these there are the scenarios only in which their size matters. */
#define LARGES (KIND(LARGE) | KIND(LARGE_PIPE))
/* And of these only the ones that are about rings. */
#define GROWINGS (KIND(GROWING) | KIND(GROWING_TMPFS))
#define QUEUES (KIND(KINDS) - 1 - CONNECTIONS - LARGES - GROWINGS)
#define ALL_KINDS (QUEUES | CONNECTIONS)
#define WITH_PLACES (KIND(BOUNDED) | KIND(BOTH) | KIND(BYTES))
#define WITH_RINGS (GROWINGS | KIND(GROWN))
#define WITH_TASKS (KIND(JOINABLE) | KIND(BOTH) | WITH_RINGS)

struct kind {
    bool is_queue, is_socket;
    bool is_large;      /* its segments are */
    bool is_watched;    /* its pipe is readable while there is a message */
    bool for_strangers; /* it has a roster of its own */
    int file;
    mpshm_queue limits;
    uint8_t filler;     /* the messages by which it is filled, */
    uint32_t fits;      /* and how many fit; 0: nobody counts */
};

extern struct stage {
    const struct kind *kind;
    uint32_t bit;    /* KIND(number) */
    mpshm_arena *arena;
    mpshm_counts counts;
    mpshm_end in, out;
    mpshm_batch *batch;   /* of a queue */
    mpshm_reader *reader; /* of a connection */
} stage;

void stage_open(int kind);
/* Another handle of the same: this process's stage from now on. */
void stage_attach(void);
/* Hand it over to a process that knows nothing of it; and be that process (life_line). */
void stage_hand_over(int line);
void stage_take_over(void);
/* As a process that no longer needs it does. */
void stage_close(void);
/* Join, as a process does with its first step. */
void stage_settle(void);
void stage_reap(void);

/* Messages by their way. */
enum shape {
    SHORT = 1,  /* in a slot */
    LONGER,     /* in a slot and its overflow */
    COPIED,     /* in a run that is copied out */
    VIEWED,     /* three buffers with a run each, and a stream in the frame */
    INDEXED,    /* so many runs that an index names them; the stream lies in it */
    STREAMED,   /* a stream that grows in a run, and a buffer */
    FILLED,     /* a run that the sender has filled itself */
    BY_COPY,    /* mpshm_send_copy */
    PLAIN,      /* through a stream record, in one piece */
    PIECES,     /* the same in two, so that somebody must take it */
    SHAPES
};

/* Put one: 0, or the error. */
int say(enum shape shape);
/* The same for one in pieces, until somebody has taken it. */
int say_patiently(enum shape shape);
/* Begin to put one in pieces, and no more. */
void begin_pieces(void);
/* As the first, with a place that was taken before. */
int say_with_place(enum shape shape, mpshm_place *place);
/* Put one that can be taken back; and take it back, if nobody was quicker. */
int say_tracked(enum shape shape);
void unsay(void);
/* Wait until somebody has taken it: whether that is so. */
bool is_heard(int timeout_ms);
/* Put several short ones in one call: how many, or the error. */
int say_some(int count);
/* Get up to `most` in one call, whole, and let go of them: how many, 0 if there is none now. */
int hear_some(int most, int timeout_ms);
static inline bool
hear(void)
{
    return hear_some(1, 0) == 1;
}
int hear_all(void);
/* A receiver that is killed between the reads of a frame leaves the pipe's next reader in the middle of
   it, with stock as well.  If so, read all bytes there are: true. */
bool drain_if_torn(void);
/* Say that a task is done: whether there was one. */
bool say_done(void);
/* Get a message and hold its views, of which it has three; see that they are what they were; let go of
   them.  Other messages that come first are taken as usual. */
void hold_views(void);
void check_views(void);
void let_views_go(void);

#endif
