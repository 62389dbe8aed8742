/* Kinds of queues and connections: how one is opened, joined, handed on, left. */
#define _GNU_SOURCE
#include "stage.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lives.h"

const char *const kind_names[KINDS + 1] = {
    "unbounded", "bounded", "joinable", "bounded, joinable", "bounded by bytes", "simple", "tmpfs",
    "large",     "growing", "growing, tmpfs", "grown", "pipe", "socket", "strangers", "large pipe", NULL};

static const struct kind kinds[KINDS] = {
    [UNBOUNDED] = {.is_queue = true, .filler = SHORT},
    [BOUNDED] = {.is_queue = true, .limits.places = 7, .filler = SHORT, .fits = 7},
    [JOINABLE] = {.is_queue = true, .limits.joinable = 1, .filler = SHORT},
    [BOTH] = {.is_queue = true, .limits = {.places = 7, .joinable = 1}, .filler = SHORT, .fits = 7},
    /* Three runs of 8 chunks, and a slot: five messages. */
    [BYTES] = {.is_queue = true, .limits.bytes = UINT64_C(1) << 19, .filler = VIEWED, .fits = 5},
    [SIMPLE] = {.is_queue = true, .is_watched = true, .filler = SHORT},
    [LARGE] = {.is_queue = true, .is_large = true, .filler = SHORT},
    [TMPFS] = {.is_queue = true, .file = MPSHM_FILE_SHM, .filler = SHORT},
    [GROWING] = {.is_queue = true, .limits = {.joinable = 1, .grows = 1}, .filler = SHORT},
    [GROWING_TMPFS] = {.is_queue = true, .limits = {.joinable = 1, .grows = 1}, .file = MPSHM_FILE_SHM,
                       .filler = SHORT},
    [GROWN] = {.is_queue = true, .is_watched = true, .limits = {.joinable = 1, .grows = 1}, .filler = SHORT},
    [PIPE] = {.filler = VIEWED},
    [SOCKET] = {.is_socket = true, .filler = VIEWED},
    [STRANGERS] = {.is_socket = true, .for_strangers = true, .filler = VIEWED},
    [LARGE_PIPE] = {.is_large = true, .filler = VIEWED},
};

struct stage stage;

/* So large that memory is given back. */
static const mpshm_geometry large = {.stride = UINT64_C(5) << 20,
                                     .segment_bytes = UINT64_C(4) << 20, .segment_limit = 14,
                                     .chunk_shift = 14};
/* Small, so that a life is short: the longest message needs a third of a segment. */
static const mpshm_geometry usual = {.stride = UINT64_C(5) << 16,
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
    EXPECT_EQ(0, mpshm_arena_create(kind->is_large ? &large : &usual, kind->file, "points",
                                    kind->for_strangers, kind->is_queue ? &kind->limits : NULL,
                                    &stage.arena));
    open_channel(fds);
    open_ends(fds[0], fds[1]);
    if (kind->is_watched) {
        mpshm_queue_watch(&stage.in);
    }
    mpshm_reap(stage.arena);
}

static void
attach(int memory, int in, int out)
{
    EXPECT(memory != -1 && in != -1 && out != -1);
    EXPECT_EQ(0, mpshm_arena_attach(memory, &stage.arena));
    open_ends(in, out);
}

void
stage_attach(void)
{
    attach(dup(mpshm_arena_fd(stage.arena)), dup(stage.in.fd), dup(stage.out.fd));
}

/* What goes from one process to the other: descriptors, and the kind. */
union descriptors {
    struct cmsghdr head;
    char room[CMSG_SPACE(4 * sizeof(int))];
};

static struct msghdr
message_of(struct iovec *bytes, union descriptors *descriptors)
{
    return (struct msghdr) {.msg_iov = bytes, .msg_iovlen = 1, .msg_control = descriptors,
                            .msg_controllen = sizeof *descriptors};
}

void
stage_hand_over(int line)
{
    int roster = mpshm_arena_roster_fd(stage.arena); /* -1: it has its own */
    int fds[4] = {mpshm_arena_fd(stage.arena), stage.in.fd, stage.out.fd, roster};
    struct iovec bytes = {&stage.bit, sizeof stage.bit};
    union descriptors descriptors = {.head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct msghdr message = message_of(&bytes, &descriptors);
    size_t size = (roster != -1 ? 4 : 3) * sizeof(int);

    descriptors.head.cmsg_len = CMSG_LEN(size);
    message.msg_controllen = CMSG_SPACE(size);
    memcpy(CMSG_DATA(&descriptors.head), fds, size);
    EXPECT_EQ(sizeof stage.bit, sendmsg(line, &message, 0));
}

void
stage_take_over(void)
{
    int fds[4] = {-1, -1, -1, -1};
    struct iovec bytes = {&stage.bit, sizeof stage.bit};
    union descriptors descriptors;
    struct msghdr message = message_of(&bytes, &descriptors);

    EXPECT_EQ(sizeof stage.bit, recvmsg(life_line, &message, MSG_CMSG_CLOEXEC));
    memcpy(fds, CMSG_DATA(&descriptors.head), descriptors.head.cmsg_len - CMSG_LEN(0));
    stage.kind = &kinds[__builtin_ctz(stage.bit)];
    if (fds[3] != -1) {
        EXPECT_EQ(0, mpshm_roster_attach(fds[3]));
    }
    attach(fds[0], fds[1], fds[2]);
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
