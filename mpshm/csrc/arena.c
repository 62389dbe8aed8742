/* Arenas: the header of a memory file, and an arena's life in this process.

   Knows the layout's outermost parts and the process's list of arenas.  Does not know what runs hold,
   nor any message.

   Invariants: A1, A2, A4, A5 (invariants.h).

   An arena here:   attached, 1 reference --keep / let_go--> ... --last reference--> unmapped

   Memory order: the header's geometry is written before the file has a second user, and never after. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"
#include "stream.h"

static int attach(int fd, const struct arena_header *header, bool fresh, bool bounded, mpshm_arena **out);

/* How many slots a ring has for a queue of so many places. */
static uint32_t
slots_for(uint32_t places)
{
    uint32_t slots = RING_SLOTS;

    while (slots < places && slots < RING_SLOTS_MOST) {
        slots *= 2;
    }
    return slots;
}

/* A queue whose bound one ring has slots for needs no others, and one that is bounded by bytes has but one.  What a
   bound has places for that rings have not waits with the senders' feeders. */
static uint32_t
rings_for(const mpshm_geometry *geometry, const mpshm_queue *queue)
{
    uint32_t limit = geometry->ring_limit > 0 && geometry->ring_limit < RINGS ? geometry->ring_limit : RINGS;
    bool is_long = queue->places == 0 || (queue->places > RING_SLOTS_MOST && queue->places <= rings_places(limit));

    return queue->grows && queue->bytes == 0 && is_long ? limit : 1;
}

/* Bytes before segment 0. */
static uint64_t
head_bytes_for(const struct arena_header *header)
{
    uint64_t align = header->stride >= 32 * HUGE_BYTES ? HUGE_BYTES : SMALL_ALIGN;
    uint64_t bytes = MAILBOXES_END;

    if (header->slots > 0) {
        bytes = pieces_offset(header->slots, header->overflowing != 0) + (uint64_t) header->streams * PIECE_BYTES;
    }
    bytes += rings_offset(header->rings, header->overflowing != 0);
    return (bytes + align - 1) / align * align;
}

/* The part of it that each process has mapped whole.  Further rings lie behind it, and not behind the segments: a
   process that has lost the file's number finds them through this mapping. */
static uint64_t
mapped_bytes_for(const struct arena_header *header)
{
    return header->head_bytes - rings_offset(header->rings, header->overflowing != 0);
}

static uint64_t
file_bytes(const struct arena_header *header)
{
    return header->head_bytes + header->segment_limit * header->stride;
}

/* How many rings a queue has in a file whose size is limited: with more, nothing is left for segments. */
#define RINGS_FEW 4

/* Make the plan smaller: first fewer segments, then fewer rings, then smaller segments, then one ring, then slots
   without overflow, then fewer pieces.  False: it is at its smallest. */
static bool
shrink(struct arena_header *header)
{
    if (header->segment_limit > 16) {
        header->segment_limit /= 2;
    } else if (header->rings > RINGS_FEW) {
        header->rings = header->places == 0 ? RINGS_FEW : 1;
        header->slots = slots_for(header->places);
    } else if (header->stride >= UINT64_C(2) << 20) {
        header->stride = header->stride / 2 / SMALL_ALIGN * SMALL_ALIGN;
    } else if (header->rings > 1) {
        header->rings = 1;
    } else if (header->overflowing) {
        header->overflowing = 0;
    } else if (header->streams > STREAMS_BOUNDED) {
        header->streams = STREAMS_BOUNDED;
    } else {
        return false;
    }
    header->head_bytes = head_bytes_for(header);
    return true;
}

/* Plan the header of an arena of that geometry, or of a smaller one where RLIMIT_FSIZE asks for it:
   growing a file past the limit raises SIGXFSZ. */
static int
plan_header(const mpshm_geometry *geometry, const mpshm_queue *queue, bool bounded,
            struct arena_header *header)
{
    struct rlimit limit;

    if (geometry->segment_limit == 0 || geometry->segment_limit > SEGMENT_LIMIT || geometry->chunk_shift < 4
        || geometry->chunk_shift > 30 || geometry->stride % SMALL_ALIGN != 0 || geometry->stride == 0) {
        return -EINVAL;
    }
    if (getrlimit(RLIMIT_FSIZE, &limit) == -1) {
        return -errno;
    }
    memset(header, 0, sizeof *header);
    header->magic = ARENA_MAGIC;
    header->abi = MPSHM_ABI;
    header->segment_limit = geometry->segment_limit;
    header->stride = geometry->stride;
    header->chunk_shift = geometry->chunk_shift;
    header->segment_bytes = geometry->segment_bytes;
    header->id = memfile_fresh_id();
    if (queue != NULL) {
        header->slot_bytes = MPSHM_SLOT_BYTES;
        header->rings = rings_for(geometry, queue);
        header->slots = header->rings > 1 ? RING_SLOTS : slots_for(queue->places);
        header->overflowing = !bounded;
        header->streams = bounded ? STREAMS_BOUNDED : STREAMS;
        header->places = queue->places;
        header->bytes_limit = queue->bytes;
        header->joinable = queue->joinable != 0;
    }
    header->head_bytes = head_bytes_for(header);
    while (limit.rlim_cur != RLIM_INFINITY && file_bytes(header) > limit.rlim_cur) {
        if (!shrink(header)) {
            return -EFBIG;
        }
    }
    while (header->segment_bytes > (UINT64_C(1) << header->chunk_shift)
           && !segment_fits(header->stride, header->segment_bytes, header->chunk_shift)) {
        header->segment_bytes /= 2;
    }
    INVARIANT(A5, header->segment_limit > 0 && header->segment_limit <= SEGMENT_LIMIT);
    INVARIANT(A5, header->stride % SMALL_ALIGN == 0 && header->stride > 0);
    return 0;
}

/* The family that the arena's words take their names from: 0, and its id in the header. */
static int
choose_roster(bool strangers, struct arena_header *header)
{
    struct roster *family = NULL;
    int error = 0;

    if (!strangers) {
        process_lock();
        error = roster_family(&family);
        if (error == 0) {
            header->roster_id = roster_id(family);
            roster_unref(family); /* attaching takes one of its own; families stay for good */
        }
        process_unlock();
    }
    return error;
}

int
mpshm_arena_create(const mpshm_geometry *geometry, int kind, const char *name, int strangers,
                   const mpshm_queue *queue, mpshm_arena **out)
{
    struct arena_header header;
    bool bounded;
    int fd = memfile_open(kind, name, &bounded);

    if (fd == -1) {
        return -errno;
    }
    int error = plan_header(geometry, queue, bounded, &header);

    if (error == 0) {
        error = choose_roster(strangers != 0, &header);
    }
    if (error == 0 && ftruncate(fd, (off_t) file_bytes(&header)) == -1) {
        error = -errno;
    }
    if (error == 0 && bounded) {
        error = memfile_reserve(fd, 0, mapped_bytes_for(&header));
    }
    if (error == 0) {
        error = memfile_seal(fd, bounded);
    }
    if (error == 0) {
        error = attach(fd, &header, true, bounded, out);
    }
    if (error != 0) {
        close(fd);
    }
    return error;
}

/* Read the header and check all that this process will believe.  A5 */
static int
read_header(int fd, struct arena_header *header)
{
    struct stat status;

    if (fstat(fd, &status) == -1) {
        return -errno;
    }
    if (pread(fd, header, sizeof *header, 0) != (ssize_t) sizeof *header
        || header->magic != ARENA_MAGIC || memfile_is_huge(fd)) {
        return MPSHM_E_MAGIC;
    }
    if (header->abi != MPSHM_ABI) {
        return MPSHM_E_ABI;
    }
    bool is_queue = header->slot_bytes != 0;

    if (header->segment_limit == 0 || header->segment_limit > SEGMENT_LIMIT
        || header->stride == 0 || header->stride % SMALL_ALIGN != 0
        || header->stride > UINT64_C(1) << 50
        || header->chunk_shift < 4 || header->chunk_shift > 30
        || (is_queue ? header->slot_bytes != MPSHM_SLOT_BYTES || header->slots < RING_SLOTS
                           || header->slots > RING_SLOTS_MOST || (header->slots & (header->slots - 1)) != 0
                           || header->streams > STREAMS
                           || header->rings == 0 || header->rings > RINGS
                           || (header->rings > 1 && (header->slots != RING_SLOTS || header->bytes_limit != 0
                                                     || header->places > rings_places(header->rings)))
                     : header->slots != 0 || header->rings != 0)
        || header->head_bytes != head_bytes_for(header)
        || file_bytes(header) != (uint64_t) status.st_size) {
        return MPSHM_E_GEOMETRY;
    }
    return 0;
}

int
mpshm_arena_identity(int fd, uint64_t *id)
{
    struct arena_header header;
    int error = read_header(fd, &header);

    *id = error == 0 ? header.id : 0;
    return error;
}

/* Find the roster, and make the arena one of this process's.  Under the lock. */
static int
join_roster(mpshm_arena *arena, uint64_t id, bool fresh)
{
    int error = 0;

    if (id == 0) {
        error = roster_embedded(arena->fd, OWN_ROSTER_OFFSET, (char *) arena->header + OWN_ROSTER_OFFSET, fresh,
                                &arena->roster);
    } else {
        arena->roster = roster_find(id);
        error = arena->roster == NULL ? MPSHM_E_ROSTER : 0;
    }
    if (error == 0) {
        arena->next = mpshm_process.arenas;
        mpshm_process.arenas = arena;
    }
    return error;
}

/* fresh: this process has just made the file, which is empty.  Else the header was read from it. */
static int
attach(int fd, const struct arena_header *header, bool fresh, bool bounded, mpshm_arena **out)
{
    struct stat status;

    if (fstat(fd, &status) == -1) {
        return -errno;
    }
    mpshm_arena *arena = calloc(1, sizeof *arena);

    if (arena == NULL) {
        return -ENOMEM;
    }
    arena->fd = fd;
    arena->device = status.st_dev;
    arena->inode = status.st_ino;
    arena->refs = 1;
    void *mapped = mmap(NULL, mapped_bytes_for(header), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mapped == MAP_FAILED) {
        int error = -errno;

        free(arena);
        return error;
    }
    arena->header = mapped;
    if (fresh) {
        memcpy(arena->header, header, offsetof(struct arena_header, segment));
    }
    arena->marks = (_Atomic uint64_t *) ((char *) mapped + MARKS_OFFSET);
    arena->slot_bytes = header->slot_bytes;
    arena->id = header->id;
    arena->head_bytes = header->head_bytes;
    arena->mapped_bytes = mapped_bytes_for(header);
    arena->stride = header->stride;
    arena->segment_bytes = header->segment_bytes;
    arena->segment_limit = header->segment_limit;
    arena->chunk_shift = header->chunk_shift;
    arena->bounded = bounded;
    int error = header->slots > 0 ? rings_attach(arena, header) : 0;

    if (header->slots > 0) {
        stream_attach(arena, header);
    }

    if (fresh && header->slots > 0) {
        atomic_store(&arena->chain->word[0], RING_WORD(0, 0, RING_USED));
    }
    if (error == 0) {
        process_lock();
        error = join_roster(arena, header->roster_id, fresh);
        process_unlock();
    }
    if (error != 0) {
        rings_detach(arena);
        munmap(mapped, arena->mapped_bytes);
        free(arena);
        return error;
    }
    *out = arena;
    return 0;
}

int
mpshm_arena_attach(int fd, mpshm_arena **out)
{
    struct arena_header header;
    int error = read_header(fd, &header);

    return error != 0 ? error : attach(fd, &header, false, !memfile_is_sealed(fd), out);
}

#ifdef MPSHM_DEBUG
/* Whether the invariants hold in all that this process has mapped of the arena. */
static bool
mapped_is_valid(mpshm_arena *arena)
{
    bool valid = arena->chain == NULL || ring_validate(arena, false) == 1;

    for (uint32_t id = 0; id < SEGMENT_LIMIT && valid; id++) {
        valid = arena->segments[id] == NULL || segment_validate(arena->segments[id]) == 1;
    }
    return valid;
}
#endif

/* Drop a reference; the last one ends the arena here.  Under the lock.  A2 */
void
arena_unref(mpshm_arena *arena)
{
    INVARIANT(A4, process_is_locked());
    INVARIANT(A2, arena->refs > 0);
    if (--arena->refs > 0) {
        return;
    }
    INVARIANT(A2, arena->leases == 0 && arena->receivers == 0);
#ifdef MPSHM_DEBUG
    /* So every process of every test walks each of its arenas once. */
    INVARIANT(L2, mapped_is_valid(arena));
#endif
    for (mpshm_arena **link = &mpshm_process.arenas; *link != NULL; link = &(*link)->next) {
        if (*link == arena) {
            *link = arena->next;
            break;
        }
    }
    for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
        if (arena->segments[id] != NULL) {
            segment_unmap(arena->segments[id]);
        }
    }
    if (arena_has_file(arena)) {
        close(arena->fd);
    }
    strays_forget(arena);
    stream_forget_parked(arena);
    rings_detach(arena);
    roster_unref(arena->roster); /* one of its own lies in what is unmapped next */
    munmap(arena->header, arena->mapped_bytes);
    free(arena->sent);
    free(arena);
}

void
arena_keep(mpshm_arena *arena)
{
    process_lock();
    INVARIANT(A2, arena->refs > 0);
    arena->refs++;
    process_unlock();
}

void
arena_let_go(mpshm_arena *arena)
{
    process_lock();
    arena_unref(arena);
    process_unlock();
}

void
arena_visit(mpshm_arena *arena)
{
    INVARIANT(A4, process_is_locked());
    arena->refs++;
    arena->visits++;
}

void
arena_leave(mpshm_arena *arena)
{
    process_lock();
    INVARIANT(A2, arena->visits > 0);
    arena->visits--;
    arena_unref(arena);
    process_unlock();
}

void
mpshm_arena_close(mpshm_arena *arena)
{
    if (arena->joined == mpshm_process.generation && trim_has_memory(arena)) {
        trim_at_close(arena); /* others may keep the file for long */
    }
    process_lock();
    if (arena->joined == mpshm_process.generation) { /* else no segment is this process's */
        for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
            if (arena->segments[id] != NULL) {
                segment_vacate(arena->segments[id]);
            }
        }
    }
    arena_unref(arena);
    process_unlock();
}

int
mpshm_arena_fd(mpshm_arena *arena)
{
    return arena_has_file(arena) ? arena->fd : -1;
}

int
mpshm_arena_roster_fd(mpshm_arena *arena)
{
    return roster_id(arena->roster) == 0 ? -1 : roster_fd(arena->roster);
}

uint64_t
mpshm_arena_id(mpshm_arena *arena)
{
    return arena->id;
}

int
mpshm_arena_geometry(mpshm_arena *arena, mpshm_geometry *out)
{
    out->stride = arena->stride;
    out->segment_bytes = arena->segment_bytes;
    out->segment_limit = arena->segment_limit;
    out->chunk_shift = arena->chunk_shift;
    out->ring_limit = arena->rings;
    return 0;
}
