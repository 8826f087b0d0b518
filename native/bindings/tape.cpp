#include "graph/tape.h"

#include <cxxabi.h>

#include <cstdlib>
#include <string>

#include "bindings/bind.h"

namespace nb = nanobind;

namespace headrace {
namespace {

// "Linear" of headrace::Linear.
std::string short_name(const std::type_info& type) {
    int status = 0;
    char* full = abi::__cxa_demangle(type.name(), nullptr, nullptr, &status);
    const std::string name = status == 0 ? full : type.name();
    std::free(full);
    return name.substr(name.rfind(':') + 1);
}

nb::list replay_timed(const Tape& tape, int64_t n_tokens) {
    std::vector<std::pair<const std::type_info*, int64_t>> times;
    {
        nb::gil_scoped_release release;
        times = tape.replay_timed(n_tokens);
    }
    nb::list result;
    for (const auto& [kind, nanoseconds] : times) result.append(nb::make_tuple(short_name(*kind).c_str(), nanoseconds));
    return result;
}

}  // namespace

void bind_tape(nb::module_& m) {
    nb::class_<Tape>(m, "Tape")
        .def(nb::init<>())
        .def("begin", &Tape::begin)
        .def("end", &Tape::end)
        .def("replay", &Tape::replay, nb::call_guard<nb::gil_scoped_release>())
        .def("replay_timed", &replay_timed)
        .def("__len__", &Tape::size);
}

}  // namespace headrace
