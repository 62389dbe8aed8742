/* Parcels and the frames they go out in: many runs, streams that grow, indexes, and forged frames. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NO_MARK (UINT64_C(1) << 40)

static int ends[2];
static mpshm_arena *arena, *far;

static void
open_channel(uint32_t segment_limit)
{
    mpshm_geometry geometry = tiny;

    geometry.segment_limit = segment_limit;
    arena = arena_of(geometry);
    far = attach_again(arena);
    CHECK_EQ(0, pipe(ends));
}

static void
close_channel(void)
{
    close(ends[0]);
    close(ends[1]);
    close_clean(far);
    close_clean(arena);
}

/* With no hint of what is still to come. */
static int
put_stream(mpshm_parcel *parcel, const char *data, uint64_t size, uint64_t mark)
{
    return mpshm_put_stream(parcel, data, size, 0, mark);
}

static void
open_next(mpshm_opened *opened, mpshm_reader *reader)
{
    reader->have = 0;
    CHECK(mpshm_read_frame(reader, ends[0]) > MPSHM_DESCRIPTORS);
    CHECK_EQ(0, mpshm_open(reader, far, opened));
}

static void
release_opened(mpshm_opened *opened)
{
    for (uint32_t i = 0; i < opened->count; i++) {
        mpshm_release(opened->views[i].data);
    }
    mpshm_opened_free(opened);
}

/* The stream's views, end to end, are `size` bytes of `seed`'s. */
static void
check_stream(const mpshm_opened *opened, uint64_t size, unsigned seed)
{
    char *whole = malloc(size);
    uint64_t at = 0;

    CHECK(whole != NULL);
    for (uint32_t i = 0; i < opened->stream_runs; i++) {
        CHECK(opened->views[i].size <= size - at);
        memcpy(whole + at, opened->views[i].data, opened->views[i].size);
        at += opened->views[i].size;
    }
    CHECK_EQ(size, at);
    CHECK(is_filled(whole, size, seed));
    free(whole);
}

static void
stream_grows_in_place_or_goes_on_in_another_run(void)
{
    static char bytes[3000];
    mpshm_reader reader;
    mpshm_opened opened;

    fill(bytes, sizeof bytes, 1);
    open_channel(8);
    for (uint64_t step = 1; step <= 400; step = step * 3 + 1) {
        mpshm_parcel *parcel = parcel_of(arena);

        for (uint64_t at = 0; at < sizeof bytes;) {
            uint64_t size = step < sizeof bytes - at ? step : sizeof bytes - at;

            CHECK_EQ(0, put_stream(parcel, bytes + at, size, NO_MARK));
            at += size;
            if (at == 1 || at == 4) {
                /* A neighbour: the stream cannot grow over it. */
                CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 20, NO_MARK));
            }
        }
        CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 1, NO_MARK));
        CHECK_EQ(0, mpshm_settle(parcel, 0, NO_MARK));
        CHECK_EQ(0, mpshm_send(parcel, ends[1], NULL, 0));
        mpshm_parcel_free(parcel);
        open_next(&opened, &reader);
        check_stream(&opened, sizeof bytes, 1);
        CHECK(opened.count > opened.stream_runs);
        CHECK(is_filled(opened.views[opened.stream_runs].data,
                        opened.views[opened.stream_runs].size, 1));
        release_opened(&opened);
        CHECK_EQ(0, runs_in_use(arena));
    }
    close_channel();
}

static void
more_descriptors_than_a_frame_holds_go_by_index(void)
{
    mpshm_reader reader;
    mpshm_opened opened;
    char bytes[8];

    open_channel(32);
    for (unsigned count = 200; count <= 210; count++) { /* 204 fit */
        mpshm_parcel *parcel = parcel_of(arena);

        for (unsigned i = 0; i < count; i++) {
            fill(bytes, sizeof bytes, i);
            CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, sizeof bytes, NO_MARK));
        }
        CHECK_EQ(0, mpshm_settle(parcel, 0, NO_MARK));
        CHECK_EQ(count + (count > 204), runs_in_use(arena));
        CHECK_EQ(0, mpshm_send(parcel, ends[1], NULL, 0));
        mpshm_parcel_free(parcel);
        open_next(&opened, &reader);
        CHECK_EQ(count, opened.count);
        CHECK_EQ(count, runs_in_use(arena)); /* the index went back at once */
        for (unsigned i = 0; i < count; i++) {
            CHECK_EQ(sizeof bytes, opened.views[i].size);
            CHECK(is_filled(opened.views[i].data, sizeof bytes, i));
        }
        release_opened(&opened);
    }
    close_channel();
}

static void
unsettled_parcel_is_too_long_to_send(void)
{
    static char stream[5000];
    mpshm_parcel *parcel;

    open_channel(32);
    parcel = parcel_of(arena);
    CHECK_EQ(0, mpshm_put_buffer(parcel, stream, 1, NO_MARK));
    CHECK_EQ(-EMSGSIZE, mpshm_send(parcel, ends[1], stream, sizeof stream));
    CHECK_EQ(1, gauges(arena).runs_loaned);
    CHECK_EQ(0, mpshm_settle(parcel, sizeof stream, NO_MARK));
    CHECK_EQ(0, mpshm_send(parcel, ends[1], stream, sizeof stream));
    mpshm_parcel_free(parcel);

    mpshm_reader reader;
    mpshm_opened opened;

    open_next(&opened, &reader);
    CHECK_EQ(1, opened.count); /* the stream came in the index, and that went back */
    CHECK_EQ(0, opened.stream_runs);
    CHECK_EQ(sizeof stream, reader.stream_end - reader.stream_at);
    release_opened(&opened);
    close_channel();
}

static void
settling_waits_for_room_and_can_be_called_again(void)
{
    mpshm_run flying;
    mpshm_parcel *parcel;
    mpshm_reader reader;
    mpshm_opened opened;
    char stream[100], *data;
    uint64_t mark = 1024 + 300, size;

    open_channel(64);
    parcel = parcel_of(arena);
    fill(stream, sizeof stream, 7);
    for (int i = 0; i < 210; i++) {
        CHECK_EQ(0, mpshm_put_buffer(parcel, stream, 16, mark));
    }
    flying = claim(arena, 1024);
    CHECK_EQ(0, send_run(ends[1], &flying, 1024));
    CHECK_EQ(-EAGAIN, mpshm_settle(parcel, sizeof stream, mark));
    CHECK_EQ(0, receive(far, ends[0], &data, &size));
    mpshm_release(data);
    CHECK_EQ(0, mpshm_settle(parcel, sizeof stream, mark));
    CHECK_EQ(0, mpshm_send(parcel, ends[1], stream, sizeof stream));
    mpshm_parcel_free(parcel);
    open_next(&opened, &reader);
    CHECK_EQ(210, opened.count);
    CHECK_EQ(sizeof stream, reader.stream_end - reader.stream_at);
    CHECK(is_filled((char *) reader.bytes + reader.stream_at, sizeof stream, 7));
    release_opened(&opened);
    close_channel();
}

static void
parcel_waits_at_the_mark_and_loses_nothing(void)
{
    mpshm_run flying;
    mpshm_parcel *parcel;
    char byte = 'b', *data;
    uint64_t size;

    open_channel(4);
    flying = claim(arena, 512);
    CHECK_EQ(0, send_run(ends[1], &flying, 512));
    parcel = parcel_of(arena);
    CHECK_EQ(-EAGAIN, mpshm_put_buffer(parcel, &byte, 1, 512));
    CHECK_EQ(-EAGAIN, put_stream(parcel, &byte, 1, 512));
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(0, receive(far, ends[0], &data, &size));
    CHECK_EQ(0, mpshm_put_buffer(parcel, &byte, 1, 512));
    CHECK_EQ(0, put_stream(parcel, &byte, 1, 512));
    mpshm_release(data);
    mpshm_parcel_free(parcel); /* unsent: abandoned */
    close_channel();
}

static void
arena_at_its_limit_leaves_the_parcel_whole(void)
{
    static char bytes[1024];
    mpshm_parcel *parcel;

    open_channel(2);
    parcel = parcel_of(arena);
    CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 1024, NO_MARK));
    CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 1024, NO_MARK));
    CHECK_EQ(-ENOSPC, mpshm_put_buffer(parcel, bytes, 1, NO_MARK));
    CHECK_EQ(-ENOSPC, put_stream(parcel, bytes, 1, NO_MARK));
    CHECK_EQ(2, runs_in_use(arena));
    mpshm_parcel_free(parcel);
    close_channel();
}

/* What opening says to a frame of these fields, its descriptors being good ones repeated. */
static int
open_forged(uint32_t flags, uint32_t stream_runs, uint32_t buffer_runs, uint32_t named,
            uint32_t extra, const char *descriptor)
{
    mpshm_reader reader = {.have = 0};
    mpshm_opened opened;
    uint16_t head[2] = {(uint16_t) flags, (uint16_t) stream_runs};
    uint32_t length = htonl(0x80000000u | (8 + named * 20 + extra));

    memcpy(reader.bytes, &length, 4);
    memcpy(reader.bytes + 4, head, 4);
    memcpy(reader.bytes + 8, &buffer_runs, 4);
    for (uint32_t i = 0; i < named; i++) {
        memcpy(reader.bytes + 12 + i * 20, descriptor, 20);
    }
    int error = mpshm_open(&reader, far, &opened);

    CHECK(error != 0);
    CHECK_EQ(0, mpshm_leases()); /* F3 */
    mpshm_opened_free(&opened);
    return error;
}

static void
forged_frames_are_refused_and_lease_nothing(void)
{
    mpshm_reader reader = {.have = 0};
    mpshm_opened opened;
    uint32_t word = htonl(0x80000007u);
    char frame[FRAME_BYTES];

    open_channel(4);
    memcpy(reader.bytes, &word, 4);
    CHECK_EQ(MPSHM_E_HEAD, mpshm_open(&reader, far, &opened));

    mpshm_run run = claim(arena, 40);

    frame_of(&run, 40, frame);
    CHECK_EQ(0, mpshm_seal(&run, 40));
    char *good = frame + 12;

    CHECK_EQ(MPSHM_E_FLAG, open_forged(2, 0, 1, 1, 0, good));
    CHECK_EQ(MPSHM_E_FLAG, open_forged(0xffff, 0, 1, 1, 0, good));
    CHECK_EQ(MPSHM_E_COUNT, open_forged(0, 0, 0, 1, 0, good));
    CHECK_EQ(MPSHM_E_COUNT, open_forged(0, 0, 2, 1, 0, good));
    CHECK_EQ(MPSHM_E_COUNT, open_forged(0, 1, 0xffffffff, 1, 0, good));
    CHECK_EQ(MPSHM_E_COUNT, open_forged(0, 0xffff, 0xffffffff, 1, 0, good));
    CHECK_EQ(MPSHM_E_COUNT, open_forged(1, 0, 5, 0, 0, good));
    CHECK_EQ(MPSHM_E_EXTRA, open_forged(0, 1, 0, 1, 1, good));
    CHECK_EQ(1, gauges(arena).runs_in_flight);
    CHECK_EQ(MPSHM_E_STALE, open_forged(0, 0, 2, 2, 0, good)); /* one run named twice */
    CHECK_EQ(0, runs_in_use(arena));

    run = claim(arena, 40);
    frame_of(&run, 40, frame);
    memset(run.data, 0xff, 40);
    CHECK_EQ(0, mpshm_seal(&run, 40));
    CHECK_EQ(MPSHM_E_SEGMENT, open_forged(1, 0, 2, 1, 0, good)); /* an index of junk */
    CHECK_EQ(0, runs_in_use(arena));

    run = claim(arena, 40);
    frame_of(&run, 40, frame);
    CHECK_EQ(0, mpshm_seal(&run, 40));
    CHECK_EQ(MPSHM_E_INDEX, open_forged(1, 0, 0xffffffff, 1, 0, good)); /* and no allocation of it */
    CHECK_EQ(0, runs_in_use(arena));
    close_channel();
}

static void
failed_descriptor_is_named(void)
{
    mpshm_reader reader = {.have = 0};
    mpshm_opened opened;
    char bytes[16] = "", *data;
    mpshm_parcel *parcel;

    open_channel(4);
    parcel = parcel_of(arena);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 9, NO_MARK));
    }
    uint32_t tag = parcel->parts[1].run.tag;

    CHECK_EQ(0, mpshm_send(parcel, ends[1], NULL, 0));
    mpshm_parcel_free(parcel);
    CHECK(mpshm_read_frame(&reader, ends[0]) > MPSHM_DESCRIPTORS);
    CHECK_EQ(0, mpshm_lease(arena, 0, 1, 9, tag, &data)); /* the second one, taken by another */
    CHECK_EQ(MPSHM_E_STALE, mpshm_open(&reader, far, &opened));
    CHECK_EQ(0, opened.bad.mmap_id);
    CHECK_EQ(1, opened.bad.chunk_id);
    CHECK_EQ(9, opened.bad.size);
    CHECK_EQ(tag, opened.bad.tag);
    mpshm_opened_free(&opened);
    CHECK_EQ(1, runs_in_use(arena)); /* the first and the third went back */
    mpshm_release(data);
    close_channel();
}

/* The core's writes come by here. */
static void (*instead_of_writing)(void);

ssize_t
write(int fd, const void *data, size_t size)
{
    if (instead_of_writing != NULL) {
        void (*call)(void) = instead_of_writing;

        instead_of_writing = NULL;
        call();
        errno = EAGAIN;
        return -1;
    }
    return syscall(SYS_write, fd, data, size);
}

static mpshm_parcel *watched;
static char *stolen[2];

static void
steal_two_runs(void)
{
    for (int i = 0; i < 2; i++) {
        const mpshm_run *run = &watched->parts[2 * i].run;

        CHECK_EQ(0, mpshm_lease(far, run->mmap_id, run->chunk_id, 9, run->tag, &stolen[i]));
    }
}

/* A hostile peer reads their names in the run table.  They are its; nothing else is lost. */
static void
runs_leased_before_their_frame_failed_are_an_error_at_the_next_send(void)
{
    mpshm_parcel *parcel;
    char bytes[16];

    open_channel(4);
    parcel = parcel_of(arena);
    for (unsigned i = 0; i < 4; i++) {
        fill(bytes, sizeof bytes, i);
        CHECK_EQ(0, mpshm_put_buffer(parcel, bytes, 9, NO_MARK));
    }
    watched = parcel;
    instead_of_writing = steal_two_runs;
    CHECK_EQ(-EAGAIN, mpshm_send(parcel, ends[1], NULL, 0));
    CHECK_EQ(2, gauges(arena).runs_loaned);
    CHECK_EQ(4, arena->loans);
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_send(parcel, ends[1], NULL, 0));
    CHECK_EQ(2, gauges(arena).runs_loaned);
    mpshm_parcel_free(parcel);
    CHECK_EQ(0, arena->loans);
    CHECK_EQ(2, runs_in_use(arena)); /* the thief's */
    for (unsigned i = 0; i < 2; i++) {
        CHECK(is_filled(stolen[i], 9, 2 * i));
        mpshm_release(stolen[i]);
    }
    close_channel();
}

static const struct test tests[] = {
    TEST(stream_grows_in_place_or_goes_on_in_another_run),
    TEST(more_descriptors_than_a_frame_holds_go_by_index),
    TEST(unsettled_parcel_is_too_long_to_send),
    TEST(settling_waits_for_room_and_can_be_called_again),
    TEST(parcel_waits_at_the_mark_and_loses_nothing),
    TEST(arena_at_its_limit_leaves_the_parcel_whole),
    TEST(forged_frames_are_refused_and_lease_nothing),
    TEST(failed_descriptor_is_named),
    TEST(runs_leased_before_their_frame_failed_are_an_error_at_the_next_send),
};
RUN_TESTS(tests)
