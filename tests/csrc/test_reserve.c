/* Receivers that keep all that they get, until nothing but the senders' reserve is left. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#define NO_MARK UINT64_MAX
#define MIB (UINT64_C(1) << 20)
#define PLACES 6u /* segments below the reserve, of 8 */

static int ends[2];
static mpshm_arena *near, *far;
static mpshm_counts counts;
static mpshm_batch *batch;
static mpshm_held kept[64];
static uint32_t kept_count;

/* 4 KiB chunks, 256 to a segment, 8 segments. */
static mpshm_geometry
narrow(void)
{
    return (mpshm_geometry) {.stride = 8 * MIB, .segment_bytes = MIB, .segment_limit = 8, .chunk_shift = 12};
}

static void
open_queue(int kind)
{
    mpshm_geometry geometry = narrow();
    mpshm_queue queue = {.places = 0};

    counts = (mpshm_counts) {.ring_messages = 0};
    CHECK_EQ(0, mpshm_arena_create(&geometry, kind, "mpshm", 0, &queue, &near));
    far = attach_again(near);
    make_pipe(ends);
    mpshm_reap(near); /* have a name, before any child */
    batch = batch_of(far, &counts, ends[0], 0);
    kept_count = 0;
}

static void
close_queue(void)
{
    while (kept_count > 0) {
        mpshm_release(kept[--kept_count].data);
    }
    free_batch(batch);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQ(0, mpshm_leases());
    close_clean(far);
    close_clean(near);
}

/* Put a message of one buffer: 0 or the error. */
static int
put(uint64_t size, unsigned seed)
{
    mpshm_parcel *parcel = parcel_of(near);
    char *data = malloc(size);

    CHECK(data != NULL);
    fill(data, size, seed);
    int error = mpshm_put_buffer(parcel, data, size, NO_MARK);

    error = error ? error : mpshm_settle(parcel, 0, NO_MARK);
    error = error ? error : mpshm_queue_put_parcel(parcel, END(near, ends[1]), NULL, 0, NULL);
    mpshm_parcel_free(parcel);
    free(data);
    return error;
}

/* Get it and keep it; why it was copied, if it was. */
static uint32_t
get(uint64_t size, unsigned seed)
{
    mpshm_held *held = &kept[kept_count++];

    CHECK_EQ(MPSHM_DESCRIPTORS, receive_patiently(batch));
    CHECK_EQ(1, batch->messages[0].runs);
    mpshm_batch_take(batch, 0, held);
    CHECK_EQ(size, held->size);
    CHECK(is_filled(held->data, size, seed));
    return held->copied;
}

static void
receivers_that_keep_all_leave_the_reserve(void)
{
    open_queue(MPSHM_FILE_AUTO);
    for (unsigned i = 0; i < 40; i++) {
        CHECK_EQ(0, put(MIB, i));
        CHECK_EQ(i < PLACES ? 0 : MPSHM_COPIED_SCARCE, get(MIB, i));
    }
    CHECK_EQ(PLACES, gauges(far).runs_leased);
    CHECK_EQ(0, gauges(far).runs_in_flight);
    CHECK_EQ(40 - PLACES, counts.received_scarce);
    CHECK_EQ(40, counts.received_shm_messages);
    for (unsigned i = 0; i < 40; i++) {
        CHECK(is_filled(kept[i].data, MIB, i));
    }
    close_queue();
}

static void
messages_of_all_sizes_go_on(void)
{
    static const uint64_t sizes[] = {MIB, MIB / 2, 3 * MIB, 4096, MIB / 3, 6 * MIB, 2 * MIB, 40000, 7 * MIB - 4096};
    unsigned n = 0;

    open_queue(MPSHM_FILE_AUTO);
    for (; n < PLACES; n++) {
        CHECK_EQ(0, put(MIB, n));
        CHECK_EQ(0, get(MIB, n));
    }
    for (unsigned i = 0; i < 3 * sizeof sizes / sizeof *sizes; i++, n++) {
        uint64_t size = sizes[i % (sizeof sizes / sizeof *sizes)];

        CHECK_EQ(0, put(size, n));
        CHECK_EQ(MPSHM_COPIED_SCARCE, get(size, n));
    }
    CHECK_EQ(-EFBIG, put(8 * MIB, 0)); /* longer than any segment can be */
    close_queue();
}

/* All of the reserve is in flight: that is all there is. */
static void
a_full_reserve_is_full(void)
{
    unsigned n = 0, in_flight = 0;

    open_queue(MPSHM_FILE_AUTO);
    for (; n < PLACES; n++) {
        CHECK_EQ(0, put(MIB, n));
        CHECK_EQ(0, get(MIB, n));
    }
    while (put(MIB, n + in_flight) == 0) {
        in_flight++;
    }
    CHECK(in_flight >= 2);
    CHECK_EQ(-ENOSPC, put(MIB, 0));
    for (unsigned i = 0; i < in_flight; i++) {
        CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB, n + i));
    }
    CHECK_EQ(0, put(MIB, 5));
    CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB, 5));
    close_queue();
}

static void
what_is_released_is_leased_again(void)
{
    open_queue(MPSHM_FILE_AUTO);
    for (unsigned i = 0; i < 10; i++) {
        CHECK_EQ(0, put(MIB, i));
        (void) get(MIB, i);
    }
    mpshm_release(kept[2].data);
    kept[2].data = NULL;
    near->scarce_until_ns = 0; /* that moment is over */
    CHECK_EQ(0, put(MIB, 10));
    CHECK_EQ(0, get(MIB, 10));
    CHECK_EQ(0, put(MIB, 11));
    CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB, 11));
    close_queue();
}

/* For a moment after one looked in vain it uses the reserve at once; but not for what is shorter, and not when the
   reserve has no room. */
static void
scarcity_is_remembered_for_a_moment(void)
{
    open_queue(MPSHM_FILE_AUTO);
    for (unsigned i = 0; i <= PLACES; i++) {
        CHECK_EQ(0, put(MIB, i));
        (void) get(MIB, i);
    }
    mpshm_release(kept[0].data);
    kept[0].data = NULL;
    near->scarce_until_ns = INT64_MAX;
    CHECK_EQ(0, put(MIB, 8));
    CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB, 8));
    CHECK_EQ(0, put(MIB / 2, 9));
    CHECK_EQ(0, get(MIB / 2, 9));
    unsigned n = 0;

    while (put(MIB / 2 + 4096, n) == 0) { /* all of the reserve */
        n++;
    }
    mpshm_release(kept[1].data);
    kept[1].data = NULL;
    CHECK_EQ(0, put(MIB, n));
    for (unsigned i = 0; i < n; i++) {
        CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB / 2 + 4096, i));
    }
    CHECK_EQ(0, get(MIB, n));
    close_queue();
}

/* There is no segment of small chunks, and none can be made any more. */
static void
short_messages_find_room_among_large_ones(void)
{
    char data[3000];

    open_queue(MPSHM_FILE_AUTO);
    near->overflowing = far->overflowing = false; /* so that a message of more than a slot needs a run */
    for (unsigned i = 0; i <= PLACES; i++) {
        CHECK_EQ(0, put(MIB, i));
        (void) get(MIB, i);
    }
    for (unsigned i = 0; i < 100; i++) {
        fill(data, sizeof data, i);
        CHECK_EQ(1, mpshm_queue_put_new(END(near, ends[1]), data, sizeof data));
        CHECK_EQ(sizeof data, receive_patiently(batch));
        CHECK(is_filled(batch->data, sizeof data, i));
    }
    CHECK_EQ(1, counts.received_scarce); /* such are always copied */
    CHECK_EQ(0, counts.received_unmapped);
    close_queue();
}

static void
buffers_to_fill_are_not_of_the_reserve(void)
{
    mpshm_run runs[PLACES], one;

    open_queue(MPSHM_FILE_AUTO);
    for (uint32_t i = 0; i < PLACES; i++) {
        runs[i] = claim(near, MIB);
    }
    CHECK_EQ(-ENOSPC, mpshm_get_buf(near, MIB, &one));
    CHECK_EQ(0, put(MIB, 1));
    CHECK_EQ(-ENOSPC, mpshm_get_buf(near, MIB, &one));
    CHECK_EQ(MPSHM_COPIED_SCARCE, get(MIB, 1));
    for (uint32_t i = 0; i < PLACES; i++) {
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    close_queue();
}

static void
a_message_of_many_runs_is_copied_where_it_must_be(void)
{
    open_queue(MPSHM_FILE_AUTO);
    for (unsigned i = 0; i < PLACES; i++) {
        CHECK_EQ(0, put(i == 0 ? MIB / 2 : MIB, i));
        CHECK_EQ(0, get(i == 0 ? MIB / 2 : MIB, i));
    }
    mpshm_parcel *parcel = parcel_of(near);
    char *data = malloc(MIB / 2);

    CHECK(data != NULL);
    fill(data, MIB / 2, 9);
    for (int i = 0; i < 3; i++) { /* the first is where room is left */
        CHECK_EQ(0, mpshm_put_buffer(parcel, data, MIB / 2, NO_MARK));
    }
    CHECK_EQ(0, mpshm_settle(parcel, 0, NO_MARK));
    CHECK_EQ(0, mpshm_queue_put_parcel(parcel, END(near, ends[1]), NULL, 0, NULL));
    mpshm_parcel_free(parcel);
    free(data);
    CHECK_EQ(MPSHM_DESCRIPTORS, receive_patiently(batch));
    CHECK_EQ(3, batch->messages[0].runs);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(i == 0 ? 0 : MPSHM_COPIED_SCARCE, batch->runs[i].copied);
        CHECK(is_filled(batch->runs[i].data, MIB / 2, 9));
    }
    CHECK_EQ(1, counts.received_scarce);
    close_queue();
}

/* Two receivers, each in a process of its own, and neither gives anything back. */
static void
keep_ten(mpshm_batch *mine, int done[2])
{
    for (int i = 0; i < 10; i++) {
        mpshm_held held;

        CHECK_EQ(MPSHM_DESCRIPTORS, receive_patiently(mine));
        mpshm_batch_take(mine, 0, &held);
        CHECK(is_filled(held.data, held.size, 3));
    }
    go(done);
    pause();
}

static void
any_number_of_receivers_may_keep_all(void)
{
    int done[2], pids[2];

    open_queue(MPSHM_FILE_AUTO);
    CHECK_EQ(0, pipe(done));
    for (int i = 0; i < 2; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            keep_ten(batch, done);
        }
    }
    for (int i = 0; i < 20; i++) {
        int error;

        while ((error = put(MIB, 3)) == -ENOSPC || error == -EAGAIN) {
            sched_yield();
        }
        CHECK_EQ(0, error);
    }
    await(done);
    await(done);
    CHECK(gauges(near).runs_leased <= PLACES);
    kill_child(pids[0]);
    kill_child(pids[1]);
    mpshm_reap(near);
    CHECK_EQ(0, runs_in_use(near));
    close_queue();
}

/* In a process whose address space is full: the message, and why it was copied, if it was. */
static void
receive_without_address_space(uint32_t copied)
{
    struct rlimit before, limit;

    if (SANITIZED) {
        return;
    }
    open_queue(MPSHM_FILE_AUTO);
    for (unsigned i = 0; i < PLACES; i++) {
        CHECK_EQ(0, put(MIB, i));
        CHECK_EQ(0, get(MIB, i));
    }
    mpshm_batch *mine = batch_of(near, &counts, ends[0], 0); /* by the handle that has sent: it is mapped there */

    CHECK_EQ(0, put(MIB, 7));
    CHECK_EQ(0, getrlimit(RLIMIT_AS, &before));
    limit = before;
    limit.rlim_cur = MIB / 2;
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &limit));
    CHECK_EQ(MPSHM_DESCRIPTORS, receive_patiently(mine));
    CHECK_EQ(0, setrlimit(RLIMIT_AS, &before));
    CHECK_EQ(copied, mine->runs[0].copied);
    CHECK(is_filled(mine->runs[0].data, MIB, 7));
    CHECK_EQ(PLACES + (copied == 0), gauges(near).runs_leased);
    free_batch(mine);
    close_queue();
}

/* Not the block, but the run: to keep that is better than to have no message. */
static void
without_private_memory_a_view_of_the_reserve_is_kept(void)
{
#ifdef __GLIBC__
    CHECK(SANITIZED || mallopt(M_MMAP_THRESHOLD, 65536)); /* what was freed does not serve again */
#endif
    receive_without_address_space(0);
}

static void
without_address_space_for_a_window_there_may_be_a_mapping(void)
{
#ifdef __GLIBC__
    CHECK(SANITIZED || mallopt(M_MMAP_MAX, 0)); /* the heap keeps what is freed */
    CHECK(SANITIZED || mallopt(M_TRIM_THRESHOLD, 64 * MIB));
    free(malloc(8 * MIB));
    receive_without_address_space(MPSHM_COPIED_SCARCE);
#else
    printf("this C library's heap keeps nothing for certain: a test is left out\n");
#endif
}

/* A file system of 4 MiB: three leases leave less than a quarter of it. */
static void
receivers_leave_a_quarter_of_a_small_file_system(void)
{
    if (unshare(CLONE_NEWNS) == -1 || mount("none", "/", NULL, MS_PRIVATE | MS_REC, NULL) == -1
        || mount("none", "/dev/shm", "tmpfs", 0, "size=4m") == -1) {
        printf("no file system of its own here: a test is left out\n");
        return;
    }
    open_queue(MPSHM_FILE_SHM);
    unsigned leased = 0;

    for (unsigned i = 0; i < 30; i++) {
        CHECK_EQ(0, put(MIB / 2, i));
        leased += get(MIB / 2, i) == 0;
    }
    CHECK(leased >= 2);
    CHECK(leased <= 6);
    CHECK_EQ(leased, gauges(far).runs_leased);
    for (unsigned i = 0; i < 30; i++) {
        CHECK(is_filled(kept[i].data, MIB / 2, i));
    }
    close_queue();
}

static const struct test tests[] = {
    TEST(receivers_that_keep_all_leave_the_reserve),
    TEST(messages_of_all_sizes_go_on),
    TEST(a_full_reserve_is_full),
    TEST(what_is_released_is_leased_again),
    TEST(scarcity_is_remembered_for_a_moment),
    TEST(short_messages_find_room_among_large_ones),
    TEST(buffers_to_fill_are_not_of_the_reserve),
    TEST(a_message_of_many_runs_is_copied_where_it_must_be),
    TEST(any_number_of_receivers_may_keep_all),
    TEST_THAT_NEEDS(address_limit, without_private_memory_a_view_of_the_reserve_is_kept),
    TEST_THAT_NEEDS(address_limit, without_address_space_for_a_window_there_may_be_a_mapping),
    TEST(receivers_leave_a_quarter_of_a_small_file_system),
};

RUN_TESTS(tests)
