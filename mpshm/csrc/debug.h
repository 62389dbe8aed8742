/* What the debug build gives to tests beside mpshm.h; read by cffi as well, so declarations only. */

/* Refuse memory from the `from`-th request on, the first being 1, `count` times.  0 times: never. */
void mpshm_debug_refuse(uint64_t from, uint64_t count);
/* Requests for memory since that call, by this process. */
uint64_t mpshm_debug_requests(void);
/* From now on map no more segments' data in this process; 0: map them again. */
void mpshm_debug_refuse_mappings(int refuse);
