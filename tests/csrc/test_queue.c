/* Slots: messages of every kind through a queue, its places, and what a forged slot does. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static mpshm_counts counts;

#define INLINE_MAX (MPSHM_SLOT_BYTES - 4)
#define SIGN UINT32_C(0x80000000)

struct queue {
    mpshm_arena *arena;
    mpshm_batch *batch;
    int reader, writer;
};

/* 4 KiB chunks, and room in a segment for the largest small message many times. */
static mpshm_geometry
roomy(void)
{
    return (mpshm_geometry) {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20,
                             .segment_limit = 16, .chunk_shift = 12};
}

static struct queue
queue_of(mpshm_geometry geometry, uint32_t places, uint64_t bytes, int joinable)
{
    struct queue q = {.arena = queue_arena_of(geometry, places, bytes, joinable)};
    int ends[2];

    make_pipe(ends);
    mpshm_reap(q.arena); /* have a name, before any child */
    q.arena->overflowing = false; /* as in a bounded file: what is longer than a slot needs a run */
    q.batch = batch_of(q.arena, &counts, ends[0], 0);
    q.reader = ends[0];
    q.writer = ends[1];
    return q;
}

/* One whose messages may go on in the overflow. */
static struct queue
queue_with_overflow(uint32_t places, uint64_t bytes)
{
    struct queue q = queue_of(roomy(), places, bytes, 0);

    q.arena->overflowing = true;
    return q;
}

/* Places of this test: most are used up before it ends. */
static mpshm_place *taken[16];
static uint32_t taken_count;

static void
free_places(void)
{
    while (taken_count > 0) {
        mpshm_place_free(taken[--taken_count]);
    }
}

static void
end_queue(struct queue *q)
{
    free_places();
    mpshm_batch_discard(q->batch);
    check_all_free(q->arena);
    CHECK_EQ(0, mpshm_queue_size(q->arena));
    free_batch(q->batch);
    close(q->reader);
    close(q->writer);
    mpshm_arena_close(q->arena);
}

/* A place that is taken, or NULL if there is none. */
static mpshm_place *
take_place(struct queue *q)
{
    mpshm_place *place = mpshm_place_new(q->arena);

    CHECK(place != NULL);
    int error = mpshm_place_take(place);

    if (error != 0) {
        CHECK_EQ(MPSHM_E_FULL, error);
        mpshm_place_free(place);
        return NULL;
    }
    if (taken_count == sizeof taken / sizeof *taken) {
        free_places();
    }
    taken[taken_count++] = place;
    return place;
}

static int
put(struct queue *q, uint32_t size, unsigned seed, mpshm_place *place)
{
    static char data[SMALL_RUN_BYTES + 1];

    fill(data, size, seed);
    return mpshm_queue_put_one(END(q->arena, q->writer), data, size, place);
}

static void
check_next(struct queue *q, uint32_t size, unsigned seed)
{
    CHECK_EQ(size, mpshm_queue_receive_one(q->batch, 0));
    CHECK(is_filled(q->batch->data, size, seed));
}

/* Parcels. */

static mpshm_parcel *
parcel_with(mpshm_arena *arena, const uint64_t *buffers, uint32_t count, uint64_t stream)
{
    mpshm_parcel *parcel = parcel_of(arena);
    char *data = malloc(1 << 20);

    for (uint32_t i = 0; i < count; i++) {
        fill(data, buffers[i], i);
        CHECK_EQ(0, mpshm_put_buffer(parcel, data, buffers[i], UINT64_MAX));
    }
    CHECK_EQ(0, mpshm_settle(parcel, stream, UINT64_MAX));
    free(data);
    return parcel;
}

static int
send_parcel(struct queue *q, mpshm_parcel *parcel, uint64_t stream_size, mpshm_place *place)
{
    static char stream[SMALL_RUN_BYTES];

    fill(stream, stream_size, 99);
    return mpshm_queue_put_parcel(parcel, END(parcel->arena, q->writer), stream, stream_size, place);
}

static void
every_small_size_round_trips(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);

    for (uint32_t size = 0; size <= SMALL_RUN_BYTES; size += size < 700 || !SANITIZED ? 1 : 37) {
        CHECK_EQ(1, put(&q, size, size, NULL));
        CHECK_EQ(size > INLINE_MAX, runs_in_use(q.arena));
        CHECK_EQ(1, mpshm_queue_size(q.arena));
        check_next(&q, size, size);
        CHECK_EQ(0, runs_in_use(q.arena));
    }
    CHECK_EQ(-EMSGSIZE, put(&q, SMALL_RUN_BYTES + 1, 0, NULL));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(q.batch, 0));
    end_queue(&q);
}

static void
message_that_goes_on_in_the_overflow_needs_no_run(void)
{
    enum { MOST = RING_FRAME_BYTES - 4 };
    struct queue q = queue_with_overflow(0, 0);

    CHECK(q.arena->overflowing && q.arena->zero.overflow != NULL);
    for (uint32_t size = 0; size <= MOST + 9; size++) {
        CHECK_EQ(1, put(&q, size, size, NULL));
        CHECK_EQ(size > MOST, runs_in_use(q.arena));
        check_next(&q, size, size);
    }
    /* Every slot's own, one long and one short by turns, twice round. */
    for (uint32_t lap = 0; lap < 2; lap++) {
        for (uint32_t i = 0; i < RING_SLOTS; i++) {
            CHECK_EQ(1, put(&q, i % 2 ? MOST - i : i % 100, i, NULL));
        }
        CHECK_EQ(-EAGAIN, put(&q, MOST, 0, NULL));
        for (uint32_t i = 0; i < RING_SLOTS; i++) {
            check_next(&q, i % 2 ? MOST - i : i % 100, i);
        }
    }
    CHECK_EQ(0, runs_in_use(q.arena));
    end_queue(&q);
}

static void
message_received_alone_has_zeros_behind_it(void)
{
    struct queue q = queue_with_overflow(0, 0);
    const uint32_t sizes[] = {1148, 0, 1148, 1, 124, 125, 1000, 7};

    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK_EQ(1, put(&q, sizes[i], 77, NULL));
        CHECK_EQ(sizes[i], mpshm_queue_receive_one(q.batch, 0));
        for (uint32_t at = sizes[i]; at < MPSHM_TINY_BYTES; at++) {
            CHECK_EQ(0, q.batch->data[at]);
        }
    }
    end_queue(&q);
}

static void
queue_bounded_by_bytes_counts_what_an_overflow_would_hold(void)
{
    struct queue q = queue_with_overflow(0, 2000);

    CHECK_EQ(1, put(&q, 1000, 1, NULL));
    CHECK_EQ(1, runs_in_use(q.arena));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1000, 2, NULL));
    check_next(&q, 1000, 1);
    end_queue(&q);
}

static void
forged_length_past_the_overflow_costs_only_its_own_message(void)
{
    struct queue q = queue_with_overflow(0, 0);
    const uint32_t lengths[] = {1149, 4096, INT32_MAX};

    for (uint32_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char frame[RING_FRAME_BYTES] = {0};
        uint32_t length = htonl(lengths[i]);

        memcpy(frame, &length, sizeof length);
        put_raw(q.arena, frame);
        CHECK_EQ(1, put(&q, 1148, 5, NULL));
        CHECK_EQ(MPSHM_E_LENGTH, mpshm_queue_receive_one(q.batch, 0));
        check_next(&q, 1148, 5);
    }
    end_queue(&q);
}

static void
tiny_chunks_carry_small_messages_too(void)
{
    struct queue q = queue_of(tiny, 0, 0, 0);

    for (uint32_t size = 0; size <= TINY_CHUNK * TINY_CHUNKS; size++) {
        CHECK_EQ(1, put(&q, size, size, NULL));
        check_next(&q, size, size);
    }
    end_queue(&q);
}

static const uint32_t mixed[] = {0, 1, 124, 125, 126, 4096, 3, 32768, 124, 255, 256, 257, 20000, 7};
#define MIXED ((uint32_t) (sizeof mixed / sizeof *mixed))

static void
many_of_mixed_sizes_arrive_in_order(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    char *data = malloc(MIXED * SMALL_RUN_BYTES), *at = data;

    for (uint32_t i = 0; i < MIXED; at += mixed[i++]) {
        fill(at, mixed[i], i);
    }
    CHECK_EQ(MIXED, mpshm_queue_put_some(END(q.arena, q.writer), data, mixed, MIXED, NULL));
    CHECK_EQ(MIXED, mpshm_queue_size(q.arena));
    CHECK_EQ(5, mpshm_queue_receive(q.batch, 5, 0));
    for (uint32_t i = 0; i < 5; i++) {
        CHECK_EQ(mixed[i], q.batch->sizes[i]);
        CHECK(is_filled(q.batch->data + q.batch->messages[i].at, mixed[i], i));
    }
    CHECK_EQ(MIXED - 5, mpshm_queue_receive(q.batch, 1000, -1));
    for (uint32_t i = 5; i < MIXED; i++) {
        CHECK_EQ(mixed[i], q.batch->sizes[i - 5]);
        CHECK(is_filled(q.batch->data + q.batch->messages[i - 5].at, mixed[i], i));
    }
    free(data);
    end_queue(&q);
}

static void
more_than_fit_at_once_are_put_in_part(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint32_t sizes[MPSHM_SLOTS_AT_ONCE + 1];
    char data[MPSHM_SLOTS_AT_ONCE + 1];

    for (uint32_t i = 0; i <= MPSHM_SLOTS_AT_ONCE; i++) {
        sizes[i] = 1;
        data[i] = (char) i;
    }
    CHECK_EQ(MPSHM_SLOTS_AT_ONCE, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes,
                                                 MPSHM_SLOTS_AT_ONCE + 1, NULL));
    CHECK_EQ(0, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 0, NULL));
    CHECK_EQ(MPSHM_SLOTS_AT_ONCE, mpshm_queue_receive(q.batch, 9999, 0));
    for (uint32_t i = 0; i < MPSHM_SLOTS_AT_ONCE; i++) {
        CHECK_EQ(i, q.batch->data[q.batch->messages[i].at]);
    }
    end_queue(&q);
}

static void
too_large_one_in_the_middle_ends_the_batch_before_it(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint32_t sizes[] = {1, 1, SMALL_RUN_BYTES + 1, 1};
    char *data = calloc(1, SMALL_RUN_BYTES + 4);

    CHECK_EQ(2, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 4, NULL));
    CHECK_EQ(-EMSGSIZE, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes + 2, 2, NULL));
    CHECK_EQ(2, mpshm_queue_receive(q.batch, 9, 0));
    free(data);
    end_queue(&q);
}

/* The slot holds 5 descriptors; from there an index does, and the stream when it no longer fits. */
static void
parcels_of_any_number_of_buffers_round_trip(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffers[40];
    const uint64_t streams[] = {1, 11, 12, 92, 93, 124, 4000, SMALL_RUN_BYTES};

    for (uint32_t i = 0; i < 40; i++) {
        buffers[i] = 1 + 997 * i;
    }
    for (uint32_t count = 1; count <= 40; count++) {
        for (uint32_t s = 0; s < sizeof streams / sizeof *streams; s++) {
            mpshm_parcel *parcel = parcel_with(q.arena, buffers, count, streams[s]);

            CHECK_EQ(0, send_parcel(&q, parcel, streams[s], NULL));
            mpshm_parcel_free(parcel);
            CHECK_EQ(MPSHM_DESCRIPTORS, mpshm_queue_receive_one(q.batch, 0));
            mpshm_message *message = &q.batch->messages[0];

            CHECK_EQ(count, message->runs);
            CHECK_EQ(0, message->stream_runs);
            CHECK_EQ(streams[s], message->size);
            CHECK(is_filled(q.batch->data + message->at, message->size, 99));
            for (uint32_t i = 0; i < count; i++) {
                mpshm_held held;

                mpshm_batch_take(q.batch, message->first_run + i, &held);
                CHECK_EQ(buffers[i], held.size);
                CHECK(is_filled(held.data, held.size, i));
                CHECK_EQ(count - i, mpshm_leases());
                mpshm_release(held.data);
            }
        }
    }
    end_queue(&q);
}

static void
long_stream_in_runs_arrives_as_runs(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t size = 100000, buffer = 30000;
    mpshm_parcel *parcel = parcel_of(q.arena);
    char *data = malloc(size);

    fill(data, buffer, 2);
    CHECK_EQ(0, mpshm_put_buffer(parcel, data, buffer, UINT64_MAX));
    fill(data, size, 1);
    CHECK_EQ(0, mpshm_put_stream(parcel, data, size, 0, UINT64_MAX));
    CHECK_EQ(0, mpshm_settle(parcel, 0, UINT64_MAX));
    CHECK_EQ(0, mpshm_queue_put_parcel(parcel, END(parcel->arena, q.writer), NULL, 0, NULL));
    mpshm_parcel_free(parcel);
    CHECK_EQ(MPSHM_DESCRIPTORS, mpshm_queue_receive_one(q.batch, -1));
    CHECK_EQ(2, q.batch->messages[0].runs);
    CHECK_EQ(1, q.batch->messages[0].stream_runs);
    CHECK(is_filled(q.batch->runs[0].data, size, 1));
    CHECK(is_filled(q.batch->runs[1].data, buffer, 2));
    free(data);
    end_queue(&q);
}

static void
message_not_taken_goes_back_with_the_next_receive(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffer = 5000;
    mpshm_parcel *parcel = parcel_with(q.arena, &buffer, 1, 1);

    CHECK_EQ(0, send_parcel(&q, parcel, 1, NULL));
    mpshm_parcel_free(parcel);
    CHECK_EQ(1, mpshm_queue_receive(q.batch, 9, 0));
    CHECK_EQ(1, gauges(q.arena).runs_leased);
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(q.batch, 9, 0));
    CHECK_EQ(0, gauges(q.arena).runs_leased);
    end_queue(&q);
}

static uint32_t
fill_ring(struct queue *q)
{
    uint32_t count = 0;
    int n;

    while ((n = put(q, 1, count, NULL)) == 1) {
        count++;
    }
    CHECK_EQ(-EAGAIN, n);
    return count;
}

static void
drain(struct queue *q, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(1, mpshm_queue_receive(q->batch, 1, 0));
        CHECK_EQ(0, q->batch->messages[0].error);
    }
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(q->batch, 1, 0));
}

static void
full_ring_keeps_no_run(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint32_t count = fill_ring(&q);
    uint64_t buffer = 5000;
    mpshm_parcel *parcel = parcel_with(q.arena, &buffer, 1, 1);
    uint32_t sizes[] = {200, 5000, 3};
    char data[5203] = {0};

    CHECK_EQ(RING_SLOTS, count);
    CHECK_EQ(-EAGAIN, put(&q, 5000, 1, NULL));
    CHECK_EQ(-EAGAIN, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 3, NULL));
    CHECK_EQ(1, runs_in_use(q.arena));
    CHECK_EQ(-EAGAIN, send_parcel(&q, parcel, 1, NULL));
    CHECK_EQ(1, gauges(q.arena).runs_loaned);
    CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(q.arena, q.writer), NULL, 0));
    drain(&q, count);
    CHECK_EQ(0, mpshm_queue_wait_room(END(q.arena, q.writer), NULL, 0));
    CHECK_EQ(0, send_parcel(&q, parcel, 1, NULL)); /* it was still whole */
    mpshm_parcel_free(parcel);
    drain(&q, 1);
    end_queue(&q);
}

static uint64_t
first_position(const struct queue *q)
{
    return HEAD_POSITION(ring_advance(q->arena, &q->arena->zero));
}

/* Slots claimed and not passed, and bytes said at them: what took the place of counters. */
static uint64_t
open_positions(const struct queue *q)
{
    return (uint64_t) position_ahead(ring_end(&q->arena->zero), first_position(q));
}

static uint64_t
bytes_used(const struct queue *q)
{
    const struct ring *ring = &q->arena->zero;
    uint64_t sum = 0;

    for (uint64_t at = first_position(q); at != ring_end(ring); at = position_after(at, 1)) {
        if (!is_passed(ring, load_slot(ring, at), at)) {
            uint64_t bytes = atomic_load(&ring->head->slots[at % ring->slots].bytes);

            CHECK_EQ(lap_of(ring, at), bytes >> 33);
            sum += bytes & BYTES_MOST;
        }
    }
    return sum;
}

static void
unbounded_queue_counts_what_waits_for_the_ring(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint32_t count = fill_ring(&q);
    mpshm_place *places[3];
    uint32_t sizes[] = {1, 200, 1};
    char data[202] = {0};

    CHECK_EQ(count, mpshm_queue_size(q.arena));
    for (int i = 0; i < 3; i++) {
        places[i] = take_place(&q);
        CHECK_EQ(MPSHM_PENDING, places[i]->at);
        CHECK_EQ(count + 1 + i, mpshm_queue_size(q.arena));
    }
    CHECK_EQ(-EINVAL, mpshm_place_take(places[2])); /* it has one */
    CHECK_EQ(-EAGAIN, put(&q, 200, 0, places[0]));
    CHECK_EQ(-EAGAIN, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 3, places));
    CHECK_EQ(count + 3, mpshm_queue_size(q.arena));
    CHECK_EQ(1, mpshm_queue_receive(q.batch, 1, 0));
    CHECK_EQ(1, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 3, places));
    CHECK_EQ(MPSHM_NO_PLACE, places[0]->at);
    CHECK_EQ(count + 2, mpshm_queue_size(q.arena));
    CHECK_EQ(1, mpshm_queue_receive(q.batch, 1, 0));
    CHECK_EQ(1, put(&q, 200, 0, places[1]));
    CHECK_EQ(count + 1, mpshm_queue_size(q.arena));
    int pid = fork_hooked();

    if (pid == 0) { /* the child's are not its parent's */
        mpshm_place_free(places[2]);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(count + 1, mpshm_queue_size(q.arena));
    free_places();
    CHECK_EQ(count, mpshm_queue_size(q.arena));
    drain(&q, count);
    end_queue(&q);
}

static void
nothing_is_claimed_when_nobody_reads(void)
{
    struct queue q = queue_of(roomy(), 2, 0, 1);

    close(q.reader);
    q.reader = dup(q.writer);
    CHECK_EQ(-EPIPE, put(&q, 200, 0, NULL));
    CHECK_EQ(0, open_positions(&q));
    CHECK_EQ(0, atomic_load(&q.arena->zero.head->tail));
    CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
    CHECK_EQ(-EPIPE, mpshm_queue_wait_room(END(q.arena, q.writer), NULL, 0));
    end_queue(&q);
}

static void
bounded_queue_is_full_at_its_limit_exactly(void)
{
    struct queue q = queue_of(roomy(), 3, 0, 0);
    uint32_t sizes[] = {200, 200, 200, 200, 200};
    char data[1000] = {0};

    for (int round = 0; round < 400; round++) { /* wherever the laps begin */
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        CHECK_EQ(2, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 5, NULL));
        CHECK_EQ(2, runs_in_use(q.arena));
        CHECK_EQ(MPSHM_E_FULL, put(&q, 200, 0, NULL));
        CHECK(take_place(&q) == NULL);
        CHECK_EQ(2, runs_in_use(q.arena));
        CHECK_EQ(1, mpshm_queue_full(q.arena));
        CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(q.arena, q.writer), NULL, 1));
        drain(&q, 3);
        CHECK_EQ(0, mpshm_queue_full(q.arena));
        CHECK_EQ(0, mpshm_queue_wait_room(END(q.arena, q.writer), NULL, LONG_MS));
        mpshm_place *place = take_place(&q);

        CHECK(place->at >= 0 && place->at != MPSHM_PENDING);
        CHECK_EQ(2, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 5, NULL));
        CHECK_EQ(3, mpshm_queue_size(q.arena));
        CHECK_EQ(1, mpshm_queue_full(q.arena));
        mpshm_place_give(place);
        mpshm_place_give(place); /* nothing more */
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        drain(&q, 3);
    }
    end_queue(&q);
}

static void
held_place_comes_in_its_order_and_once(void)
{
    struct queue q = queue_of(roomy(), 4, 0, 0);
    mpshm_place *places[2];

    CHECK_EQ(1, put(&q, 10, 0, NULL));
    places[0] = take_place(&q);
    places[1] = take_place(&q);
    CHECK_EQ(1, put(&q, 200, 3, NULL));
    for (uint32_t wrong = 1; wrong <= RING_SLOTS; wrong += RING_SLOTS - 1) { /* another's; another lap's */
        mpshm_place forged = *places[1];

        forged.at += wrong;
        CHECK_EQ(MPSHM_E_DAMAGED, put(&q, 1, 0, &forged));
    }
    CHECK_EQ(-EMSGSIZE, put(&q, SMALL_RUN_BYTES + 1, 0, places[0]));
    CHECK_EQ(1, put(&q, 500, 1, places[0]));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 0, places[0])); /* it is used up */
    CHECK(take_place(&q) == NULL);
    check_next(&q, 10, 0);
    check_next(&q, 500, 1);
    check_next(&q, 200, 3);
    CHECK_EQ(1, mpshm_queue_size(q.arena));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(q.batch, 0));
    uint64_t buffer = 5000;
    mpshm_parcel *parcel = parcel_with(q.arena, &buffer, 1, 1);

    CHECK_EQ(0, send_parcel(&q, parcel, 1, places[1]));
    mpshm_parcel_free(parcel);
    drain(&q, 1);
    end_queue(&q);
}

/* A place that is kept for long takes one place, not the queue. */
static void
held_place_takes_one_place(void)
{
    struct queue q = queue_of(roomy(), 2, 0, 0);
    mpshm_place *place = take_place(&q);

    for (unsigned i = 0; i < RING_SLOTS - 1; i++) {
        CHECK_EQ(1, put(&q, 200, i, NULL));
        CHECK_EQ(MPSHM_E_FULL, put(&q, 200, i, NULL));
        CHECK_EQ(1, mpshm_queue_full(q.arena));
        check_next(&q, 200, i);
        CHECK_EQ(i == RING_SLOTS - 2, mpshm_queue_full(q.arena));
    }
    CHECK_EQ(MPSHM_E_FULL, put(&q, 200, 0, NULL)); /* once around */
    CHECK_EQ(1, put(&q, 200, 7, place));
    check_next(&q, 200, 7);
    CHECK_EQ(1, put(&q, 200, 8, NULL));
    CHECK_EQ(1, put(&q, 200, 9, NULL));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 200, 9, NULL));
    drain(&q, 2);
    end_queue(&q);
}

/* More than any ring has slots for: the rest is pending. */
static void
queue_with_more_places_than_slots_counts_what_is_pending(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);

    q.arena->places = RING_SLOTS + 2;
    uint32_t count = fill_ring(&q);

    CHECK_EQ(RING_SLOTS, count);
    CHECK_EQ(0, mpshm_queue_full(q.arena));
    mpshm_place *first = take_place(&q), *second = take_place(&q);

    CHECK_EQ(MPSHM_PENDING, first->at);
    CHECK_EQ(1, mpshm_queue_full(q.arena));
    CHECK(take_place(&q) == NULL);
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 0, NULL));
    CHECK_EQ(1, mpshm_queue_receive(q.batch, 1, 0));
    CHECK_EQ(0, mpshm_queue_full(q.arena));
    CHECK(take_place(&q) == NULL); /* it is the ring that has room */
    CHECK_EQ(1, put(&q, 1, 0, first));
    CHECK_EQ(0, mpshm_queue_full(q.arena));
    CHECK_EQ(-EAGAIN, put(&q, 1, 0, NULL));
    mpshm_place_give(second);
    drain(&q, count);
    end_queue(&q);
}

static void
bytes_limit_counts_slots_and_chunks(void)
{
    uint64_t limit = 2 * MPSHM_SLOT_BYTES + 4096;
    struct queue q = queue_of(roomy(), 0, limit, 0);

    for (int round = 0; round < 400; round++) {
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        CHECK_EQ(0, mpshm_queue_full(q.arena));
        CHECK_EQ(1, put(&q, 4096, 0, NULL));
        CHECK_EQ(limit, bytes_used(&q));
        CHECK_EQ(1, mpshm_queue_full(q.arena));
        uint64_t tail = atomic_load(&q.arena->zero.head->tail);

        CHECK_EQ(MPSHM_E_FULL, put(&q, 0, 0, NULL));
        CHECK_EQ(tail, atomic_load(&q.arena->zero.head->tail)); /* burns no position */
        CHECK_EQ(1, runs_in_use(q.arena));
        drain(&q, 2);
        CHECK_EQ(0, bytes_used(&q));
    }
    CHECK_EQ(0, HEAD_SKIPS(atomic_load(&q.arena->zero.head->head)));
    end_queue(&q);
}

static void
one_message_larger_than_the_bytes_limit_passes_alone(void)
{
    struct queue q = queue_of(roomy(), 0, 1000, 0);
    uint64_t buffer = 100000;

    for (int i = 0; i < 3; i++) {
        mpshm_parcel *large = parcel_with(q.arena, &buffer, 1, 1);
        mpshm_parcel *other = parcel_with(q.arena, &buffer, 1, 1);

        CHECK_EQ(0, send_parcel(&q, large, 1, NULL));
        CHECK_EQ(MPSHM_E_FULL, send_parcel(&q, other, 1, NULL));
        CHECK_EQ(MPSHM_E_FULL, put(&q, 0, 0, NULL));
        CHECK_EQ(1, gauges(q.arena).runs_loaned);
        drain(&q, 1);
        CHECK_EQ(0, bytes_used(&q));
        CHECK_EQ(1, put(&q, 0, 0, NULL));
        CHECK_EQ(MPSHM_E_FULL, send_parcel(&q, other, 1, NULL)); /* not alone */
        drain(&q, 1);
        mpshm_parcel_free(large);
        mpshm_parcel_free(other);
    }
    end_queue(&q);
}

/* A later message that would fit does not go before it. */
static void
position_is_the_turn_of_a_message_that_waits_for_bytes(void)
{
    struct queue q = queue_of(roomy(), 0, 10000, 0);
    mpshm_place *large, *small;

    CHECK_EQ(1, put(&q, 4096, 1, NULL));
    large = take_place(&q);
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 0, NULL)); /* nobody knows yet how large it is */
    CHECK_EQ(MPSHM_E_FULL, put(&q, 8192, 2, large));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 0, NULL));
    small = take_place(&q);
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 3, small));
    CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(q.arena, q.writer), large, 1));
    CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(q.arena, q.writer), small, 1));
    CHECK_EQ(0, runs_in_use(q.arena) - 1);
    check_next(&q, 4096, 1);
    CHECK_EQ(0, mpshm_queue_wait_room(END(q.arena, q.writer), large, LONG_MS));
    CHECK_EQ(1, put(&q, 8192, 2, large));
    CHECK_EQ(1, put(&q, 1, 3, small)); /* it fits beside */
    check_next(&q, 8192, 2);
    check_next(&q, 1, 3);
    end_queue(&q);
}

static void
message_that_gives_its_turn_up_lets_others_in(void)
{
    struct queue q = queue_of(roomy(), 0, 10000, 0);
    mpshm_place *large, *small;

    CHECK_EQ(1, put(&q, 4096, 1, NULL));
    large = take_place(&q);
    CHECK_EQ(MPSHM_E_FULL, put(&q, 8192, 2, large));
    int pid = fork_hooked();

    if (pid == 0) {
        small = take_place(&q);
        CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 3, small));
        CHECK_EQ(0, mpshm_queue_wait_room(END(q.arena, q.writer), small, LONG_MS));
        CHECK_EQ(1, put(&q, 1, 3, small));
        _exit(0);
    }
    while (atomic_load(&q.arena->chain->waiters.room_mark) == 0) {
        usleep(1000);
    }
    wait_asleep(pid);
    mpshm_place_give(large);
    wait_child(pid);
    check_next(&q, 4096, 1);
    check_next(&q, 1, 3);
    CHECK_EQ(1, HEAD_SKIPS(atomic_load(&q.arena->zero.head->head)));
    end_queue(&q);
}

static void
dead_message_that_waits_for_bytes_is_skipped_by_those_behind(void)
{
    for (int said = 0; said < 2; said++) {
        struct queue q = queue_of(roomy(), 0, 10000, 0);

        CHECK_EQ(1, put(&q, 4096, 1, NULL));
        int pid = fork_hooked();

        if (pid == 0) {
            mpshm_place *place = take_place(&q);

            if (said) {
                CHECK_EQ(MPSHM_E_FULL, put(&q, 8192, 2, place));
            }
            die();
        }
        wait_killed(pid);
        mpshm_place *small = take_place(&q);
        int n = put(&q, 1, 3, small);

        CHECK_EQ(MPSHM_E_FULL, n);
        CHECK_EQ(0, mpshm_queue_wait_room(END(q.arena, q.writer), small, 20));
        CHECK_EQ(1, put(&q, 1, 3, small));
        check_next(&q, 4096, 1);
        check_next(&q, 1, 3);
        end_queue(&q);
    }
}

/* What no ring has room for burns no position and keeps no bytes. */
static void
full_ring_gives_bytes_back(void)
{
    struct queue q = queue_of(roomy(), 0, UINT64_C(1) << 20, 0);
    uint32_t count = fill_ring(&q);

    CHECK_EQ(count * MPSHM_SLOT_BYTES, bytes_used(&q));
    CHECK_EQ(-EAGAIN, put(&q, 200, 0, NULL));
    CHECK_EQ(count * MPSHM_SLOT_BYTES, bytes_used(&q));
    drain(&q, count);
    CHECK_EQ(0, bytes_used(&q));
    end_queue(&q);
}

/* Forged slots. */

static void
forge(struct queue *q, uint32_t length, uint16_t flags, uint16_t stream_runs, uint32_t buffer_runs,
      const uint32_t descriptor[5])
{
    char slot[MPSHM_SLOT_BYTES] = {0};

    length = htonl(length);
    memcpy(slot, &length, 4);
    memcpy(slot + 4, &flags, 2);
    memcpy(slot + 6, &stream_runs, 2);
    memcpy(slot + 8, &buffer_runs, 4);
    if (descriptor != NULL) {
        memcpy(slot + 12, descriptor, 20);
    }
    put_raw(q->arena, slot);
}

/* Gives the descriptor that is said to have failed. */
static mpshm_descriptor
check_forged(struct queue *q, int error)
{
    CHECK_EQ(1, put(q, 300, 5, NULL));
    CHECK_EQ(error, mpshm_queue_receive_one(q->batch, 0));
    mpshm_descriptor bad = q->batch->messages[0].bad;

    check_next(q, 300, 5);
    CHECK_EQ(0, runs_in_use(q->arena));
    return bad;
}

static void
forged_slot_costs_only_its_own_message(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    const uint32_t nowhere[5] = {15, 0, 1, 0, 1}, past[5] = {0, 1 << 20, 1, 0, 1};
    const uint32_t empty[5] = {0, 0, 0, 0, 1}, huge[5] = {0, 0, 0, 1, 1};

    CHECK_EQ(1, put(&q, 300, 5, NULL)); /* segment 0 is there */
    check_next(&q, 300, 5);
    forge(&q, 125, 0, 0, 0, NULL);
    check_forged(&q, MPSHM_E_LENGTH);
    forge(&q, UINT32_MAX, 0, 0, 0, NULL);
    check_forged(&q, MPSHM_E_LENGTH);
    forge(&q, SIGN | 125, 0, 0, 0, NULL);
    check_forged(&q, MPSHM_E_LENGTH);
    forge(&q, SIGN | 7, 0, 0, 0, NULL);
    check_forged(&q, MPSHM_E_HEAD);
    forge(&q, SIGN | 28, 4, 1, 0, NULL);
    check_forged(&q, MPSHM_E_FLAG);
    forge(&q, SIGN | 28, 2, 1, 0, NULL);
    check_forged(&q, MPSHM_E_FLAG);
    forge(&q, SIGN | 28, 0, 0, 0, NULL);
    check_forged(&q, MPSHM_E_COUNT);
    forge(&q, SIGN | 124, 0, 3, 4, NULL);
    check_forged(&q, MPSHM_E_COUNT);
    forge(&q, SIGN | 28, 1, UINT16_MAX, UINT32_MAX, NULL);
    check_forged(&q, MPSHM_E_COUNT);
    forge(&q, SIGN | 29, 0, 1, 0, NULL);
    check_forged(&q, MPSHM_E_EXTRA);
    forge(&q, SIGN | 28, 3, 1, 0, NULL);
    check_forged(&q, MPSHM_E_EXTRA);
    for (uint16_t stream_runs = 0; stream_runs < 2; stream_runs++) {
        for (uint16_t flags = 0; flags < 2; flags++) {
            uint32_t buffers = 1 - stream_runs;

            forge(&q, SIGN | 28, flags, stream_runs, buffers, nowhere);
            CHECK_EQ(15, check_forged(&q, MPSHM_E_SEGMENT).mmap_id);
            forge(&q, SIGN | 28, flags, stream_runs, buffers, past);
            check_forged(&q, MPSHM_E_CHUNK);
            forge(&q, SIGN | 28, flags, stream_runs, buffers, empty);
            check_forged(&q, MPSHM_E_SIZE);
            forge(&q, SIGN | 28, flags, stream_runs, buffers, huge);
            check_forged(&q, MPSHM_E_SIZE);
        }
    }
    end_queue(&q);
}

/* Change a field of the frame of the next message, where it lies. */
static void
change_field(struct queue *q, int at, uint32_t add)
{
    _Atomic uint64_t *word = &slot_data(&q->arena->zero, first_position(q))[at / 8];
    uint64_t value = atomic_load(word);
    uint32_t field;

    memcpy(&field, (char *) &value + at % 8, 4);
    field += add;
    memcpy((char *) &value + at % 8, &field, 4);
    atomic_store(word, value);
}

/* What is refused is nobody's run, once its slot has passed. */
static void
check_refused(struct queue *q, uint32_t runs)
{
    CHECK_EQ(1, put(q, 5, 5, NULL));
    CHECK_EQ(runs, gauges(q->arena).runs_in_flight);
    CHECK(mpshm_queue_receive_one(q->batch, 0) < 0);
    check_next(q, 5, 5);
    CHECK(gauges(q->arena).runs_in_flight > 0);
    mpshm_reap(q->arena);
    CHECK_EQ(0, runs_in_use(q->arena));
}

/* But for the tag: a run in flight through a ring has the slot's position, and no descriptor says that. */
static void
descriptor_changed_by_one_is_refused_and_the_run_nobodys(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffers[7] = {5000, 1, 1, 1, 1, 1, 1};

    for (int at = 12; at < 28; at += 4) {
        CHECK_EQ(1, put(&q, 300, 7, NULL));
        change_field(&q, at, 1);
        check_refused(&q, 1);
        for (uint32_t count = 1; count <= 7; count += 6) { /* 7: by an index */
            mpshm_parcel *parcel = parcel_with(q.arena, buffers, count, 40);

            CHECK_EQ(0, send_parcel(&q, parcel, 40, NULL));
            mpshm_parcel_free(parcel);
            change_field(&q, at, 1);
            check_refused(&q, count == 1 ? 1 : 8);
        }
    }
    end_queue(&q);
}

static void
repeated_slot_is_stale(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    char slot[MPSHM_SLOT_BYTES];

    CHECK_EQ(1, put(&q, 300, 7, NULL));
    memcpy(slot, (char *) slot_data(&q.arena->zero, 0), sizeof slot);
    check_next(&q, 300, 7);
    put_raw(q.arena, slot);
    CHECK_EQ(MPSHM_E_STALE, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(1, put(&q, 300, 7, NULL));
    memcpy(slot, (char *) slot_data(&q.arena->zero, 2), sizeof slot);
    put_raw(q.arena, slot);
    put_raw(q.arena, slot);
    check_next(&q, 300, 7); /* it is the one that the run was sealed for */
    CHECK_EQ(MPSHM_E_STALE, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(MPSHM_E_STALE, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(q.batch, 0));
    end_queue(&q);
}

/* An index with a descriptor that is wrong: the others' chunks go back too. */
static void
index_with_a_stale_descriptor_gives_the_others_back(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffers[7] = {5000, 1, 1, 1, 1, 1, 1};

    for (int victim = 0; victim < 7; victim++) {
        mpshm_parcel *parcel = parcel_with(q.arena, buffers, 7, 40);
        char *index = parcel->index.run.data;

        CHECK_EQ(0, send_parcel(&q, parcel, 40, NULL));
        mpshm_parcel_free(parcel);
        index[victim * 20 + 8]++; /* its size */
        CHECK_EQ(1, put(&q, 5, 5, NULL));
        CHECK_EQ(MPSHM_E_STALE, mpshm_queue_receive_one(q.batch, 0));
        check_next(&q, 5, 5);
        CHECK(gauges(q.arena).runs_in_flight > 0); /* what nobody names any more */
        mpshm_reap(q.arena);
        CHECK_EQ(0, runs_in_use(q.arena));
    }
    end_queue(&q);
}

static void
index_too_short_for_its_count_is_refused(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffers[7] = {1, 1, 1, 1, 1, 1, 1};
    mpshm_parcel *parcel = parcel_with(q.arena, buffers, 7, 40);

    CHECK_EQ(0, send_parcel(&q, parcel, 40, NULL));
    mpshm_parcel_free(parcel);
    change_field(&q, 8, 1000); /* buffer runs */
    CHECK_EQ(MPSHM_E_INDEX, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(7, gauges(q.arena).runs_in_flight);
    mpshm_reap(q.arena);
    end_queue(&q);
}

static void
forged_slot_among_many_stands_in_its_place(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);
    uint64_t buffer = 5000;
    mpshm_parcel *parcel = parcel_with(q.arena, &buffer, 1, 1);

    CHECK_EQ(1, put(&q, 5, 1, NULL));
    forge(&q, 125, 0, 0, 0, NULL);
    CHECK_EQ(0, send_parcel(&q, parcel, 1, NULL));
    mpshm_parcel_free(parcel);
    CHECK_EQ(1, put(&q, 500, 2, NULL));
    CHECK_EQ(4, mpshm_queue_receive(q.batch, 9, 0));
    CHECK_EQ(5, q.batch->sizes[0]);
    CHECK_EQ(MPSHM_E_LENGTH, q.batch->messages[1].error);
    CHECK_EQ(1, q.batch->messages[2].runs);
    CHECK(is_filled(q.batch->data + q.batch->messages[3].at, 500, 2));
    end_queue(&q);
}

static void
end_is_said_however_one_waits(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 0);

    CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(q.batch, 0));
    close(q.writer);
    CHECK_EQ(MPSHM_E_END, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(MPSHM_E_END, mpshm_queue_receive_one(q.batch, -1));
    CHECK_EQ(MPSHM_E_END, mpshm_queue_receive_one(q.batch, 10));
    q.writer = dup(q.reader);
    end_queue(&q);
}

/* A forged slot had no place: taking it out must not make the bounded queue full or larger. */
static void
forged_slots_do_not_disturb_a_bounded_queue(void)
{
    struct queue q = queue_of(roomy(), 2, 100000, 0);

    forge(&q, 125, 0, 0, 0, NULL);
    CHECK_EQ(MPSHM_E_LENGTH, mpshm_queue_receive_one(q.batch, 0));
    CHECK_EQ(0, mpshm_queue_full(q.arena));
    CHECK_EQ(1, put(&q, 200, 0, NULL));
    CHECK_EQ(1, put(&q, 200, 0, NULL));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 200, 0, NULL));
    drain(&q, 2);
    end_queue(&q);
}

/* Joinable. */

static void
joinable_counts_put_and_done(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 1);
    uint32_t sizes[] = {1, 200, 1};
    char data[202] = {0};

    CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
    CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
    CHECK_EQ(1, put(&q, 1, 0, NULL));
    CHECK_EQ(3, mpshm_queue_put_some(END(q.arena, q.writer), data, sizes, 3, NULL));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 1));
    drain(&q, 4);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 1)); /* taken, but not done */
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(0, mpshm_task_done(q.arena));
    }
    CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
    CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
    mpshm_place *place = take_place(&q);

    CHECK_EQ(MPSHM_PENDING, place->at);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 1));
    CHECK_EQ(-ERANGE, mpshm_task_done(q.arena)); /* it cannot have been taken */
    mpshm_place_give(place); /* it will not come */
    CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
    end_queue(&q);
}

static void
skipped_positions_of_a_joinable_queue_need_not_be_done(void)
{
    struct queue q = queue_of(roomy(), 3, 0, 1);

    for (int i = 0; i < 1000; i++) {
        mpshm_place *place = take_place(&q);

        CHECK_EQ(1, put(&q, 1, 0, NULL));
        CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 0));
        mpshm_place_give(place);
        drain(&q, 1);
        CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 0));
        CHECK_EQ(0, mpshm_task_done(q.arena));
        CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
        CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
    }
    CHECK_EQ(1000, HEAD_SKIPS(atomic_load(&q.arena->zero.head->head)));
    end_queue(&q);
}

/* The head's count of skips turns around, and `done` knows how often. */
static void
skips_are_counted_beyond_their_bits(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 1);
    struct ring_head *ring = q.arena->zero.head;
    _Atomic uint64_t *done = &q.arena->chain->done;
    const uint64_t turn = UINT64_C(1) << (64 - POSITION_BITS);

    CHECK_EQ(1, put(&q, 1, 0, NULL));
    drain(&q, 1);
    for (uint64_t skips = turn / 2 - 1; skips < 5 * turn; skips += turn / 2) {
        uint64_t position = (skips + 100) / RING_SLOTS * RING_SLOTS;

        /* As if so many had been skipped, but for one, and those done that were not. */
        for (uint64_t i = 0; i < RING_SLOTS; i++) {
            atomic_store(&ring->slots[i].word, word_of(&q.arena->zero, position, 0, SLOT_FREE));
        }
        uint64_t turns = atomic_load(done) >> POSITION_BITS;

        atomic_store(&ring->head, HEAD_WORD(skips % turn, position));
        atomic_store(&ring->tail, position);
        atomic_store(done, turns << POSITION_BITS | ((position - skips) & POSITION_MASK));
        CHECK_EQ(0, tasks_unfinished(q.arena));
        for (int i = 0; i < 3; i++) { /* over the half turn */
            uint64_t at;

            arena_lock(q.arena);
            CHECK_EQ(1, ring_claim(q.arena, SLOT_HELD, 1, &at));
            CHECK_EQ(1, tasks_unfinished(q.arena));
            ring_give_up(q.arena, at);
            arena_unlock(q.arena);
            CHECK_EQ(0, tasks_unfinished(q.arena));
        }
        CHECK_EQ(turns + 1, atomic_load(done) >> POSITION_BITS);
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        CHECK_EQ(1, tasks_unfinished(q.arena));
        drain(&q, 1);
        CHECK_EQ(0, mpshm_task_done(q.arena));
        CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
    }
    end_queue(&q);
}

static void
dead_producers_messages_need_not_be_done(void)
{
    for (int pending = 0; pending < 2; pending++) {
        struct queue q = queue_of(roomy(), pending ? 0 : 5, 0, 1);

        CHECK_EQ(1, put(&q, 1, 0, NULL));
        int pid = fork_hooked();

        if (pid == 0) {
            for (int i = 0; i < 3; i++) {
                CHECK(take_place(&q) != NULL);
            }
            CHECK_EQ(4, tasks_unfinished(q.arena));
            die();
        }
        wait_killed(pid);
        drain(&q, 1);
        CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 0));
        CHECK(mpshm_task_done(q.arena) >= 0);
        CHECK_EQ(0, mpshm_wait_done(q.arena, LONG_MS));
        end_queue(&q);
    }
}

static uint64_t
claim_at(const struct queue *q, enum slot_state state)
{
    uint64_t at;

    arena_lock(q->arena);
    CHECK_EQ(1, ring_claim(q->arena, state, 1, &at));
    arena_unlock(q->arena);
    return at;
}

/* For what is no message yet, and perhaps never will be.  It would be a later message's. */
static void
task_done_once_too_often_is_refused_while_positions_are_open(void)
{
    static const enum slot_state states[] = {SLOT_HELD, SLOT_WRITING};

    for (int i = 0; i < 4; i++) {
        struct queue q = queue_of(roomy(), 5, 0, 1);
        bool is_killed = i >= 2;

        CHECK_EQ(1, put(&q, 1, 0, NULL));
        int pid = is_killed ? fork_hooked() : 0;
        uint64_t at = pid == 0 ? claim_at(&q, states[i % 2]) : 0;

        if (is_killed && pid == 0) {
            die();
        }
        if (is_killed) {
            wait_killed(pid);
        }
        CHECK_EQ(1, put(&q, 1, 0, NULL)); /* behind the open one */
        drain(&q, 2);
        for (int n = 0; n < 2; n++) {
            CHECK_EQ(0, mpshm_task_done(q.arena));
        }
        CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
        if (!is_killed) {
            arena_lock(q.arena);
            ring_give_up(q.arena, at);
            arena_unlock(q.arena);
        }
        CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        CHECK_EQ(-ETIMEDOUT, mpshm_wait_done(q.arena, 0));
        drain(&q, 1);
        CHECK_EQ(0, mpshm_task_done(q.arena));
        CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
        CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
        end_queue(&q);
    }
}

/* The head stands still, and the ring goes on behind it for a lap. */
/* What is taken while a place is held has passed, also once there is a message in that place. */
static void
a_message_that_came_late_takes_one_place(void)
{
    struct queue q = queue_of(tiny, 4, 0, 0);
    mpshm_place *first = take_place(&q), *second = take_place(&q);

    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(1, put(&q, 1, i, NULL));
        check_next(&q, 1, i);
    }
    CHECK_EQ(1, put(&q, 1, 2, first));
    CHECK_EQ(1, put(&q, 1, 3, second));
    CHECK_EQ(0, mpshm_queue_full(q.arena));
    CHECK_EQ(1, put(&q, 1, 4, NULL));
    CHECK_EQ(1, put(&q, 1, 5, NULL));
    CHECK_EQ(1, mpshm_queue_full(q.arena));
    CHECK_EQ(MPSHM_E_FULL, put(&q, 1, 6, NULL));
    for (unsigned i = 2; i < 6; i++) {
        check_next(&q, 1, i);
    }
    end_queue(&q);
}

static void
tasks_are_counted_exactly_while_a_stopped_producer_holds_the_head(void)
{
    struct queue q = queue_of(roomy(), 5, 0, 1);
    uint64_t at = claim_at(&q, SLOT_HELD);

    for (uint32_t i = 0; i < 2 * RING_SLOTS; i++) {
        if (i % (RING_SLOTS - 2) == RING_SLOTS - 3) { /* it can go no further */
            arena_lock(q.arena);
            ring_give_up(q.arena, at);
            arena_unlock(q.arena);
            at = claim_at(&q, SLOT_HELD);
        }
        CHECK_EQ(-ERANGE, mpshm_task_done(q.arena));
        CHECK_EQ(1, put(&q, 1, 0, NULL));
        drain(&q, 1);
        CHECK_EQ(0, mpshm_task_done(q.arena));
    }
    arena_lock(q.arena);
    ring_give_up(q.arena, at);
    arena_unlock(q.arena);
    CHECK_EQ(0, mpshm_wait_done(q.arena, 0));
    end_queue(&q);
}

static void
last_task_done_wakes_all_who_join(void)
{
    struct queue q = queue_of(roomy(), 0, 0, 1);
    int pids[3];

    nobody_watches_soon(q.arena);
    CHECK_EQ(1, put(&q, 1, 0, NULL));
    for (int i = 0; i < 3; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            while (mpshm_wait_done(q.arena, LONG_MS) != 0) {
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++) {
        wait_asleep(pids[i]);
    }
    drain(&q, 1);
    CHECK_EQ(0, mpshm_task_done(q.arena));
    for (int i = 0; i < 3; i++) {
        wait_child(pids[i]);
    }
    end_queue(&q);
}

static void
place_that_is_given_back_wakes_who_joins(void)
{
    for (int bounded = 0; bounded < 2; bounded++) {
        struct queue q = queue_of(roomy(), bounded ? 3 : 0, 0, 1);
        mpshm_place *place = take_place(&q);
        int pid = fork_hooked();

        if (pid == 0) {
            while (mpshm_wait_done(q.arena, LONG_MS) != 0) {
            }
            _exit(0);
        }
        wait_asleep(pid);
        mpshm_place_give(place);
        wait_child(pid);
        end_queue(&q);
    }
}

static void
all_who_wait_for_the_place_of_a_queue_of_one_are_let_in(void)
{
    enum { SENDERS = 4 };
    struct queue q = queue_of(roomy(), 1, 0, 0);
    int pids[SENDERS];

    CHECK_EQ(1, put(&q, 1, 0, NULL));
    for (int i = 0; i < SENDERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            while (put(&q, 1, 0, NULL) != 1) {
                (void) mpshm_queue_wait_room(END(q.arena, q.writer), NULL, LONG_MS);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < SENDERS; i++) {
        wait_asleep(pids[i]);
    }
    for (int i = 0; i <= SENDERS; i++) {
        CHECK_EQ(1, receive_patiently(q.batch));
    }
    for (int i = 0; i < SENDERS; i++) {
        wait_child(pids[i]);
    }
    end_queue(&q);
}

/* Hammering. */

#define WORKERS 4
#define ROUNDS 3000u
#define PLACES 5u

struct shared {
    _Atomic uint64_t put, got, sum_put, sum_got;
    _Atomic int most, now;
    _Atomic bool stop;
};
static struct shared *shared;

static void
note_most(int now)
{
    int most = atomic_load(&shared->most);

    while (now > most && !atomic_compare_exchange_weak(&shared->most, &most, now)) {
    }
}

static const uint32_t hammer_sizes[] = {8, 124, 125, 1000, 20000};

static void
put_rounds(mpshm_arena *arena, int writer, unsigned seed)
{
    static _Thread_local char data[SMALL_RUN_BYTES];

    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint64_t value = (uint64_t) seed << 32 | i;
        uint32_t size = hammer_sizes[(i + seed) % 5];
        int n;

        memcpy(data, &value, 8);
        memset(data + 8, (char) i, size - 8);
        while ((n = mpshm_queue_put_one(END(arena, writer), data, size, NULL)) < 0) {
            CHECK_EQ(MPSHM_E_FULL, n);
            (void) mpshm_queue_wait_room(END(arena, writer), NULL, 20);
        }
        note_most(atomic_fetch_add(&shared->now, 1) + 1);
        atomic_fetch_add(&shared->put, 1);
        atomic_fetch_add(&shared->sum_put, value);
    }
}

static void
get_rounds(mpshm_arena *arena, int reader, uint32_t most)
{
    mpshm_batch *batch = batch_of(arena, &counts, reader, 0);

    while (!atomic_load(&shared->stop)) {
        CHECK(mpshm_queue_size(arena) <= PLACES);
        int n = mpshm_queue_receive(batch, most, 20);

        CHECK(n > 0 || n == -EAGAIN || n == -EINTR);
        for (int i = 0; i < n; i++) {
            const char *at = batch->data + batch->messages[i].at;
            uint64_t value, size = batch->messages[i].size;

            CHECK_EQ(0, batch->messages[i].error);
            memcpy(&value, at, 8);
            CHECK_EQ(hammer_sizes[((uint32_t) value + (value >> 32)) % 5], size);
            for (uint64_t j = 8; j < size; j++) {
                if (at[j] != (char) value) {
                    check_failed(__FILE__, __LINE__, "torn");
                }
            }
            atomic_fetch_sub(&shared->now, 1);
            atomic_fetch_add(&shared->sum_got, value);
            if (atomic_fetch_add(&shared->got, 1) + 1 == (uint64_t) WORKERS * ROUNDS) {
                atomic_store(&shared->stop, true);
            }
        }
    }
    free_batch(batch);
}

static void
open_shared(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
}

static void
check_hammered(struct queue *q)
{
    CHECK_EQ(WORKERS * ROUNDS, atomic_load(&shared->got));
    CHECK_EQ(atomic_load(&shared->sum_put), atomic_load(&shared->sum_got));
    CHECK_EQ(0, open_positions(q));
    end_queue(q);
}

static void
processes_hammering_a_bounded_queue_lose_nothing(void)
{
    struct queue q = queue_of(roomy(), PLACES, 60000, 0);
    int pids[2 * WORKERS];

    open_shared();
    for (int i = 0; i < 2 * WORKERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            if (i < WORKERS) {
                put_rounds(q.arena, q.writer, (unsigned) i);
            } else {
                get_rounds(q.arena, q.reader, i % 2 ? 1 : 32);
            }
            exit(0);
        }
    }
    for (int i = 0; i < 2 * WORKERS; i++) {
        wait_child(pids[i]);
    }
    check_hammered(&q);
}

static struct queue hammered;

static void *
put_in_thread(void *argument)
{
    put_rounds(hammered.arena, hammered.writer, (unsigned) (uintptr_t) argument);
    return NULL;
}

static void *
get_in_thread(void *argument)
{
    get_rounds(hammered.arena, hammered.reader, (uint32_t) (uintptr_t) argument);
    return NULL;
}

static void
threads_hammering_a_bounded_queue_lose_nothing(void)
{
    pthread_t threads[2 * WORKERS];

    open_shared();
    hammered = queue_of(roomy(), PLACES, 60000, 0);
    for (uintptr_t i = 0; i < WORKERS; i++) {
        CHECK_EQ(0, pthread_create(&threads[2 * i], NULL, put_in_thread, (void *) i));
        CHECK_EQ(0, pthread_create(&threads[2 * i + 1], NULL, get_in_thread,
                                   (void *) (uintptr_t) (i % 2 ? 1 : 32)));
    }
    for (int i = 0; i < 2 * WORKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    check_hammered(&hammered);
}

static void *
block_for_one(void *argument)
{
    mpshm_batch *batch = batch_of(hammered.arena, &counts, hammered.reader, 50);
    (void) argument;
    CHECK_EQ(200, receive_patiently(batch));
    free_batch(batch);
    atomic_fetch_add(&shared->got, 1);
    return NULL;
}

static void
each_of_many_blocked_threads_gets_one(void)
{
    enum { THREADS = 12 };
    pthread_t threads[THREADS];

    open_shared();
    hammered = queue_with_overflow(0, 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, block_for_one, NULL));
    }
    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_EQ(1, put(&hammered, 200, i, NULL));
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQ(THREADS, atomic_load(&shared->got));
    end_queue(&hammered);
}

static const struct test tests[] = {
    TEST(every_small_size_round_trips),
    TEST(message_that_goes_on_in_the_overflow_needs_no_run),
    TEST(message_received_alone_has_zeros_behind_it),
    TEST(queue_bounded_by_bytes_counts_what_an_overflow_would_hold),
    TEST(forged_length_past_the_overflow_costs_only_its_own_message),
    TEST(tiny_chunks_carry_small_messages_too),
    TEST(many_of_mixed_sizes_arrive_in_order),
    TEST(more_than_fit_at_once_are_put_in_part),
    TEST(too_large_one_in_the_middle_ends_the_batch_before_it),
    TEST(parcels_of_any_number_of_buffers_round_trip),
    TEST(long_stream_in_runs_arrives_as_runs),
    TEST(message_not_taken_goes_back_with_the_next_receive),
    TEST(full_ring_keeps_no_run),
    TEST(unbounded_queue_counts_what_waits_for_the_ring),
    TEST(nothing_is_claimed_when_nobody_reads),
    TEST(bounded_queue_is_full_at_its_limit_exactly),
    TEST(held_place_comes_in_its_order_and_once),
    TEST(held_place_takes_one_place),
    TEST(queue_with_more_places_than_slots_counts_what_is_pending),
    TEST(bytes_limit_counts_slots_and_chunks),
    TEST(one_message_larger_than_the_bytes_limit_passes_alone),
    TEST(position_is_the_turn_of_a_message_that_waits_for_bytes),
    TEST(message_that_gives_its_turn_up_lets_others_in),
    TEST(dead_message_that_waits_for_bytes_is_skipped_by_those_behind),
    TEST(full_ring_gives_bytes_back),
    TEST(forged_slot_costs_only_its_own_message),
    TEST(descriptor_changed_by_one_is_refused_and_the_run_nobodys),
    TEST(repeated_slot_is_stale),
    TEST(index_with_a_stale_descriptor_gives_the_others_back),
    TEST(index_too_short_for_its_count_is_refused),
    TEST(forged_slot_among_many_stands_in_its_place),
    TEST(end_is_said_however_one_waits),
    TEST(forged_slots_do_not_disturb_a_bounded_queue),
    TEST(joinable_counts_put_and_done),
    TEST(skipped_positions_of_a_joinable_queue_need_not_be_done),
    TEST(skips_are_counted_beyond_their_bits),
    TEST(dead_producers_messages_need_not_be_done),
    TEST(task_done_once_too_often_is_refused_while_positions_are_open),
    TEST(a_message_that_came_late_takes_one_place),
    TEST(tasks_are_counted_exactly_while_a_stopped_producer_holds_the_head),
    TEST(last_task_done_wakes_all_who_join),
    TEST(place_that_is_given_back_wakes_who_joins),
    TEST(all_who_wait_for_the_place_of_a_queue_of_one_are_let_in),
    TEST(processes_hammering_a_bounded_queue_lose_nothing),
    TEST(threads_hammering_a_bounded_queue_lose_nothing),
    TEST(each_of_many_blocked_threads_gets_one),
};
RUN_TESTS(tests)
