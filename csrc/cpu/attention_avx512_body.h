// AVX-512F and BW, sixteen floats at a time: what its two units of attention share. For the unnamed namespace of a translation
// unit, behind attention_avx2_body.h.

inline __m128i load_quarter(const char* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

// Sixteen bytes of each of the keys i, i + 4, i + 8 and i + 12.
OCTAVO_INLINE __m512i load_four(const char* k, int64_t stride) {
  __m512i four = _mm512_castsi128_si512(load_quarter(k));
  four = _mm512_inserti32x4(four, load_quarter(k + 4 * stride), 1);
  four = _mm512_inserti32x4(four, load_quarter(k + 8 * stride), 2);
  return _mm512_inserti32x4(four, load_quarter(k + 12 * stride), 3);
}

// Four words of each of sixteen keys, one vector per word.
OCTAVO_INLINE void load_words(__m512i (&words)[4], const char* k, int64_t stride) {
  const __m512i k0 = load_four(k, stride), k1 = load_four(k + stride, stride);
  const __m512i k2 = load_four(k + 2 * stride, stride), k3 = load_four(k + 3 * stride, stride);
  const __m512i a = _mm512_unpacklo_epi32(k0, k1), b = _mm512_unpacklo_epi32(k2, k3);
  const __m512i c = _mm512_unpackhi_epi32(k0, k1), d = _mm512_unpackhi_epi32(k2, k3);
  words[0] = _mm512_unpacklo_epi64(a, b);
  words[1] = _mm512_unpackhi_epi64(a, b);
  words[2] = _mm512_unpacklo_epi64(c, d);
  words[3] = _mm512_unpackhi_epi64(c, d);
}

// As exp8, step by step.
inline __m512 exp16(__m512 x) {
  const __mmask16 alive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_maskz_mul_ps(alive, y, _mm512_castsi512_ps(power));
}

OCTAVO_INLINE __m256 lower(__m512 x) { return _mm512_castps512_ps256(x); }
OCTAVO_INLINE __m256 upper(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }

// Where the largest score stays it is, as exp(0) is one.
inline float factor_of(float maximum, float new_top) { return maximum == new_top ? 1.0f : exp1(maximum - new_top); }

inline float larger(__m512 tops, float maximum) {
  const float top = max8(_mm256_max_ps(lower(tops), upper(tops)));
  return top > maximum ? top : maximum;
}

inline float finish_softmax(__m256 total, float new_top, float* maximum, float* sum) {
  const float factor = factor_of(*maximum, new_top);  // exp(-inf) = 0 on a row's first stretch
  *sum = *sum * factor + sum8(total);
  *maximum = new_top;
  return factor;
}

// A whole stretch of scores that have but one scale: they stay in registers.
template <class Store>
inline float softmax_whole(const float* row, float scale, float* maximum, float* sum, Store store) {
  constexpr int kVectors = kStretch / 16;
  __m512 s[kVectors];
  OCTAVO_UNROLL
  for (int i = 0; i < kVectors; ++i) s[i] = _mm512_mul_ps(_mm512_loadu_ps(row + 16 * i), _mm512_set1_ps(scale));
  __m512 tops = s[0];
  OCTAVO_UNROLL
  for (int i = 1; i < kVectors; ++i) tops = _mm512_max_ps(tops, s[i]);
  const float new_top = larger(tops, *maximum);
  __m256 total = _mm256_setzero_ps();
  OCTAVO_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const __m512 p = exp16(_mm512_sub_ps(s[i], _mm512_set1_ps(new_top)));
    total = _mm256_add_ps(_mm256_add_ps(total, lower(p)), upper(p));
    store(16 * i, p);
  }
  return finish_softmax(total, new_top, maximum, sum);
}

// As Avx2::softmax, step by step: sixteen scores at once, their sum in eight lanes. store(j, weights of j .. j + 15).
template <class Store>
inline float softmax16(float* row, int lo, int hi, const float* k_scales, const float* v_scales, const Attention& a,
                       float* maximum, float* sum, Store store) {
  if (lo == 0 && hi == kStretch && k_scales == nullptr && a.soft_cap == 0.0f) {
    return softmax_whole(row, a.scale, maximum, sum, store);
  }
  const __m512 none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const int first = lo / 16 * 16;
  __m512 tops = none;
  for (int j = first; j < hi; j += 16) {
    __m512 s = _mm512_loadu_ps(row + j);
    if (k_scales != nullptr) s = _mm512_mul_ps(s, _mm512_loadu_ps(k_scales + j));
    s = _mm512_mul_ps(s, _mm512_set1_ps(a.scale));
    if (a.soft_cap > 0.0f) {
      float each[16];
      _mm512_storeu_ps(each, s);
      for (float& value : each) value = a.soft_cap * tanhf(value / a.soft_cap);
      s = _mm512_loadu_ps(each);
    }
    if (j < lo || j + 16 > hi) {
      const uint32_t below = j < lo ? (1u << (lo - j)) - 1 : 0, seen = j + 16 > hi ? (1u << (hi - j)) - 1 : 0xffffu;
      s = _mm512_mask_mov_ps(none, static_cast<__mmask16>(seen & ~below), s);
    }
    tops = _mm512_max_ps(tops, s);
    _mm512_storeu_ps(row + j, s);
  }
  const float new_top = larger(tops, *maximum);
  __m256 total = _mm256_setzero_ps();
  for (int j = first; j < hi; j += 16) {
    __m512 p = exp16(_mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(new_top)));
    total = _mm256_add_ps(_mm256_add_ps(total, lower(p)), upper(p));
    if (v_scales != nullptr) p = _mm512_mul_ps(p, _mm512_loadu_ps(v_scales + j));
    store(j, p);
  }
  return finish_softmax(total, new_top, maximum, sum);
}
