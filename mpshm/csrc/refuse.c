/* Refuses memory, or mappings of it, when a test asks for that, so that the test sees what is sent then.  Debug build
   only.

   Knows a count of requests.  Does not know what was to be had, nor what becomes of the refusal.

   Memory order: a test sets the limits between requests; sequential consistency is more than enough. */
#include "refuse.h"

#include <stdint.h>

#ifdef MPSHM_DEBUG

#include <stdatomic.h>

#include "debug.h"

static _Atomic uint64_t requests, first, last;
static _Atomic int no_mappings;

void
mpshm_debug_refuse(uint64_t from, uint64_t count)
{
    atomic_store(&last, 0);
    atomic_store(&requests, 0);
    atomic_store(&first, from);
    atomic_store(&last, count == 0 ? 0 : from + count - 1);
}

uint64_t
mpshm_debug_requests(void)
{
    return atomic_load(&requests);
}

bool
memory_is_refused(void)
{
    uint64_t number = atomic_fetch_add(&requests, 1) + 1;

    return number >= atomic_load(&first) && number <= atomic_load(&last);
}

void
mpshm_debug_refuse_mappings(int refuse)
{
    atomic_store(&no_mappings, refuse);
}

bool
mapping_is_refused(void)
{
    return atomic_load(&no_mappings) != 0;
}

#endif
