/* Short messages by a run that one call copies in and another copies out, and how their senders wait. */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* Longer than the runner lets a test live: what returns before it was woken, or did not wait. */
#define FOREVER_MS 600000
/* As config.WAIT_SLICE_MS: how long the package sleeps at most before it looks again. */
#define SLICE_MS 50
/* Whatever the reader has room for. */
#define MOST UINT32_MAX
#define NO_MARK UINT64_MAX
/* Four of the tests' shortest messages; half of it is free when three of them have been leased. */
#define HIGH_WATER (4 * TINY_CHUNK)
#define AWAITED 3

static int ends[2];
static mpshm_reader *reader;

static void
open_pipe(int flags)
{
    CHECK_EQ(0, pipe2(ends, flags | O_CLOEXEC));
    reader = mpshm_reader_new(0);
    CHECK(reader != NULL);
}

static void
close_pipe(void)
{
    mpshm_reader_free(reader);
    close(ends[0]);
    close(ends[1]);
}

static int
send_filled(mpshm_arena *arena, uint32_t size, unsigned seed, uint64_t mark)
{
    char *data = malloc(size); /* no longer than it is said to be: ASan looks */

    CHECK(data != NULL);
    fill(data, size, seed);
    arena->shorts = 1000; /* it may have a segment made for this */
    int result = mpshm_send_copy(arena, ends[1], data, size, mark);

    free(data);
    return result;
}

/* The next message, copied out of its run. */
static void
take_copy(mpshm_arena *arena, uint32_t size, unsigned seed)
{
    CHECK_EQ(MPSHM_COPIED + 4 + size, mpshm_receive(reader, ends[0], arena, 0, MOST));
    CHECK(is_filled((char *) reader->bytes + 4, size, seed));
    reader->full = 0;
}

/* The next message, leased; its one run is released. */
static void
take_lease(mpshm_arena *arena, uint32_t copy_max, uint64_t size, unsigned seed)
{
    mpshm_held held;

    CHECK_EQ(WHOLE_FRAME, mpshm_receive(reader, ends[0], arena, 0, copy_max));
    CHECK_EQ(1, reader->count);
    CHECK_EQ(1, reader->stream_runs);
    mpshm_take(reader, 0, &held);
    CHECK_EQ(size, held.size);
    CHECK(is_filled(held.data, size, seed));
    CHECK_EQ(1, gauges(arena).runs_leased);
    mpshm_release(held.data);
    reader->full = 0;
}

static uint32_t
wanted(mpshm_arena *arena)
{
    return atomic_load(&arena->header->wanted);
}

/* Of a message that did not go out: no run beside those that fly, and no hold on the arena. */
static void
check_nothing_kept(mpshm_arena *arena, uint32_t in_flight)
{
    CHECK_EQ(0, arena->loans);
    CHECK_EQ(1 + arena->leases, arena->refs);
    CHECK_EQ(0, gauges(arena).runs_loaned);
    CHECK_EQ(in_flight, gauges(arena).runs_in_flight);
}

/* Copying */

static void
message_is_copied_whole_and_its_run_is_free_at_once(void)
{
    static const uint32_t sizes[] = {1, 4093, 4096, 4097, 16384, 32767, 32768};
    mpshm_arena *arena = arena_of(paged()), *again = attach_again(arena);

    open_pipe(0);
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK_EQ(0, send_filled(arena, sizes[i], i, NO_MARK));
        CHECK_EQ(1, gauges(arena).runs_in_flight);
        CHECK_EQ(MPSHM_COPIED + 4 + sizes[i], mpshm_receive(reader, ends[0], again, 0, MOST));
        CHECK_EQ(-EBUSY, mpshm_receive(reader, ends[0], again, 0, MOST));
        CHECK_EQ(0, mpshm_leases());
        check_all_free(arena);
        /* Lent again and written over before the receiver has looked: the copy is its own. */
        CHECK_EQ(0, send_filled(arena, sizes[i], 99, NO_MARK));
        CHECK(is_filled((char *) reader->bytes + 4, sizes[i], i));
        reader->full = 0;
        take_copy(again, sizes[i], 99);
    }
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

static void
stream_longer_than_asked_for_is_leased(void)
{
    mpshm_arena *arena = arena_of(paged()), *again = attach_again(arena);
    static const uint32_t copy_max[] = {0, 1, 4999};

    open_pipe(0);
    for (unsigned i = 0; i < sizeof copy_max / sizeof *copy_max; i++) {
        CHECK_EQ(0, send_filled(arena, 5000, i, NO_MARK));
        take_lease(again, copy_max[i], 5000, i);
    }
    CHECK_EQ(0, send_filled(arena, 5000, 7, NO_MARK));
    CHECK_EQ(MPSHM_COPIED + 4 + 5000, mpshm_receive(reader, ends[0], again, 0, 5000));
    reader->full = 0;
    /* And what the reader has no room for, whatever is asked. */
    CHECK_EQ(0, send_filled(arena, MPSHM_READER_BYTES - 4 + 1, 8, NO_MARK));
    take_lease(again, MOST, MPSHM_READER_BYTES - 4 + 1, 8);
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

/* The next message, as so many leases. */
static void
take_leases(mpshm_arena *arena, uint32_t count, uint32_t stream_runs)
{
    CHECK(mpshm_receive(reader, ends[0], arena, 0, MOST) < MPSHM_LONG);
    CHECK_EQ(count, reader->count);
    CHECK_EQ(stream_runs, reader->stream_runs);
    CHECK_EQ(count, gauges(arena).runs_leased);
    mpshm_discard(reader);
    check_all_free(arena);
}

static void
frames_that_name_more_than_a_stream_are_leased(void)
{
    mpshm_arena *arena = arena_of(tiny);
    static char bytes[64];
    mpshm_parcel *parcel = parcel_of(arena);

    open_pipe(0);
    /* A buffer, and a stream in the frame. */
    CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 16, NO_MARK));
    CHECK_EQ(0, mpshm_send(parcel, ends[1], "stream", 6));
    take_leases(arena, 1, 0);
    /* A stream's run and a buffer's. */
    mpshm_parcel_begin(parcel, arena);
    CHECK_EQ(0, mpshm_put_stream(parcel, bytes, 16, 0, NO_MARK));
    CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 16, NO_MARK));
    CHECK_EQ(0, mpshm_send(parcel, ends[1], NULL, 0));
    take_leases(arena, 2, 1);
    /* A stream in two runs. */
    mpshm_run parts[2] = {claim(arena, 16), claim(arena, 16)};

    mpshm_parcel_begin(parcel, arena);
    CHECK_EQ(0, mpshm_put_run(parcel, &parts[0], 16));
    CHECK_EQ(0, mpshm_put_run(parcel, &parts[1], 16));
    CHECK_EQ(0, mpshm_send(parcel, ends[1], NULL, 0));
    take_leases(arena, 2, 2);
    mpshm_parcel_free(parcel);
    /* An index: its own run is not the stream, though it is all that the frame names. */
    mpshm_run stream = claim(arena, 16), index = claim(arena, 32);
    char frame[FRAME_BYTES];
    uint16_t head[2] = {1, 1};

    frame_of(&stream, 16, frame);
    memcpy(index.data, frame + 12, DESCRIPTOR_BYTES);
    frame_of(&index, DESCRIPTOR_BYTES, frame);
    memcpy(frame + 4, head, sizeof head);
    CHECK_EQ(0, mpshm_seal(&stream, 16));
    CHECK_EQ(0, mpshm_seal(&index, DESCRIPTOR_BYTES));
    CHECK_EQ(FRAME_BYTES, write(ends[1], frame, FRAME_BYTES));
    take_leases(arena, 1, 1);
    close_pipe();
    close_clean(arena);
}

static void
forged_descriptor_copies_nothing_and_the_true_one_arrives(void)
{
    static const uint64_t sizes[] = {0, 84, 99, 101, 117, 1025, UINT64_C(1) << 40, UINT64_MAX};
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(arena, 100), forged[] = {run, run, run, run, run, run};
    char frame[FRAME_BYTES];

    open_pipe(0);
    fill(run.data, 100, 1);
    CHECK_EQ(0, mpshm_seal(&run, 100));
    forged[0].mmap_id = 1;
    forged[1].mmap_id = UINT32_MAX;
    forged[2].chunk_id = TINY_CHUNKS;
    forged[3].chunk_id = 1;
    forged[4].tag++;
    forged[5].tag |= TAG_MASK + 1;
    for (unsigned i = 0; i < 6 + sizeof sizes / sizeof *sizes; i++) {
        const mpshm_run *one = i < 6 ? &forged[i] : &run;
        uint64_t size = i < 6 ? 100 : sizes[i - 6];

        frame_of(one, size, frame);
        CHECK_EQ(FRAME_BYTES, write(ends[1], frame, FRAME_BYTES));
        int error = mpshm_receive(reader, ends[0], again, 0, MOST);

        CHECK_EQ(i < 2                         ? MPSHM_E_SEGMENT
                 : i == 2                      ? MPSHM_E_CHUNK
                 : size == 0 || size > 64 * 16 ? MPSHM_E_SIZE
                                               : MPSHM_E_STALE,
                 error);
        CHECK_EQ(one->mmap_id, reader->bad.mmap_id); /* the error names it */
        CHECK_EQ(one->chunk_id, reader->bad.chunk_id);
        CHECK_EQ(one->tag, reader->bad.tag);
        CHECK_EQ(size, reader->bad.size);
        CHECK_EQ(0, reader->full);
        CHECK_EQ(1, gauges(arena).runs_in_flight);
    }
    frame_of(&run, 100, frame);
    for (int repeated = 0; repeated < 2; repeated++) {
        CHECK_EQ(FRAME_BYTES, write(ends[1], frame, FRAME_BYTES));
        if (repeated) {
            CHECK_EQ(MPSHM_E_STALE, mpshm_receive(reader, ends[0], again, 0, MOST));
        } else {
            take_copy(again, 100, 1);
        }
    }
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

static void
message_that_came_before_its_arena_is_copied(void)
{
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(0);
    CHECK_EQ(0, send_filled(arena, 100, 1, NO_MARK));
    CHECK_EQ(MPSHM_E_NO_ARENA, mpshm_receive(reader, ends[0], NULL, 0, MOST));
    CHECK_EQ(MPSHM_COPIED + 4 + 100, mpshm_receive(reader, ends[0], arena, 0, MOST));
    CHECK(is_filled((char *) reader->bytes + 4, 100, 1));
    reader->full = 0;
    close_pipe();
    close_clean(arena);
}

/* Sending */

static void
ignore(int signal_number)
{
    (void) signal_number;
}

static void
failed_send_keeps_nothing(void)
{
    char junk[4096] = "";
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(O_NONBLOCK);
    while (write(ends[1], junk, sizeof junk) > 0) {
    }
    CHECK_EQ(-EAGAIN, send_filled(arena, 100, 1, NO_MARK));
    check_nothing_kept(arena, 0);
    /* A signal, while it blocks in the write: again and again, for the first may come too early. */
    struct sigaction action = {.sa_handler = ignore};
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};

    CHECK_EQ(0, fcntl(ends[1], F_SETFL, 0));
    CHECK_EQ(0, sigaction(SIGALRM, &action, NULL));
    CHECK_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
    CHECK_EQ(-EINTR, send_filled(arena, 100, 1, NO_MARK));
    CHECK_EQ(0, setitimer(ITIMER_REAL, &never, NULL));
    check_nothing_kept(arena, 0);
    while (read(ends[0], junk, sizeof junk) > 0) {
    }
    CHECK_EQ(0, send_filled(arena, 100, 2, NO_MARK));
    take_copy(arena, 100, 2);
    close(ends[0]);
    ends[0] = -1; /* its number may be another's by the time the pipe is closed */
    CHECK_EQ(-EPIPE, send_filled(arena, 100, 1, NO_MARK));
    check_nothing_kept(arena, 0);
    close(ends[1]);
    CHECK_EQ(-EBADF, send_filled(arena, 100, 1, NO_MARK));
    check_nothing_kept(arena, 0);
    mpshm_reader_free(reader);
    close_clean(arena);
}

static void
full_arena_gives_no_frame_and_keeps_nothing(void)
{
    mpshm_geometry one = tiny;

    one.segment_limit = 1;
    mpshm_arena *arena = arena_of(one);
    char *held = lease_new(arena, 1024 - 64, 1), byte;

    open_pipe(O_NONBLOCK);
    CHECK_EQ(MPSHM_SEND_PLAIN, send_filled(arena, 65, 2, NO_MARK));
    check_nothing_kept(arena, 0);
    CHECK_EQ(-1, read(ends[0], &byte, 1));
    CHECK_EQ(0, send_filled(arena, 64, 3, NO_MARK));
    take_copy(arena, 64, 3);
    mpshm_release(held);
    CHECK_EQ(0, send_filled(arena, 1024, 4, NO_MARK));
    take_copy(arena, 1024, 4);
    CHECK_EQ(MPSHM_SEND_PLAIN, send_filled(arena, 1025, 5, NO_MARK)); /* than any segment holds */
    check_nothing_kept(arena, 0);
    close_pipe();
    close_clean(arena);
}

/* A segment is made for the 33rd, or was there for a larger message. */
static void
first_short_messages_make_no_segment(void)
{
    for (int larger = 0; larger < 2; larger++) {
        mpshm_arena *arena = arena_of(tiny);

        open_pipe(0);
        if (larger) {
            mpshm_run run = claim(arena, 1024);

            CHECK_EQ(0, mpshm_abandon(&run));
        }
        for (int i = 0; i < 32 && !larger; i++) {
            CHECK_EQ(MPSHM_SEND_PLAIN, mpshm_send_copy(arena, ends[1], "short", 5, NO_MARK));
            CHECK_EQ(0, gauges(arena).segments);
        }
        CHECK_EQ(0, mpshm_send_copy(arena, ends[1], "short", 5, NO_MARK));
        CHECK_EQ(1, gauges(arena).segments);
        CHECK_EQ(MPSHM_COPIED + 4 + 5, mpshm_receive(reader, ends[0], arena, 0, MOST));
        int pid = fork_hooked();

        if (pid == 0) { /* its own first ones */
            CHECK_EQ(MPSHM_SEND_PLAIN, mpshm_send_copy(arena, ends[1], "short", 5, NO_MARK));
            exit(0);
        }
        wait_child(pid);
        close_pipe();
        close_clean(arena);
    }
}

static void
mark_is_for_what_flies_and_far_past_it_nobody_waits(void)
{
    mpshm_arena *arena = arena_of(tiny);
    char byte;

    open_pipe(O_NONBLOCK);
    CHECK_EQ(0, send_filled(arena, 80, 1, 64)); /* longer than the mark, alone */
    take_copy(arena, 80, 1);
    CHECK_EQ(0, send_filled(arena, 32, 2, 64));
    CHECK_EQ(0, send_filled(arena, 32, 3, 64)); /* up to the mark */
    CHECK_EQ(MPSHM_NO_ROOM, send_filled(arena, 1, 4, 64));
    check_nothing_kept(arena, 2);
    take_copy(arena, 32, 2);
    CHECK_EQ(0, send_filled(arena, 17, 5, 64));
    take_copy(arena, 32, 3);
    take_lease(arena, 0, 17, 5); /* a lease frees the mark as a copy does */
    CHECK_EQ(-1, read(ends[0], &byte, 1));
    CHECK_EQ(0, send_filled(arena, 80, 6, NO_MARK));
    CHECK_EQ(MPSHM_NO_ROOM, send_filled(arena, 1, 7, 64)); /* a quarter more than the mark */
    CHECK_EQ(0, send_filled(arena, 1, 8, NO_MARK));
    CHECK_EQ(MPSHM_SEND_PLAIN, send_filled(arena, 1, 9, 64));
    check_nothing_kept(arena, 2);
    take_copy(arena, 80, 6);
    take_copy(arena, 1, 8);
    CHECK_EQ(-1, read(ends[0], &byte, 1));
    close_pipe();
    close_clean(arena);
}

/* Waiting */

static void
fly(mpshm_arena *arena, int count)
{
    for (int i = 0; i < count; i++) {
        CHECK_EQ(0, send_filled(arena, TINY_CHUNK, 1, NO_MARK));
    }
}

static void
take_copies(mpshm_arena *arena, int count)
{
    for (int i = 0; i < count; i++) {
        take_copy(arena, TINY_CHUNK, 1);
    }
}

static void
short_messages_await_half_the_mark_and_long_ones_their_room(void)
{
    static const uint64_t kib_128 = 128 << 10;
    mpshm_arena *arena = arena_of(tiny);
    _Atomic uint32_t *count = &arena->header->wanted;

    open_pipe(0);
    fly(arena, 4);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], TINY_CHUNK, HIGH_WATER, 1));
    CHECK_EQ(AWAITED, wanted(arena));
    atomic_store(count, 0);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], 1, HIGH_WATER, 1));
    CHECK_EQ(AWAITED, wanted(arena));
    /* The longest of the short: more than half the mark, so all must land; the next awaits one. */
    atomic_store(count, 0);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], kib_128, kib_128 + 3 * TINY_CHUNK, 1));
    CHECK_EQ(4, wanted(arena));
    atomic_store(count, 0);
    CHECK_EQ(-ETIMEDOUT,
             mpshm_wait_room(arena, ends[1], kib_128 + 1, kib_128 + 1 + 3 * TINY_CHUNK, 1));
    CHECK_EQ(1, wanted(arena));
    /* Room for one is room, though not half the mark is free: who asks first does not wait. */
    take_copies(arena, 1);
    atomic_store(count, 0);
    CHECK_EQ(0, mpshm_wait_room(arena, ends[1], TINY_CHUNK, HIGH_WATER, FOREVER_MS));
    CHECK_EQ(0, wanted(arena));
    take_copies(arena, 3);
    close_pipe();
    close_clean(arena);
}

static void
each_lease_counts_once_and_nothing_else_does(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = {.mmap_id = 0, .chunk_id = 0, .tag = 77};
    char frame[FRAME_BYTES];

    open_pipe(0);
    fly(arena, 5);
    CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], TINY_CHUNK, HIGH_WATER, 1));
    CHECK_EQ(AWAITED + 1, wanted(arena));
    take_copies(again, 1);
    CHECK_EQ(AWAITED, wanted(arena));
    take_lease(again, 0, TINY_CHUNK, 1);
    CHECK_EQ(AWAITED - 1, wanted(arena));
    mpshm_release(lease_new(again, 1, 1)); /* another sender's: any lease counts */
    CHECK_EQ(AWAITED - 2, wanted(arena));
    frame_of(&run, TINY_CHUNK, frame);
    CHECK_EQ(FRAME_BYTES, write(ends[1], frame, FRAME_BYTES));
    for (int i = 0; i < 3; i++) { /* to 0, and there it stays */
        take_copies(again, 1);
        CHECK_EQ(0, wanted(arena));
    }
    atomic_store(&arena->header->wanted, 5);
    CHECK_EQ(MPSHM_E_STALE, mpshm_receive(reader, ends[0], again, 0, MOST));
    CHECK_EQ(0, send_filled(arena, 100, 1, NO_MARK));
    CHECK_EQ(5, wanted(arena)); /* by no failure, no claim, no seal */
    take_copy(again, 100, 1);
    close_pipe();
    close_clean(again);
    close_clean(arena);
}

/* Of a sender that was killed, another that wants fewer, or a stray write. */
static void
count_that_was_there_only_goes_down(void)
{
    static const uint32_t before[] = {1, AWAITED - 1, AWAITED, AWAITED + 1, UINT32_MAX};
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(0);
    fly(arena, 4);
    for (unsigned i = 0; i < sizeof before / sizeof *before; i++) {
        atomic_store(&arena->header->wanted, before[i]);
        CHECK_EQ(-ETIMEDOUT, mpshm_wait_room(arena, ends[1], TINY_CHUNK, HIGH_WATER, 1));
        CHECK_EQ(before[i] < AWAITED ? before[i] : AWAITED, wanted(arena));
    }
    take_copies(arena, 4);
    close_pipe();
    close_clean(arena);
}

/* A process that flies `HIGH_WATER` bytes of its own, sleeps for room, and sends once more. */
static int
sleeping_sender(mpshm_arena *arena, int slice_ms)
{
    int ready[2];

    CHECK_EQ(0, pipe(ready));
    int pid = fork_hooked();

    if (pid == 0) {
        nobody_watches_soon(arena);
        fly(arena, 4);
        CHECK_EQ(MPSHM_NO_ROOM, send_filled(arena, TINY_CHUNK, 1, HIGH_WATER));
        go(ready);
        while (mpshm_wait_room(arena, ends[1], TINY_CHUNK, HIGH_WATER, slice_ms) != 0) {
            CHECK(slice_ms != FOREVER_MS);
        }
        CHECK_EQ(0, send_filled(arena, TINY_CHUNK, 1, HIGH_WATER));
        exit(0);
    }
    await(ready);
    while (wanted(arena) == 0) {
        sched_yield();
    }
    wait_asleep(pid);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

/* How often a process has gone to sleep. */
static int
sleeps(int pid)
{
    char path[64], line[256];
    int count = -1;

    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");

    CHECK(file != NULL);
    while (count < 0 && fgets(line, sizeof line, file) != NULL) {
        (void) sscanf(line, "voluntary_ctxt_switches: %d", &count);
    }
    fclose(file);
    CHECK(count >= 0);
    return count;
}

static void
sender_sleeps_through_all_leases_but_the_last_it_awaits(void)
{
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(0);
    int pid = sleeping_sender(arena, FOREVER_MS), before = sleeps(pid);

    for (int i = 1; i < AWAITED; i++) {
        take_copies(arena, 1);
        wait_asleep(pid); /* a wake-up would be over, and counted, when it sleeps again */
        CHECK_EQ(before, sleeps(pid));
    }
    take_copies(arena, 1);
    wait_child(pid);
    take_copies(arena, 2);
    close_pipe();
    close_clean(arena);
}

static void
count_forged_under_a_sleeper_hangs_nobody(void)
{
    static const uint32_t forged[] = {0, 1, 1000, UINT32_MAX};
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(0);
    for (unsigned i = 0; i < sizeof forged / sizeof *forged; i++) {
        int pid = sleeping_sender(arena, SLICE_MS);

        atomic_store(&arena->header->wanted, forged[i]);
        take_copies(arena, 4);
        wait_child(pid);
        take_copies(arena, 1);
    }
    close_pipe();
    close_clean(arena);
}

static void
killed_sleeper_leaves_a_count_that_hangs_nobody(void)
{
    mpshm_arena *arena = arena_of(tiny);

    open_pipe(0);
    int pid = sleeping_sender(arena, FOREVER_MS);

    kill_child(pid);
    CHECK_EQ(AWAITED, wanted(arena));
    pid = sleeping_sender(arena, SLICE_MS); /* behind what the dead sent */
    take_copies(arena, 8);
    wait_child(pid);
    take_copies(arena, 1);
    CHECK_EQ(0, wanted(arena));
    close_pipe();
    close_clean(arena);
}

/* Interleavings made certain: the core's own calls to the kernel come by here.  The wait for room asks
   how much is unread (its last look), then sleeps. */
static _Thread_local void (*after_the_look)(void);
static _Thread_local void (*before_the_sleep)(void);
static _Thread_local int sleeps_left = INT32_MAX;
static mpshm_arena *watched;
#ifdef __GLIBC__
typedef unsigned long ioctl_request;
#else
typedef int ioctl_request; /* as POSIX and musl have it */
#endif
static int (*real_ioctl)(int, ioctl_request, ...);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void
find_the_real_ones(void)
{
    *(void **) &real_ioctl = dlsym(RTLD_NEXT, "ioctl");
    *(void **) &real_syscall = dlsym(RTLD_NEXT, "syscall");
}

int
ioctl(int fd, ioctl_request request, ...)
{
    va_list rest;

    va_start(rest, request);
    int result = real_ioctl(fd, request, va_arg(rest, void *));

    va_end(rest);
    if (after_the_look != NULL) {
        void (*call)(void) = after_the_look;

        after_the_look = NULL;
        call();
    }
    return result;
}

long
syscall(long number, ...)
{
    long arguments[6];
    va_list rest;

    va_start(rest, number);
    for (int i = 0; i < 6; i++) {
        arguments[i] = va_arg(rest, long);
    }
    va_end(rest);
    if (number == SYS_futex && arguments[1] == 0 /* FUTEX_WAIT */) {
        void (*call)(void) = before_the_sleep;

        CHECK(sleeps_left-- > 0);
        before_the_sleep = NULL;
        if (call != NULL) {
            call();
        }
    }
    return real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                        arguments[5]);
}

static void
land_what_is_awaited(void)
{
    take_copies(watched, AWAITED);
}

/* A wait at the mark, whose awaited leases come in between; it would sleep for ever. */
static void
wait_meanwhile(int sleeps)
{
    sleeps_left = sleeps;
    CHECK_EQ(0, mpshm_wait_room(watched, ends[1], TINY_CHUNK, HIGH_WATER, FOREVER_MS));
    take_copies(watched, 1);
    close_pipe();
    close_clean(watched);
}

static void
four_fly(void)
{
    watched = arena_of(tiny);
    open_pipe(0);
    nobody_watches_soon(watched);
    fly(watched, 4);
}

/* The kernel answered that messages are unread; then those that mattered were leased.  The sender calls the kernel,
   which sees that the count is another.  It must not begin anew: who should wake the sender has been. */
static void
leases_between_the_last_look_and_the_sleep_are_not_slept_through(void)
{
    four_fly();
    after_the_look = land_what_is_awaited;
    wait_meanwhile(1);
}

static void
land_and_have_another_wait(void)
{
    land_what_is_awaited();
    CHECK_EQ(0, wanted(watched));
    atomic_store(&watched->header->wanted, 50);
}

/* It was counted down to nothing, and another sender has asked for more before the first one looked. */
static void
sleeper_whose_leases_came_does_not_sleep_on_for_another(void)
{
    four_fly();
    before_the_sleep = land_and_have_another_wait;
    wait_meanwhile(1);
}

/* Many at once */

#define SENDERS 3
#define MESSAGES 3000
#define ROOM 1500 /* in-flight bytes: a few messages */
#define LIVES 120

struct tally {
    _Atomic unsigned char seen[SENDERS][MESSAGES];
    _Atomic uint32_t received, waits;
};

static struct tally *tally;
static mpshm_arena *shared;
static int slice_ms = SLICE_MS;

static void
send_messages(unsigned from, unsigned count)
{
    unsigned seed = from + 1;
    char data[308];

    for (unsigned i = 0; i < count; i++) {
        uint32_t number = i % MESSAGES, size = (uint32_t) rand_r(&seed) % 300 + 8;
        uint64_t mark = ROOM;
        int result;

        memcpy(data, &from, 4);
        memcpy(data + 4, &number, 4);
        fill(data + 8, size - 8, from * MESSAGES + number);
        while ((result = mpshm_send_copy(shared, ends[1], data, size, mark)) != 0) {
            CHECK(result == MPSHM_NO_ROOM || result == MPSHM_SEND_PLAIN);
            if (result == MPSHM_NO_ROOM) {
                atomic_fetch_add(&tally->waits, 1);
                if (mpshm_wait_room(shared, ends[1], size, mark, slice_ms) == 0) {
                    mark = NO_MARK; /* also when there was nobody to wait for */
                }
            } else {
                sched_yield(); /* the arena is full of what others have in hand */
            }
        }
    }
}

/* Frames are all of one length and each is written whole, so one read takes one whole: no lock. */
static void
receive_messages(mpshm_arena *mine, bool once)
{
    mpshm_reader *own = mpshm_reader_new(0);
    ssize_t n;

    CHECK(own != NULL);
    for (;;) {
        uint32_t from, number;

        strays_inside(mine, true); /* as mpshm_receive does: it has a frame in hand */
        if ((n = read(ends[0], own->bytes, FRAME_BYTES)) == 0) {
            break;
        }
        CHECK_EQ(FRAME_BYTES, n);
        CHECK_EQ(0, frame_open(own, ends[0], mine, MOST));
        strays_inside(mine, false);
        CHECK_EQ(0, own->count);
        memcpy(&from, own->bytes + 4, 4);
        memcpy(&number, own->bytes + 8, 4);
        CHECK(from < SENDERS && number < MESSAGES);
        CHECK(is_filled((char *) own->bytes + 12, own->stream_end - 12, from * MESSAGES + number));
        CHECK(atomic_exchange(&tally->seen[from][number], 1) == 0 || !once);
        atomic_fetch_add(&tally->received, 1);
    }
    strays_inside(mine, false);
    mpshm_reader_free(own);
}

static void
open_channel(uint32_t segment_limit)
{
    mpshm_geometry geometry = tiny;

    geometry.segment_limit = segment_limit;
    shared = arena_of(geometry);
    CHECK_EQ(0, pipe(ends));
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED);
}

static void
check_all_came_and_close(void)
{
    CHECK_EQ(SENDERS * MESSAGES, atomic_load(&tally->received));
    CHECK(atomic_load(&tally->waits) > 0); /* or nothing of it was tried */
    close_clean(shared);
}

static void *
sender(void *argument)
{
    send_messages((unsigned) (uintptr_t) argument, MESSAGES);
    return NULL;
}

static void *
receiver(void *argument)
{
    receive_messages(argument, true);
    return NULL;
}

static void
threads_send_and_receive_on_one_channel(void)
{
    pthread_t senders[SENDERS], receivers[2];

    open_channel(8);
    mpshm_arena *far = attach_again(shared);

    for (uintptr_t i = 0; i < SENDERS; i++) {
        CHECK_EQ(0, pthread_create(&senders[i], NULL, sender, (void *) i));
    }
    for (int i = 0; i < 2; i++) { /* one through mappings of its own */
        CHECK_EQ(0, pthread_create(&receivers[i], NULL, receiver, i ? far : shared));
    }
    for (int i = 0; i < SENDERS; i++) {
        pthread_join(senders[i], NULL);
    }
    close(ends[1]);
    for (int i = 0; i < 2; i++) {
        pthread_join(receivers[i], NULL);
    }
    close(ends[0]);
    close_clean(far);
    check_all_came_and_close();
}

static int
start(bool sends, unsigned number, unsigned count)
{
    int pid = fork_hooked();

    if (pid == 0) {
        close(ends[sends ? 0 : 1]);
        if (sends) {
            send_messages(number, count);
        } else {
            receive_messages(shared, count != UINT32_MAX);
        }
        exit(0);
    }
    return pid;
}

static void
processes_send_and_receive_on_one_channel(void)
{
    int pids[SENDERS + 2];

    open_channel(8);
    for (unsigned i = 0; i < SENDERS + 2; i++) {
        pids[i] = start(i < SENDERS, i, MESSAGES);
    }
    close(ends[0]);
    close(ends[1]);
    for (int i = 0; i < SENDERS + 2; i++) {
        wait_child(pids[i]);
    }
    check_all_came_and_close();
}

/* SIGKILL at any instruction, asleep for room among them.  Nobody who lives hangs, and what a dead
   peer had in its name is taken back; a message in a killed receiver's hand is lost with its chunks.
   Its sender counts it as in flight for ever and may sleep for it: hence short slices. */
static void
kills_at_any_instruction_hang_nobody(void)
{
    int victims[2], status;

    open_channel(256);
    slice_ms = 1;
    int sends = start(true, 0, UINT32_MAX), receives = start(false, 0, UINT32_MAX);

    victims[0] = start(true, 1, UINT32_MAX);
    victims[1] = start(false, 0, UINT32_MAX);
    for (int i = 0; i < LIVES; i++) {
        uint32_t goal = atomic_load(&tally->received) + 50 + (uint32_t) i;
        int turn = i % 2;

        while (atomic_load(&tally->received) < goal) {
            CHECK_EQ(0, waitpid(-1, &status, WNOHANG)); /* nobody gave up by himself */
            sched_yield();
        }
        kill_child(victims[turn]);
        victims[turn] = start(turn == 0, 1 + (unsigned) i % (SENDERS - 1), UINT32_MAX);
    }
    CHECK(atomic_load(&tally->waits) > 0);
    for (int i = 0; i < 2; i++) {
        kill_child(victims[i]);
    }
    kill_child(sends);
    close(ends[1]);
    wait_child(receives);
    close(ends[0]);
    mpshm_reap(shared);
    CHECK_EQ(0, gauges(shared).runs_loaned);
    CHECK_EQ(0, gauges(shared).runs_leased);
    CHECK_EQ(1, mpshm_arena_is_valid(shared));
    mpshm_arena_close(shared);
}

static const struct test tests[] = {
    TEST(message_is_copied_whole_and_its_run_is_free_at_once),
    TEST(stream_longer_than_asked_for_is_leased),
    TEST(frames_that_name_more_than_a_stream_are_leased),
    TEST(forged_descriptor_copies_nothing_and_the_true_one_arrives),
    TEST(message_that_came_before_its_arena_is_copied),
    TEST(failed_send_keeps_nothing),
    TEST(full_arena_gives_no_frame_and_keeps_nothing),
    TEST(first_short_messages_make_no_segment),
    TEST(mark_is_for_what_flies_and_far_past_it_nobody_waits),
    TEST(short_messages_await_half_the_mark_and_long_ones_their_room),
    TEST(each_lease_counts_once_and_nothing_else_does),
    TEST(count_that_was_there_only_goes_down),
    TEST(sender_sleeps_through_all_leases_but_the_last_it_awaits),
    TEST(count_forged_under_a_sleeper_hangs_nobody),
    TEST(killed_sleeper_leaves_a_count_that_hangs_nobody),
    TEST(leases_between_the_last_look_and_the_sleep_are_not_slept_through),
    TEST(sleeper_whose_leases_came_does_not_sleep_on_for_another),
    TEST(threads_send_and_receive_on_one_channel),
    TEST(processes_send_and_receive_on_one_channel),
    TEST(kills_at_any_instruction_hang_nobody),
};
RUN_TESTS(tests)
