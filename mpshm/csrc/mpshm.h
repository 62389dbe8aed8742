/* The C core's whole interface, written once: included by every C file (through internal.h) and
   read by cffi as the cdef, so it holds declarations only and no preprocessor line but constants.

   Every function returning int or int64_t gives 0 or a count on success and -errno, or one of the
   MPSHM_E_ codes below, on failure.  All are safe to call from any thread.  None touches a Python
   object.  Ownership of memory is said at each function. */

#define MPSHM_ABI 9
/* Bytes of a frame in a pipe, of a slot, of a slot with its overflow, and of a reader: see the size
   classes in docs/design.md. */
#define MPSHM_FRAME_BYTES 4096
#define MPSHM_SLOT_BYTES 128
#define MPSHM_SLOTS_AT_ONCE 128
#define MPSHM_TINY_BYTES 1152
#define MPSHM_READER_BYTES 32772
#define MPSHM_MAILBOX_BYTES 4032
#define MPSHM_DESCRIPTORS 65536
#define MPSHM_LONG 131072
#define MPSHM_COPIED 196608
#define MPSHM_COPIED_BY_WINDOW 262144

/* What was wrong with a frame or a descriptor; _memory/core.py turns each into a sentence. */
enum {
    MPSHM_E_SEGMENT = -10001,
    MPSHM_E_CHUNK = -10002,
    MPSHM_E_SIZE = -10003,
    MPSHM_E_STALE = -10004,
    MPSHM_E_MAGIC = -10005,
    MPSHM_E_ABI = -10006,
    MPSHM_E_GEOMETRY = -10007,
    MPSHM_E_TORN = -10008,
    MPSHM_E_LENGTH = -10009,
    MPSHM_E_FOREIGN = -10010,
    MPSHM_E_STATE = -10011,
    MPSHM_E_HEAD = -10012,
    MPSHM_E_FLAG = -10013,
    MPSHM_E_COUNT = -10014,
    MPSHM_E_EXTRA = -10015,
    MPSHM_E_INDEX = -10016,
    MPSHM_E_NO_ARENA = -10017,
    MPSHM_E_FULL = -10018,
    MPSHM_E_END = -10019,
    MPSHM_E_CLOSED = -10020,
    MPSHM_E_ROSTER = -10021,  /* the arena's family is not known here */
    MPSHM_E_CROWDED = -10022, /* the roster has no free record */
    MPSHM_E_DAMAGED = -10023,   /* another has overwritten what is this process's in shared memory */
    MPSHM_E_DIRECTORY = -10024, /* an entry of the directory describes no segment that fits */
    MPSHM_E_UNSEALED = -10025,  /* its maker could still cut the file short */
    MPSHM_E_TWO_FILES = -10026, /* and this family has another one already */
    MPSHM_E_STREAM = -10027,      /* a stream record is not what the slot that names it, or its sender, says */
    MPSHM_E_STREAM_SIZE = -10028, /* and its message has another length */
    MPSHM_E_GIVEN_UP = -10029,    /* the sender gave up in the middle: no call returns it */
    MPSHM_E_CANCELLED = -10030,   /* the sender has taken its message back: the same */
};

/* How an arena's memory file is made. */
#define MPSHM_FILE_AUTO 0
#define MPSHM_FILE_MEMFD 1
#define MPSHM_FILE_SHM 2

typedef struct mpshm_arena mpshm_arena;
typedef struct mpshm_parcel mpshm_parcel;

typedef struct {
    uint64_t stride;        /* bytes of file between two segments' beginnings */
    uint64_t segment_bytes; /* data bytes of a usual segment */
    uint32_t segment_limit; /* how many segments the arena may hold */
    uint32_t chunk_shift;   /* log2 of a chunk's bytes in a usual segment */
    uint32_t ring_limit;    /* how many rings a queue that grows may have, 0: as many as can be */
} mpshm_geometry;

/* Names a sealed run. */
typedef struct {
    uint32_t mmap_id, chunk_id, tag;
    uint64_t size;          /* bytes */
} mpshm_descriptor;

/* A run on loan to the process that claimed it. */
typedef struct {
    mpshm_arena *arena;
    char *data;             /* NULL: there is no address space to map it, and all goes by mpshm_copy_in */
    uint64_t capacity;      /* bytes, whole chunks */
    uint32_t mmap_id;
    uint32_t chunk_id;
    uint32_t tag;
    uint32_t generation;    /* of the process: a fork's child is another one */
    uint32_t loan, use;     /* its place among this process's loans, and which use of that place it is */
} mpshm_run;

typedef struct {
    uint64_t bytes_loaned;
    uint64_t bytes_in_flight;
    uint64_t bytes_leased;
    uint64_t bytes_resident;
    uint32_t runs_loaned;
    uint32_t runs_in_flight;
    uint32_t runs_leased;
    uint32_t segments;
} mpshm_gauges;

/* One leased run and its holder: freeing it releases the run.  Or its bytes, copied to a block of private memory. */
typedef struct {
    char *data;
    uint64_t size;
    uint32_t copied;        /* 0: it is the run; else why it was copied */
} mpshm_held;
#define MPSHM_COPIED_UNMAPPED 1 /* there is no address space to map it */
#define MPSHM_COPIED_SCARCE 2 /* its segment is of the reserve, or the memory file's file system runs full */

/* Looking again before blocking, and whether that has been paying (spin.c). */
typedef struct {
    int64_t ns;             /* how long; 0: not at all */
    uint32_t credit;
    uint32_t waits, probe;  /* without credit, every so many waits one tries */
    uint32_t spun;          /* just now, in vain */
    uint32_t busy;          /* looks in a row that found something at once */
} mpshm_spin;

/* One end's reading: a frame partly read, kept across interruptions so that none is lost or torn,
   and the leased runs of the last one, until they are taken over. */
typedef struct {
    uint64_t body_size;     /* of a long plain message, whose body is not read yet */
    mpshm_held *runs;       /* of a descriptor frame: first the stream's, then the buffers' */
    uint32_t count;
    uint32_t stream_runs;
    uint32_t stream_at, stream_end; /* where in bytes the stream lies, if no run holds it */
    mpshm_descriptor bad;   /* the one that failed */
    uint32_t copied;        /* of the last descriptor frame: why it has been copied that would have been leased, or
                               copied through a window; 0: it has not been */
    mpshm_spin spin;
    uint32_t have;          /* bytes of a frame not complete yet */
    uint32_t inside;        /* the arena has been told that a frame may be in hand: by this generation of the
                               process, a fork's child being another; 0: it has not */
    mpshm_arena *told;      /* and it is kept so long as part of a frame is here; or NULL */
    uint32_t asked;         /* the receiver sets it: the next frame may answer what it has sent */
    uint32_t full;          /* a frame is here that its receiver has not taken: the receiver clears
                               it, and until then mpshm_receive answers -EBUSY */
    unsigned char bytes[32772];
} mpshm_reader;

/* What a queue may hold; 0 is any number. */
typedef struct {
    uint32_t places;        /* messages */
    uint32_t joinable;      /* whether task_done() and join() count them */
    uint64_t bytes;         /* of slots and chunks */
    uint32_t grows;         /* whether it gets longer by mpshm_queue_grow; not if it is bounded by bytes, or so few
                               places that one ring has them */
} mpshm_queue;

/* Make an arena and its memory file; the caller closes it.  Where /proc names memory files, it shows
   `name`.  strangers: processes of other families will use it, so it has a roster of its own.  queue:
   NULL for a connection's. */
int mpshm_arena_create(const mpshm_geometry *geometry, int kind, const char *name, int strangers,
                       const mpshm_queue *queue, mpshm_arena **out);
/* Attach to the arena whose memory file is fd; takes fd over on success only.  MPSHM_E_ROSTER: this process
   has not joined the family that it belongs to. */
int mpshm_arena_attach(int fd, mpshm_arena **out);
/* The arena's identity: equal in all processes that share it.  Reads fd only. */
int mpshm_arena_identity(int fd, uint64_t *id);
/* Close the handle.  Mappings and descriptor live on until this process's last lease is released. */
void mpshm_arena_close(mpshm_arena *arena);
/* Its memory file's descriptor, or -1 if that number has become another file's. */
int mpshm_arena_fd(mpshm_arena *arena);
/* The descriptor of its family's roster, which is handed over with it; -1: it has a roster of its own. */
int mpshm_arena_roster_fd(mpshm_arena *arena);
/* Join the family whose roster's memory file is fd, for good.  Takes fd over on success; a family that
   this process knows already needs none, and fd is closed. */
int mpshm_roster_attach(int fd);
/* The process `pid`, a child of this one, has ended: if it was of a family of ours, what it held is taken back
   soon. */
void mpshm_process_ended(int pid);
uint64_t mpshm_arena_id(mpshm_arena *arena);
int mpshm_arena_geometry(mpshm_arena *arena, mpshm_geometry *out);
int mpshm_arena_gauges(mpshm_arena *arena, mpshm_gauges *out);
/* Walk every segment and the ring: 1 if each invariant holds, else -line of the one that does not.
   Other processes may be at work meanwhile. */
int mpshm_arena_is_valid(mpshm_arena *arena);

/* The sender's verbs.  mpshm_get_buf gives a run that is mapped. */
int mpshm_get_buf(mpshm_arena *arena, uint64_t size, mpshm_run *run);
/* A run, empty yet, that keeps its arena; freeing it abandons what is still on loan. */
mpshm_run *mpshm_run_new(mpshm_arena *arena);
void mpshm_run_free(mpshm_run *run);
int64_t mpshm_increase_buf(mpshm_run *run, uint64_t size, uint64_t min_size);
int mpshm_copy_in(mpshm_run *run, uint64_t offset, const char *source, uint64_t size);
int mpshm_abandon(mpshm_run *run);
int mpshm_is_loaned(const mpshm_run *run);
int mpshm_seal(mpshm_run *run, uint64_t size);
/* Wait until `bytes` more may be in flight under `mark`: 0.  Also 0 when no receiver is left that could
   make room; -ETIMEDOUT when the time (-1: as long as one sleep lasts) is over, or earlier: a caller that
   waits on calls again, and looks for signals between. */
int mpshm_wait_room(mpshm_arena *arena, int fd, uint64_t bytes, uint64_t mark, int timeout_ms);
/* Call after close(fd) of an end: those that wait for room look whether a receiver is left. */
void mpshm_call_senders(uint64_t arena_id);

/* A message on its way into chunks: a stream, and buffers with a contiguous run each.  Owns its runs
   until they are sent; mpshm_parcel_free and mpshm_parcel_clear abandon what was not.  Keeps its
   arena from mpshm_parcel_begin until it is sent or cleared.  One thread at a time. */
mpshm_parcel *mpshm_parcel_new(void);
void mpshm_parcel_free(mpshm_parcel *parcel);
void mpshm_parcel_begin(mpshm_parcel *parcel, mpshm_arena *arena);
void mpshm_parcel_clear(mpshm_parcel *parcel);
/* Copy in.  -EAGAIN: `mark` bytes are in flight, wait and call again; -ENOSPC: no room at all.
   `more` is how many bytes of stream are known to follow. */
int mpshm_put_buffer(mpshm_parcel *parcel, const char *data, uint64_t size, uint64_t mark);
int mpshm_put_stream(mpshm_parcel *parcel, const char *data, uint64_t size, uint64_t more,
                     uint64_t mark);
/* Copy out the stream's first `size` bytes, all of which have been put: 0, or -ENOMEM. */
int mpshm_parcel_read_stream(const mpshm_parcel *parcel, char *to, uint64_t size);
/* Borrow a loaned run as the stream, which it holds to `size` bytes; mpshm_return_run lets go of it
   when the parcel was not sent. */
int mpshm_put_run(mpshm_parcel *parcel, mpshm_run *run, uint64_t size);
void mpshm_return_run(mpshm_parcel *parcel);
/* Find room for what a frame cannot hold: the descriptors, and `size` bytes of stream that are not
   in runs.  mpshm_send is then given as many bytes of stream. */
int mpshm_settle(mpshm_parcel *parcel, uint64_t size, uint64_t mark);
/* Seal all runs and write the frame that names them: both or neither.  EINTR and EAGAIN are
   reported as such, and the parcel can be sent again.  0; or MPSHM_SENT_UNMAPPED: it went out as well, and was written
   through windows, for want of address space. */
int mpshm_send(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size);
#define MPSHM_SENT_UNMAPPED 3
#define MPSHM_NO_ROOM 1    /* `mark` bytes are in flight: wait and call again */
#define MPSHM_SEND_PLAIN 2 /* no chunk is to be had; or it is among this sender's first, and no segment
                              is there for larger ones; or so large messages are in flight that a
                              short one had better not wait for their receiver */
/* All of that for `size` bytes, short enough for the receiver to copy them out.  0, an error as there,
   or one of these two; then nothing is kept. */
int mpshm_send_copy(mpshm_arena *arena, int fd, const char *data, uint64_t size, uint64_t mark);

/* A message that its sender can take back until a receiver begins to take it.  Empty before it is sent; belongs to the
   process that has sent it: in a fork's child all calls give MPSHM_E_FOREIGN.  Keeps its arena. */
typedef struct mpshm_tracking mpshm_tracking;
mpshm_tracking *mpshm_tracking_new(mpshm_arena *arena);
void mpshm_tracking_free(mpshm_tracking *tracking);
/* Have the parcel go with a ticket, or without: call before mpshm_settle, which then claims that; there need be no part, if
   there is a stream. */
void mpshm_parcel_track(mpshm_parcel *parcel, int tracked);
/* mpshm_send of such a parcel. */
int mpshm_send_tracked(mpshm_parcel *parcel, int fd, const char *stream, uint64_t size, mpshm_tracking *tracking);
#define MPSHM_TRACK_WAITS 0     /* nobody has begun to take it */
#define MPSHM_TRACK_RECEIVED 1  /* a process has taken it, or takes it */
#define MPSHM_TRACK_CANCELLED 2 /* no receiver will see it */
/* Which of the three.  -EINVAL: it has not been sent. */
int mpshm_tracking_state(mpshm_tracking *tracking);
/* Wait until it is not the first any more; or return that when the time (-1: as long as one sleep lasts) is over, or
   earlier.  fd: the sending end, -1: it is closed; -EPIPE: no receiver is left that could take it. */
int mpshm_tracking_wait(mpshm_tracking *tracking, int fd, int timeout_ms);
/* Whether any message of the connection may have been taken back.  If so, whether there is something else in the pipe or
   socket than such messages, or it cannot be told; at end of file, too. */
int mpshm_has_cancelled(mpshm_arena *arena);
int mpshm_has_input(mpshm_arena *arena, int fd);

/* The receiver's verbs. */
int mpshm_lease(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size,
                uint32_t tag, char **data);
void mpshm_release(void *data);
mpshm_reader *mpshm_reader_new(uint32_t spin_us);
void mpshm_reader_free(mpshm_reader *reader);
/* Bytes of the whole frame now in `reader`, good until the receiver clears `full`; 0 at end of file.
   To those of a descriptor frame MPSHM_DESCRIPTORS is added: its runs are leased, all or none; or, if
   all it names is a stream of at most copy_max bytes, and `reader` has room for it, that has been
   copied there and its run freed: MPSHM_COPIED is added to the bytes of a plain frame of it, or
   MPSHM_COPIED_BY_WINDOW if the run could not be mapped.  A
   plain frame whose body is longer than body_max, or than `reader` holds, gives MPSHM_LONG: body_size
   is known, the body is the caller's to read.  arena may be NULL: a descriptor frame then gives
   MPSHM_E_NO_ARENA and is not taken: call again with its arena, or mpshm_skip. */
int mpshm_receive(mpshm_reader *reader, int fd, mpshm_arena *arena, uint32_t body_max,
                  uint32_t copy_max);
/* Read the rest of the frame that has begun, and forget it: 0, or the error; after -EINTR call again. */
int mpshm_skip(mpshm_reader *reader, int fd);
/* Move the i-th run to a holder of its own. */
void mpshm_take(mpshm_reader *reader, uint32_t i, mpshm_held *to);
/* Release the runs that were not taken.  mpshm_reader_free does so too. */
void mpshm_discard(mpshm_reader *reader);
mpshm_held *mpshm_held_new(void);
void mpshm_held_free(mpshm_held *held);

/* One end of a connection whose messages are questions and answers: its two mailboxes (mailbox.c).  One thread at a
   time puts, and one receives. */
typedef struct {
    void *in, *out;         /* to receive by, to send by */
    mpshm_arena *arena;
    mpshm_spin spin;
    uint32_t generation;    /* of the process: a fork's child is another one */
    uint32_t interrupted;   /* a signal has ended the last sleep: the next wait is at the socket */
    uint32_t asked;         /* the next message may answer what was sent */
    char data[MPSHM_MAILBOX_BYTES];        /* of the last message that was received here */
} mpshm_mailboxes;
/* Both ends must be at rest: nothing is in the socket, or on its way there.  accepted: the end that a Listener has
   made.  NULL: there is no memory, or the arena is a queue's. */
mpshm_mailboxes *mpshm_mailboxes_new(mpshm_arena *arena, int accepted, uint32_t spin_us);
void mpshm_mailboxes_free(mpshm_mailboxes *boxes);
/* Hand a message to a receiver that waits: 1.  Or 0: write it to the socket, and then call mpshm_mailbox_posted.  If that
   fails, do not: all later messages go through the socket then. */
int mpshm_mailbox_put(mpshm_mailboxes *boxes, const char *data, uint64_t size);
void mpshm_mailbox_posted(mpshm_mailboxes *boxes);
/* Call after close(fd): a receiver that waits looks at the socket.  Does nothing in a fork's child. */
void mpshm_mailbox_close(mpshm_mailboxes *boxes);
/* Bytes of a message, now in `data`.  0: read one from the socket, and then call mpshm_mailbox_read.  -EINTR: look for
   signals and call again. */
int mpshm_mailbox_receive(mpshm_mailboxes *boxes);
void mpshm_mailbox_read(mpshm_mailboxes *boxes);
/* No message comes here until one has been read from the socket; for_good: nor later. */
void mpshm_mailbox_leave(mpshm_mailboxes *boxes, int for_good);
/* Whether a message lies here that no receiver has waited for: it is the next one. */
int mpshm_mailbox_is_full(const mpshm_mailboxes *boxes);

/* Queues: frames in a ring, of MPSHM_SLOT_BYTES, or up to MPSHM_TINY_BYTES for a message with no run.
   Many senders, many receivers, no lock. */
typedef struct {
    uint64_t at, size;      /* in data: a small message whole, else the stream that no run holds */
    uint32_t first_run, stream_runs, runs;
    int32_t error;          /* why this message cannot be had */
    mpshm_descriptor bad;   /* and the one that failed */
} mpshm_message;
/* A message that comes piece by piece. */
typedef struct mpshm_incoming mpshm_incoming;

/* What one end of a queue has sent and received: in slots alone, by descriptor, and by the plain road,
   whose messages are counted where their reasons are when they are sent. */
typedef struct {
    uint64_t ring_messages, ring_bytes, shm_messages, shm_bytes, plain_bytes;
    uint64_t received_ring_messages, received_ring_bytes;
    uint64_t received_shm_messages, received_shm_bytes;
    uint64_t received_plain_messages, received_plain_bytes;
    uint64_t sent_unmapped, received_unmapped; /* of those by descriptor: through windows */
    uint64_t received_scarce; /* and copied out, for memory is scarce */
    uint64_t received_given_up; /* not counted above: the sender gave up, or died, in the middle */
} mpshm_counts;

/* One end of a queue; what it names outlives it.  fd: its end of the queue's pipe, O_NONBLOCK. */
typedef struct {
    mpshm_arena *arena;
    mpshm_counts *counts;
    int fd;
    uint32_t receives;
} mpshm_end;

/* How a receiver waits for messages (waiters.c). */
typedef struct {
    mpshm_spin spin;
    int64_t spin_until_ns;   /* what it has stored in the ring's word of this name; 0: it does not spin */
    int64_t backup_at_ns;    /* the same; 0: it is not the backup */
    int64_t measured_ns;     /* when it last measured the traffic, */
    uint64_t measured_taken; /* how many messages had been taken until then, */
    uint64_t took;           /* and how many it took since */
    _Bool floods;            /* the others took many */
    uint32_t watch;          /* the period in which it wakes by itself */
} mpshm_waiter;

/* Messages received and not taken over yet: their bytes, and their leased runs. */
typedef struct {
    const mpshm_end *end;
    char *data;
    uint64_t data_used, data_room;
    mpshm_held *runs;
    uint32_t runs_used, runs_room;
    uint32_t count;
    mpshm_message messages[128];
    uint32_t sizes[128];    /* of small messages, whole; of others UINT32_MAX */
    mpshm_waiter waiter;
    mpshm_incoming *incoming; /* the message that a call is at; NULL between calls */
    char *apart;            /* the only message, which has no runs and is not small: memory of the heap; or NULL */
} mpshm_batch;

/* Memory of the heap and its holder: freeing it frees both. */
typedef struct {
    char *data;
    uint64_t size;
} mpshm_block;

/* A message that finds no memory, on its way: it goes piece by piece through a record in shared memory, from its sender
   to the process that takes its slot. */
typedef struct {
    mpshm_arena *arena;
    uint64_t spot;
    uint64_t sent;          /* bytes that have been written into the record */
    uint32_t number, record_generation, pieces;
    uint32_t generation;    /* of the process: a fork's child has none of its parent's */
    uint32_t is_open;       /* it has a record */
} mpshm_stream;

/* A message's place in the queue, taken before it is put: a position, or that it counts as pending. */
#define MPSHM_NO_PLACE -1
#define MPSHM_PENDING 8796093022208 /* 2^43: no spot is so large */
typedef struct {
    mpshm_arena *arena;
    int64_t at;
    uint32_t generation;    /* of the process: a fork's child has none of its parent's */
} mpshm_place;

uint32_t mpshm_queue_frame_bytes(mpshm_arena *arena);
uint64_t mpshm_queue_bytes_limit(mpshm_arena *arena);
/* Count the end as open in this process, and keep its arena until mpshm_end_release. */
void mpshm_end_open(const mpshm_end *end);
/* Call before close(fd) of a receiving end: it no longer counts as one that may take messages. */
void mpshm_end_stop_receiving(const mpshm_end *end);
/* Call after close(fd).  If this was a sending end, wakes receivers so that they check for end of
   file. */
void mpshm_end_release(const mpshm_end *end);
/* Put a message in the queue and never wait.  -EAGAIN: its ring is full; MPSHM_E_FULL: the queue is, or it
   is not this message's turn; -EPIPE: no receiver is left.
   place: the message's, or NULL.  It is used up when the message is put, and is as before otherwise. */
int mpshm_queue_put_parcel(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
                           mpshm_place *place);
/* Put up to MPSHM_SLOTS_AT_ONCE small messages, which lie one behind the other in data, without
   waiting: how many, or the error of the first.  places: one for each, or NULL. */
int mpshm_queue_put_some(const mpshm_end *end, const char *data, const uint32_t *sizes, uint32_t count,
                         mpshm_place *const *places);
int mpshm_queue_put_one(const mpshm_end *end, const char *data, uint32_t size, mpshm_place *place);
/* The same of a tracked message, and of one in runs; place: or NULL. */
int mpshm_queue_put_tracked(const mpshm_end *end, const char *data, uint32_t size, mpshm_place *place,
                            mpshm_tracking *tracking);
int mpshm_queue_put_parcel_tracked(mpshm_parcel *parcel, const mpshm_end *end, const char *stream, uint64_t size,
                                   mpshm_place *place, mpshm_tracking *tracking);
/* Take a message back, if nobody has begun to take it, and free its memory: which of the last two MPSHM_TRACK_ it is then.
   reader: the queue's end to receive by, if this process has it open; or NULL. */
int mpshm_tracking_cancel(mpshm_tracking *tracking, const mpshm_end *reader);
/* And of one that mpshm_stream_begin has put. */
void mpshm_stream_track(const mpshm_stream *stream, mpshm_tracking *tracking);
/* The same for a message without a place: one pointer less to convert is 20 ns of 600. */
int mpshm_queue_put_new(const mpshm_end *end, const char *data, uint32_t size);
/* A place that is not taken yet, and keeps its arena; freeing it gives back what it has. */
mpshm_place *mpshm_place_new(mpshm_arena *arena);
void mpshm_place_free(mpshm_place *place);
/* Take a place for a message that is put later: 0, MPSHM_E_FULL, or MPSHM_E_CROWDED.  The second gives it
   back: its message will not come. */
int mpshm_place_take(mpshm_place *place);
void mpshm_place_give(mpshm_place *place);
/* Wait until a position can be claimed; or, with one, until it is its message's turn, which a put has
   asked for in vain: 0; or -EAGAIN when the time (-1: as long as one sleep lasts) is over, or earlier; or
   -EPIPE when no receiver is left. */
int mpshm_queue_wait_room(const mpshm_end *end, const mpshm_place *place, int timeout_ms);
/* The same though no receiver is left: another put may give up its place. */
int mpshm_queue_wait_place(const mpshm_end *end, const mpshm_place *place, int timeout_ms);
/* One that is not under way yet, and keeps its arena; freeing it stops it. */
mpshm_stream *mpshm_stream_new(mpshm_arena *arena);
void mpshm_stream_free(mpshm_stream *stream);
/* Put a message that finds no memory: its frame and its first piece, without waiting.  1: that was all of it; 0: go on
   with mpshm_stream_go; -EBUSY: all records are in use; or as the calls above. */
int mpshm_stream_begin(mpshm_stream *stream, const mpshm_end *end, const char *data, uint64_t size, mpshm_place *place);
/* Wait until a record may be free: 0; or -EAGAIN when the time (-1: as long as one sleep lasts) is over, or earlier. */
int mpshm_stream_wait(mpshm_arena *arena, int timeout_ms);
/* Write the other pieces, each when the one before it has been read: 1 when all have been written, or when the message
   is lost with a process that was killed, or that closed its end, while it took it; -EAGAIN or -EINTR when the time
   is over, or earlier: call again; or an error.  `data` and `size` are those of mpshm_stream_begin. */
int mpshm_stream_go(mpshm_stream *stream, const mpshm_end *end, const char *data, uint64_t size, int timeout_ms);
/* End it before all has been written: 0; -EBUSY: some process takes the message, and it is still under way.
   gives_up: end it then as well: that process passes over it. */
int mpshm_stream_stop(mpshm_stream *stream, int gives_up);
/* After a put has found the ring full, but not the queue: have room for more messages: 0; or -ENOSPC: no memory for a
   longer ring, or the queue does not grow. */
int mpshm_queue_grow(const mpshm_end *end);
/* How many have been taken, or given up, since the queue was made: modulo 2^36. */
uint64_t mpshm_queue_taken(mpshm_arena *arena);
/* How many messages are in the queue, and on their way into it. */
int64_t mpshm_queue_size(mpshm_arena *arena);
/* Whether the queue has no place. */
int mpshm_queue_full(mpshm_arena *arena);
/* Count one message more as done: 0, or -ERANGE when none was left of those that have been put. */
int mpshm_task_done(mpshm_arena *arena);
/* Wait until all messages are done: 0; or -ETIMEDOUT when the time is over, or earlier. */
int mpshm_wait_done(mpshm_arena *arena, int timeout_ms);

mpshm_batch *mpshm_batch_new(const mpshm_end *end, uint32_t spin_us);
void mpshm_batch_free(mpshm_batch *batch);
#define MPSHM_NOT_AT_ALL -2
/* Receive up to `most` messages, waiting for the first: with timeout_ms 0 not at all, with -1 as long as
   one sleep lasts.  One that comes in pieces, and has begun, is waited for while the pieces come, but for
   MPSHM_NOT_AT_ALL.  Gives how many, their runs leased, or -EAGAIN or -EINTR. */
int mpshm_queue_receive(mpshm_batch *batch, uint32_t most, int timeout_ms);
/* Receive one.  The size of a small message, which lies whole at the beginning of data, and zeros up to
   MPSHM_TINY_BYTES behind it; or MPSHM_DESCRIPTORS for one with runs, or that lies apart; or its error. */
int mpshm_queue_receive_one(mpshm_batch *batch, int timeout_ms);
void mpshm_batch_take(mpshm_batch *batch, uint32_t i, mpshm_held *to);
/* Move the only message, which lies apart, to a holder of its own. */
void mpshm_batch_take_apart(mpshm_batch *batch, mpshm_block *to);
mpshm_block *mpshm_block_new(void);
void mpshm_block_free(mpshm_block *block);
/* Release the runs that were not taken, and forget the messages. */
void mpshm_batch_discard(mpshm_batch *batch);

/* Wait until a message is there or no sender is left: 1; or 0 when the time is over, or
   earlier: a caller that waits on calls again, and looks for signals between. */
int mpshm_queue_poll(const mpshm_end *end, int timeout_ms);
/* Wake all receivers that wait for a message, so that they look for themselves. */
void mpshm_queue_call(const mpshm_end *end);
/* From now on the pipe is readable whenever mpshm_queue_poll would give 1. */
void mpshm_queue_watch(const mpshm_end *end);

/* Take back what dead processes held. */
void mpshm_reap(mpshm_arena *arena);
/* Give the memory of all free chunks back to the system, but in a segment that another process is just using:
   how many bytes. */
uint64_t mpshm_trim(mpshm_arena *arena);

/* Change a word of shared memory from one value to another: whether it had the first. */
int mpshm_word_change(uint64_t *word, uint64_t from, uint64_t to);

uint64_t mpshm_leases(void);
