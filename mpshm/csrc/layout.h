/* What lies in shared memory, byte by byte.  Every process that has a file mapped includes this, and
   nothing else describes it.  Any change here bumps MPSHM_ABI.

   A roster's file:  | roster header | records ... |
   An arena's file:  | arena header | its own roster, if strangers share it | marks | chain | stream records |
                     | ring 0 | (to alignment) pieces |
                     | mailboxes |                                   of a connection, from the marks on
                     | (to alignment) ring 1 | ring 2 | ...               of a queue that grows
                     | segment 0 | segment 1 | ...                        `stride` apart, sparse
   Ring 0:           | ring | slots, each with its data | overflow |
   Another ring:     | ring | words of its slots | (to alignment) data | overflow |
   A segment:        | head | free map | heads | freed | run table | (to alignment) data chunks |

   Each shared word is of one of three kinds, and says which:
     truth   changed by one compare-and-swap, or stored by the one process that the words before it name;
             the new value names whoever changed it.  A reaper reads the word and knows what happened.
     mine    only the process it belongs to writes it, and for a dead one its reaper.
     hint    may be wrong, but only in the harmless direction, which is said.
   What is written once, before the file has a second user, is of no kind.

   A hole reads as zero, and zero is a good beginning everywhere: a record nobody had, a segment whose free
   map was not made yet, a run that is free, a slot that is free in lap 0.

   Invariants: L1 to L7 (invariants.h). */
#ifndef MPSHM_LAYOUT_H
#define MPSHM_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "shared words need lock-free atomics");

/* A process's name: record number 14 | incarnation 16, which is never 0.  0: nobody. */
typedef uint32_t name;
#define NUMBER_LIMIT UINT32_C(16384)
#define NAME_MASK UINT32_C(0x3fffffff)
#define NAME(number, incarnation) ((name) (incarnation) << 14 | (name) (number))
#define NAME_NUMBER(who) ((who) & (NUMBER_LIMIT - 1))
#define NAME_INCARNATION(who) ((who) >> 14 & 0xffff)

/* The roster: who is alive (roster.c). */
#define ROSTER_MAGIC UINT64_C(0x3072736d687370ff)
struct record {
    _Atomic uint64_t word; /* truth: RECORD_WORD; taken by who holds the lock on its byte */
    _Atomic uint64_t born; /* mine: RECORD_FACT, when it began (pids.c) */
    _Atomic uint64_t space; /* mine: RECORD_FACT, pid namespace: a pid says nothing outside it */
    _Atomic uint32_t noted; /* truth: the last incarnation that somebody found dead.  Behind: ask the lock */
    uint32_t unused;
};
_Static_assert(sizeof(struct record) == 32, "layout");
/* A record's word: pid 32 (0: not known yet) | unused 12 | proof 4 | incarnation 16 */
enum proof {
    PROOF_NONE = 0, /* nobody has had the record */
    PROOF_LOCK = 1, /* alive while the record's byte is locked */
    PROOF_PID = 2,  /* no lock could be had: alive while its pid and start time are */
};
#define RECORD_WORD(pid, proof, incarnation) \
    ((uint64_t) (uint32_t) (pid) << 32 | (uint64_t) (proof) << 16 | (uint64_t) (incarnation))
#define RECORD_PID(word) ((uint32_t) ((word) >> 32))
#define RECORD_PROOF(word) ((enum proof) ((word) >> 16 & 0xf))
#define RECORD_INCARNATION(word) ((uint32_t) ((word) & 0xffff))
/* incarnation 16 | value 48, 0: not known.  Written after the word, when the record is the process's own for
   certain; until then, and if it is killed in between, another incarnation's fact says nothing. */
#define RECORD_FACT(incarnation, value) ((uint64_t) (incarnation) << 48 | (value))
#define FACT_INCARNATION(fact) ((uint32_t) ((fact) >> 48))
#define FACT_VALUE(fact) ((fact) & UINT64_C(0xffffffffffff))
struct roster_header {
    uint64_t magic;
    uint32_t abi;
    uint32_t limit;        /* how many records it has */
    uint64_t id;
    _Atomic uint32_t high; /* hint: no number is in use from here on; never too small */
    _Atomic uint32_t next; /* hint: where to look for a free record first */
    _Atomic uint32_t deaths; /* hint: counts deaths that somebody noticed; whoever sees it changed reaps */
    _Atomic uint32_t looked; /* hint: slices of the records that the census has looked at */
    _Atomic uint32_t looked_ms; /* hint: when it last did, in ms of the clock; early or late by some */
    uint32_t unused[5];
};
_Static_assert(sizeof(struct roster_header) == 64, "layout");
#define ROSTER_BYTES(limit) (sizeof(struct roster_header) + (limit) * sizeof(struct record))

/* The arena. */
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
/* A larger segment has larger chunks: see the size classes in docs/design.md. */
#define CHUNK_LIMIT (UINT32_C(1) << 16)

struct arena_header {
    uint64_t magic;
    uint32_t abi;
    uint32_t segment_limit;
    uint64_t head_bytes;    /* of all before segment 0 */
    uint64_t stride;
    uint64_t segment_bytes;
    uint64_t id;
    uint64_t roster_id;     /* of the roster by which words name processes; 0: the one in this file */
    uint32_t chunk_shift;
    uint32_t slot_bytes;    /* of each frame in its ring; 0: no queue, but a connection's arena */
    uint32_t slots;         /* how many its ring 0 has, a power of two */
    uint32_t places;        /* how many messages it may hold, 0: any number */
    uint64_t bytes_limit;   /* and how many bytes of slots and chunks, 0: any number */
    uint32_t joinable;
    uint32_t overflowing;   /* slots have a place in the overflow */
    uint32_t rings;         /* how many rings a queue may have: 1 if it does not grow */
    uint32_t streams;       /* how many stream records have memory for a piece */
    _Atomic uint32_t wanted; /* hint: leases that waiting senders await; the futex they sleep on.  Too
                                large: they sleep until their slice of time is over */
    _Atomic uint32_t swept; /* hint: the roster's `deaths` when the last sweep began.  Wrong: one more, or
                               the next death's sweep finds it */
    _Atomic uint64_t segment[SEGMENT_LIMIT]; /* truth: the directory, DIR_WORD */
    _Atomic uint32_t untrimmed; /* hint: a sweep has freed runs of the dead since memory was last given back.
                                   Wrong: memory stays warm, or is given back once more */
    _Atomic uint32_t trim_soon; /* hint: enum warmth, somebody asks for a trim; 0: nobody.  The same */
    _Atomic uint32_t trimmed; /* hint: the period in which somebody has last looked whether memory can go back */
    _Atomic uint32_t tracked; /* hint: event count and futex of those that wait until their message is taken: changes 30 |
                                 SOME_CANCELLED 1, never clear again | MAY_WATCH 1, set by each that is about to sleep.
                                 Wrong: one futile call of the kernel, a look into the pipe more, or they sleep until
                                 their watch */
    _Atomic uint64_t watches; /* hint: which periods somebody wakes in by itself (watch.c): number of the first
                                 32 | a bit for each of 32.  A bit of the dead, or a wrong one, ends with its
                                 period; meanwhile another sleeps a period longer */
};
_Static_assert(offsetof(struct arena_header, abi) == 8, "layout");
_Static_assert(offsetof(struct arena_header, segment_limit) == 12, "layout");
_Static_assert(offsetof(struct arena_header, id) == 40, "layout");
_Static_assert(offsetof(struct arena_header, segment) == 104, "layout");
_Static_assert(sizeof(struct arena_header) <= 4096, "layout");
/* In `tracked`. */
#define MAY_WATCH UINT32_C(1)
#define SOME_CANCELLED UINT32_C(2)
#define ONE_CHANGE UINT32_C(4)

/* An arena that strangers share has a roster of its own, so that no stranger can forge a death in a
   family's. */
#define OWN_ROSTER_OFFSET UINT64_C(4096)
#define OWN_ROSTER_LIMIT UINT32_C(1024)

/* A word for each record of the roster, the process's own in this arena.
   In a queue's: messages that it has accepted and that have no position yet.
   In a connection's: how many of its threads are receiving, and how often the last one ended that. */
#define MARKS_OFFSET UINT64_C(40960)
_Static_assert(OWN_ROSTER_OFFSET + ROSTER_BYTES(OWN_ROSTER_LIMIT) <= MARKS_OFFSET, "layout");
#define MARKS_BYTES (NUMBER_LIMIT * sizeof(uint64_t))
/* mine: incarnation 16 | pending 48; or incarnation 16 | ended 24 | threads inside 24 */
#define MARK(incarnation, value) ((uint64_t) (incarnation) << 48 | (value))
#define MARK_INCARNATION(word) ((uint32_t) ((word) >> 48))
#define MARK_VALUE(word) ((word) & UINT64_C(0xffffffffffff))
#define CHAIN_OFFSET (MARKS_OFFSET + MARKS_BYTES)

/* A connection's mailboxes, one for each direction: the first is the accepting end's to receive by (mailbox.c).  A page
   each, a hole until an end uses it. */
enum mailbox_state {
    MAILBOX_OUT = 0,
    MAILBOX_COMING = 1,
    MAILBOX_LOOKING = 2,
    MAILBOX_SLEEPING = 3,
    MAILBOX_FULL = 4,
    MAILBOX_CALLED = 5,
};
#define MAILBOX_BYTES 4032
struct mailbox {
    _Atomic uint32_t state;  /* truth: the receiver's alone while OUT, FULL or CALLED, of both else; and the futex that the
                                receiver sleeps on.  Of the dead: a message is lost, as one in their socket would be */
    _Atomic uint32_t cpu;    /* hint: where the sender ran when it last sent, and 1; 0: not known.  Wrong: the receiver
                                spins in vain, or sleeps where a spin would have done */
    _Atomic uint32_t read;   /* mine, the receiver's: messages that it has read from the socket since it began */
    _Atomic uint32_t shut;   /* mine, the receiver's: it stays at the socket for good */
    /* The others are mine, the sender's. */
    _Atomic uint32_t open;   /* it uses its mailbox.  0: not yet, or not any more, and it counts nothing */
    _Atomic uint32_t posted; /* messages that it has written to the socket since it began, or is about to */
    _Atomic uint32_t size;   /* bytes of the message that lies here */
    uint32_t unused[9];
    char data[MAILBOX_BYTES];
};
_Static_assert(sizeof(struct mailbox) == 4096, "layout");
#define MAILBOXES_OFFSET CHAIN_OFFSET
#define MAILBOXES_END (MAILBOXES_OFFSET + 2 * sizeof(struct mailbox))

/* A queue's messages (ring.c).  Positions go up by one and are compared modulo 2^36; position p is slot
   p % slots in lap p / slots, modulo as many laps as there are.  What different processes write lies in different cache lines. */
#define POSITION_BITS 36
#define POSITION_MASK ((UINT64_C(1) << POSITION_BITS) - 1)
#define RING_SLOTS UINT32_C(512) /* of ring 0, at least; a bounded queue has as many as it is long */
/* At most: a ring becomes resident whole, 1.2 KB a slot, however few messages there ever are in it.  A longer queue has
   several rings. */
#define RING_SLOTS_MOST UINT32_C(4096)
/* Ring 1 is twice as long as ring 0, ring 2 twice as long as that one, and so on, until they have as many slots as fit a
   mapping of 40 MiB. */
#define RING_BITS 6
#define RINGS (1 << RING_BITS) /* 1.9 million messages */
#define RING_DOUBLINGS 6
#define RING_SLOTS_OF(ring) (RING_SLOTS << ((ring) < RING_DOUBLINGS ? (ring) : RING_DOUBLINGS))
/* For how many messages there is room in so many rings whenever no more than these are there: the first may be half
   empty, and another have been ended early. */
static inline uint32_t
rings_places(uint32_t rings)
{
    uint32_t places = 0;

    for (uint32_t ring = 0; ring + 2 < rings; ring++) {
        places += RING_SLOTS_OF(ring) - 1;
    }
    return places;
}
/* A position and its ring: what a run in flight names. */
#define SPOT(ring, position) ((uint64_t) (ring) << POSITION_BITS | ((position) & POSITION_MASK))
#define SPOT_RING(spot) ((uint32_t) ((spot) >> POSITION_BITS & (RINGS - 1)))
#define SPOT_POSITION(spot) ((spot) & POSITION_MASK)
#define SPOT_MASK SPOT(RINGS - 1, POSITION_MASK)
#define RING_DATA_BYTES 128
/* A longer frame goes on in the overflow, where each slot has a place of its own.  The overflow lies
   apart, so that short frames, which are the rule, lie close together and make less memory resident.
   See the size classes in docs/design.md. */
#define OVERFLOW_BYTES 1024
#define RING_FRAME_BYTES (RING_DATA_BYTES + OVERFLOW_BYTES)
struct ring_slot {
    _Atomic uint64_t word;  /* truth: SLOT_WORD */
    _Atomic uint64_t data[RING_DATA_BYTES / 8]; /* the slot's owner's while WRITING */
    _Atomic uint64_t bytes; /* of maxbytes: BYTES_WORD.  The owner's while HELD or WRITING */
    uint64_t unused[6];     /* to whole lines */
};
_Static_assert(sizeof(struct ring_slot) == 192, "layout");
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
       while one sleeps only if a process was killed between storing that and waking.  Of a bounded queue
       UINT32_MAX: they are woken for each slot. */
    _Atomic uint32_t room_mark;
    _Atomic uint32_t watched;  /* a receiver polls the pipe: it is readable while there is a message */
    /* Until when one receiver spins, and until when one that sleeps will have looked; 0: none.  The time
       of the dead passes, and until then messages wake fewer. */
    _Atomic int64_t spin_until_ns;
    _Atomic int64_t backup_at_ns;
    _Atomic uint32_t joiners;   /* somebody may wait in join() */
    _Atomic uint32_t done_bell; /* and the event count and futex of those */
    /* The one word here that is truth: who may read the pipe's bytes, a name.  Only ever tried. */
    _Atomic uint32_t drainer;
    uint32_t unused[5];
};
_Static_assert(sizeof(struct waiters) == 64, "layout");
/* A ring's own words: what different processes write lies in different lines. */
struct ring_head {
    _Atomic uint64_t tail; /* hint: no position after this one is claimed; this one may be.  Behind: moved
                              on by whoever finds it so */
    uint64_t unused_1[7];
    _Atomic uint64_t head; /* truth: HEAD_WORD.  All positions before this one are passed; so many of
                              them were skipped in this life of the ring.  Each step is the same whoever makes it */
    uint64_t unused_2[7];
    _Atomic uint64_t before; /* its maker's, while it says MAKING: so many positions in the rings before it since
                                the queue was made, less its own before this life; modulo */
    uint64_t unused_3[7];
    struct ring_slot slots[]; /* of ring 0 */
};
_Static_assert(offsetof(struct ring_head, slots) == 192, "layout");
/* The rings of a queue, one behind the other (chain.c). */
struct chain {
    _Atomic uint64_t first; /* truth: FIRST_WORD.  The ring where receivers begin */
    _Atomic uint64_t last;  /* hint: LAST_WORD, the ring where a claim is tried first.  Behind: its slots or its life
                               show it */
    _Atomic uint64_t touched; /* hint: a bit for each ring that may have memory though it is free.  Wrongly set: it
                                 is given back once more.  Wrongly clear: it stays until the ring is used again */
    uint64_t unused_1[5];
    _Atomic uint64_t done; /* truth: half turns of the count of skips 28 | messages for which
                              task_done() was called 36.  One step each */
    uint64_t unused_2[7];
    struct waiters waiters;
    _Atomic uint64_t word[RINGS]; /* truth: RING_WORD, of each ring */
};
_Static_assert(sizeof(struct chain) == 192 + 8 * RINGS, "layout");
struct overflow {
    _Atomic uint64_t data[OVERFLOW_BYTES / 8];
};

/* FREE -> WRITING(me) -> READY -> FREE of the next lap; with runs READY -> TAKING(me) -> FREE of the next
   lap.  HELD(me) comes before WRITING(me), of one who has no message for it yet, and perhaps for long: the
   pipe does not show it.  HELD or WRITING of the dead, or given up -> SKIPPED, which whoever claims the next
   lap takes as FREE; TAKING(dead) -> FREE of the next lap.  FREE -> NEXT(ring, life) ends the ring: what comes later
   lies in that one; only the next maker of this ring changes it again. */
enum slot_state {
    SLOT_FREE = 0,
    SLOT_WRITING = 1,
    SLOT_READY = 2,
    SLOT_TAKING = 3,
    SLOT_SKIPPED = 4,
    SLOT_HELD = 5,
    SLOT_NEXT = 6,
};
/* lap 31, compared modulo | name 30, of HELD, WRITING and TAKING | state 3 */
#define LAP_MASK UINT64_C(0x7fffffff)
#define SLOT_WORD(lap, who, state) \
    (((uint64_t) (lap) & LAP_MASK) << 33 | (uint64_t) (who) << 3 | (uint64_t) (state))
#define SLOT_LAP(word) ((word) >> 33)
#define SLOT_OWNER(word) ((name) ((word) >> 3 & NAME_MASK))
#define SLOT_STATE(word) ((enum slot_state) ((word) & 7))
/* In the place of the name, of NEXT: life 24 | ring 6 */
#define LINK(ring, life) ((name) ((life) & LIFE_MASK) << RING_BITS | (name) (ring))
#define LINK_RING(link) ((link) & (RINGS - 1))
#define LINK_LIFE(link) ((link) >> RING_BITS)
/* A ring is FREE -> MAKING(me) -> USED -> FREE of the next life.  MAKING of the dead, or given up -> FREE of the next
   life.  Between MAKING and FREE its memory is given back, too.  Life 24 | unused | name 30 | state 2 */
enum ring_state { RING_FREE = 0, RING_MAKING = 1, RING_USED = 2 };
#define LIFE_MASK UINT32_C(0xffffff)
#define RING_WORD(life, who, state) \
    ((uint64_t) ((life) & LIFE_MASK) << 40 | (uint64_t) (who) << 2 | (uint64_t) (state))
#define RING_LIFE(word) ((uint32_t) ((word) >> 40))
#define RING_MAKER(word) ((name) ((word) >> 2 & NAME_MASK))
#define RING_STATE(word) ((enum ring_state) ((word) & 3))
/* The ring 30, as LINK | skips in all rings before it 28, modulo */
#define FIRST_WORD(link, skips) ((uint64_t) ((skips) & SKIPS_MASK) << 30 | (uint64_t) (link))
#define FIRST_LINK(word) ((name) ((word) & NAME_MASK))
#define FIRST_SKIPS(word) ((word) >> 30 & SKIPS_MASK)
/* skips 28 | position 36, both modulo */
#define SKIPS_MASK ((UINT64_C(1) << (64 - POSITION_BITS)) - 1)
#define HEAD_WORD(skips, position) \
    ((uint64_t) (skips) << POSITION_BITS | ((position) & POSITION_MASK))
#define HEAD_SKIPS(word) ((word) >> POSITION_BITS)
#define HEAD_POSITION(word) ((word) & POSITION_MASK)
/* lap 31 | bytes 33: one message larger than that counts as so large */
#define BYTES_MOST ((UINT64_C(1) << 33) - 1)
#define BYTES_WORD(lap, bytes) \
    (((uint64_t) (lap) & LAP_MASK) << 33 | ((bytes) < BYTES_MOST ? (bytes) : BYTES_MOST))

/* Stream records: a message for which there is no memory goes through one, piece by piece, from its sender to the process
   that takes its slot (stream.c).  A record is only ever a record, and its generation counts on, so that one who comes
   late with its name finds that it is another's.
   Its words lie before ring 0, in a page that is resident anyway.  The pieces lie apart, a hole until they are used. */
#define STREAMS 8
#define STREAMS_BOUNDED 2 /* where the file system may run full: their memory is reserved */
#define PIECE_BYTES (UINT32_C(128) << 10)
/* What the sender writes and what the taker writes lies in different lines. */
struct stream_record {
    _Atomic uint64_t owner;   /* truth: STREAM_OWNER, the sender; nobody: it is free */
    _Atomic uint64_t spot;    /* mine, the owner's: STREAM_SPOT, its message's position; of another generation: it has
                                 none yet */
    _Atomic uint64_t written; /* mine, the owner's: STREAM_WRITTEN */
    _Atomic uint32_t bytes;   /* mine, the owner's: of the piece that was written last */
    _Atomic uint32_t taker_bell; /* hint: event count and futex of the taker.  Wrong: it sleeps until its watch */
    uint64_t unused[4];
    _Atomic uint64_t read;    /* mine, of the process that takes the slot: STREAM_READ */
    _Atomic uint32_t sender_bell; /* hint: event count and futex of the owner.  The same */
    uint32_t unused_2[13];
};
_Static_assert(sizeof(struct stream_record) == 128, "layout");
struct streams {
    _Atomic uint32_t freed; /* hint: event count and futex of those that wait for a record.  The same */
    _Atomic uint32_t touched; /* hint: a bit for each record whose piece may have memory.  Wrongly set: it is given
                                 back once more.  Wrongly clear: it stays until the record is used again */
    uint32_t unused[30];
    struct stream_record records[STREAMS];
};
_Static_assert(sizeof(struct streams) == 128 + STREAMS * 128, "layout");
enum stream_state { STREAM_GOES_ON = 0, STREAM_LAST = 1, STREAM_GIVEN_UP = 2 };
#define STREAM_GENERATION_MASK UINT32_C(0xfffff)
/* generation 20 | name 30;  generation 20 | spot 42;  pieces 32 | state 2 | generation 20;  the same */
#define STREAM_OWNER(generation, who) ((uint64_t) (generation) << 30 | (uint64_t) (who))
#define STREAM_SPOT(generation, spot) ((uint64_t) (generation) << 44 | (uint64_t) (spot))
#define STREAM_WRITTEN(generation, state, pieces) \
    ((uint64_t) (pieces) << 32 | (uint64_t) (state) << 20 | (uint64_t) (generation))
#define STREAM_READ(generation, pieces) STREAM_WRITTEN(generation, STREAM_GOES_ON, pieces)
#define STREAM_GENERATION(word) ((uint32_t) (word) & STREAM_GENERATION_MASK) /* of the last two */
#define STREAM_STATE(word) ((enum stream_state) ((word) >> 20 & 3))
#define STREAM_PIECES(word) ((uint32_t) ((word) >> 32))
#define OWNER_GENERATION(word) ((uint32_t) ((word) >> 30) & STREAM_GENERATION_MASK)
#define OWNER_NAME(word) ((name) ((word) & NAME_MASK))
#define SPOT_GENERATION(word) ((uint32_t) ((word) >> 44))
#define SPOT_OF(word) ((word) & SPOT_MASK)
#define STREAMS_OFFSET (CHAIN_OFFSET + sizeof(struct chain))
#define RING_OFFSET (STREAMS_OFFSET + sizeof(struct streams))

/* What ring 0 takes, the ring and all. */
static inline uint64_t
ring_bytes(uint32_t slots, int overflowing)
{
    return sizeof(struct ring_head) + (uint64_t) slots * sizeof(struct ring_slot)
           + (overflowing ? (uint64_t) slots * sizeof(struct overflow) : 0);
}

/* Another ring: where its data begin from its own beginning, and what it takes in all. */
static inline uint64_t
ring_data_offset(uint32_t slots)
{
    uint64_t words = sizeof(struct ring_head) + (uint64_t) slots * sizeof(uint64_t);

    return (words + SMALL_ALIGN - 1) / SMALL_ALIGN * SMALL_ALIGN;
}

static inline uint64_t
ring_apart_bytes(uint32_t slots, int overflowing)
{
    return ring_data_offset(slots)
           + (uint64_t) slots * (RING_DATA_BYTES + (overflowing ? OVERFLOW_BYTES : 0));
}

/* Where ring `ring` lies, from the end of what is mapped with the header on; of `rings`, where they end. */
static inline uint64_t
rings_offset(uint32_t ring, int overflowing)
{
    uint64_t at = 0;

    for (uint32_t r = 1; r < ring; r++) {
        at += ring_apart_bytes(RING_SLOTS_OF(r), overflowing);
    }
    return at;
}

/* Where the pieces lie. */
static inline uint64_t
pieces_offset(uint32_t slots, int overflowing)
{
    return (RING_OFFSET + ring_bytes(slots, overflowing) + SMALL_ALIGN - 1) / SMALL_ALIGN * SMALL_ALIGN;
}

/* Directory word: the name of its owner, who prefers it, 30 | chunk shift 6 | chunk count 20.  Its lower
   bits never change once they are not 0. */
#define DIR_WORD(owner, shift, count) \
    ((uint64_t) (owner) << 26 | (uint64_t) (shift) << 20 | (uint64_t) (count))
#define DIR_OWNER(word) ((name) ((word) >> 26 & NAME_MASK))
#define DIR_SHIFT(word) ((uint32_t) ((word) >> 20 & 0x3f))
#define DIR_COUNT(word) ((uint32_t) ((word) & 0xfffff))

/* A segment's head.  Maps have one bit for each chunk, and a guard that is 0. */
struct segment_head {
    _Atomic uint32_t lock;  /* truth: who may claim here, a name; only ever tried */
    uint32_t made;          /* the lock's: the maps have been made from the run table */
    _Atomic uint32_t stale; /* hint: chunks are free that the free map does not show.  Wrongly set: it is
                               made anew for nothing.  Wrongly 0: until the lock's next holder dies */
    _Atomic uint32_t high;  /* the lock's: no run has begun at this chunk or behind it; raised before the
                               claim */
    uint32_t claims;        /* the lock's: how many there were; the next one's tag */
    uint32_t lent_to, lent_before; /* the lock's: the end of what was claimed in this period, and in the last one, */
    uint32_t period;        /* the lock's: which began when memory was looked at (trim.c) */
    _Atomic uint32_t punched; /* hint: how often memory was given back.  Wrong: huge pages are made once more, or
                               come as small ones */
    _Atomic uint32_t refused; /* hint: somebody has found the lock taken.  Wrong: a trimmer waits a moment for
                               nobody, or whoever claims makes a segment more */
    uint32_t unused[6];
    _Atomic uint64_t freed_any[CHUNK_LIMIT / 64 / 64]; /* hint: a bit for each word of `freed` but the first few */
};
_Static_assert(sizeof(struct segment_head) == 192, "layout");

/* An entry of the run table, one for each chunk.  Those of a run's first chunk are the run's; `more` of the
   others hold the names of its holders while it is SHARED. */
struct run {
    _Atomic uint64_t word; /* truth: RUN_WORD, or FLIGHT_AT in a queue's arena */
    _Atomic uint64_t more; /* of the first chunk: EXTENT, written while the run is LOANED or being
                              claimed, by whoever does it.  Of others: truth: HOLDER(a name), or 0 */
};
_Static_assert(sizeof(struct run) == 16, "layout");

/* FREE -> LOANED -> FLIGHT -> LEASED -> FREE;  LOANED -> FREE, abandoned;  LEASED -> SHARED -> FREE, when no
   holder's name is left;  of a ticket: FLIGHT -> CANCELLED -> FREE, by who meets its frame.
   Run word: tag 31 | name 30 | state 3.  In flight through a ring: its spot in the place of both, for
   nobody has the run then but its slot.  In the place of the name a SHARED run has a count, which goes up
   before a name goes away.  A claim's tag is new in its segment, and goes with the run; in a queue's arena a
   lease replaces it by the position.  So no word comes again in the same state but FREE. */
enum run_state { RUN_FREE = 0, RUN_LOANED = 1, RUN_FLIGHT = 2, RUN_LEASED = 3, RUN_SHARED = 4, RUN_CANCELLED = 5 };
#define TAG_MASK UINT32_C(0x7fffffff)
#define RUN_WORD(tag, who, state) \
    ((uint64_t) ((tag) & TAG_MASK) << 33 | (uint64_t) (who) << 3 | (uint64_t) (state))
#define RUN_TAG(word) ((uint32_t) ((word) >> 33))
#define RUN_HOLDER(word) ((name) ((word) >> 3 & NAME_MASK))
#define RUN_STATE(word) ((enum run_state) ((word) & 7))
#define SHARED_MORE(word) /* a SHARED word with the next count */ \
    (((word) & ~((uint64_t) NAME_MASK << 3)) | (((((word) >> 3) + 1) & NAME_MASK) << 3))
#define FLIGHT_AT(spot) (((spot) & SPOT_MASK) << 3 | (uint64_t) RUN_FLIGHT)
#define FLIGHT_SPOT(word) ((word) >> 3 & SPOT_MASK)
#define SPOT_TAG(spot) ((uint32_t) (SPOT_POSITION(spot) ^ SPOT_RING(spot) << 25) & TAG_MASK)
/* A holder's name beside the run; no extent looks like one. */
#define HOLDER(who) (UINT64_C(1) << 63 | (uint64_t) (who))
#define IS_HOLDER(more) ((more) >> 63 != 0)
/* How many holders a run can have: as many as it has further chunks, and no more than that. */
#define HOLDERS_MOST 63

/* How long a run is: unused 1 | unused bytes 43 | chunks 20.  The bytes that are not the message's are
   counted when it is sealed, so that a forged size is refused to the byte; chunks among them may be
   taken from the run later. */
#define EXTENT(chunks, unused) ((uint64_t) (unused) << 20 | (uint64_t) (chunks))
#define EXTENT_CHUNKS(more) ((uint32_t) ((more) & 0xfffff))
#define EXTENT_UNUSED(more) ((more) >> 20 & UINT64_C(0x7ffffffffff))

/* Chunks that `size` bytes need. */
static inline uint64_t
chunks_of(uint32_t chunk_shift, uint64_t size)
{
    return (size + (UINT64_C(1) << chunk_shift) - 1) >> chunk_shift;
}

/* The bytes of the message in a sealed run. */
static inline uint64_t
extent_bytes(uint32_t chunk_shift, uint64_t more)
{
    return ((uint64_t) EXTENT_CHUNKS(more) << chunk_shift) - EXTENT_UNUSED(more);
}

/* Words of a map for `count` chunks and the guard bit. */
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
    uint64_t head = sizeof(struct segment_head) + 4 * map_words(count) * sizeof(uint64_t)
                    + count * sizeof(struct run);

    return (head + align - 1) / align * align;
}

#endif
