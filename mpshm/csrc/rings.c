/* Rings in this process: where each lies, and a walk along the chain of them.

   Ring 0 lies in the head of the arena's file, with the chain.  The others lie behind it, each at its place
   for good, and are mapped when they are first met.  Their slots' words lie together, apart from the data, for words
   stay when memory is given back: a late writer must find in them that the ring has gone on.  A process without room
   for the data's mapping reads and writes them in the file.

   Knows where rings lie, the chain's words, heads and tails.  Does not know how a ring comes into the chain (chain.c),
   nor what is in a slot.

   Invariants: C1, C2 (invariants.h).

   Memory order: all of the chain's words are sequentially consistent.  A ring's `before` and the beginning of its life
   are written before the link to it, and read behind it.  A walk reads an end, and then the life of the ring that it
   leaves: so the end was that life's.  A mapping is published by a compare-and-swap that releases it. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ring.h"

#define SPARE_RINGS 8 /* of the longest: 2 MiB of words */

uint64_t
ring_offset(const mpshm_arena *arena, uint32_t number)
{
    return arena->mapped_bytes + rings_offset(number, arena->overflowing);
}

int
rings_attach(mpshm_arena *arena, const struct arena_header *header)
{
    struct ring *zero = &arena->zero;
    uint32_t places = header->places;

    arena->chain = (struct chain *) ((char *) arena->header + CHAIN_OFFSET);
    arena->rings = header->rings;
    arena->grows = header->rings > 1;
    arena->overflowing = header->overflowing != 0;
    zero->head = (struct ring_head *) ((char *) arena->header + RING_OFFSET);
    zero->words = (char *) &zero->head->slots[0].word;
    zero->data = (char *) &zero->head->slots[0].data;
    zero->word_step = zero->data_step = sizeof(struct ring_slot);
    zero->slots = header->slots;
    zero->overflow = arena->overflowing ? (struct overflow *) ((char *) zero->head + ring_bytes(zero->slots, 0)) : NULL;
    INVARIANT(G1, zero->slots >= RING_SLOTS && (zero->slots & (zero->slots - 1)) == 0);
    zero->bound = places != 0 && places < zero->slots ? places : zero->slots - arena->grows;
    arena->bound = arena->grows ? places : zero->bound;
    zero->head_seen = HEAD_POSITION(atomic_load(&zero->head->head));
    arena->places = places;
    arena->bytes_limit = header->bytes_limit;
    arena->joinable = header->joinable != 0;
    arena->writer = -1;
    if (arena->grows) {
        arena->others = calloc(arena->rings, sizeof *arena->others);
    }
    return arena->grows && arena->others == NULL ? -ENOMEM : 0;
}

static void
unmap(const mpshm_arena *arena, struct ring *ring)
{
    uint64_t data_bytes = ring_apart_bytes(ring->slots, arena->overflowing) - ring_data_offset(ring->slots);

    munmap(ring->head, ring_data_offset(ring->slots));
    if (ring->data != NULL) {
        munmap(ring->data, data_bytes);
    }
    free(ring);
}

void
rings_detach(mpshm_arena *arena)
{
    for (uint32_t number = 1; arena->others != NULL && number < arena->rings; number++) {
        struct ring *ring = atomic_load(&arena->others[number]);

        if (ring != NULL) {
            unmap(arena, ring);
        }
    }
    free(arena->others);
}

/* Whether there is address space for the words of SPARE_RINGS further rings.  Data can be read and written in the file,
   words cannot: if this ring's data took the last of it, no message of the next ring could be read. */
static bool
is_room_for_words(void)
{
    size_t bytes = SPARE_RINGS * ring_data_offset(RING_SLOTS_OF(RING_DOUBLINGS));
    void *trial = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return trial != MAP_FAILED && munmap(trial, bytes) == 0;
}

static struct ring *
map_anew(const mpshm_arena *arena, uint32_t number)
{
    uint32_t slots = RING_SLOTS_OF(number);
    uint64_t at = ring_offset(arena, number), words_bytes = ring_data_offset(slots);
    uint64_t data_bytes = ring_apart_bytes(slots, arena->overflowing) - words_bytes;
    struct ring *ring = calloc(1, sizeof *ring);
    void *head = ring == NULL ? MAP_FAILED
                              : mapping_of_file(arena, NULL, at, words_bytes, MAP_SHARED, arena->header, 0);

    if (head == MAP_FAILED) {
        free(ring);
        return NULL;
    }
    void *data = mapping_of_file(arena, NULL, at + words_bytes, data_bytes, MAP_SHARED, arena->header, 0);

    ring->head = head;
    ring->words = (char *) head + sizeof *ring->head;
    ring->word_step = sizeof(uint64_t);
    if (data != MAP_FAILED && !is_room_for_words()) {
        munmap(data, data_bytes);
        data = MAP_FAILED;
    }
    ring->data = data == MAP_FAILED ? NULL : data;
    ring->data_step = RING_DATA_BYTES;
    ring->data_at = at + words_bytes;
    ring->slots = slots;
    ring->number = number;
    ring->bound = slots - 1;
    ring->head_seen = HEAD_POSITION(atomic_load(&ring->head->head));
    if (ring->data != NULL && arena->overflowing) {
        ring->overflow = (struct overflow *) (ring->data + (uint64_t) slots * RING_DATA_BYTES);
    }
    return ring;
}

/* Needs no lock: of two that map one at a time, the slower finds the other's. */
struct ring *
ring_map(const mpshm_arena *arena, uint32_t number)
{
    struct ring *ring, *other = NULL;

    if (number >= arena->rings) {
        return NULL; /* forged */
    }
    ring = atomic_load_explicit(&arena->others[number], memory_order_acquire);
    if (ring != NULL) {
        return ring;
    }
    ring = map_anew(arena, number);
    if (ring == NULL || atomic_compare_exchange_strong(&arena->others[number], &other, ring)) {
        return ring;
    }
    unmap(arena, ring);
    return other;
}

/* The chain. */

bool
chain_begin(const mpshm_arena *arena, struct stop *stop)
{
    stop->link = FIRST_LINK(atomic_load(&arena->chain->first));
    stop->ring = ring_at(arena, LINK_RING(stop->link));
    return stop->ring != NULL;
}

int
chain_on(const mpshm_arena *arena, struct stop *stop, uint64_t *end)
{
    uint64_t word;

    if (!ring_end_word(stop->ring, end, &word) || !link_lives(arena, stop->link)) {
        return -1;
    }
    if (!is_next(stop->ring, word, *end)) {
        return 0;
    }
    stop->link = SLOT_OWNER(word);
    stop->ring = ring_at(arena, LINK_RING(stop->link));
    return stop->ring == NULL ? -1 : 1;
}

/* A walk meets no more rings than there are, or it is a forged one; and it begins again no oftener. */
bool
chain_claimed(const mpshm_arena *arena, uint64_t *claimed)
{
    for (uint32_t tries = 0; tries < RINGS; tries++) {
        struct stop stop;
        int on = chain_begin(arena, &stop) ? 1 : -1;

        for (uint32_t i = 0; i < RINGS && on == 1; i++) {
            uint64_t before = atomic_load(&stop.ring->head->before), end;

            on = chain_on(arena, &stop, &end);
            *claimed = position_after(before, end);
        }
        if (on == 0) {
            return true;
        }
    }
    return false;
}

struct passed
chain_passed(const mpshm_arena *arena)
{
    struct passed passed = {0};

    for (uint32_t tries = 0; tries < RING_TRIES; tries++) {
        uint64_t first = atomic_load(&arena->chain->first);

        passed.stop.link = FIRST_LINK(first);
        passed.stop.ring = ring_at(arena, LINK_RING(passed.stop.link));
        if (passed.stop.ring == NULL) {
            break;
        }
        uint64_t head = atomic_load(&passed.stop.ring->head->head);

        passed.at = HEAD_POSITION(head);
        passed.positions = position_after(atomic_load(&passed.stop.ring->head->before), passed.at);
        passed.skips = (FIRST_SKIPS(first) + HEAD_SKIPS(head)) & SKIPS_MASK;
        if (atomic_load(&arena->chain->first) == first) {
            break;
        }
    }
    return passed;
}

static uint64_t
relaxed(_Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

uint64_t
chain_taken(const mpshm_arena *arena)
{
    struct ring *ring = ring_at(arena, LINK_RING(FIRST_LINK(relaxed(&arena->chain->first))));

    return ring == NULL ? 0 : position_after(relaxed(&ring->head->before), relaxed(&ring->head->head));
}

int64_t
chain_backlog(const mpshm_arena *arena)
{
    struct ring *first = ring_at(arena, LINK_RING(FIRST_LINK(relaxed(&arena->chain->first))));
    struct ring *last = ring_at(arena, LINK_RING(relaxed(&arena->chain->last)));

    return first == NULL || last == NULL
               ? 0
               : position_ahead(relaxed(&last->head->before) + relaxed(&last->head->tail), chain_taken(arena));
}
