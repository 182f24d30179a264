// Accumulators stay in registers only when every loop over them is unrolled.
#pragma once

#if defined(__GNUC__)
#define OCTAVO_UNROLL _Pragma("GCC unroll 16")
#else
#define OCTAVO_UNROLL
#endif
