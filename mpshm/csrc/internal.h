/* What the core's own files share, in this process only. */
#ifndef MPSHM_INTERNAL_H
#define MPSHM_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "freemap.h"
#include "invariants.h"
#include "layout.h"
#include "mpshm.h"
#include "refuse.h"

_Static_assert(sizeof(off_t) == 8, "32-bit systems need -D_FILE_OFFSET_BITS=64: an arena's file is larger");

struct segment {
    mpshm_arena *arena;
    uint32_t id;
    uint32_t shift;
    uint32_t count;
    bool mine;              /* this process prefers it: it made it, or adopted it */
    bool was_claimed;       /* this process has claimed in it */
    uint64_t data_at;       /* bytes from the segment's beginning to its data */
    struct segment_head *head; /* mapped, and behind it: */
    uint64_t *map;          /* free map, 1 = free; the lock's holder's */
    uint64_t *heads;        /* first chunks of runs that are lent; the lock's holder's */
    _Atomic uint64_t *freed; /* hint: first chunks of runs that were freed since `map` was made */
    uint64_t *touched;      /* hint: chunks that have memory; the lock's holder's.  Wrongly set: it is given back
                               again.  Wrongly clear: it stays until the chunk is lent again */
    struct run *runs;
    struct mapping *now;    /* the shared mapping of its data, which claims and leases use; or NULL */
    struct mapping *former; /* those that forks have made private */
    name blocked_by;        /* who held the lock when it was last tried */
    uint16_t *warm;         /* by huge page: this process has made it resident, and when (mapping.c); or 0 */
};

/* The data of a segment, mapped whole.  A fork makes it private, views and all, and the segment gets
   another for what comes later (fork.c). */
struct mapping {
    struct segment *seg;
    char *data;
    uint32_t views;         /* leases in it */
    uint32_t loans;         /* runs in it that this process has claimed and neither sealed nor abandoned */
    bool is_private;
    bool is_torn;           /* only in part, so its views were copied */
    struct mapping *next;
};

/* A ring of a queue, as this process has it mapped (rings.c). */
struct ring {
    struct ring_head *head;
    char *words, *data;     /* of slot 0, and from one slot to the next: */
    uint32_t word_step, data_step;
    struct overflow *overflow; /* NULL: slots have no more than their own bytes */
    uint64_t data_at;       /* where `data` lie in the file.  `data` NULL: they could not be mapped, and are read
                               and written there */
    uint32_t number, slots;
    uint32_t bound;         /* how many open positions it may have */
    uint64_t head_seen;     /* where the head was when it was last looked at; the process's lock guards it */
    _Atomic uint64_t gap;   /* GAP_WORD: behind an open slot at that position so many have passed.  Positions never come
                               again, so it stays true */
};

struct sent {
    uint32_t mmap_id, chunk_id;
    uint64_t word;          /* what the run's word was then */
    uint64_t bytes;
};

struct mpshm_arena {
    int fd;
    uint64_t device, inode; /* of the memory file: `fd` may have become another file's number */
    uint32_t refs;          /* the open handle, and each lease, run and parcel */
    uint32_t visits;        /* those of them that threads inside a call have: a fork's child has none */
    uint64_t id;
    uint32_t slot_bytes;
    uint64_t mapped_bytes;  /* of what lies before a queue's further rings, */
    uint64_t head_bytes;    /* checked copies of the header's: a stray write must not move us */
    uint64_t stride;
    uint64_t segment_bytes;
    uint32_t segment_limit, chunk_shift;
    bool bounded;           /* the file system may run full under us: reserve before touching */
    struct arena_header *header;
    _Atomic uint64_t *marks;
    struct chain *chain;    /* NULL: no queue's */
    struct ring zero;       /* its ring 0, */
    _Atomic(struct ring *) *others; /* and the others, once each is mapped; NULL: it does not grow */
    uint32_t rings;
    bool grows, overflowing;
    uint32_t bound;         /* how many open positions all rings together may have, 0: any number */
    uint64_t passed_seen;   /* how many positions had passed when that was last looked at */
    struct streams *streams; /* NULL: no queue's */
    char *pieces;
    uint32_t stream_count;  /* how many records have a piece */
    mpshm_incoming *parked; /* messages that this process takes and no thread is at (stream_get.c) */
    _Atomic bool is_parked; /* there are some; no lock guards it */
    uint64_t turns;         /* how many it has begun to take */
    struct roster *roster;
    _Atomic uint32_t watch; /* the period in which those of this process that do not receive wake by
                               themselves (watch.c); no lock guards it, nor the next */
    _Atomic uint64_t room_seen; /* how far the ring had been emptied when one slept for room last */
    uint32_t ends;          /* of a queue, open in this process, */
    uint32_t receivers;     /* and of these, to receive by */
    int writer;             /* a pipe's end to send by that is open here, or -1 */
    uint32_t places;        /* how many messages it may hold, 0: any number */
    bool joinable;
    uint64_t bytes_limit;
    uint64_t turn_at, turn_bytes; /* what the positions before `turn_at` took at some time (turns.c) */
    name me;                /* this process's name, 0: none, as of generation `joined` */
    _Atomic uint32_t joined;
    uint32_t loans;         /* runs this process has claimed and neither sealed nor abandoned */
    uint32_t leases;        /* its places in the table of leases */
    uint64_t lease_bytes;   /* of the chunks it has leased in all */
    uint32_t deaths, claims; /* the roster's deaths when last seen; and claims, to look now and then */
    int64_t reaped_ns;      /* when growth last looked for the dead */
    _Atomic uint32_t trim_from; /* the segment with which the next trim begins; no lock guards it */
    int64_t locked_until_ns, own_locked_until_ns; /* no waiting for segments' locks before; for those of its own */
    int64_t scarce_until_ns; /* so long none but the reserve is looked through for a run */
    uint64_t scarce_bytes;  /* of so many bytes and more */
    struct segment *segments[SEGMENT_LIMIT];
    uint32_t hot, hot_small; /* the segments a claim succeeded in last */
    struct sent *sent;      /* what this process sealed and has not yet seen leased */
    uint32_t sent_count, sent_room;
    uint64_t sent_bytes;
    int pipe_fd;            /* an end of the connection, and 1; 0: none is known */
    uint64_t pipe_device, pipe_inode;
    struct strays *strays;  /* runs in flight that may be nobody's, or NULL */
    int64_t looked_ns;      /* when a sender that waited for room last looked for them */
    bool has_claimed;       /* this process has claimed a run of usual chunks */
    uint32_t shorts;        /* short messages for which it made no segment */
    mpshm_arena *next;
};

struct process {
    pthread_mutex_t lock;   /* guards all of this, and every arena's fields; never held in a wait */
    uint32_t generation;
    mpshm_arena *arenas;
    struct roster *rosters;
};
extern struct process mpshm_process;
/* Take the process's lock.  Notices first when this process is a raw clone() that no hook has seen. */
void process_lock(void);
void process_unlock(void);
void process_is_a_child(void);           /* fork.c, in the child, under the lock: a new generation */
bool process_is_locked(void);            /* for INVARIANT, in the debug build only: A4 */
void heap_keep(uint64_t size);           /* needs no lock */

/* fork.c, of a raw clone()'s child, under the lock: it has no lease, no loan and no segment of its own. */
void fork_unseen(void);

/* pids.c: needs no lock.  0: not known. */
uint64_t pid_space(void);
uint64_t pid_born(uint32_t pid);
bool pid_is_unused(uint32_t pid);
bool pid_is_gone(uint32_t pid, uint64_t born);

/* roster.c.  All under the process's lock, but roster_is_dead, which needs none. */
struct roster;
/* The process's family, made now if it has none: 0 or -errno.  The caller holds a reference. */
int roster_family(struct roster **out);
/* The one in a roster's file; a process has one struct for each.  Takes `fd` over on success only. */
int roster_attach(int fd, struct roster **out);
/* The one in an arena's file at `offset`, which the arena has mapped at `mapped`, and unmaps after
   roster_unref.  Each handle of an arena has its own, so a name of its own.  fresh: it is made. */
int roster_embedded(int arena_fd, uint64_t offset, void *mapped, bool fresh, struct roster **out);
struct roster *roster_find(uint64_t id); /* a further reference, or NULL */
void roster_unref(struct roster *roster);
uint64_t roster_id(const struct roster *roster); /* 0: embedded */
/* Its file's descriptor, which is handed over; -1: embedded, or that number has become another file's. */
int roster_fd(const struct roster *roster);
/* This process's name; joins if it has none yet.  0: no record is free. */
name roster_me(struct roster *roster);
/* Whether that process can write no word any more.  What cannot be known counts as alive. */
bool roster_is_dead(struct roster *roster, name who);
uint32_t roster_high(struct roster *roster); /* no number is in use from here on */
uint32_t roster_deaths(struct roster *roster);
/* Look whether somebody has died that nobody has noticed, a few records at a time, and tell `deaths`. */
void roster_census(struct roster *roster);
/* The process `pid` has ended: note it in each roster that knew it.  Afterwards, whether that one did. */
void rosters_note_end(uint32_t pid);
bool roster_has_ended(const struct roster *roster);
/* A fork: a name for the child, which is alive from now on; 0: none is to be had.  In the child it is
   what roster_me gives.  The three others are called for all rosters in every fork. */
name roster_heir(struct roster *roster);
void rosters_after_fork_in_parent(void);
void rosters_after_fork_in_child(void);
/* An unseen child: it has no name yet. */
void rosters_forget(void);
/* Whether what can be checked while others are at work holds: 1, or -line of what does not. */
int roster_validate(struct roster *roster);

/* What a segment says of itself. */
static inline uint64_t
segment_file_offset(const struct segment *seg)
{
    return seg->arena->head_bytes + seg->id * seg->arena->stride;
}
/* The chunks of the run at `at`, within the segment whatever its entry says. */
static inline uint32_t
run_chunks_at(struct segment *seg, uint32_t at)
{
    uint32_t chunks = EXTENT_CHUNKS(atomic_load_explicit(&seg->runs[at].more, memory_order_relaxed));

    return chunks == 0 ? 1 : chunks < seg->count - at ? chunks : seg->count - at;
}
/* Chunks that share a page. */
static inline uint32_t
page_chunks(const struct segment *seg)
{
    uint32_t chunks = (uint32_t) ((uint64_t) sysconf(_SC_PAGESIZE) >> seg->shift);

    return chunks > 0 ? chunks : 1;
}
/* The first segment of the reserve, which is a quarter of the directory; an arena of few segments has none.  The
   reserve is for senders: what lies there is copied out, and never leased for long, so receivers that keep all that
   they get leave memory for the next message. */
static inline uint32_t
reserve_first(const mpshm_arena *arena)
{
    return arena->segment_limit - arena->segment_limit / 8 * 2;
}
/* No run begins at this chunk or behind it. */
static inline uint32_t
segment_high(const struct segment *seg)
{
    uint32_t high = atomic_load_explicit(&seg->head->high, memory_order_acquire);

    return high < seg->count ? high : seg->count;
}

/* memfile.c: needs no lock. */
uint64_t memfile_fresh_id(void);
int memfile_open(int kind, const char *name, bool *bounded);
int memfile_seal(int fd, bool bounded);
bool memfile_is_sealed(int fd);
int memfile_reserve(int fd, uint64_t offset, uint64_t size);
bool memfile_is_short(int fd); /* its file system is three quarters full */
/* Whether `fd` is still that file. */
bool memfile_is(int fd, uint64_t device, uint64_t inode);
bool memfile_can_shrink(int fd);
bool memfile_is_huge(int fd);

/* arena.c.  arena_lock takes the process's lock, and sees to it that arena->me is this process's. */
void arena_is_ours(mpshm_arena *arena); /* under the lock: what arena_lock does besides */
void arena_lock(mpshm_arena *arena);
void arena_look_at_name(mpshm_arena *arena); /* as arena_lock and arena_unlock, which it is spared mostly */
void arena_unlock(mpshm_arena *arena);
/* Whether this process holds arena_lock, for INVARIANT: A4, E1. */
static inline bool
arena_is_locked(const mpshm_arena *arena)
{
    return process_is_locked() && arena->joined == mpshm_process.generation;
}
void arena_unref(mpshm_arena *arena);    /* under the lock; the next two take it */
void arena_keep(mpshm_arena *arena);
void arena_let_go(mpshm_arena *arena);
void arena_visit(mpshm_arena *arena);    /* under the lock: a reference for the time of a call, */
void arena_leave(mpshm_arena *arena);    /* and its end, which takes the lock */
void arena_notify(mpshm_arena *arena);
bool arena_has_file(const mpshm_arena *arena); /* its descriptor is its memory file's */
uint64_t arena_resident(const mpshm_arena *arena); /* bytes of the file; 0 if they cannot be known any more */
/* This process's own word, or NULL if it has no name. */
_Atomic uint64_t *arena_mark(mpshm_arena *arena);
bool arena_name_is_dead(mpshm_arena *arena, name who); /* false for 0 and for this process */

/* What a run is claimed for. */
enum claim {
    CLAIM_ANY = 0,          /* for a part of a message, which is copied in */
    CLAIM_SMALL = 1,        /* the same, in small chunks: nobody gets a view of it */
    CLAIM_IN_PLACE = 2,     /* for who writes to it by himself: it is mapped */
};

/* segment.c: callers hold the lock. */
bool segment_fits(uint64_t stride, uint64_t bytes, uint32_t shift); /* needs no lock */
uint32_t segment_count(const mpshm_arena *arena);                   /* and this */
int segment_map(mpshm_arena *arena, uint32_t id, struct segment **out);
int segment_claim_new(mpshm_arena *arena, uint64_t size, enum claim claim, bool last, struct segment **out);
int segment_make_reserve(mpshm_arena *arena, uint64_t size, struct segment **out);
void segment_unmap(struct segment *seg);
void segment_vacate(struct segment *seg);
int segment_validate(struct segment *seg);
/* mapping.c: callers hold the lock. */
void *mapping_of_file(const mpshm_arena *arena, void *at, uint64_t offset, uint64_t size, int sharing, void *known,
                      uint64_t known_at);
static inline uint64_t
data_bytes(const struct segment *seg)
{
    return (uint64_t) seg->count << seg->shift;
}
int segment_map_data(struct segment *seg);
void mapping_unmap(struct mapping *mapping);
void segment_warm(struct segment *seg, char *data, uint64_t offset, uint64_t size); /* needs no lock */
bool segment_populate(struct segment *seg, uint64_t offset, uint64_t size);
int segment_go_private(struct segment *seg);
void segment_retire(struct segment *seg);
void mapping_hide_loans(struct mapping *mapping, const uint64_t *viewed);
void mapping_end(struct mapping *mapping);
void mapping_drop_view(struct mapping *mapping);
void mapping_add_loan(struct segment *seg, const char *data);
void mapping_drop_loan(struct segment *seg, const char *data);
/* window.c: needs no lock. */
struct window {
    char *data;             /* what was asked for */
    char *base;             /* and where its pages begin */
    uint64_t length;
};
/* False: there is no address space for so much. */
bool window_open(struct segment *seg, uint64_t offset, uint64_t size, struct window *window);
void window_close(struct window *window);
/* Copy a piece of the segment's data: 0, or -ENOMEM. */
int window_read(struct segment *seg, uint64_t offset, char *to, uint64_t size);
int window_write(struct segment *seg, uint64_t offset, const char *from, uint64_t size);
/* The segment's lock word: tried, never waited for. */
bool segment_try_lock(struct segment *seg);
bool segment_look_again(struct segment *seg); /* under it */
bool segment_touch(struct segment *seg, uint32_t at, uint32_t chunks); /* and this */
void segment_unlock(struct segment *seg);
void segment_was_freed(struct segment *seg, uint32_t at);

/* trim.c.  Without the lock; the caller has a reference. */
enum warmth { KEEP_LATELY = 0, KEEP_LEAST = 1, KEEP_LARGEST = 2, KEEP_NONE = 3 }; /* what a trim leaves */
/* Whether a trimmer has something better to do: then the rest is for whoever comes next.  what: its own. */
typedef bool trim_until(mpshm_arena *arena, const void *what);
bool trim_has_memory(const mpshm_arena *arena); /* cheap */
bool trim_is_due(mpshm_arena *arena); /* cheap */
/* until: asked between slices; NULL: for some 10 ms at most. */
void trim_if_due(mpshm_arena *arena, trim_until *until, const void *what);
bool trim_time_is_over(mpshm_arena *arena, const void *until_ns); /* an `until` */
void trim_at_close(mpshm_arena *arena);
/* The same before a sleep of so many ms, as long as `until` is false: how many are left. */
int trim_before_sleep(mpshm_arena *arena, trim_until *until, const void *what, int ms);
/* Have whoever comes next do it. */
static inline void
trim_soon(mpshm_arena *arena, enum warmth keep)
{
    atomic_store_explicit(&arena->header->trim_soon, keep, memory_order_relaxed);
}

/* ring_check.c: needs no lock. */
int ring_validate(mpshm_arena *arena, bool rests);

/* loans.c: under the process's lock. */
int loan_room(void);
void loan_begin(mpshm_run *run);
bool loan_is_open(const mpshm_run *run);
void loan_end(mpshm_run *run);

/* claims.c, under arena_lock. */
int run_claim(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run);
bool claim_lock_patiently(struct segment *seg);

/* runs.c: the sender's verbs, all under arena_lock.  position: the spot of the slot that is to name the run, or
   NO_POSITION for a connection's frame. */
#define NO_POSITION UINT64_MAX
int run_abandon(mpshm_run *run);
int run_copy_out(const mpshm_run *run, char *to, uint64_t size); /* needs no lock */
/* LOANED -> FLIGHT.  Adds the bytes of the chunks that `size` bytes need to `bytes`.  Ended by one of the two
   after it. */
int run_seal(mpshm_run *run, uint64_t size, uint64_t position, uint64_t *bytes);
void run_unseal(mpshm_run *run, uint64_t position);
/* Its frame is out: the sender has nothing to do with it any more, but takes back the chunks it does not need. */
void run_is_out(mpshm_run *run, uint64_t size, uint64_t position);
uint64_t run_flight_word(const mpshm_run *run, uint64_t position);
/* * -> FREE, by compare-and-swap from `word`; false: it has changed. */
bool run_free(struct segment *seg, uint32_t chunk_id, uint64_t word);

/* pressure.c: what is in flight, and the wait for room. */
void pressure_note(mpshm_arena *arena, const mpshm_run *run, uint64_t word); /* under arena_lock */
bool pressure_is_settled(mpshm_arena *arena);
bool pressure_has_room(mpshm_arena *arena, uint64_t bytes, uint64_t mark);
uint64_t pressure_in_flight(mpshm_arena *arena);
void pressure_call(mpshm_arena *arena);
void pressure_call_unasked(mpshm_arena *arena); /* needs no lock */

/* parcel.c and frame.c.  The seal and what ends it: under arena_lock. */
struct part {
    mpshm_run run;
    uint64_t size; /* bytes of the message in it */
};
struct mpshm_parcel {
    mpshm_arena *arena;
    struct part *parts;
    uint32_t count, room, stream_runs;
    bool has_index;
    bool is_tracked;        /* its index is a ticket */
    struct part index;
};
/* Seal all runs, or none: 0 or the error.  Ended by one of the two others. */
int parcel_seal(mpshm_parcel *parcel, uint64_t position, uint64_t *bytes);
void parcel_unseal(mpshm_parcel *parcel, uint64_t position);
int parcel_track_room(const mpshm_parcel *parcel, mpshm_tracking *tracking); /* call before the seal; NULL: 0 */
void parcel_handed_over(mpshm_parcel *parcel, uint64_t position, mpshm_tracking *tracking); /* tracking: or NULL */
bool parcel_is_unmapped(const mpshm_parcel *parcel);
struct frame_head {
    bool indexed, stream_in_index;
    bool tracked;           /* its index is a ticket, by which the sender may take the message back */
    uint32_t stream_runs, buffer_runs;
    uint32_t descriptors, stream, end; /* where in the frame they begin, and it ends */
};
int frame_head(const unsigned char *frame, struct frame_head *head);
int frame_lease_one(mpshm_arena *arena, uint64_t position, const unsigned char *at, mpshm_held *run,
                    mpshm_descriptor *bad);
int frame_lease_index(mpshm_arena *arena, uint64_t position, const unsigned char *at, mpshm_held *run,
                      mpshm_descriptor *bad);
int frame_read_copied(const mpshm_held *runs, uint32_t count);
int frame_copy_one(mpshm_arena *arena, uint64_t position, const unsigned char *at, char *to,
                   uint64_t most, uint64_t *size, mpshm_descriptor *bad);
int frame_lease_all(mpshm_arena *arena, uint64_t position, const unsigned char *table,
                    uint32_t count, mpshm_held *to, mpshm_descriptor *bad);
int frame_index(const struct frame_head *head, uint64_t index_size, uint64_t most,
                uint64_t *stream);
bool frame_fits(const mpshm_arena *arena, uint64_t descriptors, uint64_t stream_size);
bool frame_ticket(const unsigned char *frame, uint64_t have, mpshm_descriptor *ticket, uint64_t *size);
uint32_t frame_put(char *frame, const mpshm_parcel *parcel, const char *stream,
                   uint64_t stream_size);
int frame_read(mpshm_reader *reader, int fd, uint32_t body_max, bool knows);
int frame_open(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t copy_max);
#define DESCRIPTOR_BYTES 20
/* What a frame in a queue says of a message that goes through a stream record. */
struct stream_name {
    uint32_t number, generation; /* of the record */
    uint64_t size;               /* of the message */
};
void frame_put_stream(char *frame, const struct stream_name *stream);
bool frame_stream(const unsigned char *frame, struct stream_name *stream);

/* leases.c, all under arena_lock but lease_read. */
int lease_run(mpshm_arena *arena, const mpshm_descriptor *what, uint64_t position, mpshm_held *to);
int lease_copy(mpshm_arena *arena, const mpshm_descriptor *what, uint64_t position, char *to);
/* Bring the bytes of a run, which is not mapped, into the block that lease_run has given for it: 0, or -ENOMEM.  The
   second under arena_lock, for a short one. */
int lease_read(const mpshm_held *held);
int lease_read_now(const mpshm_held *held);
void release_run(void *data);
/* Whether the sender has taken that ticket's message back.  If so its run, which names nothing any more, is free now. */
bool lease_drop_cancelled(mpshm_arena *arena, const mpshm_descriptor *what);
struct lease {
    char *data; /* NULL: empty place */
    struct mapping *mapping; /* NULL: a block, which is this process's alone */
    struct segment *unread; /* of a block: where the run lies whose bytes are still to come; or NULL */
    uint64_t size;
    uint32_t chunk_id, chunks;
    bool copied; /* a fork has given this process pages of its own: no run is behind it */
    bool copied_for_child; /* and so for the child that is being forked */
    bool apart; /* its pages are this process's own, whether it holds the run or not */
};
struct lease *leases_next(struct lease *before); /* NULL: the first; gives NULL after the last */
/* A further holder of a leased run: false if the run has no place for its name. */
bool lease_add_holder(struct segment *seg, uint32_t at, name holder);
void lease_drop_dead(struct segment *seg, uint32_t at); /* of a SHARED run, for reap.c */

/* tracking.c */
struct tracked_run {
    uint32_t mmap_id, chunk_id;
    uint64_t word;          /* what it says in flight */
};
struct mpshm_tracking {
    mpshm_arena *arena;
    struct tracked_run *runs; /* a connection's ticket first */
    uint32_t count, room;
    uint64_t spot;          /* of its slot; NO_POSITION: it is on a connection */
    uint32_t generation;    /* of the process that has sent it; 0: it has not been sent */
    uint32_t state;         /* MPSHM_TRACK_..., once that is settled */
    bool by_stream;         /* it goes through a stream record */
};
int tracking_room(mpshm_tracking *tracking, uint32_t count); /* call before it is sent: 0, or -ENOMEM */
/* It is out.  Under arena_lock, with the first: of one run. */
void tracking_add(mpshm_tracking *tracking, const mpshm_run *run, uint64_t word);
void tracking_begins(mpshm_tracking *tracking, uint64_t spot);
void tracking_call(mpshm_arena *arena);
/* A message has been taken, which somebody may wait for. */
static inline void
tracking_tell(mpshm_arena *arena)
{
    if ((atomic_load(&arena->header->tracked) & MAY_WATCH) != 0) {
        tracking_call(arena);
    }
}

/* strays.c: all but the first under arena_lock. */
void strays_inside(mpshm_arena *arena, bool begins);
void strays_pipe(mpshm_arena *arena, int fd);
uint32_t strays_look(mpshm_arena *arena);
void strays_forget(mpshm_arena *arena);

/* reap.c, under arena_lock. */
bool reap_before_growth(mpshm_arena *arena);
void reap_if_somebody_died(mpshm_arena *arena); /* cheap where nobody did */

/* wait.c, watch.c and spin.c: need no lock. */
int64_t now_ns(void);
int ms_until(int64_t ns); /* rounded up, 0: it is over */
bool futex_wait(_Atomic uint32_t *word, uint32_t value, int timeout_ms);
int futex_wake(_Atomic uint32_t *word, int most);
bool has_hung_up(int fd, short which);
#define WATCHES 32 /* periods that a sleeper can have, */
#define WATCH_MS 1250 /* and how long each lasts */
int watch_ms(mpshm_arena *arena, uint32_t *mine);
bool watch_is_over(uint32_t mine);
int watch_common_ms(mpshm_arena *arena);
bool watch_common_is_over(mpshm_arena *arena);
int watch_shorter(int timeout_ms, int most_ms);
void spin_init(mpshm_spin *spin, uint32_t spin_us);
bool spin_may_block(mpshm_spin *spin);
int64_t spin_begin(mpshm_spin *spin, bool worth);
bool spin_goes_on(int64_t until);
void spin_end(mpshm_spin *spin, int64_t until, bool paid);

/* The longest frame that the ring holds, of a message with no run; any other is of MPSHM_SLOT_BYTES. */
static inline uint32_t
ring_frame_bytes(const mpshm_arena *arena)
{
    return arena->overflowing ? RING_FRAME_BYTES : RING_DATA_BYTES;
}

/* ring.c: see ring.h. */

/* waking.c and waiters.c: need no lock. */
/* In `wakeups`: the flag, and one wake-up.  In `room_mark`, of a bounded queue. */
#define MAY_SLEEP UINT32_C(1)
#define ONE_WAKE_UP UINT32_C(2)
#define ROOM_MARK_EACH UINT32_MAX
static inline bool
waiters_may_sleep(struct waiters *waiters)
{
    return (atomic_load_explicit(&waiters->wakeups, memory_order_relaxed) & MAY_SLEEP) != 0;
}
/* Whether that time is still to come; one that is further ahead than a second is a stray write. */
static inline bool
waiters_is_ahead(_Atomic int64_t *time_ns, int64_t now)
{
    int64_t at = atomic_load_explicit(time_ns, memory_order_relaxed);

    return at > now && (uint64_t) at - (uint64_t) now < 1000000000;
}
/* Senders are woken for each slot, not at marks. */
static inline bool
waiters_wakes_each(const mpshm_arena *arena)
{
    return arena->places != 0 || arena->bytes_limit != 0;
}
void waiters_rouse(mpshm_arena *arena, int count);
void waiters_call(mpshm_arena *arena, int most);
void waiters_let_in(mpshm_arena *arena, int passed); /* so many slots, or INT_MAX: nobody has counted them */
void waiters_call_senders(mpshm_arena *arena);
int waiters_room(mpshm_arena *arena, int fd, short gone, int64_t place, int timeout_ms);
void waiters_look_round(mpshm_arena *arena);
void waiters_see_death(mpshm_arena *arena); /* under arena_lock */
bool waiters_poll(mpshm_arena *arena, int fd, int timeout_ms);
void waiter_init(mpshm_waiter *waiter, uint32_t spin_us);
int waiter_look(mpshm_waiter *waiter, mpshm_arena *arena);
bool waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms);
void waiter_goes(mpshm_waiter *waiter, mpshm_arena *arena, uint32_t took);

#endif
