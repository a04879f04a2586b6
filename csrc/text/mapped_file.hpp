// A file's bytes in memory, without reading them first where it can be mapped.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace pylm {

// Read-only view of a whole file. The file must not shrink while it is mapped.
class MappedFile {
  public:
    // `sequential` is advice to the system: pages ahead of the one at hand are read. Throws std::system_error
    // naming the path: no such file, a folder, no permission.
    explicit MappedFile(const std::string& path, bool sequential = true);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::string_view bytes() const noexcept { return bytes_; }

  private:
    std::string read_;  // of a pipe or device
    std::string_view bytes_;
    bool is_mapped_ = false;
};

// The parts between separators, which belong to none; the whole where `separator` is empty. n separators
// make n + 1 parts.
std::vector<std::string_view> split(std::string_view bytes, std::string_view separator);

}  // namespace pylm
