/* Acts: rings that are linked, left, and given back. */
#define _GNU_SOURCE
#include <stddef.h>

#include "lives.h"
#include "rings.h"
#include "scenarios.h"
#include "stage.h"

/* In a grown ring, each put whose position is divided by this looks whether it is to be left (queue_put.c). */
#define PUTS_BEFORE_SHRINK 64

static void
grow(void)
{
    EXPECT_EQ(0, mpshm_queue_grow(&stage.out));
}

/* And do the tasks. */
static void
take(int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        EXPECT(hear());
        EXPECT(say_done());
    }
}

/* What was done before. */

void
fill_and_grow(void)
{
    fill();
    grow();
}

void
fill_two(void)
{
    fill_and_grow();
    fill();
}

void
leave_two_places(void)
{
    fill();
    take(2);
}

void
leave_one_before_link(void)
{
    fill();
    int64_t before = mpshm_queue_size(stage.arena);

    grow();
    three();
    take(before - 1);
}

void
leave_few_behind_link(void)
{
    leave_one_before_link();
    take(1);
}

/* Whose tasks are not done. */
void
take_over_link(void)
{
    leave_one_before_link();
    EXPECT(hear());
    EXPECT(hear());
}

/* The next put does it: nothing is in the queue. */
void
be_about_to_shrink(void)
{
    leave_few_behind_link();
    take(3);
    while (rings_end(stage.arena) % PUTS_BEFORE_SHRINK != 0) {
        EXPECT_EQ(0, say(SHORT));
        take(1);
    }
    EXPECT(rings_last(stage.arena) != 0);
}

/* The rings that were in use are free, and have memory. */
void
shrink(void)
{
    be_about_to_shrink();
    EXPECT_EQ(0, say(SHORT));
    EXPECT_EQ(0, rings_last(stage.arena));
    take(1);
}

/* As a queue that has grown and been emptied, and whose second next put shrinks it. */
void
open_and_grow(int kind)
{
    stage_open(kind);
    if (kind == GROWN) {
        be_about_to_shrink();
        for (int i = 1; i < PUTS_BEFORE_SHRINK; i++) {
            EXPECT_EQ(0, say(SHORT));
            take(1);
        }
    }
}

/* Putting. */

void
grow_and_put(void)
{
    (void) say(SHORT);
    grow();
    (void) say(SHORT);
}

void
put_over_link(void)
{
    (void) say_some(4);
    grow();
    (void) say_some(4);
}

void
put_and_shrink(void)
{
    EXPECT_EQ(0, say(SHORT));
    EXPECT_EQ(0, say(VIEWED));
}

void
done_twice(void)
{
    (void) say_done();
    (void) say_done();
}

/* What others do: rings are left and used again while the victim stands in one. */
void
grow_and_shrink(void)
{
    for (int i = 0; i < 2; i++) {
        fill_and_grow();
        three();
        take_everything();
        trim();
    }
}
