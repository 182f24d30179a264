// The Python face of recorded calls.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "bind.h"

namespace octavo::bind {

Recording* Recording::current = nullptr;

void Recording::begin() {
  require(current == nullptr, "another recording is being written");
  calls_.clear();
  current = this;
}

void Recording::end() {
  if (current == this) current = nullptr;
}

void Recording::replay() const {
  require(current == nullptr, "a recording is being written");
  nb::gil_scoped_release released;
  for (const Noted& noted : calls_) noted.call();
}

// A replay that says how long each call took, in seconds.
std::vector<std::pair<std::string, double>> Recording::profile() const {
  using Clock = std::chrono::steady_clock;
  require(current == nullptr, "a recording is being written");
  std::vector<std::pair<std::string, double>> found;
  found.reserve(calls_.size());
  nb::gil_scoped_release released;
  for (const Noted& noted : calls_) {
    const auto begun = Clock::now();
    noted.call();
    found.emplace_back(noted.name, std::chrono::duration<double>(Clock::now() - begun).count());
  }
  return found;
}

void add_recording(nb::module_& m) {
  nb::class_<Recording>(m, "Recording", "Calls of one step, to be made again.")
      .def(nb::init<>())
      .def("begin", &Recording::begin, "Note every call of the hot path from now on.")
      .def("end", &Recording::end, "Note no more.")
      .def("replay", &Recording::replay, "Make the calls again, in order.")
      .def("profile", &Recording::profile, "Make the calls again; name and seconds of each.")
      .def("__len__", &Recording::size);
}

}  // namespace octavo::bind
