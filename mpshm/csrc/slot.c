/* Slots: a queue's frames, all of one size, in an ordinary pipe.

   A pipe takes a write of at most PIPE_BUF in one piece, and a slot's size divides a page: so no slot
   is ever split, each read takes whole ones, and any number of processes write and read with no
   lock.  Whoever is killed, the pipe stays in order.

   Knows frames and waits; places it leaves to places.c, the runs that a frame names to the others.

   Invariants:
   Q1  A message's slot is written in the window in which its runs are sealed, and read in the
       window, or under the standing of E3 (peers.c), in which they are leased.  So when all peers
       rest and the pipe is empty, a run in flight is an orphan.
   Q2  Nothing here blocks while it holds the process's lock. */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define LENGTH_BYTES 4
#define INLINE_BYTES (MPSHM_SLOT_BYTES - LENGTH_BYTES)
#define SIGN UINT32_C(0x80000000)
_Static_assert(4096 % MPSHM_SLOT_BYTES == 0, "a slot must not straddle two pages");
_Static_assert(MPSHM_SLOTS_AT_ONCE * MPSHM_SLOT_BYTES <= 4096, "PIPE_BUF");

/* A read that does not wait on an end that does when it should: the ends are shared, and so are their
   flags.  The end that is written to never does, which is a little quicker. */
static ssize_t
read_now(int fd, void *to, size_t size)
{
#ifdef RWF_NOWAIT
    struct iovec piece = {to, size};

    return preadv2(fd, &piece, 1, -1, RWF_NOWAIT);
#else
    (void) fd;
    (void) to;
    (void) size;
    errno = EOPNOTSUPP;
    return -1;
#endif
}

int
mpshm_slots_work(int fd)
{
    char nothing[MPSHM_SLOT_BYTES];

    return read_now(fd, nothing, sizeof nothing) == -1 && errno == EAGAIN;
}

void
mpshm_make_queue(mpshm_arena *arena, uint32_t places, uint64_t bytes, int joinable)
{
    arena->slot_bytes = arena->header->slot_bytes = MPSHM_SLOT_BYTES;
    arena->header->places = places;
    arena->header->bytes_limit = bytes;
    arena->header->joinable = joinable != 0;
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

int
mpshm_wait_writable(int fd, int timeout_ms)
{
    struct pollfd pipe = {.fd = fd, .events = POLLOUT};
    int n = poll(&pipe, 1, timeout_ms);

    if (n < 0) {
        return -errno;
    }
    if (pipe.revents & (POLLERR | POLLNVAL)) {
        return pipe.revents & POLLNVAL ? -EBADF : -EPIPE;
    }
    return n > 0 ? 0 : -EAGAIN;
}

/* One message of at most SMALL_RUN_BYTES as a slot, its bytes in a run if need be; under arena_lock.
   The run's chunks are added to `bytes`. */
static int
fill_slot(mpshm_arena *arena, char *slot, const char *data, uint64_t size, mpshm_run *run,
          uint64_t *bytes)
{
    uint32_t word = htonl((uint32_t) size);

    run->capacity = 0;
    if (size <= INLINE_BYTES) {
        memcpy(slot, &word, LENGTH_BYTES);
        memcpy(slot + LENGTH_BYTES, data, size);
        return 0;
    }
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

/* Write slots whose runs are sealed and places taken, and settle what became of the places: they
   pend no longer just before the write, for what a dead peer had pending is taken for not written. */
static int
write_placed(mpshm_arena *arena, int fd, const char *slots, uint32_t count, uint64_t bytes,
             int place, bool keeps)
{
    bool counted = place == MPSHM_TAKE_PLACE && places_counted(arena);

    if (counted || place == MPSHM_HAS_PLACE) {
        places_pend(arena, -(int32_t) count);
    }
    ssize_t n = write(fd, slots, (size_t) count * MPSHM_SLOT_BYTES); /* all of them or none */
    int error = n < 0 ? -errno : 0;

    if (error != 0 && place != MPSHM_NO_PLACE) {
        bool kept = place == MPSHM_HAS_PLACE
                    || (keeps && error == -EAGAIN && arena->header->bytes_limit == 0);

        if (kept) {
            places_pend(arena, (int32_t) count);
        } else if (counted) {
            places_forget(arena, count, bytes);
        }
    }
    return error;
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
put(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count, int place,
    bool keeps)
{
    mpshm_arena *arena = end->arena;
    char slots[MPSHM_SLOTS_AT_ONCE * MPSHM_SLOT_BYTES];
    mpshm_run runs[MPSHM_SLOTS_AT_ONCE];
    uint64_t bytes = 0;
    uint32_t n = 0;
    int error = 0;

    if (count > MPSHM_SLOTS_AT_ONCE) {
        count = MPSHM_SLOTS_AT_ONCE;
    }
    memset(slots, 0, (size_t) count * MPSHM_SLOT_BYTES);
    arena_lock(arena);
    while (n < count) {
        uint64_t one = MPSHM_SLOT_BYTES;

        error = sizes[n] > SMALL_RUN_BYTES
                    ? -EMSGSIZE
                    : fill_slot(arena, slots + (size_t) n * MPSHM_SLOT_BYTES, data, sizes[n],
                                &runs[n], &one);
        if (error == 0 && place == MPSHM_TAKE_PLACE && !places_take(arena, one)) {
            empty_slot(&runs[n], sizes[n]);
            error = MPSHM_E_FULL;
        }
        if (error != 0) {
            break;
        }
        data += sizes[n++];
        bytes += one;
    }
    if (n > 0) {
        error = write_placed(arena, end->fd, slots, n, bytes, place, keeps);
        for (uint32_t i = 0; i < n; i++) {
            if (error != 0) {
                empty_slot(&runs[i], sizes[i]);
            } else {
                count_sent(end->counts, sizes[i], runs[i].capacity == 0);
            }
        }
    }
    arena_unlock(arena);
    return error == 0 ? (int) n : error;
}

int
mpshm_slot_put(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count,
               int place)
{
    return put(end, data, sizes, count, place, false);
}

int
mpshm_slot_put_one(const mpshm_end *end, const char *data, uint32_t size, int place)
{
    return put(end, data, &size, 1, place, true);
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
        error = place == MPSHM_TAKE_PLACE && !places_take(arena, bytes)
                    ? MPSHM_E_FULL
                    : write_placed(arena, end->fd, slot, 1, bytes, place, true);
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
        batch->end = *end;
        spin_init(&batch->spin, spin_us);
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
    if ((word & ~SIGN) > INLINE_BYTES) {
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

/* What the slots just read hold.  Under arena_lock. */
static int
open_slots(mpshm_batch *batch, const unsigned char *slots, ssize_t bytes)
{
    mpshm_arena *arena = batch->end.arena;
    uint64_t chunk_bytes = arena->lease_bytes;

    if (bytes == 0) {
        return MPSHM_E_END;
    }
    if (bytes % MPSHM_SLOT_BYTES != 0) {
        return MPSHM_E_TORN;
    }
    for (ssize_t at = 0; at < bytes; at += MPSHM_SLOT_BYTES) {
        mpshm_message *message = &batch->messages[batch->count++];

        message->error = open_slot(batch, arena, slots + at, message);
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
            count_received(batch->end.counts, size, (slots[at] & 0x80) == 0);
        }
    }
    places_leave(arena, batch->count, (uint64_t) bytes + arena->lease_bytes - chunk_bytes);
    return (int) batch->count;
}

static int
receive_now(mpshm_batch *batch, uint32_t most)
{
    mpshm_arena *arena = batch->end.arena;
    unsigned char slots[MPSHM_SLOTS_AT_ONCE * MPSHM_SLOT_BYTES];

    arena_lock(arena);
    ssize_t n = read_now(batch->end.fd, slots, (size_t) most * MPSHM_SLOT_BYTES);
    int result = n < 0 ? -errno : open_slots(batch, slots, n);

    arena_unlock(arena);
    return result;
}

static int
receive_spinning(mpshm_batch *batch, uint32_t most)
{
    int64_t until = spin_begin(&batch->spin);
    int result = -EAGAIN;

    while (result == -EAGAIN && spin_goes_on(until)) {
        sched_yield();
        result = receive_now(batch, most);
    }
    spin_end(&batch->spin, until, result != -EAGAIN);
    /* A signal meanwhile has interrupted nothing: the caller looks. */
    return result == -EAGAIN && until != 0 ? -EINTR : result;
}

/* The kernel wakes one of those who block in a read, another if that one is killed; who polls is
   woken with all the others. */
static int
receive_blocking(mpshm_batch *batch, uint32_t most)
{
    mpshm_arena *arena = batch->end.arena;
    int fd = batch->end.fd;
    unsigned char slots[MPSHM_SLOTS_AT_ONCE * MPSHM_SLOT_BYTES];

    arena_lock(arena);
    int standing = peer_begin_reading(arena);

    arena_unlock(arena);
    if (standing < 0) {
        struct pollfd pipe = {.fd = fd, .events = POLLIN};

        return poll(&pipe, 1, -1) < 0 ? -errno : receive_now(batch, most);
    }
    ssize_t n = read(fd, slots, (size_t) most * MPSHM_SLOT_BYTES);
    int result = n < 0 ? -errno : MPSHM_E_END;

    if (n > 0) {
        arena_lock_awake(arena);
        result = open_slots(batch, slots, n);
        peer_end_reading(arena, standing);
        arena_unlock(arena);
    } else {
        peer_end_reading(arena, standing);
    }
    return result;
}

/* All who wait here are woken: were it one, and that one killed before it reads, nobody would read. */
static void
wait_readable(int fd, int timeout_ms)
{
    struct pollfd pipe = {.fd = fd, .events = POLLIN};

    (void) poll(&pipe, 1, timeout_ms);
}

int
mpshm_slot_receive(mpshm_batch *batch, uint32_t most, int timeout_ms)
{
    mpshm_batch_discard(batch);
    if (most > MPSHM_SLOTS_AT_ONCE) {
        most = MPSHM_SLOTS_AT_ONCE;
    }
    int result = receive_now(batch, most);

    if (result == -EAGAIN && timeout_ms != 0) {
        result = receive_spinning(batch, most);
    }
    if (result == -EAGAIN && timeout_ms > 0) {
        wait_readable(batch->end.fd, timeout_ms);
        result = receive_now(batch, most);
    } else if (result == -EAGAIN && timeout_ms < 0) {
        result = receive_blocking(batch, most);
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
    return batch->sizes[0] == UINT32_MAX ? MPSHM_DESCRIPTORS : (int) batch->sizes[0];
}
