/* Putting: messages become frames, and frames go into the ring.

   Knows frames and places.  Does not know a slot's word (ring.c), nor what is in a run.

   Invariants: Q1, Q3, F4, P4, G4 (invariants.h).

   A message with a run:   claim --seal--> frame --ring_put--> the receiver's
                                   '--no place, no room--> unseal, abandon

   Memory order: ring_put's release of READY comes after seal's release of IN_FLIGHT, and the receiver
   acquires both, the slot first.  waiters_rouse comes after ring_put's last fence (G4). */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "queue.h"

/* Holds no lock while it waits.  Q3 */
int
mpshm_queue_wait_room(const mpshm_end *end, int timeout_ms)
{
    return waiters_room(end->arena, end->fd, timeout_ms);
}

/* How many bytes a message without a run may have.  The overflow is not used where the file system may
   run full, for it is not reserved, nor in a queue bounded by bytes, which counts chunks. */
static uint64_t
inline_bytes(const mpshm_arena *arena)
{
    bool slot_only = arena->bounded || arena->header->bytes_limit != 0;

    return (slot_only ? MPSHM_SLOT_BYTES : ring_frame_bytes(arena)) - LENGTH_BYTES;
}

/* Write the frame of one message of at most SMALL_RUN_BYTES.  A message too long for the frame goes into
   a run, which is sealed, and whose chunks' bytes are added to `bytes`.  Under arena_lock. */
static int
fill_slot(mpshm_arena *arena, char *slot, const char *data, uint64_t size, mpshm_run *run,
          uint64_t *bytes)
{
    uint32_t word = htonl((uint32_t) size);

    INVARIANT(Q1, arena_is_locked(arena));
    INVARIANT(F4, size <= SMALL_RUN_BYTES);
    run->capacity = 0;
    if (size <= inline_bytes(arena)) {
        INVARIANT(F4, LENGTH_BYTES + size <= RING_FRAME_BYTES);
        if ((LENGTH_BYTES + size) % 8 != 0) { /* the ring copies words: fill the last one with zeros */
            memset(slot + (LENGTH_BYTES + size) / 8 * 8, 0, 8);
        }
        memcpy(slot, &word, LENGTH_BYTES);
        memcpy(slot + LENGTH_BYTES, data, size);
        return 0;
    }
    memset(slot, 0, MPSHM_SLOT_BYTES);
    int error = sender_claim(arena, size, true, run);

    if (error == 0) {
        struct part part = {*run, size};
        mpshm_parcel parcel = {.arena = arena, .parts = &part, .count = 1, .stream_runs = 1};

        INVARIANT(P4, size <= run->capacity);
        memcpy(run->data, data, size);
        frame_put(slot, &parcel, NULL, 0);
        error = sender_seal(run, size, bytes);
    }
    return error;
}

/* Take back the run, if there is one, of a message that did not go out. */
static void
empty_slot(mpshm_run *run, uint64_t size)
{
    if (run->capacity > 0) {
        sender_unseal(run, size);
        (void) sender_abandon(run);
    }
}

/* Put frames into the ring, whose runs are sealed and whose places are taken, and settle the places of
   those that found no room.  Gives how many found room, or the error.
   The places stop pending just before the put: what a dead peer has pending counts as not put.
   bytes: of each message, for the places.  keeps: where the ring is full, places that were taken are
   kept for the next try. */
static int
put_placed(const mpshm_end *end, const char *frames, const uint64_t *bytes, uint32_t count,
           int place, bool keeps)
{
    mpshm_arena *arena = end->arena;
    bool counted = place == MPSHM_TAKE_PLACE && places_counted(arena);
    uint32_t n = 0;
    int error = -EAGAIN;

    INVARIANT(Q1, arena_is_locked(arena));
    INVARIANT(F4, count > 0 && count <= FEW);
    if (counted || place == MPSHM_HAS_PLACE) {
        places_pend(arena, -(int32_t) count);
    }
    if (end->fd < 0) {
        error = MPSHM_E_CLOSED;
    } else if (arena->receivers == 0 && has_hung_up(end->fd, POLLERR)) {
        error = -EPIPE;
    } else {
        n = ring_put(arena, end->fd, frames, count);
        INVARIANT(Q1, n <= count);
        if (n > 0) {
            waiters_rouse(arena, (int) n); /* behind ring_put's fence: G4 */
        }
    }
    if (n < count && place != MPSHM_NO_PLACE) {
        bool kept = place == MPSHM_HAS_PLACE
                    || (keeps && error == -EAGAIN && arena->header->bytes_limit == 0);

        if (kept) {
            places_pend(arena, (int32_t) (count - n));
        } else if (counted) {
            uint64_t sum = 0;

            for (uint32_t i = n; i < count; i++) {
                sum += bytes[i];
            }
            places_forget(arena, count - n, sum);
        }
    }
    return n > 0 ? (int) n : error;
}

static void
count_sent(mpshm_counts *to, uint64_t size, bool in_slot)
{
    if (in_slot) {
        count(&to->small_messages, &to->plain_bytes, size);
    } else {
        count(&to->shm_messages, &to->shm_bytes, size);
    }
}

/* Put up to FEW small messages, one behind the other in `data`: how many, or the error. */
static int
put_few(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count, int place,
        bool keeps)
{
    mpshm_arena *arena = end->arena;
    char frames[FEW * RING_FRAME_BYTES];
    mpshm_run runs[FEW];
    uint64_t bytes[FEW];
    uint32_t n = 0;
    int error = 0, done = 0;

    INVARIANT(F4, count <= FEW);
    arena_lock(arena);
    while (n < count) {
        bytes[n] = MPSHM_SLOT_BYTES;
        error = sizes[n] > SMALL_RUN_BYTES
                    ? -EMSGSIZE
                    : fill_slot(arena, frames + (size_t) n * RING_FRAME_BYTES, data, sizes[n],
                                &runs[n], &bytes[n]);
        if (error == 0 && place == MPSHM_TAKE_PLACE && !places_take(arena, bytes[n])) {
            empty_slot(&runs[n], sizes[n]);
            error = MPSHM_E_FULL;
        }
        if (error != 0) {
            break;
        }
        data += sizes[n++];
    }
    if (n > 0) {
        done = put_placed(end, frames, bytes, n, place, keeps);
        error = done < 0 ? done : 0;
        for (uint32_t i = 0; i < n; i++) {
            if ((int) i >= done) {
                empty_slot(&runs[i], sizes[i]);
            } else {
                count_sent(end->counts, sizes[i], runs[i].capacity == 0);
            }
        }
    }
    arena_unlock(arena);
    return error == 0 ? done : error;
}

int
mpshm_queue_put_some(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count,
               int place)
{
    uint32_t all = 0, few;
    int done;

    if (count > MPSHM_SLOTS_AT_ONCE) {
        count = MPSHM_SLOTS_AT_ONCE;
    }
    do {
        few = count - all < FEW ? count - all : FEW;
        done = put_few(end, data, sizes + all, few, place, false);
        for (int i = 0; i < done; i++) {
            data += sizes[all++];
        }
    } while (done == (int) few && all < count);
    return all > 0 ? (int) all : done;
}

int
mpshm_queue_put_one(const mpshm_end *end, const char *data, uint32_t size, int place)
{
    return put_few(end, data, &size, 1, place, true);
}

int
mpshm_queue_put_parcel(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
                int place)
{
    char slot[MPSHM_SLOT_BYTES] = {0};
    mpshm_arena *arena = parcel->arena;
    uint64_t bytes = MPSHM_SLOT_BYTES;

    if (parcel->count == 0 || arena->slot_bytes == 0) {
        return -EINVAL;
    }
    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if (!parcel->has_index && !frame_fits(arena, parcel->count, size)) {
        return -EMSGSIZE;
    }
    INVARIANT(P4, end->arena == arena);
    frame_put(slot, parcel, stream, size);
    arena_lock(arena);
    int error = parcel_seal(parcel, &bytes);

    if (error == 0) {
        if (place == MPSHM_TAKE_PLACE && !places_take(arena, bytes)) {
            error = MPSHM_E_FULL;
        } else {
            int n = put_placed(end, slot, &bytes, 1, place, true);

            error = n < 0 ? n : 0;
        }
        if (error != 0) {
            parcel_unseal(parcel);
        } else {
            for (uint32_t i = 0; i < parcel->count; i++) {
                size += parcel->parts[i].size;
            }
            count_sent(end->counts, size, false);
            parcel_handed_over(parcel);
        }
    }
    arena_unlock(arena);
    if (error == 0) {
        arena_let_go(arena);
    }
    return error;
}
