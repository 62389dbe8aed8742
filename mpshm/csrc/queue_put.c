/* Putting: messages become frames, and frames go into the ring.

   Knows frames, runs and places.  Does not know a slot's word (ring.h), nor what is in a run.

   Invariants: Q1, Q3, F4, P4, G4 (invariants.h).

   A message:   receivers looked for --its runs filled--> position --sealed there--> frame --ring_put-->
                        '--none, or no memory--> error      '--none, not its turn--> error; nothing has changed

   Memory order: ring_put's release of READY comes after seal's release of FLIGHT, and the receiver
   acquires both, the slot first.  waiters_rouse comes after ring_put's last fence (G4). */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "queue.h"
#include "ring.h"
#include "stream.h"

/* In a longer ring, so many puts until one looks whether so few messages are left that the shortest is enough. */
#define PUTS_BEFORE_SHRINK 64

/* A message on its way: of at most SMALL_RUN_BYTES, in its frame or in one run; or a parcel. */
struct letter {
    const char *data;
    uint64_t size;
    mpshm_parcel *parcel; /* or NULL */
    mpshm_run run;        /* capacity 0: none */
    mpshm_stream *stream; /* it goes through that one's record; or NULL */
    uint64_t bytes;       /* for the queue's limit */
    mpshm_place *place;   /* or NULL */
    uint64_t position;    /* once it has been put */
};

/* Bytes of the chunks that the run keeps when it is sealed. */
static uint64_t
chunk_bytes(const mpshm_run *run, uint64_t size)
{
    uint32_t shift = run->arena->segments[run->mmap_id]->shift;

    return chunks_of(shift, size) << shift;
}

/* Holds no lock while it waits.  gone: as for waiters_room.  Q3 */
static int
wait_room(const mpshm_end *end, short gone, const mpshm_place *place, int timeout_ms)
{
    int64_t at = place_is_position(place) ? place->at : MPSHM_NO_PLACE;

    return waiters_room(end->arena, end->fd, gone, at, timeout_ms);
}

int
mpshm_queue_wait_room(const mpshm_end *end, const mpshm_place *place, int timeout_ms)
{
    return wait_room(end, POLLERR, place, timeout_ms);
}

/* Though nobody receives: as the stock module, which waits for a place before it looks for a reader. */
int
mpshm_queue_wait_place(const mpshm_end *end, const mpshm_place *place, int timeout_ms)
{
    return end->fd < 0 ? -EAGAIN : wait_room(end, 0, place, timeout_ms);
}

/* How many bytes a message without a run may have.  The overflow is not used where the file system may
   run full, for it is not reserved, nor in a queue bounded by bytes, which counts chunks. */
static uint64_t
inline_bytes(const mpshm_arena *arena)
{
    bool slot_only = arena->bounded || arena->bytes_limit != 0;

    return (slot_only ? MPSHM_SLOT_BYTES : ring_frame_bytes(arena)) - LENGTH_BYTES;
}

/* Whether anything can be put by that end now: 0 or the error.  Under arena_lock. */
int
queue_look_at_end(const mpshm_end *end)
{
    if (end->fd < 0) {
        return MPSHM_E_CLOSED;
    }
    if (end->arena->receivers == 0 && has_hung_up(end->fd, POLLERR)) {
        /* As the stock module, whose put waits for a place before it looks for a reader. */
        return end->arena->places != 0 && chain_is_full(end->arena) ? MPSHM_E_FULL : -EPIPE;
    }
    return end->arena->me == 0 ? MPSHM_E_CROWDED : 0;
}

/* Bring a small message that is too long for its frame into a run. */
static int
prepare(mpshm_arena *arena, struct letter *letter)
{
    letter->run.capacity = 0;
    letter->bytes = MPSHM_SLOT_BYTES;
    if (letter->size > SMALL_RUN_BYTES) {
        return -EMSGSIZE;
    }
    if (letter->size <= inline_bytes(arena)) {
        return 0;
    }
    int error = run_claim(arena, letter->size, CLAIM_SMALL, &letter->run);

    if (error == 0) {
        INVARIANT(P4, letter->size <= letter->run.capacity);
        letter->bytes += chunk_bytes(&letter->run, letter->size);
        error = mpshm_copy_in(&letter->run, 0, letter->data, letter->size);
        if (error != 0) {
            (void) run_abandon(&letter->run);
        }
    }
    return error;
}

/* Whether it is the message's turn, in a queue that is bounded by bytes.  It has a position. */
static bool
is_turn(mpshm_arena *arena, uint64_t position, uint64_t bytes)
{
    if (turn_say(arena, position, bytes)) {
        waiters_let_in(arena, 1); /* those behind that did not know how many */
    }
    return turn_has_come(arena, position, bytes);
}

/* The position of a message that has a place: 0 or the error.  The place is the message's until it is put. */
static int
use_place(mpshm_arena *arena, const struct letter *letter, uint64_t *position)
{
    *position = (uint64_t) letter->place->at;
    if (!ring_is_held(arena, *position)) {
        return MPSHM_E_DAMAGED; /* it was this process's alone */
    }
    if (arena->bytes_limit != 0 && !is_turn(arena, *position, letter->bytes)) {
        return MPSHM_E_FULL;
    }
    ring_begin(arena, *position);
    return 0;
}

/* A position for a message that has none, in a queue that is bounded by bytes.  A try in vain should burn
   none, so it looks before it claims one, and once more when it has it. */
static int
take_turn(mpshm_arena *arena, const struct letter *letter, uint64_t *position)
{
    if (!turn_is_next(arena, letter->bytes)) {
        return MPSHM_E_FULL;
    }
    if (ring_claim(arena, SLOT_WRITING, 1, position) == 0) {
        return queue_why_full(arena);
    }
    if (!is_turn(arena, *position, letter->bytes)) {
        ring_give_up(arena, *position);
        waiters_let_in(arena, 1);
        return MPSHM_E_FULL;
    }
    return 0;
}

/* Have a position WRITING for each: for how many, from the first on; *error says why not for all. */
static uint32_t
find_positions(mpshm_arena *arena, const struct letter *letters, uint32_t count, uint64_t *positions,
               int *error)
{
    bool all_new = arena->bytes_limit == 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < count; i++) {
        all_new = all_new && letters[i].place == NULL;
    }
    if (all_new) {
        n = ring_claim(arena, SLOT_WRITING, count, positions);
        *error = n < count ? queue_why_full(arena) : *error;
        return n;
    }
    for (int wrong = 0; n < count; n++) {
        if (place_is_position(letters[n].place)) {
            wrong = use_place(arena, &letters[n], &positions[n]);
        } else if (arena->bytes_limit != 0) {
            wrong = take_turn(arena, &letters[n], &positions[n]);
        } else if (ring_claim(arena, SLOT_WRITING, 1, &positions[n]) == 0) {
            wrong = queue_why_full(arena);
        }
        if (wrong != 0) {
            *error = wrong;
            break;
        }
    }
    return n;
}

/* A message without a run, into its frame. */
static void
write_inline(char *frame, const char *data, uint64_t size)
{
    uint32_t word = htonl((uint32_t) size);

    INVARIANT(F4, LENGTH_BYTES + size <= RING_FRAME_BYTES);
    if ((LENGTH_BYTES + size) % 8 != 0) { /* the ring copies words: fill the last one with zeros */
        memset(frame + (LENGTH_BYTES + size) / 8 * 8, 0, 8);
    }
    memcpy(frame, &word, LENGTH_BYTES);
    memcpy(frame + LENGTH_BYTES, data, size);
}

/* Write the message's frame into the slot of its position, and seal its runs there. */
static int
fill(mpshm_arena *arena, struct letter *letter, uint64_t position)
{
    char frame[RING_FRAME_BYTES];
    uint64_t bytes = 0;
    int error = 0;

    letter->position = position;
    if (letter->stream != NULL) {
        struct stream_name name = stream_put_first(letter->stream, position, letter->data, letter->size);

        memset(frame, 0, MPSHM_SLOT_BYTES);
        frame_put_stream(frame, &name);
    } else if (letter->parcel != NULL) {
        memset(frame, 0, MPSHM_SLOT_BYTES);
        error = frame_put(frame, letter->parcel, letter->data, letter->size) == 0 ? -ENOMEM : 0;
        error = error ? error : parcel_seal(letter->parcel, position, &bytes);
    } else if (letter->run.capacity == 0) {
        write_inline(frame, letter->data, letter->size);
    } else {
        struct part part = {letter->run, letter->size};
        mpshm_parcel parcel = {.arena = arena, .parts = &part, .count = 1, .stream_runs = 1};

        memset(frame, 0, MPSHM_SLOT_BYTES);
        frame_put(frame, &parcel, NULL, 0);
        error = run_seal(&letter->run, letter->size, position, &bytes);
    }
    if (error == 0) {
        error = ring_fill(arena, position, frame);
        if (error != 0 && letter->parcel != NULL) {
            parcel_unseal(letter->parcel, position);
        } else if (error != 0 && letter->run.capacity > 0) {
            run_unseal(&letter->run, position);
        }
    }
    return error;
}

/* No message at these positions: what had its place keeps it. */
static void
leave_positions(mpshm_arena *arena, const struct letter *letters, const uint64_t *positions, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (place_is_position(letters[i].place)) {
            ring_hold(arena, positions[i]);
        } else {
            ring_give_up(arena, positions[i]);
        }
    }
    waiters_let_in(arena, (int) count);
}

/* The messages have been put: those that were pending have positions now. */
static void
use_up(mpshm_arena *arena, struct letter *letters, uint32_t count)
{
    int64_t pending = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (letters[i].place != NULL) {
            pending += place_is_pending(letters[i].place);
            letters[i].place->at = MPSHM_NO_PLACE;
        }
    }
    tasks_pend(arena, -pending);
}

/* Put as many of these messages as find a position, from the first on: how many, or the error.  Runs of those
   that did not go out are as before.  Under arena_lock.  Q1 */
static int
put_letters(const mpshm_end *end, struct letter *letters, uint32_t count)
{
    mpshm_arena *arena = end->arena;
    uint64_t positions[FEW];
    int error = 0;

    INVARIANT(Q1, arena_is_locked(arena));
    INVARIANT(F4, count > 0 && count <= FEW);
    uint32_t found = find_positions(arena, letters, count, positions, &error), n = 0;

    while (n < found) {
        int wrong = fill(arena, &letters[n], positions[n]);

        if (wrong != 0) { /* and those behind it go behind it */
            leave_positions(arena, letters + n, positions + n, found - n);
            error = wrong;
            break;
        }
        n++;
    }
    if (n > 0) {
        ring_put(arena, end->fd, positions, n);
        use_up(arena, letters, n);
        waiters_rouse(arena, (int) n); /* behind ring_put's fence: G4 */
        if (SPOT_RING(positions[0]) != 0 && positions[0] % PUTS_BEFORE_SHRINK < n) {
            (void) chain_shrink(arena);
        }
    }
    return n > 0 ? (int) n : error;
}

/* unmapped: it was written through windows. */
static void
count_sent(mpshm_counts *to, uint64_t size, bool in_slot, bool unmapped)
{
    to->sent_unmapped += unmapped;
    if (in_slot) {
        count(&to->ring_messages, &to->ring_bytes, size);
    } else {
        count(&to->shm_messages, &to->shm_bytes, size);
    }
}

/* Put up to FEW small messages, one behind the other in `data`: how many, or the error. */
static int
put_few(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count, mpshm_place *const *places)
{
    mpshm_arena *arena = end->arena;
    struct letter letters[FEW];
    uint32_t n = 0;
    int done = 0;

    INVARIANT(F4, count <= FEW);
    arena_lock(arena);
    int error = queue_look_at_end(end);

    while (error == 0 && n < count) {
        letters[n].data = data;
        letters[n].size = sizes[n];
        letters[n].parcel = NULL;
        letters[n].stream = NULL;
        letters[n].place = places == NULL ? NULL : places[n];
        error = prepare(arena, &letters[n]);
        if (error == 0) {
            data += sizes[n++];
        }
    }
    if (n > 0) {
        done = put_letters(end, letters, n);
        error = done < 0 ? done : 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        bool in_slot = letters[i].run.capacity == 0;

        if ((int) i < done) {
            count_sent(end->counts, letters[i].size, in_slot, !in_slot && letters[i].run.data == NULL);
            if (!in_slot) {
                run_is_out(&letters[i].run, letters[i].size, letters[i].position);
            }
        } else if (!in_slot) {
            (void) run_abandon(&letters[i].run);
        }
    }
    arena_unlock(arena);
    return error == 0 ? done : error;
}

/* Put a message that goes through a record of the stream's: 1, or the error.  Under arena_lock. */
int
queue_put_stream(const mpshm_end *end, mpshm_stream *stream, const char *data, uint64_t size, mpshm_place *place)
{
    struct letter letter = {.data = data, .size = size, .stream = stream, .place = place, .bytes = MPSHM_SLOT_BYTES};

    return put_letters(end, &letter, 1);
}

/* In a queue that is bounded by bytes, each waits for its turn alone. */
int
mpshm_queue_put_some(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count,
                     mpshm_place *const *places)
{
    uint32_t all = 0, few, most = end->arena->bytes_limit != 0 ? 1 : FEW;
    int done;

    if (count > MPSHM_SLOTS_AT_ONCE) {
        count = MPSHM_SLOTS_AT_ONCE;
    }
    do {
        few = count - all < most ? count - all : most;
        done = put_few(end, data, sizes + all, few, places == NULL ? NULL : places + all);
        for (int i = 0; i < done; i++) {
            data += sizes[all++];
        }
    } while (done == (int) few && all < count);
    return all > 0 ? (int) all : done;
}

int
mpshm_queue_put_one(const mpshm_end *end, const char *data, uint32_t size, mpshm_place *place)
{
    return put_few(end, data, &size, 1, &place);
}

int
mpshm_queue_put_new(const mpshm_end *end, const char *data, uint32_t size)
{
    return put_few(end, data, &size, 1, NULL);
}

/* A small message that is tracked is out. */
static void
track_letter(const mpshm_end *end, struct letter *letter, mpshm_tracking *tracking)
{
    bool in_slot = letter->run.capacity == 0;

    count_sent(end->counts, letter->size, in_slot, !in_slot && letter->run.data == NULL);
    if (!in_slot) {
        tracking_add(tracking, &letter->run, run_flight_word(&letter->run, letter->position));
        run_is_out(&letter->run, letter->size, letter->position);
    }
    tracking_begins(tracking, letter->position);
}

/* As put_few, which is spared the question: a put without tracking would take a fortieth longer. */
int
mpshm_queue_put_tracked(const mpshm_end *end, const char *data, uint32_t size, mpshm_place *place,
                        mpshm_tracking *tracking)
{
    struct letter letter = {.data = data, .size = size, .place = place};

    if (tracking_room(tracking, 1) != 0) {
        return -ENOBUFS;
    }
    arena_lock(end->arena);
    int result = queue_look_at_end(end);

    if (result == 0) {
        result = prepare(end->arena, &letter);
    }
    if (result == 0) {
        result = put_letters(end, &letter, 1);
        if (result == 1) {
            track_letter(end, &letter, tracking);
        } else if (letter.run.capacity != 0) {
            (void) run_abandon(&letter.run);
        }
    }
    arena_unlock(end->arena);
    return result;
}

/* The bytes of the chunks of a parcel's runs, once they are sealed. */
static uint64_t
parcel_bytes(const mpshm_parcel *parcel)
{
    uint64_t bytes = parcel->has_index ? chunk_bytes(&parcel->index.run, parcel->index.size) : 0;

    for (uint32_t i = 0; i < parcel->count; i++) {
        bytes += chunk_bytes(&parcel->parts[i].run, parcel->parts[i].size);
    }
    return bytes;
}

int
mpshm_queue_put_parcel(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
                       mpshm_place *place)
{
    return mpshm_queue_put_parcel_tracked(parcel, end, stream, size, place, NULL);
}

/* tracking: or NULL. */
int
mpshm_queue_put_parcel_tracked(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
                               mpshm_place *place, mpshm_tracking *tracking)
{
    mpshm_arena *arena = parcel->arena;

    if (parcel->count == 0 || arena->slot_bytes == 0 || parcel->is_tracked) {
        return -EINVAL;
    }
    if (parcel_track_room(parcel, tracking) != 0) {
        return -ENOBUFS; /* not for want of shared memory, which would be waited for */
    }
    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if (!parcel->has_index && !frame_fits(arena, parcel->count, size)) {
        return -EMSGSIZE;
    }
    INVARIANT(P4, end->arena == arena);
    arena_lock(arena);
    struct letter letter = {.data = stream, .size = size, .parcel = parcel, .place = place,
                            .bytes = MPSHM_SLOT_BYTES + parcel_bytes(parcel)};
    int error = queue_look_at_end(end);

    if (error == 0) {
        error = put_letters(end, &letter, 1);
    }
    if (error == 1) {
        for (uint32_t i = 0; i < parcel->count; i++) {
            size += parcel->parts[i].size;
        }
        count_sent(end->counts, size, false, parcel_is_unmapped(parcel));
        parcel_handed_over(parcel, letter.position, tracking);
    }
    arena_unlock(arena);
    if (error == 1) {
        arena_let_go(arena);
        error = 0;
    }
    return error;
}
