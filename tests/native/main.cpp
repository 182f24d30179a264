// cases: run every case under every instruction set with kernels here, on one and on three threads, with both kinds of
// memory; all must give the same bytes. cases --break NAME: run one case with an input that is one element short.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "attention.h"
#include "gemm.h"
#include "native.h"
#include "rows.h"

namespace native {

Ending ending = Ending::heap;

static size_t whole_pages(size_t bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

void* allocate(size_t bytes) {
  if (ending == Ending::heap) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0) std::abort();
    return memory;
  }
  const size_t usable = whole_pages(bytes), page = whole_pages(1);
  void* base = mmap(nullptr, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) std::abort();
  char* end = static_cast<char*>(base) + usable;
  if (mprotect(end, page, PROT_NONE) != 0) std::abort();
  return end - bytes;
}

void release(void* memory, size_t bytes) {
  if (ending == Ending::heap) return std::free(memory);
  const size_t usable = whole_pages(bytes);
  munmap(static_cast<char*>(memory) + bytes - usable, usable + whole_pages(1));
}

}  // namespace native

namespace {

using namespace native;

std::vector<Case> all_cases() {
  std::vector<Case> found;
  for (const auto& cases : {gemm_cases(), qgemm_cases(), row_cases(), sample_cases(), attention_cases()}) {
    found.insert(found.end(), cases.begin(), cases.end());
  }
  return found;
}

// A build with emulated AVX-512 runs it on any machine.
Isa most() {
#ifdef OCTAVO_EMULATED_AVX512
  return Isa::avx512_bf16;
#else
  octavo::limit_isa(Isa::avx512_bf16);
  return octavo::best_isa();
#endif
}

std::vector<Isa> runnable() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    const bool is_complete = octavo::attention_kernels(isa) && octavo::gemm_kernels(isa) && octavo::row_kernels(isa);
    if (isa <= most() && is_complete) found.push_back(isa);
  }
  return found;
}

// In a thread of its own, so that scratch memory of an earlier case, which may have been larger, hides nothing.
Bytes run(const Case& one, const How& how) {
  Bytes out;
  std::thread([&] { out = one.run(how); }).join();
  return out;
}

int break_one(const std::string& name) {
  for (const Case& one : all_cases()) {
    if (one.name == name) {
      for (Ending each : {Ending::heap, Ending::guard}) {
        ending = each;
        run(one, {octavo::best_isa(), 1, 1});
      }
      std::printf("nothing noticed that %s reads too far\n", name.c_str());
      return 0;
    }
  }
  std::printf("no case is called %s\n", name.c_str());
  return 2;
}

int run_all() {
  int differing = 0;
  for (const Case& one : all_cases()) {
    ending = Ending::heap;
    const Bytes scalar = run(one, {Isa::scalar, 1, 0});
    for (Isa isa : runnable()) {
      const Bytes expected = one.same_under_all ? scalar : run(one, {isa, 1, 0});
      for (Ending each : {Ending::heap, Ending::guard}) {
        ending = each;
        for (int threads : {1, 3}) {
          if (run(one, {isa, threads, 0}) == expected) continue;
          std::printf("%s: other bytes under %s on %d threads\n", one.name.c_str(), octavo::isa_name(isa), threads);
          ++differing;
        }
      }
      ending = Ending::heap;
    }
  }
  std::printf("%zu cases", all_cases().size());
  for (Isa isa : runnable()) std::printf(" %s", octavo::isa_name(isa));
  std::printf("\n");
  return differing == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--break") return break_one(argv[2]);
  return run_all();
}
