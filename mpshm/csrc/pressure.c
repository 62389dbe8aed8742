/* Pressure: what this process has in flight, and the wait for room under the high-water mark.

   Knows notes of runs, and words to compare them with.  Does not know how a run is claimed or sealed.

   Invariants: W1, W3 (invariants.h).

   Memory order: the fence in await_room pairs with the one in arena_notify (arena.c). */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "ring.h"

/* Notes kept before a full list is swept rather than grown. */
#define SENT_BEFORE_SWEEP 4096

/* A segment costs both ends 50 to 130 us in all, and saves 1 to 3 for each short message.  A pipe made
   for one answer never has one for it. */
#define SHORTS_BEFORE_SEGMENT 32u

/* Each look for strays goes over all runs, so a sender that often finds its pipe drained makes no more. */
#define STRAYS_PAUSE_NS INT64_C(100000000)

/* Messages so long are sent in a shorter time than a wake-up takes. */
#define SHORT_BYTES (UINT64_C(128) << 10)

/* Whether a short message, which the pipe could take as well, may have a segment made for it.  Never
   where its memory must be reserved first. */
bool
pressure_is_settled(mpshm_arena *arena)
{
    process_lock();
    bool settled = arena->has_claimed
                   || (!arena->bounded && arena->shorts++ >= SHORTS_BEFORE_SEGMENT);

    process_unlock();
    return settled;
}

/* Forget what has been leased since: the counters are derived, so no death can make them drift. */
static void
sweep(mpshm_arena *arena)
{
    uint32_t keep = 0;

    arena->sent_bytes = 0;
    for (uint32_t i = 0; i < arena->sent_count; i++) {
        struct sent *one = &arena->sent[i];

        if (atomic_load(&arena->segments[one->mmap_id]->runs[one->chunk_id].word) == one->word) {
            arena->sent_bytes += one->bytes;
            arena->sent[keep++] = *one;
        }
    }
    arena->sent_count = keep;
}

/* Note a run as in flight.  Without memory for the note the mark counts too little, and a sender
   waits too late: no harm to a message that is out already. */
void
pressure_note(mpshm_arena *arena, const mpshm_run *run, uint64_t word)
{
    if (arena->sent_count >= SENT_BEFORE_SWEEP && arena->sent_count == arena->sent_room) {
        sweep(arena);
    }
    if (arena->sent_count == arena->sent_room) {
        uint32_t room = arena->sent_room ? 2 * arena->sent_room : 64;
        struct sent *grown = realloc(arena->sent, room * sizeof *grown);

        if (grown == NULL) {
            return;
        }
        arena->sent = grown;
        arena->sent_room = room;
    }
    arena->sent[arena->sent_count++] = (struct sent) {run->mmap_id, run->chunk_id, word, run->capacity};
    arena->sent_bytes += run->capacity;
}

/* What was in flight when that was last looked at. */
uint64_t
pressure_in_flight(mpshm_arena *arena)
{
    process_lock();
    uint64_t bytes = arena->sent_bytes;

    process_unlock();
    return bytes;
}

/* Nobody is left to make room: the channel holds no frame, or no reader is there to take one. */
static bool
nothing_to_wait_for(mpshm_arena *arena, int fd)
{
    int unread = 1;

    if (has_hung_up(fd, POLLERR | POLLHUP | POLLNVAL)) {
        return true;
    }
    if (arena->slot_bytes != 0) {
        return !ring_is_ready(arena);
    }
#ifdef __linux__
    struct sockaddr address;
    socklen_t size = sizeof address;
    bool is_socket = getsockname(fd, &address, &size) == 0;

    if (ioctl(fd, is_socket ? TIOCOUTQ : FIONREAD, &unread) == -1) {
        unread = 1;
    }
#endif
    return unread == 0;
}

/* What is noted then is in a receiver's hand that will lease it at once, or never: one killed in between
   must not narrow the mark for good.  Its runs may be strays, so they stay noted, for no bytes. */
static void
forget_sent(mpshm_arena *arena, int fd)
{
    arena_lock(arena);
    int64_t now = now_ns();

    if (arena->slot_bytes == 0) {
        strays_pipe(arena, fd);
        if (arena->looked_ns == 0 || now - arena->looked_ns > STRAYS_PAUSE_NS) {
            arena->looked_ns = now;
            (void) strays_look(arena);
        }
    }
    for (uint32_t i = 0; i < arena->sent_count; i++) {
        arena->sent[i].bytes = 0;
    }
    sweep(arena);
    arena_unlock(arena);
}

bool
pressure_has_room(mpshm_arena *arena, uint64_t bytes, uint64_t mark)
{
    process_lock();
    if (arena->sent_bytes != 0 && arena->sent_bytes + bytes > mark) {
        sweep(arena);
    }
    bool room = arena->sent_bytes == 0 || arena->sent_bytes + bytes <= mark;
    process_unlock();
    return room;
}

/* How many of the runs in flight, the oldest first, must be leased before `bytes` more may fly.  Short
   ones wait until half the mark is free: were their sender woken at each lease, it would cost its
   receiver a wake-up per message. */
static uint32_t
leases_to_await(mpshm_arena *arena, uint64_t bytes, uint64_t mark)
{
    uint64_t most = bytes <= SHORT_BYTES ? mark / 2 : mark;
    uint32_t n = 0;

    process_lock();
    sweep(arena);
    uint64_t sent = arena->sent_bytes;

    for (uint32_t i = 0; sent != 0 && sent + bytes > most; i++) {
        sent -= arena->sent[i].bytes;
        n += arena->sent[i].bytes > 0;
    }
    process_unlock();
    return n;
}

/* Have all who wait woken after `n` leases, or sooner if another sender asked for that. */
static void
await_leases(_Atomic uint32_t *wanted, uint32_t n)
{
    uint32_t left = atomic_load(wanted);

    while ((left == 0 || left > n) && !atomic_compare_exchange_weak(wanted, &left, n)) {
    }
}

/* Have all who wait look for themselves, though the word says that nobody does: who cleared it may have been
   killed before it woke them. */
void
pressure_call_unasked(mpshm_arena *arena)
{
    _Atomic uint32_t *wanted = &arena->header->wanted;

    atomic_store(wanted, 0);
    (void) futex_wake(wanted, INT32_MAX);
}

/* The same, if it says so. */
void
pressure_call(mpshm_arena *arena)
{
    if (atomic_load(&arena->header->wanted) != 0) {
        pressure_call_unasked(arena);
    }
}

/* By the arena's identity: an end may be closed after its arena's handle, at interpreter exit or in a cycle. */
void
mpshm_call_senders(uint64_t id)
{
    process_lock();
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        if (arena->id == id) {
            pressure_call(arena);
            break;
        }
    }
    process_unlock();
}

static bool
lease_has_come(mpshm_arena *arena, const void *left)
{
    return atomic_load(&arena->header->wanted) != *(const uint32_t *) left;
}

/* Sleep until the leases that are awaited have come, or until the time or this process's watch is over.  One that
   wakes by its watch wakes the others, if there is something to see: whoever should have done it was perhaps
   killed between its lease and that. */
static void
await_room(mpshm_arena *arena, int fd, uint64_t bytes, uint64_t mark, int timeout_ms)
{
    _Atomic uint32_t *wanted = &arena->header->wanted;
    int64_t until = now_ns() + (int64_t) timeout_ms * 1000000;
    uint32_t n, left, before = 0;

    while ((n = leases_to_await(arena, bytes, mark)) != 0) {
        await_leases(wanted, n);
        left = atomic_load(wanted);
        atomic_thread_fence(memory_order_seq_cst); /* pairs with arena_notify */
        /* What is leased from here on counts down from `left`; what was before may not have. */
        if ((left == 0 || left > leases_to_await(arena, bytes, mark)) && now_ns() < until) {
            continue;
        }
        if (nothing_to_wait_for(arena, fd)) {
            forget_sent(arena, fd);
            pressure_call(arena); /* it holds for the others as well */
            return;
        }
        if (left == before || timeout_ms <= 0) {
            return; /* it stands still, or the time is over */
        }
        if (!futex_wait(wanted, left, trim_before_sleep(arena, lease_has_come, &left, ms_until(until)))) {
            return; /* a signal came */
        }
        timeout_ms = (int) ((until - now_ns()) / 1000000);
        before = left;
    }
}

int
mpshm_wait_room(mpshm_arena *arena, int fd, uint64_t bytes, uint64_t mark, int timeout_ms)
{
    if (pressure_has_room(arena, bytes, mark)) {
        return 0;
    }
    if (timeout_ms == 0) {
        await_room(arena, fd, bytes, mark, 0);
    } else {
        await_room(arena, fd, bytes, mark, watch_shorter(timeout_ms, watch_common_ms(arena)));
    }
    bool room = pressure_has_room(arena, bytes, mark);

    if (room && timeout_ms != 0 && watch_common_is_over(arena)) {
        pressure_call_unasked(arena);
    }
    return room ? 0 : -ETIMEDOUT;
}
