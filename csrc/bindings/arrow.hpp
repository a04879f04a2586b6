// Texts from Python, for every binding that takes them: a list of str (of bytes too, where it says so), or an
// Arrow column through the PyCapsule interface (`__arrow_c_array__`, `__arrow_c_stream__`). No text is copied.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/arrow.hpp"

namespace pylm::bindings {

// Raise pylm.errors.InputError (a ValueError) in Python.
[[noreturn]] inline void throw_input_error(const std::string& message) {
    const pybind11::object error = pybind11::module_::import("pylm.errors").attr("InputError");
    PyErr_SetString(error.ptr(), message.c_str());
    throw pybind11::error_already_set();
}

// One view a document; nulls as arrow::null_text. Keeps what the views point into alive. Create and destroy
// it with the interpreter lock held; the views may be read without it.
class Texts {
public:
    enum class Items { kStr, kStrOrBytes };

    // Throws TypeError for other objects and for items that are not as `items` says, InputError for columns of other types
    // and for lone surrogates; messages start with `argument` and name the index.
    explicit Texts(pybind11::handle object, const std::string& argument = "texts", Items items = Items::kStr) {
        if (pybind11::hasattr(object, "__arrow_c_array__")) {
            from_array(object, argument);
        } else if (pybind11::hasattr(object, "__arrow_c_stream__")) {
            from_stream(object, argument);
        } else if (PyList_Check(object.ptr()) != 0 || PyTuple_Check(object.ptr()) != 0) {
            from_list(object, argument, items);
        } else {
            const std::string type = pybind11::str(pybind11::type::handle_of(object).attr("__name__"));
            throw pybind11::type_error(argument + " must be a list of str or an Arrow string array, got " +
                                       type + (PyUnicode_Check(object.ptr()) != 0 ? "; pass [text]" : ""));
        }
    }

    std::span<const std::string_view> views() const noexcept { return views_; }
    std::size_t size() const noexcept { return views_.size(); }
    // Whether an Arrow column holds binary and not text.
    bool is_binary() const noexcept { return is_binary_; }

private:
    template <typename T>
    static T& unwrap(const pybind11::object& capsule, const char* name) {
        void* pointer = PyCapsule_GetPointer(capsule.ptr(), name);
        if (pointer == nullptr) throw pybind11::error_already_set();
        return *static_cast<T*>(pointer);
    }

    void append(const arrow::Schema& schema, arrow::Array& producer, const std::string& argument) {
        arrays_.emplace_back(producer);
        try {
            arrow::append_texts(schema, arrays_.back().get(), views_);
            const std::string_view format = schema.format;
            is_binary_ = format.back() == 'z' || format.back() == 'Z';
        } catch (const std::invalid_argument& error) {
            throw_input_error(argument + ": " + error.what());
        }
    }

    void from_array(pybind11::handle object, const std::string& argument) {
        const pybind11::tuple capsules = object.attr("__arrow_c_array__")();
        arrow::Owned<arrow::Schema> schema(unwrap<arrow::Schema>(capsules[0], "arrow_schema"));
        append(schema.get(), unwrap<arrow::Array>(capsules[1], "arrow_array"), argument);
    }

    void from_stream(pybind11::handle object, const std::string& argument) {
        const pybind11::object capsule = object.attr("__arrow_c_stream__")();
        arrow::Owned<arrow::Stream> stream(unwrap<arrow::Stream>(capsule, "arrow_array_stream"));
        const auto check = [&](int code) {
            if (code == 0) return;
            const char* reason = stream.get().get_last_error(&stream.get());
            throw_input_error(
                argument + ": the Arrow stream failed: " + (reason != nullptr ? reason : "no reason given"));
        };
        arrow::Schema raw_schema{};
        check(stream.get().get_schema(&stream.get(), &raw_schema));
        arrow::Owned<arrow::Schema> schema(raw_schema);
        for (;;) {
            arrow::Array raw_array{};
            check(stream.get().get_next(&stream.get(), &raw_array));
            if (raw_array.release == nullptr) break;
            append(schema.get(), raw_array, argument);
        }
        if (arrays_.empty()) {  // a stream without chunks still says its type
            arrow::Array nothing{};
            append(schema.get(), nothing, argument);
        }
    }

    void from_list(pybind11::handle object, const std::string& argument, Items items) {
        // A tuple of its own: another thread may change the list while the lock is released.
        items_ = pybind11::reinterpret_steal<pybind11::object>(PySequence_Tuple(object.ptr()));
        if (!items_) throw pybind11::error_already_set();
        const Py_ssize_t size = PyTuple_GET_SIZE(items_.ptr());
        views_.reserve(static_cast<std::size_t>(size));
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyObject* item = PyTuple_GET_ITEM(items_.ptr(), i);
            const auto place = [&] { return argument + "[" + std::to_string(i) + "]"; };
            if (items == Items::kStrOrBytes && PyBytes_Check(item) != 0) {
                views_.emplace_back(PyBytes_AS_STRING(item), static_cast<std::size_t>(PyBytes_GET_SIZE(item)));
                continue;
            }
            if (PyUnicode_Check(item) == 0) {
                throw pybind11::type_error(
                    place() + (items == Items::kStr ? " must be str, got " : " must be str or bytes, got ") + Py_TYPE(item)->tp_name +
                    (item == Py_None ? "; a pyarrow string array may hold nulls" : ""));
            }
            Py_ssize_t bytes = 0;
            const char* data = PyUnicode_AsUTF8AndSize(item, &bytes);
            if (data == nullptr) {
                if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError) == 0)
                    throw pybind11::error_already_set();
                PyErr_Clear();
                throw_input_error(place() +
                                  " holds a lone surrogate, which no UTF-8 text can; encode it with " +
                                  "errors='replace' first");
            }
            views_.emplace_back(data, static_cast<std::size_t>(bytes));
        }
    }

    std::vector<std::string_view> views_;
    bool is_binary_ = false;
    std::vector<arrow::Owned<arrow::Array>> arrays_;
    pybind11::object items_;
};

}  // namespace pylm::bindings
