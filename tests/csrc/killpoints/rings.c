/* The rings of a queue that grows, of which mpshm.h says nothing: this file alone looks into the core. */
#include "rings.h"

#include "ring.h"

#include "lives.h"

/* The walk over rings looks at those that this process has mapped: map all that have been in use. */
static void
map_all(mpshm_arena *arena)
{
    for (uint32_t number = 0; number < arena->rings; number++) {
        if (atomic_load(&arena->chain->word[number]) != 0) {
            EXPECT(ring_at(arena, number) != NULL);
        }
    }
}

void
rings_check(mpshm_arena *arena)
{
    if (arena->chain != NULL) {
        map_all(arena);
        EXPECT_EQ(1, ring_validate(arena, true));
    }
}

void
rings_check_given_back(mpshm_arena *arena)
{
    struct chain *chain = arena->chain;

    rings_check(arena);
    EXPECT_EQ(0, LINK_RING(FIRST_LINK(atomic_load(&chain->first))));
    EXPECT_EQ(0, rings_last(arena));
    EXPECT_EQ(0, atomic_load(&chain->touched));
}

/* Under no lock: nobody else is at work. */
static struct stop
last_stop(const mpshm_arena *arena, uint64_t *end)
{
    struct stop stop;

    EXPECT(chain_begin(arena, &stop));
    int on;

    while ((on = chain_on(arena, &stop, end)) == 1) {
    }
    EXPECT_EQ(0, on);
    return stop;
}

uint32_t
rings_last(const mpshm_arena *arena)
{
    uint64_t end;

    return last_stop(arena, &end).ring->number;
}

uint64_t
rings_end(const mpshm_arena *arena)
{
    uint64_t end;

    (void) last_stop(arena, &end);
    return end;
}
