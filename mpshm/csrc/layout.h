/* What lies in shared memory, byte by byte.  Both sides include this and nothing else describes it.
   Any change here bumps MPSHM_ABI.

   The file:     | arena header, peer table, ring, overflow | segment 0 | segment 1 | ...
                 `stride` apart, sparse
   A segment:    | free map | run table | (to alignment) data chunks |

   A hole reads as zero, and zero means "lent": a segment whose maker died before it set the free
   bits lends nothing, and needs no repair.

   Invariants: L1 to L6 (invariants.h).

   A run:   FREE -> LOANED -> IN_FLIGHT -> LEASED -> FREE       (abandon: LOANED -> FREE)

   Memory order: the lease's compare-and-swap acquires what seal's store of IN_FLIGHT released.  The
   fetch_and of a claim acquires what the release of a run released with its free bits. */
#ifndef MPSHM_LAYOUT_H
#define MPSHM_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_MAGIC UINT64_C(0x32306d687370006d)
/* 496 segments of 64 MiB, or made to size: 31 GiB of leases and more.  The directory fits a 4 KiB page
   with the rest of the header.  Bytes here and below: see the size classes in docs/design.md. */
#define SEGMENT_LIMIT 496
/* A transparent huge page: MADV_COLLAPSE needs data aligned to it in file and memory alike. */
#define HUGE_BYTES (UINT64_C(2) << 20)
/* Alignment of a segment too small for huge pages: the largest page size Linux runs on. */
#define SMALL_ALIGN UINT64_C(65536)
/* Chunks for what is copied out as it arrives, so that a backlog of small messages is small.  In
   units of a page they would cost four times a 1 KB message; finer ones longer searches.
   SMALL_RUN_BYTES is config.py's INLINE_MAX_BYTES: see the size classes in docs/design.md. */
#define SMALL_SHIFT 8
#define SMALL_SEGMENT_BYTES (UINT64_C(8) << 20)
#define SMALL_RUN_BYTES (UINT64_C(32) << 10)
/* A run's length has 20 bits in its word; segments stay well inside.  A larger segment has larger
   chunks: see the size classes in docs/design.md. */
#define CHUNK_LIMIT (UINT32_C(1) << 16)

struct arena_header {
    uint64_t magic;
    uint32_t abi;
    uint32_t segment_limit;
    uint64_t stride;
    uint64_t segment_bytes;
    uint64_t id;
    uint32_t chunk_shift;
    _Atomic uint32_t wanted; /* leases that waiting senders await; the futex they sleep on */
    _Atomic uint64_t segment[SEGMENT_LIMIT];
    _Atomic uint32_t reaper; /* the peer that reaps, 0: none */
    _Atomic uint32_t crowded; /* a process found the peer table full: whether all rest cannot be told */
    /* Of a queue (places.c): */
    uint32_t places;        /* how many messages it may hold, 0: any number */
    uint32_t slot_bytes;    /* of each frame in its ring; 0: no queue, but a connection's arena */
    uint64_t bytes_limit;   /* and how many bytes of slots and chunks, 0: any number */
    _Atomic uint64_t bytes_used;
    _Atomic uint32_t places_used;
    _Atomic uint32_t place_waiters;
    _Atomic uint32_t unfinished; /* messages put and not yet task_done(), of a JoinableQueue */
    _Atomic uint32_t joiners;
    _Atomic uint32_t peers_high; /* no peer has had a higher number */
    uint32_t joinable;
    _Atomic uint32_t visits; /* peers that came and peers that went */
    _Atomic uint32_t shares; /* forks may have given leases more than one holder */
    _Atomic uint32_t trim_pending; /* a peer died since memory was last returned to the system: trim once nothing
                                    is in use */
};
_Static_assert(offsetof(struct arena_header, abi) == 8, "layout");
_Static_assert(offsetof(struct arena_header, segment_limit) == 12, "layout");
_Static_assert(offsetof(struct arena_header, stride) == 16, "layout");
_Static_assert(offsetof(struct arena_header, segment_bytes) == 24, "layout");
_Static_assert(offsetof(struct arena_header, id) == 32, "layout");
_Static_assert(offsetof(struct arena_header, chunk_shift) == 40, "layout");
_Static_assert(offsetof(struct arena_header, wanted) == 44, "layout");
_Static_assert(offsetof(struct arena_header, segment) == 48, "layout");
_Static_assert(offsetof(struct arena_header, reaper) == 4016, "layout");
_Static_assert(offsetof(struct arena_header, bytes_limit) == 4032, "layout");
_Static_assert(offsetof(struct arena_header, places_used) == 4048, "layout");
_Static_assert(sizeof(struct arena_header) <= 4096, "layout");

/* A process that uses the arena.  Its number, 1 to PEER_LIMIT, is what a run word names it by. */
#define PEER_LIMIT UINT32_C(960)
#define PEER_UNBORN UINT32_MAX
struct peer {
    _Atomic uint32_t pid;   /* 0: free; PEER_UNBORN: of a child that has not come yet */
    _Atomic uint32_t steps; /* odd between enter and leave */
    _Atomic uint64_t born;  /* start time by /proc, against a pid's second life; 0: not known; of
                               the unborn, when they were expected, in seconds */
    _Atomic uint64_t space; /* its pid namespace: pids say nothing outside it */
    _Atomic uint32_t shared;  /* leases that a fork has given more than one holder */
    _Atomic uint32_t pending; /* messages that have a place in the queue and no slot yet */
    uint32_t unused[8];
};
_Static_assert(sizeof(struct peer) == 64, "layout");
#define PEERS_OFFSET UINT64_C(4096)
#define HEADER_BYTES (PEERS_OFFSET + PEER_LIMIT * sizeof(struct peer))
_Static_assert(HEADER_BYTES == 65536, "the smallest stride holds it");
/* A queue's messages (ring.c).  Positions only grow; position p is slot p % RING_SLOTS in lap
   p / RING_SLOTS.  What different processes write lies in different cache lines. */
#define RING_SLOTS UINT64_C(512)
#define RING_DATA_BYTES 128
/* A longer frame goes on in the overflow, where each slot has a place of its own.  The overflow lies
   apart, so that short frames, which are the rule, lie close together and make less memory resident.
   See the size classes in docs/design.md. */
#define OVERFLOW_BYTES 1024
#define RING_FRAME_BYTES (RING_DATA_BYTES + OVERFLOW_BYTES)
struct ring_slot {
    _Atomic uint64_t word; /* lap 48 | owner 14 | state 2 */
    _Atomic uint64_t data[RING_DATA_BYTES / 8];
    uint64_t unused[7];    /* to whole lines */
};
/* What is said of processes that wait for a message or for room (waiters.c).  Each word is a hint, and no
   count of several processes' steps.  One that is wrong costs a futile call of the kernel, or a message or
   a slot waits for the end of a sleeper's watch. */
struct waiters {
    /* Receivers' event count and futex: wake-ups 31 | MAY_SLEEP 1, set by each that is about to sleep.
       The dead leave it set: one wake-up finds nobody, and clears it.  It is clear while one sleeps only
       if a process was killed between clearing it and waking those that fell asleep before. */
    _Atomic uint32_t wakeups;
    /* Senders' event count and futex. */
    _Atomic uint32_t room_wakeups;
    /* One sender is woken when no more slots than this are claimed; 0: none sleeps.  Each stores half the
       ring before it sleeps.  The dead leave it set: at most 7 futile wake-ups until it is 0.  It is 0
       while one sleeps only if a process was killed between storing that and waking. */
    _Atomic uint32_t room_mark;
    uint32_t unused;
    /* Which periods somebody wakes in by itself: number of the first 32 | a bit for each of 32.  A bit of
       the dead, or a wrong one, ends with its period; meanwhile another sleeps a period longer. */
    _Atomic uint64_t watches;
    _Atomic uint64_t room_watches;
    /* Until when one receiver spins, and until when one that sleeps will have looked; 0: none.  The time
       of the dead passes, and until then messages wake fewer. */
    _Atomic int64_t spin_until_ns;
    _Atomic int64_t backup_at_ns;
    uint64_t unused_2;
};
_Static_assert(sizeof(struct waiters) == 56, "layout");
struct ring {
    _Atomic uint64_t tail; /* no position after this one is claimed; this one may be */
    uint64_t unused_1[7];
    _Atomic uint64_t head; /* all positions before this one are done with */
    uint64_t unused_2[7];
    struct waiters waiters;
    _Atomic uint32_t watched; /* a receiver polls the pipe: it is readable while there is a message */
    uint32_t unused_3;
    struct ring_slot slots[RING_SLOTS];
};
struct overflow {
    _Atomic uint64_t data[OVERFLOW_BYTES / 8];
};
#define RING_OFFSET HEADER_BYTES
#define RING_BYTES sizeof(struct ring)
#define OVERFLOW_OFFSET (RING_OFFSET + RING_BYTES)
#define OVERFLOW_END (OVERFLOW_OFFSET + RING_SLOTS * OVERFLOW_BYTES)
_Static_assert(sizeof(struct ring_slot) == 192, "layout");
_Static_assert(offsetof(struct ring, slots) == 192, "layout");

enum ring_state { SLOT_FREE = 0, SLOT_WRITING = 1, SLOT_READY = 2 };
#define SLOT_WORD(lap, owner, state) \
    ((uint64_t) (lap) << 16 | (uint64_t) (owner) << 2 | (uint64_t) (state))
#define SLOT_LAP(word) ((word) >> 16)
#define SLOT_OWNER(word) ((uint32_t) ((word) >> 2 & HOLDER_LIMIT))
#define SLOT_STATE(word) ((enum ring_state) ((word) & 3))

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "shared words need lock-free atomics");

/* Directory word: owner's pid 32 | chunk shift 6 | chunk count 26.  Claimed by one CAS. */
#define DIR_WORD(owner, shift, count) \
    ((uint64_t) (uint32_t) (owner) << 32 | (uint64_t) (shift) << 26 | (uint64_t) (count))
#define DIR_OWNER(word) ((uint32_t) ((word) >> 32))
#define DIR_SHIFT(word) ((uint32_t) ((word) >> 26 & 0x3f))
#define DIR_COUNT(word) ((uint32_t) ((word) & 0x3ffffff))

/* Run word: tag 28 | chunks 20 | holder 14 | state 2.  A lease's CAS checks them all at once.
   holder: on loan or leased, the number of the peer that has it (0: one without a number), or from
   HOLDER_SHARED on, how many holders forks have made of it.  In flight there is none, and those bits
   hold the slack: the bytes of the last chunk that are not the message's (in units that fit), so
   that a forged size is refused to the byte. */
enum run_state { RUN_FREE = 0, RUN_LOANED = 1, RUN_IN_FLIGHT = 2, RUN_LEASED = 3 };
#define RUN_WORD(tag, chunks, holder, state) \
    ((uint64_t) ((tag) & TAG_MASK) << 36 | (uint64_t) (chunks) << 16 | (uint64_t) (holder) << 2 \
     | (uint64_t) (state))
#define TAG_MASK UINT32_C(0x0fffffff)
#define HOLDER_LIMIT UINT32_C(0x3fff)
#define HOLDER_SHARED UINT32_C(1024)
_Static_assert(PEER_LIMIT < HOLDER_SHARED, "numbers and counts share a field");
#define RUN_TAG(word) ((uint32_t) ((word) >> 36))
#define RUN_CHUNKS(word) ((uint32_t) ((word) >> 16 & 0xfffff))
#define RUN_HOLDER(word) ((uint32_t) ((word) >> 2 & HOLDER_LIMIT))
#define RUN_STATE(word) ((enum run_state) ((word) & 3))

/* Chunks that `size` bytes need. */
static inline uint64_t
chunks_of(uint32_t chunk_shift, uint64_t size)
{
    return (size + (UINT64_C(1) << chunk_shift) - 1) >> chunk_shift;
}

static inline uint32_t
slack_of(uint32_t chunk_shift, uint64_t size)
{
    uint32_t unused = (uint32_t) (-size & ((UINT64_C(1) << chunk_shift) - 1));

    return unused >> (chunk_shift > 14 ? chunk_shift - 14 : 0);
}

/* Words of a free map for `count` chunks and the guard bit. */
static inline uint64_t
map_words(uint32_t count)
{
    return count / 64 + 1;
}

/* Where a segment's data begin, from its own beginning. */
static inline uint64_t
data_offset(uint64_t stride, uint32_t count)
{
    uint64_t align = stride >= 32 * HUGE_BYTES ? HUGE_BYTES : SMALL_ALIGN;
    uint64_t head = (map_words(count) + count) * sizeof(uint64_t);

    return (head + align - 1) / align * align;
}

#endif
