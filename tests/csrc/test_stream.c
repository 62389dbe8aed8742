/* Messages that find no memory: they go piece by piece through a stream record.  Both sides in two processes; a death, an
   end or a lie at each step of one side while the other goes on; and a storm of kills. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stream.h"

#define PIECE ((uint64_t) PIECE_BYTES)
#define LARGE (3 * PIECE + 1000)
#define MOST (5 * PIECE)

static mpshm_arena *arena;
static mpshm_counts counts;
static mpshm_batch *batch;
static mpshm_end in, out;
static int ends[2], to_parent[2], to_child[2];
static char data[MOST];

static void
open_ends(void)
{
    make_pipe(ends);
    CHECK_EQ(0, pipe(to_parent));
    CHECK_EQ(0, pipe(to_child));
    in = (mpshm_end) {arena, &counts, ends[0], true};
    out = (mpshm_end) {arena, &counts, ends[1], false};
    batch = mpshm_batch_new(&in, 0);
    mpshm_reap(arena); /* have a name, before any child */
}

static void
open_queue_of(uint32_t places, uint64_t bytes, int joinable)
{
    arena = queue_arena_of(tiny, places, bytes, joinable);
    open_ends();
}

static void
open_queue(void)
{
    open_queue_of(0, 0, 0);
}

/* How many records are somebody's. */
static uint32_t
records_in_use(void)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < arena->stream_count; i++) {
        count += OWNER_NAME(atomic_load(&arena->streams->records[i].owner)) != 0;
    }
    return count;
}

static int
begin(mpshm_stream *stream, uint64_t size, unsigned seed)
{
    fill(data, size, seed);
    return mpshm_stream_begin(stream, &out, data, size, NULL);
}

/* Go on until it has all been written, or cannot be: 1, or the error. */
static int
finish(mpshm_stream *stream, uint64_t size)
{
    int result;

    while ((result = mpshm_stream_go(stream, &out, data, size, -1)) == -EAGAIN || result == -EINTR) {
    }
    return result;
}

/* Put a message through a record, whatever that takes. */
static int
put(uint64_t size, unsigned seed)
{
    mpshm_stream *stream = mpshm_stream_new(arena);
    int result;

    while ((result = begin(stream, size, seed)) == -EBUSY) {
        (void) mpshm_stream_wait(arena, -1);
    }
    if (result == 0) {
        result = finish(stream, size);
    }
    mpshm_stream_free(stream);
    return result;
}

/* A child that puts one, and tells. */
static int
sender(uint64_t size, unsigned seed)
{
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(1, put(size, seed));
        go(to_parent);
        _exit(0);
    }
    return pid;
}

/* A child that has begun to put one, and does nothing more. */
static int
stuck_sender(uint64_t size, unsigned seed)
{
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(0, begin(mpshm_stream_new(arena), size, seed));
        go(to_parent);
        pause();
    }
    await(to_parent);
    return pid;
}

static void
put_small(const char *text)
{
    CHECK_EQ(1, mpshm_queue_put_one(&out, text, (uint32_t) strlen(text), NULL));
}

static void
check_small(const char *text)
{
    CHECK_EQ(strlen(text), receive_patiently(batch));
    CHECK_EQ(0, memcmp(batch->data, text, strlen(text)));
}

/* The last receive gave this one. */
static void
check_got(uint64_t size, unsigned seed)
{
    CHECK_EQ(1, batch->count);
    CHECK_EQ(0, batch->messages[0].error);
    CHECK_EQ(0, batch->messages[0].runs);
    CHECK_EQ(size, batch->messages[0].size);
    if (size <= SMALL_RUN_BYTES) {
        CHECK_EQ(size, batch->sizes[0]);
        CHECK(is_filled(batch->data + batch->messages[0].at, size, seed));
    } else {
        CHECK_EQ(UINT32_MAX, batch->sizes[0]);
        CHECK(is_filled(batch->apart, size, seed));
    }
}

static void
check_next(uint64_t size, unsigned seed)
{
    CHECK_EQ(size <= SMALL_RUN_BYTES ? (int) size : MPSHM_DESCRIPTORS, receive_patiently(batch));
    check_got(size, seed);
}

/* A child that takes a message, and has its first piece, and then does as it is told. */
static int
taker_in_the_middle(void (*then)(void))
{
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0)); /* its sender does nothing */
        then();
        go(to_parent);
        pause();
    }
    await(to_parent);
    return pid;
}

static void
nothing(void)
{
}

/* The queue is empty, all records are free, and a message still goes through. */
static void
end_queue(void)
{
    (void) chain_mend(arena);
    stream_reap(arena);
    CHECK_EQ(0, records_in_use());
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(1, ring_validate(arena, true));
    CHECK_EQ(1, stream_validate(arena, true));
    int pid = sender(LARGE, 77);

    check_next(LARGE, 77);
    wait_child(pid);
    mpshm_batch_discard(batch);
    CHECK_EQ(0, records_in_use());
    mpshm_batch_free(batch);
    close(ends[0]);
    close(ends[1]);
    mpshm_arena_close(arena);
}

/* Sizes */

static void
a_message_of_one_piece_is_put_at_once(void)
{
    const uint64_t sizes[] = {0, 1, 1000, SMALL_RUN_BYTES, SMALL_RUN_BYTES + 1, PIECE - 1, PIECE};

    open_queue();
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK_EQ(1, put(sizes[i], i));
        CHECK_EQ(1, records_in_use());
        CHECK_EQ(1, mpshm_queue_size(arena));
        check_next(sizes[i], i);
        CHECK_EQ(0, records_in_use());
    }
    end_queue();
}

static void
a_long_message_goes_piece_by_piece(void)
{
    const uint64_t sizes[] = {PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, LARGE, MOST};

    open_queue();
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int pid = sender(sizes[i], i);

        check_next(sizes[i], i);
        wait_child(pid);
        CHECK_EQ(0, records_in_use());
    }
    end_queue();
}

static void
what_one_has_counted(void)
{
    open_queue();
    CHECK_EQ(1, put(1000, 1));
    CHECK_EQ(0, counts.ring_messages);
    CHECK_EQ(0, counts.shm_messages);
    CHECK_EQ(1000, counts.plain_bytes);
    check_next(1000, 1);
    CHECK_EQ(1, counts.received_plain_messages);
    CHECK_EQ(1000, counts.received_plain_bytes);
    int pid = sender(LARGE, 2);

    check_next(LARGE, 2);
    wait_child(pid);
    CHECK_EQ(2, counts.received_plain_messages);
    CHECK_EQ(1000 + LARGE, counts.received_plain_bytes);
    CHECK_EQ(0, counts.received_ring_messages);
    CHECK_EQ(0, counts.received_shm_messages);
    end_queue();
}

static void
a_block_keeps_what_was_taken(void)
{
    open_queue();
    int pid = sender(LARGE, 3);

    CHECK_EQ(MPSHM_DESCRIPTORS, receive_patiently(batch));
    mpshm_block *block = mpshm_block_new();

    mpshm_batch_take_apart(batch, block);
    CHECK(batch->apart == NULL);
    wait_child(pid);
    put_small("next");
    check_small("next");
    CHECK_EQ(LARGE, block->size);
    CHECK(is_filled(block->data, LARGE, 3));
    mpshm_block_free(block);
    end_queue();
}

/* Order */

static void
messages_come_in_the_order_of_their_slots(void)
{
    open_queue();
    put_small("first");
    int one = stuck_sender(2 * PIECE, 1);

    put_small("second");
    CHECK_EQ(1, put(5000, 2));
    put_small("third");
    kill_child(one);
    check_small("first");
    check_small("second");
    check_next(5000, 2);
    check_small("third");
    end_queue();
}

static void
what_comes_before_a_long_message_is_not_kept_back_by_it(void)
{
    open_queue();
    put_small("first");
    put_small("second");
    int pid = stuck_sender(LARGE, 1);

    put_small("behind");
    CHECK_EQ(2, mpshm_queue_receive(batch, 10, -1));
    CHECK_EQ(5, batch->sizes[0]);
    CHECK_EQ(6, batch->sizes[1]);
    CHECK(stream_is_parked(arena));
    CHECK_EQ(1, mpshm_queue_poll(&in, 0));
    CHECK_EQ(-EINTR, mpshm_queue_receive(batch, 10, 0)); /* it is that one's turn */
    kill_child(pid);
    check_small("behind");
    end_queue();
}

static bool
is_readable(void)
{
    struct pollfd fd = {ends[0], POLLIN, 0};

    return poll(&fd, 1, 0) == 1 && (fd.revents & POLLIN) != 0;
}

/* Else one that waits at the pipe and gets without waiting never comes for the rest. */
static void
pipe_shows_a_message_of_which_a_part_has_been_taken(void)
{
    open_queue();
    mpshm_queue_watch(&in);
    mpshm_stream *stream = mpshm_stream_new(arena);

    CHECK_EQ(0, begin(stream, LARGE, 1));
    CHECK(is_readable());
    for (int result = 0; result != 1;) {
        CHECK_EQ(-EINTR, mpshm_queue_receive(batch, 1, 0));
        CHECK(stream_is_parked(arena) && is_readable());
        result = mpshm_stream_go(stream, &out, data, LARGE, 0);
        CHECK(result == 1 || result == -EAGAIN);
    }
    mpshm_stream_free(stream);
    check_next(LARGE, 1);
    CHECK(!is_readable());
    end_queue();
}

static void
several_senders_and_takers_lose_nothing(void)
{
    int pids[4], takers[2];

    open_queue();
    for (int i = 0; i < 4; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            for (unsigned n = 0; n < 20; n++) {
                uint64_t size = n % 3 == 0 ? 5000 : n % 3 == 1 ? LARGE : PIECE + n;

                fill(data, size, n);
                CHECK_EQ(1, put(size, n));
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 2; i++) {
        takers[i] = fork_hooked();
        if (takers[i] == 0) {
            for (int n = 0; n < 40; n++) {
                (void) receive_patiently(batch);
                uint64_t size = batch->messages[0].size;
                unsigned seed = size == 5000 || size == LARGE ? 0 : (unsigned) (size - PIECE);

                CHECK_EQ(0, batch->messages[0].error);
                CHECK(size == 5000 || size == LARGE || is_filled(batch->apart, size, seed));
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++) {
        wait_child(pids[i]);
    }
    wait_child(takers[0]);
    wait_child(takers[1]);
    end_queue();
}

/* Records */

static void
records_run_out_and_come_back(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    for (unsigned i = 0; i < STREAMS; i++) {
        CHECK_EQ(1, put(100, i));
    }
    CHECK_EQ(-EBUSY, begin(stream, 100, STREAMS));
    CHECK_EQ(STREAMS, mpshm_queue_size(arena)); /* it has left no position behind */
    CHECK_EQ(-EAGAIN, mpshm_stream_wait(arena, 1));
    check_next(100, 0);
    CHECK_EQ(0, mpshm_stream_wait(arena, 0));
    CHECK_EQ(1, begin(stream, 100, STREAMS));
    for (unsigned i = 1; i <= STREAMS; i++) {
        check_next(100, i);
    }
    mpshm_stream_free(stream);
    end_queue();
}

static void
one_that_waits_for_a_record_is_woken(void)
{
    open_queue();
    nobody_watches_soon(arena);
    for (unsigned i = 0; i < STREAMS; i++) {
        CHECK_EQ(1, put(100, i));
    }
    int pid = sender(100, STREAMS);

    wait_asleep(pid);
    int64_t before = now_ns();

    check_next(100, 0);
    await(to_parent);
    CHECK(now_ns() - before < BEFORE_ANY_WATCH_NS);
    wait_child(pid);
    for (unsigned i = 1; i <= STREAMS; i++) {
        check_next(100, i);
    }
    end_queue();
}

static void
put_one_and_die(void)
{
    CHECK_EQ(1, put(100, 1));
}

static void
hold_a_record_and_die(void)
{
    mpshm_stream *stream = mpshm_stream_new(arena);

    arena_lock(arena);
    CHECK(stream_claim(arena, stream));
    arena_unlock(arena);
}

static void
records_of_the_dead_come_back(void)
{
    open_queue();
    for (int i = 0; i < STREAMS; i++) {
        in_doomed_child(hold_a_record_and_die);
    }
    CHECK_EQ(STREAMS, records_in_use());
    CHECK_EQ(1, put(100, 5));
    CHECK_EQ(1, records_in_use());
    check_next(100, 5);
    end_queue();
}

static void
a_message_outlives_its_sender(void)
{
    open_queue();
    for (int i = 0; i < STREAMS; i++) {
        in_doomed_child(put_one_and_die);
    }
    mpshm_reap(arena);
    CHECK_EQ(STREAMS, records_in_use());
    for (int i = 0; i < STREAMS; i++) {
        check_next(100, 1);
    }
    end_queue();
}

static void
memory_of_pieces_goes_back(void)
{
    open_queue();
    uint64_t before = gauges(arena).bytes_resident;

    CHECK_EQ(1, put(PIECE, 1));
    CHECK_EQ(1, put(PIECE, 2));
    check_next(PIECE, 1);
    CHECK(gauges(arena).bytes_resident >= before + 2 * PIECE);
    CHECK_EQ(PIECE, mpshm_trim(arena)); /* the other one is in use */
    check_next(PIECE, 2);
    CHECK_EQ(PIECE, mpshm_trim(arena));
    CHECK(gauges(arena).bytes_resident < before + PIECE);
    CHECK_EQ(0, mpshm_trim(arena));
    CHECK_EQ(1, put(PIECE, 3));
    check_next(PIECE, 3);
    end_queue();
}

/* The sender ends early */

static void
nobody_takes_it(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    CHECK_EQ(-EAGAIN, mpshm_stream_go(stream, &out, data, LARGE, 0));
    CHECK_EQ(-EAGAIN, mpshm_stream_go(stream, &out, data, LARGE, 5));
    CHECK_EQ(1, mpshm_queue_size(arena));
    CHECK_EQ(0, mpshm_stream_stop(stream, 0));
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(0, records_in_use());
    CHECK_EQ(-EINVAL, mpshm_stream_go(stream, &out, data, LARGE, 0));
    CHECK_EQ(0, mpshm_stream_stop(stream, 1)); /* nothing is left to stop */
    put_small("next");
    check_small("next");
    CHECK_EQ(0, begin(stream, LARGE, 2)); /* it can be used again */
    mpshm_stream_free(stream);            /* which takes it back */
    CHECK_EQ(0, mpshm_queue_size(arena));
    end_queue();
}

static void
a_taker_passes_over_what_its_sender_gives_up(void)
{
    mpshm_stream *stream;

    open_queue_of(0, 0, 1);
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    put_small("next");
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0));
    CHECK_EQ(-EBUSY, mpshm_stream_stop(stream, 0));
    CHECK_EQ(2, tasks_unfinished(arena));
    CHECK_EQ(0, mpshm_stream_stop(stream, 1));
    check_small("next");
    CHECK_EQ(0, records_in_use());
    CHECK_EQ(1, counts.received_given_up);
    CHECK_EQ(0, counts.received_plain_messages);
    CHECK_EQ(1, tasks_unfinished(arena)); /* it has not been put */
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
    mpshm_stream_free(stream);
    end_queue();
}

static void
a_taker_that_sleeps_is_woken_when_the_sender_gives_up(void)
{
    mpshm_stream *stream;

    open_queue();
    nobody_watches_soon(arena);
    batch->waiter.watch = atomic_load(&arena->watch);
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    put_small("next");
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(4, receive_patiently(batch));
        _exit(0);
    }
    wait_asleep(pid);
    int64_t before = now_ns();

    CHECK_EQ(0, mpshm_stream_stop(stream, 1));
    wait_child(pid);
    CHECK(now_ns() - before < BEFORE_ANY_WATCH_NS);
    mpshm_stream_free(stream);
    end_queue();
}

static void
interrupted(int number)
{
    (void) number;
}

static void
a_signal_ends_a_wait(void)
{
    struct sigaction action = {.sa_handler = interrupted};
    int pid;

    open_queue();
    CHECK_EQ(0, sigaction(SIGUSR1, &action, NULL));
    pid = fork_hooked();
    if (pid == 0) {
        mpshm_stream *stream = mpshm_stream_new(arena);

        CHECK_EQ(0, begin(stream, LARGE, 1));
        CHECK_EQ(-EINTR, mpshm_stream_go(stream, &out, data, LARGE, LONG_MS));
        CHECK_EQ(0, mpshm_stream_stop(stream, 0));
        _exit(0);
    }
    wait_asleep(pid);
    CHECK_EQ(0, kill(pid, SIGUSR1));
    wait_child(pid);
    pid = stuck_sender(LARGE, 1);
    int taker = fork_hooked();

    if (taker == 0) {
        CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, LONG_MS));
        CHECK(stream_is_parked(arena));
        _exit(0);
    }
    wait_asleep(taker);
    CHECK_EQ(0, kill(taker, SIGUSR1));
    wait_child(taker);
    kill_child(pid);
    end_queue();
}

static void
a_sender_sees_that_nobody_receives_any_more(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    close(ends[0]);
    CHECK_EQ(-EPIPE, mpshm_stream_go(stream, &out, data, LARGE, LONG_MS));
    CHECK_EQ(0, records_in_use());
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(-EPIPE, begin(stream, LARGE, 1));
    out.fd = -1;
    CHECK_EQ(MPSHM_E_CLOSED, begin(stream, LARGE, 1));
    mpshm_stream_free(stream);
    mpshm_batch_free(batch);
    mpshm_arena_close(arena);
}

/* A death in the middle */

static void
a_killed_sender_s_message_is_skipped(void)
{
    open_queue_of(0, 0, 1);
    int pid = stuck_sender(LARGE, 1);

    put_small("next");
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0)); /* one has its first piece */
    kill_child(pid);
    CHECK_EQ(4, mpshm_queue_receive_one(batch, 0));
    CHECK_EQ(0, records_in_use());
    CHECK_EQ(1, tasks_unfinished(arena));
    CHECK_EQ(0, mpshm_task_done(arena));
    pid = stuck_sender(LARGE, 1);
    kill_child(pid); /* before anybody takes it */
    put_small("after");
    check_small("after");
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
    end_queue();
}

static void
what_is_broken_is_skipped_though_nobody_takes_it(void)
{
    open_queue_of(1, 0, 1);
    int pid = stuck_sender(LARGE, 1);

    CHECK_EQ(1, mpshm_queue_size(arena));
    kill_child(pid);
    CHECK_EQ(1, tasks_unfinished(arena));
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(0, records_in_use());
    pid = stuck_sender(LARGE, 1);
    kill_child(pid);
    CHECK_EQ(0, mpshm_queue_full(arena)); /* its place is free */
    CHECK_EQ(1, put(PIECE, 2));
    CHECK_EQ(1, mpshm_queue_full(arena));
    check_next(PIECE, 2);
    CHECK_EQ(0, mpshm_task_done(arena));
    pid = stuck_sender(LARGE, 1);
    kill_child(pid);
    CHECK_EQ(0, mpshm_queue_wait_room(&out, NULL, 0)); /* whoever finds no place looks for the dead */
    put_small("next");
    check_small("next");
    CHECK_EQ(0, mpshm_task_done(arena));
    end_queue();
}

static void
a_taker_that_sleeps_sees_that_the_sender_is_dead(void)
{
    open_queue();
    int pid = stuck_sender(LARGE, 1), taker = fork_hooked();

    if (taker == 0) {
        nobody_watches_soon(arena);
        batch->waiter.watch = atomic_load(&arena->watch);
        check_small("next");
        _exit(0);
    }
    wait_asleep(taker);
    put_small("next");
    kill_child(pid);
    int64_t before = now_ns();

    mpshm_process_ended(pid); /* somebody notices it */
    wait_child(taker);
    CHECK(now_ns() - before < BEFORE_ANY_WATCH_NS);
    end_queue();
}

static void
what_was_written_before_the_death_arrives(void)
{
    open_queue();
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_stream *stream = mpshm_stream_new(arena);

        CHECK_EQ(0, begin(stream, 2 * PIECE, 1));
        go(to_parent);
        await(to_child);
        CHECK_EQ(1, finish(stream, 2 * PIECE));
        die();
    }
    await(to_parent);
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0)); /* the first piece */
    go(to_child);
    wait_killed(pid);
    check_next(2 * PIECE, 1);
    end_queue();
}

static void
a_killed_taker_s_message_is_lost_and_no_other(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    put_small("next");
    int taker = taker_in_the_middle(nothing);

    CHECK_EQ(-EBUSY, mpshm_stream_stop(stream, 0));
    kill_child(taker);
    CHECK_EQ(1, finish(stream, LARGE)); /* one piece more goes nowhere */
    CHECK_EQ(0, records_in_use());
    check_small("next");
    mpshm_stream_free(stream);
    end_queue();
}

static void
a_sender_that_sleeps_sees_that_the_taker_is_dead(void)
{
    open_queue();
    int pid = fork_hooked();

    if (pid == 0) {
        nobody_watches_soon(arena);
        CHECK_EQ(1, put(LARGE, 1));
        go(to_parent);
        _exit(0);
    }
    while (mpshm_queue_size(arena) == 0) {
        sched_yield();
    }
    wait_asleep(pid);
    CHECK_EQ(0, kill(pid, SIGSTOP));
    int taker = taker_in_the_middle(nothing);

    kill_child(taker);
    int64_t before = now_ns();

    CHECK_EQ(0, kill(pid, SIGCONT));
    mpshm_process_ended(taker);
    await(to_parent);
    CHECK(now_ns() - before < BEFORE_ANY_WATCH_NS);
    wait_child(pid);
    end_queue();
}

static void
close_its_end(void)
{
    mpshm_end_open(&in);
    mpshm_end_stop_receiving(&in);
    CHECK(!stream_is_parked(arena));
}

static void
a_taker_that_closes_its_end_loses_what_it_has_in_hand(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    put_small("next");
    int taker = taker_in_the_middle(close_its_end);

    CHECK_EQ(1, finish(stream, LARGE));
    CHECK_EQ(0, records_in_use());
    check_small("next");
    kill_child(taker);
    mpshm_stream_free(stream);
    end_queue();
}

/* The taker has read all but the last piece, and nobody needs a record but one that sleeps until another's is free. */
static void
whoever_looks_round_frees_what_a_dead_taker_should_have(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, 2 * PIECE, 1));
    kill_child(taker_in_the_middle(nothing));
    CHECK_EQ(1, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
    CHECK_EQ(1, records_in_use());
    uint32_t bell = atomic_load(&arena->streams->freed);

    waiters_look_round(arena);
    CHECK_EQ(0, records_in_use());
    CHECK(atomic_load(&arena->streams->freed) != bell);
    mpshm_stream_free(stream);
    end_queue();
}

static void *
wait_for_the_rest(void *unused)
{
    (void) unused;
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 500)); /* its sender does nothing */
    return NULL;
}

/* No message is parked yet when the end is closed. */
static void
a_thread_that_waits_for_a_piece_when_its_end_is_closed_loses_the_message(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, LARGE, 1));
    int pid = fork_hooked();

    if (pid == 0) {
        pthread_t thread;

        mpshm_end_open(&in);
        CHECK_EQ(0, pthread_create(&thread, NULL, wait_for_the_rest, NULL));
        while (ring_taker(arena, stream->spot) == 0) {
            sched_yield();
        }
        process_lock(); /* as the thread reads it */
        in.fd = -1;
        process_unlock();
        mpshm_end_stop_receiving(&in);
        CHECK_EQ(0, pthread_join(thread, NULL));
        CHECK(!stream_is_parked(arena));
        go(to_parent);
        pause();
    }
    await(to_parent);
    CHECK_EQ(1, finish(stream, LARGE));
    CHECK_EQ(0, records_in_use());
    kill_child(pid);
    mpshm_stream_free(stream);
    end_queue();
}

/* The taker stops, and goes on */

static void
another_receiver_goes_on_with_what_one_has_begun(void)
{
    mpshm_batch *other;

    open_queue();
    other = mpshm_batch_new(&in, 0);
    mpshm_stream *stream = mpshm_stream_new(arena);

    CHECK_EQ(0, begin(stream, 2 * PIECE, 1));
    put_small("next");
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(other, 0));
    CHECK_EQ(1, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
    CHECK_EQ(MPSHM_DESCRIPTORS, mpshm_queue_receive_one(batch, 0));
    check_got(2 * PIECE, 1);
    CHECK_EQ(4, mpshm_queue_receive_one(other, 0));
    mpshm_batch_free(other);
    mpshm_stream_free(stream);
    end_queue();
}

static void
a_child_has_nothing_of_its_parent_s(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, 2 * PIECE, 1));
    put_small("next");
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0));
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(-EINVAL, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
        CHECK_EQ(0, mpshm_stream_stop(stream, 1));
        check_small("next");
        CHECK(!stream_is_parked(arena));
        mpshm_stream_free(stream);
        mpshm_batch_free(batch);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(1, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
    check_next(2 * PIECE, 1);
    mpshm_stream_free(stream);
    end_queue();
}

/* Kinds of queues */

static void
a_place_is_used_up(void)
{
    mpshm_stream *stream;
    mpshm_place *place;

    open_queue_of(2, 0, 1);
    stream = mpshm_stream_new(arena);
    place = mpshm_place_new(arena);
    CHECK_EQ(0, mpshm_place_take(place));
    put_small("one");
    fill(data, PIECE, 4);
    CHECK_EQ(1, mpshm_stream_begin(stream, &out, data, PIECE, place));
    CHECK_EQ(MPSHM_E_FULL, begin(stream, PIECE, 4));
    CHECK_EQ(1, records_in_use());
    check_next(PIECE, 4);
    check_small("one");
    mpshm_place_free(place);
    CHECK_EQ(0, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_task_done(arena));
    mpshm_stream_free(stream);
    mpshm_batch_free(batch);
    mpshm_arena_close(arena);
}

static void
a_message_that_waits_for_its_turn_keeps_no_record(void)
{
    mpshm_stream *stream;
    mpshm_place *place;

    open_queue_of(0, MPSHM_SLOT_BYTES, 0);
    stream = mpshm_stream_new(arena);
    place = mpshm_place_new(arena);
    put_small("first");
    CHECK_EQ(MPSHM_E_FULL, begin(stream, PIECE, 1));
    CHECK_EQ(0, mpshm_place_take(place));
    fill(data, PIECE, 1);
    CHECK_EQ(MPSHM_E_FULL, mpshm_stream_begin(stream, &out, data, PIECE, place));
    CHECK_EQ(0, records_in_use());
    check_small("first");
    CHECK_EQ(1, mpshm_stream_begin(stream, &out, data, PIECE, place));
    check_next(PIECE, 1);
    mpshm_place_free(place);
    mpshm_stream_free(stream);
    end_queue();
}

static void
a_message_goes_through_a_record_from_any_ring(void)
{
    mpshm_geometry geometry = tiny;
    mpshm_queue queue = {.grows = true};
    mpshm_stream *stream;
    uint32_t in_front = 0;

    geometry.stride = UINT64_C(1) << 30;
    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_AUTO, "mpshm", 0, &queue, &arena));
    open_ends();
    stream = mpshm_stream_new(arena);
    for (uint32_t ring = 0; ring < 3; ring++) {
        while (mpshm_queue_put_one(&out, "x", 1, NULL) == 1) {
            in_front++;
        }
        CHECK_EQ(-EAGAIN, begin(stream, LARGE, 1));
        CHECK_EQ(0, records_in_use());
        CHECK_EQ(0, mpshm_queue_grow(&out));
    }
    CHECK_EQ(0, begin(stream, LARGE, 1));
    CHECK_EQ(3, SPOT_RING(stream->spot));
    CHECK_EQ(0, mpshm_stream_stop(stream, 0)); /* taken back */
    int pid = sender(LARGE, 2);

    while (mpshm_queue_size(arena) <= in_front) {
        sched_yield();
    }
    int stuck = stuck_sender(LARGE, 3);

    put_small("last");
    for (uint32_t i = 0; i < in_front; i++) {
        check_small("x");
    }
    check_next(LARGE, 2);
    kill_child(stuck);
    check_small("last");
    wait_child(pid);
    mpshm_stream_free(stream);
    end_queue();
}

/* Lies */

static void
check_refused(int error)
{
    CHECK_EQ(error, receive_patiently(batch));
    check_small("next");
}

static void
a_sender_that_lies_about_its_length_loses_that_message_alone(void)
{
    open_queue();
    for (int i = 0; i < 3; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            mpshm_stream *stream = mpshm_stream_new(arena);

            CHECK_EQ(0, begin(stream, 2 * PIECE + 1, 1));
            put_small("next");
            /* Shorter, one piece longer, and as long but for a piece of nothing. */
            CHECK_EQ(1, finish(stream, i == 0 ? 2 * PIECE : i == 1 ? 3 * PIECE + 1 : 2 * PIECE + 2));
            mpshm_stream_free(stream);
            _exit(0);
        }
        check_refused(MPSHM_E_STREAM_SIZE);
        wait_child(pid);
    }
    end_queue();
}

static void
forge(uint32_t number, uint32_t generation, uint64_t size)
{
    char frame[RING_FRAME_BYTES] = {0};
    struct stream_name which = {number, generation, size};

    frame_put_stream(frame, &which);
    put_raw(arena, frame);
    put_small("next");
    check_refused(MPSHM_E_STREAM);
}

static void
a_forged_frame_is_refused(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    CHECK_EQ(0, begin(stream, 2 * PIECE, 1)); /* another's */
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0));
    arena_lock(arena);
    mpshm_incoming *incoming = stream_unpark(arena);

    arena_unlock(arena);
    forge(stream->number, stream->record_generation, 2 * PIECE);
    forge(stream->number, stream->record_generation + 1, 2 * PIECE);
    forge(STREAMS, 0, 100);
    forge(1, 0, 100);
    forge(1, UINT32_MAX, UINT64_MAX);
    forge(0xffff, UINT32_MAX, UINT64_MAX);
    arena_lock(arena);
    stream_park(incoming);
    arena_unlock(arena);
    CHECK_EQ(1, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
    check_next(2 * PIECE, 1);
    mpshm_stream_free(stream);
    end_queue();
}

static void
a_forged_record_is_refused(void)
{
    for (int i = 0; i < 6; i++) {
        mpshm_stream *stream;

        open_queue();
        stream = mpshm_stream_new(arena);
        CHECK_EQ(0, begin(stream, 2 * PIECE, 1));
        put_small("next");
        struct stream_record *record = &arena->streams->records[stream->number];
        uint32_t generation = stream->record_generation;
        int error = MPSHM_E_STREAM;

        switch (i) {
        case 0:
            atomic_store(&record->bytes, PIECE_BYTES + 1);
            error = MPSHM_E_STREAM_SIZE;
            break;
        case 1:
            atomic_store(&record->written, STREAM_WRITTEN(generation, STREAM_GOES_ON, 7));
            break;
        case 2:
            atomic_store(&record->written, STREAM_WRITTEN(generation + 1, STREAM_GOES_ON, 1));
            break;
        case 3:
            atomic_store(&record->written, STREAM_WRITTEN(generation, STREAM_LAST, 0));
            break;
        case 4:
            atomic_store(&record->written, STREAM_WRITTEN(generation, STREAM_LAST, 1));
            error = MPSHM_E_STREAM_SIZE;
            break;
        case 5:
            atomic_store(&record->spot, STREAM_SPOT(generation, 9));
            break;
        }
        check_refused(error);
        (void) finish(stream, 2 * PIECE);
        mpshm_stream_free(stream);
        mpshm_batch_free(batch);
        mpshm_arena_close(arena);
    }
}

static void
a_length_that_no_memory_holds_is_refused(void)
{
    mpshm_stream *stream;

    open_queue();
    stream = mpshm_stream_new(arena);
    fill(data, MOST, 1);
    CHECK_EQ(0, mpshm_stream_begin(stream, &out, data, UINT64_C(1) << 60, NULL));
    put_small("next");
    CHECK_EQ(-EINTR, mpshm_queue_receive_one(batch, 0)); /* it takes no more than has come */
    CHECK_EQ(1, mpshm_stream_go(stream, &out, data, 2 * PIECE, 0));
    check_refused(MPSHM_E_STREAM_SIZE);
    mpshm_stream_free(stream);
    end_queue();
}

/* A storm */

#define SENDERS 4
#define CREW (SENDERS + 2)
#define STORM_NS INT64_C(1500000000)

static _Atomic uint64_t *got;

static uint64_t
next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *seed >> 33;
}

static void
put_for_ever(uint64_t seed)
{
    for (;;) {
        const uint64_t sizes[] = {100, 5000, PIECE, PIECE + 1, LARGE};
        uint64_t size = sizes[next_random(&seed) % 5];
        mpshm_stream *stream = mpshm_stream_new(arena);
        int result;

        while ((result = begin(stream, size, (unsigned) size)) == -EBUSY || result == -EAGAIN) {
            (void) mpshm_stream_wait(arena, 10); /* EAGAIN: all takers are slow, and the ring is full */
        }
        while (result == 0 || result == -EAGAIN || result == -EINTR) {
            result = mpshm_stream_go(stream, &out, data, size, 5);
            if (result == -EAGAIN && next_random(&seed) % 8 == 0
                && mpshm_stream_stop(stream, next_random(&seed) % 2) == 0) {
                result = 1;
            }
        }
        CHECK_EQ(1, result);
        mpshm_stream_free(stream);
    }
}

static void
get_for_ever(uint64_t seed)
{
    for (;;) {
        int n = mpshm_queue_receive(batch, 1 + next_random(&seed) % 3, (int) (next_random(&seed) % 20));

        CHECK(n > 0 || n == -EAGAIN || n == -EINTR);
        for (int i = 0; i < n; i++) {
            const mpshm_message *message = &batch->messages[i];

            if (message->error == 0) {
                CHECK(is_filled(batch->apart != NULL ? batch->apart : batch->data + message->at, message->size,
                                (unsigned) message->size));
                atomic_fetch_add(got, 1);
            } else {
                CHECK_EQ(0, message->error); /* what was given up is passed over */
            }
        }
    }
}

static int
crew_member(int role, uint64_t seed)
{
    int pid = fork_hooked();

    if (pid == 0) {
        if (role < SENDERS) {
            put_for_ever(seed);
        } else {
            get_for_ever(seed);
        }
    }
    return pid;
}

static void
a_storm_of_kills_leaves_all_records_free(void)
{
    int pids[CREW];
    uint64_t seed = (uint64_t) now_ns();

    open_queue();
    got = mmap(NULL, sizeof *got, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < CREW; i++) {
        pids[i] = crew_member(i, next_random(&seed));
    }
    for (int64_t until = now_ns() + STORM_NS; now_ns() < until;) {
        usleep((useconds_t) (next_random(&seed) % 3000));
        int role = (int) (next_random(&seed) % CREW);

        kill_child(pids[role]);
        pids[role] = crew_member(role, next_random(&seed));
    }
    uint64_t before = atomic_load(got);

    while (atomic_load(got) < before + 200) { /* the living go on, or this hangs */
        usleep(1000);
    }
    for (int i = 0; i < SENDERS; i++) {
        kill_child(pids[i]);
    }
    for (int i = SENDERS; i < CREW; i++) {
        kill_child(pids[i]);
    }
    for (int n; (n = mpshm_queue_receive(batch, 1, 0)) != -EAGAIN;) {
        CHECK(n == 1 || n == -EINTR);
    }
    mpshm_reap(arena);
    end_queue();
}

static const struct test tests[] = {
    TEST(a_message_of_one_piece_is_put_at_once),
    TEST(a_long_message_goes_piece_by_piece),
    TEST(what_one_has_counted),
    TEST(a_block_keeps_what_was_taken),
    TEST(messages_come_in_the_order_of_their_slots),
    TEST(what_comes_before_a_long_message_is_not_kept_back_by_it),
    TEST(pipe_shows_a_message_of_which_a_part_has_been_taken),
    TEST(several_senders_and_takers_lose_nothing),
    TEST(records_run_out_and_come_back),
    TEST(one_that_waits_for_a_record_is_woken),
    TEST(records_of_the_dead_come_back),
    TEST(a_message_outlives_its_sender),
    TEST_THAT_NEEDS(madvice, memory_of_pieces_goes_back),
    TEST(nobody_takes_it),
    TEST(a_taker_passes_over_what_its_sender_gives_up),
    TEST(a_taker_that_sleeps_is_woken_when_the_sender_gives_up),
    TEST(a_signal_ends_a_wait),
    TEST(a_sender_sees_that_nobody_receives_any_more),
    TEST(a_killed_sender_s_message_is_skipped),
    TEST(what_is_broken_is_skipped_though_nobody_takes_it),
    TEST(a_taker_that_sleeps_sees_that_the_sender_is_dead),
    TEST(what_was_written_before_the_death_arrives),
    TEST(a_killed_taker_s_message_is_lost_and_no_other),
    TEST(a_sender_that_sleeps_sees_that_the_taker_is_dead),
    TEST(a_taker_that_closes_its_end_loses_what_it_has_in_hand),
    TEST(whoever_looks_round_frees_what_a_dead_taker_should_have),
    TEST(a_thread_that_waits_for_a_piece_when_its_end_is_closed_loses_the_message),
    TEST(another_receiver_goes_on_with_what_one_has_begun),
    TEST(a_child_has_nothing_of_its_parent_s),
    TEST(a_place_is_used_up),
    TEST(a_message_that_waits_for_its_turn_keeps_no_record),
    TEST(a_message_goes_through_a_record_from_any_ring),
    TEST(a_sender_that_lies_about_its_length_loses_that_message_alone),
    TEST(a_forged_frame_is_refused),
    TEST(a_forged_record_is_refused),
    TEST(a_length_that_no_memory_holds_is_refused),
    TEST(a_storm_of_kills_leaves_all_records_free),
};
RUN_TESTS(tests)
