/* The debug build's hook that refuses memory.  Not in mpshm.h, for a released core has none of it. */
#ifndef MPSHM_REFUSE_H
#define MPSHM_REFUSE_H

#include <stdbool.h>

#ifdef MPSHM_DEBUG
/* Whether this request for memory is to fail, as it would on a machine that has none left.  Asked
   once by each: a memory file, a run, an increase of one, a further ring. */
bool memory_is_refused(void);
/* Whether no segment's data are to be mapped, as under a limit of address space. */
bool mapping_is_refused(void);
#else
static inline bool
memory_is_refused(void)
{
    return false;
}
static inline bool
mapping_is_refused(void)
{
    return false;
}
#endif

#endif
