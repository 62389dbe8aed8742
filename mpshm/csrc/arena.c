/* Arenas: the memory file, its header, its life in this process, and what is read off it.

   Knows files and the process's list of arenas; messages it knows only as counted bytes.

   Invariants:
   A1  The file's size is fixed at creation and sealed where that can be had.
   A2  An arena's struct lives while its handle, or a lease, run or parcel of this process, does.
   A3  Nothing in process-local state is trusted in the child of a fork (receiver.c resets it). */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u /* Linux 6.3; it allows sealing as well */
#endif

struct process mpshm_process = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

static uint64_t
fresh_id(void)
{
    uint64_t id = 0;

    if (getentropy(&id, sizeof id) == -1 || id == 0) {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        id = (uint64_t) now.tv_nsec << 32 ^ (uint64_t) now.tv_sec << 20 ^ (uint64_t) getpid();
    }
    return id;
}

/* shm_open and unlink at once: the name lives for microseconds. */
static int
open_shm(void)
{
#ifdef SHM_ANON
    return shm_open(SHM_ANON, O_RDWR, 0600);
#else
    char name[32];

    for (int attempt = 0; attempt < 8; attempt++) {
        snprintf(name, sizeof name, "/mpshm-%016llx", (unsigned long long) fresh_id());
        int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

        if (fd != -1) {
            if (shm_unlink(name) == -1) {
                int error = errno;

                close(fd);
                errno = error;
                return -1;
            }
            return fd;
        }
        if (errno != EEXIST) {
            return -1;
        }
    }
    return -1;
#endif
}

static int
open_memory_file(int kind, const char *name, bool *bounded)
{
    if (memory_is_refused()) {
        errno = ENOSPC;
        return -1;
    }
#ifdef __linux__
    if (kind != MPSHM_FILE_SHM) {
        int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd == -1 && (errno == EACCES || errno == EPERM)) {
            /* Systems with vm.memfd_noexec=2, and sandboxes, refuse a file that could be executed. */
            fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
        }
        *bounded = false;
        if (fd != -1 || kind == MPSHM_FILE_MEMFD || errno != ENOSYS) {
            return fd;
        }
    }
#else
    (void) kind;
    (void) name;
#endif
    *bounded = true;
    return open_shm();
}

/* A smaller plan: first fewer segments, then smaller ones. */
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

/* The header of an arena of that geometry, or of less where RLIMIT_FSIZE asks for it: growing a
   file past the limit raises SIGXFSZ. */
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
    header->id = fresh_id();
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
    int fd = open_memory_file(kind, name, &bounded);

    if (fd == -1) {
        return -errno;
    }
    uint64_t size = (header.segment_limit + UINT64_C(1)) * header.stride;

    if (ftruncate(fd, (off_t) size) == -1
        || pwrite(fd, &header, sizeof header, 0) != (ssize_t) sizeof header) {
        error = errno ? -errno : -EIO;
    }
#ifdef F_SEAL_SHRINK
    if (error == 0 && !bounded
        && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == -1) {
        error = -errno;
    }
#endif
    if (error == 0) {
        error = mpshm_arena_attach(fd, out);
    }
    if (error != 0) {
        close(fd);
    }
    return error;
}

/* Of the mapping that begins with the header: with the ring and its overflow, where the stride has room
   for them. */
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

/* Only memory files of no file system but the kernel's own are sealed by us. */
static bool
is_sealed(int fd)
{
#ifdef F_GET_SEALS
    int seals = fcntl(fd, F_GET_SEALS);

    return seals != -1 && (seals & F_SEAL_GROW) != 0;
#else
    (void) fd;
    return false;
#endif
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
    arena->bounded = !is_sealed(fd);
    pthread_mutex_lock(&mpshm_process.lock);
    arena->next = mpshm_process.arenas;
    mpshm_process.arenas = arena;
    pthread_mutex_unlock(&mpshm_process.lock);
    *out = arena;
    return 0;
}

/* Under the lock.  A2. */
void
arena_unref(mpshm_arena *arena)
{
    if (--arena->refs > 0) {
        return;
    }
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
    if (arena->loans == 0) { /* else the reaper finds what we leave */
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

/* A full tmpfs answers a write through a mapping with SIGBUS; ask first. */
int
arena_reserve(mpshm_arena *arena, uint64_t offset, uint64_t size)
{
#ifdef __linux__
    if (arena->bounded && fallocate(arena->fd, 0, (off_t) offset, (off_t) size) == -1) {
        return -errno;
    }
#else
    (void) arena;
    (void) offset;
    (void) size;
#endif
    return 0;
}

/* Wake the senders that wait for room, if this is the last lease they await.  The fence pairs with the
   one in mpshm_wait_room: either it sees our lease, or we see its count. */
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

/* glibc maps blocks above a threshold and unmaps them when they are freed, and raises the threshold
   to the largest block freed so far.  Stock allocates a block for each message, so beside it the
   user's own arrays of that size soon stay in the heap; we allocate none, and they would fault all
   their pages in anew each time (measured: a process_map of 240 KB arrays, 1.1 million faults for
   stock's 0.5, a seventh more CPU).  So free one such block when a message is the largest so far.
   Nobody touches it.  Twice the size, for a temporary may be larger than what is sent. */
void
heap_keep(uint64_t size)
{
#ifdef __GLIBC__
    static _Atomic uint64_t largest = UINT64_C(64) << 10;
    static const uint64_t most = (UINT64_C(32) << 20) - 8192; /* glibc learns from none larger */

    if (size > atomic_load_explicit(&largest, memory_order_relaxed)) {
        atomic_store_explicit(&largest, size, memory_order_relaxed);
        void *volatile block = malloc(2 * size < most ? 2 * size : most);

        free(block);
    }
#else
    (void) size;
#endif
}

static int
for_each_segment(mpshm_arena *arena, int (*visit)(struct segment *, void *), void *context)
{
    int result = 1;

    pthread_mutex_lock(&mpshm_process.lock);
    for (uint32_t id = 0; id < arena->segment_limit && result > 0; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) != 0) {
            result = segment_map(arena, id, &seg);
            if (result == 0) {
                result = visit(seg, context);
            }
        }
    }
    pthread_mutex_unlock(&mpshm_process.lock);
    return result;
}

static int
visit_valid(struct segment *seg, void *context)
{
    (void) context;
    return segment_validate(seg);
}

int
mpshm_arena_is_valid(mpshm_arena *arena)
{
    return for_each_segment(arena, visit_valid, NULL);
}

static int
visit_gauges(struct segment *seg, void *context)
{
    mpshm_gauges *out = context;

    out->segments++;
    for (uint32_t at = 0; at < seg->count;) {
        uint64_t word = atomic_load_explicit(&seg->runs[at], memory_order_relaxed);
        uint64_t bytes = (uint64_t) RUN_CHUNKS(word) << seg->shift;

        switch (RUN_STATE(word)) {
        case RUN_FREE:
            at++;
            continue;
        case RUN_LOANED:
            out->runs_loaned++;
            out->bytes_loaned += bytes;
            break;
        case RUN_IN_FLIGHT:
            out->runs_in_flight++;
            out->bytes_in_flight += bytes;
            break;
        case RUN_LEASED:
            out->runs_leased++;
            out->bytes_leased += bytes;
            break;
        }
        at += RUN_CHUNKS(word) ? RUN_CHUNKS(word) : 1;
    }
    return 1;
}

int
mpshm_arena_gauges(mpshm_arena *arena, mpshm_gauges *out)
{
    struct stat status;

    memset(out, 0, sizeof *out);
    if (fstat(arena->fd, &status) == -1) {
        return -errno;
    }
    out->bytes_resident = (uint64_t) status.st_blocks * 512;
    int result = for_each_segment(arena, visit_gauges, out);

    return result < 0 ? result : 0;
}
