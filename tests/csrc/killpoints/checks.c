/* The checks: everything comes back, and the queue or connection goes on as ever.

   By mpshm.h and the ledger, but for rings.c: they hold for any core. */
#define _GNU_SOURCE
#include "checks.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "ledger.h"
#include "lives.h"
#include "rings.h"
#include "stage.h"

/* More than twice the slots of a ring, so that each is passed twice. */
#define TWO_LAPS 1030
/* A ring has 512 slots, of which a few may be kept. */
#define RING_ROOM 500
#define MOST_RUNS 8192
#define MOST_PARCELS 2048
/* Whole chunks of the smallest kind: a parcel's index, of one descriptor and what else there is. */
#define INDEX_BYTES 16384
#define DESCRIPTOR_BYTES 20
/* Runs of one message, its index among them. */
#define MOST_PARTS 6

static void
check_free(uint32_t strays)
{
    mpshm_gauges now;

    EXPECT_EQ(0, mpshm_arena_gauges(stage.arena, &now));
    EXPECT_EQ(0, now.runs_loaned);
    EXPECT(now.runs_in_flight <= strays); /* each sweep may find some of them */
    EXPECT_EQ(0, now.runs_leased);
    EXPECT_EQ(1, mpshm_arena_is_valid(stage.arena));
}

/* Of a connection: one message's runs may stay in flight for a while, if a process was killed that had its
   frame in hand.  If half of that frame was left in the pipe, so do the runs of what others put behind it. */
static void
count_strays(uint32_t hands, bool torn)
{
    uint32_t messages = torn ? 4 : hands > 0 ? 2 : 1; /* it may have put one as well */
    mpshm_gauges now;

    if (!stage.kind->is_queue) {
        EXPECT_EQ(0, mpshm_arena_gauges(stage.arena, &now));
        EXPECT(now.runs_in_flight <= messages * MOST_PARTS);
        report->strays = now.runs_in_flight;
    }
}

/* They are known to be nobody's some time after the pipe was seen empty, by those who wait for memory. */
static void
check_strays(void)
{
    for (int i = 0; report->strays > 0 && i < 2; i++) {
        (void) mpshm_wait_room(stage.arena, stage.out.fd, 1, 0, 0);
        report->ahead_ns += INT64_C(3000000000);
        mpshm_reap(stage.arena);
    }
    check_free(0);
}

/* Nothing is in it, and nothing says that something is. */
static void
check_empty(void)
{
    EXPECT_EQ(0, hear_all());
    if (stage.kind->is_queue) {
        EXPECT_EQ(0, mpshm_queue_size(stage.arena));
        EXPECT_EQ(0, mpshm_queue_full(stage.arena));
        EXPECT_EQ(0, mpshm_queue_poll(&stage.in, 0));
    }
    mpshm_reap(stage.arena);
    rings_check(stage.arena);
    check_free(report->strays);
}

/* What is still in it comes out whole, once and in order. */
static void
check_contents(uint32_t hands)
{
    int64_t size = stage.kind->is_queue ? mpshm_queue_size(stage.arena) : 0;

    bool torn = hands > 0 && drain_if_torn();
    int heard = hear_all();

    if (stage.kind->is_queue) {
        EXPECT_EQ(size, heard);
    }
    ledger_check(torn ? UINT32_MAX : hands);
    mpshm_reap(stage.arena);
    count_strays(hands, torn);
}

/* join() ends when all that was taken is done, not earlier; no task_done() of these is refused, and one
   more is. */
static void
check_tasks(void)
{
    uint32_t least, most;

    if (!(stage.bit & WITH_TASKS)) {
        return;
    }
    ledger_tasks_left(&least, &most);
    for (uint32_t i = 0; i < least; i++) {
        EXPECT_EQ(-ETIMEDOUT, mpshm_wait_done(stage.arena, 0));
        EXPECT(say_done());
    }
    while (least < most && say_done()) {
        least++;
    }
    EXPECT_EQ(0, mpshm_wait_done(stage.arena, 1));
    EXPECT_EQ(-ERANGE, mpshm_task_done(stage.arena));
    ledger_tasks_settled();
}

/* A pipe that is watched is readable while there is a message, and not longer. */
static void
check_pipe(bool readable)
{
    struct pollfd pipe = {.fd = stage.in.fd, .events = POLLIN};

    if (stage.kind->is_watched) {
        EXPECT_EQ(readable, poll(&pipe, 1, 0));
    }
}

static void
hear_each(int count)
{
    for (int i = 0; i < count; i++) {
        EXPECT(hear());
        if (stage.bit & WITH_TASKS) {
            EXPECT(say_done());
        }
    }
}

/* Fill it: how many messages that takes. */
static int
fill_up(enum shape shape, int most)
{
    int count = 0;

    while (count < most && say(shape) == 0) {
        count++;
    }
    return count;
}

/* As much fits as ever, and each slot is passed twice. */
static void
check_laps(void)
{
    int most = (int) (stage.kind->fits != 0 ? stage.kind->fits : RING_ROOM);

    EXPECT_EQ(most, fill_up(stage.kind->filler, most));
    EXPECT_EQ(most, mpshm_queue_size(stage.arena));
    if (stage.bit & WITH_PLACES) {
        EXPECT_EQ(MPSHM_E_FULL, say(stage.kind->filler));
    }
    hear_each(most);
    most = stage.bit & KIND(BYTES) ? RING_ROOM : most;
    for (int all = 0; all < TWO_LAPS; all += most) {
        EXPECT_EQ(most, fill_up(SHORT, most));
        hear_each(most);
    }
}

/* It goes back to its first ring, and gets longer again. */
static void
check_growth(void)
{
    for (int i = 0; i < 2; i++) { /* the first empties what the second gives back */
        (void) mpshm_trim(stage.arena);
    }
    rings_check_given_back(stage.arena);
    int all = fill_up(SHORT, INT_MAX);

    EXPECT(all >= RING_ROOM);
    EXPECT_EQ(-EAGAIN, say(SHORT));
    EXPECT_EQ(0, mpshm_queue_grow(&stage.out));
    all += fill_up(SHORT, RING_ROOM);
    EXPECT_EQ(all, mpshm_queue_size(stage.arena));
    hear_each(all);
}

/* Each kind of message goes through. */
static void
check_goes_on(void)
{
    check_pipe(false);
    for (enum shape shape = SHORT; shape < BY_COPY; shape++) {
        EXPECT_EQ(0, say(shape));
        check_pipe(true);
    }
    hear_each(BY_COPY - SHORT);
    check_pipe(false);
}

/* What is claimed of an arena: all of it. */
static struct {
    mpshm_parcel *parcels[MOST_PARCELS];
    mpshm_run runs[MOST_RUNS];
    uint32_t run_count, index_count, parcel_count;
} all;

/* Claim all there is: usual chunks one by one until there are none and no segment more can be made; then what
   is left of the smallest chunks, by parcels whose index fills sixteen KiB of those: the senders' reserve, and the
   segments that had such chunks before. */
static void
claim_all(const mpshm_geometry *geometry)
{
    static const char stream[INDEX_BYTES];
    uint64_t chunk_bytes = UINT64_C(1) << geometry->chunk_shift;

    all.parcel_count = (geometry->segment_limit / 4 + 3) * (uint32_t) (geometry->segment_bytes / INDEX_BYTES) + 1;
    EXPECT(all.parcel_count <= MOST_PARCELS);
    for (uint32_t i = 0; i < all.parcel_count; i++) {
        all.parcels[i] = mpshm_parcel_new();
        EXPECT(all.parcels[i] != NULL);
        mpshm_parcel_begin(all.parcels[i], stage.arena);
        EXPECT_EQ(0, mpshm_put_buffer(all.parcels[i], stream, 1, UINT64_MAX));
    }
    all.run_count = all.index_count = 0;
    while (all.run_count < MOST_RUNS
           && mpshm_get_buf(stage.arena, chunk_bytes, &all.runs[all.run_count]) == 0) {
        all.run_count++;
    }
    while (all.index_count < all.parcel_count
           && mpshm_settle(all.parcels[all.index_count], INDEX_BYTES - DESCRIPTOR_BYTES, UINT64_MAX) == 0) {
        all.index_count++;
    }
    EXPECT(all.run_count < MOST_RUNS && all.index_count < all.parcel_count);
}

static void
give_all_back(void)
{
    for (uint32_t i = 0; i < all.parcel_count; i++) {
        mpshm_parcel_free(all.parcels[i]);
    }
    for (uint32_t i = 0; i < all.run_count; i++) {
        EXPECT_EQ(0, mpshm_abandon(&all.runs[i]));
    }
}

/* No chunk is lost: all segments can be claimed whole.  A core may find chunks of the dead only when it has
   found no others, and these may lie in pieces: hence twice. */
static void
check_memory(void)
{
    mpshm_geometry geometry;

    EXPECT_EQ(0, mpshm_arena_geometry(stage.arena, &geometry));
    uint64_t chunk_bytes = UINT64_C(1) << geometry.chunk_shift;

    claim_all(&geometry);
    give_all_back();
    claim_all(&geometry);
    uint64_t usual = all.run_count + all.parcel_count, in_each = geometry.segment_bytes / chunk_bytes;
    uint64_t smallest = all.index_count, small_in_each = geometry.segment_bytes / INDEX_BYTES;

    EXPECT_EQ(0, usual % in_each);
    EXPECT_EQ(0, smallest % small_in_each);
    EXPECT_EQ(geometry.segment_limit, usual / in_each + smallest / small_in_each);
    give_all_back();
}

/* The next that dies is reaped as well, whatever it holds. */
static void
check_next_death(void)
{
    int pid = life_begin(fork);

    if (pid == 0) {
        mpshm_run loaned;

        EXPECT_EQ(0, mpshm_get_buf(stage.arena, 5000, &loaned));
        hold_views();
        if (stage.kind->is_queue) {
            EXPECT_EQ(0, mpshm_place_take(mpshm_place_new(stage.arena)));
        }
        raise(SIGKILL);
    }
    EXPECT(life_wait(pid, "the next dead") == WAS_KILLED);
    mpshm_reap(stage.arena);
    check_empty();
    check_tasks();
}

void
check_everything(uint32_t hands)
{
    mpshm_reap(stage.arena);
    EXPECT_EQ(1, mpshm_arena_is_valid(stage.arena));
    rings_check(stage.arena);
    check_contents(hands);
    check_tasks();
    check_empty();
    check_goes_on();
    if (stage.kind->is_queue) {
        check_laps();
    }
    if (stage.kind->limits.grows) {
        check_growth();
    }
    check_next_death();
    check_empty();
}

void
check_last(void)
{
    check_empty();
    check_strays();
    if (!stage.kind->is_large) { /* the debug build fills what is freed, and that is much here */
        check_memory();
    }
}

void
check_as_newcomer(void)
{
    stage_take_over();
    mpshm_reap(stage.arena);
    check_empty();
    check_tasks();
    check_goes_on();
    check_empty();
    stage_close();
}
