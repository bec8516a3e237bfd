/* Included before each source of llama.cpp when it is built for a machine with AMX.

   The `_tile_loadconfig` of GCC 12 tells the compiler of 8 of the 64 bytes that the instruction reads, so the stores to
   the rest are optimised away and the first matrix product ends with an illegal instruction. This one names all 64. */
#if defined(__x86_64__) && defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
static inline __attribute__((always_inline)) void load_whole_tile_config(const void *config) {
    __asm__ volatile("ldtilecfg\t%0" ::"m"(*(const char(*)[64])config));
}
#define _tile_loadconfig(config) load_whole_tile_config(config)
#endif
