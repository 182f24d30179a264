// Decides per row what to look at; hands rows to the pool; the dispatch table. Compiled for the baseline machine.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "pool.h"

namespace octavo {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// How many of the largest blocks a first look at a row without top_k takes.
constexpr int kFirstLook = 128;
// Rows that one item takes are those of about so many logits.
constexpr int64_t kLogitsPerItem = 32768;

// A thread's memory, kept from row to row.
struct Scratch {
  std::vector<float> kept, maxima, values, sorted;
  std::vector<int32_t> ids;
  std::vector<int64_t> sums, weights, class_sums;
};

// Philox4x32-10, one number in (0, 1) of (seed, index, position): octavo/decoding/rng.py.
double uniform(int64_t seed, int64_t index, int64_t position) {
  const auto low = [](int64_t value) { return static_cast<uint32_t>(static_cast<uint64_t>(value)); };
  const auto high = [](int64_t value) { return static_cast<uint32_t>(static_cast<uint64_t>(value) >> 32); };
  uint32_t word[4] = {low(position), high(position), low(index), high(index)};
  uint32_t key[2] = {low(seed), high(seed)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(word[0]) * 0xD2511F53u;
    const uint64_t product1 = uint64_t(word[2]) * 0xCD9E8D57u;
    const uint32_t word0 = static_cast<uint32_t>(product1 >> 32) ^ word[1] ^ key[0];
    const uint32_t word2 = static_cast<uint32_t>(product0 >> 32) ^ word[3] ^ key[1];
    word[0] = word0;
    word[1] = static_cast<uint32_t>(product1);
    word[2] = word2;
    word[3] = static_cast<uint32_t>(product0);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t(word[0]) << 20) | (word[1] >> 12);
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

// One random row.
class Draw {
 public:
  Draw(const float* x, int n, const SampleRow& row, const SampleKernels& kernels, float max, Scratch& scratch)
      : x_(x), n_(n), row_(row), kernels_(kernels), weighing_{max, row.temperature, row.log_min_p}, s_(scratch) {}

  int64_t token(double number) {
    number_ = number;
    const bool has_top_k = row_.top_k < n_;
    if (has_top_k) return from_top_k();
    sum_blocks(-kInfinity);
    if (row_.top_p >= 1.0) return from_blocks(-kInfinity);
    return from_top_p();
  }

 private:
  int num_blocks() const { return static_cast<int>(s_.maxima.size()); }

  int64_t from_top_k() {
    const int k = static_cast<int>(row_.top_k);
    gather(kth_maximum(k));
    s_.sorted = s_.values;
    std::nth_element(s_.sorted.begin(), s_.sorted.begin() + (k - 1), s_.sorted.end(), std::greater<float>());
    const float kth = s_.sorted[k - 1];
    size_t kept = 0;
    for (size_t i = 0; i < s_.values.size(); ++i) {
      if (s_.values[i] < kth) continue;
      s_.ids[kept] = s_.ids[i];
      s_.values[kept++] = s_.values[i];
    }
    s_.ids.resize(kept);
    s_.values.resize(kept);
    weigh(s_.values);
    int64_t mass = 0;
    for (size_t i = 0; i < kept; ++i) mass += s_.weights[i];
    s_.sorted = s_.values;
    float floor = -kInfinity;
    find_floor(s_.sorted, 0, goal_of(mass), &floor);  // found: they hold all the mass
    return from_candidates(floor);
  }

  int64_t from_top_p() {
    const int64_t goal = goal_of(total());
    gather(kth_maximum(kFirstLook));
    s_.sorted = s_.values;
    float floor = -kInfinity;
    if (find_floor(s_.sorted, 0, goal, &floor)) return from_candidates(floor);
    floor = floor_by_classes(goal);
    sum_blocks(floor);
    return from_blocks(floor);
  }

  // The k-th largest of the blocks' maxima, so that at least k logits are not below it; -inf with fewer blocks.
  float kth_maximum(int k) {
    if (k > num_blocks()) return -kInfinity;
    s_.sorted = s_.maxima;
    std::nth_element(s_.sorted.begin(), s_.sorted.begin() + (k - 1), s_.sorted.end(), std::greater<float>());
    return s_.sorted[k - 1];
  }

  // Logits not below `least` and their ids, in the order of ids.
  void gather(float least) {
    s_.ids.clear();
    s_.values.clear();
    for (int block = 0; block < num_blocks(); ++block) {
      if (s_.maxima[block] < least) continue;
      const int last = std::min(n_, (block + 1) * kSampleBlock);
      for (int id = block * kSampleBlock; id < last; ++id) {
        if (x_[id] < least) continue;
        s_.ids.push_back(id);
        s_.values.push_back(x_[id]);
      }
    }
  }

  void weigh(const std::vector<float>& values) {
    s_.weights.resize(values.size());
    kernels_.weights(values.data(), static_cast<int>(values.size()), weighing_, -kInfinity, s_.weights.data());
  }

  void sum_blocks(float floor) {
    s_.sums.resize(s_.maxima.size());
    kernels_.block_sums(x_, n_, s_.maxima.data(), weighing_, floor, s_.sums.data());
  }

  int64_t total() const {
    int64_t sum = 0;
    for (int64_t each : s_.sums) sum += each;
    return sum;
  }

  // The weight that the most likely tokens have to reach together.
  int64_t goal_of(int64_t mass) const {
    const int64_t wanted = static_cast<int64_t>(std::ceil(static_cast<double>(mass) * row_.top_p));
    return std::min(std::max<int64_t>(wanted, 1), mass);
  }

  // Sorts `values`, those of largest weight after `before`; the logit with which they reach `goal`, if they do.
  bool find_floor(std::vector<float>& values, int64_t before, int64_t goal, float* floor) {
    std::sort(values.begin(), values.end(), std::greater<float>());
    weigh(values);
    for (size_t i = 0; i < values.size(); ++i) {
      before += s_.weights[i];
      *floor = values[i];
      if (before >= goal) return true;
    }
    return false;
  }

  // For a row that the first look did not settle: the class in which the goal is reached, then the logit within it.
  float floor_by_classes(int64_t goal) {
    std::vector<int64_t>& sums = s_.class_sums;
    sums.assign(kSampleClasses, 0);
    int64_t weights[kSampleBlock];
    int32_t classes[kSampleBlock];
    for (int block = 0; block < num_blocks(); ++block) {
      if (s_.sums[block] == 0) continue;
      const int first = block * kSampleBlock, count = std::min(kSampleBlock, n_ - first);
      kernels_.weights(x_ + first, count, weighing_, -kInfinity, weights);
      kernels_.classes(x_ + first, count, weighing_, classes);
      for (int i = 0; i < count; ++i) sums[classes[i]] += weights[i];
    }
    int64_t before = 0;
    int wanted = 0;
    while (before + sums[wanted] < goal) before += sums[wanted++];
    s_.sorted.clear();
    for (int block = 0; block < num_blocks(); ++block) {
      if (s_.sums[block] == 0) continue;
      const int first = block * kSampleBlock, count = std::min(kSampleBlock, n_ - first);
      kernels_.classes(x_ + first, count, weighing_, classes);
      for (int i = 0; i < count; ++i) {
        if (classes[i] == wanted) s_.sorted.push_back(x_[first + i]);
      }
    }
    float floor = -kInfinity;
    find_floor(s_.sorted, before, goal, &floor);  // found: the class reaches it
    return floor;
  }

  // In [0, total): the token is the first, in the order of ids, whose cumulative weight exceeds it.
  int64_t target_of(int64_t total) const {
    return std::min(static_cast<int64_t>(static_cast<double>(total) * number_), total - 1);
  }

  int64_t from_candidates(float floor) {
    s_.weights.resize(s_.values.size());
    kernels_.weights(s_.values.data(), static_cast<int>(s_.values.size()), weighing_, floor, s_.weights.data());
    int64_t sum = 0;
    for (int64_t each : s_.weights) sum += each;
    int64_t left = target_of(sum);
    size_t place = 0;
    while (place + 1 < s_.weights.size() && left >= s_.weights[place]) left -= s_.weights[place++];
    return s_.ids[place];
  }

  int64_t from_blocks(float floor) {
    int64_t left = target_of(total());
    int block = 0;
    while (block + 1 < num_blocks() && left >= s_.sums[block]) left -= s_.sums[block++];
    const int first = block * kSampleBlock;
    const int count = std::min(kSampleBlock, n_ - first);
    int64_t weights[kSampleBlock];
    kernels_.weights(x_ + first, count, weighing_, floor, weights);
    int place = 0;
    while (place + 1 < count && left >= weights[place]) left -= weights[place++];
    return first + place;
  }

  const float* x_;
  int n_;
  const SampleRow& row_;
  const SampleKernels& kernels_;
  Weighing weighing_;
  Scratch& s_;
  double number_ = 0.0;
};

int64_t first_of(float value, const float* x, int n, const std::vector<float>& maxima) {
  const size_t block = std::find(maxima.begin(), maxima.end(), value) - maxima.begin();
  const float* first = x + block * kSampleBlock;
  return std::find(first, x + n, value) - x;
}

int64_t sample_row(const Sample& op, int64_t entry, const SampleKernels& kernels) {
  thread_local Scratch scratch;
  const int n = op.vocab_size;
  const float* x = op.logits + entry * n;
  const SampleRow& row = op.params[op.rows[entry]];
  if (op.masks != nullptr && op.mask_of[entry] >= 0) {
    scratch.kept.resize(n);
    kernels.keep(x, op.masks + op.mask_of[entry] * ((n + 31) / 32), n, scratch.kept.data());
    x = scratch.kept.data();
  }
  scratch.maxima.resize((n + kSampleBlock - 1) / kSampleBlock);
  const float max = kernels.maxima(x, n, scratch.maxima.data());
  if (!std::isfinite(max)) return -1;
  if (row.temperature == 0.0f) return first_of(max, x, n, scratch.maxima);
  Draw draw(x, n, row, kernels, max, scratch);
  return draw.token(uniform(row.seed, row.index, op.positions[entry]));
}

struct Job {
  const Sample* op;
  const SampleKernels* kernels;
  int64_t rows_per_item;
};

void run_item(void* context, int item, int /*worker*/) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t first = item * job.rows_per_item;
  const int64_t last = std::min(first + job.rows_per_item, job.op->num_rows);
  for (int64_t entry = first; entry < last; ++entry) {
    job.op->token_ids[entry] = sample_row(*job.op, entry, *job.kernels);
  }
}

}  // namespace

const SampleKernels* sample_kernels(Isa isa) {
  switch (isa) {
    case Isa::scalar: return &sample_kernels_scalar;
#ifdef OCTAVO_HAVE_AVX2
    case Isa::avx512_bf16:
    case Isa::avx512:  // no unit of its own yet
    case Isa::avx2: return &sample_kernels_avx2;
#endif
    default: return nullptr;
  }
}

void sample(const Sample& op, const SampleKernels& kernels, int num_threads) {
  if (op.num_rows == 0) return;
  const int64_t rows_per_item = std::max<int64_t>(1, kLogitsPerItem / std::max(1, op.vocab_size));
  Job job{&op, &kernels, rows_per_item};
  parallel_for(static_cast<int>((op.num_rows + rows_per_item - 1) / rows_per_item), num_threads, run_item, &job);
}

}  // namespace octavo
