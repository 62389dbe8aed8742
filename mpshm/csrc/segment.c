/* Segments: claiming one in the arena's directory, mapping it, making its pages resident.

   Knows the directory, memory mappings, and for segment_validate what a run word may say.  Does not
   know when a run word changes, nor any message.

   Invariants: L1 to L4, S1, S2, S3 (invariants.h).  All is called under the process's lock (A4), but
   segment_fits.

   A directory word:   0 --try_make--> owned <--try_adopt, segment_vacate--> vacant

   Memory order: the word is won by a sequentially consistent compare-and-swap.  The maker's free bits
   are put back after it with release, and claims acquire them (freemap.c); zero bits lend nothing, so
   a process that maps the segment earlier does no harm.  Receivers learn of a segment by a descriptor
   alone, and their lease acquires what seal released. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

uint64_t
segment_file_offset(const struct segment *seg)
{
    return (seg->id + UINT64_C(1)) * seg->arena->stride;
}

/* Whether a segment with `bytes` of data, in chunks of 1 << shift, fits in a stride.  S3 */
bool
segment_fits(uint64_t stride, uint64_t bytes, uint32_t shift)
{
    uint64_t count = chunks_of(shift, bytes);

    return count > 0 && count <= CHUNK_LIMIT
           && data_offset(stride, (uint32_t) count) + (count << shift) <= stride;
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
    seg->head_bytes = data_offset(arena->stride, count);
    void *head = mmap(NULL, seg->head_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd,
                      (off_t) segment_file_offset(seg));
    if (head == MAP_FAILED) {
        int error = errno;

        free(seg);
        return -error;
    }
    seg->map = head;
    seg->runs = (_Atomic uint64_t *) ((char *) head + map_words(count) * sizeof(uint64_t));
    *out = seg;
    return 0;
}

/* Segment `id`, its head mapped.  A directory word that is 0 or describes no segment that fits gives
   MPSHM_E_SEGMENT or MPSHM_E_GEOMETRY: it may be forged. */
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
            return MPSHM_E_GEOMETRY;
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

/* Map the data if they are not mapped yet, aligned so that huge pages can be had.  S1 */
int
segment_map_data(struct segment *seg)
{
    uint64_t size = (uint64_t) seg->count << seg->shift;
    uint64_t slack = size >= HUGE_BYTES ? HUGE_BYTES : 0;

    if (seg->data != NULL) {
        return 0;
    }
    seg->warm = calloc(1, size / HUGE_BYTES + 1);
    if (seg->warm == NULL) {
        return -ENOMEM;
    }
    char *room = mmap(NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    if (room == MAP_FAILED) {
        int error = errno;

        free(seg->warm);
        seg->warm = NULL;
        return -error;
    }
    uint64_t skip = slack ? (HUGE_BYTES - (uintptr_t) room % HUGE_BYTES) % HUGE_BYTES : 0;
    char *data = mmap(room + skip, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                      seg->arena->fd, (off_t) (segment_file_offset(seg) + seg->head_bytes));
    if (data == MAP_FAILED) {
        int error = errno;

        munmap(room, size + slack);
        free(seg->warm);
        seg->warm = NULL;
        return -error;
    }
    if (skip > 0) {
        munmap(room, skip);
    }
    if (slack > skip) {
        uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);
        char *end = data + (size + page - 1) / page * page;

        if (end < room + size + slack) {
            munmap(end, (size_t) (room + size + slack - end));
        }
    }
    INVARIANT(S1, size < HUGE_BYTES || (uintptr_t) data % HUGE_BYTES == 0);
    seg->data = data;
    return 0;
}

static bool
owner_is_gone(uint32_t owner)
{
    /* In another pid namespace this may be wrong.  No harm: two owners' claims are atomic as well. */
    return owner == 0 || (kill((pid_t) owner, 0) == -1 && errno == ESRCH);
}

static void
unmap(struct segment *seg)
{
    munmap(seg->map, seg->head_bytes);
    if (seg->data != NULL) {
        munmap(seg->data, (uint64_t) seg->count << seg->shift);
        free(seg->warm);
    }
    free(seg);
}

/* Make segment `id`, whose directory word is 0.  All that can fail comes before the word is won, so that
   a word once set stays (L3).  1: another process won it. */
static int
try_make(mpshm_arena *arena, uint32_t id, uint32_t shift, uint32_t count)
{
    INVARIANT(S1, arena->segments[id] == NULL);
    struct segment *seg;
    int error = map_head(arena, id, shift, count, &seg);

    if (error != 0) {
        return error;
    }
    if (arena->bounded) {
        error = memfile_reserve(arena->fd, segment_file_offset(seg),
                                seg->head_bytes + ((uint64_t) seg->count << seg->shift));
    }
    if (error == 0) {
        error = segment_map_data(seg);
    }
    if (error == 0) {
        uint64_t none = 0;

        error = !atomic_compare_exchange_strong(&arena->header->segment[id], &none,
                                                DIR_WORD(getpid(), shift, count));
    }
    if (error != 0) {
        unmap(seg);
        return error;
    }
    seg->mine = true;
    arena->segments[id] = seg;
    freemap_put_back(seg->map, 0, count); /* L1: the guard stays 0 */
    return 0;
}

/* Take over segment `id` from an owner that left or died.  1: its owner lives, or it is too small. */
static int
try_adopt(mpshm_arena *arena, uint32_t id, uint64_t word, uint64_t size)
{
    struct segment *seg = arena->segments[id];

    if ((seg != NULL && seg->mine) || (uint64_t) DIR_COUNT(word) << DIR_SHIFT(word) < size
        || (DIR_OWNER(word) != (uint32_t) getpid() && !owner_is_gone(DIR_OWNER(word)))) {
        return 1;
    }
    int error = segment_map(arena, id, &seg);

    if (error == 0) {
        error = segment_map_data(seg);
    }
    if (error == 0) {
        error = !atomic_compare_exchange_strong(
            &arena->header->segment[id], &word,
            DIR_WORD(getpid(), DIR_SHIFT(word), DIR_COUNT(word)));
        seg->mine = error == 0;
        INVARIANT(L3, seg->shift == DIR_SHIFT(word) && seg->count == DIR_COUNT(word));
    }
    return error;
}

/* A segment of this process's own with room for `size` bytes: one whose owner left, or a new one.
   small: one of small chunks, for runs that are copied out and never viewed.  -ENOSPC: the arena is at
   its limit; -EFBIG: no segment will ever be so large. */
int
segment_claim_new(mpshm_arena *arena, uint64_t size, bool small, struct segment **out)
{
    struct arena_header *header = arena->header;
    uint64_t usual = small ? SMALL_SEGMENT_BYTES : arena->segment_bytes;
    uint32_t shift = small ? SMALL_SHIFT : arena->chunk_shift;

    while (small && usual > size && !segment_fits(arena->stride, usual, shift)) {
        usual /= 2;
    }
    uint64_t bytes = size > usual ? size : usual;

    if (bytes > arena->stride) {
        return -EFBIG; /* for ever */
    }
    while (chunks_of(shift, bytes) > CHUNK_LIMIT) {
        shift++;
    }
    if (!segment_fits(arena->stride, bytes, shift)) {
        return -EFBIG;
    }
    uint32_t count = (uint32_t) chunks_of(shift, bytes);

    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        uint64_t word = atomic_load(&header->segment[id]);
        int error = word == 0 ? try_make(arena, id, shift, count)
                              : (DIR_SHIFT(word) < arena->chunk_shift) == small
                                    ? try_adopt(arena, id, word, size)
                                    : 1;

        if (error == 0) {
            *out = arena->segments[id];
            INVARIANT(S2, (*out)->mine && (*out)->data != NULL);
            INVARIANT(S3, (uint64_t) (*out)->count << (*out)->shift >= size);
        }
        if (error <= 0) {
            return error;
        }
    }
    return -ENOSPC;
}

/* Leave a segment to the process that adopts it next. */
void
segment_vacate(struct segment *seg)
{
    _Atomic uint64_t *word = &seg->arena->header->segment[seg->id];
    uint64_t now = DIR_WORD(getpid(), seg->shift, seg->count);

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

/* Make [offset, offset + size) of the data resident by huge pages, those that the range covers whole.
   Each is tried once; after an error its pages come one by one, as they are touched. */
void
segment_warm(struct segment *seg, uint64_t offset, uint64_t size)
{
    INVARIANT(S3, seg->data != NULL && offset + size <= (uint64_t) seg->count << seg->shift);
#ifdef __linux__
    uint64_t first = (offset + HUGE_BYTES - 1) / HUGE_BYTES, end = (offset + size) / HUGE_BYTES;

    if (first >= end) {
        return;
    }
    for (uint64_t page = first; page < end; page++) {
        if (!seg->warm[page]) {
            char *at = seg->data + page * HUGE_BYTES;

            seg->warm[page] = 1;
            /* EINVAL on an empty hole: hence one byte first. */
            *(volatile char *) at = *(volatile char *) at;
            (void) madvise(at, HUGE_BYTES, MADV_COLLAPSE);
        }
    }
#else
    (void) seg;
    (void) offset;
    (void) size;
#endif
}

/* What is wrong with the run that begins at chunk `at`: -line, or 0. */
static int
validate_run(struct segment *seg, uint32_t at, uint64_t word)
{
    uint32_t chunks = RUN_CHUNKS(word);

    if (chunks == 0 || chunks > seg->count - at) {
        return -__LINE__; /* L2: length */
    }
    if (RUN_STATE(word) == RUN_IN_FLIGHT && RUN_HOLDER(word) > slack_of(seg->shift, 1)) {
        return -__LINE__; /* L2: slack */
    }
    if (RUN_STATE(word) != RUN_IN_FLIGHT && RUN_HOLDER(word) > PEER_LIMIT
        && (RUN_STATE(word) == RUN_LOANED || RUN_HOLDER(word) <= HOLDER_SHARED)) {
        return -__LINE__; /* L2: holder */
    }
    for (uint32_t c = at; c < at + chunks; c++) {
        if (freemap_is_free(seg->map, c)) {
            return -__LINE__; /* L4 */
        }
        if (c > at && RUN_STATE(atomic_load(&seg->runs[c])) != RUN_FREE) {
            return -__LINE__; /* L2: overlap */
        }
    }
    return 0;
}

/* Walk the segment: 1 if its invariants hold, else -line of the one that does not.

   Safe while other processes work.  A run may end during the look at it, and its chunks be lent again:
   then its word has changed, by state or by tag, and the run is looked at again.  A chunk seen free was
   put back with release after its run's word was stored, so the second load finds the change. */
int
segment_validate(struct segment *seg)
{
    uint64_t directory = atomic_load(&seg->arena->header->segment[seg->id]);

    if (DIR_SHIFT(directory) != seg->shift || DIR_COUNT(directory) != seg->count) {
        return -__LINE__; /* L3 */
    }
    if (seg->map[seg->count / 64] >> (seg->count % 64) != 0) {
        return -__LINE__; /* L1: guard and padding */
    }
    for (uint32_t at = 0; at < seg->count;) {
        uint64_t word = atomic_load(&seg->runs[at]);
        int wrong = RUN_STATE(word) == RUN_FREE ? 0 : validate_run(seg, at, word);

        if (wrong == 0) {
            at += RUN_STATE(word) == RUN_FREE ? 1 : RUN_CHUNKS(word);
        } else if (atomic_load(&seg->runs[at]) == word) {
            return wrong;
        }
    }
    return 1;
}
