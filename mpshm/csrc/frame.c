/* Frames: how descriptors lie in a pipe.  Knows bytes and leases; knows no state of a run.

   A plain message is the stock module's frame.  A descriptor frame has the sign bit set in its
   length word (stock uses that for -1 alone) and is at most MPSHM_FRAME_BYTES long, so that a pipe
   takes it in one piece or not at all:

       length word  big-endian 32    0x80000000 | bytes that follow
       flags        16               1: the one descriptor names an index, the run of all the others
       stream runs  16               how many descriptors, the first, hold the message's stream
       buffer runs  32               how many after them hold a buffer each
       descriptors  20 each          mmap_id 32, chunk_id 32, size in bytes 64, tag 32
       stream       the rest         when no run holds it

   Invariants:
   F1  Reading never goes past a frame: other processes may share the end.
   F2  A frame half read stays in the reader when a signal interrupts.
   F3  A frame's runs are leased in the call that reads it, all or none, and stay the reader's until
       each has a holder: no interruption of the caller comes in between. */
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
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SIGN UINT32_C(0x80000000)
#define LENGTH_BYTES 4
#define HEAD_BYTES 8

bool
frame_fits(uint64_t descriptors, uint64_t stream_size)
{
    return LENGTH_BYTES + HEAD_BYTES + descriptors * DESCRIPTOR_BYTES + stream_size
           <= MPSHM_FRAME_BYTES;
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

/* Write the frame, and the index if there is one; the frame's size.  It must fit. */
uint32_t
frame_put(char *frame, const struct part *parts, uint32_t stream_runs, uint32_t buffer_runs,
          const char *stream, uint64_t stream_size, const struct part *index)
{
    uint16_t head[2] = {index != NULL, (uint16_t) stream_runs};
    char *at = index == NULL ? frame + LENGTH_BYTES + HEAD_BYTES : index->run.data;

    memcpy(frame + LENGTH_BYTES, head, 4);
    memcpy(frame + LENGTH_BYTES + 4, &buffer_runs, 4);
    for (uint32_t i = 0; i < stream_runs + buffer_runs; i++) {
        at = put_descriptor(at, &parts[i]);
    }
    if (index != NULL) {
        at = put_descriptor(frame + LENGTH_BYTES + HEAD_BYTES, index);
    }
    if (stream_size > 0) {
        memcpy(at, stream, stream_size);
    }
    uint32_t size = (uint32_t) (at - frame + (int64_t) stream_size);
    uint32_t length = htonl(SIGN | (size - LENGTH_BYTES));

    memcpy(frame, &length, 4);
    return size;
}

/* What the length word asks for, with what follows it when it is -1.  A plain body longer than
   body_max is left in the pipe, unless its reading has begun. */
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

static int64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Begin a frame.  A blocked wake-up across CPUs costs ten times what a message does, so look again
   for a while before blocking: bounded, with the CPU yielded, and only where it has been paying.
   Each success earns one try, each failure costs SPIN_COST, so that three in four must succeed; with
   none left, one wait in SPIN_PROBE tries, to find out whether the peer has become quick (a pool
   whose tasks come in bursts had one success in two, a tenth more CPU time, and no gain).  None to
   begin with, but the SPIN_FIRST-th wait is a try: an end that is closed after a few messages (torch makes one for each tensor) would
   never earn what it spent.  A message that is there already costs the one system call it always
   did. */
#define SPIN_FIRST 6
#define SPIN_COST 3
#define SPIN_MOST 16
#define SPIN_PROBE 64

static ssize_t
read_first(mpshm_reader *reader, int fd, uint32_t need)
{
#ifdef RWF_NOWAIT
    struct iovec to = {reader->bytes, need};
    ssize_t n = preadv2(fd, &to, 1, -1, RWF_NOWAIT);

    if (n >= 0 || errno != EAGAIN) {
        return n >= 0 || errno != EOPNOTSUPP ? n : read(fd, reader->bytes, need);
    }
    if (reader->spin_ns > 0 && (reader->credit > 0 || ++reader->waits % SPIN_PROBE == 0)) {
        int64_t until = now_ns() + reader->spin_ns;

        do {
            sched_yield();
            n = preadv2(fd, &to, 1, -1, RWF_NOWAIT);
            if (n >= 0 || errno != EAGAIN) {
                reader->credit += reader->credit < SPIN_MOST;
                return n;
            }
        } while (now_ns() < until);
        reader->credit -= reader->credit < SPIN_COST ? reader->credit : SPIN_COST;
    }
#endif
    return read(fd, reader->bytes, need);
}

int
frame_read(mpshm_reader *reader, int fd, uint32_t body_max)
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
        /* F1, F2 */
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
    }
}

struct descriptor {
    uint32_t mmap_id, chunk_id, tag;
    uint64_t size;
};

static struct descriptor
get_descriptor(const unsigned char *at)
{
    struct descriptor d;

    memcpy(&d.mmap_id, at, 4);
    memcpy(&d.chunk_id, at + 4, 4);
    memcpy(&d.size, at + 8, 8);
    memcpy(&d.tag, at + 16, 4);
    return d;
}

static int
lease_one(mpshm_arena *arena, const unsigned char *at, mpshm_held *run, mpshm_reader *reader)
{
    struct descriptor d = get_descriptor(at);
    int error = mpshm_lease(arena, d.mmap_id, d.chunk_id, d.size, d.tag, &run->data);

    run->size = d.size;
    if (error != 0 && reader != NULL) {
        reader->bad_id = d.mmap_id;
        reader->bad_chunk = d.chunk_id;
        reader->bad_tag = d.tag;
        reader->bad_size = d.size;
    }
    return error;
}

/* Release what was not taken. */
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

/* F3.  After a failure the others' chunks go back as well: their message cannot be had. */
static int
lease_all(mpshm_arena *arena, const unsigned char *table, uint32_t count, mpshm_reader *reader)
{
    reader->runs = calloc(count, sizeof *reader->runs);
    int first_error = reader->runs == NULL ? -ENOMEM : 0;
    uint64_t size = 0;

    for (uint32_t i = 0; i < count; i++) {
        mpshm_held run;
        int error = lease_one(arena, table + (uint64_t) i * DESCRIPTOR_BYTES, &run,
                              first_error == 0 ? reader : NULL);

        if (first_error == 0 && error == 0) {
            reader->runs[reader->count++] = run;
            size += run.size;
        } else if (error == 0) {
            mpshm_release(run.data);
        }
        first_error = first_error ? first_error : error;
    }
    if (first_error != 0) {
        mpshm_discard(reader);
    } else {
        heap_keep(size);
    }
    return first_error;
}

/* Lease every run that the frame just read names, or none. */
int
frame_open(mpshm_reader *reader, mpshm_arena *arena)
{
    uint32_t length, buffer_runs;
    uint16_t head[2];
    const unsigned char *body = reader->bytes + LENGTH_BYTES;

    if (arena == NULL) {
        return MPSHM_E_NO_ARENA;
    }
    memcpy(&length, reader->bytes, 4);
    length = ntohl(length) & ~SIGN;
    if (length < HEAD_BYTES) {
        return MPSHM_E_HEAD;
    }
    memcpy(head, body, 4);
    memcpy(&buffer_runs, body + 4, 4);
    if (head[0] > 1) {
        return MPSHM_E_FLAG;
    }
    uint64_t count = (uint64_t) head[1] + buffer_runs, named = head[0] ? 1 : count;

    if (count == 0 || count > UINT32_MAX || HEAD_BYTES + named * DESCRIPTOR_BYTES > length) {
        return MPSHM_E_COUNT;
    }
    reader->stream_runs = head[1];
    reader->stream_at = (uint32_t) (LENGTH_BYTES + HEAD_BYTES + named * DESCRIPTOR_BYTES);
    if (head[1] > 0 && reader->stream_at != LENGTH_BYTES + length) {
        return MPSHM_E_EXTRA;
    }
    if (!head[0]) {
        return lease_all(arena, body + HEAD_BYTES, (uint32_t) count, reader);
    }
    mpshm_held index;
    int error = lease_one(arena, body + HEAD_BYTES, &index, reader);

    if (error == 0) {
        error = index.size != count * DESCRIPTOR_BYTES
                    ? MPSHM_E_INDEX
                    : lease_all(arena, (unsigned char *) index.data, (uint32_t) count, reader);
        mpshm_release(index.data);
    }
    return error;
}

mpshm_reader *
mpshm_reader_new(uint32_t spin_us)
{
    mpshm_reader *reader = malloc(sizeof *reader);

    if (reader != NULL) {
        /* The bytes stay untouched, and not resident, until a message is long enough for them. */
        memset(reader, 0, offsetof(mpshm_reader, bytes));
        reader->spin_ns = (int64_t) spin_us * 1000;
        reader->waits = SPIN_PROBE - SPIN_FIRST;
    }
    return reader;
}

void
mpshm_reader_free(mpshm_reader *reader)
{
    mpshm_discard(reader);
    free(reader);
}

int
mpshm_receive(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t body_max)
{
    if (reader->full) {
        return -EBUSY;
    }
    mpshm_discard(reader); /* of runs that were taken nothing is left but their places */
    int n = frame_read(reader, fd, body_max);

    if (n >= MPSHM_DESCRIPTORS && n != MPSHM_LONG) {
        int error = frame_open(reader, arena);

        n = error != 0 ? error : n;
    }
    reader->full = n > 0 || n == MPSHM_E_NO_ARENA;
    return n;
}

int
mpshm_reopen(mpshm_reader *reader, mpshm_arena *arena)
{
    uint32_t length;
    int error = frame_open(reader, arena);

    reader->full = error == 0;
    memcpy(&length, reader->bytes, sizeof length);
    return error != 0 ? error
                      : (int) (LENGTH_BYTES + (ntohl(length) & ~SIGN) + MPSHM_DESCRIPTORS);
}

void
mpshm_take(mpshm_reader *reader, uint32_t i, mpshm_held *to)
{
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
