/* The free map: one bit a chunk, 1 = free.  Claims are all or nothing, by whole words.

   Knows no memory and no owner: every change is an atomic operation on a word, so any number of
   processes may claim from and put back to one map.  That a segment has an owner keeps senders
   out of each other's cache lines; it is not needed for safety.

   Invariants: L1 of layout.h.  A claim never takes a bit at or past `count`, whatever the words
   hold; putting back a bit that is free already is a bug of the caller.

   Memory order: put_back releases, claims acquire: who claims a chunk sees all that its last
   holder did to it. */
#include "freemap.h"

#include <assert.h>

static uint64_t
mask_of(uint32_t first_bit, uint32_t bits)
{
    uint64_t ones = bits == 64 ? ~UINT64_C(0) : (UINT64_C(1) << bits) - 1;

    return ones << first_bit;
}

static uint32_t
bits_in_word(uint32_t start, uint32_t n)
{
    uint32_t room = 64 - start % 64;

    return n < room ? n : room;
}

void
freemap_put_back(mapword *map, uint32_t start, uint32_t n)
{
    while (n > 0) {
        uint32_t bits = bits_in_word(start, n);
        uint64_t mask = mask_of(start % 64, bits);
        uint64_t old = atomic_fetch_or_explicit(&map[start / 64], mask, memory_order_release);

        assert((old & mask) == 0 && "L1: put back twice");
        (void) old;
        start += bits;
        n -= bits;
    }
}

/* Take [start, start + n) or nothing. */
static bool
try_take(mapword *map, uint32_t start, uint32_t n)
{
    uint32_t at = start, left = n;

    while (left > 0) {
        uint32_t bits = bits_in_word(at, left);
        uint64_t mask = mask_of(at % 64, bits);
        uint64_t old = atomic_fetch_and_explicit(&map[at / 64], ~mask, memory_order_acquire);

        if ((old & mask) != mask) {
            atomic_fetch_or_explicit(&map[at / 64], old & mask, memory_order_release);
            freemap_put_back(map, start, at - start);
            return false;
        }
        at += bits;
        left -= bits;
    }
    return true;
}

/* The length of the free stretch at `start`, as seen now, looking no further than `want`. */
static uint32_t
free_stretch(mapword *map, uint32_t count, uint32_t start, uint32_t want)
{
    uint32_t at = start, limit = want < count - start ? start + want : count;

    while (at < limit) {
        uint64_t word = atomic_load_explicit(&map[at / 64], memory_order_relaxed) >> (at % 64);
        uint32_t ones = ~word == 0 ? 64 : (uint32_t) __builtin_ctzll(~word);
        uint32_t room = 64 - at % 64;

        if (ones < room) {
            at += ones;
            break;
        }
        at += room;
    }
    return (at < limit ? at : limit) - start;
}

/* First fit from the low end: the chunks lent last are low and hot. */
bool
freemap_try_claim(mapword *map, uint32_t count, uint32_t want, uint32_t *start)
{
    uint32_t at = 0;

    while (at < count && want <= count - at) {
        uint64_t word = atomic_load_explicit(&map[at / 64], memory_order_relaxed) >> (at % 64);

        if (word == 0) {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at += (uint32_t) __builtin_ctzll(word);
        if (at >= count || want > count - at) {
            return false;
        }
        uint32_t length = free_stretch(map, count, at, want);

        if (length == want && try_take(map, at, want)) {
            *start = at;
            return true;
        }
        at += length + 1;
    }
    return false;
}

/* Take up to `want` chunks at exactly `start`; how many. */
uint32_t
freemap_claim_from(mapword *map, uint32_t count, uint32_t start, uint32_t want)
{
    while (start < count) {
        uint32_t length = free_stretch(map, count, start, want);

        if (length == 0 || try_take(map, start, length)) {
            return length;
        }
    }
    return 0;
}

bool
freemap_is_free(mapword *map, uint32_t chunk)
{
    return atomic_load_explicit(&map[chunk / 64], memory_order_acquire) >> (chunk % 64) & 1;
}
