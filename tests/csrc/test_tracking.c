/* Messages that are tracked: each is received or taken back, and never both.

   RACES: how many messages each race has; `make races` tries a million. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "queue.h"

static mpshm_arena *arena;
static mpshm_counts counts;
static int ends[2];

/* 4 KiB chunks, 64 to a segment. */
static const mpshm_geometry usual = {.stride = UINT64_C(5) << 16, .segment_bytes = UINT64_C(1) << 18,
                                     .segment_limit = 12, .chunk_shift = 12};

static void
open_pipe(bool is_socket)
{
    CHECK_EQ(0, is_socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends));
    arena = arena_of(usual);
}

static void
open_queue(uint32_t places, int joinable)
{
    make_pipe(ends);
    arena = queue_arena_of(usual, places, 0, joinable);
}

static void
close_all(void)
{
    close(ends[0]);
    close(ends[1]);
    close_clean(arena);
}

/* A message of a number, and of a buffer that is filled by it, unless that has no bytes. */
static mpshm_tracking *
send_tracked(uint32_t number, uint64_t buffer)
{
    static char data[40000];
    mpshm_tracking *tracking = mpshm_tracking_new(arena);
    mpshm_parcel *parcel = parcel_of(arena);
    bool is_queue = arena->slot_bytes != 0;
    int error = 0;

    if (buffer > 0) {
        fill(data, buffer, number);
        error = mpshm_put_buffer(parcel, data, buffer, UINT64_MAX);
    }
    if (is_queue && buffer == 0) {
        error = mpshm_queue_put_tracked(END(arena, ends[1]), (char *) &number, sizeof number, NULL, tracking);
        CHECK_EQ(1, error);
    } else if (is_queue) {
        CHECK_EQ(0, error);
        CHECK_EQ(0, mpshm_queue_put_parcel_tracked(parcel, END(arena, ends[1]), (char *) &number, sizeof number, NULL,
                                                   tracking));
    } else {
        CHECK_EQ(0, error);
        mpshm_parcel_track(parcel, 1);
        CHECK_EQ(0, mpshm_settle(parcel, sizeof number, UINT64_MAX));
        CHECK_EQ(0, mpshm_send_tracked(parcel, ends[1], (char *) &number, sizeof number, tracking));
    }
    mpshm_parcel_free(parcel);
    return tracking;
}

/* The next one of a connection, whole. */
static uint32_t
receive_number(mpshm_reader *reader)
{
    uint32_t number;
    int n;

    while ((n = mpshm_receive(reader, ends[0], arena, UINT32_MAX, 32768)) == -EINTR) { /* it has spun in vain */
    }
    if (n == 0) {
        return UINT32_MAX;
    }
    CHECK(n >= MPSHM_DESCRIPTORS);
    CHECK_EQ(sizeof number, reader->stream_end - reader->stream_at);
    memcpy(&number, reader->bytes + reader->stream_at, sizeof number);
    for (uint32_t i = 0; i < reader->count; i++) {
        CHECK(is_filled(reader->runs[i].data, reader->runs[i].size, number));
    }
    reader->full = 0;
    mpshm_discard(reader);
    return number;
}

static uint32_t
take_number(mpshm_batch *batch)
{
    int n = receive_patiently(batch);
    uint32_t number;

    CHECK(n == (int) sizeof number || n == MPSHM_DESCRIPTORS);
    CHECK_EQ(sizeof number, batch->messages[0].size);
    memcpy(&number, batch->data + batch->messages[0].at, sizeof number);
    for (uint32_t i = 0; i < batch->runs_used; i++) {
        CHECK(is_filled(batch->runs[i].data, batch->runs[i].size, number));
    }
    mpshm_batch_discard(batch);
    return number;
}

static void
a_message_taken_back_is_passed_over(void)
{
    for (int is_socket = 0; is_socket <= 1; is_socket++) {
        open_pipe(is_socket);
        mpshm_reader *reader = mpshm_reader_new(0);

        for (uint64_t size = 0; size <= 30000; size += 30000) {
            mpshm_tracking *first = send_tracked(1, size), *second = send_tracked(2, size);

            CHECK_EQ(MPSHM_TRACK_WAITS, mpshm_tracking_state(first));
            CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(first, NULL));
            CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(first, NULL));
            CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_state(first));
            CHECK_EQ(size > 0 ? 3 : 2, gauges(arena).runs_in_flight); /* one ticket of each, and the second's run */
            CHECK_EQ(2, receive_number(reader));
            CHECK_EQ(MPSHM_TRACK_RECEIVED, mpshm_tracking_state(second));
            CHECK_EQ(MPSHM_TRACK_RECEIVED, mpshm_tracking_cancel(second, NULL));
            CHECK_EQ(0, runs_in_use(arena));
            mpshm_tracking_free(first);
            mpshm_tracking_free(second);
        }
        mpshm_reader_free(reader);
        close_all();
    }
}

static void
a_message_taken_back_gives_its_place_and_its_task(void)
{
    open_queue(2, 1);
    mpshm_batch *batch = batch_of(arena, &counts, ends[0], 0);

    for (uint64_t size = 0; size <= 30000; size += 30000) {
        mpshm_tracking *first = send_tracked(1, size), *second = send_tracked(2, size);

        CHECK_EQ(1, mpshm_queue_full(arena));
        CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(first, NULL));
        CHECK_EQ(0, mpshm_queue_full(arena));
        CHECK_EQ(1, mpshm_queue_size(arena));
        CHECK_EQ(size > 0, gauges(arena).runs_in_flight);
        CHECK_EQ(2, take_number(batch));
        CHECK_EQ(MPSHM_TRACK_RECEIVED, mpshm_tracking_cancel(second, NULL));
        CHECK_EQ(0, runs_in_use(arena));
        CHECK_EQ(0, mpshm_task_done(arena));
        CHECK_EQ(0, mpshm_wait_done(arena, 0));
        CHECK_EQ(-ERANGE, mpshm_task_done(arena));
        mpshm_tracking_free(first);
        mpshm_tracking_free(second);
    }
    free_batch(batch);
    close_all();
}

static void
what_happened_is_known_laps_later(void)
{
    open_queue(0, 0);
    mpshm_batch *batch = batch_of(arena, &counts, ends[0], 0);
    mpshm_tracking *cancelled = send_tracked(1, 0), *received = send_tracked(2, 0);

    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(cancelled, NULL));
    for (uint32_t i = 0; i < 3 * RING_SLOTS; i++) {
        CHECK_EQ(1, mpshm_queue_put_new(END(arena, ends[1]), (char *) &i, sizeof i));
        (void) take_number(batch);
    }
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_state(cancelled));
    CHECK_EQ(MPSHM_TRACK_RECEIVED, mpshm_tracking_cancel(received, NULL));
    (void) take_number(batch);
    mpshm_tracking_free(cancelled);
    mpshm_tracking_free(received);
    free_batch(batch);
    close_all();
}

/* A stream of 24 KiB beside its table needs seven chunks. */
static void
a_ticket_taken_back_keeps_one_chunk(void)
{
    static char stream[24576];
    mpshm_tracking *tracking;
    mpshm_parcel *parcel;

    open_pipe(false);
    tracking = mpshm_tracking_new(arena);
    parcel = parcel_of(arena);
    mpshm_parcel_track(parcel, 1);
    CHECK_EQ(0, mpshm_settle(parcel, sizeof stream, UINT64_MAX));
    CHECK_EQ(0, mpshm_send_tracked(parcel, ends[1], stream, sizeof stream, tracking));
    CHECK(gauges(arena).bytes_in_flight >= sizeof stream);
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(tracking, NULL));
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    CHECK(gauges(arena).bytes_in_flight <= 4096);
    mpshm_parcel_free(parcel);
    mpshm_tracking_free(tracking);
    close(ends[1]);
    mpshm_reader *reader = mpshm_reader_new(0);

    CHECK_EQ(0, mpshm_receive(reader, ends[0], arena, UINT32_MAX, 32768)); /* end of file, behind it */
    mpshm_reader_free(reader);
    close(ends[0]);
    close_clean(arena);
}

static void
what_is_not_sent_or_not_ours_cannot_be_taken_back(void)
{
    open_pipe(false);
    mpshm_tracking *tracking = mpshm_tracking_new(arena), *sent;

    CHECK_EQ(-EINVAL, mpshm_tracking_state(tracking));
    CHECK_EQ(-EINVAL, mpshm_tracking_cancel(tracking, NULL));
    mpshm_tracking_free(tracking);
    sent = send_tracked(1, 0);
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_tracking_state(sent));
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_tracking_cancel(sent, NULL));
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_tracking_wait(sent, ends[1], 0));
        mpshm_tracking_free(sent);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(sent, NULL));
    mpshm_reader *reader = mpshm_reader_new(0);

    close(ends[1]);
    CHECK_EQ(UINT32_MAX, receive_number(reader));
    mpshm_reader_free(reader);
    mpshm_tracking_free(sent);
    close(ends[0]);
    close_clean(arena);
}

/* The ring's frames name no ticket. */
static void
a_pipe_shows_whether_there_is_more_than_what_was_taken_back(void)
{
    for (int is_socket = 0; is_socket <= 1; is_socket++) {
        open_pipe(is_socket);
        mpshm_reader *reader = mpshm_reader_new(0);
        mpshm_tracking *one, *other;

        CHECK_EQ(0, mpshm_has_cancelled(arena));
        CHECK_EQ(0, mpshm_has_input(arena, ends[0], NULL));
        one = send_tracked(1, 30000);
        CHECK_EQ(1, mpshm_has_input(arena, ends[0], NULL));
        CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(one, NULL));
        CHECK_EQ(1, mpshm_has_cancelled(arena));
        CHECK_EQ(0, mpshm_has_input(arena, ends[0], NULL));
        other = send_tracked(2, 0);
        CHECK_EQ(1, mpshm_has_input(arena, ends[0], NULL));
        CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(other, NULL));
        CHECK_EQ(0, mpshm_has_input(arena, ends[0], NULL));
        CHECK_EQ(5, write(ends[1], "\0\0\0\1x", 5)); /* a plain message */
        CHECK_EQ(1, mpshm_has_input(arena, ends[0], NULL));
        CHECK_EQ(5, mpshm_receive(reader, ends[0], arena, UINT32_MAX, 32768));
        reader->full = 0;
        CHECK_EQ(0, runs_in_use(arena));
        close(ends[1]);
        CHECK_EQ(1, mpshm_has_input(arena, ends[0], NULL)); /* the end of file */
        mpshm_tracking_free(one);
        mpshm_tracking_free(other);
        mpshm_reader_free(reader);
        close(ends[0]);
        close_clean(arena);
    }
}

/* Waiting. */

static void *
take_late(void *reader_or_batch)
{
    usleep(20000);
    CHECK_EQ(7, arena->slot_bytes != 0 ? take_number(reader_or_batch) : receive_number(reader_or_batch));
    return NULL;
}

static void
wait_for_it(void *receiver)
{
    int64_t begun = now_ns();
    pthread_t thread;
    mpshm_tracking *tracking = send_tracked(7, 30000);

    nobody_watches_soon(arena);
    CHECK_EQ(MPSHM_TRACK_WAITS, mpshm_tracking_wait(tracking, ends[1], 1));
    CHECK_EQ(0, pthread_create(&thread, NULL, take_late, receiver));
    while (mpshm_tracking_wait(tracking, ends[1], LONG_MS) == MPSHM_TRACK_WAITS) {
    }
    CHECK(now_ns() - begun < BEFORE_ANY_WATCH_NS);
    CHECK_EQ(0, pthread_join(thread, NULL));
    CHECK_EQ(MPSHM_TRACK_RECEIVED, mpshm_tracking_wait(tracking, ends[1], 0));
    mpshm_tracking_free(tracking);
}

static void
a_receiver_wakes_who_waits_for_it(void)
{
    open_pipe(false);
    mpshm_reader *reader = mpshm_reader_new(0);

    wait_for_it(reader);
    mpshm_reader_free(reader);
    close_all();
    open_queue(0, 0);
    mpshm_batch *batch = batch_of(arena, &counts, ends[0], 0);

    wait_for_it(batch);
    free_batch(batch);
    close_all();
}

static void *
cancel_late(void *tracking)
{
    usleep(20000);
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(tracking, NULL));
    return NULL;
}

static void
who_takes_it_back_wakes_who_waits_for_it(void)
{
    open_queue(0, 0);
    mpshm_tracking *tracking = send_tracked(7, 0);
    int64_t begun = now_ns();
    pthread_t thread;

    nobody_watches_soon(arena);
    CHECK_EQ(0, pthread_create(&thread, NULL, cancel_late, tracking));
    while (mpshm_tracking_wait(tracking, ends[1], LONG_MS) == MPSHM_TRACK_WAITS) {
    }
    CHECK(now_ns() - begun < BEFORE_ANY_WATCH_NS);
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_state(tracking));
    CHECK_EQ(0, pthread_join(thread, NULL));
    mpshm_tracking_free(tracking);
    close_all();
}

static void
waiting_ends_when_nobody_is_left_to_receive(void)
{
    open_pipe(false);
    mpshm_tracking *tracking = send_tracked(7, 0);

    close(ends[0]);
    CHECK_EQ(-EPIPE, mpshm_tracking_wait(tracking, ends[1], LONG_MS));
    CHECK_EQ(MPSHM_TRACK_CANCELLED, mpshm_tracking_cancel(tracking, NULL));
    mpshm_tracking_free(tracking);
    close(ends[1]);
    mpshm_arena_close(arena);
}

/* Races: a sender that takes back some of what it has just sent, and a receiver.  In batches, so that all can be checked
   after each. */

#define BATCH 64u

static struct race {
    _Atomic uint32_t got[BATCH], wrong, ended, batches;
} *race;

static void
note_got(uint32_t number)
{
    if (number == UINT32_MAX - 1) {
        atomic_fetch_add(&race->batches, 1);
    } else if (number / BATCH != atomic_load(&race->batches)) {
        atomic_fetch_add(&race->wrong, 1);
    } else {
        atomic_fetch_add(&race->got[number % BATCH], 1);
    }
}

static void *
receive_all(void *unused)
{
    bool is_queue = arena->slot_bytes != 0;
    mpshm_batch *batch = is_queue ? batch_of(arena, &counts, ends[0], 20) : NULL;
    mpshm_reader *reader = is_queue ? NULL : mpshm_reader_new(20);
    uint32_t all = *(uint32_t *) unused;

    while (atomic_load(&race->batches) < all) {
        note_got(is_queue ? take_number(batch) : receive_number(reader));
    }
    if (is_queue) {
        free_batch(batch);
    } else {
        mpshm_reader_free(reader);
    }
    return NULL;
}

static uint32_t
races(void)
{
    const char *count = getenv("RACES");

    return count != NULL ? (uint32_t) atoi(count) : SANITIZED ? 4000 : 20000;
}

/* Send a batch, and take back what `lag` before was sent, or some of all at the end. */
static uint32_t
race_one(uint32_t number, unsigned *seed)
{
    mpshm_tracking *tracking[BATCH];
    bool cancelled[BATCH] = {false};
    uint32_t lag = (uint32_t) rand_r(seed) % 4, won = 0;

    for (uint32_t i = 0; i < BATCH + lag; i++) {
        if (i < BATCH) {
            tracking[i] = send_tracked(number + i, rand_r(seed) % 4 == 0 ? 5000 : 0);
        }
        if (i >= lag) {
            int result = mpshm_tracking_cancel(tracking[i - lag], NULL);

            CHECK(result == MPSHM_TRACK_CANCELLED || result == MPSHM_TRACK_RECEIVED);
            cancelled[i - lag] = result == MPSHM_TRACK_CANCELLED;
        }
        for (int spin = rand_r(seed) % 3; spin > 0; spin--) {
            sched_yield();
        }
    }
    uint32_t before = atomic_load(&race->batches);

    mpshm_tracking_free(send_tracked(UINT32_MAX - 1, 0));
    while (atomic_load(&race->batches) == before) {
        sched_yield();
    }
    for (uint32_t i = 0; i < BATCH; i++) {
        CHECK_EQ(cancelled[i] ? 0 : 1, atomic_exchange(&race->got[i], 0));
        CHECK_EQ(cancelled[i] ? MPSHM_TRACK_CANCELLED : MPSHM_TRACK_RECEIVED, mpshm_tracking_state(tracking[i]));
        mpshm_tracking_free(tracking[i]);
        won += cancelled[i];
    }
    CHECK_EQ(0, atomic_load(&race->wrong));
    return won;
}

static void
run_races(bool by_process)
{
    uint32_t batches = races() / BATCH, won = 0;
    unsigned seed = 1;
    pthread_t thread;
    int pid = -1;

    race = mmap(NULL, sizeof *race, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(race != MAP_FAILED);
    if (!by_process) {
        CHECK_EQ(0, pthread_create(&thread, NULL, receive_all, &batches));
    } else if ((pid = fork_hooked()) == 0) {
        (void) receive_all(&batches);
        _exit(0);
    }
    for (uint32_t i = 0; i < batches; i++) {
        won += race_one(i * BATCH, &seed);
    }
    if (by_process) {
        wait_child(pid);
    } else {
        CHECK_EQ(0, pthread_join(thread, NULL));
    }
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena));
    CHECK(won > 0 && won < batches * BATCH);
    if (getenv("RACES") != NULL) {
        printf("    %u races: %u taken back, %u received\n", batches * BATCH, won, batches * BATCH - won);
    }
    CHECK_EQ(0, munmap(race, sizeof *race));
    close_all();
}

static void
each_is_received_or_taken_back_in_a_queue_by_threads(void)
{
    open_queue(0, 0);
    run_races(false);
}

static void
each_is_received_or_taken_back_in_a_queue_by_processes(void)
{
    open_queue(0, 0);
    run_races(true);
}

static void
each_is_received_or_taken_back_on_a_pipe_by_threads(void)
{
    open_pipe(false);
    run_races(false);
}

static void
each_is_received_or_taken_back_on_a_pipe_by_processes(void)
{
    open_pipe(false);
    run_races(true);
}

static void
each_is_received_or_taken_back_on_a_socket_by_processes(void)
{
    open_pipe(true);
    run_races(true);
}

static const struct test tests[] = {
    TEST(a_message_taken_back_is_passed_over),
    TEST(a_message_taken_back_gives_its_place_and_its_task),
    TEST(what_happened_is_known_laps_later),
    TEST(a_ticket_taken_back_keeps_one_chunk),
    TEST(what_is_not_sent_or_not_ours_cannot_be_taken_back),
    TEST(a_pipe_shows_whether_there_is_more_than_what_was_taken_back),
    TEST(a_receiver_wakes_who_waits_for_it),
    TEST(who_takes_it_back_wakes_who_waits_for_it),
    TEST(waiting_ends_when_nobody_is_left_to_receive),
    TEST(each_is_received_or_taken_back_in_a_queue_by_threads),
    TEST(each_is_received_or_taken_back_in_a_queue_by_processes),
    TEST(each_is_received_or_taken_back_on_a_pipe_by_threads),
    TEST(each_is_received_or_taken_back_on_a_pipe_by_processes),
    TEST(each_is_received_or_taken_back_on_a_socket_by_processes),
};

RUN_TESTS(tests)
