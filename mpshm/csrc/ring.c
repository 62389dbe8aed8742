/* The ring: a queue's slots in shared memory, for any number of senders and receivers, with no lock.

   A slot's word says in which lap it is and what it holds.  Each step changes one word, at once:

     WRITING (me) --ring_fill, ring_put--> READY --ring_take--> FREE of the next lap
                                             |--ring_take, it names runs--> TAKING (me) --ring_pass--> FREE
                                             '--ring_take_back--> SKIPPED

   and how a slot comes to be claimed, or mended for the dead, is told in positions.c.

   A receiver copies a slot before it takes it: the copy counts only if the word has not changed until
   then.  So nothing waits for a sender that is stopped: receivers pass over slots that are being written.
   A message that names runs is TAKING while these are leased, so a run in flight is always some slot's
   whose word says so, and nobody's once that has passed.

   Knows slots' bytes.  Does not know what a frame says beyond its length and its sign, nor which process
   waits for a slot: the callers of ring_put and ring_take wake waiters.

   Invariants: G3, G8, G9 (invariants.h).

   Memory order: find_ready's acquiring load of READY pairs with ring_put's releasing store of it, so the
   copy has the sender's bytes.  The acquire fence between that copy and the compare-and-swap keeps the
   copy before it; it pairs with nothing, for the bytes are written after a later claim of the word.  The
   releasing store of ring_pass comes after the runs' words have been changed: who sees the slot passed
   sees them leased.  Other orders are explained where they stand (G4, G5). */
#include "internal.h"

#include <arpa/inet.h>
#include <string.h>

#include "ring.h"

#define TRIES RING_TRIES
/* A look begins anew so often when the ring goes on by more than a lap meanwhile. */
#define LAPS_MOST 64

/* Number of 8-byte words that a frame occupies, in its slot first, then in its overflow.  first: the
   frame's first word, which begins with its length, whose top bit is a flag.  A forged length counts as
   the largest.  G9 */
static uint32_t
words_of(const mpshm_arena *arena, uint64_t first)
{
    uint32_t most = ring_frame_bytes(arena);
    uint32_t length;

    memcpy(&length, &first, sizeof length);
    length = ntohl(length) & INT32_MAX;
    return length <= most - sizeof length ? (uint32_t) (sizeof length + length + 7) / 8
                                          : most / 8; /* forged */
}

/* Store atomic words, for a slow receiver may still read them.  It finds out before it takes the slot. */
static void
store_words(_Atomic uint64_t *to, const char *from, uint32_t count)
{
#ifndef __clang__ /* which does it by itself */
#pragma GCC unroll 8
#endif
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word;

        memcpy(&word, from + 8 * (size_t) i, 8);
        atomic_store_explicit(&to[i], word, memory_order_relaxed);
    }
}

static void
load_words(char *to, _Atomic uint64_t *from, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_relaxed);

        memcpy(to + 8 * (size_t) i, &word, 8);
    }
}

#define SLOT_WORDS (RING_DATA_BYTES / 8)

static struct overflow *
overflow_of(const mpshm_arena *arena, uint64_t position)
{
    return &arena->overflow[position & (arena->slots - 1)];
}

/* Copy a frame, filled to a multiple of 8 bytes, into the slot of a position that is this process's. */
void
ring_fill(mpshm_arena *arena, uint64_t position, const char *from)
{
    uint64_t first;

    memcpy(&first, from, 8);
    uint32_t n = words_of(arena, first);

    INVARIANT(G8, load_slot(arena, position)
                      == word_of(arena, position, arena->me, SLOT_WRITING));
    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    INVARIANT(G9, n <= SLOT_WORDS || arena->overflow != NULL);
    store_words(slot_of(arena, position)->data, from, n < SLOT_WORDS ? n : SLOT_WORDS);
    if (n > SLOT_WORDS) {
        store_words(overflow_of(arena, position)->data, from + RING_DATA_BYTES, n - SLOT_WORDS);
    }
}

static void
copy_out(mpshm_arena *arena, char *to, uint64_t position)
{
    _Atomic uint64_t *data = slot_of(arena, position)->data;
    uint64_t first = atomic_load_explicit(data, memory_order_relaxed);
    uint32_t n = words_of(arena, first);

    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    memcpy(to, &first, 8); /* not read again: it says how much is copied */
    load_words(to + 8, data + 1, (n < SLOT_WORDS ? n : SLOT_WORDS) - 1);
    if (n > SLOT_WORDS) {
        load_words(to + RING_DATA_BYTES, overflow_of(arena, position)->data, n - SLOT_WORDS);
    }
}

/* Begin to write at a position that this process has held, or no longer. */
void
ring_begin(mpshm_arena *arena, uint64_t position)
{
    INVARIANT(G8, ring_is_held(arena, position));
    /* As a claim: G5 */
    atomic_store(&slot_of(arena, position)->word,
                 word_of(arena, position, arena->me, SLOT_WRITING));
}

void
ring_hold(mpshm_arena *arena, uint64_t position)
{
    INVARIANT(G8, load_slot(arena, position)
                      == word_of(arena, position, arena->me, SLOT_WRITING));
    atomic_store(&slot_of(arena, position)->word, word_of(arena, position, arena->me, SLOT_HELD));
}

/* Put the messages at positions of this process whose slots are filled: the caller then wakes receivers
   for these.  fd: the pipe's end for writing. */
void
ring_put(mpshm_arena *arena, int fd, const uint64_t *positions, uint32_t count)
{
    INVARIANT(A4, arena_is_locked(arena));
    mirror_show(arena, fd);
    for (uint32_t i = 0; i < count; i++) {
        INVARIANT(G8, load_slot(arena, positions[i])
                          == word_of(arena, positions[i], arena->me, SLOT_WRITING));
        atomic_store_explicit(&slot_of(arena, positions[i])->word,
                              word_of(arena, positions[i], 0, SLOT_READY), memory_order_release);
    }
    /* G4: pairs with the fence of a receiver between saying that it sleeps and its last look
       (waiters.c).  Either it finds READY, or the caller finds that it sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
}

/* A walk over the ring for the next message. */
struct look {
    uint64_t first;    /* all before this one has passed */
    uint64_t position; /* of what was found, and its word */
    uint64_t word;
    bool passed_over;  /* a slot before it is being written */
};

/* Find the first READY position from look->first on, and before `to`. */
static bool
find_ready(const mpshm_arena *arena, struct look *look, uint64_t to)
{
    bool open = false;

    look->passed_over = false;
    for (uint64_t at = look->first; at != to; at = position_after(at, 1)) {
        uint64_t word = load_slot(arena, at);
        int64_t ahead = word_ahead(arena, word, at);
        enum slot_state state = SLOT_STATE(word);

        if (ahead > 0 || (ahead == 0 && state == SLOT_SKIPPED)) {
            look->first = open ? look->first : position_after(at, 1);
            continue;
        }
        if (ahead < 0 || state == SLOT_FREE) {
            return false;
        }
        if (state == SLOT_READY) {
            look->position = at;
            look->word = word;
            return true;
        }
        open = true;
        look->passed_over |= state != SLOT_TAKING; /* that one has been taken: it keeps no order back */
    }
    return false;
}

/* Find the next message that may be taken.  look->first is a position before which all has passed.  G3 */
static bool
find_next(const mpshm_arena *arena, struct look *look)
{
    if (!find_ready(arena, look, position_after(look->first, arena->slots))) {
        return false;
    }
    while (look->passed_over) {
        struct look again = *look;

        if (!find_ready(arena, &again, look->position)) {
            break;
        }
        *look = again;
    }
    INVARIANT(G3, SLOT_STATE(look->word) == SLOT_READY
                      && word_ahead(arena, look->word, look->position) == 0);
    return true;
}

/* The same, from the head on. */
static bool
find_from_head(mpshm_arena *arena, struct look *look)
{
    look->first = ring_first(arena);
    for (uint32_t tries = 0; !find_next(arena, look); tries++) {
        uint64_t first = ring_first(arena);

        /* The head may have moved by more than a lap meanwhile. */
        if (tries == LAPS_MOST || position_ahead(first, look->first) <= 0) {
            return false;
        }
        look->first = first;
    }
    return true;
}

bool
ring_is_ready(mpshm_arena *arena)
{
    struct look look;

    return find_from_head(arena, &look);
}

/* Take up to `most` frames out of the ring, to places RING_FRAME_BYTES apart: how many; and where they
   were.  The last of them may be one that names runs, as its sign says, and no other: the caller leases
   these, and then calls ring_pass.  A process without a name leaves such a one there.  The caller then
   wakes senders that wait for room. */
uint32_t
ring_take(mpshm_arena *arena, char *to, uint64_t *positions, uint32_t most)
{
    struct look look;
    uint32_t n = 0;
    bool found = most > 0 && find_from_head(arena, &look), took_runs = false;

    INVARIANT(A4, arena_is_locked(arena));
    for (uint32_t tries = 0; found && tries < TRIES; tries++) {
        char *frame = to + (size_t) n * RING_FRAME_BYTES;

        copy_out(arena, frame, look.position);
        atomic_thread_fence(memory_order_acquire); /* the copy comes before the compare-and-swap */
        bool names_runs = (frame[0] & 0x80) != 0;
        uint64_t next = names_runs ? word_of(arena, look.position, arena->me, SLOT_TAKING)
                                   : passed_word(arena, look.position);

        if (names_runs && arena->me == 0) {
            break;
        }
        if (atomic_compare_exchange_strong(&slot_of(arena, look.position)->word, &look.word, next)) {
            positions[n++] = look.position;
            tries = 0;
            took_runs = names_runs;
            if (took_runs || n == most) {
                break;
            }
        }
        found = find_next(arena, &look) || (n == 0 && find_from_head(arena, &look));
    }
    if (n > 0 && !took_runs) { /* else ring_pass does it */
        (void) ring_first(arena);
    }
    return n;
}

/* The runs of a message that is being taken are leased, or its frame is wrong. */
void
ring_pass(mpshm_arena *arena, uint64_t position)
{
    INVARIANT(G8, load_slot(arena, position)
                      == word_of(arena, position, arena->me, SLOT_TAKING));
    atomic_store(&slot_of(arena, position)->word, passed_word(arena, position));
    (void) ring_first(arena);
}

/* The message that was put at that position is not to be taken, if nobody has begun to take it.  Only its sender does
   so, and only of a message that is not whole without it (stream_put.c). */
bool
ring_take_back(mpshm_arena *arena, uint64_t position)
{
    uint64_t word = word_of(arena, position, 0, SLOT_READY);

    if (!atomic_compare_exchange_strong(&slot_of(arena, position)->word, &word,
                                        word_of(arena, position, 0, SLOT_SKIPPED))) {
        return false;
    }
    (void) ring_first(arena);
    return true;
}

name
ring_taker(const mpshm_arena *arena, uint64_t position)
{
    uint64_t word = load_slot(arena, position);

    return word_ahead(arena, word, position) == 0 && SLOT_STATE(word) == SLOT_TAKING ? SLOT_OWNER(word) : 0;
}

/* How many messages are in the ring; also_coming: or will be. */
uint32_t
ring_count(mpshm_arena *arena, bool also_coming)
{
    uint64_t at = ring_first(arena), end = ring_end(arena);
    uint32_t count = 0;

    for (uint32_t i = 0; i < arena->slots && position_ahead(end, at) > 0; i++) {
        uint64_t word = load_slot(arena, at);
        enum slot_state state = SLOT_STATE(word);

        count += word_ahead(arena, word, at) == 0
                 && (state == SLOT_READY
                     || (also_coming && (state == SLOT_WRITING || state == SLOT_HELD)));
        at = position_after(at, 1);
    }
    return count;
}
