/* The rings' slots in shared memory, for any number of senders and receivers, with no lock.

   A slot's word says in which lap it is and what it holds.  Each step changes one word, at once:

     WRITING (me) --ring_fill, ring_put--> READY --ring_take--> FREE of the next lap
                                             '--ring_take, it names runs--> TAKING (me) --ring_pass--> FREE

   and how a slot comes to be claimed, or mended for the dead, is told in positions.c.

   A receiver copies a slot before it takes it: the copy counts only if the word has not changed until
   then.  So nothing waits for a sender that is stopped: receivers pass over slots that are being written.
   A message that names runs is TAKING while these are leased, so a run in flight is always some slot's
   whose word says so, and nobody's once that has passed.

   A receiver looks along the chain, from its first ring on.  A ring that it has gone on to may have been ended and
   begun anew since; so it reads the ring's life behind a slot's READY, and begins again if that is another.

   Knows slots' bytes.  Does not know what a frame says beyond its length and its sign, nor which process
   waits for a slot: the callers of ring_put and ring_take wake waiters.

   Invariants: G3, G8, G9, C2 (invariants.h).

   Memory order: find_ready's acquiring load of READY pairs with ring_put's releasing store of it, so the
   copy has the sender's bytes.  The acquire fence between that copy and the compare-and-swap keeps the
   copy before it; it pairs with nothing, for the bytes are written after a later claim of the word.  The
   releasing store of ring_pass comes after the runs' words have been changed: who sees the slot passed
   sees them leased.  Other orders are explained where they stand (G4, G5). */
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
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

static _Atomic uint64_t *
slot_overflow(const struct ring *ring, uint64_t position)
{
    return ring->overflow[position & (ring->slots - 1)].data;
}

/* Of a ring whose data this process has no room to map: read or write a frame of so many words in the file.  False: it
   cannot be done. */
static bool
move_in_file(const mpshm_arena *arena, const struct ring *ring, uint64_t position, char *frame, uint32_t words,
             bool reads)
{
    uint64_t slot = position & (ring->slots - 1), in_slot = words < SLOT_WORDS ? words : SLOT_WORDS;
    uint64_t at[2] = {ring->data_at + slot * RING_DATA_BYTES,
                      ring->data_at + (uint64_t) ring->slots * RING_DATA_BYTES + slot * OVERFLOW_BYTES};
    uint64_t bytes[2] = {8 * in_slot, 8 * (words - in_slot)};

    for (int part = 0; part < 2; part++) {
        for (uint64_t done = 0; done < bytes[part];) {
            ssize_t n = reads ? pread(arena->fd, frame + done, bytes[part] - done, (off_t) (at[part] + done))
                              : pwrite(arena->fd, frame + done, bytes[part] - done, (off_t) (at[part] + done));

            if (n <= 0 && !(n == -1 && errno == EINTR)) {
                return false;
            }
            done += n > 0 ? (uint64_t) n : 0;
        }
        frame += bytes[part];
    }
    return true;
}

/* Copy a frame, filled to a multiple of 8 bytes, into the slot of a position that is this process's: 0 or the error. */
int
ring_fill(mpshm_arena *arena, uint64_t spot, char *from)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot), first;

    memcpy(&first, from, 8);
    uint32_t n = words_of(arena, first);

    INVARIANT(G8, load_slot(ring, position) == word_of(ring, position, arena->me, SLOT_WRITING));
    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    INVARIANT(G9, n <= SLOT_WORDS || arena->overflowing);
    if (ring->data == NULL) {
        return arena_has_file(arena) && move_in_file(arena, ring, position, from, n, false) ? 0 : -ENOMEM;
    }
    store_words(slot_data(ring, position), from, n < SLOT_WORDS ? n : SLOT_WORDS);
    if (n > SLOT_WORDS) {
        store_words(slot_overflow(ring, position), from + RING_DATA_BYTES, n - SLOT_WORDS);
    }
    return 0;
}

/* False: it cannot be read. */
static bool
copy_out(mpshm_arena *arena, const struct ring *ring, uint64_t position, char *to)
{
    if (ring->data == NULL) {
        return arena_has_file(arena)
               && move_in_file(arena, ring, position, to, ring_frame_bytes(arena) / 8, true);
    }
    _Atomic uint64_t *data = slot_data(ring, position);
    uint64_t first = atomic_load_explicit(data, memory_order_relaxed);
    uint32_t n = words_of(arena, first);

    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    memcpy(to, &first, 8); /* not read again: it says how much is copied */
    load_words(to + 8, data + 1, (n < SLOT_WORDS ? n : SLOT_WORDS) - 1);
    if (n > SLOT_WORDS) {
        load_words(to + RING_DATA_BYTES, slot_overflow(ring, position), n - SLOT_WORDS);
    }
    return true;
}

/* Begin to write at a position that this process has held, or no longer. */
void
ring_begin(mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    INVARIANT(G8, ring_is_held(arena, spot));
    /* As a claim: G5 */
    atomic_store(slot_word(ring, position), word_of(ring, position, arena->me, SLOT_WRITING));
}

void
ring_hold(mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    INVARIANT(G8, load_slot(ring, position) == word_of(ring, position, arena->me, SLOT_WRITING));
    atomic_store(slot_word(ring, position), word_of(ring, position, arena->me, SLOT_HELD));
}

/* The message of a position that is this process's will not come.  What was sealed at it has been
   unsealed: from now on a run in flight there is nobody's. */
void
ring_give_up(mpshm_arena *arena, uint64_t spot)
{
    struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    INVARIANT(A4, arena_is_locked(arena));
    INVARIANT(G8, SLOT_OWNER(load_slot(ring, position)) == arena->me
                      && word_ahead(ring, load_slot(ring, position), position) == 0);
    atomic_store(slot_word(ring, position), word_of(ring, position, 0, SLOT_SKIPPED));
    (void) chain_go_on(arena);
}

/* Put the messages at positions of this process whose slots are filled: the caller then wakes receivers
   for these.  fd: the pipe's end for writing. */
void
ring_put(mpshm_arena *arena, int fd, const uint64_t *spots, uint32_t count)
{
    INVARIANT(A4, arena_is_locked(arena));
    mirror_show(arena, fd);
    for (uint32_t i = 0; i < count; i++) {
        const struct ring *ring = ring_at(arena, SPOT_RING(spots[i]));
        uint64_t position = SPOT_POSITION(spots[i]);

        INVARIANT(G8, load_slot(ring, position) == word_of(ring, position, arena->me, SLOT_WRITING));
        atomic_store_explicit(slot_word(ring, position), word_of(ring, position, 0, SLOT_READY),
                              memory_order_release);
    }
    /* G4: pairs with the fence of a receiver between saying that it sleeps and its last look
       (waiters.c).  Either it finds READY, or the caller finds that it sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
}

/* How many have passed behind an open slot 28 | its position 36.  One that is stopped there for long would have each look
   walk over all that has passed since. */
#define GAP_WORD(position, passed) ((uint64_t) (passed) << POSITION_BITS | (position))
#define GAP_POSITION(word) ((word) & POSITION_MASK)
#define GAP_PASSED(word) ((word) >> POSITION_BITS)
/* Fewer are not worth a word. */
#define GAP_LEAST 16

/* The next position behind an open slot that may not have passed. */
static uint64_t
behind(const struct ring *ring, uint64_t at)
{
    uint64_t gap = atomic_load_explicit(&ring->gap, memory_order_relaxed);

    return position_after(at, 1 + (GAP_POSITION(gap) == at && GAP_PASSED(gap) < ring->slots ? GAP_PASSED(gap) : 0));
}

/* All between the open slot at `from` and position `at` has passed. */
static void
note_gap(struct ring *ring, uint64_t from, uint64_t at)
{
    uint64_t passed = position_after(at, -from - 1);

    if (passed >= GAP_LEAST && passed < ring->slots) {
        atomic_store_explicit(&ring->gap, GAP_WORD(from, passed), memory_order_relaxed);
    }
}

/* A walk along the chain for the next message. */
struct look {
    struct start first; /* all before this one has passed */
    struct ring *ring;  /* where what was found is, */
    name link;          /* in which life of the ring, */
    uint64_t position;  /* where in it, */
    uint64_t word;      /* and what its slot says */
    bool passed_over;   /* a slot before it is being written */
};

/* Find the first READY position from look->first on, and before what `to` has found, unless that is NULL: 1; or 0; or
   -1: the queue has gone on to another ring meanwhile.  C2 */
static int
find_ready(mpshm_arena *arena, struct look *look, const struct look *to)
{
    struct ring *ring = look->first.ring;
    name link = look->first.link;
    uint64_t at = look->first.at, end = position_after(at, ring->slots), last_open = 0;
    bool open = false, in_gap = false;

    look->passed_over = false;
    for (uint32_t rings = 0; position_ahead(end, at) > 0;) {
        if (to != NULL && at == to->position && ring == to->ring) {
            return 0;
        }
        uint64_t word = load_slot(ring, at);
        int64_t ahead = word_ahead(ring, word, at);
        enum slot_state state = SLOT_STATE(word);

        if (ahead > 0 || (ahead == 0 && state == SLOT_SKIPPED)) {
            at = position_after(at, 1);
            look->first.at = open ? look->first.at : at;
            continue;
        }
        if (in_gap) {
            note_gap(ring, last_open, at);
            in_gap = false;
        }
        if (ahead < 0 || state == SLOT_FREE) {
            break;
        }
        if (state == SLOT_READY) {
            look->ring = ring;
            look->link = link;
            look->position = at;
            look->word = word;
            return 1;
        }
        open = true;
        if (state == SLOT_NEXT) {
            if (!link_lives(arena, link)) { /* else the link is that life's */
                return -1;
            }
            link = SLOT_OWNER(word);
            ring = ++rings < RINGS ? ring_at(arena, LINK_RING(link)) : NULL;
            if (ring == NULL) {
                return 0;
            }
            at = HEAD_POSITION(ring_advance(arena, ring)); /* nobody else moves heads in the middle of the chain */
            end = position_after(at, ring->slots);
            continue;
        }
        last_open = at;
        in_gap = true;
        at = behind(ring, at);
        look->passed_over |= state != SLOT_TAKING; /* that one has been taken: it keeps no order back */
    }
    return to == NULL ? 0 : -1;
}

/* Find the next message that may be taken.  look->first is a position before which all has passed.  G3 */
static bool
find_next(mpshm_arena *arena, struct look *look)
{
    if (look->first.ring == NULL || find_ready(arena, look, NULL) != 1) {
        return false;
    }
    while (look->passed_over) {
        struct look again = *look;
        int earlier = find_ready(arena, &again, look);

        if (earlier < 0) {
            return false;
        }
        if (earlier == 0) {
            break;
        }
        *look = again;
    }
    INVARIANT(G3, SLOT_STATE(look->word) == SLOT_READY
                      && word_ahead(look->ring, look->word, look->position) == 0);
    return true;
}

/* The same, from the head on. */
static bool
find_from_head(mpshm_arena *arena, struct look *look)
{
    look->first = chain_first(arena);
    for (uint32_t tries = 0; !find_next(arena, look); tries++) {
        struct start first = chain_first(arena);

        /* The head may have moved by more than a lap meanwhile. */
        if (tries == LAPS_MOST
            || (first.link == look->first.link && position_ahead(first.at, look->first.at) <= 0)) {
            return false;
        }
        look->first = first;
    }
    return true;
}

/* What most looks find: the message at the head. */
static inline bool
find_at_head(mpshm_arena *arena, struct look *look)
{
    name link = FIRST_LINK(atomic_load(&arena->chain->first));
    struct ring *ring = ring_at(arena, LINK_RING(link));

    if (ring == NULL) {
        return false;
    }
    uint64_t at = HEAD_POSITION(atomic_load(&ring->head->head)), word = load_slot(ring, at);

    *look = (struct look) {.first = {ring, link, at}, .ring = ring, .link = link, .position = at, .word = word};
    return word == word_of(ring, at, 0, SLOT_READY);
}

bool
ring_is_ready(mpshm_arena *arena)
{
    struct look look;

    return find_at_head(arena, &look) || find_from_head(arena, &look);
}

bool
ring_is_out_of_reach(mpshm_arena *arena)
{
    struct start start = chain_first(arena);
    struct stop stop = {start.ring, start.link};
    uint64_t end;
    int on = 1;

    for (uint32_t i = 0; arena->grows && i < RINGS && stop.ring != NULL && on == 1; i++) {
        on = chain_on(arena, &stop, &end);
    }
    return stop.ring == NULL;
}

/* Take what was found, a copy of which is in `frame`: whether nobody was quicker.  C2 */
static inline bool
take(mpshm_arena *arena, struct look *look, bool names_runs)
{
    struct ring *ring = look->ring;
    uint64_t next = names_runs ? word_of(ring, look->position, arena->me, SLOT_TAKING)
                               : passed_word(ring, look->position);

    return atomic_compare_exchange_strong(slot_word(ring, look->position), &look->word, next);
}

/* Take up to `most` frames out of the ring, to places RING_FRAME_BYTES apart: how many; and where they
   were.  The last of them may be one that names runs, as its sign says, and no other: the caller leases
   these, and then calls ring_pass.  A process without a name leaves such a one there.  The caller then
   wakes senders that wait for room. */
uint32_t
ring_take(mpshm_arena *arena, char *to, uint64_t *spots, uint32_t most)
{
    struct look look;
    uint32_t n = 0;
    bool found = most > 0 && (find_at_head(arena, &look) || find_from_head(arena, &look)), took_runs = false;

    INVARIANT(A4, arena_is_locked(arena));
    for (uint32_t tries = 0; found && tries < TRIES; tries++) {
        char *frame = to + (size_t) n * RING_FRAME_BYTES;
        bool lives = !arena->grows || link_lives(arena, look.link); /* behind READY: C2 */

        if (!lives) {
            found = find_from_head(arena, &look);
            continue;
        }
        if (!copy_out(arena, look.ring, look.position, frame)) {
            break;
        }
        atomic_thread_fence(memory_order_acquire); /* the copy comes before the compare-and-swap */
        bool names_runs = (frame[0] & 0x80) != 0;

        if (names_runs && arena->me == 0) {
            break;
        }
        if (take(arena, &look, names_runs)) {
            spots[n++] = SPOT(look.ring->number, look.position);
            tries = 0;
            took_runs = names_runs;
            if (took_runs || n == most) {
                break;
            }
        }
        found = find_next(arena, &look) || (n == 0 && find_from_head(arena, &look));
    }
    if (n > 0 && !took_runs) { /* else ring_pass does it */
        chain_go_on_over(arena, spots, n);
    }
    return n;
}

/* The runs of a message that is being taken are leased, or its frame is wrong. */
void
ring_pass(mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    INVARIANT(G8, load_slot(ring, position) == word_of(ring, position, arena->me, SLOT_TAKING));
    atomic_store(slot_word(ring, position), passed_word(ring, position));
    chain_go_on_over(arena, &spot, 1);
}

static uint32_t
count_in(const struct ring *ring, uint64_t at, uint64_t end, bool also_coming)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < ring->slots && position_ahead(end, at) > 0; i++) {
        uint64_t word = load_slot(ring, at);
        enum slot_state state = SLOT_STATE(word);

        count += word_ahead(ring, word, at) == 0
                 && (state == SLOT_READY
                     || (also_coming && (state == SLOT_WRITING || state == SLOT_HELD)));
        at = position_after(at, 1);
    }
    return count;
}

/* How many messages are in the queue's rings; also_coming: or will be. */
uint32_t
ring_count(mpshm_arena *arena, bool also_coming)
{
    uint32_t count = 0;

    for (uint32_t tries = 0; tries < RINGS; tries++) {
        struct start start = chain_first(arena);
        struct stop stop = {start.ring, start.link};
        uint64_t at = start.at, end = at;
        int on = stop.ring == NULL ? 0 : 1;

        count = 0;
        for (uint64_t met = 0; on == 1 && (met >> LINK_RING(stop.link) & 1) == 0;) { /* or it is forged */
            struct ring *ring = stop.ring;

            met |= UINT64_C(1) << LINK_RING(stop.link);

            on = chain_on(arena, &stop, &end);
            count += count_in(ring, at, end, also_coming);
            at = on == 1 ? HEAD_POSITION(atomic_load(&stop.ring->head->head)) : 0;
        }
        if (on >= 0) {
            break; /* else the queue has gone on to another ring meanwhile */
        }
    }
    return count;
}
