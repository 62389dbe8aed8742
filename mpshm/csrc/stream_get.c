/* The taker's side of a stream record: pieces become a message.

     the slot says TAKING (me) --piece, piece, ...--> whole: the slot passes
                                 '--the sender has died, or has given up--> SKIPPED, as if it had never been put
                                 '--it lies, or there is no memory--> an error, and the slot passes
                                 '--the time is over--> parked: the next receiver of this process goes on with it

   Knows a record's words and one slot.  Does not know how a frame says which record it is (frame.c), nor what is
   done with the message (queue_get.c).

   Invariants: A4, T2, T4 (invariants.h).

   Memory order: see stream.c. */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

/* A receiver whose time is over goes on while pieces come, each within this time: as the stock module, whose get()
   looks for the beginning of a message in time. */
#define LATE_NS INT64_C(200000000)
/* One that has no limit of time returns now and then, so that its caller looks for signals. */
#define BYTES_AT_ONCE (UINT64_C(64) << 20)
/* A message's memory grows as it comes: a sender may lie. */
#define ROOM_FIRST (UINT64_C(1) << 20)

int
stream_open(mpshm_arena *arena, uint64_t spot, const struct stream_name *which, mpshm_incoming **out)
{
    struct stream stream;

    INVARIANT(A4, arena_is_locked(arena));
    if (!stream_find(arena, which, spot, &stream)) {
        return MPSHM_E_STREAM;
    }
    mpshm_incoming *incoming = calloc(1, sizeof *incoming);

    if (incoming == NULL) {
        return -ENOMEM;
    }
    incoming->arena = arena;
    incoming->stream = stream;
    incoming->spot = spot;
    incoming->generation = mpshm_process.generation;
    incoming->size = which->size;
    incoming->turn = arena->turns++;
    stream_said_read(&stream, 0);
    *out = incoming;
    return 0;
}

/* Make room for `bytes` more: 0, or the error. */
static int
make_room(mpshm_incoming *incoming, uint32_t bytes)
{
    uint64_t room = incoming->room;

    if (bytes > incoming->size - incoming->have) {
        return MPSHM_E_STREAM_SIZE;
    }
    while (room - incoming->have < bytes || room == 0) {
        room = room == 0 ? ROOM_FIRST : 2 * room;
        room = room < incoming->size ? room : incoming->size > 0 ? incoming->size : 1;
    }
    if (room > incoming->room) {
        char *grown = realloc(incoming->data, room);

        if (grown == NULL) {
            return -ENOMEM;
        }
        incoming->data = grown;
        incoming->room = room;
    }
    return 0;
}

/* Copy the piece that was written: 0, or the error.  Each but the last is full, so nobody is kept with small ones. */
static int
copy_piece(mpshm_incoming *incoming, bool is_last)
{
    uint32_t bytes = atomic_load_explicit(&incoming->stream.record->bytes, memory_order_relaxed);

    if (bytes > PIECE_BYTES || (!is_last && bytes != PIECE_BYTES)) {
        return MPSHM_E_STREAM_SIZE; /* forged */
    }
    int error = make_room(incoming, bytes);

    if (error == 0) {
        memcpy(incoming->data + incoming->have, incoming->stream.piece, bytes);
        incoming->have += bytes;
        incoming->pieces++;
    }
    return error;
}

/* One look: 1: the message is whole; 0: a piece more has been copied; -EAGAIN: there is none now; else why it cannot be
   had.  T2 */
static int
look(mpshm_incoming *incoming)
{
    uint64_t written = atomic_load_explicit(&incoming->stream.record->written, memory_order_acquire);
    enum stream_state state = STREAM_STATE(written);

    if (STREAM_GENERATION(written) != incoming->stream.generation) {
        return MPSHM_E_STREAM;
    }
    if (state == STREAM_GIVEN_UP) {
        return MPSHM_E_GIVEN_UP;
    }
    if (STREAM_PIECES(written) == incoming->pieces) {
        return state == STREAM_GOES_ON ? -EAGAIN : MPSHM_E_STREAM; /* it was whole with the last one */
    }
    if (STREAM_PIECES(written) != incoming->pieces + 1) {
        return MPSHM_E_STREAM;
    }
    bool is_last = state == STREAM_LAST;
    int error = copy_piece(incoming, is_last);

    if (error == 0 && is_last != (incoming->have == incoming->size)) {
        error = MPSHM_E_STREAM_SIZE;
    }
    if (error != 0 || is_last) {
        return error != 0 ? error : 1;
    }
    stream_said_read(&incoming->stream, incoming->pieces);
    incoming->is_late = false;
    return 0;
}

/* The slot passes.  skips: as if the message had not been put. */
static void
pass(mpshm_incoming *incoming, bool skips)
{
    mpshm_arena *arena = incoming->arena;

    arena_lock(arena);
    if (skips) {
        ring_give_up(arena, incoming->spot);
    } else {
        ring_pass(arena, incoming->spot);
    }
    stream_end(arena, &incoming->stream);
    waiters_let_in(arena, 1);
    arena_unlock(arena);
}

/* Sleep until something has changed: -EAGAIN; or -EINTR for a signal.  *is_over: the time (INT64_MAX: any), or that of a
   watch, is over. */
static int
sleep_for_piece(mpshm_incoming *incoming, uint32_t bell, int64_t until_ns, mpshm_waiter *waiter, bool *is_over)
{
    int ms = watch_ms(incoming->arena, &waiter->watch);

    ms = until_ns == INT64_MAX ? ms : watch_shorter(ms_until(until_ns), ms);
    bool slept = ms == 0 || futex_wait(&incoming->stream.record->taker_bell, bell, ms);

    *is_over = until_ns == INT64_MAX ? watch_is_over(waiter->watch) : ms_until(until_ns) == 0;
    if (watch_is_over(waiter->watch)) {
        waiters_look_round(incoming->arena);
    }
    return slept ? -EAGAIN : -EINTR;
}

/* Wait for a piece, and copy it: as look(). */
static int
await_piece(mpshm_incoming *incoming, int64_t until_ns, mpshm_waiter *waiter)
{
    bool is_over = false;
    int result = -EAGAIN;

    while (result == -EAGAIN && !is_over) {
        uint32_t bell = atomic_load(&incoming->stream.record->taker_bell);

        result = look(incoming);
        if (result == -EAGAIN && stream_owner_is_dead(incoming->arena, &incoming->stream)) {
            result = look(incoming); /* once more, for it may have been written before the death: T4 */
            return result == -EAGAIN ? MPSHM_E_END : result;
        }
        if (result == -EAGAIN) {
            result = sleep_for_piece(incoming, bell, until_ns, waiter, &is_over);
        }
    }
    return result == -EAGAIN ? look(incoming) : result;
}

/* Until when to wait for the next piece.  INT64_MAX: one sleep. */
static int64_t
wait_until(const mpshm_incoming *incoming, int timeout_ms, int64_t until_ns)
{
    bool goes_on = timeout_ms >= 0 && !incoming->is_late;
    int64_t late_ns = goes_on ? now_ns() + LATE_NS : 0;

    return late_ns > until_ns ? late_ns : until_ns;
}

int
stream_receive(mpshm_incoming *incoming, int timeout_ms, mpshm_waiter *waiter)
{
    int64_t most_ns = timeout_ms == MPSHM_NOT_AT_ALL ? 0 : (int64_t) timeout_ms * 1000000;
    int64_t until_ns = most_ns < 0 ? INT64_MAX : now_ns() + most_ns;
    uint64_t before = incoming->have;
    int result = 0;

    while (result == 0) {
        result = look(incoming);
        if (result == -EAGAIN) {
            result = await_piece(incoming, wait_until(incoming, timeout_ms, until_ns), waiter);
        }
        if (result == 0 && most_ns < 0 && incoming->have - before >= BYTES_AT_ONCE) {
            result = -EINTR;
        }
    }
    if (result == -EAGAIN || result == -EINTR) {
        incoming->is_late |= result == -EAGAIN;
        return result;
    }
    bool skips = result == MPSHM_E_END || result == MPSHM_E_GIVEN_UP;

    pass(incoming, skips);
    return skips ? 0 : result;
}

/* Those that no thread is at, in the order of their positions. */

void
stream_park(mpshm_incoming *incoming)
{
    mpshm_arena *arena = incoming->arena;
    mpshm_incoming **link = &arena->parked;

    INVARIANT(A4, arena_is_locked(arena));
    while (*link != NULL && (*link)->turn < incoming->turn) {
        link = &(*link)->next;
    }
    incoming->next = *link;
    *link = incoming;
    atomic_store(&arena->is_parked, true);
}

mpshm_incoming *
stream_unpark(mpshm_arena *arena)
{
    mpshm_incoming *incoming;

    INVARIANT(A4, arena_is_locked(arena));
    if (arena->parked == NULL) { /* mostly; the store below would wait for all stores before it */
        return NULL;
    }
    while ((incoming = arena->parked) != NULL) {
        arena->parked = incoming->next;
        if (incoming->generation == mpshm_process.generation) {
            break;
        }
        stream_close(incoming); /* this process's parent has it */
    }
    atomic_store(&arena->is_parked, arena->parked != NULL);
    return incoming;
}

/* What this process has in hand is lost, as what a killed one has. */
void
stream_drop_parked(mpshm_arena *arena)
{
    if (arena->parked == NULL) {
        return;
    }
    arena_is_ours(arena);
    for (mpshm_incoming *incoming; (incoming = stream_unpark(arena)) != NULL;) {
        ring_pass(arena, incoming->spot);
        stream_end(arena, &incoming->stream);
        waiters_let_in(arena, 1);
        stream_close(incoming);
    }
}
