/* A hostile peer writes whatever it likes to all that it shares, before each step of this process and during it.

   Each step ends: with an error that is one of ours, or with bytes of whatever; it never crashes, and never reads or
   writes outside of its mappings.  An honest channel of the same process, whose memory the peer does not have, goes
   on meanwhile, and loses no byte.  Nothing is left of the hostile one when it is closed.

   The core is built without its assertions here, for they say what honest peers do.

   A round is a process with channels of its own, made from a seed.  HOSTILE_ROUNDS says how many of each kind there
   are, HOSTILE_SEED which one is the first.  A round that fails says its seed:
       HOSTILE_ROUNDS=1 HOSTILE_SEED=n test_hostile name_of_the_test */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "roster.h"

#define ROUNDS 60 /* of each kind, in `make test` */
#define STEPS 48
/* A step that takes more of the CPU's time hangs, as does one that sleeps so long.  None comes near the first; the
   second is long, for the machine may be busy. */
#define STEP_CPU_S 60
#define STEP_S 900
#define KEPT 12
#define HONEST_BYTES 700

static uint64_t
draw(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint32_t
below(uint64_t *state, uint32_t limit)
{
    return (uint32_t) (draw(state) % limit);
}

/* The core's mappings have room around them that nobody may touch: a step past one's end does not fall on another. */
#define GUARD_BYTES ((size_t) 1 << 20)

void *__real_mmap(void *at, size_t size, int may, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int may, int flags, int fd, off_t offset);
void *
__wrap_mmap(void *at, size_t size, int may, int flags, int fd, off_t offset)
{
    if (at != NULL) {
        return __real_mmap(at, size, may, flags, fd, offset);
    }
    int nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *room = __real_mmap(NULL, size + 2 * GUARD_BYTES, PROT_NONE, nothing, -1, 0);

    return room == MAP_FAILED ? room : __real_mmap(room + GUARD_BYTES, size, may, flags | MAP_FIXED, fd, offset);
}

/* One that lives and one that died, of the same family as this process. */
struct others {
    _Atomic name living, dead;
};

static struct others *others;
static mpshm_arena *hostile, *far; /* two handles of the hostile channel, as two processes have */
static int line[2];                /* its pipe */
static mpshm_counts counts;
static mpshm_end sender, receiver;
static char *file, *roster_file; /* all of its memory file, and of the family's roster or NULL */
static uint64_t file_size, roster_size;
static char text[40000];
static int file_fd, peer_line[2]; /* the peer's own descriptors of the file and the pipe */

/* What the peer writes to. */

enum kind { ANY, RUN, MORE, SLOT, HEAD, DIRECTORY, LOCK, RECORD, MARKED, STREAM, TEXT, HOLE };

struct target {
    enum kind kind;
    uint32_t bytes;  /* of the word: 4 or 8 */
    uint64_t offset; /* in the file, or in the roster's */
    bool in_roster;
};

static uint64_t
segment_at(uint64_t *state, struct segment **seg)
{
    uint32_t id = below(state, hostile->segment_limit < 3 ? hostile->segment_limit : 3);

    *seg = ((struct segment *volatile *) hostile->segments)[id];
    return hostile->head_bytes + id * hostile->stride;
}

static struct target
word(enum kind kind, uint32_t bytes, uint64_t offset)
{
    return (struct target) {.kind = kind, .bytes = bytes, .offset = offset};
}

static struct target
in_segment(uint64_t *state, uint32_t what)
{
    struct segment *seg;
    uint64_t at = segment_at(state, &seg), maps = at + sizeof(struct segment_head);
    uint32_t count = seg != NULL ? seg->count : TINY_CHUNKS, near = count < 96 ? count : 96;
    uint64_t runs = maps + 4 * map_words(count) * 8;

    switch (what) {
    case 0:
        return word(LOCK, 4, at);
    case 1:
        return word(ANY, 4, at + 4 * below(state, 16));
    case 2:
        return word(ANY, 8, maps + 8 * below(state, (uint32_t) (4 * map_words(count))));
    case 3:
    case 4:
        return word(RUN, 8, runs + 16 * below(state, below(state, 2) ? 6 : near));
    case 5:
        return word(MORE, 8, runs + 16 * below(state, below(state, 2) ? 6 : near) + 8);
    default:
        return word(TEXT, 4, at + data_offset(hostile->stride, count) + 4 * below(state, 64));
    }
}

static struct target
in_ring(uint64_t *state, uint32_t what)
{
    uint64_t slots = RING_OFFSET + offsetof(struct ring_head, slots);
    uint64_t first = HEAD_POSITION(atomic_load(&hostile->zero.head->head)), at = first + below(state, 6) - 1;
    uint64_t slot = slots + (at & (hostile->zero.slots - 1)) * sizeof(struct ring_slot);

    switch (what) {
    case 0:
        return word(HEAD, 8, RING_OFFSET + offsetof(struct ring_head, head));
    case 1:
        return word(HEAD, 8, RING_OFFSET + offsetof(struct ring_head, tail));
    case 2:
        return word(HEAD, 8, CHAIN_OFFSET + offsetof(struct chain, done));
    case 3:
        return word(ANY, below(state, 2) ? 4 : 8, CHAIN_OFFSET + offsetof(struct chain, waiters) + 8 * below(state, 8));
    case 4:
    case 5:
        return word(SLOT, 8, slot);
    case 6:
        return word(ANY, 8, slot + offsetof(struct ring_slot, bytes));
    default:
        return word(TEXT, 4, slot + 8 + 4 * below(state, 16));
    }
}

/* The words of the first two stream records, which the processes here use; and what lies in their pieces. */
static struct target
in_stream(uint64_t *state)
{
    uint64_t record = STREAMS_OFFSET + offsetof(struct streams, records)
                      + below(state, 2) * sizeof(struct stream_record);

    switch (below(state, 6)) {
    case 0:
        return word(ANY, 4, (uint64_t) ((char *) hostile->pieces - (char *) hostile->header)
                                + below(state, 2) * PIECE_BYTES + 4 * below(state, PIECE_BYTES / 4));
    case 1:
        return word(ANY, 4, STREAMS_OFFSET);
    case 2:
        return word(ANY, 4, record + 4 * below(state, 32));
    default:
        return word(STREAM, 8, record + 8 * (below(state, 4) ? below(state, 3) : 8));
    }
}

static struct target
in_roster(uint64_t *state, bool own)
{
    uint32_t number = below(state, 4) ? below(state, 6) : below(state, OWN_ROSTER_LIMIT);
    uint64_t record = sizeof(struct roster_header) + number * sizeof(struct record);
    struct target to = below(state, 4) == 0 ? word(ANY, 4, 4 * below(state, 16))
                                            : word(RECORD, below(state, 4) ? 8 : 4, record + 8 * below(state, 4));

    to.in_roster = !own;
    to.offset += own ? OWN_ROSTER_OFFSET : 0;
    return to;
}

/* Where to write next.  focus: a bit for each of the places of the arena that this round is about. */
static struct target
aim(uint64_t *state, uint32_t focus)
{
    for (;;) {
        uint32_t place = below(state, 32), at = place;

        if ((focus >> place & 1) == 0) {
            continue;
        }
        if (place < 8) {
            return in_segment(state, at);
        }
        if (place < 18) {
            if (hostile->chain != NULL) {
                return below(state, 4) == 0 ? in_stream(state) : in_ring(state, at - 8);
            }
            return in_segment(state, 3 + below(state, 3));
        }
        switch (place) {
        case 18:
        case 19:
            return word(DIRECTORY, 8, offsetof(struct arena_header, segment) + 8 * below(state, 5));
        case 20:
            return word(ANY, below(state, 2) ? 4 : 8, 8 * below(state, sizeof(struct arena_header) / 8));
        case 21:
            return word(ANY, 4, offsetof(struct arena_header, wanted) + 4 * below(state, 2));
        case 22:
        case 23:
            return word(MARKED, 8, MARKS_OFFSET + 8 * below(state, below(state, 4) ? 6 : NUMBER_LIMIT));
        case 24:
        case 25:
        case 26:
            return in_roster(state, roster_file == NULL);
        case 27: /* a hole in the file: whole pages of zeros */
            return word(HOLE, 8, below(state, below(state, 2) ? 400 : (uint32_t) (file_size / 4096)) * UINT64_C(4096));
        default:
            return word(ANY, 8, 8 * below(state, (uint32_t) (file_size / 8)));
        }
    }
}

/* What it writes. */

static name
any_name(uint64_t *state)
{
    switch (below(state, 6)) {
    case 0:
        return 0;
    case 1:
        return hostile->me;
    case 2:
        return atomic_load(&others->living);
    case 3:
        return atomic_load(&others->dead);
    case 4:
        return NAME(below(state, NUMBER_LIMIT), 1);
    default:
        return (name) draw(state) & NAME_MASK;
    }
}

static uint64_t
near(uint64_t *state, uint64_t value)
{
    return value + below(state, 7) - 3;
}

/* A word that could stand there. */
static uint64_t
likely(uint64_t *state, enum kind kind, uint64_t was)
{
    uint64_t slots = hostile->zero.slots;
    uint64_t position = slots > 0 ? HEAD_POSITION(atomic_load(&hostile->zero.head->head)) : 0;

    switch (kind) {
    case RUN:
        return below(state, 3) == 0 ? FLIGHT_AT(near(state, position))
                                    : RUN_WORD(near(state, RUN_TAG(was)), any_name(state), below(state, 8));
    case MORE:
        return below(state, 2) ? HOLDER(any_name(state))
                               : EXTENT(near(state, EXTENT_CHUNKS(was)) & 0xfffff, draw(state) & 0xfff);
    case SLOT:
        return SLOT_WORD(near(state, SLOT_LAP(was)), below(state, 2) ? any_name(state) : 0, below(state, 8));
    case HEAD:
        return HEAD_WORD(near(state, HEAD_SKIPS(was)), near(state, was) + (below(state, 3) == 0 ? slots : 0));
    case DIRECTORY:
        return DIR_WORD(any_name(state), below(state, 2) ? hostile->chunk_shift : below(state, 64),
                        below(state, 2) ? near(state, DIR_COUNT(was)) & 0xfffff : draw(state) & 0xfffff);
    case LOCK:
        return any_name(state);
    case RECORD:
        return RECORD_WORD(below(state, 2) ? (uint32_t) getpid() : (uint32_t) draw(state), below(state, 5),
                           near(state, RECORD_INCARNATION(was)) & 0xffff);
    case STREAM:
        return below(state, 3) == 0   ? STREAM_OWNER(near(state, OWNER_GENERATION(was)), any_name(state))
               : below(state, 2) == 0 ? STREAM_WRITTEN(near(state, STREAM_GENERATION(was)), below(state, 4),
                                                       near(state, STREAM_PIECES(was)))
                                      : STREAM_SPOT(near(state, SPOT_GENERATION(was)), near(state, position));
    case MARKED:
        return MARK(near(state, MARK_INCARNATION(was)) & 0xffff, draw(state) & 0xffff00000fff);
    default:
        return near(state, was);
    }
}

static uint64_t
value(uint64_t *state, const struct target *to, uint64_t was)
{
    static const uint64_t edges[] = {
        0, 1, UINT64_MAX, UINT64_C(1) << 63, INT64_MAX, UINT64_C(1) << 31, INT32_MAX, UINT32_MAX, TINY_CHUNKS - 1,
        TINY_CHUNKS, TINY_CHUNKS + 1, RING_SLOTS - 1, RING_SLOTS, RING_SLOTS + 1, NUMBER_LIMIT, SEGMENT_LIMIT,
        CHUNK_LIMIT, CHUNK_LIMIT + 1, POSITION_MASK, POSITION_MASK - 1, UINT64_C(1) << 36, 0xffff, 0x10000,
        0x80000000, 0x7f000000, 0xff000000,
    };

    switch (below(state, 8)) {
    case 0:
        return edges[below(state, sizeof edges / sizeof *edges)];
    case 1:
        return was ^ UINT64_C(1) << below(state, 8 * to->bytes);
    case 2:
        return draw(state);
    case 3: { /* another word of its kind */
        struct target from = *to;

        from.offset = to->offset >= 64 ? to->offset - 16 : to->offset + 16;
        return *(volatile uint64_t *) ((from.in_roster ? roster_file : file) + from.offset / 8 * 8);
    }
    default:
        return likely(state, to->kind, was);
    }
}

/* Write a word; `back`: and soon what was there before, so that this process comes far. */
static void
spoil(uint64_t *state, uint32_t focus, bool back)
{
    struct target to = aim(state, focus);
    uint64_t limit = to.in_roster ? roster_size : file_size;

    if (to.offset + 8 > limit) {
        return;
    }
    char *at = (to.in_roster ? roster_file : file) + to.offset;

    if (to.kind == HOLE) {
        (void) fallocate(file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) to.offset,
                         4096 << below(state, 5));
        return;
    }
    if (to.bytes == 4) {
        volatile uint32_t *word = (volatile uint32_t *) at;
        uint32_t was = *word;

        *word = (uint32_t) value(state, &to, was);
        for (volatile uint32_t i = below(state, 400); back && i > 0; i--) {
        }
        *word = back ? was : *word;
    } else {
        volatile uint64_t *word = (volatile uint64_t *) (((uintptr_t) at) / 8 * 8);
        uint64_t was = *word;

        *word = value(state, &to, was);
        for (volatile uint32_t i = below(state, 400); back && i > 0; i--) {
        }
        *word = back ? was : *word;
    }
}

struct storm {
    pthread_t thread;
    uint64_t state;
    uint32_t focus;
    _Atomic bool stop;
};

/* What the peer does to the pipe of a queue. */
static void
spoil_pipe(uint64_t *state)
{
    char bytes[100];

    if (below(state, 2)) {
        (void) !read(peer_line[0], bytes, 1 + below(state, sizeof bytes));
    } else {
        (void) !write(peer_line[1], text, 1 + below(state, sizeof bytes));
    }
}

static void *
blow(void *argument)
{
    struct storm *storm = argument;

    while (!atomic_load(&storm->stop)) {
        for (int i = 0; i < 64; i++) {
            spoil(&storm->state, storm->focus, below(&storm->state, 8) != 0);
        }
        if (hostile->chain != NULL) {
            spoil_pipe(&storm->state);
        }
    }
    return NULL;
}

/* The honest channel: a connection and a queue, with a view and a loan that are kept throughout. */

static struct {
    mpshm_arena *arena, *queue;
    int line[2], queue_line[2];
    mpshm_end to;
    mpshm_counts counts;
    mpshm_reader *reader;
    mpshm_batch *batch;
    char *view;
    mpshm_run loan;
    unsigned sent;
} honest;

static mpshm_arena *
make(mpshm_geometry geometry, bool strangers, const mpshm_queue *queue)
{
    mpshm_arena *arena;

    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_AUTO, "mpshm", strangers, queue, &arena));
    return arena;
}

static void
honest_begin(bool strangers)
{
    mpshm_queue unbounded = {0};

    honest.arena = make(paged(), strangers, NULL);
    honest.queue = make(tiny, strangers, &unbounded);
    make_pipe(honest.line);
    make_pipe(honest.queue_line);
    honest.reader = mpshm_reader_new(0);
    honest.batch = batch_of(honest.queue, &honest.counts, honest.queue_line[0], 0);
    mpshm_end_open(honest.batch->end);
    honest.to = (mpshm_end) {honest.queue, &honest.counts, honest.queue_line[1], false};
    mpshm_end_open(&honest.to);
    honest.view = lease_new(honest.arena, 3 * HONEST_BYTES, 77);
    honest.loan = claim(honest.arena, HONEST_BYTES);
    fill(honest.loan.data, HONEST_BYTES, 78);
}

/* A message each, and each byte of it. */
static void
honest_goes_on(void)
{
    char data[HONEST_BYTES], small[200];
    mpshm_held held;
    unsigned seed = ++honest.sent;

    fill(data, sizeof data, seed);
    mpshm_parcel *parcel = parcel_of(honest.arena);

    CHECK_EQ(0, mpshm_put_buffer(parcel, data, sizeof data, UINT64_MAX));
    CHECK_EQ(0, mpshm_send(parcel, honest.line[1], "stream", 6));
    mpshm_parcel_free(parcel);
    int n = mpshm_receive(honest.reader, honest.line[0], honest.arena, 4096, 0);

    CHECK(n > MPSHM_DESCRIPTORS && n < MPSHM_LONG);
    CHECK_EQ(1, honest.reader->count);
    mpshm_take(honest.reader, 0, &held);
    honest.reader->full = 0;
    CHECK_EQ(sizeof data, held.size);
    CHECK(is_filled(held.data, held.size, seed));
    mpshm_release(held.data);

    fill(small, sizeof small, seed + 1);
    CHECK_EQ(1, mpshm_queue_put_new(&honest.to, small, sizeof small));
    CHECK_EQ(sizeof small, mpshm_queue_receive_one(honest.batch, 0));
    CHECK(is_filled(honest.batch->data, sizeof small, seed + 1));
    CHECK(is_filled(honest.view, 3 * HONEST_BYTES, 77));
}

static void
honest_ends(void)
{
    char *data;

    honest_goes_on();
    CHECK(is_filled(honest.loan.data, HONEST_BYTES, 78));
    CHECK_EQ(0, mpshm_seal(&honest.loan, HONEST_BYTES));
    CHECK_EQ(0, mpshm_lease(honest.arena, honest.loan.mmap_id, honest.loan.chunk_id, HONEST_BYTES, honest.loan.tag,
                            &data));
    CHECK(is_filled(data, HONEST_BYTES, 78));
    mpshm_release(data);
    mpshm_release(honest.view);
    mpshm_reader_free(honest.reader);
    mpshm_end_stop_receiving(honest.batch->end);
    mpshm_end_release(honest.batch->end);
    free_batch(honest.batch);
    mpshm_end_stop_receiving(&honest.to);
    mpshm_end_release(&honest.to);
    close_clean(honest.arena);
    close_clean(honest.queue);
}

/* Steps of this process in the hostile channel. */

static mpshm_held kept[KEPT]; /* views that it has */
static mpshm_run *loans[KEPT];
static mpshm_place *places[KEPT];
static mpshm_stream *streaming;
static mpshm_tracking *tracked[KEPT]; /* messages that it may take back */
static mpshm_reader *reader;
static mpshm_batch *batch;
static uint64_t refused, done;

/* Whether a step ended as one may. */
static void
ended(int64_t code)
{
    CHECK(code > -4096 || (code <= MPSHM_E_SEGMENT && code >= MPSHM_E_GIVEN_UP));
    CHECK(code != -EFAULT);
    *(code < 0 ? &refused : &done) += 1;
}

static void
say_hang(int signal)
{
    static const char said[] = "a step does not end\n";

    (void) signal;
    (void) !write(STDERR_FILENO, said, sizeof said - 1);
    abort();
}

static void
watch_step(void)
{
    struct itimerval most = {.it_value.tv_sec = STEP_CPU_S};

    CHECK_EQ(0, setitimer(ITIMER_PROF, &most, NULL));
    alarm(STEP_S);
}

static mpshm_arena *
either(uint64_t *state)
{
    return below(state, 2) ? hostile : far;
}

/* Keep a view for some steps.  All of its bytes can be read and written. */
static void
keep(uint64_t *state, mpshm_held held)
{
    mpshm_held *at = &kept[below(state, KEPT)];

    if (held.data != NULL && held.size > 0) {
        for (uint64_t i = 0; i < held.size; i += held.size / 64 + 1) {
            held.data[i]++;
        }
        held.data[held.size - 1]++;
    }
    mpshm_release(at->data);
    *at = held;
}

static uint32_t
any_size(uint64_t *state)
{
    static const uint32_t sizes[] = {1, 15, 16, 17, 100, 124, 125, 400, 1024, 1148, 1149, 5000, 32768};

    return below(state, 3) ? 1 + below(state, 300) : sizes[below(state, sizeof sizes / sizeof *sizes)];
}

static mpshm_parcel *
any_parcel(uint64_t *state, mpshm_arena *arena, uint64_t *stream, bool has_ticket)
{
    mpshm_parcel *parcel = parcel_of(arena);
    uint32_t buffers = below(state, 4) ? below(state, 3) : 4 + below(state, 6);
    int error = 0;

    mpshm_parcel_track(parcel, has_ticket);

    for (uint32_t i = 0; i < buffers && error == 0; i++) {
        error = mpshm_put_buffer(parcel, text, any_size(state), UINT64_MAX);
    }
    if (error == 0 && (buffers == 0 || below(state, 3) == 0)) {
        error = mpshm_put_stream(parcel, text, any_size(state), below(state, 64), UINT64_MAX);
        if (error == 0) {
            error = mpshm_put_stream(parcel, text, any_size(state), 0, UINT64_MAX);
        }
    }
    *stream = below(state, 2) ? below(state, 60) : 0;
    error = error ? error : mpshm_settle(parcel, *stream, UINT64_MAX);
    if (error != 0) {
        ended(error);
        mpshm_parcel_free(parcel);
        return NULL;
    }
    return parcel;
}

static void
send(uint64_t *state)
{
    uint64_t stream;
    mpshm_parcel *parcel = any_parcel(state, either(state), &stream, false);

    if (parcel != NULL) {
        ended(hostile->chain == NULL ? mpshm_send(parcel, line[1], text, stream)
                                    : mpshm_queue_put_parcel(parcel, &sender, text, stream,
                                                             below(state, 2) ? NULL : places[below(state, KEPT)]));
        mpshm_parcel_free(parcel);
    }
}

/* Put a message that can be taken back; or ask what has become of one, take it back, forget it. */
static void
track(uint64_t *state)
{
    mpshm_tracking **at = &tracked[below(state, KEPT)];
    mpshm_arena *arena = either(state);
    bool is_queue = hostile->chain != NULL;
    uint64_t stream;

    if (*at != NULL) {
        mpshm_tracking *tracking = *at;
        uint32_t what = below(state, 4);

        ended(what == 0   ? mpshm_tracking_state(tracking)
              : what == 1 ? mpshm_tracking_wait(tracking, line[1], 1)
                          : mpshm_tracking_cancel(tracking, is_queue && below(state, 2) ? &receiver : NULL));
        if (below(state, 2)) {
            mpshm_tracking_free(tracking);
            *at = NULL;
        }
        return;
    }
    if (is_queue && below(state, 2)) {
        *at = mpshm_tracking_new(hostile);
        ended(mpshm_queue_put_tracked(&sender, text, any_size(state), NULL, *at));
        return;
    }
    arena = is_queue ? hostile : arena;
    mpshm_parcel *parcel = any_parcel(state, arena, &stream, !is_queue);

    if (parcel != NULL) {
        *at = mpshm_tracking_new(arena);
        ended(is_queue ? mpshm_queue_put_parcel_tracked(parcel, &sender, text, stream, NULL, *at)
                       : mpshm_send_tracked(parcel, line[1], text, stream, *at));
        mpshm_parcel_free(parcel);
    }
}

/* A descriptor of anything; or of a run that the peer puts into the run table so that it fits, in whatever words. */
static mpshm_descriptor
any_descriptor(uint64_t *state, uint64_t position)
{
    mpshm_descriptor what = {.mmap_id = below(state, 3), .chunk_id = below(state, 70), .tag = below(state, 12)};

    what.size = below(state, 4) ? any_size(state) : draw(state) >> below(state, 64);
    if (below(state, 6) == 0) {
        *(below(state, 2) ? &what.mmap_id : &what.chunk_id) = (uint32_t) draw(state) >> below(state, 32);
    }
    struct segment *seg = what.mmap_id < hostile->segment_limit
                              ? ((struct segment *volatile *) hostile->segments)[what.mmap_id]
                              : NULL;

    if (seg != NULL && what.chunk_id < seg->count && below(state, 2)) {
        struct run *run = &seg->runs[what.chunk_id];

        if (below(state, 2)) {
            atomic_store(&run->more, EXTENT(below(state, 4) ? 1 + below(state, 6) : draw(state) & 0xfffff,
                                            below(state, 2) ? below(state, 40) : draw(state) & 0xffffff));
        }
        atomic_store(&run->word, position == NO_POSITION ? RUN_WORD(what.tag, any_name(state),
                                                                    below(state, 6) ? RUN_FLIGHT : RUN_CANCELLED)
                                                         : FLIGHT_AT(position));
        what.size = extent_bytes(seg->shift, atomic_load(&run->more));
    }
    return what;
}

static void
put_descriptor(char *at, const mpshm_descriptor *what)
{
    memcpy(at, &what->mmap_id, 4);
    memcpy(at + 4, &what->chunk_id, 4);
    memcpy(at + 8, &what->size, 8);
    memcpy(at + 16, &what->tag, 4);
}

/* Fill the run of that descriptor with others, as an index. */
static void
forge_index(uint64_t *state, const mpshm_descriptor *index, uint64_t position)
{
    struct segment *seg = index->mmap_id < hostile->segment_limit ? hostile->segments[index->mmap_id] : NULL;
    uint64_t at = 0;

    if (seg != NULL && index->chunk_id < seg->count) {
        at = segment_file_offset(seg) + seg->data_at + ((uint64_t) index->chunk_id << seg->shift);
    }
    for (uint32_t i = 0; at != 0 && i < 6 && at + DESCRIPTOR_BYTES <= file_size; i++) {
        mpshm_descriptor what = any_descriptor(state, position);

        put_descriptor(file + at, &what);
        at += DESCRIPTOR_BYTES;
    }
}

/* A frame that names up to three runs: how many bytes. */
static uint32_t
forge_frame(uint64_t *state, char frame[MPSHM_SLOT_BYTES], uint64_t position)
{
    uint32_t named = below(state, 4), bytes = 8 + 20 * named + below(state, 3) / 2 * below(state, 40);
    uint32_t word = __builtin_bswap32(0x80000000u | bytes);
    uint16_t head[2] = {(uint16_t) (below(state, 4) | (below(state, 4) == 0 ? 8 : 0)), (uint16_t) below(state, 3)};
    uint32_t buffers = below(state, 3) ? named - (head[1] <= named ? head[1] : 0) : (uint32_t) draw(state);

    if ((head[0] & 1) != 0 && below(state, 2)) {
        bytes = 28;
        named = 1;
        word = __builtin_bswap32(0x80000000u | bytes);
        buffers = below(state, 6);
    }
    memset(frame, 0, MPSHM_SLOT_BYTES);
    memcpy(frame, &word, 4);
    memcpy(frame + 4, head, 4);
    memcpy(frame + 8, &buffers, 4);
    for (uint32_t i = 0; i < named; i++) {
        mpshm_descriptor what = any_descriptor(state, position);

        put_descriptor(frame + 12 + 20 * i, &what);
        if ((head[0] & 1) != 0) {
            forge_index(state, &what, position);
        }
    }
    if (below(state, 6) == 0) {
        frame[below(state, bytes)] ^= (char) (1u << below(state, 8));
    }
    return 4 + bytes;
}

/* A frame that names a stream record, of which the numbers may be right. */
static void
forge_stream_frame(uint64_t *state, char *frame)
{
    uint32_t number = below(state, 3);
    struct stream_name which = {
        .number = number < 2 ? number : below(state, 1 << 16),
        .generation = below(state, 4) && number < 2
                          ? OWNER_GENERATION(atomic_load(&hostile->streams->records[number].owner))
                          : (uint32_t) draw(state),
        .size = below(state, 3) ? below(state, 3 * PIECE_BYTES) : draw(state),
    };

    memset(frame, 0, MPSHM_SLOT_BYTES);
    frame_put_stream(frame, &which);
}

static void
forge_in_pipe(uint64_t *state)
{
    char frame[MPSHM_SLOT_BYTES];

    (void) !write(line[1], frame, forge_frame(state, frame, NO_POSITION)); /* a full pipe takes no more */
}

/* Put one in the ring, as a sender does. */
static void
forge_in_slot(uint64_t *state)
{
    const struct ring *ring = &hostile->zero;
    uint64_t position = tail_of(ring), words[MPSHM_SLOT_BYTES / 8];

    if (below(state, 4) == 0) {
        forge_stream_frame(state, (char *) words);
    } else {
        (void) forge_frame(state, (char *) words, position);
    }
    for (uint32_t i = 0; i < MPSHM_SLOT_BYTES / 8; i++) {
        atomic_store(&slot_data(ring, position)[i], words[i]);
    }
    atomic_store(slot_word(ring, position), word_of(ring, position, 0, SLOT_READY));
    atomic_store(&ring->head->tail, position_after(position, 1));
}

static void
receive_from_pipe(uint64_t *state)
{
    int n = mpshm_receive(reader, line[0], either(state), 4096, below(state, 2) ? 32768 : 0);

    ended(n);
    if (n == MPSHM_LONG) { /* the body is the caller's to read */
        (void) !read(line[0], text, sizeof text);
    }
    for (uint32_t i = 0; n > 0 && i < reader->count && below(state, 8) != 0; i++) {
        mpshm_held held;

        mpshm_take(reader, i, &held);
        keep(state, held);
    }
    mpshm_discard(reader);
    if (n == MPSHM_E_TORN || n == MPSHM_E_LENGTH) { /* where the next frame begins nobody knows */
        while (read(line[0], text, sizeof text) > 0) {
        }
    }
}

static void
receive_from_queue(uint64_t *state)
{
    int n = below(state, 3) ? mpshm_queue_receive_one(batch, (int) below(state, 2))
                            : mpshm_queue_receive(batch, 1 + below(state, MPSHM_SLOTS_AT_ONCE), (int) below(state, 2));

    ended(n);
    for (uint32_t i = 0; i < batch->count; i++) {
        const mpshm_message *message = &batch->messages[i];

        ended(message->error);
        CHECK(batch->apart != NULL
              || (message->at + message->size <= batch->data_used && batch->data_used <= batch->data_room));
        for (uint32_t k = 0; k < message->runs && below(state, 8) != 0; k++) {
            mpshm_held held;

            mpshm_batch_take(batch, message->first_run + k, &held);
            keep(state, held);
        }
    }
    mpshm_batch_discard(batch);
}

static void
lend(uint64_t *state)
{
    mpshm_run **run = &loans[below(state, KEPT)];

    if (*run == NULL) {
        *run = mpshm_run_new(either(state));
        int error = mpshm_get_buf((*run)->arena, any_size(state), *run);

        ended(error);
        if (error != 0) {
            mpshm_run_free(*run);
            *run = NULL;
        }
        return;
    }
    memset((*run)->data, 0x5c, (*run)->capacity);
    switch (below(state, 4)) {
    case 0:
        ended(mpshm_increase_buf(*run, any_size(state), below(state, 40)));
        memset((*run)->data, 0x5d, (*run)->capacity);
        return;
    case 1:
        ended(mpshm_copy_in(*run, below(state, 40), text, any_size(state)));
        return;
    case 2:
        if (hostile->chain == NULL) {
            mpshm_parcel *parcel = parcel_of((*run)->arena);

            ended(mpshm_put_run(parcel, *run, 1 + below(state, (uint32_t) (*run)->capacity)));
            int error = mpshm_send(parcel, line[1], NULL, 0);

            ended(error);
            if (error != 0) {
                mpshm_return_run(parcel);
            }
            mpshm_parcel_free(parcel);
        }
        break;
    default:
        ended(mpshm_abandon(*run));
    }
    mpshm_run_free(*run);
    *run = NULL;
}

static void
lease_any(uint64_t *state)
{
    mpshm_descriptor what = any_descriptor(state, NO_POSITION);
    mpshm_held held = {.size = what.size};

    ended(mpshm_lease(either(state), what.mmap_id, what.chunk_id, what.size, what.tag, &held.data));
    keep(state, held);
}

static void
in_child(uint64_t *state)
{
    int pid = fork_hooked();

    if (pid != 0) {
        wait_child(pid);
        return;
    }
    watch_step();
    CHECK(is_filled(honest.view, 3 * HONEST_BYTES, 77));
    honest_goes_on();
    for (int i = 0; i < KEPT; i++) {
        mpshm_release(kept[i].data);
        kept[i].data = NULL;
    }
    mpshm_release(honest.view);
    if (hostile->chain == NULL) {
        receive_from_pipe(state);
        send(state);
    } else {
        receive_from_queue(state);
        ended(mpshm_queue_put_new(&sender, text, any_size(state)));
    }
    _exit(0);
}

static void
look_around(uint64_t *state)
{
    mpshm_gauges now;
    mpshm_geometry geometry;
    mpshm_arena *arena = either(state), *again;
    uint64_t id;
    int fd;

    switch (below(state, 6)) {
    case 0:
        ended(mpshm_arena_gauges(arena, &now));
        return;
    case 1:
        (void) mpshm_arena_is_valid(arena); /* which line is wrong says nothing here */
        return;
    case 2:
        mpshm_reap(arena);
        return;
    case 3:
        mpshm_process_ended(RECORD_PID(draw(state)));
        return;
    case 4:
        ended(mpshm_arena_identity(mpshm_arena_fd(arena), &id));
        ended(mpshm_arena_geometry(arena, &geometry));
        return;
    default:
        fd = dup(mpshm_arena_fd(arena));
        int error = mpshm_arena_attach(fd, &again);

        ended(error);
        if (error == 0) {
            mpshm_arena_close(again);
        } else {
            close(fd);
        }
    }
}

static void
step_in_connection(uint64_t *state)
{
    switch (below(state, 15)) {
    case 0:
    case 1:
    case 2:
        send(state);
        return;
    case 11:
    case 12:
    case 13:
        track(state);
        ended(mpshm_has_input(either(state), line[0], NULL));
        return;
    case 3:
        ended(mpshm_send_copy(either(state), line[1], text, any_size(state), UINT64_MAX));
        return;
    case 4:
    case 5:
    case 6:
        receive_from_pipe(state);
        return;
    case 7:
        forge_in_pipe(state);
        return;
    case 8:
        lend(state);
        return;
    case 9:
        lease_any(state);
        return;
    case 10:
        ended(mpshm_wait_room(either(state), line[1], any_size(state), 1000, 1));
        return;
    default:
        look_around(state);
    }
}

static void
use_place(uint64_t *state)
{
    mpshm_place **place = &places[below(state, KEPT)];

    if (*place == NULL) {
        *place = mpshm_place_new(hostile);
        ended(mpshm_place_take(*place));
    } else if (below(state, 2)) {
        ended(mpshm_queue_put_one(&sender, text, any_size(state), *place));
        ended(mpshm_queue_wait_room(&sender, *place, 1));
    } else {
        mpshm_place_free(*place);
        *place = NULL;
    }
}

static void
put_some(uint64_t *state)
{
    uint32_t sizes[20], n = 1 + below(state, 20);

    for (uint32_t i = 0; i < n; i++) {
        sizes[i] = 1 + below(state, below(state, 4) ? 200 : 1500);
    }
    ended(mpshm_queue_put_some(&sender, text, sizes, n, NULL));
}

/* Begin to put a message through a stream record, or go on with it, or stop. */
static void
use_stream(uint64_t *state)
{
    static char data[3 * PIECE_BYTES];
    static uint64_t size;

    if (streaming == NULL) {
        streaming = mpshm_stream_new(hostile);
        size = 1 + below(state, sizeof data);
    }
    if (streaming->is_open) {
        ended(below(state, 4) ? mpshm_stream_go(streaming, &sender, data, size, (int) below(state, 2))
                              : mpshm_stream_stop(streaming, (int) below(state, 2)));
    } else {
        int begun = mpshm_stream_begin(streaming, &sender, data, size, NULL);

        ended(begun);
        if (begun == -EBUSY) {
            ended(mpshm_stream_wait(hostile, (int) below(state, 2)));
        }
    }
    if (!streaming->is_open && below(state, 2)) {
        mpshm_stream_free(streaming);
        streaming = NULL;
    }
}

static void
step_in_queue(uint64_t *state)
{
    switch (below(state, 22)) {
    case 19:
    case 20:
    case 21:
        track(state);
        return;
    case 14:
    case 15:
        forge_in_slot(state);
        return;
    case 16:
    case 17:
    case 18:
        use_stream(state);
        return;
    case 0:
        send(state);
        return;
    case 1:
    case 2:
        ended(mpshm_queue_put_new(&sender, text, any_size(state)));
        return;
    case 3:
        put_some(state);
        return;
    case 4:
    case 5:
    case 6:
        receive_from_queue(state);
        return;
    case 7:
        use_place(state);
        return;
    case 8:
        ended(mpshm_queue_wait_room(&sender, NULL, 1));
        return;
    case 9:
        ended(mpshm_task_done(hostile));
        ended(mpshm_wait_done(hostile, 1));
        return;
    case 10:
        (void) mpshm_queue_size(hostile);
        (void) mpshm_queue_full(far);
        ended((int64_t) mpshm_queue_bytes_limit(far));
        return;
    case 11:
        ended(mpshm_queue_poll(&receiver, (int) below(state, 2)));
        mpshm_queue_watch(&receiver);
        mpshm_queue_call(&receiver);
        return;
    case 12:
        lend(state);
        return;
    default:
        look_around(state);
    }
}

/* A round. */

/* Lock the byte of every record that is free, as a peer that wants no further process to get a name. */
static void
lock_all(void)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", mpshm_arena_fd(hostile));
    int fd = open(path, O_RDWR | O_CLOEXEC);

    CHECK(fd != -1);
    for (uint32_t number = 0; number < OWN_ROSTER_LIMIT; number++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 << 16,
                             .l_start = (off_t) (OWN_ROSTER_OFFSET + ((uint64_t) number << 16))};

        (void) fcntl(fd, F_OFD_SETLK, &lock); /* those that are had by others are not to be had */
    }
}

static int
join_and_say(_Atomic name *to, const int hold[2], bool locks)
{
    int pid = fork_hooked();

    if (pid == 0) {
        char byte;

        alarm(0); /* it lives as long as the round */
        arena_lock(hostile);
        if (locks) {
            lock_all();
        }
        atomic_store(to, hostile->me);
        arena_unlock(hostile);
        close(hold[1]);
        (void) !read(hold[0], &byte, 1); /* until the round ends, in whatever way */
        _exit(0);
    }
    while (atomic_load(to) == 0) {
        usleep(100);
    }
    return pid;
}

/* All of a memory file.  Its size the peer cannot change: the seals keep it. */
static void *
map_file(int fd, uint64_t *size)
{
    struct stat status;

    CHECK_EQ(0, fstat(fd, &status));
    CHECK_EQ(-1, ftruncate(fd, 0));
    CHECK_EQ(EPERM, errno);
    CHECK_EQ(-1, ftruncate(fd, status.st_size + 4096));
    CHECK_EQ(EPERM, errno);
    CHECK_EQ(-1, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    *size = (uint64_t) status.st_size;
    void *mapped = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    CHECK(mapped != MAP_FAILED);
    return mapped;
}

/* How often that file is mapped. */
static int
mappings_of(uint64_t inode)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char row[512];
    int count = 0;

    CHECK(maps != NULL);
    while (fgets(row, sizeof row, maps) != NULL) {
        unsigned long long its = 0;

        count += sscanf(row, "%*s %*s %*s %*s %llu", &its) == 1 && its == inode && strstr(row, "memfd:mpshm") != NULL;
    }
    fclose(maps);
    return count;
}

static void
hostile_begin(uint64_t *state, bool is_queue, bool strangers)
{
    mpshm_queue queue = {.places = below(state, 2) ? 0 : below(state, 3) ? 1 + below(state, 9) : 700,
                         .joinable = below(state, 2),
                         .bytes = below(state, 3) ? 0 : 500 + below(state, 3000)};

    hostile = make(below(state, 2) ? tiny : paged(), strangers, is_queue ? &queue : NULL);
    far = attach_again(hostile);
    make_pipe(line);
    sender = (mpshm_end) {hostile, &counts, line[1], false};
    receiver = (mpshm_end) {far, &counts, line[0], true};
    if (is_queue) {
        mpshm_end_open(&sender);
        mpshm_end_open(&receiver);
        batch = mpshm_batch_new(&receiver, below(state, 30));
    } else {
        reader = mpshm_reader_new(below(state, 30));
    }
    fill(text, sizeof text, 9);
    file = map_file(mpshm_arena_fd(hostile), &file_size);
    file_fd = dup(mpshm_arena_fd(hostile));
    if (is_queue) {
        for (int i = 0; i < 2; i++) {
            char path[32];

            snprintf(path, sizeof path, "/proc/self/fd/%d", line[i]);
            peer_line[i] = open(path, (i == 0 ? O_RDONLY : O_WRONLY) | O_NONBLOCK | O_CLOEXEC);
            if (below(state, 2)) {
                CHECK_EQ(0, fcntl(line[i], F_SETFL, 0)); /* flags are those of all that have the end */
            }
        }
    }
}

static void
hostile_ends(bool is_queue)
{
    for (int i = 0; i < KEPT; i++) {
        mpshm_release(kept[i].data);
        if (loans[i] != NULL) {
            mpshm_run_free(loans[i]);
        }
        mpshm_place_free(places[i]);
        mpshm_tracking_free(tracked[i]);
    }
    mpshm_stream_free(streaming);
    if (is_queue) {
        mpshm_batch_free(batch);
        mpshm_end_stop_receiving(&receiver);
        mpshm_end_stop_receiving(&sender);
        close(line[0]);
        close(line[1]);
        mpshm_end_release(&receiver);
        mpshm_end_release(&sender);
    } else {
        mpshm_reader_free(reader);
        close(line[0]);
        close(line[1]);
    }
    CHECK_EQ(0, hostile->loans);
    CHECK_EQ(0, far->loans);
    CHECK_EQ(1, hostile->refs);
    CHECK_EQ(1, far->refs);
    mpshm_arena_close(hostile);
    mpshm_arena_close(far);
}

/* while_written: the peer writes during the steps, not between them. */
static void
run_round(uint64_t seed, bool is_queue, bool while_written)
{
    uint64_t state = seed * 4 + 2 * is_queue + while_written;
    uint32_t shape = below(&state, 4);
    /* In its family's roster a peer can declare anybody dead: then the honest channel has to be another's. */
    bool family_roster = shape == 0, strangers = shape == 1;
    int hold[2];

    signal(SIGALRM, say_hang);
    signal(SIGPROF, say_hang);
    others = mmap(NULL, sizeof *others, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(others != MAP_FAILED);
    honest_begin(family_roster);
    honest_goes_on();
    mpshm_arena_close(arena_of(tiny)); /* so that the family's roster is there */
    int descriptors = open_descriptors();
    uint64_t leases = mpshm_leases();

    hostile_begin(&state, is_queue, strangers);
    if (family_roster) {
        roster_file = map_file(mpshm_arena_roster_fd(hostile), &roster_size);
    }
    CHECK_EQ(0, pipe2(hold, O_CLOEXEC));
    int dead = join_and_say(&others->dead, hold, false);

    kill_child(dead);
    int living = join_and_say(&others->living, hold, strangers && below(&state, 2));
    struct storm storm = {.state = seed ^ 0x5eed, .focus = UINT32_MAX};

    if (below(&state, 4) != 0) { /* about a few of the places, so that steps come far */
        storm.focus = 0;
        for (uint32_t i = 1 + below(&state, 3); i > 0; i--) {
            storm.focus |= 1u << below(&state, 28);
        }
    }
    for (int i = 0; i < 6; i++) { /* something to spoil */
        (is_queue ? step_in_queue : step_in_connection)(&state);
    }
    if (while_written) {
        CHECK_EQ(0, pthread_create(&storm.thread, NULL, blow, &storm));
    }
    for (int i = 0; i < STEPS; i++) {
        watch_step();
        for (uint32_t n = while_written ? 0 : below(&state, 4); n > 0; n--) {
            spoil(&storm.state, storm.focus, false);
        }
        if (is_queue && !while_written && below(&state, 6) == 0) {
            spoil_pipe(&storm.state);
        }
        if (below(&state, 24) == 0) {
            in_child(&state);
        } else {
            (is_queue ? step_in_queue : step_in_connection)(&state);
        }
        honest_goes_on();
    }
    if (while_written) {
        atomic_store(&storm.stop, true);
        CHECK_EQ(0, pthread_join(storm.thread, NULL));
    }
    watch_step();
    kill_child(living);
    close(file_fd);
    if (is_queue) {
        close(peer_line[0]);
        close(peer_line[1]);
    }
    close(hold[0]);
    close(hold[1]);
    munmap(file, file_size);
    if (roster_file != NULL) {
        munmap(roster_file, roster_size);
    }
    uint64_t inode = hostile->inode;

    hostile_ends(is_queue);
    CHECK_EQ(leases, mpshm_leases());
    CHECK_EQ(0, mappings_of(inode));
    CHECK_EQ(descriptors, open_descriptors());
    honest_ends();
}

static uint64_t
number_from(const char *variable, uint64_t otherwise)
{
    const char *said = getenv(variable);

    return said != NULL && *said != '\0' ? strtoull(said, NULL, 10) : otherwise;
}

static void
run_rounds(bool is_queue, bool while_written)
{
    uint64_t first = number_from("HOSTILE_SEED", 1), rounds = number_from("HOSTILE_ROUNDS", ROUNDS), failed = 0;

    for (uint64_t seed = first; seed < first + rounds; seed++) {
        int status;

        alarm(0); /* a round watches its own steps */
        fflush(stdout);
        int pid = fork();

        CHECK(pid != -1);
        if (pid == 0) {
            run_round(seed, is_queue, while_written);
            exit(0);
        }
        while (waitpid(pid, &status, 0) == -1) {
        }
        if (status != 0) {
            fprintf(stderr, "round %llu: %s %d\n", (unsigned long long) seed, WIFSIGNALED(status) ? "signal" : "exit",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
            failed++;
        }
    }
    CHECK_EQ(0, failed);
}

static void
connection_stands_what_is_written_between_its_steps(void)
{
    run_rounds(false, false);
}

static void
connection_stands_what_is_written_during_its_steps(void)
{
    run_rounds(false, true);
}

static void
queue_stands_what_is_written_between_its_steps(void)
{
    run_rounds(true, false);
}

static void
queue_stands_what_is_written_during_its_steps(void)
{
    run_rounds(true, true);
}

static const struct test tests[] = {
    TEST(connection_stands_what_is_written_between_its_steps),
    TEST(connection_stands_what_is_written_during_its_steps),
    TEST(queue_stands_what_is_written_between_its_steps),
    TEST(queue_stands_what_is_written_during_its_steps),
};
RUN_TESTS(tests)
