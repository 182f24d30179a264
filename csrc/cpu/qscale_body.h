// The scale of an int4 weight, for an unnamed namespace behind convert_body.h.

inline float scale_at(const QuantWeight& w, int64_t at) {
  if (w.scale_type == DType::float32) return w.channel_scales[at];
  if (w.scale_type == DType::float16) return half_to_float(w.scales[at]);
  return float_of_bits(uint32_t(w.scales[at]) << 16);
}
