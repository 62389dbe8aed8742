/* Windows: a segment's data in a process that has no mapping of them, seen a piece at a time.

   A mapping of all the data needs as much address space as there are data.  A window needs as much as its piece, and
   only while it is open.  It is no read or write by the memory file's descriptor: that number may become another
   file's at any moment, and a write behind RLIMIT_FSIZE is a signal.  Measured, 60 MiB: out by windows 28 ms, by
   pread 80; in by windows 31, by pwrite 25 to 57; by a mapping that is there 15.

   Knows mappings of the memory file.  Does not know runs: the caller has one there, which keeps the arena.

   Invariants: S3 (invariants.h).  Needs no lock.

   Memory order: none of its own. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_POPULATE
#define MAP_POPULATE 0
#endif

/* A huge page, which the kernel may map as one.  Shorter ones cost more calls: 256 KiB a sixth more. */
#define WINDOW_BYTES HUGE_BYTES

bool
window_open(struct segment *seg, uint64_t offset, uint64_t size, struct window *window)
{
    mpshm_arena *arena = seg->arena;
    uint64_t skip = offset % (uint64_t) sysconf(_SC_PAGESIZE);
    bool by_number = arena_has_file(arena);

    INVARIANT(S3, size > 0 && offset + size <= (uint64_t) seg->count << seg->shift);
    window->length = skip + size;
    window->base = mapping_of_file(arena, NULL, segment_file_offset(seg) + seg->data_at + offset - skip,
                                   window->length, MAP_SHARED | MAP_POPULATE, seg->head, segment_file_offset(seg));
    if (window->base == MAP_FAILED) {
        return false;
    }
    if (by_number && !arena_has_file(arena)) { /* another file may have got the number before it was mapped */
        window_close(window);
        return false;
    }
    window->data = window->base + skip;
    return true;
}

void
window_close(struct window *window)
{
    munmap(window->base, window->length);
}

/* Open one at `offset`, of at most `size` bytes: of how many, or 0.  Where even a window is too large, a smaller one,
   down to a page. */
static uint64_t
open_some(struct segment *seg, uint64_t offset, uint64_t size, struct window *window)
{
    uint64_t some = WINDOW_BYTES - offset % WINDOW_BYTES, page = (uint64_t) sysconf(_SC_PAGESIZE);

    some = some < size ? some : size;
    while (!window_open(seg, offset, some, window)) {
        if (some <= page) {
            return 0;
        }
        some = some / 2 > page ? some / 2 : page;
    }
    return some;
}

int
window_read(struct segment *seg, uint64_t offset, char *to, uint64_t size)
{
    struct window window;

    while (size > 0) {
        uint64_t some = open_some(seg, offset, size, &window);

        if (some == 0) {
            return -ENOMEM;
        }
        memcpy(to, window.data, some);
        window_close(&window);
        to += some;
        offset += some;
        size -= some;
    }
    return 0;
}

int
window_write(struct segment *seg, uint64_t offset, const char *from, uint64_t size)
{
    struct window window;

    while (size > 0) {
        uint64_t some = open_some(seg, offset, size, &window);

        if (some == 0) {
            return -ENOMEM;
        }
        memcpy(window.data, from, some);
        window_close(&window);
        from += some;
        offset += some;
        size -= some;
    }
    return 0;
}
