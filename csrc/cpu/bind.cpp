// The extension module: what this machine has, and the parts that the other files add.
#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "gemm.h"
#include "pool.h"
#include "qgemm.h"
#include "rows.h"
#include "sample.h"

namespace octavo::bind {
namespace {

// Best first.
std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (Isa isa : kAllIsas) {
    if (has_kernels(isa)) names.insert(names.begin(), isa_name(isa));
  }
  return names;
}

void limit_isa(const std::string& name) {
  for (Isa isa : kAllIsas) {
    if (name == isa_name(isa)) return octavo::limit_isa(isa);
  }
  throw nb::value_error(("no instruction set is called '" + name + "'").c_str());
}

nb::dict features() {
  const Features& f = octavo::features();
  nb::dict found;
  found["avx2"] = f.avx2;
  found["fma"] = f.fma;
  found["f16c"] = f.f16c;
  found["avx512f"] = f.avx512f;
  found["avx512bw"] = f.avx512bw;
  found["avx512vl"] = f.avx512vl;
  found["avx512_vnni"] = f.avx512_vnni;
  found["avx512_bf16"] = f.avx512_bf16;
  return found;
}

}  // namespace

bool has_kernels(Isa isa) {
  return isa <= best_isa() && attention_kernels(isa) != nullptr && gemm_kernels(isa) != nullptr &&
         quant_kernels(isa) != nullptr && row_kernels(isa) != nullptr && sample_kernels(isa) != nullptr;
}

void refuse_isa(const std::string& name) {
  std::string known;
  for (const std::string& each : runnable_isas()) known += (known.empty() ? "" : ", ") + each;
  throw nb::value_error(("isa '" + name + "' has no kernels here; known: " + known).c_str());
}

}  // namespace octavo::bind

NB_MODULE(_cpu, m) {
  using namespace octavo;
  m.doc() = "Compiled CPU kernels. Use them through octavo.kernels.cpu.";
  m.def("isa", [] { return isa_name(best_isa()); }, "The best instruction set of this machine.");
  m.def("features", &bind::features, "Instruction set extensions that this machine has.");
  m.def("runnable_isas", &bind::runnable_isas, "Instruction sets with kernels that run here, best first.");
  m.def("limit_isa", &bind::limit_isa, "Acts as if the machine had nothing above this instruction set.");
  m.def("set_watch", &set_watch, "Microseconds for which idle threads watch for the next call.");
  bind::add_attention(m);
  bind::add_ahead(m);
  bind::add_gemm(m);
  bind::add_recording(m);
  bind::add_rows(m);
  bind::add_sample(m);
}
