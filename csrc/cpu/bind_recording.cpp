// The Python face of recorded calls.
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
  for (const auto& call : calls_) call();
}

void add_recording(nb::module_& m) {
  nb::class_<Recording>(m, "Recording", "Calls of one step, to be made again.")
      .def(nb::init<>())
      .def("begin", &Recording::begin, "Note every call of the hot path from now on.")
      .def("end", &Recording::end, "Note no more.")
      .def("replay", &Recording::replay, "Make the calls again, in order.")
      .def("__len__", &Recording::size);
}

}  // namespace octavo::bind
