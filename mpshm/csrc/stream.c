/* Stream records: a message for which the arena has no memory goes through one, from its sender to the process that
   takes its slot.  Pieces in the ring itself would not do: several senders that fill it would wait for each other.

     record   free --claimed--> the sender's, with no position yet --its slot is claimed--> with a position
                ^                                                                              |
                '-- the slot has passed, and the sender will not write any more (T3) ----------'

     sender   the first piece, and then READY; each other one once the taker has read the one before it
     taker    TAKING all the time, so that the sender sees who takes and whether it lives; each piece, and then `read`

   Knows the records' words, and which slots have passed.  Does not know messages, frames or who waits for what:
   that is the sender's side (stream_put.c) and the taker's (stream_get.c).

   Invariants: A4, T1 to T4 (invariants.h).

   Memory order: `written` releases the piece, and the taker acquires it; `read` releases the taker's copy, and the
   sender acquires it before it writes over the piece.  A bell is rung after its word has been stored, and is loaded
   before that: who sleeps on it has seen all that came before the last ring, or is woken by the next. */
#include "stream.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

void
stream_attach(mpshm_arena *arena, const struct arena_header *header)
{
    arena->streams = (struct streams *) ((char *) arena->header + STREAMS_OFFSET);
    arena->pieces = (char *) arena->header + pieces_offset(header->slots, header->overflowing != 0);
    arena->stream_count = header->streams;
}

static void
ring_bell(_Atomic uint32_t *bell)
{
    (void) atomic_fetch_add(bell, 1);
    (void) futex_wake(bell, INT_MAX);
}

static struct stream
stream_at(const mpshm_arena *arena, uint32_t number, uint32_t generation)
{
    return (struct stream) {&arena->streams->records[number], arena->pieces + (size_t) number * PIECE_BYTES,
                            generation};
}

struct stream
stream_of(const mpshm_stream *stream)
{
    return stream_at(stream->arena, stream->number, stream->record_generation);
}

/* Free the record if it is still that owner's. */
static void
free_owned(mpshm_arena *arena, struct stream_record *record, uint64_t owner)
{
    if (atomic_compare_exchange_strong(&record->owner, &owner, STREAM_OWNER(OWNER_GENERATION(owner), 0))) {
        ring_bell(&arena->streams->freed);
    }
}

/* Whether the owner has said that it writes no more. */
static bool
is_final(const struct stream_record *record, uint32_t generation)
{
    uint64_t written = atomic_load(&record->written);

    return STREAM_GENERATION(written) == generation && STREAM_STATE(written) != STREAM_GOES_ON;
}

/* Where the record's message is.  False: it has no position yet. */
static bool
has_spot(const struct stream_record *record, uint32_t generation, uint64_t *spot)
{
    uint64_t word = atomic_load(&record->spot);

    *spot = SPOT_OF(word);
    return SPOT_GENERATION(word) == generation;
}

/* Free the record if nobody will write it any more, and nobody will look for it.  dead: its owner is; asked first, for one
   that lives may still get a position.  T3 */
static void
free_if_nobodys(mpshm_arena *arena, struct stream_record *record, uint64_t owner, bool dead)
{
    uint32_t generation = OWNER_GENERATION(owner);
    uint64_t spot;

    if (dead || is_final(record, generation)) {
        bool gone = has_spot(record, generation, &spot) ? ring_has_passed(arena, spot) : dead;

        if (gone) {
            free_owned(arena, record, owner);
        }
    }
}

/* A dead sender's message that is not whole will not come.  If nobody has begun to take it, nobody needs to: it is skipped
   here.  T4 */
static bool
skip_if_broken(mpshm_arena *arena, const struct stream_record *record, uint64_t owner)
{
    uint32_t generation = OWNER_GENERATION(owner);
    uint64_t spot;

    return !is_final(record, generation) && has_spot(record, generation, &spot) && ring_take_back(arena, spot);
}

/* What the dead left: whether any slot has been skipped. */
bool
stream_reap(mpshm_arena *arena)
{
    bool any = false;

    for (uint32_t i = 0; i < arena->stream_count; i++) {
        struct stream_record *record = &arena->streams->records[i];
        uint64_t owner = atomic_load(&record->owner);

        if (OWNER_NAME(owner) != 0) {
            bool dead = arena_name_is_dead(arena, OWNER_NAME(owner));

            any |= dead && skip_if_broken(arena, record, owner);
            free_if_nobodys(arena, record, owner, dead);
        }
    }
    return any;
}

/* Have that record, if it is free. */
static bool
claim_record(mpshm_arena *arena, uint32_t number, uint32_t *generation)
{
    _Atomic uint64_t *at = &arena->streams->records[number].owner;
    uint64_t owner = atomic_load(at);

    *generation = (OWNER_GENERATION(owner) + 1) & STREAM_GENERATION_MASK;
    return OWNER_NAME(owner) == 0
           && atomic_compare_exchange_strong(at, &owner, STREAM_OWNER(*generation, arena->me));
}

static bool
claim_one(mpshm_arena *arena, mpshm_stream *stream)
{
    for (uint32_t i = 0; i < arena->stream_count; i++) {
        if (claim_record(arena, i, &stream->record_generation)) {
            stream->number = i;
            return true;
        }
    }
    return false;
}

/* Have a record of one's own.  False: all are in use.  T1 */
bool
stream_claim(mpshm_arena *arena, mpshm_stream *stream)
{
    INVARIANT(A4, arena_is_locked(arena));
    INVARIANT(T1, arena->me != 0);
    if (claim_one(arena, stream)) {
        return true;
    }
    (void) stream_reap(arena);
    return claim_one(arena, stream);
}

void
stream_write(const struct stream *stream, uint32_t pieces, const char *data, uint32_t bytes, bool more)
{
    struct stream_record *record = stream->record;
    enum stream_state state = more ? STREAM_GOES_ON : STREAM_LAST;

    INVARIANT(T1, OWNER_GENERATION(atomic_load(&record->owner)) == stream->generation);
    INVARIANT(T2, bytes <= PIECE_BYTES && (pieces == 0 || stream_is_read(stream, pieces)));
    memcpy(stream->piece, data, bytes);
    atomic_store_explicit(&record->bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&record->written, STREAM_WRITTEN(stream->generation, state, pieces + 1),
                          memory_order_release);
    if (pieces > 0) { /* else nobody can know of it */
        ring_bell(&record->taker_bell);
    }
}

/* Have a free record whose piece may have memory, to give that back; it is then freed by stream_free, or stays cold if its
   owner is killed. */
bool
stream_take_cold(mpshm_arena *arena, uint32_t number, struct stream *stream)
{
    uint32_t bit = UINT32_C(1) << number, generation;

    INVARIANT(A4, arena_is_locked(arena));
    if ((atomic_load(&arena->streams->touched) & bit) == 0 || arena->me == 0
        || !claim_record(arena, number, &generation)) {
        return false;
    }
    (void) atomic_fetch_and(&arena->streams->touched, ~bit);
    *stream = stream_at(arena, number, generation);
    return true;
}

bool
stream_any_free(const mpshm_arena *arena)
{
    for (uint32_t i = 0; i < arena->stream_count; i++) {
        if (OWNER_NAME(atomic_load(&arena->streams->records[i].owner)) == 0) {
            return true;
        }
    }
    return false;
}

/* The slot is the owner's, and not READY yet.  T1 */
struct stream_name
stream_put_first(mpshm_stream *to, uint64_t spot, const char *data, uint64_t size)
{
    struct stream stream = stream_of(to);
    uint32_t bytes = size < PIECE_BYTES ? (uint32_t) size : PIECE_BYTES;

    atomic_store(&stream.record->spot, STREAM_SPOT(stream.generation, spot));
    (void) atomic_fetch_or(&to->arena->streams->touched, UINT32_C(1) << to->number);
    stream_write(&stream, 0, data, bytes, bytes < size);
    to->spot = spot;
    to->sent = bytes;
    to->pieces = 1;
    return (struct stream_name) {to->number, stream.generation, size};
}

bool
stream_is_read(const struct stream *stream, uint32_t pieces)
{
    return atomic_load_explicit(&stream->record->read, memory_order_acquire)
           == STREAM_READ(stream->generation, pieces);
}

/* What is missing of the message will not come.  pieces: those that have been written. */
void
stream_give_up(const struct stream *stream, uint32_t pieces)
{
    INVARIANT(T1, OWNER_GENERATION(atomic_load(&stream->record->owner)) == stream->generation);
    atomic_store_explicit(&stream->record->written, STREAM_WRITTEN(stream->generation, STREAM_GIVEN_UP, pieces),
                          memory_order_release);
    ring_bell(&stream->record->taker_bell);
}

void
stream_free(mpshm_arena *arena, const struct stream *stream)
{
    free_owned(arena, stream->record, STREAM_OWNER(stream->generation, arena->me));
}

bool
stream_find(const mpshm_arena *arena, const struct stream_name *which, uint64_t spot, struct stream *stream)
{
    if (which->number >= arena->stream_count || which->generation > STREAM_GENERATION_MASK) {
        return false;
    }
    *stream = stream_at(arena, which->number, which->generation);
    uint64_t owner = atomic_load(&stream->record->owner);

    return OWNER_NAME(owner) != 0 && OWNER_GENERATION(owner) == which->generation
           && atomic_load(&stream->record->spot) == STREAM_SPOT(which->generation, spot);
}

/* The taker has copied that many. */
void
stream_said_read(const struct stream *stream, uint32_t pieces)
{
    atomic_store_explicit(&stream->record->read, STREAM_READ(stream->generation, pieces), memory_order_release);
    if (pieces > 0) {
        ring_bell(&stream->record->sender_bell);
    }
}

bool
stream_owner_is_dead(mpshm_arena *arena, const struct stream *stream)
{
    uint64_t owner = atomic_load(&stream->record->owner);

    return OWNER_GENERATION(owner) != stream->generation || OWNER_NAME(owner) == 0
           || arena_name_is_dead(arena, OWNER_NAME(owner));
}

void
stream_end(mpshm_arena *arena, const struct stream *stream)
{
    uint64_t owner = atomic_load(&stream->record->owner);

    if (OWNER_NAME(owner) != 0 && OWNER_GENERATION(owner) == stream->generation) {
        free_if_nobodys(arena, stream->record, owner, arena_name_is_dead(arena, OWNER_NAME(owner)));
    }
    ring_bell(&stream->record->sender_bell); /* else it is the owner's to free */
}

void
stream_close(mpshm_incoming *incoming)
{
    free(incoming->data);
    free(incoming);
}

void
stream_forget_parked(mpshm_arena *arena)
{
    while (arena->parked != NULL) {
        mpshm_incoming *incoming = arena->parked;

        arena->parked = incoming->next;
        stream_close(incoming);
    }
}

/* Somebody has died, or there is another reason to look. */
void
stream_call(mpshm_arena *arena)
{
    for (uint32_t i = 0; i < arena->stream_count; i++) {
        struct stream_record *record = &arena->streams->records[i];

        if (OWNER_NAME(atomic_load(&record->owner)) != 0) {
            ring_bell(&record->taker_bell);
            ring_bell(&record->sender_bell);
        }
    }
    ring_bell(&arena->streams->freed);
}

/* What the dead left in a queue, in its slots and in its records: whether there was any.  Costs a look at each owner.  Who
   sends in pieces to one of them is to see that. */
bool
stream_mend(mpshm_arena *arena)
{
    bool any = chain_mend(arena);

    if (any) {
        stream_call(arena);
    }
    return stream_reap(arena) || any;
}

/* rests: no process is at work, and the dead have been reaped. */
int
stream_validate(mpshm_arena *arena, bool rests)
{
    for (uint32_t i = 0; i < arena->stream_count; i++) {
        const struct stream_record *record = &arena->streams->records[i];
        uint64_t owner = atomic_load(&record->owner), spot = atomic_load(&record->spot);

        if ((OWNER_NAME(owner) != 0 && NAME_INCARNATION(OWNER_NAME(owner)) == 0)
            || STREAM_STATE(atomic_load(&record->written)) > STREAM_GIVEN_UP) {
            return -__LINE__;
        }
        if (rests && OWNER_NAME(owner) != 0
            && (SPOT_GENERATION(spot) != OWNER_GENERATION(owner) || ring_has_passed(arena, SPOT_OF(spot)))) {
            return -__LINE__; /* T3 */
        }
    }
    return 1;
}
