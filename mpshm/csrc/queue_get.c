/* Getting: frames come out of the ring, and messages out of frames.

   Knows frames, leases and a batch's memory.  Does not know a slot's word (ring.c), nor how a receiver
   waits (waiters.c).

   Invariants: Q1, Q3, Q4, F3, F5 (invariants.h).

   Memory order: ring_take acquires READY, so the frame is whole; each lease then acquires what that
   run's seal released.  ring_pass releases what has become of the runs. */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "queue.h"
#include "ring.h"
#include "stream.h"

/* The bit of a frame's length word that says that descriptors follow, not a message. */
#define SIGN UINT32_C(0x80000000)
_Static_assert(MPSHM_TINY_BYTES <= SMALL_RUN_BYTES, "there is room for the zeros");

static void
count_received(mpshm_counts *to, uint64_t size, bool in_slot)
{
    if (in_slot) {
        count(&to->received_ring_messages, &to->received_ring_bytes, size);
    } else {
        count(&to->received_shm_messages, &to->received_shm_bytes, size);
    }
}

/* Make room for `size` bytes of data more.  Q4 */
static int
data_room(mpshm_batch *batch, uint64_t size)
{
    INVARIANT(Q4, batch->data_used <= batch->data_room);
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
    free(batch->apart);
    batch->apart = NULL;
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
    INVARIANT(Q4, i < batch->runs_used && batch->runs[i].data != NULL);
    *to = batch->runs[i];
    batch->runs[i].data = NULL; /* releasing NULL does nothing */
}

mpshm_block *
mpshm_block_new(void)
{
    return calloc(1, sizeof(mpshm_block));
}

void
mpshm_block_free(mpshm_block *block)
{
    free(block->data);
    free(block);
}

void
mpshm_batch_take_apart(mpshm_batch *batch, mpshm_block *to)
{
    INVARIANT(Q4, batch->count == 1 && batch->apart != NULL);
    *to = (mpshm_block) {batch->apart, batch->messages[0].size};
    batch->apart = NULL;
}

/* Make room for `count` runs more.  Q4 */
static int
runs_room(mpshm_batch *batch, uint32_t count)
{
    INVARIANT(Q4, batch->runs_used <= batch->runs_room);
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
    INVARIANT(Q4, size <= batch->data_room - batch->data_used);
    message->at = batch->data_used;
    message->size = size;
    memcpy(batch->data + batch->data_used, from, size);
    batch->data_used += size;
}

/* Lease the runs of a frame that has buffers, or a stream too long to be copied: all or none.  F3 */
static int
open_runs(mpshm_batch *batch, uint64_t position, const unsigned char *slot,
          const struct frame_head *head, mpshm_message *message)
{
    const unsigned char *table = slot + head->descriptors;
    const unsigned char *stream = slot + head->stream;
    uint32_t count = head->stream_runs + head->buffer_runs;
    uint64_t stream_size = head->end - head->stream;
    mpshm_arena *arena = batch->end->arena;
    mpshm_held index = {.data = NULL};
    int error = 0;

    if (head->indexed) {
        error = frame_lease_index(arena, position, table, &index, &message->bad);
        if (error == 0) {
            table = (unsigned char *) index.data;
            error = frame_index(head, index.size, SMALL_RUN_BYTES, &stream_size);
            stream = table + (index.size - stream_size);
        }
    }
    error = error ? error : runs_room(batch, count);
    error = error ? error : data_room(batch, stream_size);
    error = error ? error : frame_lease_all(arena, position, table, count,
                                            batch->runs + batch->runs_used, &message->bad);
    if (error == 0) {
        INVARIANT(Q4, count <= batch->runs_room - batch->runs_used);
        INVARIANT(F5, head->indexed || head->end <= MPSHM_SLOT_BYTES);
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

/* A message that cannot be had. */
static void
add_failure(mpshm_batch *batch, int error)
{
    mpshm_message *message = &batch->messages[batch->count++];

    memset(message, 0, sizeof *message);
    message->error = error;
    batch->sizes[batch->count - 1] = UINT32_MAX;
}

/* A message that has come through a stream: 1, or the error. */
static int
add_stream(mpshm_batch *batch, mpshm_incoming *incoming)
{
    uint64_t size = incoming->have;
    bool is_small = size <= SMALL_RUN_BYTES;
    int error = is_small ? data_room(batch, size) : 0;

    if (error != 0) {
        return error;
    }
    mpshm_message *message = &batch->messages[batch->count++];

    memset(message, 0, sizeof *message);
    INVARIANT(Q4, batch->count == 1);
    batch->sizes[0] = is_small ? (uint32_t) size : UINT32_MAX;
    message->size = size;
    if (is_small) {
        add_data(batch, message, incoming->data, size);
    } else {
        batch->apart = incoming->data;
        incoming->data = NULL;
    }
    arena_lock(batch->end->arena);
    mpshm_counts *counts = batch->end->counts;

    count(&counts->received_plain_messages, &counts->received_plain_bytes, size);
    arena_unlock(batch->end->arena);
    return 1;
}

/* Make one frame a message: its bytes copied, or its runs leased.  An error is the message's, not the
   batch's. */
static int
open_slot(mpshm_batch *batch, uint64_t position, const unsigned char *slot, mpshm_message *message)
{
    mpshm_arena *arena = batch->end->arena;
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

    if (error != 0 || head.tracked) { /* here the slot says who has the message, and no ticket */
        return error != 0 ? error : MPSHM_E_FLAG;
    }
    if (!head.indexed && head.stream_runs == 1 && head.buffer_runs == 0) {
        error = data_room(batch, SMALL_RUN_BYTES);
        if (error == 0) {
            error = frame_copy_one(arena, position, slot + head.descriptors,
                                   batch->data + batch->data_used, SMALL_RUN_BYTES, &message->size,
                                   &message->bad);
        }
        if (error == MPSHM_COPIED_UNMAPPED) {
            batch->end->counts->received_unmapped++;
            error = 0;
        }
        if (error != -EMSGSIZE) {
            INVARIANT(Q4, error != 0 || message->size <= batch->data_room - batch->data_used);
            message->at = batch->data_used;
            batch->data_used += error == 0 ? message->size : 0;
            return error;
        }
    }
    return open_runs(batch, position, slot, &head, message);
}

static bool
names_runs(const unsigned char *frame)
{
    return (frame[0] & 0x80) != 0;
}

/* The slot names a stream: begin to take that message.  True: it is under way; false: it is one with an error. */
static bool
begin_stream(mpshm_batch *batch, uint64_t position, const unsigned char *frame)
{
    mpshm_arena *arena = batch->end->arena;
    struct stream_name name;

    if (!names_runs(frame) || !frame_stream(frame, &name)) {
        return false;
    }
    int error = stream_open(arena, position, &name, &batch->incoming);

    if (error != 0) {
        add_failure(batch, error);
        ring_pass(arena, position);
        stream_call(arena); /* its sender is to see that it has passed */
    }
    return true;
}

/* Make messages of the slots just taken.  Only the last may name runs, or a stream: its slot is TAKING until these are
   leased, or it has come.  Under arena_lock, held since before the slots were taken.  Q1 */
static void
open_slots(mpshm_batch *batch, const unsigned char *frames, const uint64_t *positions, uint32_t count)
{
    mpshm_arena *arena = batch->end->arena;

    INVARIANT(Q1, arena_is_locked(arena));
    INVARIANT(Q4, batch->count + count <= MPSHM_SLOTS_AT_ONCE);
    for (uint32_t n = 0; n < count; n++) {
        const unsigned char *frame = frames + (size_t) n * RING_FRAME_BYTES;

        INVARIANT(Q1, n + 1 == count || !names_runs(frame));
        if (begin_stream(batch, positions[n], frame)) {
            return;
        }
        mpshm_message *message = &batch->messages[batch->count++];

        message->error = open_slot(batch, positions[n], frame, message);
        if (names_runs(frame)) {
            ring_pass(arena, positions[n]); /* what is not leased, of a message with an error, is nobody's */
        }
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
            count_received(batch->end->counts, size, !names_runs(frame));
        }
    }
}

/* Leave the message that is under way to the next receiver of this process.  Under arena_lock. */
static void
leave_incoming(mpshm_batch *batch)
{
    mpshm_arena *arena = batch->end->arena;

    stream_park(batch->incoming);
    batch->incoming = NULL;
    if (batch->end->fd < 0 && arena->receivers == 0) {
        stream_drop_parked(arena); /* this end was closed meanwhile, and nobody else comes for it */
    } else if (batch->end->fd >= 0) {
        (void) mirror_agree(arena, batch->end->fd); /* whoever waits at the pipe is to come for it */
    }
    waiters_call(arena, INT_MAX); /* another thread may be asleep */
}

/* Go on with the message that is under way, outside of all locks: 1: it has come, or its error; 0: it will not come;
   -EINTR: later. */
static int
go_on(mpshm_batch *batch, int timeout_ms)
{
    mpshm_incoming *incoming = batch->incoming;
    int result = stream_receive(incoming, timeout_ms, &batch->waiter);

    if (result == -EAGAIN || result == -EINTR) {
        arena_lock(batch->end->arena);
        leave_incoming(batch);
        arena_unlock(batch->end->arena);
        return -EINTR; /* whoever called looks for signals, and comes again if it has time */
    }
    batch->incoming = NULL;
    if (result == 1) {
        result = add_stream(batch, incoming);
    }
    if (result < 0) {
        add_failure(batch, result);
    }
    stream_close(incoming);
    arena_lock(batch->end->arena);
    batch->end->counts->received_given_up += result == 0;
    if (batch->end->fd >= 0) {
        mirror_after_take(batch->end->arena, batch->end->fd);
    }
    arena_unlock(batch->end->arena);
    return result != 0;
}

/* Take up to `most` messages that are in the ring now: how many. */
static uint32_t
take(mpshm_batch *batch, uint32_t most)
{
    mpshm_arena *arena = batch->end->arena;
    char frames[FEW * RING_FRAME_BYTES];
    uint64_t positions[FEW];
    uint32_t few, all_few = 0;
    bool all;

    arena_lock(arena);
    batch->incoming = stream_unpark(arena);
    while (batch->incoming == NULL && batch->count < most) {
        few = most - batch->count;
        few = ring_take(arena, frames, positions, few < FEW ? few : FEW);
        all = few < FEW && (few == 0 || !names_runs((unsigned char *) frames + (few - 1) * RING_FRAME_BYTES));
        open_slots(batch, (unsigned char *) frames, positions, few);
        if (few > 0) {
            waiters_let_in(arena, (int) few);
            tracking_tell(arena);
        }
        all_few += few;
        if (all) {
            break;
        }
    }
    if (all_few > 0) {
        mirror_after_take(arena, batch->end->fd);
    }
    if (batch->incoming != NULL && batch->count > 0) { /* after those */
        leave_incoming(batch);
    }
    arena_unlock(arena);
    return batch->count;
}

/* Call when the ring has nothing to take: 0 if a message may come, MPSHM_E_END, or MPSHM_E_CLOSED; or
   MPSHM_E_CROWDED if there is a message that only a process with a name can take; or -ENOMEM if messages lie in a ring
   that this process has no room to map: it would wait for ever for what is there. */
static int
look_at_pipe(mpshm_batch *batch)
{
    mpshm_arena *arena = batch->end->arena;
    int result = MPSHM_E_CLOSED;

    arena_lock(arena);
    if (batch->end->fd >= 0) { /* read under the lock, so no other file has got its number since */
        (void) stream_mend(arena); /* what the dead were writing, or taking */
        result = mirror_agree(arena, batch->end->fd) ? 0 : MPSHM_E_END;
        result = ring_is_out_of_reach(arena) ? -ENOMEM : result; /* messages there may be */
    }
    if (arena->me == 0 && ring_is_ready(arena)) {
        result = MPSHM_E_CROWDED;
    }
    arena_unlock(arena);
    return result;
}

/* Take up to `most` messages that are there: how many.  One that has begun to come is waited for: -EINTR if that takes
   too long. */
static int
take_or_go_on(mpshm_batch *batch, uint32_t most, int timeout_ms)
{
    for (;;) {
        uint32_t n = take(batch, most);

        if (batch->incoming == NULL) {
            return (int) n;
        }
        int result = go_on(batch, timeout_ms);

        if (result != 0) {
            return result;
        }
    }
}

/* Take up to `most` messages without waiting for one that has not begun to come: how many, -EAGAIN, or the error. */
static int
receive_now(mpshm_batch *batch, uint32_t most, int timeout_ms)
{
    int n = take_or_go_on(batch, most, timeout_ms);

    if (n == 0 && queue_due_is_ready(batch->end->arena)) {
        n = take_or_go_on(batch, most, timeout_ms);
    }
    int result = n != 0 ? n : look_at_pipe(batch);

    if (result == MPSHM_E_END) {
        n = take_or_go_on(batch, most, timeout_ms); /* a message may have been put just before the end */
        if (n == 0) {
            waiters_call(batch->end->arena, INT_MAX);
        }
    }
    return n != 0 ? n : result != 0 ? result : -EAGAIN;
}

/* Bring the bytes of a message whose runs are copied.  Its error, if there is no memory for them. */
static void
bring_message(mpshm_batch *batch, mpshm_message *message)
{
    mpshm_counts *counts = batch->end->counts;
    int why = frame_read_copied(batch->runs + message->first_run, message->runs);

    if (why > 0) {
        process_lock(); /* as all that count */
        counts->received_unmapped += why == MPSHM_COPIED_UNMAPPED;
        counts->received_scarce += why == MPSHM_COPIED_SCARCE;
        process_unlock();
    } else if (why < 0) {
        message->error = why;
        message->runs = 0;
        message->size = 0;
    }
}

/* The same of all messages.  Under no lock: they may be long.  Q3 */
static void
bring_copied(mpshm_batch *batch)
{
    bool any = false;

    for (uint32_t i = 0; i < batch->runs_used; i++) {
        any = any || batch->runs[i].copied != 0;
    }
    for (uint32_t i = 0; i < batch->count && any; i++) {
        bring_message(batch, &batch->messages[i]);
    }
}

int
mpshm_queue_receive(mpshm_batch *batch, uint32_t most, int timeout_ms)
{
    mpshm_batch_discard(batch);
    if (most > MPSHM_SLOTS_AT_ONCE) {
        most = MPSHM_SLOTS_AT_ONCE;
    }
    mpshm_arena *arena = batch->end->arena;
    mpshm_waiter *waiter = &batch->waiter;

    /* A process gets nothing more once it has closed the end. */
    int result = batch->end->fd < 0 ? MPSHM_E_CLOSED : receive_now(batch, most, timeout_ms);

    bool waits = timeout_ms != 0 && timeout_ms != MPSHM_NOT_AT_ALL;

    if (result == -EAGAIN && waits) {
        result = waiter_look(waiter, arena);
        if (result == -EAGAIN && waiter_sleep(waiter, arena, batch->end->fd, timeout_ms)) {
            result = 1;
        }
        result = result == 1 ? receive_now(batch, most, timeout_ms < 0 ? -1 : 0) : result;
    }
    bool comes_again = waits && timeout_ms < 0 && (result == -EAGAIN || result == -EINTR);

    if (!comes_again) {
        waiter_goes(waiter, arena, result > 0 ? (uint32_t) result : 0);
    }
    bring_copied(batch);
    uint64_t size = 0;

    for (uint32_t i = 0; i < batch->runs_used; i++) {
        size += batch->runs[i].size;
    }
    heap_keep(size);
    return result;
}

int
mpshm_queue_receive_one(mpshm_batch *batch, int timeout_ms)
{
    int n = mpshm_queue_receive(batch, 1, timeout_ms);

    if (n < 0 || batch->messages[0].error != 0) {
        return n < 0 ? n : batch->messages[0].error;
    }
    uint32_t size = batch->sizes[0];

    if (size <= MPSHM_TINY_BYTES) {
        memset(batch->data + size, 0, MPSHM_TINY_BYTES - size);
    }
    return size == UINT32_MAX ? MPSHM_DESCRIPTORS : (int) size;
}
