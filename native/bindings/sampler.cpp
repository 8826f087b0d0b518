#include "sampler/sampler.h"

#include "bindings/bind.h"

namespace nb = nanobind;

namespace headrace {
namespace {

Edits edits(uintptr_t starts, uintptr_t ids, uintptr_t values) {
    return {pointer<int64_t>(starts), pointer<int64_t>(ids), pointer(values)};
}

Masks masks(uintptr_t index, uintptr_t words, int64_t width) {
    return {pointer<int64_t>(index), pointer<uint32_t>(words), width};
}

LogprobsOut logprobs_out(int64_t width, uintptr_t logprobs, uintptr_t ranks, uintptr_t counts, uintptr_t top_ids,
                         uintptr_t top_logprobs) {
    return {width, pointer<double>(logprobs), pointer<int64_t>(ranks), pointer<int64_t>(counts),
            pointer<int64_t>(top_ids), pointer<double>(top_logprobs)};
}

SlotOptions slot_options(uintptr_t flags, uintptr_t temperature, uintptr_t top_k, uintptr_t min_p,
                         uintptr_t seed_low, uintptr_t seed_high, uintptr_t output_index, uintptr_t repetition,
                         uintptr_t presence, uintptr_t frequency, uintptr_t n_logprobs) {
    return {pointer<int64_t>(flags),     pointer<float>(temperature), pointer<int64_t>(top_k),
            pointer<double>(min_p),      pointer<int64_t>(seed_low),
            pointer<int64_t>(seed_high), pointer<int64_t>(output_index), pointer<float>(repetition),
            pointer<float>(presence),    pointer<float>(frequency),   pointer<int64_t>(n_logprobs)};
}

}  // namespace

void bind_sampler(nb::module_& m) {
    m.attr("SAMPLE_DRAW") = int64_t(sample_draw);
    m.attr("SAMPLE_RAW_LOGPROBS") = int64_t(sample_raw_logprobs);
    m.attr("SAMPLE_PROCESSED_LOGPROBS") = int64_t(sample_processed_logprobs);
    nb::class_<SlotOptions>(m, "SlotOptions");
    m.def("slot_options", &slot_options, nb::kw_only(), nb::arg("flags"), nb::arg("temperature"), nb::arg("top_k"),
          nb::arg("min_p"), nb::arg("seed_low"), nb::arg("seed_high"), nb::arg("output_index"),
          nb::arg("repetition"), nb::arg("presence"), nb::arg("frequency"), nb::arg("n_logprobs"));
    nb::class_<Edits>(m, "Edits").def(nb::init<>());
    m.def("edits", &edits, nb::arg("starts"), nb::arg("ids"), nb::arg("values"));
    nb::class_<Masks>(m, "Masks").def(nb::init<>());
    m.def("masks", &masks);
    nb::class_<LogprobsOut>(m, "LogprobsOut");
    m.def("logprobs_out", &logprobs_out);
    nb::class_<NativeSampler>(m, "NativeSampler")
        .def(nb::init<int64_t, const SlotOptions&>())
        .def(
            "sample",
            [](NativeSampler& sampler, uintptr_t logits, int64_t stride, uintptr_t model_logits, int64_t model_stride,
               int64_t n_rows, uintptr_t slots, uintptr_t positions, uintptr_t top_p, const Edits& bias,
               const Edits& penalties, const Edits& end_bans, const Edits& word_bans, const Edits& ngram_bans,
               const Masks& masks, uintptr_t tokens, uintptr_t tops, const LogprobsOut& logprobs) {
                sampler.sample({pointer<float>(logits), stride, pointer<float>(model_logits), model_stride,
                                pointer<int64_t>(slots), pointer<int64_t>(positions), pointer<double>(top_p), bias,
                                penalties, end_bans, word_bans, ngram_bans, masks, pointer<int64_t>(tokens),
                                pointer<float>(tops), logprobs},
                               n_rows);
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def(
            "prompt_logprobs",
            [](NativeSampler& sampler, uintptr_t logits, int64_t stride, int64_t n_rows, uintptr_t next_tokens,
               int64_t n_top, uintptr_t tops, const LogprobsOut& logprobs) {
                sampler.prompt_logprobs({pointer<float>(logits), stride, pointer<int64_t>(next_tokens), n_top,
                                         pointer<float>(tops), logprobs},
                                        n_rows);
            },
            nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
