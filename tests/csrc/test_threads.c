/* Threads of one process on one arena: for TSan above all, which sees no other process. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#define SENDERS 3
#define MESSAGES 3000

static mpshm_arena *arena, *far;
static int ends[2], token[2];
static _Atomic int received, waited;
static unsigned char seen[SENDERS][MESSAGES];

static void *
sender(void *argument)
{
    unsigned me = (unsigned) (uintptr_t) argument, seed = me + 1;

    for (unsigned i = 0; i < MESSAGES;) {
        uint64_t size = (uint64_t) rand_r(&seed) % 300 + 8;
        mpshm_run run;

        if (mpshm_wait_room(arena, ends[1], size, 2048, 20) != 0) {
            atomic_fetch_add(&waited, 1);
            continue;
        }
        int error = mpshm_get_buf(arena, size % 50 + 8, &run);

        if (error == 0 && run.capacity < size
            && mpshm_increase_buf(&run, size - run.capacity, size - run.capacity) < 0) {
            CHECK_EQ(0, mpshm_abandon(&run));
            error = mpshm_get_buf(arena, size, &run);
        }
        if (error != 0) {
            CHECK_EQ(-ENOSPC, error);
            sched_yield();
            continue;
        }
        memcpy(run.data, &me, 4);
        memcpy(run.data + 4, &i, 4);
        fill(run.data + 8, size - 8, me * MESSAGES + i);
        if (i % 7 == 0) {
            uint64_t bytes = 0;

            arena_lock(arena);
            CHECK_EQ(0, run_seal(&run, size, NO_POSITION, &bytes));
            run_unseal(&run, NO_POSITION);
            arena_unlock(arena);
        }
        CHECK_EQ(0, send_run(ends[1], &run, size));
        i++;
    }
    return NULL;
}

static void *
receiver(void *argument)
{
    mpshm_arena *mine = argument;
    char *kept = NULL, byte;

    for (;;) {
        mpshm_reader reader = {.have = 0};
        char *data;
        uint64_t size;
        unsigned from, number;

        CHECK_EQ(1, read(token[0], &byte, 1)); /* a frame is two reads: one receiver at a time */
        strays_inside(mine, true); /* as mpshm_receive does: it has a frame in hand */
        int n = mpshm_read_frame(&reader, ends[0]);

        CHECK_EQ(1, write(token[1], "t", 1));
        if (n == 0) {
            strays_inside(mine, false);
            break;
        }
        CHECK_EQ(WHOLE_FRAME, n);
        CHECK_EQ(0, lease_frame(mine, reader.bytes, &data, &size));
        strays_inside(mine, false);
        memcpy(&from, data, 4);
        memcpy(&number, data + 4, 4);
        CHECK(from < SENDERS && number < MESSAGES);
        CHECK(is_filled(data + 8, size - 8, from * MESSAGES + number));
        CHECK_EQ(0, seen[from][number]);
        seen[from][number] = 1;
        atomic_fetch_add(&received, 1);
        memset(data, 0, size); /* what was received is ours to write */
        if (kept != NULL) {
            mpshm_release(kept);
        }
        kept = data;
    }
    if (kept != NULL) {
        mpshm_release(kept);
    }
    return NULL;
}

static void
senders_and_receivers_share_one_pipe(void)
{
    pthread_t senders[SENDERS], receivers[2];

    arena = arena_of(tiny);
    far = attach_again(arena);
    CHECK_EQ(0, pipe(ends));
    CHECK_EQ(0, pipe(token));
    CHECK_EQ(1, write(token[1], "t", 1));
    for (uintptr_t i = 0; i < SENDERS; i++) {
        CHECK_EQ(0, pthread_create(&senders[i], NULL, sender, (void *) i));
    }
    /* One through the senders' own mappings, one through others. */
    CHECK_EQ(0, pthread_create(&receivers[0], NULL, receiver, arena));
    CHECK_EQ(0, pthread_create(&receivers[1], NULL, receiver, far));
    for (int i = 0; i < SENDERS; i++) {
        pthread_join(senders[i], NULL);
    }
    close(ends[1]);
    for (int i = 0; i < 2; i++) {
        pthread_join(receivers[i], NULL);
    }
    CHECK_EQ(SENDERS * MESSAGES, atomic_load(&received));
    close_clean(far);
    close_clean(arena);
}

static _Atomic bool stop;

static void *
watch(void *argument)
{
    (void) argument;
    while (!atomic_load(&stop)) {
        (void) gauges(arena);
        CHECK_EQ(0, mpshm_leases());
    }
    return NULL;
}

static void *
come_and_go(void *argument)
{
    uint64_t size = 16 * (1 + (uint64_t) (uintptr_t) argument);

    for (int i = 0; i < 5000; i++) {
        mpshm_run run;

        if (mpshm_get_buf(arena, size, &run) == 0) {
            fill(run.data, run.capacity, 1);
            (void) mpshm_increase_buf(&run, 64, 0);
            CHECK_EQ(0, mpshm_abandon(&run));
        }
    }
    return NULL;
}

static void
gauges_may_be_read_at_any_time(void)
{
    pthread_t watcher, workers[3];

    arena = arena_of(tiny);
    CHECK_EQ(0, pthread_create(&watcher, NULL, watch, NULL));
    for (uintptr_t i = 0; i < 3; i++) {
        CHECK_EQ(0, pthread_create(&workers[i], NULL, come_and_go, (void *) i));
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(workers[i], NULL);
    }
    atomic_store(&stop, true);
    pthread_join(watcher, NULL);
    close_clean(arena);
}

static void *
open_and_close(void *argument)
{
    (void) argument;
    for (int i = 0; i < 300; i++) {
        mpshm_arena *own = attach_again(arena);
        char *data = lease_new(own, 100, 1);

        mpshm_arena_close(own);
        CHECK(is_filled(data, 100, 1));
        mpshm_release(data);
    }
    return NULL;
}

static void
handles_come_and_go_in_threads(void)
{
    mpshm_geometry wide = tiny;
    pthread_t threads[3];

    wide.segment_limit = 16;
    arena = arena_of(wide);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, open_and_close, NULL));
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    close_clean(arena);
}

#define LONG_BYTES (UINT64_C(5) << 20) /* of which huge pages are made */

static void *
use_memory(void *argument)
{
    unsigned me = (unsigned) (uintptr_t) argument;
    char *source = malloc(LONG_BYTES);

    CHECK(source != NULL);
    for (unsigned i = 0; i < 24; i++) {
        uint64_t size = i % 4 == 0 ? LONG_BYTES : 5000;
        mpshm_run run = claim(arena, size);

        memset(source, (int) (me * 100 + i), size);
        CHECK_EQ(0, mpshm_copy_in(&run, 0, source, size));
        CHECK_EQ(0, memcmp(run.data, source, size));
        CHECK_EQ(0, mpshm_abandon(&run));
        mpshm_release(lease_new(arena, 10000, i));
    }
    free(source);
    return NULL;
}

static _Atomic uint64_t given; /* by both: which of them comes to it is luck */

static void *
trim(void *argument)
{
    while (!atomic_load(&stop)) {
        atomic_fetch_add(&given, mpshm_trim(argument));
        atomic_store(&arena->header->trimmed, 0);
        trim_if_due(argument, NULL, NULL);
    }
    return NULL;
}

static void
memory_is_given_back_beside_those_who_use_it(void)
{
    mpshm_geometry large = {.stride = UINT64_C(80) << 20, .segment_bytes = UINT64_C(64) << 20,
                            .segment_limit = 40, .chunk_shift = 12};
    pthread_t users[3], trimmers[2];

    arena = arena_of(large);
    far = attach_again(arena);
    atomic_store(&stop, false);
    CHECK_EQ(0, pthread_create(&trimmers[0], NULL, trim, arena));
    CHECK_EQ(0, pthread_create(&trimmers[1], NULL, trim, far));
    for (uintptr_t i = 0; i < 3; i++) {
        CHECK_EQ(0, pthread_create(&users[i], NULL, use_memory, (void *) i));
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(users[i], NULL);
    }
    atomic_fetch_add(&given, mpshm_trim(arena));
    atomic_store(&stop, true);
    pthread_join(trimmers[0], NULL);
    pthread_join(trimmers[1], NULL);
    CHECK(atomic_load(&given) > 0);
    mpshm_arena_close(far);
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(senders_and_receivers_share_one_pipe),
    TEST(gauges_may_be_read_at_any_time),
    TEST(handles_come_and_go_in_threads),
    TEST(memory_is_given_back_beside_those_who_use_it),
};
RUN_TESTS(tests)
