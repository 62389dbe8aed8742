/* Messages: each carries its number, and bytes that follow from it, so that a torn one shows. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ledger.h"
#include "lives.h"
#include "stage.h"

/* One part of a message: its stream, or one of its buffers. */
struct shape_of {
    uint32_t stream;
    uint32_t buffers, buffer;
};
static const struct shape_of shapes[SHAPES] = {
    [SHORT] = {60, 0, 0},      [LONGER] = {900, 0, 0},    [COPIED] = {20000, 0, 0},
    [VIEWED] = {40, 3, 30000}, [INDEXED] = {4020, 5, 9},  [STREAMED] = {50000, 1, 26000},
    [FILLED] = {40000, 0, 0},  [BY_COPY] = {24000, 0, 0}, [PLAIN] = {3000, 0, 0},
    [PIECES] = {132000, 0, 0},
};
#define MOST_BYTES 132000
#define NO_MARK UINT64_MAX
#define PATIENCE_MS 5
static int patience_ms = PATIENCE_MS;

/* Its first bytes name the message; the part decides what the others are. */
static void
fill(char *to, uint32_t size, uint32_t message, uint32_t part)
{
    for (uint32_t i = 0; i < size; i++) {
        to[i] = (char) (message * 167 + part * 59 + i * 31 + (i >> 8));
    }
    memcpy(to, &message, sizeof message);
}

static void
check_part(const char *data, uint64_t size, uint64_t expected, uint32_t message, uint32_t part)
{
    static char right[MOST_BYTES];

    EXPECT_EQ(expected, size);
    fill(right, (uint32_t) size, message, part);
    if (memcmp(right, data, size) != 0) {
        complain(__FILE__, __LINE__, "message %u is torn in part %u", message, part);
    }
}

/* Of the message that is put now, or that was put last of those that can be taken back; NULL: it cannot. */
static mpshm_tracking *tracking, *tracked;
static uint32_t tracked_message;

static int
send_parcel(mpshm_parcel *parcel, const char *stream, uint32_t size, mpshm_place *place)
{
    int error;

    if (stage.kind->is_queue) {
        error = mpshm_queue_put_parcel_tracked(parcel, &stage.out, stream, size, place, tracking);
    } else if (tracking != NULL) {
        error = mpshm_send_tracked(parcel, stage.out.fd, stream, size, tracking);
        error = error == MPSHM_SENT_UNMAPPED ? 0 : error;
    } else {
        error = mpshm_send(parcel, stage.out.fd, stream, size);
        error = error == MPSHM_SENT_UNMAPPED ? 0 : error; /* through windows */
    }
    return error;
}

static int
put_parts(mpshm_parcel *parcel, enum shape shape, uint32_t message, char *stream)
{
    static char data[MOST_BYTES];
    const struct shape_of *of = &shapes[shape];
    uint32_t half = of->stream / 2;
    int error = 0;

    for (uint32_t i = 0; i < shapes[shape].buffers && error == 0; i++) {
        fill(data, of->buffer, message, i + 1);
        error = mpshm_put_buffer(parcel, data, of->buffer, NO_MARK);
    }
    fill(stream, of->stream, message, 0);
    bool in_ticket = shape == SHORT && tracking != NULL;

    if (error == 0 && (shape == STREAMED || shapes[shape].buffers == 0) && !in_ticket) {
        error = mpshm_put_stream(parcel, stream, half, 0, NO_MARK);
        if (error == 0) { /* the second piece makes the run grow */
            error = mpshm_put_stream(parcel, stream + half, of->stream - half, 0, NO_MARK);
        }
    }
    return error == 0 ? mpshm_settle(parcel, of->stream, NO_MARK) : error;
}

static int
say_in_parcel(enum shape shape, uint32_t message, mpshm_place *place)
{
    static char stream[MOST_BYTES];
    mpshm_parcel *parcel = mpshm_parcel_new();

    EXPECT(parcel != NULL);
    mpshm_parcel_begin(parcel, stage.arena);
    mpshm_parcel_track(parcel, tracking != NULL && !stage.kind->is_queue);
    int error = put_parts(parcel, shape, message, stream);

    if (error == 0) {
        error = send_parcel(parcel, stream, shapes[shape].stream, place);
    }
    mpshm_parcel_free(parcel);
    return error;
}

/* What Buffer does: claim, write in place, send without a copy. */
static int
say_in_own_run(enum shape shape, uint32_t message, mpshm_place *place)
{
    uint32_t size = shapes[shape].stream;
    mpshm_run *run = mpshm_run_new(stage.arena);
    mpshm_parcel *parcel = mpshm_parcel_new();

    EXPECT(run != NULL && parcel != NULL);
    int error = mpshm_get_buf(stage.arena, size, run);

    if (error == 0) {
        fill(run->data, size, message, 0);
        mpshm_parcel_begin(parcel, stage.arena);
        error = mpshm_put_run(parcel, run, size);
        if (error == 0) {
            error = send_parcel(parcel, NULL, 0, place);
            if (error != 0) {
                mpshm_return_run(parcel);
            }
        }
    }
    mpshm_parcel_free(parcel);
    mpshm_run_free(run);
    return error;
}

static int
say_small(enum shape shape, uint32_t message, mpshm_place *place)
{
    static char data[MOST_BYTES];
    uint32_t size = shapes[shape].stream;

    fill(data, size, message, 0);
    if (shape == BY_COPY) {
        return mpshm_send_copy(stage.arena, stage.out.fd, data, size, NO_MARK);
    }
    int n = tracking == NULL ? mpshm_queue_put_one(&stage.out, data, size, place)
                             : mpshm_queue_put_tracked(&stage.out, data, size, place, tracking);

    return n == 1 ? 0 : n;
}

/* As the package does, in a queue that has no memory for it.  One that nobody takes soon is taken back. */
static int
say_plainly(enum shape shape, uint32_t message, mpshm_place *place)
{
    static char data[MOST_BYTES];
    uint32_t size = shapes[shape].stream;
    mpshm_stream *stream = mpshm_stream_new(stage.arena);
    int result;

    EXPECT(stream != NULL);
    fill(data, size, message, 0);
    result = mpshm_stream_begin(stream, &stage.out, data, size, place);
    if (result == -EBUSY) {
        (void) mpshm_stream_wait(stage.arena, 1);
    }
    if (result >= 0 && tracking != NULL) {
        mpshm_stream_track(stream, tracking);
    }
    while (result == 0) {
        result = mpshm_stream_go(stream, &stage.out, data, size, patience_ms);
        if (result == -EAGAIN || result == -EINTR) {
            result = patience_ms >= 0 && mpshm_stream_stop(stream, 0) == 0 ? -EAGAIN : 0;
        }
    }
    mpshm_stream_free(stream);
    return result == 1 ? 0 : result;
}

void
begin_pieces(void)
{
    static char data[MOST_BYTES];
    uint32_t message = ledger_start(PIECES);

    fill(data, shapes[PIECES].stream, message, 0);
    EXPECT_EQ(0, mpshm_stream_begin(mpshm_stream_new(stage.arena), &stage.out, data, shapes[PIECES].stream, NULL));
}

/* Of a connection. */
static uint32_t
unread_bytes(void)
{
    int bytes = 0;

    EXPECT(stage.kind->is_queue || ioctl(stage.in.fd, FIONREAD, &bytes) == 0);
    return (uint32_t) bytes;
}

static int
say_by(enum shape shape, mpshm_place *place)
{
    uint32_t message = ledger_start((uint8_t) shape), before = unread_bytes();

    if (place != NULL) {
        ledger_accepted(message);
    }
    bool is_small = shape == BY_COPY || (shape <= COPIED && stage.kind->is_queue);
    int error = is_small          ? say_small(shape, message, place)
                : shape == FILLED ? say_in_own_run(shape, message, place)
                : shape >= PLAIN  ? say_plainly(shape, message, place)
                                  : say_in_parcel(shape, message, place);

    if (error == 0) {
        ledger_put(message, unread_bytes() - before);
        tracked_message = tracking != NULL ? message : tracked_message;
    } else {
        ledger_refused(message);
    }
    return error;
}

int
say(enum shape shape)
{
    return say_by(shape, NULL);
}

int
say_patiently(enum shape shape)
{
    patience_ms = -1;
    int error = say_by(shape, NULL);

    patience_ms = PATIENCE_MS;
    return error;
}

int
say_tracked(enum shape shape)
{
    tracking = tracked = mpshm_tracking_new(stage.arena);
    EXPECT(tracking != NULL);
    int error = say_by(shape, NULL);

    tracking = NULL;
    return error;
}

void
unsay(void)
{
    ledger_withdraws(tracked_message);
    int result = mpshm_tracking_cancel(tracked, stage.kind->is_queue ? &stage.in : NULL);

    EXPECT(result == MPSHM_TRACK_CANCELLED || result == MPSHM_TRACK_RECEIVED);
    EXPECT_EQ(result, mpshm_tracking_state(tracked));
    ledger_withdrawn(tracked_message, result == MPSHM_TRACK_CANCELLED);
    mpshm_tracking_free(tracked);
}

bool
is_heard(int timeout_ms)
{
    return mpshm_tracking_wait(tracked, stage.out.fd, timeout_ms) == MPSHM_TRACK_RECEIVED;
}

int
say_with_place(enum shape shape, mpshm_place *place)
{
    return say_by(shape, place);
}

int
say_some(int count)
{
    static char data[MOST_BYTES];
    uint32_t sizes[8] = {0}, messages[8], size = shapes[SHORT].stream;

    EXPECT(count <= 8);
    for (int i = 0; i < count; i++) {
        messages[i] = ledger_start(SHORT);
        sizes[i] = size;
        fill(data + (uint32_t) i * size, size, messages[i], 0);
    }
    int n = mpshm_queue_put_some(&stage.out, data, sizes, (uint32_t) count, NULL);

    for (int i = 0; i < count; i++) {
        if (i < n) {
            ledger_put(messages[i], 0);
        } else {
            ledger_refused(messages[i]);
        }
    }
    return n;
}

/* A whole message: its stream in one piece or in runs, then its buffers. */
static void
check_message(const char *stream, uint64_t size, const mpshm_held *runs, uint32_t stream_runs,
              uint32_t count)
{
    static char pieces[MOST_BYTES];
    uint32_t message;

    if (stream_runs > 0) {
        stream = pieces;
        size = 0;
    }
    for (uint32_t i = 0; i < stream_runs; i++) {
        EXPECT(runs[i].size <= MOST_BYTES - size);
        memcpy(pieces + size, runs[i].data, runs[i].size);
        size += runs[i].size;
    }
    EXPECT(size >= sizeof message);
    memcpy(&message, stream, sizeof message);
    enum shape shape = ledger_shape(message);

    check_part(stream, size, shapes[shape].stream, message, 0);
    EXPECT_EQ(shapes[shape].buffers, count - stream_runs);
    for (uint32_t i = stream_runs; i < count; i++) {
        check_part(runs[i].data, runs[i].size, shapes[shape].buffer, message, i - stream_runs + 1);
    }
    ledger_got(message);
}

/* Views that this process holds on to, and the buffers that they are. */
static struct {
    mpshm_held *held;
    uint32_t message, part;
} kept[8];
static uint32_t kept_count;
static bool keeps;

static void
keep_or_free(mpshm_held *held)
{
    uint32_t message;

    memcpy(&message, held->data, sizeof message); /* as each part begins */
    if (!keeps || kept_count == sizeof kept / sizeof *kept || ledger_shape(message) != VIEWED) {
        mpshm_held_free(held);
        return;
    }
    kept[kept_count].message = message;
    kept[kept_count].part = kept_count + 1;
    kept[kept_count++].held = held;
}

void
hold_views(void)
{
    (void) say(VIEWED); /* refused where it is full; then there are others */
    keeps = true;
    while (kept_count == 0 && hear()) {
    }
    keeps = false;
}

void
check_views(void)
{
    for (uint32_t i = 0; i < kept_count; i++) {
        check_part(kept[i].held->data, kept[i].held->size, shapes[VIEWED].buffer, kept[i].message,
                   kept[i].part);
    }
}

void
let_views_go(void)
{
    check_views();
    while (kept_count > 0) {
        mpshm_held_free(kept[--kept_count].held);
    }
}

/* Each run goes to a holder of its own, as a view has one. */
static int
hear_in_queue(int most, int timeout_ms)
{
    mpshm_batch *batch = stage.batch;
    int n = mpshm_queue_receive(batch, (uint32_t) most, timeout_ms);

    if (n == -EAGAIN || n == -EINTR) {
        return 0;
    }
    if (n <= 0) {
        complain(__FILE__, __LINE__, "mpshm_queue_receive gives %d", n);
    }
    for (int i = 0; i < n; i++) {
        mpshm_message *message = &batch->messages[i];

        EXPECT_EQ(0, message->error);
        check_message(batch->apart != NULL ? batch->apart : batch->data + message->at, message->size,
                      batch->runs + message->first_run, message->stream_runs, message->runs);
        for (uint32_t run = 0; run < message->runs; run++) {
            mpshm_held *held = mpshm_held_new();

            EXPECT(held != NULL);
            mpshm_batch_take(batch, message->first_run + run, held);
            keep_or_free(held);
        }
    }
    mpshm_batch_discard(batch);
    return n;
}

static int
hear_in_connection(void)
{
    mpshm_reader *reader = stage.reader;
    int n = mpshm_receive(reader, stage.in.fd, stage.arena, UINT32_MAX, 32768);

    if (n == -EAGAIN || n == -EINTR) {
        return 0;
    }
    if (n < MPSHM_DESCRIPTORS) {
        complain(__FILE__, __LINE__, "mpshm_receive gives %d", n);
    }
    check_message((char *) reader->bytes + reader->stream_at,
                  reader->stream_end - reader->stream_at, reader->runs, reader->stream_runs,
                  reader->count);
    for (uint32_t run = 0; run < reader->count; run++) {
        mpshm_held *held = mpshm_held_new();

        EXPECT(held != NULL);
        mpshm_take(reader, run, held);
        keep_or_free(held);
    }
    reader->full = 0;
    return 1;
}

int
hear_some(int most, int timeout_ms)
{
    return stage.kind->is_queue ? hear_in_queue(most, timeout_ms) : hear_in_connection();
}

bool
drain_if_torn(void)
{
    char bytes[4096];
    bool torn = !stage.kind->is_queue && !ledger_is_whole(unread_bytes());

    while (torn && read(stage.in.fd, bytes, sizeof bytes) > 0) {
    }
    return torn;
}

int
hear_all(void)
{
    int all = 0;

    while (hear()) {
        all++;
    }
    return all;
}

bool
say_done(void)
{
    ledger_task_start();
    bool was_left = mpshm_task_done(stage.arena) >= 0;

    if (was_left) {
        ledger_task_done();
    } else {
        ledger_task_refused();
    }
    return was_left;
}
