// The weight of one logit, in the operations that every instruction set does in this order; octavo/decoding/draw.py does
// them, too. Included into an unnamed namespace, so that no function of one instruction set is merged with that of another.

// Below, e^x is less than the unit of a weight, 2^-40.
constexpr float kNothing = -28.0f;
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
constexpr float kLn2High = 0.693359375f, kLn2Low = 2.12194440e-4f;  // their difference is ln(2)
// Cephes expf (S. Moshier, https://www.netlib.org/cephes/, single/expf.c): e^r for |r| <= ln(2) / 2.
constexpr float kPolynomial[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

// 2^40 e^x for x from kNothing to 0, an exact multiple of a rounded e^x.
inline float scaled_exp(float x) {
  const float n = (x * kLog2e + kShift) - kShift;
  const float r = (x - n * kLn2High) + n * kLn2Low;
  float p = kPolynomial[0];
  for (int i = 1; i < 6; ++i) p = p * r + kPolynomial[i];
  p = p * (r * r) + r + 1.0f;
  union {
    float value;
    int32_t bits;
  } e;
  e.value = p;
  e.bits += (static_cast<int32_t>(n) + 40) * (1 << 23);
  return e.value;
}

inline int64_t weight_of(float x, float floor, const Weighing& w) {
  const float scaled = (x - w.max) / w.temperature;
  if (!(x >= floor && scaled >= w.log_min_p && scaled >= kNothing)) return 0;
  return static_cast<int64_t>(scaled_exp(scaled));
}

// Never less for a smaller logit; all without weight are in the last class.
inline int32_t class_of(float x, const Weighing& w) {
  const float distance = (x - w.max) / w.temperature * -kClassesPerUnit;
  return distance < kSampleClasses - 1 ? static_cast<int32_t>(distance) : kSampleClasses - 1;
}

inline bool has_weight(float maximum, const Weighing& w, float floor) {
  const float best = (maximum - w.max) / w.temperature;
  return maximum >= floor && best >= w.log_min_p && best >= kNothing;
}
