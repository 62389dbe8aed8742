/* What the core's own files share, in this process only. */
#ifndef MPSHM_INTERNAL_H
#define MPSHM_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "freemap.h"
#include "layout.h"
#include "mpshm.h"

struct segment {
    mpshm_arena *arena;
    uint32_t id;
    uint32_t shift;
    uint32_t count;
    bool mine;              /* claimed by this process, not by one it was forked from */
    uint64_t head_bytes;
    mapword *map;           /* head mapping: free map, then run table */
    _Atomic uint64_t *runs;
    char *data;             /* data mapping, NULL until needed */
    uint8_t *warm;          /* by huge page: this process has made it resident */
};

struct sent {
    uint32_t mmap_id, chunk_id, tag;
    uint64_t bytes;
};

struct mpshm_arena {
    int fd;
    uint32_t refs;          /* the open handle, and each lease, run and parcel */
    uint64_t id;
    uint64_t stride;        /* checked copies of the header's: a stray write must not move us */
    uint64_t segment_bytes;
    uint32_t segment_limit, chunk_shift;
    bool bounded;           /* the file system may run full under us: reserve before touching */
    struct arena_header *header;
    struct segment *segments[SEGMENT_LIMIT];
    uint32_t hot;           /* the segment a claim succeeded in last */
    struct sent *sent;      /* what this process sealed and has not yet seen leased */
    uint32_t sent_count, sent_room;
    uint64_t sent_bytes;
    mpshm_arena *next;
};

struct process {
    pthread_mutex_t lock;   /* guards all of this, and every arena's fields; never held in a wait */
    uint32_t generation;
    mpshm_arena *arenas;
};
extern struct process mpshm_process;

/* segment.c: callers hold the lock. */
bool segment_fits(uint64_t stride, uint64_t bytes, uint32_t shift); /* needs no lock */
int segment_map(mpshm_arena *arena, uint32_t id, struct segment **out);
int segment_map_data(struct segment *seg);
int segment_claim_new(mpshm_arena *arena, uint64_t size, struct segment **out);
void segment_unmap(struct segment *seg);
void segment_vacate(struct segment *seg);
void segment_warm(struct segment *seg, uint64_t offset, uint64_t size);
int segment_validate(struct segment *seg);
uint64_t segment_file_offset(const struct segment *seg);

/* arena.c */
void arena_unref(mpshm_arena *arena);    /* under the lock; the next two take it */
void heap_keep(uint64_t size);           /* needs no lock */
void arena_keep(mpshm_arena *arena);
void arena_let_go(mpshm_arena *arena);
void arena_notify(mpshm_arena *arena);

/* sender.c.  sender_note under the lock, the others not. */
int sender_seal(mpshm_run *run, uint64_t size);
void sender_unseal(mpshm_run *run, uint64_t size);
void sender_trim(mpshm_run *run, uint64_t size);
void sender_note(mpshm_arena *arena, const mpshm_run *run);
bool sender_has_room(mpshm_arena *arena, uint64_t bytes, uint64_t mark);

/* frame.c */
struct part {
    mpshm_run run;
    uint64_t size; /* bytes of the message in it */
};
bool frame_fits(uint64_t descriptors, uint64_t stream_size);
uint32_t frame_put(char *frame, const struct part *parts, uint32_t stream_runs,
                   uint32_t buffer_runs, const char *stream, uint64_t stream_size,
                   const struct part *index);
int frame_read(mpshm_reader *reader, int fd, uint32_t body_max);
int frame_open(mpshm_reader *reader, mpshm_arena *arena);
#define DESCRIPTOR_BYTES 20

/* receiver.c */
void lease_drop_run(struct segment *seg, uint32_t chunk_id, uint32_t chunks);

#endif
