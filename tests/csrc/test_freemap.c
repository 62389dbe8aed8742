/* The free map alone: edges, the guard bit, all or nothing, and threads that fight over it. */
#include "check.h"

#include <pthread.h>
#include <string.h>

#define WORDS 4

static mapword map[WORDS];

static void
all_free(uint32_t count)
{
    memset((void *) map, 0, sizeof map);
    freemap_put_back(map, 0, count);
}

static void
check_only_free(uint32_t first, uint32_t n)
{
    for (uint32_t chunk = 0; chunk < WORDS * 64; chunk++) {
        CHECK_EQ(chunk - first < n, freemap_is_free(map, chunk));
    }
}

static const uint32_t counts[] = {1, 2, 63, 64, 65, 127, 128, 129, 191};
#define FOR_EACH_COUNT(count)                                                                  \
    for (uint32_t i_ = 0, count; i_ < sizeof counts / sizeof *counts && (count = counts[i_]); i_++)

static void
whole_map_is_one_claim(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start = 77;

        all_free(count);
        check_only_free(0, count); /* the guard and what follows it stay 0 */
        CHECK(freemap_try_claim(map, count, count, &start));
        CHECK_EQ(0, start);
        check_only_free(0, 0);
        CHECK(!freemap_try_claim(map, count, 1, &start));
        freemap_put_back(map, 0, count);
        check_only_free(0, count);
    }
}

static void
one_more_than_there_are_is_refused_and_takes_nothing(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start;

        all_free(count);
        CHECK(!freemap_try_claim(map, count, count + 1, &start));
        check_only_free(0, count);
    }
}

static void
last_chunk_alone(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start;

        all_free(count);
        CHECK(count == 1 || freemap_try_claim(map, count, count - 1, &start));
        CHECK(freemap_try_claim(map, count, 1, &start));
        CHECK_EQ(count - 1, start);
        CHECK(!freemap_try_claim(map, count, 1, &start));
        freemap_put_back(map, count - 1, 1);
        check_only_free(count - 1, 1);
    }
}

/* The bound is `count`, not the luck of finding a 0 there. */
static void
bits_past_the_end_are_never_taken(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start;

        memset((void *) map, 0xff, sizeof map);
        CHECK(!freemap_try_claim(map, count, count + 1, &start));
        CHECK_EQ(1, freemap_claim_from(map, count, count - 1, 100));
        CHECK_EQ(0, freemap_claim_from(map, count, count, 1));
        CHECK_EQ(0, freemap_claim_from(map, count, count + 1, 1));
        CHECK(count == 1 || freemap_try_claim(map, count, count - 1, &start));
        CHECK(!freemap_try_claim(map, count, 1, &start));
        check_only_free(count, WORDS * 64 - count);
    }
}

/* Every pattern of ten chunks, laid across a word's edge and at both ends of the map. */
static void
every_pattern_as_a_plain_search_would(void)
{
    static const uint32_t offsets[] = {0, 59, 118};

    for (uint32_t o = 0; o < 3; o++) {
        uint32_t base = offsets[o], count = base + 10;

        for (uint32_t pattern = 0; pattern < 1024; pattern++) {
            for (uint32_t want = 1; want <= 11; want++) {
                uint32_t first = UINT32_MAX, start = 0;

                memset((void *) map, 0, sizeof map);
                for (uint32_t bit = 0; bit < 10; bit++) {
                    if (pattern >> bit & 1) {
                        freemap_put_back(map, base + bit, 1);
                    }
                }
                for (uint32_t at = 0; at + want <= 10 && first == UINT32_MAX; at++) {
                    uint32_t mask = ((1u << want) - 1) << at;

                    if ((pattern & mask) == mask) {
                        first = at;
                    }
                }
                bool claimed = freemap_try_claim(map, count, want, &start);

                CHECK_EQ(first != UINT32_MAX, claimed);
                if (claimed) {
                    CHECK_EQ(base + first, start);
                    freemap_put_back(map, start, want);
                }
                for (uint32_t at = 0; at <= 10; at++) {
                    uint32_t length = 0;

                    while (at + length < 10 && length < want && pattern >> (at + length) & 1) {
                        length++;
                    }
                    CHECK_EQ(length, freemap_claim_from(map, count, base + at, want));
                    for (uint32_t c = at; c < at + length; c++) {
                        CHECK(!freemap_is_free(map, base + c));
                    }
                    /* The original's roll-back runs below zero when a run starts at chunk 0. */
                    freemap_put_back(map, base + at, length);
                }
                for (uint32_t bit = 0; bit < 10; bit++) {
                    CHECK_EQ(pattern >> bit & 1, freemap_is_free(map, base + bit));
                }
            }
        }
    }
}

static void
putting_back_nothing_changes_nothing(void)
{
    all_free(65);
    freemap_put_back(map, 0, 0);
    freemap_put_back(map, 65, 0);
    check_only_free(0, 65);
}

/* Several threads claim, mark, grow and put back.  `owner` is not atomic on purpose: two holders of
   one chunk, or an acquire that is missing, is a race that TSan reports and the check finds. */
#define FIGHT_CHUNKS 150u
static unsigned char owner[FIGHT_CHUNKS];
static _Atomic uint32_t claims;

static void *
fight(void *argument)
{
    unsigned char me = (unsigned char) (uintptr_t) argument;
    unsigned seed = me;

    for (int round = 0; round < 20000; round++) {
        uint32_t start, got = 0, want = (uint32_t) rand_r(&seed) % 80 + 1;

        if (round % 8 != 0) {
            want = want % 5 + 1;
        }
        if (!freemap_try_claim(map, FIGHT_CHUNKS, want, &start)) {
            continue;
        }
        CHECK(start + want <= FIGHT_CHUNKS);
        if (round % 3 == 0) {
            got = freemap_claim_from(map, FIGHT_CHUNKS, start + want, 7);
            CHECK(got <= 7 && start + want + got <= FIGHT_CHUNKS);
        }
        for (uint32_t c = start; c < start + want + got; c++) {
            CHECK_EQ(0, owner[c]);
            owner[c] = me;
        }
        for (uint32_t c = start; c < start + want + got; c++) {
            CHECK_EQ(me, owner[c]);
            owner[c] = 0;
        }
        freemap_put_back(map, start + want, got);
        freemap_put_back(map, start, want);
        atomic_fetch_add(&claims, 1);
    }
    return NULL;
}

static void
threads_never_hold_the_same_chunk(void)
{
    pthread_t threads[4];

    all_free(FIGHT_CHUNKS);
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, fight, (void *) (i + 1)));
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    check_only_free(0, FIGHT_CHUNKS);
    CHECK(atomic_load(&claims) > 0);
}

static const struct test tests[] = {
    TEST(whole_map_is_one_claim),
    TEST(one_more_than_there_are_is_refused_and_takes_nothing),
    TEST(last_chunk_alone),
    TEST(bits_past_the_end_are_never_taken),
    TEST(every_pattern_as_a_plain_search_would),
    TEST(putting_back_nothing_changes_nothing),
    TEST(threads_never_hold_the_same_chunk),
};
RUN_TESTS(tests)
