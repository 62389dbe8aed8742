/* The free map alone: edges, the guard bit, and a search that finds what a plain one would. */
#include "check.h"

#include <string.h>

#define WORDS 4

static uint64_t map[WORDS];

static void
all_free(uint32_t count)
{
    memset(map, 0, sizeof map);
    freemap_set(map, 0, count);
}

static void
check_only_free(uint32_t first, uint32_t n)
{
    for (uint32_t chunk = 0; chunk < WORDS * 64; chunk++) {
        CHECK_EQ(chunk - first < n, freemap_has(map, chunk));
    }
}

/* As a claim does: find them and clear their bits. */
static bool
take(uint32_t count, uint32_t want, uint32_t *start)
{
    bool found = freemap_find(map, count, want, start);

    if (found) {
        freemap_clear(map, *start, want);
    }
    return found;
}

static const uint32_t counts[] = {1, 2, 63, 64, 65, 127, 128, 129, 191};
#define FOR_EACH_COUNT(count)                                                                  \
    for (uint32_t i_ = 0, count; i_ < sizeof counts / sizeof *counts && (count = counts[i_]); i_++)

static void
whole_map_is_found_at_once(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start = 77;

        all_free(count);
        check_only_free(0, count); /* the guard and what follows it stay 0 */
        CHECK(take(count, count, &start));
        CHECK_EQ(0, start);
        check_only_free(0, 0);
        CHECK(!freemap_find(map, count, 1, &start));
        freemap_set(map, 0, count);
        check_only_free(0, count);
    }
}

static void
one_more_than_there_are_is_not_found(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start = 77;

        all_free(count);
        CHECK(!freemap_find(map, count, count + 1, &start));
        CHECK_EQ(77, start);
        check_only_free(0, count);
    }
}

static void
last_chunk_alone(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start;

        all_free(count);
        CHECK(count == 1 || take(count, count - 1, &start));
        CHECK(take(count, 1, &start));
        CHECK_EQ(count - 1, start);
        CHECK(!freemap_find(map, count, 1, &start));
        freemap_set(map, count - 1, 1);
        check_only_free(count - 1, 1);
    }
}

/* The bound is `count`, not the luck of finding a 0 there.  M1 */
static void
bits_past_the_end_are_never_found(void)
{
    FOR_EACH_COUNT(count) {
        uint32_t start;

        memset(map, 0xff, sizeof map);
        CHECK(!freemap_find(map, count, count + 1, &start));
        CHECK_EQ(1, freemap_stretch(map, count, count - 1, 100));
        CHECK_EQ(0, freemap_stretch(map, count, count, 1));
        CHECK(freemap_find(map, count, count, &start));
        CHECK_EQ(0, start);
        freemap_clear(map, 0, count);
        CHECK(!freemap_find(map, count, 1, &start));
        check_only_free(count, WORDS * 64 - count);
    }
}

/* Lay the pattern's ten bits into an empty map. */
static void
lay(uint32_t base, uint32_t pattern)
{
    memset(map, 0, sizeof map);
    for (uint32_t bit = 0; bit < 10; bit++) {
        if (pattern >> bit & 1) {
            freemap_set(map, base + bit, 1);
        }
    }
}

static void
check_pattern(uint32_t base, uint32_t pattern, uint32_t want)
{
    uint32_t count = base + 10, first = UINT32_MAX, start = 0;

    for (uint32_t at = 0; at + want <= 10 && first == UINT32_MAX; at++) {
        uint32_t mask = ((1u << want) - 1) << at;

        if ((pattern & mask) == mask) {
            first = at;
        }
    }
    CHECK_EQ(first != UINT32_MAX, freemap_find(map, count, want, &start));
    if (first != UINT32_MAX) {
        CHECK_EQ(base + first, start);
    }
    for (uint32_t at = 0; at <= 10; at++) {
        uint32_t length = 0;

        while (at + length < 10 && length < want && pattern >> (at + length) & 1) {
            length++;
        }
        CHECK_EQ(length, freemap_stretch(map, count, base + at, want));
    }
}

/* Every pattern of ten chunks, laid across a word's edge and at both ends of the map. */
static void
every_pattern_as_a_plain_search_would(void)
{
    static const uint32_t offsets[] = {0, 59, 118};

    for (uint32_t o = 0; o < 3; o++) {
        for (uint32_t pattern = 0; pattern < 1024; pattern++) {
            lay(offsets[o], pattern);
            for (uint32_t want = 1; want <= 11; want++) {
                check_pattern(offsets[o], pattern, want);
            }
            for (uint32_t bit = 0; bit < 10; bit++) { /* a search changes nothing */
                CHECK_EQ(pattern >> bit & 1, freemap_has(map, offsets[o] + bit));
            }
        }
    }
}

static void
setting_and_clearing_touch_no_other_bit(void)
{
    for (uint32_t start = 0; start < 130; start++) {
        for (uint32_t n = 0; start + n < 140; n += 1 + n / 3) {
            memset(map, 0, sizeof map);
            freemap_set(map, start, n);
            check_only_free(start, n);
            memset(map, 0xff, sizeof map);
            freemap_clear(map, start, n);
            for (uint32_t chunk = 0; chunk < WORDS * 64; chunk++) {
                CHECK_EQ(chunk - start >= n, freemap_has(map, chunk));
            }
        }
    }
}

static const struct test tests[] = {
    TEST(whole_map_is_found_at_once),
    TEST(one_more_than_there_are_is_not_found),
    TEST(last_chunk_alone),
    TEST(bits_past_the_end_are_never_found),
    TEST(every_pattern_as_a_plain_search_would),
    TEST(setting_and_clearing_touch_no_other_bit),
};
RUN_TESTS(tests)
