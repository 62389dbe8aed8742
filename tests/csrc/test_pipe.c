/* Frames and descriptors over real pipes and sockets: read, send all or nothing, wait for room. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Longer than the runner lets a test live: what returns before it did not wait for it. */
#define FOREVER_MS 600000

static int ends[2];

static void
open_pipe(int flags)
{
    CHECK_EQ(0, pipe2(ends, flags | O_CLOEXEC));
}

static void
close_pipe(void)
{
    close(ends[0]);
    close(ends[1]);
}

static void
put_word(uint32_t word)
{
    word = htonl(word);
    CHECK_EQ(4, write(ends[1], &word, 4));
}

static void
frame_of_every_fitting_length_is_read_whole(void)
{
    static const uint32_t sizes[] = {1, 2, 100, 4091, 4092, 4093, 32768};
    char body[32768];

    fill(body, sizeof body, 1);
    for (int marked = 0; marked < 2; marked++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            mpshm_reader reader = {.have = 0};

            if (marked && sizes[i] > MPSHM_FRAME_BYTES - 4) {
                continue;
            }
            open_pipe(0);
            put_word((marked ? 0x80000000u : 0) | sizes[i]);
            CHECK_EQ(sizes[i], write(ends[1], body, sizes[i]));
            put_word(0x80000001u); /* the next frame stays in the pipe */
            CHECK_EQ(4 + sizes[i] + (marked ? MPSHM_DESCRIPTORS : 0),
                     mpshm_read_frame(&reader, ends[0]));
            CHECK_EQ(0, reader.have);
            CHECK(memcmp(reader.bytes + 4, body, sizes[i]) == 0);
            CHECK_EQ(4, read(ends[0], reader.bytes, 4)); /* and not a byte more was taken */
            close_pipe();
        }
    }
}

static void
long_plain_frame_gives_its_size_alone(void)
{
    static const uint32_t words[] = {32769, 70000, 0x7fffffff};
    char byte = 'x';

    open_pipe(O_NONBLOCK);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        mpshm_reader reader = {.have = 0};

        put_word(words[i]);
        CHECK_EQ(1, write(ends[1], &byte, 1));
        CHECK_EQ(MPSHM_LONG, mpshm_read_frame(&reader, ends[0]));
        CHECK_EQ(words[i], reader.body_size);
        CHECK_EQ(0, reader.have);
        CHECK_EQ(1, read(ends[0], &byte, 1)); /* the body is the caller's */
    }
    /* Beyond the length word: -1, then eight bytes, which may come one by one. */
    mpshm_reader reader = {.have = 0};
    static const unsigned char size[8] = {1, 2, 3, 4, 5, 6, 7, 8};

    put_word(0xffffffff);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(-EAGAIN, mpshm_read_frame(&reader, ends[0]));
        CHECK_EQ(1, write(ends[1], size + i, 1));
    }
    CHECK_EQ(MPSHM_LONG, mpshm_read_frame(&reader, ends[0]));
    CHECK_EQ(INT64_C(0x0102030405060708), reader.body_size);
    CHECK_EQ(-EAGAIN, mpshm_read_frame(&reader, ends[0]));
    close_pipe();
}

static void
body_longer_than_allowed_stays_in_the_pipe_unless_it_was_begun(void)
{
    mpshm_reader reader = {.have = 0};
    char body[100] = "x";

    open_pipe(O_NONBLOCK);
    put_word(100);
    CHECK_EQ(MPSHM_LONG, frame_read(&reader, ends[0], 99, true));
    CHECK_EQ(100, reader.body_size);
    put_word(100);
    CHECK_EQ(-EAGAIN, frame_read(&reader, ends[0], 100, true));
    CHECK_EQ(4, reader.have);
    CHECK_EQ(50, write(ends[1], body, 50));
    CHECK_EQ(-EAGAIN, frame_read(&reader, ends[0], 100, true));
    CHECK_EQ(50, write(ends[1], body, 50));
    CHECK_EQ(104, frame_read(&reader, ends[0], 10, true));
    close_pipe();
}

static void
empty_frames_are_frames(void)
{
    mpshm_reader reader = {.have = 0};

    open_pipe(O_NONBLOCK);
    put_word(0);
    put_word(0x80000000u);
    CHECK_EQ(4, mpshm_read_frame(&reader, ends[0]));
    CHECK_EQ(4 + MPSHM_DESCRIPTORS, mpshm_read_frame(&reader, ends[0]));
    CHECK_EQ(-EAGAIN, mpshm_read_frame(&reader, ends[0]));
    close_pipe();
}

static void
overlong_descriptor_frame_is_an_error(void)
{
    static const uint32_t sizes[] = {4093, 65536, 0x7ffffffe};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mpshm_reader reader = {.have = 0};

        open_pipe(O_NONBLOCK);
        put_word(0x80000000u | sizes[i]);
        CHECK_EQ(MPSHM_E_LENGTH, mpshm_read_frame(&reader, ends[0]));
        CHECK_EQ(0, reader.have);
        close_pipe();
    }
}

static void
frame_in_single_bytes_goes_on_where_it_was(void)
{
    mpshm_reader reader = {.have = 0};
    char frame[FRAME_BYTES];
    mpshm_run run = {.mmap_id = 1, .chunk_id = 2, .tag = 3};

    frame_of(&run, 4, frame);
    open_pipe(O_NONBLOCK);
    for (uint32_t i = 0; i < FRAME_BYTES; i++) {
        CHECK_EQ(-EAGAIN, mpshm_read_frame(&reader, ends[0]));
        CHECK_EQ(i, reader.have);
        CHECK_EQ(1, write(ends[1], frame + i, 1));
    }
    CHECK_EQ(WHOLE_FRAME, mpshm_read_frame(&reader, ends[0]));
    CHECK_EQ(0, reader.have);
    CHECK(memcmp(reader.bytes, frame, FRAME_BYTES) == 0);
    close_pipe();
}

static void
end_of_file_between_frames_and_within_one(void)
{
    char frame[FRAME_BYTES];
    mpshm_run run = {.mmap_id = 1, .chunk_id = 2, .tag = 3};

    frame_of(&run, 4, frame);
    for (uint32_t cut = 0; cut <= FRAME_BYTES; cut++) {
        mpshm_reader reader = {.have = 0};

        open_pipe(0);
        CHECK_EQ(cut, write(ends[1], frame, cut));
        close(ends[1]);
        CHECK_EQ(cut == 0 ? 0 : cut < FRAME_BYTES ? MPSHM_E_TORN : (int) WHOLE_FRAME,
                 mpshm_read_frame(&reader, ends[0]));
        CHECK_EQ(0, mpshm_read_frame(&reader, ends[0])); /* what was torn is told once */
        close(ends[0]);
        CHECK_EQ(-EBADF, mpshm_read_frame(&reader, ends[0]));
    }
}

static void
sent_message_arrives(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(arena, 1024);
    char *data;
    uint64_t size;

    open_pipe(0);
    fill(run.data, 100, 1);
    CHECK_EQ(0, send_run(ends[1], &run, 100));
    CHECK_EQ(112, gauges(arena).bytes_in_flight);
    CHECK_EQ(0, receive(again, ends[0], &data, &size));
    CHECK_EQ(100, size);
    CHECK(is_filled(data, 100, 1));
    CHECK(data != run.data);
    mpshm_release(data);
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

static void
frame_that_came_before_its_arena_stays(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_reader *reader = mpshm_reader_new(0);
    mpshm_held held;

    open_pipe(0);
    for (int found = 0; found < 2; found++) {
        mpshm_run run = claim(arena, 1024);

        CHECK_EQ(0, send_run(ends[1], &run, 100));
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(MPSHM_E_NO_ARENA, mpshm_receive(reader, ends[0], NULL, 0, 0));
            CHECK_EQ(4, reader->have);
        }
        if (found) {
            CHECK_EQ(WHOLE_FRAME, mpshm_receive(reader, ends[0], arena, 0, 0));
            mpshm_take(reader, 0, &held);
            CHECK_EQ(100, held.size);
            mpshm_release(held.data);
        } else {
            CHECK_EQ(0, mpshm_skip(reader, ends[0]));
            CHECK_EQ(0, reader->have);
            CHECK_EQ(0, mpshm_skip(reader, ends[0])); /* there is none any more */
        }
        mpshm_discard(reader);
    }
    CHECK_EQ(1, runs_in_use(arena)); /* of the message that was lost */
    mpshm_reader_free(reader);
    close_pipe();
    mpshm_arena_close(arena);
}

/* A message outlives the handle, and the process, that sent it. */
static void *
sends_after_its_time(void *which)
{
    struct timespec time = {.tv_sec = 1, .tv_nsec = 300000000};

    (void) which;
    nanosleep(&time, NULL);
    put_word(1);
    CHECK_EQ(1, write(ends[1], "a", 1));
    return NULL;
}

/* Looks for a second, and for one and a half more if it may be an answer. */
static void
answer_is_looked_for_longer(void)
{
    mpshm_reader *reader = mpshm_reader_new(1000000);
    pthread_t sender;

    for (uint32_t asked = 0; asked < 2; asked++) {
        open_pipe(0);
        reader->spin.credit = 8;
        reader->spin.spun = 0;
        reader->asked = asked;
        CHECK_EQ(0, pthread_create(&sender, NULL, sends_after_its_time, NULL));
        if (!asked) {
            CHECK_EQ(-EINTR, mpshm_receive(reader, ends[0], NULL, 100, 0)); /* has looked in vain */
        }
        CHECK_EQ(5, mpshm_receive(reader, ends[0], NULL, 100, 0));
        CHECK_EQ(asked ? 9 : 5, reader->spin.credit);
        CHECK_EQ(0, reader->asked); /* it has been answered */
        reader->full = 0;
        pthread_join(sender, NULL);
        close_pipe();
    }
    mpshm_reader_free(reader);
}

/* Where something is there at each look, all but one in sixteen may block; what they miss is nothing. */
static void
flood_is_read_by_blocking_reads(void)
{
    mpshm_reader *reader = mpshm_reader_new(1000);
    uint32_t before = 0, looks = 0;

    open_pipe(0);
    for (int i = 0; i < 1000; i++) {
        put_word(1);
        CHECK_EQ(1, write(ends[1], "f", 1));
        before = reader->spin.busy;
        CHECK_EQ(5, mpshm_receive(reader, ends[0], NULL, 100, 0));
        CHECK_EQ('f', reader->bytes[4]);
        looks += reader->spin.busy == before + 1 && before < 16;
        reader->full = 0;
    }
    CHECK_EQ(16, looks);
    CHECK(reader->spin.busy >= 1000);
    reader->spin.busy = 31; /* the next is a look, finds nothing, and the flood is over */
    reader->spin.credit = 0;
    reader->spin.spun = 1;
    CHECK_EQ(0, fcntl(ends[0], F_SETFL, O_NONBLOCK));
    CHECK_EQ(-EAGAIN, mpshm_receive(reader, ends[0], NULL, 100, 0));
    CHECK_EQ(0, reader->spin.busy);
    close_pipe();
    mpshm_reader_free(reader);
}

static void
message_of_a_dead_sender_arrives(void)
{
    mpshm_arena *arena = arena_of(tiny);
    char *data;
    uint64_t size;

    open_pipe(0);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run run = claim(arena, 100);

        fill(run.data, 100, 1);
        CHECK_EQ(0, send_run(ends[1], &run, 100));
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    CHECK(is_filled(data, 100, 1));
    mpshm_release(data);
    close_pipe();
    close_clean(arena);
}

static void
failed_write_puts_every_run_back_on_loan(int error)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_parcel *parcel = parcel_of(arena);
    mpshm_reader reader = {.have = 0};
    mpshm_opened opened;
    char bytes[3][40], stream[4000];

    fill(stream, sizeof stream, 9);
    for (unsigned i = 0; i < 3; i++) {
        fill(bytes[i], 40, i);
        CHECK_EQ(0, mpshm_put_buffer(parcel, bytes[i], 40, 1 << 20));
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(error, mpshm_send(parcel, ends[1], stream, sizeof stream));
        CHECK_EQ(3, gauges(arena).runs_loaned);
        CHECK_EQ(0, gauges(arena).runs_in_flight);
        CHECK_EQ(0, arena->sent_bytes);
    }
    close_pipe();

    /* And they are good for another send. */
    open_pipe(0);
    CHECK_EQ(0, mpshm_send(parcel, ends[1], stream, sizeof stream));
    CHECK_EQ(3, gauges(arena).runs_in_flight);
    CHECK_EQ(3 * 48, arena->sent_bytes);
    mpshm_parcel_free(parcel);
    CHECK(mpshm_read_frame(&reader, ends[0]) > MPSHM_DESCRIPTORS);
    CHECK_EQ(0, mpshm_open(&reader, again, &opened));
    CHECK_EQ(3, opened.count);
    CHECK_EQ(0, opened.stream_runs);
    CHECK(is_filled((char *) reader.bytes + opened.stream_at, sizeof stream, 9));
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(40, opened.views[i].size);
        CHECK(is_filled(opened.views[i].data, 40, i));
        mpshm_release(opened.views[i].data);
    }
    mpshm_opened_free(&opened);
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

static void
send_to_nobody_is_all_or_nothing(void)
{
    open_pipe(0);
    close(ends[0]);
    ends[0] = -1; /* its number may be another's by the time the pipe is closed */
    failed_write_puts_every_run_back_on_loan(-EPIPE);
}

static void
send_into_a_full_pipe_is_all_or_nothing(void)
{
    char junk[4096] = "";

    open_pipe(O_NONBLOCK);
    while (write(ends[1], junk, sizeof junk) > 0) {
    }
    failed_write_puts_every_run_back_on_loan(-EAGAIN);
}

static void
send_to_a_bad_descriptor_is_all_or_nothing(void)
{
    ends[0] = ends[1] = -1;
    failed_write_puts_every_run_back_on_loan(-EBADF);
}

static void
run_that_cannot_be_sealed_stops_the_send(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run good = claim(arena, 16), bad = claim(arena, 16);
    mpshm_parcel *parcel = parcel_of(arena);
    char byte;

    open_pipe(O_NONBLOCK);
    CHECK_EQ(-EINVAL, mpshm_send(parcel, ends[1], NULL, 0)); /* nothing in it */
    CHECK_EQ(0, mpshm_put_run(parcel, &good, 16));
    CHECK_EQ(0, mpshm_put_run(parcel, &bad, 17)); /* more than it holds */
    CHECK_EQ(-EINVAL, mpshm_send(parcel, ends[1], NULL, 0));
    CHECK_EQ(2, gauges(arena).runs_loaned);
    CHECK_EQ(0, mpshm_abandon(&bad)); /* behind the parcel's back */
    CHECK_EQ(MPSHM_E_STATE, mpshm_send(parcel, ends[1], NULL, 0));
    CHECK_EQ(1, gauges(arena).runs_loaned);
    CHECK_EQ(-1, read(ends[0], &byte, 1)); /* no byte went out */
    CHECK_EQ(EAGAIN, errno);
    CHECK_EQ(32, mpshm_increase_buf(&good, 32, 32)); /* only borrowed, and whole again */
    mpshm_return_run(parcel);
    mpshm_parcel_clear(parcel);
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(0, mpshm_abandon(&good));
    mpshm_parcel_free(parcel);
    close_pipe();
    close_clean(arena);
}

struct taker {
    int fd;
    int before; /* bytes in the socket before the frame */
    uint64_t bytes, got;
};

/* Waits for the frame's beginning, reads so many bytes of it and closes. */
static void *
take(void *argument)
{
    struct taker *taker = argument;
    char bytes[4096];
    int there = 0;

    while (there <= taker->before) {
        CHECK_EQ(0, ioctl(taker->fd, FIONREAD, &there));
        sched_yield();
    }
    CHECK_EQ(taker->before, read(taker->fd, bytes, (size_t) taker->before));
    while (taker->got < taker->bytes) {
        uint64_t left = taker->bytes - taker->got;
        ssize_t n = read(taker->fd, bytes, left < sizeof bytes ? left : sizeof bytes);

        CHECK(n > 0);
        taker->got += (uint64_t) n;
    }
    close(taker->fd);
    return NULL;
}

/* A socket with the smallest send buffer, and how many bytes written singly fill it. */
static int
open_tight_socket(int fill_bytes)
{
    int least = 1, filled = 0;

    CHECK_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    CHECK_EQ(0, fcntl(ends[1], F_SETFL, O_NONBLOCK));
    CHECK_EQ(0, setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof least));
    while (filled < fill_bytes && write(ends[1], "f", 1) == 1) {
        filled++;
    }
    return filled;
}

/* On a socket a write may stop half-way, also where the descriptor does not block.  The socket is
   filled until just one more piece passes, so that it does stop there. */
static void
frame_half_out_is_finished_or_taken_back(void)
{
    static const uint64_t stream_bytes = 4000, frame_bytes = 4000 + FRAME_BYTES;
    static char stream[4000];
    int full = open_tight_socket(INT32_MAX);

    close_pipe();
    for (int broken = 0; broken < 2; broken++) {
        mpshm_arena *arena = arena_of(tiny);
        mpshm_parcel *parcel = parcel_of(arena);
        pthread_t thread;
        int before = open_tight_socket(full - 1);
        struct taker taker = {ends[0], before, broken ? 100 : frame_bytes, 0};

        CHECK_EQ(0, mpshm_put_buffer(parcel, stream, 16, 1 << 20));
        CHECK_EQ(0, pthread_create(&thread, NULL, take, &taker));
        int error = mpshm_send(parcel, ends[1], stream, stream_bytes);

        pthread_join(thread, NULL);
        if (broken) {
            CHECK(error == -EPIPE || error == -ECONNRESET);
            CHECK_EQ(1, gauges(arena).runs_loaned);
        } else {
            CHECK_EQ(0, error);
            CHECK_EQ(frame_bytes, taker.got);
            CHECK_EQ(1, gauges(arena).runs_in_flight);
        }
        mpshm_parcel_free(parcel);
        CHECK_EQ(!broken, runs_in_use(arena));
        close(ends[1]);
        mpshm_arena_close(arena);
    }
}

static void
below_the_mark_nobody_waits(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 512);
    char *data;
    uint64_t size;

    open_pipe(0);
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 1024, 1024, FOREVER_MS));
    CHECK_EQ(0, send_run(ends[1], &run, 512));
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 512, 1024, FOREVER_MS));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], 513, 1024, 1));
    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    mpshm_release(data);
    close_pipe();
    close_clean(arena);
}

static void
larger_than_the_mark_passes_alone(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);
    char *data;
    uint64_t size;

    open_pipe(0);
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], UINT64_C(1) << 40, 100, FOREVER_MS));
    CHECK_EQ(0, send_run(ends[1], &run, 16));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], UINT64_C(1) << 40, 100, 1));
    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    /* What a receiver keeps is its own memory: it blocks nobody. */
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], UINT64_C(1) << 40, 100, FOREVER_MS));
    CHECK_EQ(1, gauges(arena).runs_leased);
    mpshm_release(data);
    close_pipe();
    close_clean(arena);
}

static void
only_what_flies_counts_among_much_that_landed(void)
{
    mpshm_geometry wide = tiny;
    char *data;
    uint64_t size;

    wide.segment_limit = 16;
    mpshm_arena *arena = arena_of(wide), *again = attach_again(arena);

    open_pipe(0);
    for (int i = 0; i < 10000; i++) { /* past the number at which notes are swept */
        mpshm_run run = claim(arena, 16);

        CHECK_EQ(0, send_run(ends[1], &run, 16));
        if (i % 100 != 0) {
            CHECK_EQ(0, receive(again, ends[0], &data, &size));
            mpshm_release(data);
        }
    }
    CHECK_EQ(100, gauges(arena).runs_in_flight);
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 16, 101 * 16, FOREVER_MS));
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], 17, 101 * 16, 1));
    CHECK_EQ(100, arena->sent_count);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(0, receive(again, ends[0], &data, &size));
        mpshm_release(data);
    }
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

static void
drained_or_deserted_ends_are_not_waited_for(void)
{
    for (int socket = 0; socket < 2; socket++) {
        for (int deserted = 0; deserted < 2; deserted++) {
            mpshm_arena *arena = arena_of(tiny);
            mpshm_run run = claim(arena, 512);
            mpshm_reader reader = {.have = 0};

            if (socket) {
                CHECK_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
            } else {
                open_pipe(0);
            }
            CHECK_EQ(0, send_run(ends[1], &run, 512));
            CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], 1024, 1024, 1));
            if (deserted) {
                close(ends[0]);
            } else {
                /* Taken by a receiver that died before it leased. */
                CHECK_EQ(WHOLE_FRAME, mpshm_read_frame(&reader, ends[0]));
            }
            CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 1024, 1024, FOREVER_MS));
            close_pipe();
            CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 1024, 1024, FOREVER_MS)); /* closed */
            land(&run, 512);
            close_clean(arena);
        }
    }
}

/* The sender would sleep far longer than the test may live; only the lease can end that. */
static void
lease_wakes_every_waiting_sender(void)
{
    mpshm_arena *arena = arena_of(tiny);
    int pids[3], ready[2];
    char *data, byte;
    uint64_t size;

    open_pipe(0);
    CHECK_EQ(0, pipe(ready));
    nobody_watches_soon(arena);
    for (int i = 0; i < 3; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            mpshm_run run = claim(arena, 16);

            CHECK_EQ(0, send_run(ends[1], &run, 16));
            CHECK_EQ(1, write(ready[1], "r", 1));
            /* Another's lease also wakes; then this one's is still to come. */
            while (mpshm_wait_room(arena, ends[1], 16, 16, FOREVER_MS) == -ETIMEDOUT) {
            }
            exit(0);
        }
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(1, read(ready[0], &byte, 1));
    }
    for (int i = 0; i < 3; i++) {
        while (i == 0 && atomic_load(&arena->header->wanted) == 0) {
            sched_yield();
        }
        CHECK_EQ(0, receive(arena, ends[0], &data, &size));
        mpshm_release(data);
    }
    for (int i = 0; i < 3; i++) {
        wait_child(pids[i]);
    }
    close_pipe();
    close_clean(arena);
}

/* A child that has sent and waits for room until nobody is there to receive. */
static int
sender_until_desertion(mpshm_arena *arena, bool watches_soon)
{
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run run = claim(arena, 16);

        close(ends[0]);
        if (!watches_soon) {
            nobody_watches_soon(arena);
        }
        CHECK_EQ(0, send_run(ends[1], &run, 16));
        while (mpshm_wait_room(arena, ends[1], 16, 16, FOREVER_MS) == -ETIMEDOUT) {
        }
        exit(0);
    }
    while (atomic_load(&arena->header->wanted) == 0) {
        sched_yield();
    }
    wait_asleep(pid);
    return pid;
}

/* is_told: by whoever closes the end; else by a kill, and one of them watches soon. */
static void
three_senders_see_that_nobody_receives(bool is_told)
{
    mpshm_arena *arena = arena_of(tiny);
    int pids[3];

    open_pipe(0);
    for (int i = 0; i < 3; i++) {
        pids[i] = sender_until_desertion(arena, !is_told && i == 1);
    }
    int64_t since = now_ns();

    close(ends[0]);
    if (is_told) {
        mpshm_call_senders(arena->id);
    }
    for (int i = 0; i < 3; i++) {
        wait_child(pids[i]);
    }
    CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
    close(ends[1]);
    mpshm_arena_close(arena);
}

static void
closed_end_wakes_those_that_wait_for_memory(void)
{
    three_senders_see_that_nobody_receives(true);
}

/* The one that watches soon wakes the others. */
static void
killed_receiver_is_seen_by_all_that_wait_for_memory(void)
{
    three_senders_see_that_nobody_receives(false);
}

/* The receiver was killed between clearing the word and waking who waits. */
static void
noticed_death_wakes_a_sender_that_a_lease_has_not_woken(void)
{
    mpshm_arena *arena = arena_of(tiny);
    char *data;
    uint64_t size;

    open_pipe(0);
    int pid = sender_until_desertion(arena, false);
    int64_t since = now_ns();

    atomic_store(&arena->header->wanted, 0);
    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    mpshm_release(data);
    arena_lock(arena);
    waiters_see_death(arena);
    arena_unlock(arena);
    wait_child(pid);
    CHECK(now_ns() - since < BEFORE_ANY_WATCH_NS);
    close_pipe();
    close_clean(arena);
}

static void
child_does_not_wait_for_what_its_parent_sent(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 512);
    char *data;
    uint64_t size;

    open_pipe(0);
    CHECK_EQ(0, send_run(ends[1], &run, 512));
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(0, mpshm_wait_room(arena, ends[1], 1024, 1024, FOREVER_MS));
        exit(0);
    }
    wait_child(pid);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], 1024, 1024, 1));
    CHECK_EQ(0, receive(arena, ends[0], &data, &size));
    mpshm_release(data);
    close_pipe();
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(frame_of_every_fitting_length_is_read_whole),
    TEST(long_plain_frame_gives_its_size_alone),
    TEST(body_longer_than_allowed_stays_in_the_pipe_unless_it_was_begun),
    TEST(empty_frames_are_frames),
    TEST(overlong_descriptor_frame_is_an_error),
    TEST(frame_in_single_bytes_goes_on_where_it_was),
    TEST(end_of_file_between_frames_and_within_one),
    TEST(sent_message_arrives),
    TEST(frame_that_came_before_its_arena_stays),
    TEST_THAT_NEEDS(nowait, answer_is_looked_for_longer),
    TEST_THAT_NEEDS(nowait, flood_is_read_by_blocking_reads),
    TEST(message_of_a_dead_sender_arrives),
    TEST(send_to_nobody_is_all_or_nothing),
    TEST(send_into_a_full_pipe_is_all_or_nothing),
    TEST(send_to_a_bad_descriptor_is_all_or_nothing),
    TEST(run_that_cannot_be_sealed_stops_the_send),
    TEST(frame_half_out_is_finished_or_taken_back),
    TEST(below_the_mark_nobody_waits),
    TEST(larger_than_the_mark_passes_alone),
    TEST(only_what_flies_counts_among_much_that_landed),
    TEST(drained_or_deserted_ends_are_not_waited_for),
    TEST(lease_wakes_every_waiting_sender),
    TEST(closed_end_wakes_those_that_wait_for_memory),
    TEST(killed_receiver_is_seen_by_all_that_wait_for_memory),
    TEST(noticed_death_wakes_a_sender_that_a_lease_has_not_woken),
    TEST(child_does_not_wait_for_what_its_parent_sent),
};
RUN_TESTS(tests)
