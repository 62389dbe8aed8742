/* Segments: making one in the arena's directory, its lock word and its maps.

   Knows the directory, and of a run word whether it is free.  Does not know how data are mapped (mapping.c),
   when a run word changes, nor any message.

   Invariants: L1 to L4, L6, S1, S2, S3 (invariants.h).  All is called under the process's lock (A4), but
   segment_fits.

   A directory word:   0 --try_make--> owned <--try_adopt, segment_vacate--> nobody's
   The lock word:      0 <--segment_try_lock, segment_unlock--> a name; a dead one's goes to whoever tries

   The run table is the truth.  The free map and `heads` are a cache of it that only the lock's holder
   touches; made anew when a holder died, when they were never made, and when `stale` says that they show
   too little.  A run that was freed is told by a bit in `freed`, and the next holder takes its chunks.
   Such a bit may come late, when its chunks are lent again: `heads` says whether a run still begins there,
   and its word whether it is free.

   Memory order: taking the lock acquires what its release released, so the maps need no order of their
   own.  Whoever frees a run changes its word, then releases a bit.  Bits, and `stale`, are taken by an
   acquiring exchange and never overwritten by a store: a bit that is gone was read, so its run's word is
   read free afterwards; any other bit is still there.  A store in its place would ask for a fence on both
   sides (tests/csrc/litmus). */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Words of `freed` that a claim looks at itself: two lines. */
#define FREED_NEAR 16u
/* Bytes of a segment of the reserve.  They cost nothing but address space, and little of that: receivers map none of
   it.  A longer message finds no room there, once the receivers keep all the rest. */
#define RESERVE_BYTES (UINT64_C(1) << 32)
/* Living owners that a process asks about before it makes a segment rather than look further for one that was
   left.  To ask about one costs 10 us among a thousand.  Once one owner in six is dead, three processes in four
   find such a segment. */
#define OWNERS_ASKED 8u

/* Whether a segment with `bytes` of data, in chunks of 1 << shift, fits in a stride.  S3 */
bool
segment_fits(uint64_t stride, uint64_t bytes, uint32_t shift)
{
    uint64_t count = chunks_of(shift, bytes);

    return count > 0 && count <= CHUNK_LIMIT
           && data_offset(stride, (uint32_t) count) + (count << shift) <= stride;
}

/* The bytes of a segment's head that are used, in whole pages. */
static uint64_t
head_bytes(uint32_t count)
{
    uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);
    uint64_t bytes = sizeof(struct segment_head) + 4 * map_words(count) * sizeof(uint64_t)
                     + count * sizeof(struct run);

    return (bytes + page - 1) / page * page;
}

/* Map the head of a segment of that geometry.  The caller makes it the arena's. */
static int
map_head(mpshm_arena *arena, uint32_t id, uint32_t shift, uint32_t count, struct segment **out)
{
    INVARIANT(A4, process_is_locked());
    INVARIANT(L3, shift >= 4 && shift <= 40 && count > 0 && count <= CHUNK_LIMIT);
    INVARIANT(S3, data_offset(arena->stride, count) + ((uint64_t) count << shift) <= arena->stride);
    struct segment *seg = calloc(1, sizeof *seg);

    if (seg == NULL) {
        return -ENOMEM;
    }
    seg->arena = arena;
    seg->id = id;
    seg->shift = shift;
    seg->count = count;
    seg->data_at = data_offset(arena->stride, count);
    void *head = mapping_of_file(arena, NULL, segment_file_offset(seg), head_bytes(count), MAP_SHARED, arena->header,
                                 0);
    if (head == MAP_FAILED) {
        int error = errno;

        free(seg);
        return -error;
    }
    seg->head = head;
    seg->map = (uint64_t *) (seg->head + 1);
    seg->heads = seg->map + map_words(count);
    seg->freed = (_Atomic uint64_t *) (seg->heads + map_words(count));
    seg->touched = (uint64_t *) (seg->freed + map_words(count));
    seg->runs = (struct run *) (seg->touched + map_words(count));
    *out = seg;
    return 0;
}

/* Segment `id`, its head mapped.  A directory word that is 0 or describes no segment that fits gives
   MPSHM_E_SEGMENT or MPSHM_E_DIRECTORY: it may be forged. */
int
segment_map(mpshm_arena *arena, uint32_t id, struct segment **out)
{
    struct arena_header *header = arena->header;

    if (id >= arena->segment_limit) {
        return MPSHM_E_SEGMENT;
    }
    if (arena->segments[id] == NULL) {
        uint64_t word = atomic_load(&header->segment[id]);
        uint32_t shift = DIR_SHIFT(word), count = DIR_COUNT(word);

        if (word == 0) {
            return MPSHM_E_SEGMENT;
        }
        if (shift < 4 || shift > 40 || count == 0 || count > CHUNK_LIMIT
            || data_offset(arena->stride, count) + ((uint64_t) count << shift) > arena->stride) {
            return MPSHM_E_DIRECTORY;
        }
        int error = map_head(arena, id, shift, count, &arena->segments[id]);

        if (error != 0) {
            return error;
        }
    }
    *out = arena->segments[id];
    INVARIANT(S1, (*out)->arena == arena && (*out)->id == id);
    return 0;
}

static void
unmap(struct segment *seg)
{
    while (seg->former != NULL) {
        mapping_end(seg->former);
    }
    if (seg->now != NULL) {
        mapping_unmap(seg->now);
    }
    munmap(seg->head, head_bytes(seg->count));
    free(seg->warm);
    free(seg);
}

/* The lock and the maps. */

/* Without the guard, for which `freed_any` has no bit. */
static uint32_t
words_of_freed(const struct segment *seg)
{
    return (seg->count + 63) / 64;
}

/* What hints a word holds; it holds none afterwards.  One that comes meanwhile stays. */
static uint64_t
take_hints(_Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed) == 0
               ? 0
               : atomic_exchange_explicit(word, 0, memory_order_acquire);
}

/* Make the free map and `heads` from the run table.  Killed in here, its lock names the dead, and the next
   holder begins anew. */
static void
make_maps(struct segment *seg)
{
    uint32_t words = words_of_freed(seg);

    (void) atomic_exchange_explicit(&seg->head->stale, 0, memory_order_acquire);
    for (uint32_t i = 0; i < words; i += 64) {
        (void) take_hints(&seg->head->freed_any[i / 64]);
    }
    for (uint32_t i = 0; i < words; i++) {
        (void) take_hints(&seg->freed[i]);
    }
    for (uint32_t i = 0; i < map_words(seg->count); i++) { /* and the guards */
        seg->map[i] = seg->heads[i] = 0;
    }
    uint32_t high = segment_high(seg), at = 0;

    while (at < high) {
        uint64_t word = atomic_load_explicit(&seg->runs[at].word, memory_order_acquire);

        if (RUN_STATE(word) == RUN_FREE) {
            freemap_set(seg->map, at++, 1);
        } else {
            freemap_set(seg->heads, at, 1);
            at += run_chunks_at(seg, at);
        }
    }
    freemap_set(seg->map, at, seg->count - at);
    seg->head->made = 1;
}

/* Take the chunks of runs that were freed into the free map, of one word of hints. */
static void
harvest_word(struct segment *seg, uint32_t k)
{
    for (uint64_t bits = take_hints(&seg->freed[k]); bits != 0; bits &= bits - 1) {
        uint32_t at = k * 64 + (uint32_t) __builtin_ctzll(bits);

        if (at < seg->count && freemap_has(seg->heads, at)
            && RUN_STATE(atomic_load_explicit(&seg->runs[at].word, memory_order_acquire)) == RUN_FREE) {
            freemap_clear(seg->heads, at, 1);
            freemap_set(seg->map, at, run_chunks_at(seg, at));
        }
    }
}

/* The same of all words.  The first few, which are those of the runs lent most, are looked at one by one;
   `freed_any` says which of the others to look at.  L6 */
static void
harvest(struct segment *seg)
{
    uint32_t words = words_of_freed(seg), near = words < FREED_NEAR ? words : FREED_NEAR;

    for (uint32_t k = 0; k < near; k++) {
        harvest_word(seg, k);
    }
    for (uint32_t i = 0; i * 64 < words; i++) {
        for (uint64_t any = take_hints(&seg->head->freed_any[i]); any != 0; any &= any - 1) {
            uint32_t k = i * 64 + (uint32_t) __builtin_ctzll(any);

            if (k < words) {
                harvest_word(seg, k);
            }
        }
    }
}

bool
segment_try_lock(struct segment *seg)
{
    name me = seg->arena->me, who = 0;

    INVARIANT(E1, arena_is_locked(seg->arena) && me != 0);
    if (atomic_compare_exchange_strong(&seg->head->lock, &who, me)) {
        seg->blocked_by = 0;
        if (seg->head->made == 0) {
            make_maps(seg);
        }
        harvest(seg);
        return true;
    }
    atomic_store_explicit(&seg->head->refused, 1, memory_order_relaxed);
    /* A living holder is gone in a moment: ask only about one that was met before. */
    if (who != seg->blocked_by) {
        seg->blocked_by = who;
        return false;
    }
    if (arena_name_is_dead(seg->arena, who)
        && atomic_compare_exchange_strong(&seg->head->lock, &who, me)) {
        make_maps(seg);
        return true;
    }
    return false;
}

/* The maps show too little, and nothing was found: make them anew.  False: they are all there is. */
bool
segment_look_again(struct segment *seg)
{
    bool stale = atomic_load_explicit(&seg->head->stale, memory_order_relaxed) != 0;

    if (stale) {
        make_maps(seg);
    }
    return stale;
}

/* There is memory for those chunks: the file system could run full, and then a touch is SIGBUS. */
static bool
has_memory(struct segment *seg, uint32_t from, uint32_t to)
{
    uint64_t offset = (uint64_t) from << seg->shift, size = (uint64_t) (to - from) << seg->shift;

    if (freemap_stretch(seg->touched, seg->count, from, to - from) == to - from) {
        return true;
    }
    return arena_has_file(seg->arena)
               ? memfile_reserve(seg->arena->fd, segment_file_offset(seg) + seg->data_at + offset, size) == 0
               : seg->now != NULL && segment_populate(seg, offset, size);
}

/* Under the lock: chunks are about to be used.  False: there is no memory for them.  With them all that share a
   page get memory. */
bool
segment_touch(struct segment *seg, uint32_t at, uint32_t chunks)
{
    uint32_t page = page_chunks(seg), from = at / page * page, to = (at + chunks + page - 1) / page * page;

    to = to < seg->count ? to : seg->count;
    if (seg->arena->bounded && !has_memory(seg, from, to)) {
        return false;
    }
    freemap_set(seg->touched, from, to - from);
    if (at + chunks > seg->head->lent_to) {
        seg->head->lent_to = at + chunks;
    }
    return true;
}

void
segment_unlock(struct segment *seg)
{
    atomic_store_explicit(&seg->head->lock, 0, memory_order_release);
}

/* The run at `at` was freed: its chunks are there for the next holder of the lock. */
void
segment_was_freed(struct segment *seg, uint32_t at)
{
    atomic_fetch_or_explicit(&seg->freed[at / 64], UINT64_C(1) << (at % 64), memory_order_release);
    if (at / 64 >= FREED_NEAR) {
        atomic_fetch_or_explicit(&seg->head->freed_any[at / 64 / 64], UINT64_C(1) << (at / 64 % 64),
                                 memory_order_release);
    }
}

/* Making and adopting. */

/* Map the data for that claim, if it can do no more without: 0 or -ENOMEM. */
static int
map_data_for(struct segment *seg, enum claim claim)
{
    int error = segment_map_data(seg);

    return claim == CLAIM_IN_PLACE ? error : 0;
}

/* Make segment `id`, whose directory word is 0, for a run of `size` bytes.  All that can fail comes before the word
   is won, so that a word once set stays (L3), and a file system that is full gets no segment without memory for its
   run.  1: another process won it. */
static int
try_make(mpshm_arena *arena, uint32_t id, uint32_t shift, uint32_t count, uint64_t size, enum claim claim)
{
    INVARIANT(S1, arena->segments[id] == NULL);
    struct segment *seg;
    int error = map_head(arena, id, shift, count, &seg);

    if (error != 0) {
        return error;
    }
    if (arena->bounded) {
        error = !arena_has_file(arena)
                    ? -EBADF
                    : memfile_reserve(arena->fd, segment_file_offset(seg), seg->data_at + size);
    }
    if (error == 0) {
        error = map_data_for(seg, claim);
    }
    if (error == 0) {
        uint64_t none = 0;

        error = !atomic_compare_exchange_strong(&arena->header->segment[id], &none,
                                                DIR_WORD(arena->me, shift, count));
    }
    if (error != 0) {
        unmap(seg);
        return error;
    }
    seg->mine = true;
    arena->segments[id] = seg;
    return 0;
}

/* Whether an owner has left its segment, or is dead.  asks: how many living ones to ask about; counted down. */
static bool
has_left(mpshm_arena *arena, name owner, uint32_t *asks)
{
    if (owner == 0 || owner == arena->me) {
        return true;
    }
    if (*asks == 0) {
        return false;
    }
    bool dead = arena_name_is_dead(arena, owner);

    *asks -= !dead;
    return dead;
}

/* Take over segment `id` from an owner that left or died.  1: its owner lives, or it is too small. */
static int
try_adopt(mpshm_arena *arena, uint32_t id, uint64_t word, uint64_t size, enum claim claim, uint32_t *asks)
{
    struct segment *seg = arena->segments[id];

    if ((seg != NULL && seg->mine) || (uint64_t) DIR_COUNT(word) << DIR_SHIFT(word) < size
        || !has_left(arena, DIR_OWNER(word), asks)) {
        return 1;
    }
    int error = segment_map(arena, id, &seg);

    if (error == 0) {
        error = map_data_for(seg, claim);
    }
    if (error == 0) {
        error = !atomic_compare_exchange_strong(
            &arena->header->segment[id], &word,
            DIR_WORD(arena->me, DIR_SHIFT(word), DIR_COUNT(word)));
        seg->mine = error == 0;
        INVARIANT(L3, seg->shift == DIR_SHIFT(word) && seg->count == DIR_COUNT(word));
    }
    return error;
}

/* How many segments there are.  It never goes down. */
uint32_t
segment_count(const mpshm_arena *arena)
{
    uint32_t used = 0;

    while (used < arena->segment_limit && atomic_load(&arena->header->segment[used]) != 0) {
        used++;
    }
    return used;
}

/* Whether the directory is so full that a further usual segment had better not be made: a process without
   one of its own can claim in others'.  The rest is for messages that need a segment to size. */
static bool
is_crowded(const mpshm_arena *arena)
{
    return segment_count(arena) >= arena->segment_limit / 4 * 3;
}

/* Whether the directory no longer says what it did when the segment was mapped here: it never changes.  L3 */
static bool
is_forged(const struct segment *seg, uint64_t word)
{
    return seg != NULL && (DIR_SHIFT(word) != seg->shift || DIR_COUNT(word) != seg->count);
}

static bool
is_coprime(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t rest = a % b;

        a = b;
        b = rest;
    }
    return a == 1;
}

/* The shift of the chunks, from `shift` on, of a segment with so many bytes; 0: no segment can have them. */
static uint32_t
shift_for(const mpshm_arena *arena, uint32_t shift, uint64_t bytes)
{
    if (bytes > arena->stride) {
        return 0;
    }
    while (chunks_of(shift, bytes) > CHUNK_LIMIT) {
        shift++;
    }
    return segment_fits(arena->stride, bytes, shift) ? shift : 0;
}

/* A segment of this process's own with room for `size` bytes: one whose owner left, or a new one.
   last: nothing is to be had in other segments.  -ENOSPC: the arena is at its limit; -EFBIG: no segment will ever be
   so large; -ENOMEM: it cannot be mapped. */
int
segment_claim_new(mpshm_arena *arena, uint64_t size, enum claim claim, bool last, struct segment **out)
{
    struct arena_header *header = arena->header;
    bool small = claim == CLAIM_SMALL;
    uint64_t usual = small ? SMALL_SEGMENT_BYTES : arena->segment_bytes;
    uint32_t shift = small ? SMALL_SHIFT : arena->chunk_shift;

    while (small && usual > size && !segment_fits(arena->stride, usual, shift)) {
        usual /= 2;
    }
    uint64_t bytes = size > usual ? size : usual;

    shift = shift_for(arena, shift, bytes);
    if (shift == 0) {
        return -EFBIG; /* for ever */
    }
    uint32_t count = (uint32_t) chunks_of(shift, bytes);
    bool may_make = last || size > usual || !is_crowded(arena);
    uint32_t asks = last || arena->bounded ? SEGMENT_LIMIT : OWNERS_ASKED;
    uint32_t limit = reserve_first(arena), count_now = segment_count(arena), first = 0, step = 1;
    uint32_t used = count_now < limit ? count_now : limit;

    if (used > asks) { /* look here and there: those left by processes that came and went lie side by side */
        uint32_t any = (uint32_t) now_ns();

        first = any % used;
        step = 1 + any / used % (used - 1);
        while (!is_coprime(step, used)) { /* or it would look at some only */
            step++;
        }
    }
    for (uint32_t i = 0; i < limit; i++) {
        uint32_t id = i < used ? (first + i * step) % used : i;
        uint64_t word = atomic_load(&header->segment[id]);
        int error = 1;

        if (is_forged(arena->segments[id], word)) {
            continue; /* other segments have room */
        }
        if (word == 0) {
            error = may_make ? try_make(arena, id, shift, count, size, claim) : -ENOSPC;
        } else if ((DIR_SHIFT(word) < arena->chunk_shift) == small) {
            error = try_adopt(arena, id, word, size, claim, &asks);
            error = error == MPSHM_E_SEGMENT || error == MPSHM_E_DIRECTORY ? 1 : error; /* forged since */
        }
        if (error == 0) {
            if (word == 0 && bytes > arena->segment_bytes) { /* the smaller ones may all be free */
                trim_soon(arena, KEEP_LARGEST);
            }
            *out = arena->segments[id];
            INVARIANT(S2, (*out)->mine && ((*out)->now != NULL || claim != CLAIM_IN_PLACE));
            INVARIANT(S3, (uint64_t) (*out)->count << (*out)->shift >= size);
        }
        if (error <= 0) {
            return error;
        }
    }
    return -ENOSPC;
}

/* Bytes of a segment of the reserve that is to hold `size`: RESERVE_BYTES, or as many as there is room for. */
static uint64_t
reserve_bytes(const mpshm_arena *arena, uint64_t size)
{
    uint64_t most = RESERVE_BYTES < arena->stride ? RESERVE_BYTES : arena->stride;
    uint32_t shift = arena->chunk_shift;

    while (chunks_of(shift, most) > CHUNK_LIMIT) {
        shift++;
    }
    uint64_t head = data_offset(arena->stride, (uint32_t) chunks_of(shift, most));

    if (head < arena->stride && most > arena->stride - head) {
        most = (arena->stride - head) >> shift << shift;
    }
    return size > most ? size : most;
}

/* A segment more of the reserve, for a run of `size` bytes: large, so that most messages find room in it.  Errors as
   above. */
int
segment_make_reserve(mpshm_arena *arena, uint64_t size, struct segment **out)
{
    uint64_t bytes = reserve_bytes(arena, size);
    uint32_t shift = shift_for(arena, arena->chunk_shift, bytes);

    if (shift == 0) {
        bytes = size;
        shift = shift_for(arena, arena->chunk_shift, bytes);
    }
    if (shift == 0) {
        return -EFBIG;
    }
    for (uint32_t id = reserve_first(arena); id < arena->segment_limit; id++) {
        if (atomic_load(&arena->header->segment[id]) == 0 && arena->segments[id] == NULL) {
            int error = try_make(arena, id, shift, (uint32_t) chunks_of(shift, bytes), size, CLAIM_ANY);

            if (error <= 0) {
                *out = arena->segments[id];
                return error;
            }
        }
    }
    return -ENOSPC;
}

/* Leave a segment to the process that adopts it next. */
void
segment_vacate(struct segment *seg)
{
    _Atomic uint64_t *word = &seg->arena->header->segment[seg->id];
    uint64_t now = DIR_WORD(seg->arena->me, seg->shift, seg->count);

    INVARIANT(A4, process_is_locked());

    if (seg->mine) {
        seg->mine = false;
        atomic_compare_exchange_strong(word, &now, DIR_WORD(0, seg->shift, seg->count));
    }
}

void
segment_unmap(struct segment *seg)
{
    INVARIANT(A4, process_is_locked());
    INVARIANT(S1, seg->arena->segments[seg->id] == seg);
    seg->arena->segments[seg->id] = NULL;
    unmap(seg);
}

/* * -> FREE, if the word is still that.  False: it has changed, so another did something. */
bool
run_free(struct segment *seg, uint32_t at, uint64_t word)
{
    if (!atomic_compare_exchange_strong(&seg->runs[at].word, &word, RUN_WORD(RUN_TAG(word), 0, RUN_FREE))) {
        return false;
    }
    segment_was_freed(seg, at);
    return true;
}
