/* Arenas: the header of a memory file, and an arena's life in this process.

   Knows the layout's outermost parts and the process's list of arenas.  Does not know what runs hold,
   nor any message.

   Invariants: A1, A2, A4, A5 (invariants.h).

   An arena here:   attached, 1 reference --keep / let_go--> ... --last reference--> unmapped

   Memory order: the header's geometry is written before the file has a second user, and never after.
   arena_notify's fence pairs with the one in mpshm_wait_room (sender.c). */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Make the plan smaller: first fewer segments, then smaller ones.  False: it is at its smallest. */
static bool
shrink(uint32_t *segments, uint64_t *stride)
{
    if (*segments > 16) {
        *segments /= 2;
        return true;
    }
    *stride = *stride / 2 / SMALL_ALIGN * SMALL_ALIGN;
    return *stride >= UINT64_C(1) << 20;
}

/* Write the header of an arena of that geometry, or of a smaller one where RLIMIT_FSIZE asks for it:
   growing a file past the limit raises SIGXFSZ. */
static int
plan_header(const mpshm_geometry *geometry, struct arena_header *header)
{
    uint64_t stride = geometry->stride;
    uint32_t segments = geometry->segment_limit;
    struct rlimit limit;

    if (segments == 0 || segments > SEGMENT_LIMIT || geometry->chunk_shift < 4
        || geometry->chunk_shift > 30 || stride % SMALL_ALIGN != 0 || stride == 0) {
        return -EINVAL;
    }
    if (getrlimit(RLIMIT_FSIZE, &limit) == -1) {
        return -errno;
    }
    while (limit.rlim_cur != RLIM_INFINITY && (segments + UINT64_C(1)) * stride > limit.rlim_cur) {
        if (!shrink(&segments, &stride)) {
            return -EFBIG;
        }
    }
    memset(header, 0, sizeof *header);
    header->magic = ARENA_MAGIC;
    header->abi = MPSHM_ABI;
    header->segment_limit = segments;
    header->stride = stride;
    header->chunk_shift = geometry->chunk_shift;
    header->segment_bytes = geometry->segment_bytes;
    while (header->segment_bytes > (UINT64_C(1) << header->chunk_shift)
           && !segment_fits(stride, header->segment_bytes, header->chunk_shift)) {
        header->segment_bytes /= 2;
    }
    header->id = memfile_fresh_id();
    INVARIANT(A5, header->segment_limit > 0 && header->segment_limit <= SEGMENT_LIMIT);
    INVARIANT(A5, header->stride % SMALL_ALIGN == 0 && header->stride > 0);
    return 0;
}

int
mpshm_arena_create(const mpshm_geometry *geometry, int kind, const char *name, mpshm_arena **out)
{
    struct arena_header header;
    bool bounded;
    int error = plan_header(geometry, &header);

    if (error != 0) {
        return error;
    }
    int fd = memfile_open(kind, name, &bounded);

    if (fd == -1) {
        return -errno;
    }
    uint64_t size = (header.segment_limit + UINT64_C(1)) * header.stride;

    if (ftruncate(fd, (off_t) size) == -1
        || pwrite(fd, &header, sizeof header, 0) != (ssize_t) sizeof header) {
        error = errno ? -errno : -EIO;
    }
    if (error == 0) {
        error = memfile_seal(fd, bounded);
    }
    if (error == 0) {
        error = mpshm_arena_attach(fd, out);
    }
    if (error != 0) {
        close(fd);
    }
    return error;
}

/* How many bytes the mapping that begins with the header has: with the ring, and with its overflow,
   where the stride has room for them. */
static uint64_t
head_bytes(uint64_t stride)
{
    if (stride >= OVERFLOW_END) {
        return OVERFLOW_END;
    }
    return stride >= RING_OFFSET + RING_BYTES ? RING_OFFSET + RING_BYTES : HEADER_BYTES;
}

static bool
ring_fits(uint64_t stride)
{
    return head_bytes(stride) > RING_OFFSET;
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
        || header->magic != ARENA_MAGIC) {
        return MPSHM_E_MAGIC;
    }
    if (header->abi != MPSHM_ABI) {
        return MPSHM_E_ABI;
    }
    if (header->segment_limit == 0 || header->segment_limit > SEGMENT_LIMIT
        || header->stride == 0 || header->stride % SMALL_ALIGN != 0
        || header->stride > UINT64_C(1) << 50
        || header->chunk_shift < 4 || header->chunk_shift > 30
        || (header->slot_bytes != 0
            && (header->slot_bytes != MPSHM_SLOT_BYTES || !ring_fits(header->stride)))
        || (header->segment_limit + UINT64_C(1)) * header->stride != (uint64_t) status.st_size) {
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

int
mpshm_arena_attach(int fd, mpshm_arena **out)
{
    struct arena_header header;
    int error = read_header(fd, &header);

    if (error != 0) {
        return error;
    }
    mpshm_arena *arena = calloc(1, sizeof *arena);

    if (arena == NULL) {
        return -ENOMEM;
    }
    arena->fd = fd;
    arena->refs = 1;
    void *mapped = mmap(NULL, head_bytes(header.stride), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mapped == MAP_FAILED) {
        error = -errno;
        free(arena);
        return error;
    }
    arena->header = mapped;
    arena->peers = (struct peer *) ((char *) mapped + PEERS_OFFSET);
    arena->ring = ring_fits(header.stride) ? (struct ring *) ((char *) mapped + RING_OFFSET) : NULL;
    arena->overflow = header.stride >= OVERFLOW_END ? (struct overflow *) ((char *) mapped + OVERFLOW_OFFSET) : NULL;
    arena->slot_bytes = header.slot_bytes;
    arena->id = header.id;
    arena->stride = header.stride;
    arena->segment_bytes = header.segment_bytes;
    arena->segment_limit = header.segment_limit;
    arena->chunk_shift = header.chunk_shift;
    arena->bounded = !memfile_is_sealed(fd);
    INVARIANT(A5, head_bytes(arena->stride) <= arena->stride);
    INVARIANT(A5, arena->overflow == NULL || arena->ring != NULL);
    pthread_mutex_lock(&mpshm_process.lock);
    arena->next = mpshm_process.arenas;
    mpshm_process.arenas = arena;
    pthread_mutex_unlock(&mpshm_process.lock);
    *out = arena;
    return 0;
}

#ifdef MPSHM_DEBUG
/* Whether the invariants hold in all that this process has mapped of the arena. */
static bool
mapped_is_valid(mpshm_arena *arena)
{
    bool valid = arena->ring == NULL || ring_validate(arena, false) == 1;

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
    if (arena->loans == 0) { /* else a reaper is to find what this process leaves, by its number */
        peer_depart(arena);
    }
    munmap(arena->header, head_bytes(arena->stride));
    close(arena->fd);
    free(arena->sent);
    free(arena);
}

void
arena_keep(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    INVARIANT(A2, arena->refs > 0);
    arena->refs++;
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
arena_let_go(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    arena_unref(arena);
    pthread_mutex_unlock(&mpshm_process.lock);
}

void
mpshm_arena_close(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
        if (arena->segments[id] != NULL) {
            segment_vacate(arena->segments[id]);
        }
    }
    arena_unref(arena);
    pthread_mutex_unlock(&mpshm_process.lock);
}

int
mpshm_arena_fd(mpshm_arena *arena)
{
    return arena->fd;
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
    return 0;
}

/* A run was leased: wake the senders that wait for room, if it is the last lease they await.  The fence
   pairs with the one in mpshm_wait_room (sender.c): either the sender sees the lease, or this process
   sees its count in `wanted`. */
void
arena_notify(mpshm_arena *arena)
{
    _Atomic uint32_t *wanted = &arena->header->wanted;

    atomic_thread_fence(memory_order_seq_cst);
    uint32_t left = atomic_load_explicit(wanted, memory_order_relaxed);

    while (left != 0 && !atomic_compare_exchange_weak(wanted, &left, left - 1)) {
    }
    if (left == 1) {
        futex_wake(wanted, INT32_MAX);
    }
}
