/* Slots: a queue's frames, all of one size, in its ring.

   Knows frames and waits; the ring's words it leaves to ring.c, places to places.c, the runs that a
   frame names to the others.

   Invariants:
   Q1  A message's slot is put in the window in which its runs are sealed, and taken in the window in
       which they are leased.  So when all peers rest and the ring is empty, a run in flight is an
       orphan.
   Q2  Nothing here blocks while it holds the process's lock. */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* How long a receiver waits, awake, for a message that is being written and that its pipe shows. */
#define DUE_NS INT64_C(20000000)
#define LENGTH_BYTES 4
/* Frames on their way between a message and the ring: as many as stay in the first cache. */
#define FEW 8
#define SIGN UINT32_C(0x80000000)
_Static_assert(MPSHM_SLOT_BYTES == RING_DATA_BYTES, "a slot is what the ring holds");
_Static_assert(MPSHM_TINY_BYTES <= SMALL_RUN_BYTES, "there is room for the zeros");

int
mpshm_make_queue(mpshm_arena *arena, uint32_t places, uint64_t bytes, int joinable)
{
    if (arena->ring == NULL) {
        return -EINVAL;
    }
    int error = arena_reserve(arena, 0, RING_OFFSET + RING_BYTES);

    if (error != 0) {
        return error;
    }
    arena->slot_bytes = arena->header->slot_bytes = MPSHM_SLOT_BYTES;
    arena->header->places = places;
    arena->header->bytes_limit = bytes;
    arena->header->joinable = joinable != 0;
    return 0;
}

uint32_t
mpshm_slot_bytes(mpshm_arena *arena)
{
    return arena->slot_bytes;
}

uint64_t
mpshm_queue_bytes(mpshm_arena *arena)
{
    return arena->header->bytes_limit;
}

/* Putting. */

void
mpshm_end_open(const mpshm_end *end)
{
    mpshm_arena *arena = end->arena;

    pthread_mutex_lock(&mpshm_process.lock);
    arena->receivers += end->receives != 0;
    arena->refs++; /* at interpreter exit an end may be closed after its arena's handle */
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
mpshm_end_close(const mpshm_end *end)
{
    pthread_mutex_lock(&mpshm_process.lock);
    end->arena->receivers -= end->receives != 0;
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
mpshm_end_closed(const mpshm_end *end)
{
    if (!end->receives) {
        waiters_call(end->arena, INT_MAX);
    }
    arena_let_go(end->arena);
}

int
mpshm_slot_wait_room(const mpshm_end *end, int timeout_ms)
{
    return waiters_room(end->arena, end->fd, timeout_ms);
}

/* A longer message needs a run.  No annex is used where the file system may run full, for it is not
   reserved, nor in a queue bounded by bytes, which counts chunks. */
static uint64_t
inline_bytes(const mpshm_arena *arena)
{
    bool slot_only = arena->bounded || arena->header->bytes_limit != 0;

    return (slot_only ? MPSHM_SLOT_BYTES : ring_frame_bytes(arena)) - LENGTH_BYTES;
}

/* One message of at most SMALL_RUN_BYTES as a frame, its bytes in a run if need be; under arena_lock.
   The run's chunks are added to `bytes`. */
static int
fill_slot(mpshm_arena *arena, char *slot, const char *data, uint64_t size, mpshm_run *run,
          uint64_t *bytes)
{
    uint32_t word = htonl((uint32_t) size);

    run->capacity = 0;
    if (size <= inline_bytes(arena)) {
        if ((LENGTH_BYTES + size) % 8 != 0) { /* the ring copies words: what fills the last one */
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

        memcpy(run->data, data, size);
        frame_put(slot, &parcel, NULL, 0);
        error = sender_seal(run, size, bytes);
    }
    return error;
}

/* A message that did not go out. */
static void
empty_slot(mpshm_run *run, uint64_t size)
{
    if (run->capacity > 0) {
        sender_unseal(run, size);
        (void) sender_abandon(run);
    }
}

/* Put slots whose runs are sealed and places taken into the ring, as many as find room, and settle
   what became of the places: they pend no longer just before, for what a dead peer had pending is
   taken for not put.  How many, or the error.  bytes: of each, for the places. */
static int
put_placed(const mpshm_end *end, const char *frames, const uint64_t *bytes, uint32_t count,
           int place, bool keeps)
{
    mpshm_arena *arena = end->arena;
    bool counted = place == MPSHM_TAKE_PLACE && places_counted(arena);
    uint32_t n = 0;
    int error = -EAGAIN;

    if (counted || place == MPSHM_HAS_PLACE) {
        places_pend(arena, -(int32_t) count);
    }
    if (end->fd < 0) {
        error = -EBADF;
    } else if (arena->receivers == 0 && has_hung_up(end->fd, POLLERR)) {
        error = -EPIPE;
    } else {
        n = ring_put(arena, end->fd, frames, count);
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
count(uint64_t *messages, uint64_t *all_bytes, uint64_t bytes)
{
    ++*messages;
    *all_bytes += bytes;
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

static void
count_received(mpshm_counts *to, uint64_t size, bool in_slot)
{
    if (in_slot) {
        count(&to->received_plain_messages, &to->received_plain_bytes, size);
    } else {
        count(&to->received_shm_messages, &to->received_shm_bytes, size);
    }
}

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
mpshm_slot_put(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count,
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
mpshm_slot_put_one(const mpshm_end *end, const char *data, uint32_t size, int place)
{
    return put_few(end, data, &size, 1, place, true);
}

int
mpshm_slot_send(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
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

/* Getting. */

static int
data_room(mpshm_batch *batch, uint64_t size)
{
    if (batch->data_room - batch->data_used < size) {
        uint64_t room = 2 * (batch->data_used + size);
        char *grown;

        room = room < 2 * SMALL_RUN_BYTES ? 2 * SMALL_RUN_BYTES : room;
        grown = realloc(batch->data, room);
        if (grown == NULL) {
            return -ENOMEM;
        }
        batch->data = grown;
        batch->data_room = room;
    }
    return 0;
}

mpshm_batch *
mpshm_batch_new(const mpshm_end *end, uint32_t spin_us)
{
    mpshm_batch *batch = calloc(1, sizeof *batch);

    if (batch != NULL) {
        batch->end = end;
        waiter_init(&batch->waiter, spin_us);
        if (data_room(batch, SMALL_RUN_BYTES) != 0) {
            free(batch);
            batch = NULL;
        }
    }
    return batch;
}

void
mpshm_batch_discard(mpshm_batch *batch)
{
    for (uint32_t i = 0; i < batch->runs_used; i++) {
        mpshm_release(batch->runs[i].data);
    }
    batch->count = batch->runs_used = 0;
    batch->data_used = 0;
}

void
mpshm_batch_free(mpshm_batch *batch)
{
    mpshm_batch_discard(batch);
    free(batch->data);
    free(batch->runs);
    free(batch);
}

void
mpshm_batch_take(mpshm_batch *batch, uint32_t i, mpshm_held *to)
{
    *to = batch->runs[i];
    batch->runs[i].data = NULL; /* releasing NULL does nothing */
}

static int
runs_room(mpshm_batch *batch, uint32_t count)
{
    if (batch->runs_room - batch->runs_used < count) {
        uint64_t room = 2 * ((uint64_t) batch->runs_used + count);
        mpshm_held *grown = room > UINT32_MAX ? NULL : realloc(batch->runs, room * sizeof *grown);

        if (grown == NULL) {
            return -ENOMEM;
        }
        batch->runs = grown;
        batch->runs_room = (uint32_t) room;
    }
    return 0;
}

static void
add_data(mpshm_batch *batch, mpshm_message *message, const void *from, uint64_t size)
{
    message->at = batch->data_used;
    message->size = size;
    memcpy(batch->data + batch->data_used, from, size);
    batch->data_used += size;
}

/* Lease the runs of a frame that has buffers, or a stream too long to be copied. */
static int
open_runs(mpshm_batch *batch, mpshm_arena *arena, const unsigned char *slot,
          const struct frame_head *head, mpshm_message *message)
{
    const unsigned char *table = slot + head->descriptors;
    const unsigned char *stream = slot + head->stream;
    uint32_t count = head->stream_runs + head->buffer_runs;
    uint64_t stream_size = head->end - head->stream;
    mpshm_held index = {NULL, 0};
    int error = 0;

    if (head->indexed) {
        error = frame_lease_one(arena, table, &index, &message->bad);
        if (error == 0) {
            table = (unsigned char *) index.data;
            error = frame_index(head, index.size, SMALL_RUN_BYTES, &stream_size);
            stream = table + (index.size - stream_size);
        }
    }
    error = error ? error : runs_room(batch, count);
    error = error ? error : data_room(batch, stream_size);
    error = error ? error : frame_lease_all(arena, table, count,
                                                  batch->runs + batch->runs_used, &message->bad);
    if (error == 0) {
        message->first_run = batch->runs_used;
        message->stream_runs = head->stream_runs;
        message->runs = count;
        batch->runs_used += count;
        add_data(batch, message, stream, stream_size);
    }
    if (index.data != NULL) {
        release_run(index.data);
    }
    return error;
}

static int
open_slot(mpshm_batch *batch, mpshm_arena *arena, const unsigned char *slot,
          mpshm_message *message)
{
    struct frame_head head;
    uint32_t word;

    memset(message, 0, sizeof *message);
    memcpy(&word, slot, LENGTH_BYTES);
    word = ntohl(word);
    if ((word & ~SIGN) > (word < SIGN ? ring_frame_bytes(arena) : MPSHM_SLOT_BYTES) - LENGTH_BYTES) {
        return MPSHM_E_LENGTH;
    }
    if (word < SIGN) {
        int error = data_room(batch, word);

        if (error == 0) {
            add_data(batch, message, slot + LENGTH_BYTES, word);
        }
        return error;
    }
    int error = frame_head(slot, &head);

    if (error != 0) {
        return error;
    }
    if (!head.indexed && head.stream_runs == 1 && head.buffer_runs == 0) {
        error = data_room(batch, SMALL_RUN_BYTES);
        if (error == 0) {
            error = frame_copy_one(arena, slot + head.descriptors, batch->data + batch->data_used,
                                   SMALL_RUN_BYTES, &message->size, &message->bad);
        }
        if (error != -EMSGSIZE) {
            message->at = batch->data_used;
            batch->data_used += error == 0 ? message->size : 0;
            return error;
        }
    }
    return open_runs(batch, arena, slot, &head, message);
}

/* What the slots just taken hold.  Under arena_lock. */
static void
open_slots(mpshm_batch *batch, const unsigned char *frames, uint32_t count)
{
    mpshm_arena *arena = batch->end->arena;
    uint64_t bytes = (uint64_t) count * MPSHM_SLOT_BYTES, chunk_bytes = arena->lease_bytes;

    for (uint32_t n = 0; n < count; n++) {
        const unsigned char *frame = frames + (size_t) n * RING_FRAME_BYTES;
        mpshm_message *message = &batch->messages[batch->count++];

        message->error = open_slot(batch, arena, frame, message);
        batch->sizes[batch->count - 1] = message->error != 0 || message->runs > 0
                                             ? UINT32_MAX
                                             : (uint32_t) message->size;
        if (message->error != 0) {
            message->runs = 0;
            message->size = 0;
        } else {
            uint64_t size = message->size;

            for (uint32_t i = 0; i < message->runs; i++) {
                size += batch->runs[message->first_run + i].size;
            }
            count_received(batch->end->counts, size, (frame[0] & 0x80) == 0);
        }
    }
    places_leave(arena, count, bytes + arena->lease_bytes - chunk_bytes);
}

/* What the ring has: how many, 0 if none. */
static uint32_t
take(mpshm_batch *batch, uint32_t most)
{
    mpshm_arena *arena = batch->end->arena;
    char frames[FEW * RING_FRAME_BYTES];
    uint32_t n = 0, few;

    arena_lock(arena);
    do {
        few = ring_take(arena, frames, most - n < FEW ? most - n : FEW);
        open_slots(batch, (unsigned char *) frames, few);
        n += few;
    } while (few == FEW && n < most);
    if (n > 0) {
        waiter_took(&batch->waiter, arena, n);
        ring_was_taken(arena, batch->end->fd);
    }
    arena_unlock(arena);
    return n;
}

/* The ring has nothing to take: 0, the end of file, or why that cannot be known. */
static int
look_at_pipe(mpshm_batch *batch)
{
    mpshm_arena *arena = batch->end->arena;
    int result = -EBADF;

    arena_lock(arena);
    if (batch->end->fd >= 0) { /* looked at under the lock: no other file has its number */
        if (ring_is_claimed(arena)) { /* perhaps by the dead */
            ring_reap(arena, 0);
        }
        result = ring_mirror(arena, batch->end->fd) ? 0 : MPSHM_E_END;
    }
    arena_unlock(arena);
    return result;
}

/* Who was told by the pipe that there is a message is not to find none: so wait for its sender, which
   may have been stopped. */
static bool
due_is_ready(mpshm_arena *arena)
{
    for (int64_t until = now_ns() + DUE_NS; !ring_is_ready(arena);) {
        if (!ring_is_due(arena) || now_ns() >= until) {
            return false;
        }
        sched_yield();
    }
    return true;
}

static int
receive_now(mpshm_batch *batch, uint32_t most)
{
    uint32_t n = take(batch, most);

    if (n == 0 && due_is_ready(batch->end->arena)) {
        n = take(batch, most);
    }
    int result = n > 0 ? 0 : look_at_pipe(batch);

    if (result == MPSHM_E_END) {
        n = take(batch, most); /* put just before the end */
        if (n == 0) {
            waiters_call(batch->end->arena, INT_MAX);
        }
    }
    return n > 0 ? (int) n : result != 0 ? result : -EAGAIN;
}

int
mpshm_slot_poll(const mpshm_end *end, int timeout_ms)
{
    bool is_there = due_is_ready(end->arena)
                    || waiters_poll(end->arena, end->fd, timeout_ms);

    if (is_there && timeout_ms != 0) {
        waiters_call(end->arena, 1); /* woken by a message that is another's to take */
    }
    return is_there;
}

void
mpshm_slot_call(const mpshm_end *end)
{
    waiters_call(end->arena, INT_MAX);
}

void
mpshm_slot_watch(const mpshm_end *end)
{
    pthread_mutex_lock(&mpshm_process.lock);
    if (end->fd >= 0) {
        ring_watch(end->arena, end->fd);
    }
    pthread_mutex_unlock(&mpshm_process.lock);
}

int
mpshm_slot_receive(mpshm_batch *batch, uint32_t most, int timeout_ms)
{
    mpshm_batch_discard(batch);
    if (most > MPSHM_SLOTS_AT_ONCE) {
        most = MPSHM_SLOTS_AT_ONCE;
    }
    mpshm_arena *arena = batch->end->arena;
    mpshm_waiter *waiter = &batch->waiter;

    waiter_is_back(waiter);
    /* Who has just closed it is to get nothing more. */
    int result = batch->end->fd < 0 ? -EBADF : receive_now(batch, most);

    if (result == -EAGAIN && timeout_ms != 0) {
        result = waiter_look(waiter, arena);
        if (result == -EAGAIN && waiter_sleep(waiter, arena, batch->end->fd, timeout_ms)) {
            result = 1;
        }
        result = result == 1 ? receive_now(batch, most) : result;
    }
    bool comes_again = timeout_ms < 0 && (result == -EAGAIN || result == -EINTR);

    if (!comes_again) {
        waiter_goes(waiter, arena);
    }
    uint64_t size = 0;

    for (uint32_t i = 0; i < batch->runs_used; i++) {
        size += batch->runs[i].size;
    }
    heap_keep(size);
    return result;
}

int
mpshm_slot_receive_one(mpshm_batch *batch, int timeout_ms)
{
    int n = mpshm_slot_receive(batch, 1, timeout_ms);

    if (n < 0 || batch->messages[0].error != 0) {
        return n < 0 ? n : batch->messages[0].error;
    }
    uint32_t size = batch->sizes[0];

    if (size <= MPSHM_TINY_BYTES) {
        memset(batch->data + size, 0, MPSHM_TINY_BYTES - size);
    }
    return size == UINT32_MAX ? MPSHM_DESCRIPTORS : (int) size;
}
