// Cases that run the kernels on memory of exactly the size they may touch, for a build under address and undefined
// behaviour sanitizers. A kind of kernel has a file of its own with its cases; `main.cpp` runs them.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "isa.h"

namespace native {

using octavo::Isa;

// What lies behind a buffer. On the heap the sanitizer knows every byte, but does not look at what some intrinsics read
// (broadcasts, masked loads); before a page that may not be touched the machine itself looks, at the end only.
enum class Ending { heap, guard };
extern Ending ending;

// Memory whose last byte is the last that may be touched.
void* allocate(size_t bytes);
void release(void* memory, size_t bytes);

// `size` elements up to the end of their memory. `skew` elements lie before them, so that with a skew of one a row begins
// where no vector is aligned. Null when empty, as an empty tensor is; else zero.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t size, int skew = 0) : size_(size), skew_(skew) {
    if (size > 0) memory_ = static_cast<T*>(allocate(bytes()));
    for (int64_t i = 0; i < size; ++i) data()[i] = T{};
  }
  Exact(Exact&& other) noexcept : size_(other.size_), skew_(other.skew_), memory_(other.memory_) { other.memory_ = nullptr; }
  Exact& operator=(Exact&&) = delete;
  ~Exact() {
    if (memory_ != nullptr) release(memory_, bytes());
  }

  T* data() { return size_ > 0 ? memory_ + skew_ : nullptr; }
  int64_t size() const { return size_; }

  Exact& fill(const std::function<T(int64_t)>& value) {
    for (int64_t i = 0; i < size_; ++i) data()[i] = value(i);
    return *this;
  }

 private:
  size_t bytes() const { return sizeof(T) * size_t(size_ + skew_); }

  int64_t size_;
  int skew_;
  T* memory_ = nullptr;
};

// Small numbers of either sign, exact in bfloat16; sums of their products are exact in float32, in any order.
inline float number(int64_t i) { return float(int(uint64_t(i) * 2654435761u >> 7 & 31) - 15) / 16.0f; }

inline Exact<float> floats(int64_t size, int skew = 0) {
  Exact<float> made(size, skew);
  made.fill(number);
  return made;
}

inline uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t(bits >> 16);
}

inline Exact<uint16_t> bfloat16s(int64_t size, int skew = 0) {
  Exact<uint16_t> made(size, skew);
  made.fill([](int64_t i) { return bfloat16(number(i)); });
  return made;
}

// Of a number as `number` makes them, or 0.
inline uint16_t half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value == 0.0f) return 0;
  return uint16_t(bits >> 16 & 0x8000u) | uint16_t(((bits >> 23 & 255u) - 112u) << 10 | (bits >> 13 & 1023u));
}

inline Exact<uint16_t> halves(int64_t size, int skew = 0) {
  Exact<uint16_t> made(size, skew);
  made.fill([](int64_t i) { return half(number(i)); });
  return made;
}

using Bytes = std::vector<char>;

inline void append(Bytes& to, const void* from, int64_t size) {
  const char* begin = static_cast<const char*>(from);
  to.insert(to.end(), begin, begin + size);
}

template <class T>
Bytes bytes_of(Exact<T>& values) {
  Bytes out;
  if (values.size() > 0) append(out, values.data(), values.size() * int64_t(sizeof(T)));
  return out;
}

struct How {
  Isa isa;
  int threads;
  int missing;  // elements that the case's main input is too short by: 0, or 1 to see that the sanitizer notices
};

struct Case {
  std::string name;
  // Runs and returns what was computed: the same bytes on any number of threads,
  std::function<Bytes(const How&)> run;
  // and under every instruction set?
  bool same_under_all = true;
};

// One per file of cases; add yours to the list in main.cpp.
std::vector<Case> attention_cases();
std::vector<Case> gemm_cases();
std::vector<Case> qgemm_cases();
std::vector<Case> row_cases();
std::vector<Case> sample_cases();

}  // namespace native
