/* Several processes on one channel, a bounded number of messages, every byte looked at. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SENDERS 4
#define RECEIVERS 3
#define MESSAGES 4000
#define LIVES 150 /* senders and receivers killed, one after another */

struct tally {
    _Atomic unsigned char seen[SENDERS][MESSAGES];
    _Atomic uint32_t received;
};

static struct tally *tally;
static mpshm_arena *arena;
static int ends[2];

static void
open_channel(uint32_t segment_limit)
{
    mpshm_geometry shared = tiny;

    shared.segment_limit = segment_limit;
    arena = arena_of(shared);
    CHECK_EQ(0, pipe(ends));
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED);
}

/* A run with `size` bytes of message `number`; false when there is no room just now. */
static bool
prepare(mpshm_run *run, unsigned from, unsigned number, uint64_t size)
{
    int error = mpshm_get_buf(arena, size % 50 + 12, run);

    if (error == 0 && run->capacity < size
        && mpshm_increase_buf(run, size - run->capacity, size - run->capacity) < 0) {
        CHECK_EQ(0, mpshm_abandon(run));
        error = mpshm_get_buf(arena, size, run);
    }
    if (error != 0) {
        CHECK_EQ(-ENOSPC, error);
        return false;
    }
    memcpy(run->data, &from, 4);
    memcpy(run->data + 4, &number, 4);
    fill(run->data + 8, size - 8, from * 7919 + number);
    return true;
}

static void
send_messages(unsigned from, unsigned count)
{
    unsigned seed = from + 1;

    for (unsigned i = 0; i < count;) {
        uint64_t size = (uint64_t) rand_r(&seed) % 300 + 12;
        mpshm_run run;

        if (mpshm_wait_room(arena, ends[1], size, 1500, 20) != 0
            || !prepare(&run, from, i % MESSAGES, size)) {
            sched_yield();
            continue;
        }
        if (rand_r(&seed) % 5 == 0) {
            CHECK_EQ(0, mpshm_abandon(&run));
            continue;
        }
        CHECK_EQ(0, send_run(ends[1], &run, size));
        i++;
    }
}

/* Frames are all of one length and each is written whole, so one read takes one whole: no lock. */
static void
receive_messages(bool once)
{
    char *kept[8] = {NULL};
    unsigned char frame[FRAME_BYTES];
    ssize_t n;

    for (unsigned i = 0;; i++) {
        strays_inside(arena, true); /* as mpshm_receive does: it has a frame in hand until the lease */
        n = read(ends[0], frame, sizeof frame);
        if (n == 0) {
            break;
        }
        char *data;
        uint64_t size;
        unsigned from, number;

        CHECK_EQ(FRAME_BYTES, n);
        CHECK_EQ(0, lease_frame(arena, frame, &data, &size));
        strays_inside(arena, false);
        memcpy(&from, data, 4);
        memcpy(&number, data + 4, 4);
        CHECK(from < SENDERS && number < MESSAGES);
        CHECK(is_filled(data + 8, size - 8, from * 7919 + number));
        CHECK(atomic_fetch_add(&tally->seen[from][number], 1) == 0 || !once);
        atomic_fetch_add(&tally->received, 1);
        memset(data, 0x5c, size);
        if (kept[i % 8] != NULL) {
            mpshm_release(kept[i % 8]);
        }
        kept[i % 8] = data;
    }
    strays_inside(arena, false);
    for (int i = 0; i < 8; i++) {
        if (kept[i] != NULL) {
            mpshm_release(kept[i]);
        }
    }
}

static int
start_sender(unsigned from, unsigned count)
{
    int pid = fork_hooked();

    if (pid == 0) {
        close(ends[0]);
        send_messages(from, count);
        exit(0);
    }
    return pid;
}

static int
start_receiver(bool once)
{
    int pid = fork_hooked();

    if (pid == 0) {
        close(ends[1]);
        receive_messages(once);
        exit(0);
    }
    return pid;
}

static void
every_message_arrives_once_and_nothing_is_left(void)
{
    int pids[SENDERS + RECEIVERS];

    open_channel(16);
    for (unsigned i = 0; i < SENDERS + RECEIVERS; i++) {
        pids[i] = i < SENDERS ? start_sender(i, MESSAGES) : start_receiver(true);
    }
    close(ends[0]);
    close(ends[1]);
    for (int i = 0; i < SENDERS + RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    CHECK_EQ(SENDERS * MESSAGES, atomic_load(&tally->received));
    for (int from = 0; from < SENDERS; from++) {
        for (int i = 0; i < MESSAGES; i++) {
            CHECK_EQ(1, atomic_load(&tally->seen[from][i]));
        }
    }
    close_clean(arena);
}

/* SIGKILL at any instruction: what the dead held is lost until it is reaped, but no invariant is
   broken, no message is another's, and those who live go on.  The arena has room for the losses. */
static void
kill_at_any_instruction_breaks_nothing(void)
{
    int victims[2], steady;

    open_channel(256);
    steady = start_receiver(false);
    victims[0] = start_sender(0, UINT32_MAX);
    victims[1] = start_receiver(false);
    for (int i = 0; i < LIVES; i++) {
        /* Each life has at least this much work done in it; where it is killed is chance. */
        uint32_t goal = atomic_load(&tally->received) + 50 + (uint32_t) i;
        int status, turn = i % 2;

        while (atomic_load(&tally->received) < goal) {
            int pid = waitpid(-1, &status, WNOHANG);

            CHECK_EQ(0, pid); /* nobody gave up by himself */
            sched_yield();
        }
        CHECK_EQ(0, kill(victims[turn], SIGKILL));
        CHECK_EQ(victims[turn], waitpid(victims[turn], &status, 0));
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        victims[turn] = turn == 0 ? start_sender(1 + (unsigned) i % (SENDERS - 1), UINT32_MAX)
                                  : start_receiver(false);
    }
    for (int i = 0; i < 2; i++) {
        int status;

        CHECK_EQ(0, kill(victims[i], SIGKILL));
        CHECK_EQ(victims[i], waitpid(victims[i], &status, 0));
    }
    close(ends[1]);
    wait_child(steady);
    close(ends[0]);
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    mpshm_arena_close(arena);
}

static const struct test tests[] = {
    TEST(every_message_arrives_once_and_nothing_is_left),
    TEST(kill_at_any_instruction_breaks_nothing),
};
RUN_TESTS(tests)
