/* The sender's side of a stream record: a message for which the arena has no memory becomes pieces.

     stopped --begin: a record, a position, the first piece--> under way --go: piece, piece, ...--> stopped
        ^            '-- that was all of it: stopped               |
        '-- nobody has begun to take it: taken back ---------------+
        '-- or given up -------------------------------------------'

   Nothing waits while it has a record whose message nobody can take: so those that have all records go on.

   Knows a record's words and one slot.  Does not know why there is no memory, nor what the message is.

   Invariants: A4, Q3, T1 to T3 (invariants.h).

   Memory order: see stream.c. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "queue.h"
#include "ring.h"
#include "stream.h"

/* A call returns after so much, so that its caller looks for signals. */
#define BYTES_AT_ONCE (UINT64_C(64) << 20)

mpshm_stream *
mpshm_stream_new(mpshm_arena *arena)
{
    mpshm_stream *stream = calloc(1, sizeof *stream);

    if (stream != NULL) {
        stream->arena = arena;
        arena_keep(arena);
    }
    return stream;
}

void
mpshm_stream_free(mpshm_stream *stream)
{
    if (stream != NULL) {
        (void) mpshm_stream_stop(stream, 1);
        arena_let_go(stream->arena);
        free(stream);
    }
}

static void
count_sent(const mpshm_end *end, uint64_t size)
{
    end->counts->plain_bytes += size; /* its reason is the caller's to count */
}

/* Its record is of no use any more, and no slot names it. */
static void
drop(mpshm_stream *stream)
{
    struct stream own = stream_of(stream);

    stream_free(stream->arena, &own);
    stream->is_open = 0;
}

int
mpshm_stream_begin(mpshm_stream *stream, const mpshm_end *end, const char *data, uint64_t size, mpshm_place *place)
{
    mpshm_arena *arena = end->arena;

    if (stream->is_open || stream->arena != arena) {
        return -EINVAL;
    }
    arena_lock(arena);
    int error = queue_look_at_end(end);

    if (error == 0 && !stream_claim(arena, stream)) {
        error = -EBUSY;
    } else if (error == 0) {
        stream->is_open = 1;
        stream->generation = mpshm_process.generation;
        error = queue_put_stream(end, stream, data, size, place);
        if (error < 0) {
            drop(stream);
        } else if (stream->sent == size) { /* whoever takes it frees the record */
            count_sent(end, size);
            stream->is_open = 0;
        }
    }
    int result = error == 1 ? stream->sent == size : error;

    arena_unlock(arena);
    return result;
}

void
mpshm_stream_track(const mpshm_stream *stream, mpshm_tracking *tracking)
{
    arena_lock(stream->arena);
    tracking->by_stream = true;
    tracking_begins(tracking, stream->spot);
    arena_unlock(stream->arena);
}

int
mpshm_stream_wait(mpshm_arena *arena, int timeout_ms)
{
    uint32_t bell = atomic_load(&arena->streams->freed);

    if (stream_any_free(arena)) {
        return 0;
    }
    if (timeout_ms != 0) {
        (void) futex_wait(&arena->streams->freed, bell, watch_shorter(timeout_ms, watch_common_ms(arena)));
        if (watch_common_is_over(arena)) {
            waiters_look_round(arena);
        }
    }
    (void) stream_reap(arena);
    return stream_any_free(arena) ? 0 : -EAGAIN;
}

/* Take the message back, if nobody has begun to take it. */
static bool
take_back(mpshm_stream *stream)
{
    mpshm_arena *arena = stream->arena;

    INVARIANT(A4, arena_is_locked(arena));
    if (!ring_take_back(arena, stream->spot)) {
        return false;
    }
    drop(stream);
    waiters_let_in(arena, 1);
    return true;
}

int
mpshm_stream_stop(mpshm_stream *stream, int gives_up)
{
    mpshm_arena *arena = stream->arena;
    int result = 0;

    arena_lock(arena);
    if (stream->generation != mpshm_process.generation) {
        stream->is_open = 0; /* it is this process's parent's */
    }
    if (stream->is_open && !take_back(stream)) {
        struct stream own = stream_of(stream);

        if (ring_has_passed(arena, stream->spot)) {
            drop(stream);
        } else if (gives_up) {
            stream_give_up(&own, stream->pieces);
            stream->is_open = 0;
        } else {
            result = -EBUSY;
        }
    }
    arena_unlock(arena);
    return result;
}

/* One look: 1: all has been written, or nobody is left to read it; 0: a piece more has been written; -EAGAIN: the last
   one has not been read yet.  T2, T3 */
static int
look(mpshm_stream *stream, const char *data, uint64_t size)
{
    struct stream own = stream_of(stream);

    if (stream_is_read(&own, stream->pieces)) {
        uint64_t left = size - stream->sent;
        uint32_t bytes = left < PIECE_BYTES ? (uint32_t) left : PIECE_BYTES;

        stream_write(&own, stream->pieces, data + stream->sent, bytes, bytes < left);
        stream->sent += bytes;
        stream->pieces++;
        stream->is_open = bytes < left; /* else whoever takes it frees the record */
        return bytes == left;
    }
    if (ring_has_passed(stream->arena, stream->spot)) {
        drop(stream);
        return 1;
    }
    return -EAGAIN;
}

/* Whether it is of no use to wait: 0, or the error.  What is being taken goes on. */
static int
look_at_end(mpshm_stream *stream, const mpshm_end *end)
{
    mpshm_arena *arena = stream->arena;
    int error = end->fd < 0 ? MPSHM_E_CLOSED : 0;

    if (error == 0 && ring_taker(arena, stream->spot) == 0) {
        arena_lock(arena);
        if (end->fd >= 0 && arena->receivers == 0 && has_hung_up(end->fd, POLLERR) && take_back(stream)) {
            error = -EPIPE;
        }
        arena_unlock(arena);
    }
    return error;
}

/* Wait until the last piece has been read: -EAGAIN, look again; or -EINTR, or -ETIMEDOUT, or an error. */
static int
wait(mpshm_stream *stream, const mpshm_end *end, uint32_t bell, int64_t until_ns)
{
    mpshm_arena *arena = stream->arena;
    _Atomic uint32_t *word = &stream_of(stream).record->sender_bell;
    int error = look_at_end(stream, end), ms = watch_common_ms(arena);

    if (error != 0) {
        return error;
    }
    if (arena_name_is_dead(arena, ring_taker(arena, stream->spot))) {
        (void) chain_mend(arena);
        if (ring_has_passed(arena, stream->spot)) { /* else head or tail is a stray write */
            return -EAGAIN;
        }
    }
    ms = until_ns == INT64_MAX ? ms : watch_shorter(ms_until(until_ns), ms);
    bool slept = ms == 0 || futex_wait(word, bell, ms);
    bool is_over = until_ns == INT64_MAX ? watch_common_is_over(arena) : ms_until(until_ns) == 0;

    if (watch_common_is_over(arena)) {
        waiters_look_round(arena);
    }
    return !slept ? -EINTR : is_over ? -ETIMEDOUT : -EAGAIN;
}

int
mpshm_stream_go(mpshm_stream *stream, const mpshm_end *end, const char *data, uint64_t size, int timeout_ms)
{
    int64_t until_ns = timeout_ms < 0 ? INT64_MAX : now_ns() + (int64_t) timeout_ms * 1000000;
    uint64_t before = stream->sent;
    int result = stream->is_open && stream->generation == mpshm_process.generation ? 0 : -EINVAL;

    while (result == 0 || result == -EAGAIN) {
        uint32_t bell = atomic_load(&stream_of(stream).record->sender_bell);

        result = look(stream, data, size);
        if (result == -EAGAIN) {
            result = wait(stream, end, bell, until_ns);
        }
        if (result == 0 && stream->sent - before >= BYTES_AT_ONCE) {
            result = -ETIMEDOUT;
        }
    }
    if (result == 1) {
        arena_lock(stream->arena);
        count_sent(end, size);
        arena_unlock(stream->arena);
    }
    return result == -ETIMEDOUT ? -EAGAIN : result;
}
