/* Parcels: a message on its way into chunks, and its sending.

   Knows runs as wholes and the frame that names them; their bits it leaves to sender.c.

   Invariants:
   P1  parts holds the stream's runs first, then the buffers'.
   P2  A run is the parcel's until its frame is out: then the receiver's, and the parcel is empty.
   P3  Nothing is moved: a stream that cannot grow in place goes on in a second run. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Room behind a large first write: the pickle's last opcodes, which follow it. */
#define STREAM_SLACK 64

mpshm_parcel *
mpshm_parcel_new(void)
{
    return calloc(1, sizeof(mpshm_parcel));
}

void
mpshm_parcel_clear(mpshm_parcel *parcel)
{
    for (uint32_t i = 0; i < parcel->count; i++) {
        (void) mpshm_abandon(&parcel->parts[i].run); /* refused if it is another process's */
    }
    if (parcel->has_index) {
        (void) mpshm_abandon(&parcel->index.run);
    }
    parcel->count = parcel->stream_runs = 0;
    parcel->has_index = false;
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

static int
claim(mpshm_parcel *parcel, uint64_t size, uint64_t mark, bool small, mpshm_run *run)
{
    if (!sender_has_room(parcel->arena, size, mark)) {
        return -EAGAIN;
    }
    arena_lock(parcel->arena);
    int error = sender_claim(parcel->arena, size, small, run);

    arena_unlock(parcel->arena);
    return error;
}

static struct part *
last_of_stream(mpshm_parcel *parcel)
{
    return &parcel->parts[parcel->stream_runs - 1];
}

/* P1: behind the stream's last run, before the buffers'. */
static void
add_to_stream(mpshm_parcel *parcel, struct part part)
{
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

    error = claim(parcel, size, mark, false, &part->run);
    if (error == 0) {
        part->size = size;
        parcel->count++;
        error = mpshm_copy_in(&part->run, 0, data, size);
    }
    return error;
}

/* Room for `size` bytes more behind the stream's last run, or a further run for them and the
   `more` that are known to follow.  P3 */
static int
extend_stream(mpshm_parcel *parcel, uint64_t size, uint64_t more, uint64_t mark)
{
    uint64_t want = size + more + STREAM_SLACK;

    if (parcel->stream_runs > 0) {
        struct part *last = last_of_stream(parcel);
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
        error = claim(parcel, want, mark, false, &part.run);
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

        error = mpshm_copy_in(&last->run, last->size, data, size);
        last->size += size;
    }
    return error;
}

void
mpshm_parcel_read_stream(const mpshm_parcel *parcel, char *to, uint64_t size)
{
    for (uint32_t i = 0; i < parcel->stream_runs && size > 0; i++) {
        const struct part *part = &parcel->parts[i];
        uint64_t n = part->size < size ? part->size : size;

        memcpy(to, part->run.data, n);
        to += n;
        size -= n;
    }
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
    parcel->count = parcel->stream_runs = 0;
}

int
mpshm_settle(mpshm_parcel *parcel, uint64_t size, uint64_t mark)
{
    int error = 0;

    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if (!frame_fits(parcel->arena, parcel->count, size) && !parcel->has_index) {
        parcel->index.size = (uint64_t) parcel->count * DESCRIPTOR_BYTES + size;
        /* Nobody gets a view of it. */
        error = claim(parcel, parcel->index.size, mark, parcel->index.size <= SMALL_RUN_BYTES,
                      &parcel->index.run);
        parcel->has_index = error == 0;
    }
    return error;
}

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
            /* A frame half out must be finished; sockets only, pipes write it whole. */
            struct pollfd ready = {.fd = fd, .events = POLLOUT};

            (void) poll(&ready, 1, -1);
        }
    }
    return 0;
}

/* Undo the first `count` seals and the index's.  Nobody has heard of these runs. */
static void
unseal(mpshm_parcel *parcel, uint32_t count, bool index)
{
    while (count > 0) {
        count--;
        sender_unseal(&parcel->parts[count].run, parcel->parts[count].size);
    }
    if (index) {
        sender_unseal(&parcel->index.run, parcel->index.size);
    }
}

void
parcel_unseal(mpshm_parcel *parcel)
{
    unseal(parcel, parcel->count, parcel->has_index);
}

/* Under arena_lock, like the two that end it.  Adds the bytes of its chunks to `bytes`. */
int
parcel_seal(mpshm_parcel *parcel, uint64_t *bytes)
{
    for (uint32_t i = 0; i < parcel->count; i++) {
        int error = sender_seal(&parcel->parts[i].run, parcel->parts[i].size, bytes);

        if (error != 0) {
            unseal(parcel, i, false);
            return error;
        }
    }
    int error = parcel->has_index ? sender_seal(&parcel->index.run, parcel->index.size, bytes) : 0;

    if (error != 0) {
        unseal(parcel, parcel->count, false);
    }
    return error;
}

/* P2.  The caller lets go of the arena. */
void
parcel_handed_over(mpshm_parcel *parcel)
{
    uint64_t size = 0;

    for (uint32_t i = 0; i < parcel->count; i++) {
        sender_trim(&parcel->parts[i].run, parcel->parts[i].size);
        sender_note(parcel->arena, &parcel->parts[i].run);
        size += parcel->parts[i].size;
    }
    if (parcel->has_index) {
        sender_trim(&parcel->index.run, parcel->index.size);
    }
    parcel->arena = NULL;
    parcel->count = parcel->stream_runs = 0;
    parcel->has_index = false;
    heap_keep(size);
}

int
mpshm_send(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size)
{
    char frame[MPSHM_FRAME_BYTES];
    mpshm_arena *arena = parcel->arena;

    if (parcel->count == 0 || arena->slot_bytes != 0) {
        return -EINVAL;
    }
    if (parcel->stream_runs > 0) {
        size = 0;
    }
    if (!parcel->has_index && !frame_fits(arena, parcel->count, size)) {
        return -EMSGSIZE;
    }
    uint32_t length = frame_put(frame, parcel, stream, size);

    arena_lock(arena);
    uint64_t bytes = 0;
    int error = parcel_seal(parcel, &bytes);

    arena_unlock(arena);
    if (error != 0) {
        return error;
    }
    error = write_frame(fd, frame, length);
    arena_lock(arena);
    if (error != 0) {
        parcel_unseal(parcel);
    } else {
        parcel_handed_over(parcel);
    }
    arena_unlock(arena);
    if (error == 0) {
        arena_let_go(arena);
    }
    return error;
}

/* A parcel of one run for as long as this call takes. */
int
mpshm_send_copy(mpshm_arena *arena, int fd, const char *data, uint64_t size, uint64_t mark)
{
    struct part part = {.size = size};
    mpshm_parcel parcel = {.arena = arena, .parts = &part, .count = 1, .room = 1, .stream_runs = 1};
    int error = sender_is_settled(arena) ? claim(&parcel, size, mark, false, &part.run) : -ENOBUFS;

    if (error == -EAGAIN) {
        return sender_in_flight(arena) > mark + mark / 4 ? MPSHM_SEND_PLAIN : MPSHM_NO_ROOM;
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
