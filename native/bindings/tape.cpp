#include "graph/tape.h"

#include "bindings/bind.h"

namespace nb = nanobind;

namespace headrace {

void bind_tape(nb::module_& m) {
    nb::class_<Tape>(m, "Tape")
        .def(nb::init<>())
        .def("begin", &Tape::begin)
        .def("end", &Tape::end)
        .def("replay", &Tape::replay, nb::call_guard<nb::gil_scoped_release>())
        .def("__len__", &Tape::size);
}

}  // namespace headrace
