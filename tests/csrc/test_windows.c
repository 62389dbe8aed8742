/* Messages in a process that can map no segment's data: written, read and freed as others are. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "debug.h"

#define NO_MARK UINT64_MAX
#define MIB (UINT64_C(1) << 20)

static int ends[2];
static mpshm_arena *near, *far;
static mpshm_reader *reader;
static mpshm_counts counts;

/* 4 KiB chunks, and segments that windows see in several pieces. */
static mpshm_geometry
wide(void)
{
    return (mpshm_geometry) {.stride = 40 * MIB, .segment_bytes = 16 * MIB, .segment_limit = 4, .chunk_shift = 12};
}

static void
open_channel(int kind)
{
    mpshm_geometry geometry = wide();

    CHECK_EQ(0, mpshm_arena_create(&geometry, kind, "mpshm", 0, NULL, &near));
    far = attach_again(near);
    CHECK_EQ(0, pipe(ends));
    reader = mpshm_reader_new(0);
    CHECK(reader != NULL);
}

static void
close_channel(void)
{
    mpshm_debug_refuse_mappings(0);
    mpshm_reader_free(reader);
    close(ends[0]);
    close(ends[1]);
    close_clean(far);
    close_clean(near);
}

static char *
filled(uint64_t size, unsigned seed)
{
    char *data = malloc(size);

    CHECK(data != NULL);
    fill(data, size, seed);
    return data;
}

/* A parcel of `count` buffers of that size. */
static mpshm_parcel *
parcel_of_buffers(mpshm_arena *arena, uint64_t size, uint32_t count)
{
    mpshm_parcel *parcel = parcel_of(arena);

    for (uint32_t i = 0; i < count; i++) {
        char *data = filled(size, i);

        CHECK_EQ(0, mpshm_put_buffer(parcel, data, size, NO_MARK));
        free(data);
    }
    CHECK_EQ(0, mpshm_settle(parcel, 0, NO_MARK));
    return parcel;
}

static void
send_buffers(uint64_t size, uint32_t count, int expected)
{
    mpshm_parcel *parcel = parcel_of_buffers(near, size, count);

    CHECK_EQ(expected, mpshm_send(parcel, ends[1], NULL, 0));
    mpshm_parcel_free(parcel);
}

/* Whether its `count` buffers arrive; and why they were copied, if they were. */
static void
take_buffers(uint64_t size, uint32_t count, uint32_t copied)
{
    mpshm_held held;

    CHECK(mpshm_receive(reader, ends[0], far, 0, 0) > MPSHM_DESCRIPTORS);
    CHECK_EQ(count, reader->count);
    CHECK_EQ(copied, reader->copied);
    for (uint32_t i = 0; i < count; i++) {
        mpshm_take(reader, i, &held);
        CHECK_EQ(size, held.size);
        CHECK_EQ(copied, held.copied);
        CHECK(is_filled(held.data, size, i));
        mpshm_release(held.data);
    }
    reader->full = 0;
}

static uint64_t
mapped_segments(const mpshm_arena *arena)
{
    uint64_t n = 0;

    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        n += arena->segments[id] != NULL && arena->segments[id]->now != NULL;
    }
    return n;
}

static void
messages_of_all_sizes_go_through_windows(void)
{
    static const uint64_t sizes[] = {1, 100, 4095, 4096, 4097, 65536, MIB + 1, 2 * MIB, 3 * MIB - 7, 15 * MIB};

    for (int kind = MPSHM_FILE_MEMFD; kind <= MPSHM_FILE_SHM; kind++) {
        open_channel(kind);
        mpshm_debug_refuse_mappings(1);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            send_buffers(sizes[i], 1, MPSHM_SENT_UNMAPPED);
            CHECK_EQ(0, near->loans);
            take_buffers(sizes[i], 1, MPSHM_COPIED_UNMAPPED);
            CHECK_EQ(0, runs_in_use(far));
        }
        CHECK_EQ(0, mapped_segments(near) + mapped_segments(far));
        CHECK_EQ(0, mpshm_leases());
        close_channel();
    }
}

/* More descriptors than a frame holds: they lie in a run of their own. */
static void
an_index_goes_through_windows(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    send_buffers(3000, 300, MPSHM_SENT_UNMAPPED);
    take_buffers(3000, 300, MPSHM_COPIED_UNMAPPED);
    CHECK_EQ(0, runs_in_use(far));
    CHECK_EQ(0, mapped_segments(near) + mapped_segments(far));
    close_channel();
}

static void
one_side_may_map_and_the_other_not(void)
{
    open_channel(MPSHM_FILE_AUTO);
    send_buffers(5000, 2, 0);
    mpshm_debug_refuse_mappings(1);
    take_buffers(5000, 2, MPSHM_COPIED_UNMAPPED);
    CHECK_EQ(1, mapped_segments(near));
    CHECK_EQ(0, mapped_segments(far));
    mpshm_debug_refuse_mappings(0);
    send_buffers(5000, 2, 0);
    take_buffers(5000, 2, 0); /* it maps them as soon as it can */
    CHECK_EQ(1, mapped_segments(far));
    close_channel();
}

static void
a_stream_grows_through_windows_and_can_be_read_back(void)
{
    char *data = filled(3 * MIB, 5), *back = malloc(3 * MIB);

    CHECK(back != NULL);
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    mpshm_parcel *parcel = parcel_of(near);

    for (uint64_t at = 0, step; at < 3 * MIB; at += step) {
        step = 3 * MIB - at < 70001 ? 3 * MIB - at : 70001;
        CHECK_EQ(0, mpshm_put_stream(parcel, data + at, step, 0, NO_MARK));
        if (at == 0) { /* a neighbour, so that it goes on in a second run */
            CHECK_EQ(0, mpshm_put_buffer(parcel, data, 9, NO_MARK));
        }
    }
    CHECK(parcel->stream_runs > 1);
    CHECK_EQ(0, mpshm_parcel_read_stream(parcel, back, 3 * MIB));
    CHECK(is_filled(back, 3 * MIB, 5));
    mpshm_parcel_free(parcel);
    CHECK_EQ(0, runs_in_use(near));
    close_channel();
    free(data);
    free(back);
}

static void
what_is_copied_is_copied_through_a_window(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    mpshm_parcel *parcel = parcel_of(near);
    char *data = filled(9000, 3);

    CHECK_EQ(0, mpshm_put_stream(parcel, data, 9000, 0, NO_MARK));
    CHECK_EQ(MPSHM_SENT_UNMAPPED, mpshm_send(parcel, ends[1], NULL, 0));
    CHECK_EQ(MPSHM_COPIED_BY_WINDOW + 4 + 9000, mpshm_receive(reader, ends[0], far, 0, UINT32_MAX));
    CHECK(is_filled((char *) reader->bytes + 4, 9000, 3));
    CHECK_EQ(0, runs_in_use(far));
    near->shorts = 1000; /* a short one that the pipe could take as well has it so */
    CHECK_EQ(MPSHM_SEND_PLAIN, mpshm_send_copy(near, ends[1], data, 9000, NO_MARK));
    mpshm_parcel_free(parcel);
    free(data);
    close_channel();
}

static void
who_writes_in_place_gets_no_run_that_is_not_mapped(void)
{
    mpshm_run run;

    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    CHECK(mpshm_get_buf(near, 100, &run) < 0);
    CHECK_EQ(0, gauges(near).segments); /* and none is made for nothing */
    send_buffers(100, 1, MPSHM_SENT_UNMAPPED);
    CHECK(mpshm_get_buf(near, 100, &run) < 0);
    CHECK_EQ(1, gauges(near).segments);
    take_buffers(100, 1, MPSHM_COPIED_UNMAPPED);
    close_channel();
}

static void
a_queue_carries_messages_of_all_kinds_through_windows(void)
{
    static const uint32_t small[] = {100, 2000, 32768};
    mpshm_geometry geometry = wide();
    int pipe_ends[2];

    counts = (mpshm_counts) {.ring_messages = 0};
    near = queue_arena_of(geometry, 0, 0, 0);
    far = attach_again(near);
    near->overflowing = far->overflowing = false; /* so that a message of more than a slot needs a run */
    make_pipe(pipe_ends);
    mpshm_debug_refuse_mappings(1);
    mpshm_batch *batch = batch_of(far, &counts, pipe_ends[0], 0);
    const mpshm_end *writer = END(near, pipe_ends[1]);

    for (uint32_t i = 0; i < 3; i++) {
        char *data = filled(small[i], i);

        CHECK_EQ(1, mpshm_queue_put_new(writer, data, small[i]));
        CHECK_EQ(small[i], mpshm_queue_receive_one(batch, 0));
        CHECK(is_filled(batch->data, small[i], i));
        free(data);
    }
    CHECK_EQ(2, counts.sent_unmapped);
    CHECK_EQ(2, counts.received_unmapped);
    for (uint32_t i = 1; i <= 9; i += 4) { /* in the slot, and with an index */
        mpshm_parcel *parcel = parcel_of_buffers(near, 50000 * i, i);

        CHECK_EQ(0, mpshm_queue_put_parcel(parcel, writer, NULL, 0, NULL));
        mpshm_parcel_free(parcel);
    }
    CHECK_EQ(3, mpshm_queue_receive(batch, 10, 0));
    CHECK_EQ(5, counts.sent_unmapped);
    CHECK_EQ(5, counts.received_unmapped);
    CHECK_EQ(1 + 5 + 9, batch->runs_used);
    for (uint32_t i = 0, at = 0; i < 3; i++) {
        CHECK_EQ(0, batch->messages[i].error);
        CHECK_EQ(1 + 4 * i, batch->messages[i].runs);
        for (uint32_t k = 0; k < 1 + 4 * i; k++) {
            CHECK(is_filled(batch->runs[at++].data, 50000 * (1 + 4 * i), k));
        }
    }
    CHECK_EQ(0, runs_in_use(far));
    free_batch(batch);
    CHECK_EQ(0, mpshm_leases());
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    mpshm_debug_refuse_mappings(0);
    close_clean(far);
    close_clean(near);
}

/* Lease the message's only run, and bring no bytes of it yet. */
static mpshm_held
lease_unread(void)
{
    mpshm_descriptor what;
    mpshm_held held;

    CHECK_EQ(WHOLE_FRAME, mpshm_read_frame(reader, ends[0]));
    memcpy(&what.mmap_id, reader->bytes + 12, 4);
    memcpy(&what.chunk_id, reader->bytes + 16, 4);
    memcpy(&what.size, reader->bytes + 20, 8);
    memcpy(&what.tag, reader->bytes + 28, 4);
    arena_lock(far);
    CHECK_EQ(0, lease_run(far, &what, NO_POSITION, &held));
    arena_unlock(far);
    CHECK_EQ(MPSHM_COPIED_UNMAPPED, held.copied);
    return held;
}

/* The child of a fork has a block of its own, and no part in the run that was to fill it: also not when it has
   leased the same chunks itself since. */
static void
a_fork_before_the_bytes_came_takes_no_run(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    send_buffers(70000, 1, MPSHM_SENT_UNMAPPED);
    mpshm_held held = lease_unread();
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_release(held.data);
        CHECK_EQ(0, mpshm_leases());
        CHECK_EQ(1, gauges(near).runs_leased);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(1, gauges(near).runs_leased);
    CHECK_EQ(0, lease_read(&held));
    CHECK_EQ(0, runs_in_use(far));
    CHECK(is_filled(held.data, 70000, 0));
    CHECK_EQ(0, lease_read(&held)); /* it is there */
    pid = fork_hooked();
    if (pid == 0) {
        CHECK(is_filled(held.data, 70000, 0));
        fill(held.data, 70000, 1); /* its own */
        mpshm_release(held.data);
        _exit(0);
    }
    wait_child(pid);
    CHECK(is_filled(held.data, 70000, 0));
    mpshm_release(held.data);
    close_channel();
}

static void
a_block_that_was_never_read_gives_its_run_back(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    send_buffers(70000, 1, MPSHM_SENT_UNMAPPED);
    mpshm_held held = lease_unread();

    mpshm_release(held.data);
    CHECK_EQ(0, runs_in_use(far));
    CHECK_EQ(0, mpshm_leases());
    close_channel();
}

static void
lease_and_keep(void)
{
    (void) lease_unread();
}

static void
a_run_is_taken_back_from_one_killed_before_it_read_it(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    send_buffers(70000, 1, MPSHM_SENT_UNMAPPED);
    in_doomed_child(lease_and_keep);
    CHECK_EQ(1, gauges(near).runs_leased);
    mpshm_reap(near);
    CHECK_EQ(0, runs_in_use(near));
    close_channel();
}

/* A fork makes nothing private of what is written through windows: the message is the same for its receiver. */
static void
a_fork_beside_a_message_half_written_changes_nothing(void)
{
    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    mpshm_parcel *parcel = parcel_of(near);
    char *data = filled(200000, 7);

    CHECK_EQ(0, mpshm_put_stream(parcel, data, 100000, 100000, NO_MARK));
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_send(parcel, ends[1], NULL, 0));
        mpshm_parcel_free(parcel);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(0, mpshm_put_stream(parcel, data + 100000, 100000, 0, NO_MARK));
    CHECK_EQ(MPSHM_SENT_UNMAPPED, mpshm_send(parcel, ends[1], NULL, 0));
    mpshm_parcel_free(parcel);
    CHECK_EQ(WHOLE_FRAME, mpshm_receive(reader, ends[0], far, 0, 0));
    CHECK_EQ(200000, reader->runs[0].size);
    CHECK(is_filled(reader->runs[0].data, 200000, 7));
    mpshm_discard(reader);
    free(data);
    close_channel();
}

/* Another file has got the number: its bytes are neither read nor written. */
static void
windows_do_without_the_descriptor(void)
{
    char path[] = "/tmp/mpshm-test-XXXXXX", bytes[64];
    int other;

    open_channel(MPSHM_FILE_AUTO);
    mpshm_debug_refuse_mappings(1);
    send_buffers(3 * MIB, 1, MPSHM_SENT_UNMAPPED);
    other = mkstemp(path);
    CHECK(other != -1);
    unlink(path);
    CHECK_EQ(0, ftruncate(other, 64));
    CHECK_EQ(near->fd, dup2(other, near->fd));
    CHECK_EQ(far->fd, dup2(other, far->fd));
    take_buffers(3 * MIB, 1, MPSHM_COPIED_UNMAPPED);
    send_buffers(3 * MIB, 1, MPSHM_SENT_UNMAPPED);
    take_buffers(3 * MIB, 1, MPSHM_COPIED_UNMAPPED);
    CHECK_EQ(64, pread(other, bytes, 64, 0));
    for (int i = 0; i < 64; i++) {
        CHECK_EQ(0, bytes[i]);
    }
    close(near->fd);
    close(far->fd);
    close(other);
    close_channel();
}

/* With a limit of address space, a part of that is for segments. */
static void
segments_leave_address_space_to_the_program(void)
{
    struct rlimit before, limit;

    if (SANITIZED) {
        return;
    }
    open_channel(MPSHM_FILE_AUTO);
    CHECK_EQ(0, getrlimit(RLIMIT_AS, &before));
    limit = before;
    limit.rlim_cur = 100 * MIB; /* a quarter holds one segment, and not two */
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &limit));
    send_buffers(15 * MIB, 1, 0);
    take_buffers(15 * MIB, 1, MPSHM_COPIED_UNMAPPED);
    CHECK_EQ(1, mapped_segments(near));
    CHECK_EQ(0, mapped_segments(far));
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &before));
    send_buffers(15 * MIB, 1, 0);
    take_buffers(15 * MIB, 1, 0);
    close_channel();
}

/* Not even a head can be mapped: errors, and all goes on when there is room again. */
static void
without_any_address_space_there_are_errors(void)
{
    struct rlimit before, limit;

    if (SANITIZED) {
        return;
    }
    open_channel(MPSHM_FILE_AUTO);
    char *data = filled(100, 1);
    mpshm_parcel *parcel = parcel_of(near);

    CHECK_EQ(0, getrlimit(RLIMIT_AS, &before));
    limit = before;
    limit.rlim_cur = MIB;
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &limit));
    CHECK_EQ(-ENOMEM, mpshm_put_buffer(parcel, data, 100, NO_MARK));
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &before));
    send_buffers(100, 1, 0);
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &limit));
    CHECK_EQ(-ENOMEM, mpshm_receive(reader, ends[0], far, 0, 0));
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &before));
    mpshm_parcel_free(parcel);
    send_buffers(100, 1, 0);
    take_buffers(100, 1, 0);
    free(data);
    mpshm_reader_free(reader);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQ(1, gauges(near).runs_in_flight); /* the message that could not be had */
    mpshm_arena_close(far);
    mpshm_arena_close(near);
}

static const struct test tests[] = {
    TEST(messages_of_all_sizes_go_through_windows),
    TEST(an_index_goes_through_windows),
    TEST(one_side_may_map_and_the_other_not),
    TEST(a_stream_grows_through_windows_and_can_be_read_back),
    TEST(what_is_copied_is_copied_through_a_window),
    TEST(who_writes_in_place_gets_no_run_that_is_not_mapped),
    TEST(a_queue_carries_messages_of_all_kinds_through_windows),
    TEST(a_fork_before_the_bytes_came_takes_no_run),
    TEST(a_block_that_was_never_read_gives_its_run_back),
    TEST(a_run_is_taken_back_from_one_killed_before_it_read_it),
    TEST(a_fork_beside_a_message_half_written_changes_nothing),
    TEST_THAT_NEEDS(mremap_of_nothing, windows_do_without_the_descriptor),
    TEST_THAT_NEEDS(address_limit, segments_leave_address_space_to_the_program),
    TEST_THAT_NEEDS(address_limit, without_any_address_space_there_are_errors),
};

RUN_TESTS(tests)
