// Choosing tokens: vocabularies on both sides of a block and of a vector, one value, ties, rows without a choice.
#include <limits>

#include "sample.h"

#include "native.h"

namespace native {
namespace {

Bytes choose(int rows, int vocab, bool masked, const How& how) {
  const float none = -std::numeric_limits<float>::infinity();
  Exact<float> logits = floats(int64_t(rows) * vocab - how.missing, 1);
  Exact<octavo::SampleRow> params(rows + 1, 0);
  Exact<int64_t> of(rows), positions(rows), ids(rows, 1);
  const octavo::SampleRow kinds[] = {{1.0, vocab, 1, 0, 0.0f, none}, {1.0, vocab, 2, 0, 1.0f, none},
                                     {0.9, vocab, 3, 1, 0.7f, none}, {1.0, 3, 4, 0, 2.0f, none},
                                     {0.5, 50, 5, 0, 1.0f, -2.0f}};
  for (int r = 0; r <= rows; ++r) params.data()[r] = kinds[r % 5];
  of.fill([&](int64_t i) { return rows - i; });
  positions.fill([](int64_t i) { return i + 7; });
  // None, every second token, one token, none at all; in words that end where the vocabulary does.
  const int words = (vocab + 31) / 32;
  Exact<uint32_t> masks(int64_t(3) * words);
  masks.fill([=](int64_t i) { return i < words ? 0x55555555u : i == words + words / 2 ? 1u : 0u; });
  Exact<int64_t> mask_of(rows);
  mask_of.fill([](int64_t i) { return i % 4 - 1; });
  const octavo::Sample op{logits.data(), params.data(), of.data(), positions.data(), ids.data(), rows, vocab,
                          masked ? masks.data() : nullptr, masked ? mask_of.data() : nullptr};
  octavo::sample(op, *octavo::sample_kernels(how.isa), how.threads);
  return bytes_of(ids);
}

}  // namespace

std::vector<Case> sample_cases() {
  std::vector<Case> found;
  for (int rows : {0, 1, 5, 11}) {
    for (int vocab : {1, 7, 8, 63, 64, 65, 1000, 4097}) {
      const std::string name = "sample " + std::to_string(rows) + " " + std::to_string(vocab);
      found.push_back({name, [=](const How& how) { return choose(rows, vocab, false, how); }});
      found.push_back({name + " masked", [=](const How& how) { return choose(rows, vocab, true, how); }});
    }
  }
  return found;
}

}  // namespace native
