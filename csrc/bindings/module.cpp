#include "bindings/module.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <system_error>

namespace {

// A failed system call as OSError(errno, message, path), whose subclass Python picks by the number.
void translate_system_error(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const std::system_error& error) {
        const std::string what = error.what();  // "path: message"
        const std::string message = error.code().message();
        const std::string path = what.substr(0, what.size() - std::min(what.size(), message.size() + 2));
        const pybind11::object arguments = pybind11::make_tuple(error.code().value(), message, path);
        PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "C++ core of pylm: tokenizer, deduplication, quality signals.";
    pybind11::register_local_exception_translator(&translate_system_error);
    pylm::bindings::bind_vocabulary(module);
    pylm::bindings::bind_tokenizer(module);
    pylm::bindings::bind_sentencepiece(module);
    pylm::bindings::bind_training(module);
    pylm::bindings::bind_dedup(module);
    pylm::bindings::bind_exact(module);
    pylm::bindings::bind_indexes(module);
    pylm::bindings::bind_signals(module);
    pylm::bindings::bind_shards(module);
    pylm::bindings::bind_substring_stages(module);
}
