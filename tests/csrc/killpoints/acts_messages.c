/* Acts: messages put and got, places, tasks, and the waits for all of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>

#include "ledger.h"
#include "lives.h"
#include "scenarios.h"
#include "stage.h"

/* As the package does: if the victim wakes nobody, the watch does (watch.c). */
#define UNTIL_ITS_WATCH -1
#define ENOUGH 600 /* more than a ring holds */

void
three(void)
{
    EXPECT_EQ(0, say(SHORT));
    EXPECT_EQ(0, say(COPIED));
    EXPECT_EQ(0, say(VIEWED));
}

void
six(void)
{
    three();
    three();
}

void
fill(void)
{
    while (say(stage.kind->filler) == 0) {
    }
}

/* One message is taken, and its task is not done. */
void
take_one(void)
{
    EXPECT_EQ(0, say(SHORT));
    EXPECT(hear());
}

/* Putting. */

void
put_short(void)
{
    EXPECT_EQ(0, say(SHORT));
}

void
put_longer(void)
{
    EXPECT_EQ(0, say(LONGER));
}

void
put_copied(void)
{
    EXPECT_EQ(0, say(COPIED));
}

void
put_viewed(void)
{
    EXPECT_EQ(0, say(VIEWED));
}

void
put_indexed(void)
{
    EXPECT_EQ(0, say(INDEXED));
}

void
put_streamed(void)
{
    EXPECT_EQ(0, say(STREAMED));
}

void
put_filled(void)
{
    EXPECT_EQ(0, say(FILLED));
}

void
put_by_copy(void)
{
    EXPECT_EQ(0, say(BY_COPY));
}

void
put_plainly(void)
{
    EXPECT_EQ(0, say(PLAIN));
}

/* Nobody takes it, or one that sleeps until it comes. */
void
put_pieces(void)
{
    (void) say(PIECES);
}

/* The first four of them find room, unless others put meanwhile. */
void
put_four(void)
{
    (void) say_some(4);
}

void
place_and_put(void)
{
    mpshm_place *place = mpshm_place_new(stage.arena);

    if (mpshm_place_take(place) == 0) {
        (void) say_with_place(SHORT, place);
    }
    mpshm_place_free(place);
}

void
place_and_give(void)
{
    mpshm_place *place = mpshm_place_new(stage.arena);

    (void) mpshm_place_take(place);
    mpshm_place_free(place);
}

void
put_where_full(void)
{
    (void) say(stage.kind->filler);
    (void) mpshm_queue_wait_room(&stage.out, NULL, 1);
}

/* In a queue that is bounded by bytes: a position is to be had, but it is not its turn. */
void
wait_for_turn(void)
{
    mpshm_place *place = mpshm_place_new(stage.arena);

    if (mpshm_place_take(place) == 0 && say_with_place(VIEWED, place) != 0) {
        (void) mpshm_queue_wait_room(&stage.out, place, 1);
    }
    mpshm_place_free(place);
}

/* Room for what it sends itself, of which one message is under way. */
void
wait_for_memory(void)
{
    (void) mpshm_wait_room(stage.arena, stage.out.fd, 90000, 100000, 1);
}

/* As many as there are records. */
void
use_all_records(void)
{
    for (int i = 0; i < 8 && say(PLAIN) == 0; i++) {
    }
}

void
wait_for_record(void)
{
    (void) say(PLAIN);
}

/* Getting. */

void
get_one(void)
{
    (void) hear();
}

void
get_all(void)
{
    (void) hear_all();
}

void
get_four(void)
{
    (void) hear_some(4, 0);
}

void
get_nothing(void)
{
    (void) hear_some(1, 1);
}

void
poll_for_some(void)
{
    (void) mpshm_queue_poll(&stage.in, 0);
    (void) mpshm_queue_poll(&stage.in, 1);
}

void
poll_for_none(void)
{
    (void) mpshm_queue_poll(&stage.in, 1);
}

void
watch(void)
{
    mpshm_queue_watch(&stage.in);
    (void) hear();
}

void
call(void)
{
    mpshm_queue_call(&stage.in);
}

void
get_half_a_ring(void)
{
    for (int i = 0; i < ENOUGH / 2; i += 100) {
        (void) hear_some(100, 0);
    }
}

/* Tasks. */

void
get_and_done(void)
{
    if (hear()) {
        EXPECT(say_done());
    }
}

void
done(void)
{
    (void) say_done();
}

void
wait_done(void)
{
    (void) mpshm_wait_done(stage.arena, 1);
}

/* Messages that can be taken back. */

void
put_tracked_short(void)
{
    EXPECT_EQ(0, say_tracked(SHORT));
}

void
put_tracked_views(void)
{
    EXPECT_EQ(0, say_tracked(VIEWED));
}

void
put_tracked_index(void)
{
    EXPECT_EQ(0, say_tracked(INDEXED));
}

void
put_tracked_plainly(void)
{
    EXPECT_EQ(0, say_tracked(PLAIN));
}

void
take_back(void)
{
    unsay();
}

void
put_and_take_back(void)
{
    put_tracked_short();
    unsay();
}

/* Two of them, between others. */
void
put_and_take_back_views(void)
{
    put_tracked_views();
    unsay();
    put_and_take_back();
    EXPECT_EQ(0, say(VIEWED));
}

void
wait_for_receipt(void)
{
    (void) is_heard(1);
}

/* Others may take their messages first. */
bool
sleep_for_receipt(void)
{
    static bool has_sent;

    if (!has_sent) {
        put_tracked_views();
        has_sent = true;
    }
    return is_heard(UNTIL_ITS_WATCH);
}

/* Those who sleep, and what wakes them if the victim did not. */

bool
sleep_for_message(void)
{
    return hear_some(1, -1) == 1;
}

void
nudge_message(void)
{
    if (mpshm_queue_size(stage.arena) == 0) {
        EXPECT_EQ(0, say(SHORT));
    }
}

bool
sleep_for_room(void)
{
    if (say(stage.kind->filler) == 0) {
        return true;
    }
    (void) mpshm_queue_wait_room(&stage.out, NULL, UNTIL_ITS_WATCH);
    return false;
}

bool
sleep_for_turn(void)
{
    static mpshm_place *place;

    if (place == NULL) {
        place = mpshm_place_new(stage.arena);
        EXPECT_EQ(0, mpshm_place_take(place));
    }
    if (say_with_place(VIEWED, place) == 0) {
        return true;
    }
    (void) mpshm_queue_wait_room(&stage.out, place, UNTIL_ITS_WATCH);
    return false;
}

void
nudge_room(void)
{
    if (mpshm_queue_size(stage.arena) >= stage.kind->fits) {
        (void) hear();
    }
}

void
nudge_ring(void)
{
    get_half_a_ring();
}

bool
sleep_for_tasks(void)
{
    return mpshm_wait_done(stage.arena, UNTIL_ITS_WATCH) == 0;
}

void
nudge_tasks(void)
{
    while (say_done()) {
    }
}

/* Those that nobody has taken among them: what was skipped behind one counts when the head gets there. */
void
nudge_all_tasks(void)
{
    get_all();
    nudge_tasks();
}

bool
sleep_for_memory(void)
{
    static bool has_sent;

    if (!has_sent) {
        EXPECT_EQ(0, say(VIEWED));
        has_sent = true;
    }
    return mpshm_wait_room(stage.arena, stage.out.fd, 90000, 100000, UNTIL_ITS_WATCH) == 0;
}

bool
sleep_for_taker(void)
{
    return say_patiently(PIECES) == 0;
}

/* The victim is dead, or has got it. */
void
nudge_taker(void)
{
    mpshm_process_ended(report->victim_pid);
    (void) hear();
}

/* And here it has put it, or is dead. */
void
nudge_pieces(void)
{
    mpshm_process_ended(report->victim_pid);
    nudge_message();
}

void
nudge_memory(void)
{
    if (!drain_if_torn()) {
        (void) hear();
    }
}
