/* A run's life: get_buf, increase, seal, unseal, abandon, lease, release; and what is no run. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* As the next claim finds them. */
static uint64_t
free_bits(mpshm_arena *arena)
{
    struct segment *seg = arena->segments[0];

    arena_lock(arena);
    CHECK(segment_try_lock(seg));
    uint64_t bits = seg->map[0];

    segment_unlock(seg);
    arena_unlock(arena);
    return bits;
}

static void
get_buf_gives_whole_chunks(void)
{
    static const uint64_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024};
    mpshm_arena *arena = arena_of(tiny);

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mpshm_run run = claim(arena, sizes[i]);

        CHECK_EQ(0, run.chunk_id);
        CHECK_EQ(sizes[i] == 0 ? 16 : (sizes[i] + 15) / 16 * 16, run.capacity);
        CHECK_EQ(i + 1, run.tag); /* each use of a first chunk is another run */
        CHECK_EQ(0, mpshm_abandon(&run));
    }
    close_clean(arena);
}

static void
increase_from_chunk_0_to_the_very_end(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);

    fill(run.data, 16, 1);
    CHECK_EQ(32, mpshm_increase_buf(&run, 17, 17));
    CHECK_EQ(48, run.capacity);
    CHECK_EQ(0, mpshm_increase_buf(&run, 0, 0));
    CHECK_EQ(1024 - 48, mpshm_increase_buf(&run, UINT64_MAX, 1024 - 48));
    CHECK_EQ(1024, run.capacity);
    CHECK_EQ(0, free_bits(arena));
    CHECK_EQ(0, mpshm_increase_buf(&run, 16, 0));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&run, 16, 1));
    CHECK(is_filled(run.data, 16, 1));
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

/* NGINX Unit rolls back with `c--; while (c >= start)` on an unsigned; here at both edges. */
static void
increase_short_of_its_minimum_leaves_no_trace(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run first = claim(arena, 16), wall, last;

    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&first, 2048, 1024)); /* from chunk 0, past the end */
    CHECK_EQ(~UINT64_C(1), free_bits(arena));
    CHECK_EQ(16, first.capacity);

    wall = claim(arena, 48);
    CHECK_EQ(0, mpshm_abandon(&wall));
    wall = claim(arena, 32); /* chunks 1-2; then free 1 by sealing a tail back */
    CHECK_EQ(1, wall.chunk_id);
    last = claim(arena, 61 * 16);
    CHECK_EQ(3, last.chunk_id);
    CHECK_EQ(0, free_bits(arena));
    CHECK_EQ(0, mpshm_abandon(&wall));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&first, 48, 33)); /* two free, three wanted */
    CHECK_EQ(6, free_bits(arena));
    CHECK_EQ(16, first.capacity);
    CHECK_EQ(32, mpshm_increase_buf(&first, 48, 32));
    CHECK_EQ(0, mpshm_abandon(&last));

    last = claim(arena, 60 * 16); /* 3..62; chunk 63 is the only one left */
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&last, 32, 17));
    CHECK_EQ(UINT64_C(1) << 63, free_bits(arena));
    CHECK_EQ(16, mpshm_increase_buf(&last, 32, 16));
    CHECK_EQ(0, free_bits(arena));
    CHECK_EQ(0, mpshm_abandon(&first));
    CHECK_EQ(0, mpshm_abandon(&last));
    close_clean(arena);
}

static void
increase_stops_at_a_neighbour(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16), neighbour = claim(arena, 16);

    fill(neighbour.data, 16, 9);
    CHECK_EQ(0, mpshm_increase_buf(&run, 16, 0));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&run, 16, 16));
    fill(run.data, run.capacity, 1);
    CHECK(is_filled(neighbour.data, 16, 9));
    CHECK_EQ(0, mpshm_abandon(&neighbour));
    CHECK_EQ(16, mpshm_increase_buf(&run, 16, 16));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
seal_gives_the_tail_back(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 1024);

    CHECK_EQ(-EINVAL, mpshm_seal(&run, 0));
    CHECK_EQ(-EINVAL, mpshm_seal(&run, 1025));
    CHECK_EQ(1024, gauges(arena).bytes_loaned);
    CHECK_EQ(0, mpshm_seal(&run, 17));
    CHECK_EQ(32, run.capacity);
    CHECK_EQ(~UINT64_C(3), free_bits(arena));
    CHECK_EQ(32, gauges(arena).bytes_in_flight);
    land(&run, 17);
    run = claim(arena, 1024);
    CHECK_EQ(0, mpshm_seal(&run, 1024)); /* no tail, up to the very end */
    CHECK_EQ(0, free_bits(arena));
    land(&run, 1024);
    close_clean(arena);
}

/* What a send does around its write.  The chunks behind the message go back when its frame is out.  R2 */
static void
unsealed_run_is_what_it_was(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 512);

    fill(run.data, 512, 1);
    for (uint64_t size = 1; size <= 512; size += 17) {
        uint64_t bytes = 0;

        arena_lock(arena);
        CHECK_EQ(0, run_seal(&run, size, NO_POSITION, &bytes));
        arena_unlock(arena);
        CHECK_EQ((size + 15) / 16 * 16, bytes);
        CHECK_EQ(512, gauges(arena).bytes_in_flight);
        CHECK_EQ(1, mpshm_arena_is_valid(arena));
        arena_lock(arena);
        run_unseal(&run, NO_POSITION);
        arena_unlock(arena);
        CHECK_EQ(1, mpshm_is_loaned(&run));
        CHECK_EQ(512, gauges(arena).bytes_loaned);
        CHECK_EQ(512, run.capacity);
        CHECK_EQ(1, mpshm_arena_is_valid(arena));
        CHECK(is_filled(run.data, 512, 1));
    }
    CHECK_EQ(512, mpshm_increase_buf(&run, 512, 512));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

/* A hostile peer has read the run's name in the table before its frame was out. */
static void
run_that_a_peer_leased_unsent_is_lost_without_harm(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(arena, 40);
    uint64_t bytes = 0;
    char *data;

    fill(run.data, 40, 1);
    arena_lock(arena);
    CHECK_EQ(0, run_seal(&run, 40, NO_POSITION, &bytes));
    arena_unlock(arena);
    CHECK_EQ(0, mpshm_lease(again, run.mmap_id, run.chunk_id, 40, run.tag, &data));
    arena_lock(arena);
    run_unseal(&run, NO_POSITION);
    arena_unlock(arena);
    CHECK_EQ(0, mpshm_is_loaned(&run));
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_seal(&run, 40));
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_increase_buf(&run, 16, 0));
    CHECK_EQ(1, arena->loans);
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_abandon(&run));
    CHECK_EQ(0, arena->loans);
    CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&run));
    CHECK(is_filled(data, 40, 1));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

static void
what_was_sealed_or_received_is_not_the_senders(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);
    char *data = NULL;

    CHECK_EQ(1, mpshm_is_loaned(&run));
    CHECK_EQ(0, mpshm_seal(&run, 16));
    for (int leased = 0; leased < 2; leased++) {
        CHECK_EQ(0, mpshm_is_loaned(&run));
        CHECK_EQ(MPSHM_E_STATE, mpshm_seal(&run, 16));
        CHECK_EQ(MPSHM_E_STATE, mpshm_increase_buf(&run, 16, 0));
        CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&run));
        if (!leased) {
            CHECK_EQ(0, mpshm_lease(arena, run.mmap_id, run.chunk_id, 16, run.tag, &data));
        }
    }
    mpshm_release(data);
    close_clean(arena);
}

static void
abandon_twice_harms_no_new_holder(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16), again;

    CHECK_EQ(0, mpshm_abandon(&run));
    CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&run));
    again = claim(arena, 16);
    CHECK_EQ(run.chunk_id, again.chunk_id);
    CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&run));
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(0, mpshm_abandon(&again));
    close_clean(arena);
}

static void
copy_in_keeps_within_the_run(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 32), neighbour = claim(arena, 16);
    char bytes[64];

    fill(bytes, sizeof bytes, 5);
    fill(neighbour.data, 16, 9);
    CHECK_EQ(0, mpshm_copy_in(&run, 0, bytes, 32));
    CHECK(is_filled(run.data, 32, 5));
    CHECK_EQ(0, mpshm_copy_in(&run, 32, bytes, 0));
    CHECK_EQ(-EINVAL, mpshm_copy_in(&run, 0, bytes, 33));
    CHECK_EQ(-EINVAL, mpshm_copy_in(&run, 31, bytes, 2));
    CHECK_EQ(-EINVAL, mpshm_copy_in(&run, 33, bytes, 0));
    CHECK_EQ(-EINVAL, mpshm_copy_in(&run, 1, bytes, UINT64_MAX));
    CHECK_EQ(-EINVAL, mpshm_copy_in(&run, UINT64_MAX, bytes, 1));
    CHECK(is_filled(neighbour.data, 16, 9));
    CHECK_EQ(0, mpshm_abandon(&run));
    CHECK_EQ(0, mpshm_abandon(&neighbour));
    close_clean(arena);
}

/* By huge pages where they can be had; at every misalignment the bytes must be the same. */
static void
large_copies_are_whole(void)
{
    mpshm_geometry usual = {.stride = UINT64_C(1) << 30, .segment_bytes = 16 << 20,
                            .segment_limit = 4, .chunk_shift = 12};
    static const uint64_t offsets[] = {0, 1, 4096, (1 << 20) + 3, 2 << 20};
    mpshm_arena *arena = arena_of(usual), *again = attach_again(arena);
    mpshm_run gap = claim(arena, 4096), run = claim(arena, 9 << 20);
    uint64_t size = 5 << 20;
    char *bytes = malloc(size), *data;

    CHECK(bytes != NULL);
    for (unsigned i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        fill(bytes, size, i);
        memset(run.data, 0x11, offsets[i]);
        CHECK_EQ(0, mpshm_copy_in(&run, offsets[i], bytes, size));
        CHECK(memcmp(bytes, run.data + offsets[i], size) == 0);
        CHECK(offsets[i] == 0 || run.data[offsets[i] - 1] == 0x11);
    }
    CHECK_EQ(0, mpshm_copy_in(&run, 0, bytes, size));
    CHECK_EQ(0, mpshm_seal(&run, size));
    CHECK_EQ(0, mpshm_lease(again, run.mmap_id, run.chunk_id, size, run.tag, &data));
    CHECK(memcmp(bytes, data, size) == 0);
    mpshm_release(data);
    free(bytes);
    CHECK_EQ(0, mpshm_abandon(&gap));
    close_clean(again);
    close_clean(arena);
}

static void
each_wrong_field_has_its_error(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(arena, 40);
    uint32_t tag = run.tag;
    char *data = NULL;

    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 40, tag, &data)); /* on loan, not sealed */
    CHECK_EQ(0, mpshm_seal(&run, 40));
    CHECK_EQ(MPSHM_E_SEGMENT, mpshm_lease(again, 1, 0, 40, tag, &data));
    CHECK_EQ(MPSHM_E_SEGMENT, mpshm_lease(again, 4, 0, 40, tag, &data));
    CHECK_EQ(MPSHM_E_SEGMENT, mpshm_lease(again, SEGMENT_LIMIT, 0, 40, tag, &data));
    CHECK_EQ(MPSHM_E_SEGMENT, mpshm_lease(again, UINT32_MAX, 0, 40, tag, &data));
    CHECK_EQ(MPSHM_E_CHUNK, mpshm_lease(again, 0, 64, 40, tag, &data));
    CHECK_EQ(MPSHM_E_CHUNK, mpshm_lease(again, 0, UINT32_MAX, 40, tag, &data));
    CHECK_EQ(MPSHM_E_SIZE, mpshm_lease(again, 0, 0, 0, tag, &data));
    CHECK_EQ(MPSHM_E_SIZE, mpshm_lease(again, 0, 0, 1025, tag, &data));
    CHECK_EQ(MPSHM_E_SIZE, mpshm_lease(again, 0, 0, UINT64_MAX, tag, &data));
    CHECK_EQ(MPSHM_E_SIZE, mpshm_lease(again, 0, 63, 17, tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 32, tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 49, tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 1, 40, tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 63, 16, tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 40, tag + 1, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 40, tag | (TAG_MASK + 1), &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 40, UINT32_MAX, &data));
    CHECK(data == NULL);
    CHECK_EQ(1, gauges(arena).runs_in_flight);
    CHECK_EQ(0, mpshm_lease(again, 0, 0, 40, tag, &data));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

static void
only_the_descriptor_itself_leases(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run early[3], run;
    char *data = NULL;
    int leased = 0;

    for (int i = 0; i < 3; i++) { /* tags differ from chunk to chunk */
        early[i] = claim(arena, 16 * (i + 1));
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(0, mpshm_abandon(&early[i]));
    }
    run = claim(arena, 16 * 5);
    CHECK_EQ(0, mpshm_seal(&run, 16 * 5));
    for (uint32_t mmap_id = 0; mmap_id <= tiny.segment_limit; mmap_id++) {
        for (uint32_t chunk_id = 0; chunk_id <= TINY_CHUNKS; chunk_id++) {
            for (uint32_t chunks = 0; chunks <= TINY_CHUNKS + 1; chunks++) {
                for (uint32_t tag = 0; tag < 4; tag++) {
                    bool right = mmap_id == run.mmap_id && chunk_id == run.chunk_id && chunks == 5
                                 && tag == run.tag;

                    if (!right) {
                        leased += mpshm_lease(again, mmap_id, chunk_id, chunks * 16, tag, &data) == 0;
                    }
                }
            }
        }
    }
    CHECK_EQ(0, leased);
    CHECK_EQ(1, gauges(arena).runs_in_flight);
    CHECK_EQ(0, mpshm_lease(again, run.mmap_id, run.chunk_id, 80, run.tag, &data));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

static void
descriptor_works_once(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(arena, 16), next;
    char *data, *other;

    CHECK_EQ(0, mpshm_seal(&run, 16));
    CHECK_EQ(0, mpshm_lease(again, 0, 0, 16, run.tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 16, run.tag, &other)); /* repeated */
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 0, 16, run.tag, &other));
    mpshm_release(data);
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 16, run.tag, &other)); /* stale: free */
    next = claim(arena, 16);
    CHECK_EQ(0, mpshm_seal(&next, 16));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(again, 0, 0, 16, run.tag, &other)); /* stale: another's */
    CHECK_EQ(0, mpshm_lease(again, 0, 0, 16, next.tag, &data));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

/* A second descriptor for chunks in the middle of a run that has taken over what it named. */
static void
descriptor_into_the_middle_of_another_run_is_stale(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run gap = claim(arena, 16), run = claim(arena, 16), big;
    char *data;

    CHECK_EQ(0, mpshm_seal(&run, 16));
    CHECK_EQ(0, mpshm_lease(arena, 0, 1, 16, run.tag, &data));
    mpshm_release(data);
    CHECK_EQ(0, mpshm_abandon(&gap));
    big = claim(arena, 48);
    CHECK_EQ(0, mpshm_seal(&big, 48));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 1, 16, run.tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 1, 16, run.tag + 1, &data));
    land(&big, 48);
    close_clean(arena);
}

static void
release_of_what_is_no_lease_does_nothing(void)
{
    mpshm_arena *arena = arena_of(tiny);
    char *data, *other;

    mpshm_release(NULL); /* before the first lease ever, and after */
    data = lease_new(arena, 16, 1);
    mpshm_release(NULL);
    mpshm_release(data + 1);
    mpshm_release(&arena);
    CHECK_EQ(1, mpshm_leases());
    other = lease_new(arena, 16, 2);
    mpshm_release(data);
    mpshm_release(data);
    CHECK_EQ(1, mpshm_leases());
    CHECK(is_filled(other, 16, 2));
    mpshm_release(other);
    mpshm_release(NULL);
    close_clean(arena);
}

/* More leases than the table starts with, released in an order that opens gaps everywhere. */
static void
many_leases_come_and_go_in_any_order(void)
{
    mpshm_geometry wide = tiny;
    static char *held[1024];
    uint32_t live = 0;
    unsigned seed = 3;

    wide.segment_limit = 24;
    mpshm_arena *arena = arena_of(wide);

    for (uint32_t i = 0; i < 1024; i++) {
        held[i] = lease_new(arena, 16, i);
        live++;
    }
    CHECK_EQ(1024, mpshm_leases());
    for (int round = 0; round < 20000; round++) {
        uint32_t i = (uint32_t) rand_r(&seed) % 1024;

        if (held[i] != NULL) {
            CHECK(is_filled(held[i], 16, i));
            mpshm_release(held[i]);
            held[i] = NULL;
            live--;
        } else {
            held[i] = lease_new(arena, 16, i);
            live++;
        }
        if (round % 1000 == 0) {
            CHECK_EQ(live, mpshm_leases());
            CHECK_EQ(live, gauges(arena).runs_leased);
            CHECK_EQ(1, mpshm_arena_is_valid(arena));
        }
    }
    for (uint32_t i = 0; i < 1024; i++) {
        mpshm_release(held[i]);
    }
    CHECK_EQ(0, mpshm_leases());
    close_clean(arena);
}

static void
freed_chunks_are_filled_with_junk_in_the_debug_build(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 32);
    char *data = run.data;

    fill(data, 32, 1);
    CHECK_EQ(0, mpshm_abandon(&run));
    for (int i = 0; i < 32; i++) {
        CHECK_EQ(0xa5, (unsigned char) data[i]);
    }
    data = lease_new(arena, 32, 2);
    mpshm_release(data);
    for (int i = 0; i < 32; i++) {
        CHECK_EQ(0xa5, (unsigned char) data[i]);
    }
    close_clean(arena);
}

/* So a descriptor of a run that has been freed names none that comes later, there or beside it. */
static void
each_claim_in_a_segment_has_a_tag_of_its_own(void)
{
    mpshm_arena *arena = arena_of(tiny);
    uint32_t last = 0;

    for (int i = 0; i < 200; i++) {
        mpshm_run one = claim(arena, 16), other = claim(arena, 32);

        CHECK_EQ(last + 1, one.tag);
        CHECK_EQ(last + 2, other.tag);
        last = other.tag;
        CHECK_EQ(0, mpshm_abandon(&one));
        CHECK_EQ(0, mpshm_abandon(&other));
    }
    close_clean(arena);
}

static void
tag_wraps_and_stays_within_its_bits(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);
    char *data;

    CHECK_EQ(0, mpshm_abandon(&run));
    arena->segments[0]->head->claims = TAG_MASK;
    run = claim(arena, 16);
    CHECK_EQ(0, run.tag);
    CHECK_EQ(0, mpshm_seal(&run, 16));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 0, 16, TAG_MASK, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 0, 16, TAG_MASK + 1, &data));
    CHECK_EQ(0, mpshm_lease(arena, 0, 0, 16, 0, &data));
    mpshm_release(data);
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(get_buf_gives_whole_chunks),
    TEST(increase_from_chunk_0_to_the_very_end),
    TEST(increase_short_of_its_minimum_leaves_no_trace),
    TEST(increase_stops_at_a_neighbour),
    TEST(seal_gives_the_tail_back),
    TEST(unsealed_run_is_what_it_was),
    TEST(run_that_a_peer_leased_unsent_is_lost_without_harm),
    TEST(what_was_sealed_or_received_is_not_the_senders),
    TEST(abandon_twice_harms_no_new_holder),
    TEST(copy_in_keeps_within_the_run),
    TEST(large_copies_are_whole),
    TEST(each_wrong_field_has_its_error),
    TEST(only_the_descriptor_itself_leases),
    TEST(descriptor_works_once),
    TEST(descriptor_into_the_middle_of_another_run_is_stale),
    TEST(release_of_what_is_no_lease_does_nothing),
    TEST(many_leases_come_and_go_in_any_order),
    TEST(freed_chunks_are_filled_with_junk_in_the_debug_build),
    TEST(each_claim_in_a_segment_has_a_tag_of_its_own),
    TEST(tag_wraps_and_stays_within_its_bits),
};
RUN_TESTS(tests)
