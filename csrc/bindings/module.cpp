#include "bindings/module.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "C++ core of pylm: tokenizer, deduplication, quality signals.";
    pylm::bindings::bind_tokenizer(module);
    pylm::bindings::bind_training(module);
    pylm::bindings::bind_dedup(module);
    pylm::bindings::bind_signals(module);
}
