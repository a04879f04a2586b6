// One function a file of bindings; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace pylm::bindings {

void bind_tokenizer(pybind11::module_& module);
void bind_sentencepiece(pybind11::module_& module);
void bind_training(pybind11::module_& module);
void bind_vocabulary(pybind11::module_& module);
void bind_dedup(pybind11::module_& module);
void bind_exact(pybind11::module_& module);
void bind_indexes(pybind11::module_& module);
void bind_signals(pybind11::module_& module);
void bind_shards(pybind11::module_& module);
void bind_substring_stages(pybind11::module_& module);

}  // namespace pylm::bindings
