/* The sender's verbs: get_buf, increase_buf, copy in, seal, abandon, and the wait for room.

   Knows runs and bytes; what a frame says it does not know.

   Invariants:
   R1  A claim is all or nothing; an increase that cannot reach its minimum leaves no trace.
   R2  Seal comes before the write to the pipe, and a failed write unseals: a run is in flight if
       and only if its frame went out.  Its tail goes back after the write, so that an unsealed run
       is what it was.
   R3  Only the process that claimed a run touches it before seal (`generation`).

   Memory order: see layout.h. */
#define _GNU_SOURCE
#include "internal.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/sockios.h>
#endif

/* Notes kept before a full list is swept rather than grown. */
#define SENT_BEFORE_SWEEP 4096

/* A segment costs both ends 50 to 130 us in all, and saves 1 to 3 for each short message.  A pipe made
   for one answer never has one for it. */
#define SHORTS_BEFORE_SEGMENT 32u

/* Messages so long are sent in a shorter time than a wake-up takes. */
#define SHORT_BYTES (UINT64_C(128) << 10)

static uint32_t
chunks_for(const struct segment *seg, uint64_t size)
{
    return (uint32_t) chunks_of(seg->shift, size);
}

static struct segment *
run_segment(const mpshm_run *run)
{
    return run->arena->segments[run->mmap_id];
}

static uint32_t
run_chunks(const mpshm_run *run)
{
    return (uint32_t) (run->capacity >> run_segment(run)->shift);
}

static bool
is_for(const struct segment *seg, bool small)
{
    return seg != NULL && seg->mine && (seg->shift < seg->arena->chunk_shift) == small;
}

static bool
try_claim(struct segment *seg, uint64_t size, mpshm_run *run)
{
    uint64_t capacity = (uint64_t) seg->count << seg->shift;
    uint32_t start;

    if (size > capacity || !freemap_try_claim(seg->map, seg->count, chunks_for(seg, size), &start)) {
        return false;
    }
    uint32_t chunks = chunks_for(seg, size);
    uint32_t tag = (RUN_TAG(atomic_load_explicit(&seg->runs[start], memory_order_relaxed)) + 1)
                   & TAG_MASK;

    atomic_store_explicit(&seg->runs[start], RUN_WORD(tag, chunks, seg->arena->me, RUN_LOANED),
                          memory_order_relaxed);
    seg->arena->loans++;
    run->arena = seg->arena;
    run->data = seg->data + ((uint64_t) start << seg->shift);
    run->capacity = (uint64_t) chunks << seg->shift;
    run->mmap_id = seg->id;
    run->chunk_id = start;
    run->tag = tag;
    run->generation = mpshm_process.generation;
    return true;
}

/* A run of at least `size` bytes, under arena_lock.  small: for what nobody gets a view of. */
int
sender_claim(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    uint32_t *hot = small ? &arena->hot_small : &arena->hot;
    struct segment *seg = arena->segments[*hot];

    if (memory_is_refused()) {
        return -ENOSPC;
    }
    small = small && arena->chunk_shift > SMALL_SHIFT;
    size = size == 0 ? 1 : size;
    if (is_for(seg, small) && try_claim(seg, size, run)) {
        return 0;
    }
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        seg = arena->segments[id];
        if (is_for(seg, small) && try_claim(seg, size, run)) {
            *hot = id;
            return 0;
        }
    }
    reap_before_growth(arena);
    do {
        /* A segment taken over from one who left may be too full: then the next. */
        int error = segment_claim_new(arena, size, small, &seg);

        if (error != 0) {
            return error;
        }
        *hot = seg->id;
    } while (!try_claim(seg, size, run));
    return 0;
}

/* Whether a short message, which the pipe could take as well, may have a segment made for it.  Never
   where a segment must be reserved whole. */
bool
sender_is_settled(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    bool settled = is_for(arena->segments[arena->hot], false)
                   || (!arena->bounded && arena->shorts++ >= SHORTS_BEFORE_SEGMENT);

    pthread_mutex_unlock(&mpshm_process.lock);
    return settled;
}

int
mpshm_get_buf(mpshm_arena *arena, uint64_t size, mpshm_run *run)
{
    arena_lock(arena);
    int error = sender_claim(arena, size, false, run);

    arena_unlock(arena);
    return error;
}

mpshm_run *
mpshm_run_new(mpshm_arena *arena)
{
    mpshm_run *run = calloc(1, sizeof *run);

    if (run != NULL) {
        arena_keep(arena);
        run->arena = arena;
    }
    return run;
}

void
mpshm_run_free(mpshm_run *run)
{
    (void) mpshm_abandon(run); /* refused when it was sent, or is another process's */
    arena_let_go(run->arena);
    free(run);
}

/* R3, and that the run is still on loan. */
static int
check_loaned(const mpshm_run *run)
{
    if (run->generation != mpshm_process.generation) {
        return MPSHM_E_FOREIGN;
    }
    uint64_t word = atomic_load_explicit(&run_segment(run)->runs[run->chunk_id],
                                         memory_order_relaxed);

    return RUN_TAG(word) == run->tag && RUN_STATE(word) == RUN_LOANED ? 0 : MPSHM_E_STATE;
}

int
mpshm_is_loaned(const mpshm_run *run)
{
    return check_loaned(run) == 0;
}

static int64_t
increase(mpshm_run *run, uint64_t size, uint64_t min_size)
{
    int error = check_loaned(run);

    if (error != 0) {
        return error;
    }
    struct segment *seg = run_segment(run);
    uint32_t chunks = run_chunks(run);
    uint32_t end = run->chunk_id + chunks;
    uint64_t room = (uint64_t) (seg->count - end) << seg->shift;
    uint32_t want = chunks_for(seg, size < room ? size : room);
    uint32_t got = 0;

    if (want > 0 && !memory_is_refused()) {
        got = freemap_claim_from(seg->map, seg->count, end, want);
    }

    if (((uint64_t) got << seg->shift) < min_size) {
        freemap_put_back(seg->map, end, got); /* R1 */
        return -ENOSPC;
    }
    atomic_store_explicit(&seg->runs[run->chunk_id],
                          RUN_WORD(run->tag, chunks + got, seg->arena->me, RUN_LOANED),
                          memory_order_relaxed);
    run->capacity += (uint64_t) got << seg->shift;
    return (int64_t) ((uint64_t) got << seg->shift);
}

int64_t
mpshm_increase_buf(mpshm_run *run, uint64_t size, uint64_t min_size)
{
    arena_lock(run->arena);
    int64_t result = increase(run, size, min_size);

    arena_unlock(run->arena);
    return result;
}

int
mpshm_copy_in(mpshm_run *run, uint64_t offset, const char *source, uint64_t size)
{
    struct segment *seg = run_segment(run);

    if (offset > run->capacity || size > run->capacity - offset) {
        return -EINVAL;
    }
    if (size >= HUGE_BYTES) {
        segment_warm(seg, (uint64_t) (run->data - seg->data) + offset, size);
    }
    memcpy(run->data + offset, source, size);
    return 0;
}

int
sender_abandon(mpshm_run *run)
{
    int error = check_loaned(run);

    if (error == 0) {
        lease_drop_run(run_segment(run), run->chunk_id, run_chunks(run));
        run->arena->loans--;
    }
    return error;
}

int
mpshm_abandon(mpshm_run *run)
{
    /* Asked before entering: a run that is another process's must not make us a peer. */
    if (run->generation != mpshm_process.generation) {
        return MPSHM_E_FOREIGN;
    }
    arena_lock(run->arena);
    int error = sender_abandon(run);

    arena_unlock(run->arena);
    return error;
}

/* LOANED -> IN_FLIGHT with the chunks that `size` bytes need.  The others stay lent, so that
   sender_unseal finds them; sender_trim gives them back.  Adds the others' bytes to `bytes`. */
int
sender_seal(mpshm_run *run, uint64_t size, uint64_t *bytes)
{
    int error = check_loaned(run);
    struct segment *seg = error == 0 ? run_segment(run) : NULL;

    if (error == 0 && (size == 0 || size > run->capacity)) {
        error = -EINVAL;
    }
    if (error == 0) {
        atomic_store_explicit(&seg->runs[run->chunk_id],
                              RUN_WORD(run->tag, chunks_for(seg, size), slack_of(seg->shift, size),
                                       RUN_IN_FLIGHT),
                              memory_order_release);
        run->arena->loans--;
        *bytes += (uint64_t) chunks_for(seg, size) << seg->shift;
    }
    return error;
}

void
sender_unseal(mpshm_run *run, uint64_t size)
{
    struct segment *seg = run_segment(run);
    uint64_t was = RUN_WORD(run->tag, chunks_for(seg, size), slack_of(seg->shift, size),
                            RUN_IN_FLIGHT);
    bool back = atomic_compare_exchange_strong(&seg->runs[run->chunk_id], &was,
                                               RUN_WORD(run->tag, run_chunks(run),
                                                        run->arena->me, RUN_LOANED));

    run->arena->loans++;
    assert(back && "R2: a frame that did not go out was received");
    (void) back;
}

/* Give back the chunks behind a sealed run's `size` bytes.  The receiver may have freed the run. */
void
sender_trim(mpshm_run *run, uint64_t size)
{
    struct segment *seg = run_segment(run);
    uint32_t keep = chunks_for(seg, size), chunks = run_chunks(run);

    run->capacity = (uint64_t) keep << seg->shift;
    freemap_put_back(seg->map, run->chunk_id + keep, chunks - keep);
}

int
mpshm_seal(mpshm_run *run, uint64_t size)
{
    arena_lock(run->arena);
    uint64_t bytes = 0;
    int error = sender_seal(run, size, &bytes);

    if (error == 0) {
        sender_trim(run, size);
    }
    arena_unlock(run->arena);
    return error;
}

/* Forget what has been leased since: the counters are derived, so no death can make them drift. */
static void
sweep(mpshm_arena *arena)
{
    uint32_t keep = 0;

    arena->sent_bytes = 0;
    for (uint32_t i = 0; i < arena->sent_count; i++) {
        struct sent *one = &arena->sent[i];
        uint64_t word = atomic_load(&arena->segments[one->mmap_id]->runs[one->chunk_id]);

        if (RUN_TAG(word) == one->tag && RUN_STATE(word) == RUN_IN_FLIGHT) {
            arena->sent_bytes += one->bytes;
            arena->sent[keep++] = *one;
        }
    }
    arena->sent_count = keep;
}

/* Note a run as in flight.  Without memory for the note the mark counts too little, and a sender
   waits too late: no harm to a message that is out already. */
void
sender_note(mpshm_arena *arena, const mpshm_run *run)
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
    arena->sent[arena->sent_count++] = (struct sent) {
        run->mmap_id, run->chunk_id, run->tag, run->capacity};
    arena->sent_bytes += run->capacity;
}

/* What was in flight when that was last looked at. */
uint64_t
sender_in_flight(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    uint64_t bytes = arena->sent_bytes;

    pthread_mutex_unlock(&mpshm_process.lock);
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

    if (ioctl(fd, is_socket ? SIOCOUTQ : FIONREAD, &unread) == -1) {
        unread = 1;
    }
#endif
    return unread == 0;
}

/* What is noted then is in a receiver's hand that will lease it at once, or never: one killed in between
   must not narrow the mark for good. */
static void
forget_sent(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    arena->sent_count = 0;
    arena->sent_bytes = 0;
    pthread_mutex_unlock(&mpshm_process.lock);
}

bool
sender_has_room(mpshm_arena *arena, uint64_t bytes, uint64_t mark)
{
    pthread_mutex_lock(&mpshm_process.lock);
    if (arena->sent_bytes != 0 && arena->sent_bytes + bytes > mark) {
        sweep(arena);
    }
    bool room = arena->sent_bytes == 0 || arena->sent_bytes + bytes <= mark;
    pthread_mutex_unlock(&mpshm_process.lock);
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

    pthread_mutex_lock(&mpshm_process.lock);
    sweep(arena);
    for (uint64_t sent = arena->sent_bytes; sent != 0 && sent + bytes > most; n++) {
        sent -= arena->sent[n].bytes;
    }
    pthread_mutex_unlock(&mpshm_process.lock);
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

int
mpshm_wait_room(mpshm_arena *arena, int fd, uint64_t bytes, uint64_t mark, int timeout_ms)
{
    if (sender_has_room(arena, bytes, mark)) {
        return 0;
    }
    if (nothing_to_wait_for(arena, fd)) {
        forget_sent(arena);
        return 0;
    }
    _Atomic uint32_t *wanted = &arena->header->wanted;
    int64_t until = now_ns() + (int64_t) timeout_ms * 1000000;
    uint32_t n, left, before = 0;

    while ((n = leases_to_await(arena, bytes, mark)) != 0) {
        await_leases(wanted, n);
        left = atomic_load(wanted);
        atomic_thread_fence(memory_order_seq_cst); /* pairs with arena_notify */
        /* What is leased from here on counts down from `left`; what was before may not have. */
        if (left == 0 || left > leases_to_await(arena, bytes, mark)) {
            continue;
        }
        if (left == before || timeout_ms <= 0) {
            break; /* it stands still: a signal came, or the time is over */
        }
        futex_wait(wanted, left, timeout_ms);
        timeout_ms = (int) ((until - now_ns()) / 1000000);
        before = left;
    }
    return sender_has_room(arena, bytes, mark) ? 0 : -ETIMEDOUT;
}
