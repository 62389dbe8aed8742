/* Mappings: a segment's data in this process's memory, shared at first, private after a fork.

   Knows memory mappings and which pages are on loan.  Does not know who is forked, nor what a view is to Python.

   Invariants: S1, S3, V1, V3 (invariants.h).  All is called under the process's lock (A4).

   A mapping:   now, shared --segment_go_private--> former, private --its last view and loan end--> unmapped

   Memory order: none of its own.  The kernel replaces a mapping in one step for all threads. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; EINVAL before */
#endif

/* Under RLIMIT_AS the data mapped here take this part of it at most: the rest is the program's.  Each thread takes 8
   MiB of it for its stack and 64 for its heap, and a queue's data as much as that. */
#define ADDRESS_PART 4

/* Bytes of address space that the data of all segments take here.  A fork's child has inherited the mappings. */
static uint64_t mapped_bytes;

/* Map bytes of the memory file: at `at`, in the place of what is there, or anywhere.  A process that has
   lost the file's descriptor finds them through a mapping that begins before them, at `known_at` of the
   file.  MAP_FAILED and errno: they cannot be had; never what another file holds. */
void *
mapping_of_file(const mpshm_arena *arena, void *at, uint64_t offset, uint64_t size, int sharing, void *known,
         uint64_t known_at)
{
    if (arena_has_file(arena)) {
        return mmap(at, size, PROT_READ | PROT_WRITE, sharing | (at != NULL ? MAP_FIXED : 0), arena->fd,
                    (off_t) offset);
    }
#ifdef MREMAP_FIXED
    if ((sharing & MAP_PRIVATE) == 0) {
        uint64_t skip = offset - known_at;
        char *whole = mremap(known, 0, skip + size, MREMAP_MAYMOVE);

        if (whole == MAP_FAILED) {
            return MAP_FAILED;
        }
        munmap(whole, skip);
        return at == NULL ? whole + skip
                          : mremap(whole + skip, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at);
    }
#endif
    errno = EBADF;
    return MAP_FAILED;
}

/* Map the data aligned so that huge pages can be had: MAP_FAILED and errno, if it cannot be. */
static char *
map_data(struct segment *seg)
{
    uint64_t size = data_bytes(seg);
    uint64_t slack = size >= HUGE_BYTES ? HUGE_BYTES : 0;
    char *room = mmap(NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (room == MAP_FAILED) {
        return MAP_FAILED;
    }
    uint64_t skip = slack ? (HUGE_BYTES - (uintptr_t) room % HUGE_BYTES) % HUGE_BYTES : 0;
    char *data = mapping_of_file(seg->arena, room + skip, segment_file_offset(seg) + seg->data_at, size,
                          MAP_SHARED, seg->head, segment_file_offset(seg));
    if (data == MAP_FAILED) {
        int error = errno;

        munmap(room, size + slack);
        errno = error;
        return MAP_FAILED;
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
    return data;
}

/* Whether the address space has room for a segment's data, and for the program besides.  Those of the reserve are
   large. */
static bool
may_map(const struct segment *seg)
{
    struct rlimit limit;

    if (mapping_is_refused()) {
        return false;
    }
    return getrlimit(RLIMIT_AS, &limit) == -1 || limit.rlim_cur == RLIM_INFINITY
           || (seg->id < reserve_first(seg->arena)
               && mapped_bytes + data_bytes(seg) <= limit.rlim_cur / ADDRESS_PART);
}

/* Map the data if the segment has no shared mapping of them: 0; or -ENOMEM, and there are windows (window.c).  S1 */
int
segment_map_data(struct segment *seg)
{
    if (seg->now != NULL) {
        return 0;
    }
    if (!may_map(seg)) {
        return -ENOMEM;
    }
    struct mapping *mapping = calloc(1, sizeof *mapping);

    if (seg->warm == NULL) {
        seg->warm = calloc(data_bytes(seg) / HUGE_BYTES + 1, sizeof *seg->warm);
    }
    if (mapping == NULL || seg->warm == NULL) {
        free(mapping);
        return -ENOMEM;
    }
    mapping->seg = seg;
    mapping->data = map_data(seg);
    if (mapping->data == MAP_FAILED) {
        int error = errno;

        free(mapping);
        return -error;
    }
    seg->now = mapping;
    mapped_bytes += data_bytes(seg);
    return 0;
}

/* Nobody uses it any more.  It is in no list. */
void
mapping_unmap(struct mapping *mapping)
{
    uint64_t size = data_bytes(mapping->seg);

    munmap(mapping->data, size);
    mapped_bytes -= size < mapped_bytes ? size : mapped_bytes;
    free(mapping);
}

/* A fork has made the mapping private; it lives as long as a view or a loan in it. */
void
mapping_end(struct mapping *mapping)
{
    for (struct mapping **link = &mapping->seg->former; *link != NULL; link = &(*link)->next) {
        if (*link == mapping) {
            *link = mapping->next;
            break;
        }
    }
    mapping_unmap(mapping);
}

static void
end_if_unused(struct mapping *mapping)
{
    if (mapping->is_private && mapping->views == 0 && mapping->loans == 0) {
        mapping_end(mapping);
    }
}

void
mapping_drop_view(struct mapping *mapping)
{
    INVARIANT(A4, process_is_locked());
    INVARIANT(V1, mapping->views > 0);
    mapping->views--;
    end_if_unused(mapping);
}

/* The mapping with that address in it, or NULL. */
static struct mapping *
mapping_of(struct segment *seg, const char *data)
{
    struct mapping *mapping = seg->now != NULL ? seg->now : seg->former;

    while (mapping != NULL && (data < mapping->data || data >= mapping->data + data_bytes(seg))) {
        mapping = mapping == seg->now ? seg->former : mapping->next;
    }
    return mapping;
}

/* A run at that address is on loan to this process, or no longer. */
void
mapping_add_loan(struct segment *seg, const char *data)
{
    struct mapping *mapping = mapping_of(seg, data);

    INVARIANT(A4, process_is_locked());
    if (mapping != NULL) {
        mapping->loans++;
    }
}

void
mapping_drop_loan(struct segment *seg, const char *data)
{
    struct mapping *mapping = mapping_of(seg, data);

    INVARIANT(A4, process_is_locked());
    if (mapping != NULL && mapping->loans > 0) { /* a fork's child begins with none */
        mapping->loans--;
        end_if_unused(mapping);
    }
}

/* Map bytes [from, to) of the segment's data private, over the mapping that shows them: what is written to
   them from now on, this process alone sees.  0 or -errno. */
static int
make_private(struct mapping *mapping, uint64_t from, uint64_t to)
{
    struct segment *seg = mapping->seg;
    void *at = mapping_of_file(seg->arena, mapping->data + from,
                        segment_file_offset(seg) + seg->data_at + from, to - from, MAP_PRIVATE, NULL, 0);

    return at == MAP_FAILED ? -errno : 0;
}

/* The next run from *at on that this process has claimed, and whose frame may not be out: its pages, as bytes of
   the data, and *at behind it.  False: there is none. */
static bool
next_loan(struct segment *seg, uint32_t *at, uint64_t *from, uint64_t *to)
{
    uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);

    for (uint32_t high = segment_high(seg); *at < high;) {
        uint64_t word = atomic_load(&seg->runs[*at].word);
        uint32_t start = *at, chunks = RUN_STATE(word) == RUN_FREE ? 1 : run_chunks_at(seg, start);

        *at += chunks;
        if ((RUN_STATE(word) == RUN_LOANED || RUN_STATE(word) == RUN_FLIGHT)
            && RUN_HOLDER(word) == seg->arena->me) {
            *from = ((uint64_t) start << seg->shift) / page * page;
            *to = ((((uint64_t) start + chunks) << seg->shift) + page - 1) / page * page;
            *to = *to < data_bytes(seg) ? *to : data_bytes(seg);
            return true;
        }
    }
    return false;
}

/* Before a fork: make the shared mapping private, but for runs on loan to this process, which are yet to
   be seen by others; and give the segment another when it needs one.  A loan's pages are never touched,
   for another thread may be writing to them now; where chunks are smaller than a page, a view that shares
   one with a loan stays as it is.  V3 */
int
segment_go_private(struct segment *seg)
{
    struct mapping *mapping = seg->now;
    uint64_t done = 0, from, to;
    uint32_t at = 0;
    int error = 0;

    while (mapping->loans > 0 && error == 0 && next_loan(seg, &at, &from, &to)) {
        error = from > done ? make_private(mapping, done, from) : 0;
        done = to;
    }
    if (error == 0 && done < data_bytes(seg)) {
        error = make_private(mapping, done, data_bytes(seg));
    }
    segment_retire(seg); /* after an error as well: the caller copies the views, and nobody uses it for more */
    return error;
}

/* The segment gets another shared mapping when it needs one. */
void
segment_retire(struct segment *seg)
{
    struct mapping *mapping = seg->now;

    mapping->is_private = true;
    mapping->next = seg->former;
    seg->former = mapping;
    seg->now = NULL;
}

/* In a fork's child: it does not write to what its parent has on loan.  All of the mapping becomes private but
   the pages of chunks in `viewed`, which are so already.  The run table cannot say what was on loan: the parent
   goes on, and so do those to whom it sends.  Where the file cannot be mapped, there are zeros; the pages stay
   mapped, for who knows what points to them. */
void
mapping_hide_loans(struct mapping *mapping, const uint64_t *viewed)
{
    struct segment *seg = mapping->seg;
    uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);

    for (uint32_t at = 0, end; at < seg->count; at = end + 1) {
        for (end = at; end < seg->count && !freemap_has(viewed, end); end++) {
        }
        uint64_t from = (((uint64_t) at << seg->shift) + page - 1) / page * page;
        uint64_t to = end < seg->count ? ((uint64_t) end << seg->shift) / page * page : data_bytes(seg);

        if (from < to && make_private(mapping, from, to) != 0) {
            (void) mmap(mapping->data + from, to - from, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        }
    }
    mapping->loans = 1;
}

#ifdef __linux__
/* What `warm` says of a huge page: how often memory of the segment had been given back, and in which second. */
static uint16_t
warm_stamp(const struct segment *seg, int64_t ns)
{
    return (uint16_t) ((uint16_t) (ns >> 30) << 8
                       | (1 + atomic_load_explicit(&seg->head->punched, memory_order_relaxed) % UINT8_MAX));
}

/* Whether a huge page that this process has made resident has to be made so again: it is gone.  Once a second, for
   that takes milliseconds on a busy machine, and somebody may give memory back all the time. */
static bool
has_gone(const struct segment *seg, char *data, uint64_t page, uint16_t stamp)
{
    unsigned char resident = 0;
    uint16_t was = seg->warm[page];

    return was >> 8 != stamp >> 8
           && mincore(data + page * HUGE_BYTES, (size_t) sysconf(_SC_PAGESIZE), &resident) == 0
           && (resident & 1) == 0;
}
#endif

/* Make the huge pages resident that [offset, offset + size) of the data, mapped at `data`, covers whole.  Each is
   tried once, and again when its memory has been given back; after an error its pages come one by one, as they are
   touched. */
void
segment_warm(struct segment *seg, char *data, uint64_t offset, uint64_t size)
{
    INVARIANT(S3, offset + size <= (uint64_t) seg->count << seg->shift);
#ifdef __linux__
    uint64_t first = (offset + HUGE_BYTES - 1) / HUGE_BYTES, end = (offset + size) / HUGE_BYTES;
    uint16_t stamp = warm_stamp(seg, now_ns());

    for (uint64_t page = first; page < end; page++) {
        uint16_t was = seg->warm[page];

        if ((was & UINT8_MAX) == (stamp & UINT8_MAX) || (was != 0 && !has_gone(seg, data, page, stamp))) {
            continue;
        }
        char *at = data + page * HUGE_BYTES;

        seg->warm[page] = stamp;
        /* EINVAL on an empty hole: hence one byte first. */
        *(volatile char *) at = *(volatile char *) at;
        (void) madvise(at, HUGE_BYTES, MADV_COLLAPSE);
    }
#else
    (void) seg;
    (void) data;
    (void) offset;
    (void) size;
#endif
}

/* Allocate [offset, offset + size) of the data through the mapping, in a process that has lost the file's
   descriptor.  False: there is no memory, or the system cannot say so. */
bool
segment_populate(struct segment *seg, uint64_t offset, uint64_t size)
{
    INVARIANT(S3, seg->now != NULL);
    return madvise(seg->now->data + offset, size, MADV_POPULATE_WRITE) == 0;
}
