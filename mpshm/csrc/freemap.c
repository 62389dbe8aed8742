/* Maps of chunks: one bit for each, in plain words that one process at a time touches.

   Does not know what a bit means: no memory, no run, no lock.

   Invariants: L1, M1 (invariants.h).  M1 holds whatever the words say. */
#include "freemap.h"

#include "invariants.h"

static uint64_t
mask_of(uint32_t first_bit, uint32_t bits)
{
    INVARIANT(M1, bits > 0 && first_bit + bits <= 64);
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
freemap_set(uint64_t *map, uint32_t start, uint32_t n)
{
    while (n > 0) {
        uint32_t bits = bits_in_word(start, n);

        map[start / 64] |= mask_of(start % 64, bits);
        start += bits;
        n -= bits;
    }
}

void
freemap_clear(uint64_t *map, uint32_t start, uint32_t n)
{
    while (n > 0) {
        uint32_t bits = bits_in_word(start, n);

        map[start / 64] &= ~mask_of(start % 64, bits);
        start += bits;
        n -= bits;
    }
}

bool
freemap_has(const uint64_t *map, uint32_t at)
{
    return (map[at / 64] >> (at % 64) & 1) != 0;
}

/* How many bits from `start` on are set, counting to `want` at most and never to `count`. */
uint32_t
freemap_stretch(const uint64_t *map, uint32_t count, uint32_t start, uint32_t want)
{
    INVARIANT(M1, start <= count);
    uint32_t at = start, limit = want < count - start ? start + want : count;

    while (at < limit) {
        uint64_t word = freemap_word(map, at / 64) >> (at % 64);
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

/* Find the lowest `want` bits in a row that are set; false: there are none.  Low chunks are those lent
   last, so their memory is hot. */
bool
freemap_find(const uint64_t *map, uint32_t count, uint32_t want, uint32_t *start)
{
    uint32_t at = 0;

    INVARIANT(M1, want > 0);
    while (at < count && want <= count - at) {
        uint64_t word = freemap_word(map, at / 64) >> (at % 64);

        if (word == 0) {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at += (uint32_t) __builtin_ctzll(word);
        if (at >= count || want > count - at) {
            return false;
        }
        uint32_t length = freemap_stretch(map, count, at, want);

        if (length == want) {
            INVARIANT(M1, at + want <= count);
            *start = at;
            return true;
        }
        at += length + 1;
    }
    return false;
}
