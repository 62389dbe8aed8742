/* Maps of a segment's chunks, one bit each, in plain words.  See freemap.c. */
#ifndef MPSHM_FREEMAP_H
#define MPSHM_FREEMAP_H

#include <stdbool.h>
#include <stdint.h>

/* A word, read once: a stray write must not change it between a check and its use. */
static inline uint64_t
freemap_word(const uint64_t *map, uint32_t i)
{
    return __atomic_load_n(&map[i], __ATOMIC_RELAXED);
}

void freemap_set(uint64_t *map, uint32_t start, uint32_t n);
void freemap_clear(uint64_t *map, uint32_t start, uint32_t n);
bool freemap_has(const uint64_t *map, uint32_t at);
uint32_t freemap_stretch(const uint64_t *map, uint32_t count, uint32_t start, uint32_t want);
bool freemap_find(const uint64_t *map, uint32_t count, uint32_t want, uint32_t *start);

#endif
