/* The ring: a queue's slots in shared memory, for any number of senders and receivers, with no lock.

   A slot's word says in which lap it is and what it holds.  Each step changes one word, at once:

     FREE --claim--> WRITING (names its sender) --ring_put--> READY --ring_take--> FREE of the next lap
                        '--ring_reap, its sender is dead--> FREE of the next lap

   A receiver copies a slot before it takes it: the copy counts only if the word has not changed until
   then.  So a process that is killed leaves a slot in a state that says whose it is, and nothing waits
   for a sender that is stopped: receivers pass over slots that are being written.

   Knows slots' bytes, the pipe beside them, and peers' numbers.  Does not know what a frame says beyond
   its length, nor which process waits for a slot: the callers of ring_put and ring_take wake waiters.

   Invariants: G1, G2, G3, G5, G8, G9 (invariants.h).

   Memory order: a claim's acquiring load of FREE, and its compare-and-swap, pair with the
   compare-and-swap of the ring_take or ring_reap that made it FREE.  find_ready's acquiring load of
   READY pairs with ring_put's releasing store of it, so the copy has the sender's bytes.  The acquire
   fence between that copy and the compare-and-swap keeps the copy before it; it pairs with nothing, for
   the bytes are written after a later claim of the word.  Head and tail are hints (G2): their
   compare-and-swaps order nothing that a word does not order itself.  The other fences are explained
   where they stand (G4, G5). */
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TRIES (8 * RING_SLOTS)

static struct ring_slot *
slot_of(struct ring *ring, uint64_t position)
{
    return &ring->slots[position % RING_SLOTS];
}

static uint64_t
lap_of(uint64_t position)
{
    return position / RING_SLOTS;
}

/* Number of 8-byte words that a frame occupies, in its slot first, then in its overflow.  first: the
   frame's first word, which begins with its length, whose top bit is a flag.  A forged length counts as
   the largest.  G9 */
static uint32_t
words_of(mpshm_arena *arena, uint64_t first)
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

static void
copy_in(mpshm_arena *arena, uint64_t position, const char *from)
{
    uint64_t at = position % RING_SLOTS, first;

    memcpy(&first, from, 8);
    uint32_t n = words_of(arena, first);

    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    INVARIANT(G9, n <= SLOT_WORDS || arena->overflow != NULL);
    store_words(arena->ring->slots[at].data, from, n < SLOT_WORDS ? n : SLOT_WORDS);
    if (n > SLOT_WORDS) {
        store_words(arena->overflow[at].data, from + RING_DATA_BYTES, n - SLOT_WORDS);
    }
}

static void
copy_out(mpshm_arena *arena, char *to, uint64_t position)
{
    uint64_t at = position % RING_SLOTS;
    _Atomic uint64_t *data = arena->ring->slots[at].data;
    uint64_t first = atomic_load_explicit(data, memory_order_relaxed);
    uint32_t n = words_of(arena, first);

    INVARIANT(G9, n > 0 && n <= ring_frame_bytes(arena) / 8);
    memcpy(to, &first, 8); /* not read again: it says how much is copied */
    load_words(to + 8, data + 1, (n < SLOT_WORDS ? n : SLOT_WORDS) - 1);
    if (n > SLOT_WORDS) {
        load_words(to + RING_DATA_BYTES, arena->overflow[at].data, n - SLOT_WORDS);
    }
}

/* Claim the next position for this peer to write.  False: the ring is full.  G1, G2 */
static bool
claim(struct ring *ring, uint32_t me, uint64_t *position)
{
    INVARIANT(G8, me <= PEER_LIMIT);
    /* Other senders may be quicker, but not for ever: after so many tries it is a stray write. */
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t at = atomic_load_explicit(&ring->tail, memory_order_acquire);
        struct ring_slot *slot = slot_of(ring, at);
        uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);

        if (SLOT_LAP(word) < lap_of(at)) {
            if (atomic_load_explicit(&ring->tail, memory_order_acquire) == at) {
                return false;
            }
        } else if (word == SLOT_WORD(lap_of(at), 0, SLOT_FREE)) {
            if (atomic_compare_exchange_strong(&slot->word, &word,
                                               SLOT_WORD(lap_of(at), me, SLOT_WRITING))) {
                *position = at;
                atomic_compare_exchange_strong(&ring->tail, &at, at + 1);
                return true;
            }
        } else {
            atomic_compare_exchange_strong(&ring->tail, &at, at + 1);
        }
    }
    return false;
}

static uint32_t
bytes_in(int fd)
{
    int bytes = 0;

    return ioctl(fd, FIONREAD, &bytes) == -1 ? 0 : (uint32_t) bytes;
}

static void
write_byte(int fd)
{
    while (write(fd, "", 1) == -1 && errno == EINTR) {
    }
}

/* Put `count` frames into the ring.  Gives how many found room, from the first on; the caller then wakes
   receivers for these.  Frames lie RING_FRAME_BYTES apart, each filled to a multiple of 8 bytes.
   fd: the pipe's end for writing. */
uint32_t
ring_put(mpshm_arena *arena, int fd, const char *frames, uint32_t count)
{
    struct ring *ring = arena->ring;
    uint64_t positions[MPSHM_SLOTS_AT_ONCE];
    uint32_t n = 0;

    INVARIANT(L6, arena_is_locked(arena));
    INVARIANT(G9, count <= MPSHM_SLOTS_AT_ONCE);
    while (n < count && claim(ring, arena->me, &positions[n])) {
        INVARIANT(G3, n == 0 || positions[n] > positions[n - 1]);
        copy_in(arena, positions[n], frames + (size_t) n * RING_FRAME_BYTES);
        n++;
    }
    if (n == 0) {
        return 0;
    }
    /* G5: pairs with the fence in ring_watch, and with the one in ring_mirror.  Either this sender sees
       that the ring is watched and the pipe empty, or the receiver sees the claim. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&ring->watched, memory_order_relaxed) && bytes_in(fd) == 0) {
        write_byte(fd);
    }
    for (uint32_t i = 0; i < n; i++) {
        INVARIANT(G1, atomic_load(&slot_of(ring, positions[i])->word)
                          == SLOT_WORD(lap_of(positions[i]), arena->me, SLOT_WRITING));
        atomic_store_explicit(&slot_of(ring, positions[i])->word,
                              SLOT_WORD(lap_of(positions[i]), 0, SLOT_READY),
                              memory_order_release);
    }
    /* G4: pairs with the fence of a receiver between its `sleepers` and its last look (waiters.c).
       Either it finds READY, or the caller, which reads `sleepers` next, finds it counted. */
    atomic_thread_fence(memory_order_seq_cst);
    return n;
}

/* Find the first READY position from `*from` on and before `to`: true, and it is in *from.
   *passed: a slot before it is being written. */
static bool
find_ready(struct ring *ring, uint64_t *from, uint64_t to, uint64_t *word, bool *passed)
{
    *passed = false;
    for (uint64_t at = *from; at < to; at++) {
        *word = atomic_load_explicit(&slot_of(ring, at)->word, memory_order_acquire);
        if (SLOT_LAP(*word) == lap_of(at)) {
            if (SLOT_STATE(*word) == SLOT_READY) {
                *from = at;
                return true;
            }
            if (SLOT_STATE(*word) == SLOT_FREE) {
                return false;
            }
            *passed = true;
        } else if (SLOT_LAP(*word) < lap_of(at)) {
            return false;
        }
    }
    return false;
}

/* Move the head on over the slots that are done with.  G2 */
static void
advance_head(struct ring *ring, uint64_t head)
{
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t word = atomic_load_explicit(&slot_of(ring, head)->word, memory_order_acquire);

        if (SLOT_LAP(word) <= lap_of(head)) {
            return;
        }
        /* A process that was quicker may not have seen what this one took: go on from its head. */
        if (atomic_compare_exchange_strong(&ring->head, &head, head + 1)) {
            head++;
        }
    }
}

/* The first position that is not done with, as far as this process can see now. */
static uint64_t
first_of(struct ring *ring)
{
    advance_head(ring, atomic_load(&ring->head));
    return atomic_load(&ring->head);
}

/* Whether a message is there or being written. */
static bool
is_claimed(struct ring *ring)
{
    uint64_t first = first_of(ring);
    uint64_t word = atomic_load(&slot_of(ring, first)->word);

    return SLOT_LAP(word) == lap_of(first) && SLOT_STATE(word) != SLOT_FREE;
}

bool
ring_is_claimed(mpshm_arena *arena)
{
    return is_claimed(arena->ring);
}

/* Whether a slot is claimed that the pipe shows: its message is about to come. */
bool
ring_is_due(mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->ring->watched, memory_order_relaxed)
           && is_claimed(arena->ring);
}

/* Find the next message that may be taken: its position, its word, and the head as found.  G3 */
static bool
find_next(struct ring *ring, uint64_t *head, uint64_t *position, uint64_t *word)
{
    uint64_t first = first_of(ring), found = first;
    bool passed;

    while (!find_ready(ring, &found, first + RING_SLOTS, word, &passed)) {
        found = first_of(ring);
        if (found == first) {
            return false;
        }
        first = found;
    }
    *head = first;
    while (passed) {
        uint64_t earlier = first, its_word;
        bool passed_again;

        if (!find_ready(ring, &earlier, found, &its_word, &passed_again)) {
            break;
        }
        found = earlier;
        *word = its_word;
        passed = passed_again;
    }
    INVARIANT(G2, found - first < RING_SLOTS);
    INVARIANT(G3, SLOT_STATE(*word) == SLOT_READY && SLOT_LAP(*word) == lap_of(found));
    *position = found;
    return true;
}

bool
ring_is_ready(mpshm_arena *arena)
{
    uint64_t head, position, word;

    return find_next(arena->ring, &head, &position, &word);
}

/* Take up to `most` frames out of the ring, to places RING_FRAME_BYTES apart.  Gives how many; the caller
   then wakes senders that wait for room. */
uint32_t
ring_take(mpshm_arena *arena, char *to, uint32_t most)
{
    struct ring *ring = arena->ring;
    uint64_t head, position, word;
    uint32_t n = 0;

    INVARIANT(L6, arena_is_locked(arena));
    while (n < most && find_next(ring, &head, &position, &word)) {
        struct ring_slot *slot = slot_of(ring, position);

        copy_out(arena, to + (size_t) n * RING_FRAME_BYTES, position);
        atomic_thread_fence(memory_order_acquire); /* the copy comes before the compare-and-swap */
        if (atomic_compare_exchange_strong(&slot->word, &word,
                                           SLOT_WORD(lap_of(position) + 1, 0, SLOT_FREE))) {
            n++;
            advance_head(ring, head);
        }
    }
    return n;
}

/* How many messages are in the ring. */
uint32_t
ring_unread(mpshm_arena *arena)
{
    struct ring *ring = arena->ring;
    uint64_t first = first_of(ring);
    uint32_t count = 0;

    for (uint64_t at = first; at < first + RING_SLOTS; at++) {
        uint64_t word = atomic_load_explicit(&slot_of(ring, at)->word, memory_order_acquire);

        count += SLOT_LAP(word) == lap_of(at) && SLOT_STATE(word) == SLOT_READY;
    }
    return count;
}

/* Whether the next position cannot be claimed, for its slot's last message has not been taken. */
bool
ring_is_full(mpshm_arena *arena)
{
    struct ring *ring = arena->ring;
    uint64_t at = atomic_load(&ring->tail);

    return SLOT_LAP(atomic_load(&slot_of(ring, at)->word)) < lap_of(at)
           && atomic_load(&ring->tail) == at;
}

/* Free the slots that a dead peer was writing: those of peer `number`, or, for 0, of all dead peers. */
void
ring_reap(mpshm_arena *arena, uint32_t number)
{
    INVARIANT(A4, process_is_locked());
    INVARIANT(G8, number <= PEER_LIMIT && (number == 0 || number != arena->me));
    for (uint64_t i = 0; i < RING_SLOTS; i++) {
        _Atomic uint64_t *at = &arena->ring->slots[i].word;
        uint64_t word = atomic_load(at);
        uint32_t owner = SLOT_OWNER(word);

        if (SLOT_STATE(word) == SLOT_WRITING && owner != 0 && owner <= PEER_LIMIT
            && (number == 0 ? peer_is_dead(arena, owner) : owner == number)) {
            atomic_compare_exchange_strong(at, &word, SLOT_WORD(SLOT_LAP(word) + 1, 0, SLOT_FREE));
        }
    }
}

/* Write a byte to the pipe of which `fd` is the end for reading: this process need not have the other.
   Under the process's lock, so that no child of a fork inherits the end that is opened here: it would
   keep the end of file away. */
static void
show(int fd)
{
    char path[48];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

    if (writer != -1) {
        write_byte(writer);
        close(writer);
    }
}

/* Read all bytes there are.  False: there are none, and it is the end of file. */
static bool
read_bytes(int fd)
{
    char bytes[64];
    ssize_t n;
    bool any = false;

    do {
        n = read(fd, bytes, sizeof bytes);
        any = any || n > 0;
    } while (n == (ssize_t) sizeof bytes || (n == -1 && errno == EINTR));
    return any || n != 0;
}

/* Make the pipe agree with the ring.  False: end of file.  Under the process's lock.  G5 */
bool
ring_mirror(mpshm_arena *arena, int fd)
{
    struct ring *ring = arena->ring;
    bool goes_on = true;

    INVARIANT(A4, process_is_locked());
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        bool claimed = is_claimed(ring);

        if (!claimed) {
            goes_on = read_bytes(fd);
        } else if (atomic_load(&ring->watched) && bytes_in(fd) == 0) {
            show(fd);
        }
        atomic_thread_fence(memory_order_seq_cst); /* G5: pairs with ring_put's first */
        if (is_claimed(ring) == claimed) {
            break;
        }
    }
    return goes_on;
}

/* Call after ring_take: empties the pipe if it shows what is no longer there.  Under the process's lock. */
void
ring_was_taken(mpshm_arena *arena, int fd)
{
    INVARIANT(A4, process_is_locked());
    if (atomic_load_explicit(&arena->ring->watched, memory_order_relaxed)
        && !is_claimed(arena->ring)) {
        (void) ring_mirror(arena, fd);
    }
}

/* From now on the pipe is readable while there are messages.  Under the process's lock.  G5 */
void
ring_watch(mpshm_arena *arena, int fd)
{
    INVARIANT(A4, process_is_locked());
    atomic_store(&arena->ring->watched, 1);
    atomic_thread_fence(memory_order_seq_cst); /* G5: pairs with ring_put's first */
    if (is_claimed(arena->ring)) {
        (void) ring_mirror(arena, fd);
    }
}
