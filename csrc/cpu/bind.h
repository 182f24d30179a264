// What the files that face Python share. They are the only ones with Python headers; they check everything and release
// the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"  // DType
#include "isa.h"

namespace octavo::bind {

namespace nb = nanobind;

constexpr Isa kAllIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

// Raises ValueError unless `holds`.
inline void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

// Whether this machine runs `isa` and every kernel is compiled for it.
bool has_kernels(Isa isa);

[[noreturn]] void refuse_isa(const std::string& name);

// The kernel for the instruction set called `name`, the best one for the empty string.
template <class Kernel>
Kernel find_kernel(const std::string& name, Kernel (*kernel_of)(Isa)) {
  Kernel best = nullptr;
  for (Isa isa : kAllIsas) {
    if (!has_kernels(isa)) continue;
    best = kernel_of(isa);
    if (name == isa_name(isa)) return best;
  }
  if (!name.empty()) refuse_isa(name);
  return best;
}

template <class Array>
DType dtype_of(const Array& array, const std::string& name) {
  if (array.dtype() == nb::dtype<float>()) return DType::float32;
  const bool bf16 = array.dtype().code == uint8_t(nb::dlpack::dtype_code::Bfloat) && array.dtype().bits == 16;
  require(bf16 && array.dtype().lanes == 1, name + ": expected float32 or bfloat16");
  return DType::bfloat16;
}

// The hot path is called many times per step, so its arrays come as addresses, checked by octavo.kernels.cpu.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Calls of one step, to be made again: what a captured graph is on other devices. While one is being written, every call
// of the hot path is made and noted, with the addresses it was given; they must stay good as long as it is replayed.
// All of it happens under the GIL.
class Recording {
 public:
  void begin();
  void end();
  void replay() const;
  std::vector<std::pair<std::string, double>> profile() const;
  size_t size() const { return calls_.size(); }
  static Recording* current;

  template <class Call>
  void add(const char* name, const Call& call) {
    calls_.push_back({name, call});
  }

 private:
  struct Noted {
    const char* name;
    std::function<void()> call;
  };
  std::vector<Noted> calls_;
};

// Makes a call without the GIL, and notes it where a recording is being written.
template <class Call>
void run(const char* name, const Call& call) {
  if (Recording::current != nullptr) Recording::current->add(name, call);
  nb::gil_scoped_release released;
  call();
}

// One per file: adds its part to the module.
void add_attention(nb::module_& m);
void add_ahead(nb::module_& m);
void add_gemm(nb::module_& m);
void add_recording(nb::module_& m);
void add_rows(nb::module_& m);
void add_sample(nb::module_& m);

}  // namespace octavo::bind
