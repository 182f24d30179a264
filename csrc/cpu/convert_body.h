// Narrow floats, included into an unnamed namespace, so that no function of one instruction set is merged with that of
// another. No branches that a compiler cannot turn into selections.

inline float float_of_bits(uint32_t word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t word;
  memcpy(&word, &value, 4);
  return word;
}

// IEEE 754 binary16, by value: exact, subnormals included.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13 | (fraction != 0 ? 0x400000u : 0));
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return float_of_bits(sign | bits_of(static_cast<float>(fraction) * 5.9604644775390625e-8f));  // 2^-24
}

// To nearest, ties to even; NaN stays a (quiet) NaN.
inline uint16_t float_to_half(float value) {
  const uint32_t word = bits_of(value), size = word & 0x7fffffffu;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  // Below the least normal number, 2^-14: adding 0.5 rounds to multiples of 2^-24.
  const uint32_t subnormal = bits_of(float_of_bits(size) + 0.5f) - 0x3f000000u;
  const uint32_t finite = size < 0x38800000u ? subnormal : normal;
  const uint32_t large = size > 0x7f800000u ? 0x7e00u | (size >> 13 & 0x3ffu) : 0x7c00u;
  return static_cast<uint16_t>((word >> 16 & 0x8000u) | (size < 0x47800000u ? finite : large));  // 65536
}

// To nearest, ties to even; NaN stays a (quiet) NaN.
inline uint16_t float_to_bf16(float value) {
  const uint32_t word = bits_of(value);
  const uint32_t rounded = word + 0x7fffu + (word >> 16 & 1u);
  return static_cast<uint16_t>(((word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : rounded) >> 16);
}
