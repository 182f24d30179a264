// AVX2 + FMA + F16C, eight floats at a time: what attention_body.h asks of an instruction set. For the unnamed namespace of a
// translation unit, behind attention_body.h; that of AVX-512 builds on it.

#if defined(__GNUC__)
#define OCTAVO_INLINE inline __attribute__((always_inline))
#define OCTAVO_FORGET(pointer) __asm__("" : "+r"(pointer))
#else
#define OCTAVO_INLINE inline
#define OCTAVO_FORGET(pointer)
#endif


template <DType K>
inline __m256 load8(const char* src) {
  if constexpr (K == DType::float32) return _mm256_loadu_ps(reinterpret_cast<const float*>(src));
  const auto half = [src] { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)); };
  if constexpr (K == DType::bfloat16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half()), 16));
  if constexpr (K == DType::float16) return _mm256_cvtph_ps(half());
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src))));
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
inline __m128i pack8_bf16(__m256 value) {
  const __m256i word = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
  return _mm256_castsi256_si128(packed);
}

// (x0+x4 + x2+x6) + (x1+x5 + x3+x7)
inline float sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float max8(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// exp for x <= 0, within 2 units in the last place: exp(x) = 2^n exp(r), |r| <= ln(2) / 2, with the polynomial of
// Cephes expf (S. Moshier, https://www.netlib.org/cephes/, single/expf.c). Below -87.3, and for -inf, it is 0.
inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.33654f);
  const __m256 alive = _mm256_cmp_ps(x, low, _CMP_NLT_UQ);  // true for NaN, which then passes through
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(y, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(power)), alive);
}

inline float exp1(float x) { return _mm256_cvtss_f32(exp8(_mm256_set1_ps(x))); }

// rows[i][d] -> rows[d][i]
OCTAVO_INLINE void transpose8(__m256* rows) {
  __m256 t[8], u[8];
  OCTAVO_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  OCTAVO_UNROLL
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  OCTAVO_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// Features d .. d + 7 of eight keys, one vector per feature.
template <DType K>
OCTAVO_INLINE void load_keys(__m256* features, const char* k, int64_t stride, int d) {
  OCTAVO_UNROLL
  for (int i = 0; i < 8; ++i) features[i] = load8<K>(k + i * stride + d * size_of(K));
  transpose8(features);
}

// Features that are transposed together: four words of each key, of a feature, two or four; eight of float16.
template <DType K>
constexpr int kRun = K == DType::float16 ? 8 : 16 / int(size_of(K));

// Feature E of those in a word of each of eight keys.
template <DType K, int E>
OCTAVO_INLINE __m256 feature_of(__m256i words) {
  if constexpr (K == DType::float32) return _mm256_castsi256_ps(words);
  if constexpr (K == DType::bfloat16) {
    const __m256i high = _mm256_set1_epi32(int(0xffff0000u));
    return _mm256_castsi256_ps(E == 0 ? _mm256_slli_epi32(words, 16) : _mm256_and_si256(words, high));
  }
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(E == 3 ? words : _mm256_slli_epi32(words, 24 - 8 * E), 24));
}

// R rows of queries from one feature on. What is read of them is not kept from one run of keys to the next: GCC would, on the
// stack.
template <int R>
struct Rows {
  const float* row[R];

  OCTAVO_INLINE Rows(const float* q, int64_t stride) {
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      row[r] = q + r * stride;
      OCTAVO_FORGET(row[r]);
    }
  }
};

// Adds feature d of eight keys to the scores of R rows.
template <int R>
OCTAVO_INLINE void add_feature(__m256 (&sums)[R], const Rows<R>& q, int d, __m256 feature) {
  OCTAVO_UNROLL
  for (int r = 0; r < R; ++r) {
    sums[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(q.row[r] + d), feature, sums[r]);
    OCTAVO_STAY(sums[r]);
  }
}

// Eight features of eight keys.
template <DType K, int R>
OCTAVO_INLINE void add_eight(__m256 (&sums)[R], const float* q, int64_t q_stride, const char* k, int64_t stride) {
  const Rows<R> rows(q, q_stride);
  __m256 features[8];
  load_keys<K>(features, k, stride, 0);
  OCTAVO_UNROLL
  for (int i = 0; i < 8; ++i) add_feature<R>(sums, rows, i, features[i]);
}

OCTAVO_INLINE __m256i load_two(const char* low, const char* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

// kRun features of eight keys. Words are transposed before they are widened: half of the shuffles in bfloat16, a quarter
// in int8.
template <DType K, int R>
OCTAVO_INLINE void add_run(__m256 (&sums)[R], const float* q, int64_t q_stride, const char* k, int64_t stride) {
  if constexpr (K == DType::float16) {
    add_eight<K, R>(sums, q, q_stride, k, stride);
  } else {
    const Rows<R> rows(q, q_stride);
    const __m256i k0 = load_two(k, k + 4 * stride), k1 = load_two(k + stride, k + 5 * stride);
    const __m256i k2 = load_two(k + 2 * stride, k + 6 * stride), k3 = load_two(k + 3 * stride, k + 7 * stride);
    const __m256i a = _mm256_unpacklo_epi32(k0, k1), b = _mm256_unpacklo_epi32(k2, k3);
    const __m256i c = _mm256_unpackhi_epi32(k0, k1), d = _mm256_unpackhi_epi32(k2, k3);
    const __m256i words[4] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), _mm256_unpacklo_epi64(c, d),
                              _mm256_unpackhi_epi64(c, d)};
    constexpr int kEach = kRun<K> / 4;
    OCTAVO_UNROLL
    for (int w = 0; w < 4; ++w) {
      add_feature<R>(sums, rows, w * kEach, feature_of<K, 0>(words[w]));
      if constexpr (kEach > 1) add_feature<R>(sums, rows, w * kEach + 1, feature_of<K, 1>(words[w]));
      if constexpr (kEach > 2) add_feature<R>(sums, rows, w * kEach + 2, feature_of<K, 2>(words[w]));
      if constexpr (kEach > 2) add_feature<R>(sums, rows, w * kEach + 3, feature_of<K, 3>(words[w]));
    }
  }
}

// Sixteen values; of bfloat16 0 .. 3 and 8 .. 11, then 4 .. 7 and 12 .. 15, which takes one instruction each.
template <DType K>
OCTAVO_INLINE void load16(const char* v, __m256* to) {
  if constexpr (K == DType::bfloat16) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v));
    to[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(_mm256_setzero_si256(), both));
    to[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(_mm256_setzero_si256(), both));
  } else {
    to[0] = load8<K>(v);
    to[1] = load8<K>(v + 8 * size_of(K));
  }
}

// Sixteen columns to the order of `load16`, and back.
template <DType K>
OCTAVO_INLINE void arrange(__m256 low, __m256 high, __m256* to) {
  constexpr bool kIsApart = K == DType::bfloat16;
  to[0] = kIsApart ? _mm256_permute2f128_ps(low, high, 0x20) : low;
  to[1] = kIsApart ? _mm256_permute2f128_ps(low, high, 0x31) : high;
}

struct Avx2 {
  static constexpr int kPair = 1;
  static constexpr int kPanels = 1;

  static constexpr int heads_together(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  // Not the intrinsic where there is another way: GCC 12 takes a function that only prefetches for one without effect, and
  // leaves out calls of it.
  static void prefetch(const char* p) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __asm__ volatile("prefetcht0 %0" ::"m"(*p));
#else
    _mm_prefetch(p, _MM_HINT_T0);
#endif
  }

  template <DType K>
  static void load_as(float* dst, const char* src, int n) {
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(dst + i, load8<K>(src + i * size_of(K)));
  }

  static void load_row(float* dst, const char* src, DType dtype, int n) {
    if (dtype == DType::float32) return load_as<DType::float32>(dst, src, n);
    dtype == DType::bfloat16 ? load_as<DType::bfloat16>(dst, src, n) : load_as<DType::float16>(dst, src, n);
  }

  static void store_row(char* dst, const float* src, float factor, DType dtype, int n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8, dst += 8 * size_of(dtype)) {
      const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(src + i), f);
      if (dtype == DType::float32) {
        _mm256_storeu_ps(reinterpret_cast<float*>(dst), value);
      } else {
        const __m128i half = dtype == DType::bfloat16 ? pack8_bf16(value) : _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), half);
      }
    }
  }

  template <DType K>
  static void pack_keys(float* panel, const char* k, int64_t stride, int n) {
    for (int first = 0; first < kBlockSize; first += 8) {
      for (int d = 0; d < n; d += 8) {
        __m256 features[8];
        load_keys<K>(features, k + first * stride, stride, d);
        OCTAVO_UNROLL
        for (int i = 0; i < 8; ++i) _mm256_store_ps(panel + (d + i) * 16 + first, features[i]);
      }
    }
  }

  template <DType K>
  static void pack_values(float* panels, const char* v, int64_t stride, int tokens, int n) {
    for (int j = 0; j < tokens; ++j) {
      for (int d = 0; d < n; d += 8) {
        _mm256_store_ps(panels + (d / 16 * kStretch + j) * 16 + d % 16, load8<K>(v + j * stride + d * size_of(K)));
      }
      if (n % 16 != 0) _mm256_store_ps(panels + (n / 16 * kStretch + j) * 16 + 8, _mm256_setzero_ps());
    }
  }

  template <int R, int B>
  static void tile(const Tile& t) {
    __m256 sums[R][2];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      sums[r][0] = t.from_zero ? _mm256_setzero_ps() : _mm256_loadu_ps(t.out + r * t.out_stride);
      sums[r][1] = t.from_zero ? _mm256_setzero_ps() : _mm256_loadu_ps(t.out + r * t.out_stride + 8);
    }
    const float* x = t.x;
    const int64_t x_stride = t.x_stride;
    for (int i = t.lo; i < t.hi; ++i) {
      const __m256 low = _mm256_load_ps(t.panel + i * 16), high = _mm256_load_ps(t.panel + i * 16 + 8);
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 input = _mm256_broadcast_ss(x + r * x_stride + i);
        sums[r][0] = _mm256_fmadd_ps(input, low, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(input, high, sums[r][1]);
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      _mm256_storeu_ps(t.out + r * t.out_stride, sums[r][0]);
      _mm256_storeu_ps(t.out + r * t.out_stride + 8, sums[r][1]);
    }
  }

  // Sums of B R rows by two halves of sixteen keys: eight chains, which two units of latency four want.
  template <DType K, int R, int B>
  static void scores(float* out, const float* q, int64_t q_stride, const char* k, int64_t stride, int n,
                     Ahead<Avx2>& ahead) {
    __m256 sums[2 * B][R];
    OCTAVO_UNROLL
    for (int i = 0; i < 2 * B; ++i) {
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) sums[i][r] = _mm256_setzero_ps();
    }
    int d = 0;
    for (; d + kRun<K> <= n; d += kRun<K>) {
      OCTAVO_UNROLL
      for (int i = 0; i < 2 * B; ++i) {
        add_run<K, R>(sums[i], q + i / 2 * R * q_stride + d, q_stride, k + (i / 2 * n + d) * size_of(K) + i % 2 * 8 * stride,
                      stride);
        ahead.fetch();
        ahead.fetch();
      }
    }
    if (kRun<K> > 8 && d < n) {
      OCTAVO_UNROLL
      for (int i = 0; i < 2 * B; ++i) {
        add_eight<K, R>(sums[i], q + i / 2 * R * q_stride + d, q_stride, k + (i / 2 * n + d) * size_of(K) + i % 2 * 8 * stride,
                        stride);
      }
    }
    OCTAVO_UNROLL
    for (int i = 0; i < 2 * B; ++i) {
      OCTAVO_UNROLL
      for (int r = 0; r < R; ++r) _mm256_storeu_ps(out + (i / 2 * R + r) * kStretch + i % 2 * 8, sums[i][r]);
    }
  }

  // Columns d .. d + 16 C of R rows: their sums stay in registers past all keys.
  template <DType K, int R, int C>
  static void add_columns(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int keys,
                          Ahead<Avx2>& ahead) {
    constexpr int kBytes = 16 * C * int(size_of(K));
    __m256 sums[R][2 * C];
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) {
        const float* from = acc + r * acc_stride + 16 * c;
        arrange<K>(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8), sums[r] + 2 * c);
      }
    }
    for (int j = 0; j < keys; ++j, v += stride) {
      if (kBytes >= 64 || j * kBytes % 64 == 0) ahead.fetch();
      if (kBytes > 64) ahead.fetch();
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) {
        __m256 values[2];
        load16<K>(v + 16 * c * size_of(K), values);
        OCTAVO_UNROLL
        for (int r = 0; r < R; ++r) {
          const __m256 weight = _mm256_broadcast_ss(p + r * kStretch + j);
          sums[r][2 * c] = _mm256_fmadd_ps(weight, values[0], sums[r][2 * c]);
          sums[r][2 * c + 1] = _mm256_fmadd_ps(weight, values[1], sums[r][2 * c + 1]);
        }
      }
    }
    OCTAVO_UNROLL
    for (int r = 0; r < R; ++r) {
      OCTAVO_UNROLL
      for (int c = 0; c < C; ++c) {
        __m256 columns[2];
        arrange<K>(sums[r][2 * c], sums[r][2 * c + 1], columns);
        _mm256_storeu_ps(acc + r * acc_stride + 16 * c, columns[0]);
        _mm256_storeu_ps(acc + r * acc_stride + 16 * c + 8, columns[1]);
      }
    }
  }

  template <DType K, int R>
  static void add(float* acc, int64_t acc_stride, const float* p, const char* v, int64_t stride, int lo, int hi, int n,
                  Ahead<Avx2>& ahead) {
    constexpr int C = R == 1 ? 4 : R == 2 ? 2 : 1;
    p += lo;
    v += lo * stride;
    int d = 0;
    for (; d + 16 * C <= n; d += 16 * C) add_columns<K, R, C>(acc + d, acc_stride, p, v + d * size_of(K), stride, hi - lo, ahead);
    for (; d + 16 <= n; d += 16) add_columns<K, R, 1>(acc + d, acc_stride, p, v + d * size_of(K), stride, hi - lo, ahead);
    if (d == n) return;
    for (int r = 0; r < R; ++r) {  // eight columns
      __m256 sum = _mm256_loadu_ps(acc + r * acc_stride + d);
      for (int j = 0; j < hi - lo; ++j) {
        sum = _mm256_fmadd_ps(_mm256_broadcast_ss(p + r * kStretch + j), load8<K>(v + j * stride + d * size_of(K)), sum);
      }
      _mm256_storeu_ps(acc + r * acc_stride + d, sum);
    }
  }

  static float softmax(float* row, int lo, int hi, const float* k_scales, const float* v_scales, const Attention& a,
                       float* maximum, float* sum) {
    const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int first = lo / 8 * 8;
    __m256 top = none;
    for (int j = first; j < hi; j += 8) {
      __m256 s = _mm256_loadu_ps(row + j);
      if (k_scales != nullptr) s = _mm256_mul_ps(s, _mm256_loadu_ps(k_scales + j));
      s = _mm256_mul_ps(s, _mm256_set1_ps(a.scale));
      if (a.soft_cap > 0.0f) s = cap(s, a.soft_cap);
      if (j < lo || j + 8 > hi) {
        const __m256i at = _mm256_add_epi32(lanes, _mm256_set1_epi32(j));
        const __m256i unseen = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), at),
                                               _mm256_cmpgt_epi32(at, _mm256_set1_epi32(hi - 1)));
        s = _mm256_blendv_ps(s, none, _mm256_castsi256_ps(unseen));
      }
      top = _mm256_max_ps(top, s);
      _mm256_storeu_ps(row + j, s);
    }
    const float stretch_top = max8(top);
    const float new_top = stretch_top > *maximum ? stretch_top : *maximum;
    const __m256 tops = _mm256_set1_ps(new_top);
    __m256 total = _mm256_setzero_ps();
    for (int j = first; j < hi; j += 8) {
      __m256 p = exp8(_mm256_sub_ps(_mm256_loadu_ps(row + j), tops));
      total = _mm256_add_ps(total, p);
      if (v_scales != nullptr) p = _mm256_mul_ps(p, _mm256_loadu_ps(v_scales + j));
      _mm256_storeu_ps(row + j, p);
    }
    const float factor = exp1(*maximum - new_top);  // exp(-inf) = 0 on a row's first stretch
    *sum = *sum * factor + sum8(total);
    *maximum = new_top;
    return factor;
  }

  static __m256 cap(__m256 s, float soft_cap) {
    float each[8];
    _mm256_storeu_ps(each, s);
    for (float& value : each) value = soft_cap * tanhf(value / soft_cap);
    return _mm256_loadu_ps(each);
  }

  static void scale(float* row, float factor, int n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(row + i, _mm256_mul_ps(_mm256_loadu_ps(row + i), f));
  }

  static void fold(float* total, float* total_maximum, float* total_sum, const float* acc, float maximum, float sum,
                   int n) {
    if (*total_sum == 0.0f) {
      std::memcpy(total, acc, sizeof(float) * static_cast<size_t>(n));
      *total_maximum = maximum;
      *total_sum = sum;
      return;
    }
    const float top = maximum > *total_maximum ? maximum : *total_maximum;
    const float old_factor = exp1(*total_maximum - top), factor = exp1(maximum - top);
    for (int i = 0; i < n; i += 8) {
      const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(total + i), _mm256_set1_ps(old_factor));
      _mm256_storeu_ps(total + i, _mm256_fmadd_ps(_mm256_loadu_ps(acc + i), _mm256_set1_ps(factor), old));
    }
    *total_sum = *total_sum * old_factor + sum * factor;
    *total_maximum = top;
  }
};
