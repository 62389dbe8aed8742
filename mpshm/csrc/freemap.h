/* Bits of a free map; knows no memory, no segment and no run. */
#ifndef MPSHM_FREEMAP_H
#define MPSHM_FREEMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint64_t mapword;

bool freemap_try_claim(mapword *map, uint32_t count, uint32_t want, uint32_t *start);
uint32_t freemap_claim_from(mapword *map, uint32_t count, uint32_t start, uint32_t want);
void freemap_put_back(mapword *map, uint32_t start, uint32_t n);
bool freemap_is_free(mapword *map, uint32_t chunk);

#endif
