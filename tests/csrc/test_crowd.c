/* A crowd of living processes on two queues: tasks for all, and what all answer.  Some are killed where they
   wait, and the others go on.

   CROWD=4000 ./test_crowd: so many processes; else 300. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#define KILLED 12
#define LONG_BYTES 3000 /* in a run */
#define LONG_S 900

static mpshm_counts counts;
static struct queue {
    mpshm_arena *arena;
    int ends[2];
} answers, tasks;

static void
open_queue(struct queue *queue)
{
    mpshm_geometry geometry = {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(8) << 20,
                               .segment_limit = 16, .chunk_shift = 12};

    queue->arena = queue_arena_of(geometry, 0, 0, 0);
    make_pipe(queue->ends);
    mpshm_reap(queue->arena); /* have a name, before any child */
}

static void
put(struct queue *queue, uint32_t number, uint32_t size)
{
    static char data[LONG_BYTES];
    int n;

    memset(data, (int) (number % 251), size);
    memcpy(data, &number, sizeof number);
    while ((n = mpshm_queue_put_one(END(queue->arena, queue->ends[1]), data, size, NULL)) != 1) {
        CHECK(n == -EAGAIN || n == MPSHM_E_FULL);
        (void) mpshm_queue_wait_room(END(queue->arena, queue->ends[1]), NULL, LONG_MS);
    }
}

/* The number of the next message, which is whole. */
static uint32_t
get(mpshm_batch *batch)
{
    uint32_t number;
    int n;

    while ((n = mpshm_queue_receive(batch, 1, -1)) == -EAGAIN || n == -EINTR) {
    }
    CHECK_EQ(1, n);
    const char *at = batch->data + batch->messages[0].at;

    CHECK_EQ(0, batch->messages[0].error);
    memcpy(&number, at, sizeof number);
    CHECK_EQ((char) (number % 251), at[sizeof number]);
    CHECK_EQ((char) (number % 251), at[batch->messages[0].size - 1]);
    mpshm_batch_discard(batch);
    return number;
}

static int
worker(uint32_t number)
{
    int pid = fork_hooked();

    if (pid == 0) {
        alarm(LONG_S);
        mpshm_batch *batch = batch_of(tasks.arena, &counts, tasks.ends[0], 0);

        put(&answers, number, LONG_BYTES);
        for (;;) {
            put(&answers, get(batch), LONG_BYTES);
        }
    }
    return pid;
}

/* Get as many answers: each number once. */
static void
get_all(mpshm_batch *batch, uint32_t count)
{
    bool *seen = calloc(count, sizeof *seen);

    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = get(batch);

        CHECK(number < count && !seen[number]);
        seen[number] = true;
    }
    free(seen);
}

static void
give_all_tasks(mpshm_batch *batch, uint32_t count)
{
    int pid = fork_hooked();

    if (pid == 0) { /* beside us, lest both queues fill */
        alarm(LONG_S);
        for (uint32_t i = 0; i < count; i++) {
            put(&tasks, i, i % 2 ? LONG_BYTES : 64);
        }
        _exit(0);
    }
    get_all(batch, count);
    wait_child(pid);
}

/* How many processes this user and its control group may have, or UINT32_MAX. */
static uint32_t
processes_allowed(void)
{
    struct rlimit limit;
    uint64_t most = UINT32_MAX, group = 0;
    FILE *file = fopen("/sys/fs/cgroup/pids.max", "r");

    CHECK_EQ(0, getrlimit(RLIMIT_NPROC, &limit));
    most = limit.rlim_cur < most ? limit.rlim_cur : most;
    if (file != NULL) { /* "max", where there is no limit */
        most = fscanf(file, "%" SCNu64, &group) == 1 && group < most ? group : most;
        fclose(file);
    }
    return (uint32_t) most;
}

static void
crowd_answers_and_goes_on_when_some_are_killed(void)
{
    const char *wanted = getenv("CROWD");
    uint32_t count = wanted ? (uint32_t) atoi(wanted) : SANITIZED ? 60 : 300;
    int *pids = calloc(count, sizeof *pids);

    if (processes_allowed() < count + 200) {
        printf("%u processes are allowed here: skipped\n", processes_allowed());
        return;
    }
    alarm(LONG_S);
    open_queue(&answers);
    open_queue(&tasks);
    mpshm_batch *batch = batch_of(answers.arena, &counts, answers.ends[0], 0);
    int64_t begun = now_ns(), first = 0, last = 0;

    for (uint32_t i = 0; i < count; i++) {
        int64_t before = now_ns();

        pids[i] = worker(i);
        first += i < count / 4 ? now_ns() - before : 0;
        last += i >= count - count / 4 ? now_ns() - before : 0;
    }
    get_all(batch, count);
    int64_t joined = now_ns();

    give_all_tasks(batch, count);
    int64_t answered = now_ns();

    for (uint32_t i = 0; i < KILLED; i++) {
        uint32_t victim = i * (count / KILLED);

        kill_child(pids[victim]); /* nobody else is told */
        pids[victim] = 0;
    }
    give_all_tasks(batch, count);
    int64_t again = now_ns();

    mpshm_reap(answers.arena);
    mpshm_reap(tasks.arena);
    int64_t swept = now_ns();

    CHECK_EQ(0, mpshm_queue_size(answers.arena));
    CHECK_EQ(0, mpshm_queue_size(tasks.arena));
    if (wanted) {
        printf("%u processes: fork %ld us each in the first quarter, %ld in the last; begun and heard of after %.1f s;"
               " a task there and back %ld us, with %d killed %ld us; a sweep of both queues %ld us\n",
               count, (long) (first / (count / 4) / 1000), (long) (last / (count / 4) / 1000),
               (double) (joined - begun) / 1e9, (long) ((answered - joined) / count / 1000), KILLED,
               (long) ((again - answered) / count / 1000), (long) ((swept - again) / 1000));
    }
    for (uint32_t i = 0; i < count; i++) {
        if (pids[i] != 0) {
            kill_child(pids[i]);
        }
    }
    mpshm_reap(answers.arena);
    mpshm_reap(tasks.arena);
    free_batch(batch);
    free(pids);
    close_clean(answers.arena);
    close_clean(tasks.arena);
}

static const struct test tests[] = {
    TEST(crowd_answers_and_goes_on_when_some_are_killed),
};
RUN_TESTS(tests)
