// Packing of weights by threads of its own, while the caller's thread is busy with other things.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "bind.h"
#include "bind_weight.h"

using namespace nanobind::literals;

namespace octavo::bind {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kPieceBytes = int64_t(8) << 20;  // of a source that one thread packs in one go

// One weight. Parts are stacked along the outputs.
struct Job {
  struct Part {
    const uint8_t* data;
    int first;  // output
    int rows;
  };

  std::vector<Bytes> sources;  // keep what is packed from; belong to Python
  std::vector<Part> parts;
  DType from{};
  Shape shape{};
  int bits = 0;  // 0: not quantized
  int group = 0;
  bool has_zeros = false;
  std::unique_ptr<OwnedWeight> packed;
  std::unique_ptr<OwnedQuantWeight> quant;
  std::once_flag begun;
  std::atomic<int> left{0};  // pieces
  std::atomic<bool> failed{false};
};

struct Piece {
  Job* job;
  const uint8_t* data;
  int first;
  int rows;
};

// Owner of threads that pack what was added, in that order. Methods are called under the GIL, by one thread.
class PackingAhead {
 public:
  ~PackingAhead() {
    nb::gil_scoped_release released;
    next_.store(pieces_.size());  // what nobody has begun is left
    for (std::thread& thread : threads_) thread.join();
  }

  size_t add(const std::vector<Bytes>& sources, const std::vector<int>& rows, int num_inputs, const std::string& dtype,
             int bits, int group, bool has_zeros) {
    require(threads_.empty(), "add: packing has begun");
    require(!sources.empty() && sources.size() == rows.size(), "rows: expected one number per source");
    require(num_inputs >= 1, "num_inputs: expected >= 1");
    require(dtype == "float32" || dtype == "bfloat16", "dtype: expected float32 or bfloat16");
    if (bits != 0) check_format(bits, group);

    const DType from = dtype == "float32" ? DType::float32 : DType::bfloat16;
    int64_t outputs = 0;
    std::vector<Job::Part> parts;
    for (size_t i = 0; i < sources.size(); ++i) {
      require(rows[i] >= 1 && outputs % kPanel == 0, "rows: expected whole panels in all parts but the last");
      require(int64_t(sources[i].size()) == int64_t(rows[i]) * num_inputs * element_size(from),
              "sources: expected rows * num_inputs values each");
      parts.push_back({sources[i].data(), static_cast<int>(outputs), rows[i]});
      outputs += rows[i];
      require(outputs <= INT32_MAX, "rows: too many");
    }
    Job& added = jobs_.emplace_back();
    added.sources = sources;
    added.parts = std::move(parts);
    added.from = from;
    added.shape = {static_cast<int>(outputs), num_inputs};
    added.bits = bits;
    added.group = group;
    added.has_zeros = has_zeros;
    cut(added);
    return jobs_.size() - 1;
  }

  void start(int num_threads) {
    require(threads_.empty() && num_threads >= 1, "start: expected once, and num_threads >= 1");
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(nullptr); });
  }

  // A packed weight, made by this thread, too, as far as it has to be waited for.
  nb::object take(size_t index) {
    require(index < jobs_.size() && !threads_.empty(), "take: no such weight, or not started");
    Job& job = jobs_[index];
    require(!job.sources.empty(), "take: taken before");
    {
      nb::gil_scoped_release released;
      work(&job);
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return job.left.load() == 0; });
    }
    job.sources.clear();
    if (job.failed.load()) throw std::bad_alloc();
    nb::object result = job.quant ? nb::cast(std::move(*job.quant)) : nb::cast(std::move(*job.packed));
    job.packed.reset();
    job.quant.reset();
    return result;
  }

  // Share of the pieces that somebody has begun.
  double share() const {
    if (pieces_.empty()) return 1.0;
    return double(std::min(next_.load(), pieces_.size())) / double(pieces_.size());
  }

 private:
  void cut(Job& job) {
    const int64_t row_bytes = int64_t(job.shape.num_inputs) * element_size(job.from);
    const int64_t most = std::max<int64_t>(kPanel, kPieceBytes / row_bytes / kPanel * kPanel);
    for (const Job::Part& part : job.parts) {
      for (int64_t row = 0; row < part.rows; row += most) {
        const int rows = static_cast<int>(std::min<int64_t>(most, part.rows - row));
        pieces_.push_back({&job, part.data + row * row_bytes, part.first + static_cast<int>(row), rows});
        job.left.fetch_add(1);
      }
    }
  }

  // Packs pieces until there are none, or `until` is done.
  void work(const Job* until) {
    while (until == nullptr || until->left.load() > 0) {
      const size_t at = next_.fetch_add(1);
      if (at >= pieces_.size()) return;
      pack(pieces_[at]);
    }
  }

  void pack(const Piece& piece) {
    Job& job = *piece.job;
    try {
      std::call_once(job.begun, [&] { allocate_for(job); });
      if (job.packed) job.packed->fill(piece.data, job.from, piece.first, piece.rows, 1);
      if (job.quant) job.quant->fill(piece.data, job.from, piece.first, piece.rows, 1);
    } catch (const std::bad_alloc&) {
      job.failed.store(true);
    }
    if (job.left.fetch_sub(1) == 1) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      done_.notify_all();
    }
  }

  static void allocate_for(Job& job) {
    if (job.bits != 0) {
      job.quant = std::make_unique<OwnedQuantWeight>(job.shape, job.bits, job.group, job.has_zeros);
      return;
    }
    bool is_narrow = true;
    for (const Job::Part& part : job.parts) {
      is_narrow = is_narrow && (job.from == DType::bfloat16 ||
                                all_bfloat16(reinterpret_cast<const float*>(part.data),
                                             int64_t(part.rows) * job.shape.num_inputs));
    }
    job.packed = std::make_unique<OwnedWeight>(job.shape, is_narrow ? DType::bfloat16 : DType::float32);
  }

  std::deque<Job> jobs_;  // stay where they are
  std::vector<Piece> pieces_;
  std::atomic<size_t> next_{0};
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable done_;
};

}  // namespace

void add_ahead(nb::module_& m) {
  nb::class_<PackingAhead>(m, "PackingAhead", "Packs weights in threads of its own.")
      .def(nb::init<>())
      .def("add", &PackingAhead::add, nb::arg("sources").noconvert(), "rows"_a, "num_inputs"_a, "dtype"_a, "bits"_a,
           "group"_a, "has_zeros"_a)
      .def("start", &PackingAhead::start, "num_threads"_a)
      .def("take", &PackingAhead::take, "index"_a)
      .def_prop_ro("share", &PackingAhead::share);
}

}  // namespace octavo::bind
