/* What the core's own files share, in this process only. */
#ifndef MPSHM_INTERNAL_H
#define MPSHM_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "freemap.h"
#include "invariants.h"
#include "layout.h"
#include "mpshm.h"
#include "refuse.h"

struct segment {
    mpshm_arena *arena;
    uint32_t id;
    uint32_t shift;
    uint32_t count;
    bool mine;              /* claimed by this process, not by one it was forked from */
    uint64_t head_bytes;
    mapword *map;           /* head mapping: free map, then run table */
    _Atomic uint64_t *runs;
    char *data;             /* data mapping, NULL until needed */
    uint8_t *warm;          /* by huge page: this process has made it resident */
};

struct sent {
    uint32_t mmap_id, chunk_id, tag;
    uint64_t bytes;
};

struct mpshm_arena {
    int fd;
    uint32_t refs;          /* the open handle, and each lease, run and parcel */
    uint64_t id;
    uint32_t slot_bytes;
    uint64_t stride;        /* checked copies of the header's: a stray write must not move us */
    uint64_t segment_bytes;
    uint32_t segment_limit, chunk_shift;
    struct overflow *overflow;    /* NULL: the stride has no room for it */
    bool bounded;           /* the file system may run full under us: reserve before touching */
    struct arena_header *header;
    struct peer *peers;
    struct ring *ring;      /* for a queue; NULL where the stride is too small for one */
    _Atomic uint32_t room_watch; /* the period in which senders of this process wake by themselves; no
                                    lock guards it */
    uint32_t receivers;     /* open ends to receive by, in this process */
    uint32_t me;            /* this process's number, 0: none, as of generation `joined` */
    uint32_t joined;
    uint32_t heir;          /* the number of a child that is being forked */
    uint32_t loans;         /* runs this process has claimed and neither sealed nor abandoned */
    uint32_t leases;        /* its places in the table of leases */
    uint64_t lease_bytes;   /* of the chunks it has leased in all */
    int64_t reaped_ns;      /* when growth last looked for the dead */
    struct segment *segments[SEGMENT_LIMIT];
    uint32_t hot, hot_small; /* the segments a claim succeeded in last */
    struct sent *sent;      /* what this process sealed and has not yet seen leased */
    uint32_t sent_count, sent_room;
    uint64_t sent_bytes;
    uint32_t shorts;        /* short messages for which it made no segment */
    mpshm_arena *next;
};

struct process {
    pthread_mutex_t lock;   /* guards all of this, and every arena's fields; never held in a wait */
    uint32_t generation;
    mpshm_arena *arenas;
};
extern struct process mpshm_process;
bool process_is_locked(void);            /* for INVARIANT, in the debug build only: A4 */
void heap_keep(uint64_t size);           /* needs no lock */

/* memfile.c: needs no lock. */
uint64_t memfile_fresh_id(void);
int memfile_open(int kind, const char *name, bool *bounded);
int memfile_seal(int fd, bool bounded);
bool memfile_is_sealed(int fd);
int memfile_reserve(int fd, uint64_t offset, uint64_t size);

/* peers.c.  arena_lock takes the process's lock and enters; the others are called under it. */
struct glimpse {
    uint32_t pid, steps;
};
void arena_lock(mpshm_arena *arena);
void arena_unlock(mpshm_arena *arena);
/* Whether this process holds arena_lock, for INVARIANT: A4, L6. */
static inline bool
arena_is_locked(const mpshm_arena *arena)
{
    return process_is_locked() && arena->joined == mpshm_process.generation
           && (arena->me == 0 || atomic_load(&arena->peers[arena->me - 1].steps) % 2 != 0);
}
void peer_enter(mpshm_arena *arena);
void peer_leave(mpshm_arena *arena);
struct peer *peer_self(mpshm_arena *arena);
void peer_free(mpshm_arena *arena, uint32_t number);
void peer_depart(mpshm_arena *arena);
void peer_expect_child(mpshm_arena *arena, uint32_t leases);
bool peer_is_dead(mpshm_arena *arena, uint32_t number);
bool peers_at_rest(mpshm_arena *arena, struct glimpse *all);

/* segment.c: callers hold the lock. */
bool segment_fits(uint64_t stride, uint64_t bytes, uint32_t shift); /* needs no lock */
int segment_map(mpshm_arena *arena, uint32_t id, struct segment **out);
int segment_map_data(struct segment *seg);
int segment_claim_new(mpshm_arena *arena, uint64_t size, bool small, struct segment **out);
void segment_unmap(struct segment *seg);
void segment_vacate(struct segment *seg);
void segment_warm(struct segment *seg, uint64_t offset, uint64_t size);
int segment_validate(struct segment *seg);
uint64_t segment_file_offset(const struct segment *seg);

/* inspect.c: needs no lock. */
int ring_validate(mpshm_arena *arena, bool rests);

/* arena.c */
void arena_unref(mpshm_arena *arena);    /* under the lock; the next two take it */
void arena_keep(mpshm_arena *arena);
void arena_let_go(mpshm_arena *arena);
void arena_notify(mpshm_arena *arena);

/* sender.c.  All but the last three under arena_lock. */
int sender_claim(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run);
int sender_abandon(mpshm_run *run);
int sender_seal(mpshm_run *run, uint64_t size, uint64_t *bytes);
void sender_unseal(mpshm_run *run, uint64_t size);
void sender_trim(mpshm_run *run, uint64_t size);
void sender_note(mpshm_arena *arena, const mpshm_run *run);
bool sender_is_settled(mpshm_arena *arena);
bool sender_has_room(mpshm_arena *arena, uint64_t bytes, uint64_t mark);
uint64_t sender_in_flight(mpshm_arena *arena);

/* parcel.c and frame.c */
struct part {
    mpshm_run run;
    uint64_t size; /* bytes of the message in it */
};
struct mpshm_parcel {
    mpshm_arena *arena;
    struct part *parts;
    uint32_t count, room, stream_runs;
    bool has_index;
    struct part index;
};
struct frame_head {
    bool indexed, stream_in_index;
    uint32_t stream_runs, buffer_runs;
    uint32_t descriptors, stream, end; /* where in the frame they begin, and it ends */
};
int frame_head(const unsigned char *frame, struct frame_head *head);
int frame_lease_one(mpshm_arena *arena, const unsigned char *at, mpshm_held *run,
                    mpshm_descriptor *bad);
int frame_copy_one(mpshm_arena *arena, const unsigned char *at, char *to, uint64_t most,
                   uint64_t *size, mpshm_descriptor *bad);
int frame_lease_all(mpshm_arena *arena, const unsigned char *table, uint32_t count, mpshm_held *to,
                    mpshm_descriptor *bad);
int frame_index(const struct frame_head *head, uint64_t index_size, uint64_t most,
                uint64_t *stream);
bool frame_fits(const mpshm_arena *arena, uint64_t descriptors, uint64_t stream_size);
uint32_t frame_put(char *frame, const mpshm_parcel *parcel, const char *stream,
                   uint64_t stream_size);
int frame_read(mpshm_reader *reader, int fd, uint32_t body_max);
int frame_open(mpshm_reader *reader, mpshm_arena *arena, uint32_t copy_max);
#define DESCRIPTOR_BYTES 20

/* receiver.c, all under arena_lock. */
void lease_drop_run(struct segment *seg, uint32_t chunk_id, uint32_t chunks);
int lease_run(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
              char **data);
int lease_copy(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
               char *to);
void release_run(void *data);

/* parcel.c */
int parcel_seal(mpshm_parcel *parcel, uint64_t *bytes);
void parcel_unseal(mpshm_parcel *parcel);
void parcel_handed_over(mpshm_parcel *parcel);

/* wait.c and spin.c: need no lock. */
int64_t now_ns(void);
void futex_wait(_Atomic uint32_t *word, uint32_t value, int timeout_ms);
int futex_wake(_Atomic uint32_t *word, int most);
bool has_hung_up(int fd, short which);
void spin_init(mpshm_spin *spin, uint32_t spin_us);
bool spin_may_block(mpshm_spin *spin);
int64_t spin_begin(mpshm_spin *spin, bool worth);
bool spin_goes_on(int64_t until);
void spin_end(mpshm_spin *spin, int64_t until, bool paid);

/* The longest frame that the ring holds, of a message with no run; any other is of MPSHM_SLOT_BYTES. */
static inline uint32_t
ring_frame_bytes(const mpshm_arena *arena)
{
    return arena->overflow != NULL ? RING_FRAME_BYTES : RING_DATA_BYTES;
}

/* ring.c.  Under the process's lock: ring_mirror, ring_was_taken, ring_watch; under arena_lock:
   ring_put, ring_take, ring_reap. */
uint32_t ring_put(mpshm_arena *arena, int fd, const char *frames, uint32_t count);
uint32_t ring_take(mpshm_arena *arena, char *to, uint32_t most);
uint32_t ring_unread(mpshm_arena *arena);
bool ring_is_ready(mpshm_arena *arena);
bool ring_is_full(mpshm_arena *arena);
void ring_reap(mpshm_arena *arena, uint32_t number);
void ring_was_taken(mpshm_arena *arena, int fd);
bool ring_mirror(mpshm_arena *arena, int fd);
bool ring_is_claimed(mpshm_arena *arena);
bool ring_is_due(mpshm_arena *arena);
void ring_watch(mpshm_arena *arena, int fd);

/* waiters.c: needs no lock. */
void waiters_rouse(mpshm_arena *arena, int count);
void waiters_call(mpshm_arena *arena, int most);
void waiters_let_in(mpshm_arena *arena);
int waiters_room(mpshm_arena *arena, int fd, int timeout_ms);
bool waiters_poll(mpshm_arena *arena, int fd, int timeout_ms);
void waiter_init(mpshm_waiter *waiter, uint32_t spin_us);
int waiter_look(mpshm_waiter *waiter, mpshm_arena *arena);
bool waiter_sleep(mpshm_waiter *waiter, mpshm_arena *arena, int fd, int timeout_ms);
void waiter_goes(mpshm_waiter *waiter, mpshm_arena *arena, uint32_t took);

/* places.c: under arena_lock. */
bool places_counted(const mpshm_arena *arena);
void places_pend(mpshm_arena *arena, int32_t messages);
bool places_take(mpshm_arena *arena, uint64_t bytes);
void places_leave(mpshm_arena *arena, uint32_t messages, uint64_t bytes);
void places_undo_unfinished(mpshm_arena *arena, uint32_t messages);
void places_forget(mpshm_arena *arena, uint32_t messages, uint64_t bytes);

/* reap.c */
void reap_before_growth(mpshm_arena *arena); /* under arena_lock */
void reap_records(mpshm_arena *arena);       /* when there is none left */

#endif
