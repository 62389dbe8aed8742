/* Frames: how descriptors lie in a pipe or in a slot, and a reader of them.

   Knows bytes and leases.  Does not know a run's state, and trusts no frame: it checks each field.

   A plain message is the stock module's frame.  A descriptor frame has the sign bit set in its
   length word (stock uses that for -1 alone) and is at most MPSHM_FRAME_BYTES long, so that a pipe
   takes it in one piece or not at all:

       length word  big-endian 32    0x80000000 | bytes that follow
       flags        16               1: the one descriptor names an index, the run of all the others;
                                     2: and behind them the index holds the stream
                                     8: the index is a ticket (tracking.c); it may hold a stream and no descriptor
       stream runs  16               how many descriptors, the first, hold the message's stream
       buffer runs  32               how many after them hold a buffer each
       descriptors  20 each          mmap_id 32, chunk_id 32, size in bytes 64, tag 32
       stream       the rest         when no run holds it

   In a queue a descriptor frame has at most MPSHM_SLOT_BYTES, and is filled up to that (queue_put.c).  There, one
   whose message found no memory names a stream record in place of runs (stream.c):

       length word, flags            as above; flags 4
       number       16               of the record
       generation   32               of the record
       size         64               of the message in bytes

   Invariants: F1 to F5 (invariants.h).

   A reader:   empty --read--> part of a frame --read--> whole --its receiver clears `full`--> empty

   An end that does not know its arena reads no more of a descriptor frame than its length word, so the rest
   shows in the pipe that the frame has not been taken (strays.c).

   Memory order: a lease acquires what the run's seal released (layout.h); the pipe orders all else. */
#define _GNU_SOURCE
#include "internal.h"

#include <arpa/inet.h>
#ifdef __APPLE__
#include <libkern/OSByteOrder.h>
#define be64toh(x) OSSwapBigToHostInt64(x)
#else
#include <endian.h>
#endif
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nowait.h"

#define SIGN UINT32_C(0x80000000)
#define LENGTH_BYTES 4
#define HEAD_BYTES 8
#define INDEX 1
#define STREAM_IN_INDEX 2
#define THROUGH_RECORD 4
#define TRACKED 8

/* A process that has asked a question spins longer, by this part of the usual time: as long as the other
   side needs to unpickle a question of 16 KiB and to pickle its answer (measured, objects: a round trip
   x1.0 of stock without, x1.6 with).  It has nothing else to do, and a wake-up is half of what it waits.
   A receiver of a slow sender's stream would gain a twentieth, so it does not spin longer. */
#define ANSWER_MORE 3 / 2

/* Whether a frame with so many descriptors and bytes of stream fits its pipe or its slot.  F4 */
bool
frame_fits(const mpshm_arena *arena, uint64_t descriptors, uint64_t stream_size)
{
    return LENGTH_BYTES + HEAD_BYTES + descriptors * DESCRIPTOR_BYTES + stream_size
           <= (arena->slot_bytes ? arena->slot_bytes : MPSHM_FRAME_BYTES);
}

static char *
put_descriptor(char *at, const struct part *part)
{
    memcpy(at, &part->run.mmap_id, 4);
    memcpy(at + 4, &part->run.chunk_id, 4);
    memcpy(at + 8, &part->size, 8);
    memcpy(at + 16, &part->run.tag, 4);
    return at + DESCRIPTOR_BYTES;
}

/* All descriptors, and the stream that no run holds: the end of what was written. */
static char *
put_table(char *at, const mpshm_parcel *parcel, const char *stream, uint64_t stream_size)
{
    for (uint32_t i = 0; i < parcel->count; i++) {
        at = put_descriptor(at, &parcel->parts[i]);
    }
    if (stream_size > 0) {
        memcpy(at, stream, stream_size);
        at += stream_size;
    }
    return at;
}

/* The same into the index: false, if that can be neither mapped nor seen. */
static bool
put_index(const mpshm_parcel *parcel, const char *stream, uint64_t stream_size)
{
    const mpshm_run *run = &parcel->index.run;
    struct window window = {.data = run->data};
    struct segment *seg = parcel->arena->segments[run->mmap_id];

    if (run->data == NULL
        && !window_open(seg, (uint64_t) run->chunk_id << seg->shift, parcel->index.size, &window)) {
        return false;
    }
    char *end = put_table(window.data, parcel, stream, stream_size);

    INVARIANT(F4, (uint64_t) (end - window.data) == parcel->index.size);
    (void) end;
    if (run->data == NULL) {
        window_close(&window);
    }
    return true;
}

/* Write the frame, and the index if there is one.  Gives the frame's bytes; 0, if there is no address space for the
   index.  It must fit.  F4 */
uint32_t
frame_put(char *frame, const mpshm_parcel *parcel, const char *stream, uint64_t stream_size)
{
    INVARIANT(P1, parcel->stream_runs <= parcel->count && parcel->stream_runs <= UINT16_MAX);
    INVARIANT(F4, parcel->has_index || frame_fits(parcel->arena, parcel->count, stream_size));
    uint16_t flags = !parcel->has_index ? 0 : stream_size > 0 ? INDEX | STREAM_IN_INDEX : INDEX;
    uint16_t head[2] = {parcel->is_tracked ? flags | TRACKED : flags, (uint16_t) parcel->stream_runs};
    uint32_t buffer_runs = parcel->count - parcel->stream_runs;
    char *at = frame + LENGTH_BYTES + HEAD_BYTES;

    memcpy(frame + LENGTH_BYTES, head, 4);
    memcpy(frame + LENGTH_BYTES + 4, &buffer_runs, 4);
    if (!parcel->has_index) {
        at = put_table(at, parcel, stream, stream_size);
    } else if (put_index(parcel, stream, stream_size)) {
        at = put_descriptor(at, &parcel->index);
    } else {
        return 0;
    }
    uint32_t size = (uint32_t) (at - frame);

    INVARIANT(F4, size <= MPSHM_FRAME_BYTES && (!parcel->has_index || frame_fits(parcel->arena, 1, 0)));
    uint32_t length = htonl(SIGN | (size - LENGTH_BYTES));

    memcpy(frame, &length, 4);
    return size;
}

#define STREAM_FRAME_BYTES 20

/* Write the frame of a message that goes through a stream record. */
void
frame_put_stream(char *frame, const struct stream_name *stream)
{
    uint32_t length = htonl(SIGN | (STREAM_FRAME_BYTES - LENGTH_BYTES));
    uint16_t head[2] = {THROUGH_RECORD, (uint16_t) stream->number};

    memcpy(frame, &length, 4);
    memcpy(frame + LENGTH_BYTES, head, 4);
    memcpy(frame + LENGTH_BYTES + 4, &stream->generation, 4);
    memcpy(frame + LENGTH_BYTES + 8, &stream->size, 8);
}

/* Whether a queue's frame names a stream record: which. */
bool
frame_stream(const unsigned char *frame, struct stream_name *stream)
{
    uint32_t length;
    uint16_t head[2];

    memcpy(&length, frame, 4);
    memcpy(head, frame + LENGTH_BYTES, 4);
    if (ntohl(length) != (SIGN | (STREAM_FRAME_BYTES - LENGTH_BYTES)) || head[0] != THROUGH_RECORD) {
        return false;
    }
    stream->number = head[1];
    memcpy(&stream->generation, frame + LENGTH_BYTES + 4, 4);
    memcpy(&stream->size, frame + LENGTH_BYTES + 8, 8);
    return true;
}

/* How many bytes to have before the frame is whole, by its length word: for -1, with the 8 bytes of
   length that follow.  A plain body longer than body_max stays in the pipe, unless its reading has
   begun. */
static uint32_t
bytes_needed(const mpshm_reader *reader, uint32_t word, uint32_t body_max)
{
    if (reader->have < LENGTH_BYTES) {
        return LENGTH_BYTES;
    }
    if (word == UINT32_MAX) {
        return LENGTH_BYTES + 8;
    }
    if (word < SIGN && word > body_max && reader->have == LENGTH_BYTES) {
        return LENGTH_BYTES;
    }
    return LENGTH_BYTES + (word & ~SIGN);
}

/* The frame is whole: what mpshm_receive answers.  The reader is empty then. */
static int
whole_frame(mpshm_reader *reader, uint32_t word)
{
    uint32_t have = reader->have;

    reader->have = 0;
    if (word == UINT32_MAX) {
        memcpy(&reader->body_size, reader->bytes + LENGTH_BYTES, 8);
        reader->body_size = be64toh(reader->body_size);
        return MPSHM_LONG;
    }
    if (word >= SIGN) {
        return (int) (have + MPSHM_DESCRIPTORS);
    }
    if (have == LENGTH_BYTES && word > 0) {
        reader->body_size = word;
        return MPSHM_LONG;
    }
    return (int) have;
}

/* Read a frame's first bytes, spinning where that pays.  The first look is the read itself, so a message
   that is there already costs one system call. */
static ssize_t
read_first(mpshm_reader *reader, int fd, uint32_t need)
{
#ifdef RWF_NOWAIT
    if (spin_may_block(&reader->spin)) {
        return read(fd, reader->bytes, need);
    }
    struct iovec to = {reader->bytes, need};
    ssize_t n = preadv2(fd, &to, 1, -1, RWF_NOWAIT);

    if (n >= 0 || errno != EAGAIN) {
        reader->spin.busy++;
        return n >= 0 || errno != EOPNOTSUPP ? n : read(fd, reader->bytes, need);
    }
    int64_t until = spin_begin(&reader->spin, false);

    if (until != 0 && reader->asked) {
        until += reader->spin.ns * ANSWER_MORE;
    }
    while (spin_goes_on(until)) {
        sched_yield();
        n = preadv2(fd, &to, 1, -1, RWF_NOWAIT);
        if (n >= 0 || errno != EAGAIN) {
            spin_end(&reader->spin, until, true);
            return n;
        }
    }
    spin_end(&reader->spin, until, false);
    if (until != 0) {
        errno = EINTR; /* a signal during the spin interrupted no call: have the caller look for it */
        return -1;
    }
#endif
    return read(fd, reader->bytes, need);
}

/* Read until a frame is whole: what mpshm_receive answers, without its leases.  knows: the arena; or stop at a
   descriptor frame's length word.  F1, F2 */
int
frame_read(mpshm_reader *reader, int fd, uint32_t body_max, bool knows)
{
    if (body_max > MPSHM_READER_BYTES - LENGTH_BYTES) {
        body_max = MPSHM_READER_BYTES - LENGTH_BYTES;
    }
    for (;;) {
        uint32_t word = 0, need;

        if (reader->have >= LENGTH_BYTES) {
            memcpy(&word, reader->bytes, sizeof word);
            word = ntohl(word);
        }
        need = bytes_needed(reader, word, body_max);
        if (word >= SIGN && need > MPSHM_FRAME_BYTES) {
            reader->have = 0;
            return MPSHM_E_LENGTH;
        }
        if (reader->have == need) {
            return whole_frame(reader, word);
        }
        INVARIANT(F1, reader->have < need);
        if (!knows && word >= SIGN && word != UINT32_MAX) {
            return MPSHM_E_NO_ARENA;
        }
        INVARIANT(F5, need <= MPSHM_READER_BYTES);
        ssize_t n = reader->have == 0 ? read_first(reader, fd, need)
                                      : read(fd, reader->bytes + reader->have, need - reader->have);

        if (n == 0) {
            bool torn = reader->have > 0;

            reader->have = 0;
            return torn ? MPSHM_E_TORN : 0;
        }
        if (n < 0) {
            return -errno;
        }
        reader->have += (uint32_t) n;
        INVARIANT(F1, reader->have <= need);
    }
}

static mpshm_descriptor
get_descriptor(const unsigned char *at)
{
    mpshm_descriptor d;

    memcpy(&d.mmap_id, at, 4);
    memcpy(&d.chunk_id, at + 4, 4);
    memcpy(&d.size, at + 8, 8);
    memcpy(&d.tag, at + 16, 4);
    return d;
}

/* Whether a tracked message's frame is at the beginning of so many bytes of a pipe: its ticket, and the frame's size. */
bool
frame_ticket(const unsigned char *frame, uint64_t have, mpshm_descriptor *ticket, uint64_t *size)
{
    struct frame_head head;
    uint32_t length;

    if (have < LENGTH_BYTES + HEAD_BYTES + DESCRIPTOR_BYTES) {
        return false;
    }
    memcpy(&length, frame, LENGTH_BYTES);
    length = ntohl(length);
    *size = LENGTH_BYTES + (uint64_t) (length & ~SIGN);
    if (length < SIGN || *size > have || frame_head(frame, &head) != 0 || !head.tracked) {
        return false;
    }
    *ticket = get_descriptor(frame + head.descriptors);
    return true;
}

/* Parse a descriptor frame's head, checking it against the frame's length: 0, or MPSHM_E_...  F5 */
int
frame_head(const unsigned char *frame, struct frame_head *head)
{
    uint32_t length;
    uint16_t halves[2];

    memcpy(&length, frame, 4);
    length = ntohl(length) & ~SIGN;
    if (length < HEAD_BYTES) {
        return MPSHM_E_HEAD;
    }
    memcpy(halves, frame + LENGTH_BYTES, 4);
    memcpy(&head->buffer_runs, frame + LENGTH_BYTES + 4, 4);
    head->tracked = (halves[0] & TRACKED) != 0;
    halves[0] &= (uint16_t) ~TRACKED;
    if ((halves[0] != 0 || head->tracked) && halves[0] != INDEX && halves[0] != (INDEX | STREAM_IN_INDEX)) {
        return MPSHM_E_FLAG;
    }
    head->indexed = (halves[0] & INDEX) != 0;
    head->stream_in_index = (halves[0] & STREAM_IN_INDEX) != 0;
    head->stream_runs = halves[1];

    uint64_t count = (uint64_t) head->stream_runs + head->buffer_runs;
    uint64_t named = head->indexed ? 1 : count;
    bool has_none = count == 0 && !(head->tracked && head->stream_in_index); /* nor a stream in a ticket */

    if (has_none || count > UINT32_MAX || HEAD_BYTES + named * DESCRIPTOR_BYTES > length) {
        return MPSHM_E_COUNT;
    }
    head->descriptors = LENGTH_BYTES + HEAD_BYTES;
    head->stream = (uint32_t) (head->descriptors + named * DESCRIPTOR_BYTES);
    head->end = LENGTH_BYTES + length;
    if (((head->indexed || head->stream_runs > 0) && head->stream != head->end)
        || (head->stream_in_index && head->stream_runs > 0)) {
        return MPSHM_E_EXTRA;
    }
    INVARIANT(F5, head->descriptors <= head->stream && head->stream <= head->end);
    return 0;
}

/* Lease the run of the descriptor at `at`.  A failure leaves the descriptor in `bad`.  Under arena_lock,
   as the next two. */
int
frame_lease_one(mpshm_arena *arena, uint64_t position, const unsigned char *at, mpshm_held *run,
                mpshm_descriptor *bad)
{
    INVARIANT(E1, arena_is_locked(arena));
    mpshm_descriptor d = get_descriptor(at);
    int error = lease_run(arena, &d, position, run);

    INVARIANT(F3, (error == 0) == (run->data != NULL));
    if (error != 0) {
        *bad = d;
    }
    return error;
}

/* The same of an index, whose bytes are there then. */
int
frame_lease_index(mpshm_arena *arena, uint64_t position, const unsigned char *at, mpshm_held *run,
                  mpshm_descriptor *bad)
{
    int error = frame_lease_one(arena, position, at, run, bad);

    if (error == 0 && run->copied != 0) {
        error = lease_read_now(run);
        if (error != 0) {
            release_run(run->data);
            run->data = NULL;
        }
    }
    return error;
}

/* Copy a run's bytes and release it: 0, MPSHM_COPIED_UNMAPPED, or the error.  -EMSGSIZE: it has more than `most`, and
   is untouched. */
int
frame_copy_one(mpshm_arena *arena, uint64_t position, const unsigned char *at, char *to,
               uint64_t most, uint64_t *size, mpshm_descriptor *bad)
{
    INVARIANT(E1, arena_is_locked(arena));
    mpshm_descriptor d = get_descriptor(at);

    if (d.size > most) {
        return -EMSGSIZE;
    }
    int error = lease_copy(arena, &d, position, to);

    *size = d.size;
    if (error < 0) {
        *bad = d;
    }
    return error;
}

/* Lease `count` runs to `to`, or none: after a failure the others go back as well, for their message
   cannot be had.  F3 */
int
frame_lease_all(mpshm_arena *arena, uint64_t position, const unsigned char *table,
                uint32_t count, mpshm_held *to, mpshm_descriptor *bad)
{
    int first_error = 0;
    uint32_t have = 0;

    for (uint32_t i = 0; i < count; i++) {
        mpshm_held run;
        mpshm_descriptor this_one;
        int error = frame_lease_one(arena, position, table + (uint64_t) i * DESCRIPTOR_BYTES, &run,
                                    &this_one);

        if (error == 0) {
            to[have++] = run;
        } else if (first_error == 0) {
            first_error = error;
            *bad = this_one;
        }
    }
    INVARIANT(F3, first_error != 0 || have == count);
    while (first_error != 0 && have > 0) {
        release_run(to[--have].data);
    }
    return first_error;
}

/* Bring the bytes of those of the runs that are copied.  The error, or why the first of them is; 0: none is.
   Under no lock. */
int
frame_read_copied(const mpshm_held *runs, uint32_t count)
{
    int why = 0;

    for (uint32_t i = 0; i < count; i++) {
        int error = runs[i].copied != 0 ? lease_read(&runs[i]) : 0;

        if (error != 0) {
            return error;
        }
        why = why != 0 ? why : (int) runs[i].copied;
    }
    return why;
}

/* Release the runs that were not taken over.  Under no lock. */
void
mpshm_discard(mpshm_reader *reader)
{
    while (reader->count > 0) {
        mpshm_release(reader->runs[--reader->count].data);
    }
    free(reader->runs);
    reader->runs = NULL;
    reader->full = 0;
}

/* How many bytes of stream an index holds behind its descriptors: 0, or MPSHM_E_...  F5 */
int
frame_index(const struct frame_head *head, uint64_t index_size, uint64_t most, uint64_t *stream)
{
    uint64_t count = (uint64_t) head->stream_runs + head->buffer_runs, table = count * DESCRIPTOR_BYTES;

    if (index_size < table || head->stream_in_index != (index_size > table)) {
        return MPSHM_E_INDEX;
    }
    if (count > (uint64_t) SEGMENT_LIMIT * CHUNK_LIMIT) {
        return MPSHM_E_COUNT; /* no arena has so many runs, and looking for each takes minutes */
    }
    *stream = index_size - table;
    return *stream > most ? MPSHM_E_EXTRA : 0;
}

/* Lease the runs that the reader's frame names, all or none.  F3 */
static int
lease_frame(mpshm_reader *reader, mpshm_arena *arena, const struct frame_head *head)
{
    const unsigned char *table = reader->bytes + head->descriptors;
    uint32_t count = head->stream_runs + head->buffer_runs;
    mpshm_held index = {.data = NULL};
    uint64_t stream_size = 0;
    int error = 0;

    if (head->indexed) {
        error = frame_lease_index(arena, NO_POSITION, table, &index, &reader->bad);
        if (head->tracked) {
            mpshm_descriptor ticket = get_descriptor(table);

            error = error != 0 && lease_drop_cancelled(arena, &ticket) ? MPSHM_E_CANCELLED : error;
            tracking_tell(arena); /* the lease has decided whose it is */
        }
        table = (unsigned char *) index.data;
        if (error == 0) {
            error = frame_index(head, index.size, MPSHM_READER_BYTES - LENGTH_BYTES, &stream_size);
        }
    }
    if (error == 0) {
        reader->runs = calloc(count > 0 ? count : 1, sizeof *reader->runs);
        error = reader->runs == NULL
                    ? -ENOMEM
                    : frame_lease_all(arena, NO_POSITION, table, count, reader->runs,
                                      &reader->bad);
    }
    if (error == 0) {
        reader->count = count;
        reader->stream_runs = head->stream_runs;
        reader->stream_at = head->indexed ? LENGTH_BYTES : head->stream;
        reader->stream_end = head->indexed ? LENGTH_BYTES + (uint32_t) stream_size : head->end;
        INVARIANT(F5, reader->stream_at <= reader->stream_end
                          && reader->stream_end <= MPSHM_READER_BYTES);
        if (stream_size > 0) {
            memcpy(reader->bytes + LENGTH_BYTES, index.data + (index.size - stream_size),
                   stream_size);
        }
    } else {
        free(reader->runs);
        reader->runs = NULL;
    }
    if (index.data != NULL) {
        release_run(index.data);
    }
    return error;
}

/* Copy the stream of a frame that names nothing else to where a plain frame's body would be.  -EMSGSIZE:
   there is more, or it is longer than copy_max. */
static int
copy_frame(mpshm_reader *reader, mpshm_arena *arena, const struct frame_head *head,
           uint32_t copy_max)
{
    const uint32_t room = MPSHM_READER_BYTES - LENGTH_BYTES;
    uint64_t size;

    if (head->indexed || head->stream_runs != 1 || head->buffer_runs != 0) {
        return -EMSGSIZE;
    }
    int error = frame_copy_one(arena, NO_POSITION, reader->bytes + head->descriptors,
                               (char *) reader->bytes + LENGTH_BYTES,
                               copy_max < room ? copy_max : room, &size, &reader->bad);

    if (error > 0) {
        reader->copied = (uint32_t) error;
        error = 0;
    }
    if (error == 0) {
        reader->stream_runs = 0;
        reader->stream_at = LENGTH_BYTES;
        reader->stream_end = LENGTH_BYTES + (uint32_t) size;
        INVARIANT(F5, reader->stream_end <= MPSHM_READER_BYTES);
    }
    return error;
}

/* Open the frame just read from `fd`, or from one not known any more: copy and free its only run if that is short, else lease all its runs, or
   none. */
int
frame_open(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t copy_max)
{
    struct frame_head head;
    int error = frame_head(reader->bytes, &head);

    if (error != 0 || arena == NULL) { /* without an arena only an empty frame comes so far */
        return error != 0 ? error : MPSHM_E_NO_ARENA;
    }
    reader->copied = 0;
    arena_lock(arena);
    if (fd >= 0) {
        strays_pipe(arena, fd);
    }
    error = copy_frame(reader, arena, &head, copy_max);
    if (error == -EMSGSIZE) {
        error = lease_frame(reader, arena, &head);
    }
    arena_unlock(arena);
    int why = error == 0 ? frame_read_copied(reader->runs, reader->count) : 0;

    if (why > 0) {
        reader->copied = (uint32_t) why;
    } else if (why < 0) {
        error = why;
        mpshm_discard(reader);
    }
    uint64_t size = 0;

    for (uint32_t i = 0; i < reader->count; i++) {
        size += reader->runs[i].size;
    }
    heap_keep(size);
    return error;
}

mpshm_reader *
mpshm_reader_new(uint32_t spin_us)
{
    mpshm_reader *reader = malloc(sizeof *reader);

    if (reader != NULL) {
        /* `bytes` is not touched, so its pages are not resident before a message needs them. */
        memset(reader, 0, offsetof(mpshm_reader, bytes));
        spin_init(&reader->spin, spin_us);
    }
    return reader;
}

/* It has no frame in hand any more. */
static void
comes_out(mpshm_reader *reader, mpshm_arena *arena)
{
    mpshm_arena *told = reader->told != NULL ? reader->told : arena;

    if (reader->inside == mpshm_process.generation && told != NULL) {
        strays_inside(told, false);
    }
    reader->inside = 0;
    if (reader->told != NULL) {
        arena_let_go(reader->told);
        reader->told = NULL;
    }
}

/* Part of a frame that it has is lost, as what a killed process had in hand. */
void
mpshm_reader_free(mpshm_reader *reader)
{
    mpshm_discard(reader);
    comes_out(reader, NULL);
    free(reader);
}

static bool
has_input(mpshm_arena *arena, const void *fd)
{
    struct pollfd end = {.fd = *(const int *) fd, .events = POLLIN};

    (void) arena;
    return poll(&end, 1, 0) != 0;
}

/* Read up to `size` bytes into the reader without waiting: whether they all came. */
static bool
read_now(mpshm_reader *reader, int fd, uint32_t size)
{
    ssize_t n = recv(fd, reader->bytes + reader->have, size, MSG_DONTWAIT);

#ifdef RWF_NOWAIT
    if (n == -1 && errno == ENOTSOCK) {
        struct iovec to = {reader->bytes + reader->have, size};

        n = preadv2(fd, &to, 1, -1, RWF_NOWAIT);
    }
#endif
    reader->have += n > 0 ? (uint32_t) n : 0;
    return n == (ssize_t) size;
}

/* Read the frame of a message that was taken back.  Any other, which another process's read has put in its place since
   the look, stays in the reader.  F1 */
static bool
pass_over_one(mpshm_reader *reader, int fd, mpshm_arena *arena)
{
    const uint32_t rest = HEAD_BYTES + DESCRIPTOR_BYTES;
    mpshm_descriptor ticket;
    uint64_t size;
    uint32_t word;
    bool passed = false;

    if (read_now(reader, fd, LENGTH_BYTES)) {
        memcpy(&word, reader->bytes, sizeof word);
        if (ntohl(word) == (SIGN | rest) && read_now(reader, fd, rest)
            && frame_ticket(reader->bytes, reader->have, &ticket, &size)) {
            arena_lock(arena);
            passed = lease_drop_cancelled(arena, &ticket);
            arena_unlock(arena);
        }
    }
    reader->have = passed ? 0 : reader->have;
    return passed;
}

void
mpshm_pass_over(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t count)
{
    if (reader->full || reader->have != 0 || count == 0) {
        return;
    }
    if (reader->inside != mpshm_process.generation) {
        strays_inside(arena, true);
        reader->inside = mpshm_process.generation;
    }
    while (count > 0 && pass_over_one(reader, fd, arena)) {
        count--;
    }
    if (reader->have == 0) {
        comes_out(reader, arena);
    } else if (reader->told == NULL) { /* it has a frame in hand */
        arena_keep(arena);
        reader->told = arena;
    }
}

/* mpshm_receive of the next frame.  MPSHM_E_CANCELLED: it was there in vain. */
static int
receive_frame(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t body_max, uint32_t copy_max)
{
    uint32_t generation = mpshm_process.generation;

    if (arena != NULL && reader->inside != generation) { /* a fork's child has not said so itself */
        strays_inside(arena, true);
        reader->inside = generation;
    }
    if (arena != NULL) {
        trim_if_due(arena, has_input, &fd); /* it may sleep now */
    }
    int n = frame_read(reader, fd, body_max, arena != NULL);

    if (n >= MPSHM_DESCRIPTORS && n != MPSHM_LONG) {
        int error = frame_open(reader, fd, arena, copy_max);

        if (error == 0 && reader->count == 0) {
            n = (int) reader->stream_end + (reader->copied == 0 ? MPSHM_COPIED : MPSHM_COPIED_BY_WINDOW);
        } else if (error != 0) {
            n = error;
        }
    }
    reader->full = n > 0;
    if (reader->full) {
        reader->asked = 0;
    }
    if (reader->have == 0) {
        comes_out(reader, arena);
    } else if (arena != NULL && reader->told == NULL) { /* it has a part of a frame in hand */
        arena_keep(arena);
        reader->told = arena;
    }
    return n;
}

int
mpshm_receive(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t body_max,
              uint32_t copy_max)
{
    int n;

    if (reader->full) {
        return -EBUSY;
    }
    mpshm_discard(reader); /* all were taken: this frees the list */
    do {
        n = receive_frame(reader, fd, arena, body_max, copy_max);
    } while (n == MPSHM_E_CANCELLED);
    return n;
}

int
mpshm_skip(mpshm_reader *reader, int fd)
{
    int n = reader->have == 0 ? 1 : frame_read(reader, fd, 0, true);

    return n > 0 ? 0 : n == 0 ? MPSHM_E_TORN : n;
}

void
mpshm_take(mpshm_reader *reader, uint32_t i, mpshm_held *to)
{
    INVARIANT(F3, i < reader->count && reader->runs[i].data != NULL);
    *to = reader->runs[i];
    reader->runs[i].data = NULL; /* releasing NULL does nothing */
}

mpshm_held *
mpshm_held_new(void)
{
    return calloc(1, sizeof(mpshm_held));
}

void
mpshm_held_free(mpshm_held *held)
{
    mpshm_release(held->data);
    free(held);
}
