/* What lies in shared memory, byte by byte.  Both sides include this and nothing else describes it.
   Any change here bumps MPSHM_ABI.

   The file:     | arena header | segment 0 | segment 1 | ...    each `stride` bytes apart, sparse
   A segment:    | free map | run table | (to alignment) data chunks |

   A hole reads as zero, and zero means "lent": a segment whose maker died before it set the free
   bits lends nothing, and needs no repair.

   Invariants (asserts cite the number):
   L1  A free bit is 1.  The bit past the last chunk, the guard, is 0 for ever.
   L2  The run table's word of a run's first chunk holds its state, its length and its tag; the
       words of its other chunks are in state FREE.
   L3  A segment's geometry never changes once its directory word is not 0; only the owner does.
   L4  Chunks of a run that is not FREE have their free bits 0.

   A run:   FREE -> LOANED -> IN_FLIGHT -> LEASED -> FREE       (abandon: LOANED -> FREE)

   Memory order: seal stores IN_FLIGHT with release, paired with the lease's acquiring
   compare-and-swap.  Release sets free bits with release, paired with the acquiring fetch_and of a
   claim. */
#ifndef MPSHM_LAYOUT_H
#define MPSHM_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_MAGIC UINT64_C(0x31306d687370006d)
/* 512 segments of 64 MiB and of made-to-size ones: 32 GiB of leases and more, in a 4 KiB page. */
#define SEGMENT_LIMIT 496
/* A transparent huge page: MADV_COLLAPSE needs data aligned to it in file and memory alike. */
#define HUGE_BYTES (UINT64_C(2) << 20)
/* Alignment of a segment too small for huge pages: the largest page size Linux runs on. */
#define SMALL_ALIGN UINT64_C(65536)
/* A run's length has 20 bits in its word; segments stay well inside. */
#define CHUNK_LIMIT (UINT32_C(1) << 16)

struct arena_header {
    uint64_t magic;
    uint32_t abi;
    uint32_t segment_limit;
    uint64_t stride;
    uint64_t segment_bytes;
    uint64_t id;
    uint32_t chunk_shift;
    _Atomic uint32_t wanted; /* a sender waits for room: 1, and the futex it sleeps on */
    _Atomic uint64_t segment[SEGMENT_LIMIT];
};
_Static_assert(offsetof(struct arena_header, abi) == 8, "layout");
_Static_assert(offsetof(struct arena_header, segment_limit) == 12, "layout");
_Static_assert(offsetof(struct arena_header, stride) == 16, "layout");
_Static_assert(offsetof(struct arena_header, segment_bytes) == 24, "layout");
_Static_assert(offsetof(struct arena_header, id) == 32, "layout");
_Static_assert(offsetof(struct arena_header, chunk_shift) == 40, "layout");
_Static_assert(offsetof(struct arena_header, wanted) == 44, "layout");
_Static_assert(offsetof(struct arena_header, segment) == 48, "layout");
_Static_assert(sizeof(struct arena_header) <= 4096, "layout");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "shared words need lock-free atomics");

/* Directory word: owner's pid 32 | chunk shift 6 | chunk count 26.  Claimed by one CAS. */
#define DIR_WORD(owner, shift, count) \
    ((uint64_t) (uint32_t) (owner) << 32 | (uint64_t) (shift) << 26 | (uint64_t) (count))
#define DIR_OWNER(word) ((uint32_t) ((word) >> 32))
#define DIR_SHIFT(word) ((uint32_t) ((word) >> 26 & 0x3f))
#define DIR_COUNT(word) ((uint32_t) ((word) & 0x3ffffff))

/* Run word: tag 28 | chunks 20 | holders 14 | state 2.  A lease's CAS checks them all at once.
   In flight there is no holder yet, and those bits hold the slack: the bytes of the last chunk that
   are not the message's (in units that fit), so that a forged size is refused to the byte. */
enum run_state { RUN_FREE = 0, RUN_LOANED = 1, RUN_IN_FLIGHT = 2, RUN_LEASED = 3 };
#define RUN_WORD(tag, chunks, holders, state) \
    ((uint64_t) ((tag) & TAG_MASK) << 36 | (uint64_t) (chunks) << 16 | (uint64_t) (holders) << 2 \
     | (uint64_t) (state))
#define TAG_MASK UINT32_C(0x0fffffff)
#define HOLDER_LIMIT UINT32_C(0x3fff)
#define RUN_TAG(word) ((uint32_t) ((word) >> 36))
#define RUN_CHUNKS(word) ((uint32_t) ((word) >> 16 & 0xfffff))
#define RUN_HOLDERS(word) ((uint32_t) ((word) >> 2 & HOLDER_LIMIT))
#define RUN_STATE(word) ((enum run_state) ((word) & 3))

/* Chunks that `size` bytes need. */
static inline uint64_t
chunks_of(uint32_t chunk_shift, uint64_t size)
{
    return (size + (UINT64_C(1) << chunk_shift) - 1) >> chunk_shift;
}

static inline uint32_t
slack_of(uint32_t chunk_shift, uint64_t size)
{
    uint32_t unused = (uint32_t) (-size & ((UINT64_C(1) << chunk_shift) - 1));

    return unused >> (chunk_shift > 14 ? chunk_shift - 14 : 0);
}

/* Words of a free map for `count` chunks and the guard bit. */
static inline uint64_t
map_words(uint32_t count)
{
    return count / 64 + 1;
}

/* Where a segment's data begin, from its own beginning. */
static inline uint64_t
data_offset(uint64_t stride, uint32_t count)
{
    uint64_t align = stride >= 32 * HUGE_BYTES ? HUGE_BYTES : SMALL_ALIGN;
    uint64_t head = (map_words(count) + count) * sizeof(uint64_t);

    return (head + align - 1) / align * align;
}

#endif
