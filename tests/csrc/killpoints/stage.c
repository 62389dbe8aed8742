/* Kinds of queues and connections: how one is opened, joined, handed on, left. */
#define _GNU_SOURCE
#include "stage.h"

#include <fcntl.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lives.h"

const char *const kind_names[KINDS + 1] = {"unbounded", "bounded", "joinable",
                                           "bounded, joinable", "bounded by bytes", "simple",
                                           "tmpfs", "large", "pipe", "socket", NULL};

static const struct kind kinds[KINDS] = {
    [UNBOUNDED] = {.is_queue = true, .filler = SHORT},
    [BOUNDED] = {.is_queue = true, .places = 7, .filler = SHORT, .fits = 7},
    [JOINABLE] = {.is_queue = true, .is_joinable = true, .filler = SHORT},
    [BOTH] = {.is_queue = true, .is_joinable = true, .places = 7, .filler = SHORT, .fits = 7},
    /* Three runs of 8 chunks, and a slot: five messages. */
    [BYTES] = {.is_queue = true, .bytes = UINT64_C(1) << 19, .filler = VIEWED, .fits = 5},
    [SIMPLE] = {.is_queue = true, .is_narrow = true, .is_watched = true, .filler = SHORT},
    [LARGE] = {.is_queue = true, .is_large = true, .filler = SHORT},
    [TMPFS] = {.is_queue = true, .file = MPSHM_FILE_SHM, .filler = SHORT},
    [PIPE] = {.filler = VIEWED},
    [SOCKET] = {.is_socket = true, .filler = VIEWED},
};

struct stage stage;

/* So large that memory is given back. */
static const mpshm_geometry large = {.stride = UINT64_C(5) << 20,
                                     .segment_bytes = UINT64_C(4) << 20, .segment_limit = 14,
                                     .chunk_shift = 14};
/* Small, so that a life is short: the longest message needs a third of a segment. */
static const mpshm_geometry usual = {.stride = UINT64_C(12) << 16,
                                     .segment_bytes = UINT64_C(1) << 18, .segment_limit = 12,
                                     .chunk_shift = 12};
static const mpshm_geometry narrow = {.stride = UINT64_C(5) << 16,
                                      .segment_bytes = UINT64_C(1) << 18, .segment_limit = 12,
                                      .chunk_shift = 12};

static void
open_channel(int fds[2])
{
    if (stage.kind->is_socket) {
        EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    } else {
        EXPECT_EQ(0, pipe2(fds, O_NONBLOCK | O_CLOEXEC));
    }
}

static void
open_ends(int in, int out)
{
    stage.in = (mpshm_end) {stage.arena, &stage.counts, in, true};
    stage.out = (mpshm_end) {stage.arena, &stage.counts, out, false};
    if (stage.kind->is_queue) {
        mpshm_end_open(&stage.in);
        mpshm_end_open(&stage.out);
        stage.batch = mpshm_batch_new(&stage.in, 0);
        EXPECT(stage.batch != NULL);
    } else {
        stage.reader = mpshm_reader_new(0);
        EXPECT(stage.reader != NULL);
    }
}

void
stage_open(int number)
{
    const struct kind *kind = stage.kind = &kinds[number];
    int fds[2];

    stage.bit = KIND(number);
    EXPECT_EQ(0, mpshm_arena_create(kind->is_large ? &large : kind->is_narrow ? &narrow : &usual,
                                    kind->file, "points", &stage.arena));
    if (kind->is_queue) {
        EXPECT_EQ(0, mpshm_make_queue(stage.arena, kind->places, kind->bytes, kind->is_joinable));
    }
    open_channel(fds);
    open_ends(fds[0], fds[1]);
    if (kind->is_watched) {
        mpshm_queue_watch(&stage.in);
    }
    mpshm_reap(stage.arena);
}

void
stage_attach(void)
{
    int memory = dup(mpshm_arena_fd(stage.arena)), in = dup(stage.in.fd), out = dup(stage.out.fd);

    EXPECT(memory != -1 && in != -1 && out != -1);
    EXPECT_EQ(0, mpshm_arena_attach(memory, &stage.arena));
    open_ends(in, out);
}

void
stage_close(void)
{
    if (stage.kind->is_queue) {
        mpshm_batch_free(stage.batch);
        mpshm_end_stop_receiving(&stage.in);
        close(stage.in.fd);
        mpshm_end_release(&stage.in);
        close(stage.out.fd);
        mpshm_end_release(&stage.out);
    } else {
        mpshm_reader_free(stage.reader);
        close(stage.in.fd);
        close(stage.out.fd);
    }
    mpshm_arena_close(stage.arena);
}

int
stage_fork(void)
{
    mpshm_fork_announce();
    int pid = fork();
    int error = mpshm_fork_over();

    if (pid != -1) {
        EXPECT_EQ(0, error);
    }
    return pid;
}

void
stage_settle(void)
{
    mpshm_reap(stage.arena);
}

void
stage_reap(void)
{
    mpshm_reap(stage.arena);
}
