/* Parcels: a message on its way into chunks, and its sending through a pipe.

   Knows runs as wholes, and that a frame names them.  Does not know how runs are claimed, grown or
   sealed (sender.c), nor what a frame looks like (frame.c).

   Invariants: P1, P2, P3, P4, R2 (invariants.h).

   A part's run:   LOANED --parcel_seal--> IN_FLIGHT --the frame is out--> the receiver's
                      ^---parcel_unseal--------'--the write failed

   Memory order: parcel_seal releases the run's bytes with its word before the frame is written; the
   receiver's lease acquires them.  The parcel itself belongs to one thread at a time. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes left free behind a large first write, for the pickle's last opcodes, which follow it. */
#define STREAM_SLACK 64

mpshm_parcel *
mpshm_parcel_new(void)
{
    return calloc(1, sizeof(mpshm_parcel));
}

/* Whether the parcel has an arena, and each part lies in it.  For INVARIANT: P1, P4 */
static bool
is_well_formed(const mpshm_parcel *parcel)
{
    bool good = parcel->stream_runs <= parcel->count
                && (parcel->count == 0 || parcel->arena != NULL);

    for (uint32_t i = 0; i < parcel->count && good; i++) {
        good = parcel->parts[i].run.arena == parcel->arena;
    }
    return good && (!parcel->has_index || parcel->index.size <= parcel->index.run.capacity);
}

void
mpshm_parcel_clear(mpshm_parcel *parcel)
{
    INVARIANT(P4, is_well_formed(parcel));
    for (uint32_t i = 0; i < parcel->count; i++) {
        (void) mpshm_abandon(&parcel->parts[i].run); /* fails if this is a fork's child: not its run */
    }
    if (parcel->has_index) {
        (void) mpshm_abandon(&parcel->index.run);
    }
    parcel->count = parcel->stream_runs = 0;
    parcel->has_index = parcel->is_tracked = false;
    if (parcel->arena != NULL) {
        arena_let_go(parcel->arena);
        parcel->arena = NULL;
    }
}

void
mpshm_parcel_begin(mpshm_parcel *parcel, mpshm_arena *arena)
{
    mpshm_parcel_clear(parcel);
    arena_keep(arena);
    parcel->arena = arena;
}

void
mpshm_parcel_free(mpshm_parcel *parcel)
{
    mpshm_parcel_clear(parcel);
    free(parcel->parts);
    free(parcel);
}

/* Make room for one part more. */
static int
make_room(mpshm_parcel *parcel)
{
    if (parcel->count == parcel->room) {
        uint32_t room = parcel->room ? 2 * parcel->room : 8;
        struct part *grown = realloc(parcel->parts, room * sizeof *grown);

        if (grown == NULL) {
            return -ENOMEM;
        }
        parcel->parts = grown;
        parcel->room = room;
    }
    return 0;
}

/* Claim a run.  -EAGAIN: `mark` bytes are in flight. */
static int
claim_run(mpshm_parcel *parcel, uint64_t size, uint64_t mark, enum claim claim, mpshm_run *run)
{
    if (!pressure_has_room(parcel->arena, size, mark)) {
        return -EAGAIN;
    }
    arena_lock(parcel->arena);
    int error = run_claim(parcel->arena, size, claim, run);

    arena_unlock(parcel->arena);
    INVARIANT(P4, error != 0 || (run->arena == parcel->arena && run->capacity >= size));
    return error;
}

static struct part *
last_of_stream(mpshm_parcel *parcel)
{
    INVARIANT(P1, parcel->stream_runs > 0 && parcel->stream_runs <= parcel->count);
    return &parcel->parts[parcel->stream_runs - 1];
}

/* Add a part behind the stream's last run, before the buffers'.  P1 */
static void
add_to_stream(mpshm_parcel *parcel, struct part part)
{
    INVARIANT(P1, parcel->count < parcel->room && parcel->stream_runs <= parcel->count);
    struct part *at = &parcel->parts[parcel->stream_runs];

    memmove(at + 1, at, (parcel->count - parcel->stream_runs) * sizeof *at);
    *at = part;
    parcel->stream_runs++;
    parcel->count++;
}

int
mpshm_put_buffer(mpshm_parcel *parcel, const char *data, uint64_t size, uint64_t mark)
{
    int error = make_room(parcel);

    if (error != 0) {
        return error;
    }
    struct part *part = &parcel->parts[parcel->count];

    error = claim_run(parcel, size, mark, CLAIM_ANY, &part->run);
    if (error == 0) {
        part->size = size;
        error = mpshm_copy_in(&part->run, 0, data, size);
        if (error == 0) {
            parcel->count++;
        } else {
            (void) mpshm_abandon(&part->run);
        }
    }
    return error;
}

/* Make room for `size` bytes more: behind the stream's last run, or in a further run, which has room for
   the `more` bytes that are known to follow as well.  P3 */
static int
extend_stream(mpshm_parcel *parcel, uint64_t size, uint64_t more, uint64_t mark)
{
    uint64_t want = size + more + STREAM_SLACK;

    if (parcel->stream_runs > 0) {
        struct part *last = last_of_stream(parcel);
        INVARIANT(P4, last->size <= last->run.capacity);
        uint64_t free_bytes = last->run.capacity - last->size, grow = last->run.capacity;

        if (size <= free_bytes) {
            return 0;
        }
        if (grow < size - free_bytes) {
            grow = size - free_bytes;
        }
        if (mpshm_increase_buf(&last->run, grow, size - free_bytes) >= 0) {
            return 0;
        }
        if (want < last->run.capacity) {
            want = last->run.capacity;
        }
    }
    struct part part = {.size = 0};
    int error = parcel->stream_runs == UINT16_MAX ? -ENOSPC : make_room(parcel);

    if (error == 0) {
        error = claim_run(parcel, want, mark, CLAIM_ANY, &part.run);
    }
    if (error == 0) {
        add_to_stream(parcel, part);
    }
    return error;
}

int
mpshm_put_stream(mpshm_parcel *parcel, const char *data, uint64_t size, uint64_t more,
                 uint64_t mark)
{
    int error = extend_stream(parcel, size, more, mark);

    if (error == 0) {
        struct part *last = last_of_stream(parcel);

        INVARIANT(P4, size <= last->run.capacity - last->size);
        error = mpshm_copy_in(&last->run, last->size, data, size);
        last->size += error == 0 ? size : 0;
    }
    return error;
}

int
mpshm_parcel_read_stream(const mpshm_parcel *parcel, char *to, uint64_t size)
{
    int error = 0;

    for (uint32_t i = 0; i < parcel->stream_runs && size > 0 && error == 0; i++) {
        const struct part *part = &parcel->parts[i];
        uint64_t n = part->size < size ? part->size : size;

        error = run_copy_out(&part->run, to, n);
        to += n;
        size -= n;
    }
    return error;
}

int
mpshm_put_run(mpshm_parcel *parcel, mpshm_run *run, uint64_t size)
{
    int error = run->arena != parcel->arena ? -EINVAL : make_room(parcel);

    if (error == 0) {
        add_to_stream(parcel, (struct part) {*run, size});
    }
    return error;
}

void
mpshm_return_run(mpshm_parcel *parcel)
{
    INVARIANT(P2, parcel->count == parcel->stream_runs && !parcel->has_index);
    parcel->count = parcel->stream_runs = 0;
}

int
mpshm_settle(mpshm_parcel *parcel, uint64_t size, uint64_t mark)
{
    int error = 0;

    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if ((parcel->is_tracked || !frame_fits(parcel->arena, parcel->count, size)) && !parcel->has_index) {
        parcel->index.size = (uint64_t) parcel->count * DESCRIPTOR_BYTES + size;
        /* No receiver gets a view of an index, so small chunks will do. */
        error = claim_run(parcel, parcel->index.size, mark,
                          parcel->index.size <= SMALL_RUN_BYTES ? CLAIM_SMALL : CLAIM_ANY, &parcel->index.run);
        parcel->has_index = error == 0;
    }
    return error;
}

/* Write a frame.  EINTR and EAGAIN before its first byte are the caller's to handle. */
static int
write_frame(int fd, const char *frame, uint32_t size)
{
    uint32_t done = 0;

    while (done < size) {
        ssize_t n = write(fd, frame + done, size - done);

        if (n >= 0) {
            done += (uint32_t) n;
        } else if (done == 0 || (errno != EAGAIN && errno != EINTR)) {
            return -errno;
        } else if (errno == EAGAIN) {
            /* A frame half out must be finished.  Only a socket takes half: a pipe takes all or none. */
            struct pollfd ready = {.fd = fd, .events = POLLOUT};

            (void) poll(&ready, 1, -1);
        }
    }
    return 0;
}

/* Undo the seals of the first `count` parts and, if `index`, of the index.  No process has heard of these
   runs yet; one that a hostile peer has leased all the same is no longer ours, and sending it again fails. */
static void
unseal(mpshm_parcel *parcel, uint64_t position, uint32_t count, bool index)
{
    while (count > 0) {
        count--;
        run_unseal(&parcel->parts[count].run, position);
    }
    if (index) {
        run_unseal(&parcel->index.run, position);
    }
}

/* Make all runs the parcel's again, after parcel_seal, when the frame did not go out. */
void
parcel_unseal(mpshm_parcel *parcel, uint64_t position)
{
    INVARIANT(E1, arena_is_locked(parcel->arena));
    unseal(parcel, position, parcel->count, parcel->has_index);
}

int
parcel_seal(mpshm_parcel *parcel, uint64_t position, uint64_t *bytes)
{
    INVARIANT(E1, arena_is_locked(parcel->arena));
    INVARIANT(P4, is_well_formed(parcel));
    for (uint32_t i = 0; i < parcel->count; i++) {
        int error = run_seal(&parcel->parts[i].run, parcel->parts[i].size, position, bytes);

        if (error != 0) {
            unseal(parcel, position, i, false);
            return error;
        }
        INVARIANT(P4, parcel->parts[i].size <= parcel->parts[i].run.capacity);
    }
    int error = parcel->has_index
                    ? run_seal(&parcel->index.run, parcel->index.size, position, bytes)
                    : 0;

    if (error != 0) {
        unseal(parcel, position, parcel->count, false);
    }
    return error;
}

/* Whether any of its runs has no mapping here, so that it goes through windows. */
bool
parcel_is_unmapped(const mpshm_parcel *parcel)
{
    bool unmapped = false;

    for (uint32_t i = 0; i < parcel->count; i++) {
        unmapped = unmapped || parcel->parts[i].run.data == NULL;
    }
    return unmapped;
}

static void
part_is_out(struct part *part, uint64_t position)
{
    run_is_out(&part->run, part->size, position);
    pressure_note(part->run.arena, &part->run, run_flight_word(&part->run, position));
}

/* The words of a tracked parcel's runs in flight, its ticket's first; at a position, which says all, there is none. */
static void
note_runs(mpshm_tracking *tracking, const mpshm_parcel *parcel, uint64_t position)
{
    if (parcel->has_index) {
        tracking_add(tracking, &parcel->index.run, run_flight_word(&parcel->index.run, position));
    }
    for (uint32_t i = 0; i < parcel->count; i++) {
        tracking_add(tracking, &parcel->parts[i].run, run_flight_word(&parcel->parts[i].run, position));
    }
    tracking_begins(tracking, position);
}

int
parcel_track_room(const mpshm_parcel *parcel, mpshm_tracking *tracking)
{
    return tracking == NULL ? 0 : tracking_room(tracking, parcel->count + parcel->has_index);
}

/* The frame is out: note its runs' bytes as in flight, and empty the parcel.  The caller lets go of the
   arena.  P2 */
void
parcel_handed_over(mpshm_parcel *parcel, uint64_t position, mpshm_tracking *tracking)
{
    uint64_t size = 0;

    if (tracking != NULL) {
        note_runs(tracking, parcel, position);
    }

    INVARIANT(E1, arena_is_locked(parcel->arena));
    for (uint32_t i = 0; i < parcel->count; i++) {
        part_is_out(&parcel->parts[i], position);
        size += parcel->parts[i].size;
    }
    if (parcel->has_index) {
        part_is_out(&parcel->index, position);
    }
    parcel->arena = NULL;
    parcel->count = parcel->stream_runs = 0;
    parcel->has_index = parcel->is_tracked = false;
    heap_keep(size);
}

void
mpshm_parcel_track(mpshm_parcel *parcel, int tracked)
{
    parcel->is_tracked = tracked != 0;
}

/* tracking: or NULL. */
static int
send_parcel(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size, mpshm_tracking *tracking)
{
    char frame[MPSHM_FRAME_BYTES];
    mpshm_arena *arena = parcel->arena;

    if ((parcel->count == 0 && !parcel->is_tracked) || arena->slot_bytes != 0
        || parcel->is_tracked != (tracking != NULL) || (parcel->is_tracked && !parcel->has_index)) {
        return -EINVAL;
    }
    if (parcel_track_room(parcel, tracking) != 0) {
        return -ENOMEM;
    }
    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if (!parcel->has_index && !frame_fits(arena, parcel->count, size)) {
        return -EMSGSIZE;
    }
    uint32_t length = frame_put(frame, parcel, stream, size);

    if (length == 0) {
        return -ENOMEM;
    }
    INVARIANT(F4, length <= MPSHM_FRAME_BYTES);
    arena_lock(arena);
    strays_pipe(arena, fd);
    uint64_t bytes = 0;
    int error = parcel_seal(parcel, NO_POSITION, &bytes);
    bool unmapped = parcel_is_unmapped(parcel);

    arena_unlock(arena);
    if (error != 0) {
        return error;
    }
    error = write_frame(fd, frame, length);

    arena_lock(arena);
    if (error != 0) {
        parcel_unseal(parcel, NO_POSITION);
    } else {
        parcel_handed_over(parcel, NO_POSITION, tracking);
    }
    arena_unlock(arena);
    if (error == 0) {
        arena_let_go(arena);
        error = unmapped ? MPSHM_SENT_UNMAPPED : 0;
    }
    return error;
}

int
mpshm_send(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size)
{
    return send_parcel(parcel, fd, stream, size, NULL);
}

int
mpshm_send_tracked(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size, mpshm_tracking *tracking)
{
    return tracking == NULL ? -EINVAL : send_parcel(parcel, fd, stream, size, tracking);
}

/* The parcel lives on the stack, with one part: it ends with this call, sent or cleared. */
int
mpshm_send_copy(mpshm_arena *arena, int fd, const char *data, uint64_t size, uint64_t mark)
{
    struct part part = {.size = size};
    mpshm_parcel parcel = {.arena = arena, .parts = &part, .count = 1, .room = 1, .stream_runs = 1};
    int error = pressure_is_settled(arena) ? claim_run(&parcel, size, mark, CLAIM_IN_PLACE, &part.run) : -ENOBUFS;

    if (error == -EAGAIN) {
        return pressure_in_flight(arena) > mark + mark / 4 ? MPSHM_SEND_PLAIN : MPSHM_NO_ROOM;
    }
    if (error != 0) {
        return MPSHM_SEND_PLAIN;
    }
    memcpy(part.run.data, data, size);
    arena_keep(arena);
    error = mpshm_send(&parcel, fd, NULL, 0);
    mpshm_parcel_clear(&parcel);
    return error;
}
