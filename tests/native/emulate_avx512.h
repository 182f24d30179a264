// Put before a file of AVX-512 kernels, it makes their intrinsics plain code: SIMDe, https://github.com/simd-everywhere/simde
// (Debian's libsimde-dev). The file is then compiled for AVX2.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What its version 0.7.4 lacks.
inline simde__m512i emulated_widen(simde__m256i low, simde__m256i high) {
  return simde_mm512_inserti64x4(simde_mm512_castsi256_si512(low), high, 1);
}
inline simde__m512 emulated_floats(simde__m512i a) {
  const simde__m256i halves[2] = {simde_mm512_castsi512_si256(a), simde_mm512_extracti64x4_epi64(a, 1)};
  float wide[16];
  _mm256_storeu_ps(wide, _mm256_cvtepi32_ps(halves[0]));
  _mm256_storeu_ps(wide + 8, _mm256_cvtepi32_ps(halves[1]));
  return simde_mm512_loadu_ps(wide);
}
inline simde__m512 emulated_halves(__m256i a) {
  float wide[16];
  _mm256_storeu_ps(wide, _mm256_cvtph_ps(_mm256_castsi256_si128(a)));
  _mm256_storeu_ps(wide + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
  return simde_mm512_loadu_ps(wide);
}
#define _mm512_cvtph_ps(a) emulated_halves(a)
#define _mm512_cvtepi32_ps(a) emulated_floats(a)
#define _mm512_cvtepu16_epi32(a) \
  emulated_widen(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)))
#define _mm512_cvtepu8_epi32(a) emulated_widen(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)))
#define _mm512_cvtepi8_epi32(a) emulated_widen(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))
inline simde__m512i emulated_shift(simde__m512i a, int count) {
  return emulated_widen(_mm256_srai_epi32(simde_mm512_castsi512_si256(a), count),
                        _mm256_srai_epi32(simde_mm512_extracti64x4_epi64(a, 1), count));
}
inline __m256i emulated_lower_halves(simde__m512i a) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i low = _mm256_and_si256(simde_mm512_castsi512_si256(a), mask);
  const __m256i high = _mm256_and_si256(simde_mm512_extracti64x4_epi64(a, 1), mask);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
#define _mm512_srai_epi32(a, count) emulated_shift(a, count)
#define _mm512_cvtepi32_epi16(a) emulated_lower_halves(a)
inline simde__m512i emulated_integers(simde__m512 a) {
  float each[16];
  simde_mm512_storeu_ps(each, a);
  return emulated_widen(_mm256_cvtps_epi32(_mm256_loadu_ps(each)), _mm256_cvtps_epi32(_mm256_loadu_ps(each + 8)));
}
// To nearest, ties to even; subnormal numbers become zero, NaN stays one.
inline __m256i emulated_bfloat16s(simde__m512 a) {
  uint32_t words[16];
  uint16_t halves[16];
  simde_mm512_storeu_ps(words, a);
  for (int i = 0; i < 16; ++i) {
    const uint32_t size = words[i] & 0x7fffffffu, rounded = words[i] + 0x7fffu + (words[i] >> 16 & 1u);
    const uint32_t kept = size > 0x7f800000u ? words[i] | 0x400000u : size < 0x800000u ? words[i] & 0x80000000u : rounded;
    halves[i] = uint16_t(kept >> 16);
  }
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
}
#define _mm512_cvtps_epi32(a) emulated_integers(a)
#define _mm512_cvtneps_pbh(a) emulated_bfloat16s(a)
inline simde__m512 emulated_load(unsigned mask, const float* from) {
  float wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = mask >> i & 1 ? from[i] : 0.0f;
  return simde_mm512_loadu_ps(wide);
}
inline void emulated_store(float* to, unsigned mask, simde__m512 a) {
  float wide[16];
  simde_mm512_storeu_ps(wide, a);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) to[i] = wide[i];
  }
}
#define _mm512_maskz_loadu_ps(mask, from) emulated_load(mask, from)
#define _mm512_mask_storeu_ps(to, mask, a) emulated_store(to, mask, a)
