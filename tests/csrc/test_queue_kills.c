/* Queues of every kind whose producers, consumers and joiners are killed at random: what is left is a whole
   queue, with every place, byte and run, and no task counted wrongly. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PRODUCERS 4
#define CONSUMERS 2
#define CREW (PRODUCERS + CONSUMERS)
#define KILL_NS INT64_C(1200000000)
#define PLACES 5

enum kind { UNBOUNDED, BOUNDED, BY_BYTES, KINDS };

static mpshm_counts counts;
static mpshm_arena *arena;
static mpshm_batch *batch;
static int ends[2];

struct shared {
    _Atomic uint64_t got;
    _Atomic int most;
};
static struct shared *shared;

static void
open_queue(enum kind kind)
{
    mpshm_geometry geometry = {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20,
                               .segment_limit = 16, .chunk_shift = 12};

    arena = queue_arena_of(geometry, kind == BOUNDED ? PLACES : 0, kind == BY_BYTES ? 60000 : 0, 1);
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    mpshm_reap(arena); /* have a name, before any child */
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
}

static uint64_t
next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *seed >> 33;
}

static const uint32_t sizes[] = {8, 124, 1000, 5000, 20000, 30000};

static void
put_for_ever(uint64_t seed)
{
    static char data[SMALL_RUN_BYTES];
    const mpshm_end *end = END(arena, ends[1]);

    for (;;) {
        uint32_t size = sizes[next_random(&seed) % 6];
        mpshm_place *place = next_random(&seed) % 4 == 0 ? mpshm_place_new(arena) : NULL;

        memset(data, (int) (size % 251), size);
        while (place != NULL && mpshm_place_take(place) == MPSHM_E_FULL) {
            (void) mpshm_queue_wait_room(end, NULL, 5);
        }
        if (place != NULL && next_random(&seed) % 3 == 0) {
            mpshm_place_free(place); /* it will not come */
            continue;
        }
        for (int n; (n = mpshm_queue_put_one(end, data, size, place)) != 1;) {
            CHECK(n == -EAGAIN || n == MPSHM_E_FULL);
            if (n == MPSHM_E_FULL && place == NULL && next_random(&seed) % 2 == 0) {
                break; /* too late */
            }
            (void) mpshm_queue_wait_room(end, place, 5);
        }
        mpshm_place_free(place);
    }
}

/* How many messages came, each whole, and was done. */
static int
get_some(uint32_t most, int timeout_ms)
{
    int n = mpshm_queue_receive(batch, most, timeout_ms);

    CHECK(n > 0 || n == -EAGAIN || n == -EINTR);
    for (int i = 0; i < n; i++) {
        const char *at = batch->data + batch->messages[i].at;

        CHECK_EQ(0, batch->messages[i].error);
        CHECK_EQ((char) (batch->messages[i].size % 251), at[0]);
        CHECK_EQ(at[0], at[batch->messages[i].size - 1]);
        CHECK(mpshm_task_done(arena) >= 0);
    }
    return n;
}

static void
get_for_ever(uint64_t seed, enum kind kind)
{
    for (;;) {
        int n = get_some(1 + next_random(&seed) % 4, 5), size = (int) mpshm_queue_size(arena);

        atomic_fetch_add(&shared->got, n > 0 ? (uint64_t) n : 0);
        CHECK(kind != BOUNDED || size <= PLACES);
    }
}

static int
crew_member(uint32_t role, uint64_t seed, enum kind kind)
{
    int pid = fork_hooked();

    if (pid == 0) {
        if (role < PRODUCERS) {
            put_for_ever(seed);
        } else {
            get_for_ever(seed, kind);
        }
    }
    return pid;
}

/* Every place can be used, and every byte; nothing is left undone but what died in a consumer's hand. */
static void
check_whole(enum kind kind, uint32_t killed_consumers)
{
    static char data[SMALL_RUN_BYTES];
    const mpshm_end *end = END(arena, ends[1]);

    mpshm_reap(arena);
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(0, runs_in_use(arena));
    CHECK_EQ(1, ring_validate(arena, true));
    int64_t left = tasks_unfinished(arena);

    CHECK(left >= 0 && left <= 4 * (int64_t) killed_consumers);
    uint32_t most = kind == UNBOUNDED ? RING_SLOTS : kind == BOUNDED ? PLACES : 60000 / MPSHM_SLOT_BYTES;

    for (int lap = 0; lap < 2; lap++) {
        for (uint32_t i = 0; i < most; i++) {
            CHECK_EQ(1, mpshm_queue_put_one(end, data, 8, NULL));
        }
        CHECK(mpshm_queue_put_one(end, data, 8, NULL) < 0);
        for (uint32_t i = 0; i < most; i++) {
            CHECK_EQ(8, mpshm_queue_receive_one(batch, 0));
            CHECK(mpshm_task_done(arena) >= 0);
        }
    }
    CHECK_EQ(left, tasks_unfinished(arena));
    CHECK_EQ(left == 0 ? 0 : -ETIMEDOUT, mpshm_wait_done(arena, 0));
    for (int64_t i = 0; i < left; i++) {
        CHECK(mpshm_task_done(arena) >= 0);
    }
    CHECK_EQ(-ERANGE, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
}

static void
storm(enum kind kind, bool consumers_too)
{
    int pids[CREW];
    uint64_t seed = (uint64_t) now_ns();
    uint32_t killed_consumers = 0;

    open_queue(kind);
    for (uint32_t i = 0; i < CREW; i++) {
        pids[i] = crew_member(i, next_random(&seed), kind);
    }
    for (int64_t until = now_ns() + KILL_NS; now_ns() < until;) {
        usleep((useconds_t) (next_random(&seed) % 3000));
        uint32_t role = (uint32_t) next_random(&seed) % (consumers_too ? CREW : PRODUCERS);

        kill_child(pids[role]);
        killed_consumers += role >= PRODUCERS;
        pids[role] = crew_member(role, next_random(&seed), kind);
    }
    uint64_t got = atomic_load(&shared->got);

    while (atomic_load(&shared->got) < got + 200) { /* the living go on, or this hangs */
        usleep(1000);
    }
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        kill_child(pids[i]);
    }
    for (int quiet = 0; quiet < 3;) { /* the consumers empty it */
        usleep(1000);
        quiet = mpshm_queue_size(arena) == 0 ? quiet + 1 : 0;
    }
    usleep(20000); /* and call task_done() for the last */
    for (uint32_t i = PRODUCERS; i < CREW; i++) {
        kill_child(pids[i]);
    }
    check_whole(kind, killed_consumers);
    free_batch(batch);
    mpshm_arena_close(arena);
}

static void
killed_producers_leave_a_whole_queue(void)
{
    for (enum kind kind = 0; kind < KINDS; kind++) {
        storm(kind, false);
    }
}

static void
killed_producers_and_consumers_leave_a_whole_queue(void)
{
    for (enum kind kind = 0; kind < KINDS; kind++) {
        storm(kind, true);
    }
}

static const struct test tests[] = {
    TEST(killed_producers_leave_a_whole_queue),
    TEST(killed_producers_and_consumers_leave_a_whole_queue),
};
RUN_TESTS(tests)
