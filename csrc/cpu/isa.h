// Which instruction sets this machine has. No Python, no torch.
#pragma once

namespace octavo {

// Ordered: a machine that has one has all before it.
enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

struct Features {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
};

// What CPUID reports and the operating system saves on a context switch (XCR0); read once.
const Features& features();

// The best set of which every part is there, up to the limit: at first avx512, since avx512_bf16 rounds what it multiplies.
Isa best_isa();

// Acts as if the machine had nothing above `most`. Call it before kernels run.
void limit_isa(Isa most);

const char* isa_name(Isa isa);

}  // namespace octavo
