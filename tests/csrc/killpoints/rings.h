/* The rings of a queue that grows. */
#ifndef RINGS_H
#define RINGS_H

#include <stdint.h>

struct mpshm_arena;

/* When nobody is at work, and the dead have been reaped: the rings in the chain are in use, all others are free, and
   what each of them says holds. */
void rings_check(struct mpshm_arena *arena);
/* When nothing is in it, and its memory has been given back: there is ring 0, as at the beginning. */
void rings_check_given_back(struct mpshm_arena *arena);
/* The last ring, and the position in it that is claimed next. */
uint32_t rings_last(const struct mpshm_arena *arena);
uint64_t rings_end(const struct mpshm_arena *arena);

#endif
