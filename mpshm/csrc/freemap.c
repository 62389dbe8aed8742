/* The free map: one bit for each chunk, 1 = free.

   Every change is one atomic operation on a word, so any number of processes may claim from one map
   and put back to it.  Segments have owners to keep senders out of each other's cache lines; safety
   does not need that.  Does not know what a chunk is: no memory, no run, no owner.

   Invariants: L1, M1, M2 (invariants.h).  M1 holds whatever the words say.

   A bit:   free (1) --claim, acquires--> taken (0) --put back, releases--> free (1)

   Memory order: a claim's fetch_and acquires what the fetch_or of freemap_put_back released, so a
   chunk's next holder sees all that its last one did to it. */
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

/* Free the `n` chunks from `start` on, which the caller has taken. */
void
freemap_put_back(mapword *map, uint32_t start, uint32_t n)
{
    while (n > 0) {
        uint32_t bits = bits_in_word(start, n);
        uint64_t mask = mask_of(start % 64, bits);
        uint64_t old = atomic_fetch_or_explicit(&map[start / 64], mask, memory_order_release);

        INVARIANT(M2, (old & mask) == 0);
        (void) old;
        start += bits;
        n -= bits;
    }
}

/* Take [start, start + n) or nothing.  M1 */
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

/* How many chunks from `start` on are free now, counting to `want` at most. */
static uint32_t
free_stretch(mapword *map, uint32_t count, uint32_t start, uint32_t want)
{
    INVARIANT(M1, start < count);
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

/* Take the lowest `want` chunks in a row that are free; false: there are none.  Low chunks are those
   lent last, so their memory is hot. */
bool
freemap_try_claim(mapword *map, uint32_t count, uint32_t want, uint32_t *start)
{
    uint32_t at = 0;

    INVARIANT(M1, want > 0);
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
            INVARIANT(M1, at + want <= count);
            *start = at;
            return true;
        }
        at += length + 1;
    }
    return false;
}

/* Take up to `want` chunks, the first of them `start`.  Gives how many, 0 if that one is not free. */
uint32_t
freemap_claim_from(mapword *map, uint32_t count, uint32_t start, uint32_t want)
{
    while (start < count) {
        uint32_t length = free_stretch(map, count, start, want);

        INVARIANT(M1, length <= want && length <= count - start);
        if (length == 0 || try_take(map, start, length)) {
            return length;
        }
    }
    return 0;
}

/* Acquires: a caller that sees a bit free sees what was done before it was put back. */
bool
freemap_is_free(mapword *map, uint32_t chunk)
{
    return atomic_load_explicit(&map[chunk / 64], memory_order_acquire) >> (chunk % 64) & 1;
}
