// Accumulators stay in registers only when every loop over them is unrolled.
#pragma once

#if defined(__GNUC__)
#define OCTAVO_UNROLL _Pragma("GCC unroll 16")
#else
#define OCTAVO_UNROLL
#endif

#if defined(__GNUC__)
#define OCTAVO_APART __attribute__((noinline))
#else
#define OCTAVO_APART
#endif

// Keeps a vector's sum where it is between two steps of its chain; without this GCC moves it from register to register,
// and some to memory.
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__)) && !defined(OCTAVO_EMULATED_AVX512)
#define OCTAVO_STAY(vector) __asm__("" : "+v"(vector))
#else
#define OCTAVO_STAY(vector)
#endif

// Asks for a line that is to be written. Where it is not asked for, stores wait for lines one after the other (x86 keeps
// their order) and soon for room among waiting stores.
#if defined(__GNUC__)
#define OCTAVO_FETCH_TO_WRITE(address) __builtin_prefetch(address, 1, 3)
#else
#define OCTAVO_FETCH_TO_WRITE(address)
#endif

// What a pointer points to lies in memory from here on: without this GCC takes small buffers apart and copies them around.
#if defined(__GNUC__)
#define OCTAVO_IN_MEMORY(pointer) __asm__("" : "+r"(pointer) : : "memory")
#else
#define OCTAVO_IN_MEMORY(pointer)
#endif
