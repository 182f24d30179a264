#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define OCTAVO_X86 1
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace octavo {
namespace {

std::atomic<Isa> limit{Isa::avx512};

#ifdef OCTAVO_X86

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{0, 0, 0, 0};
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Bit numbers: Intel SDM volume 2A, CPUID, leaves 1 and 7; XCR0 bits in volume 1, 13.3.
Features detect() {
  Features f;
  const Registers leaf1 = cpuid(1, 0);
  const bool os_saves_state = bit(leaf1.c, 27);
  if (!os_saves_state) return f;
  const uint64_t saved = xcr0();
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = cpuid(7, 1);
  f.fma = ymm && bit(leaf1.c, 12);
  f.f16c = ymm && bit(leaf1.c, 29);
  f.avx2 = ymm && bit(leaf7.b, 5);
  f.avx512f = zmm && bit(leaf7.b, 16);
  f.avx512bw = zmm && bit(leaf7.b, 30);
  f.avx512vl = zmm && bit(leaf7.b, 31);
  f.avx512_vnni = zmm && bit(leaf7.c, 11);
  f.avx512_bf16 = zmm && bit(leaf7_1.a, 5);
  return f;
}

#else

Features detect() { return Features{}; }

#endif

}  // namespace

const Features& features() {
  static const Features found = detect();
  return found;
}

Isa best_isa() {
  const Features& f = features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl;
  const Isa wide = f.avx512_bf16 ? Isa::avx512_bf16 : Isa::avx512;
  const Isa found = avx512 ? wide : avx2 ? Isa::avx2 : Isa::scalar;
  return std::min(found, limit.load(std::memory_order_relaxed));
}

void limit_isa(Isa most) { limit.store(most, std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "scalar";
  }
}

}  // namespace octavo
