#include "text/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace pylm {

namespace {

// Closes the descriptor when the mapping stands or has failed; the mapping does not need it.
class Descriptor {
  public:
    explicit Descriptor(const std::string& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
    ~Descriptor() {
        if (value_ >= 0) ::close(value_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const noexcept { return value_; }

  private:
    int value_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path, bool sequential) {
    const auto fail = [&](int code) { throw std::system_error(code, std::generic_category(), path); };
    const Descriptor file(path);
    if (file.get() < 0) fail(errno);
    struct stat status{};
    if (::fstat(file.get(), &status) != 0) fail(errno);
    if (S_ISDIR(status.st_mode)) fail(EISDIR);
    if (!S_ISREG(status.st_mode)) {
        char block[1 << 16];
        for (ssize_t count; (count = ::read(file.get(), block, sizeof block)) != 0;) {
            if (count > 0) {
                read_.append(block, static_cast<std::size_t>(count));
            } else if (errno != EINTR) {
                fail(errno);
            }
        }
        bytes_ = read_;
        return;
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return;  // an empty mapping is an error
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) fail(errno);
    if (sequential) ::madvise(data, size, MADV_SEQUENTIAL);
    bytes_ = {static_cast<const char*>(data), size};
    is_mapped_ = true;
}

MappedFile::~MappedFile() {
    if (is_mapped_) ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

std::vector<std::string_view> split(std::string_view bytes, std::string_view separator) {
    std::vector<std::string_view> parts;
    if (!separator.empty()) {
        for (std::size_t found; (found = bytes.find(separator)) != std::string_view::npos;) {
            parts.push_back(bytes.substr(0, found));
            bytes.remove_prefix(found + separator.size());
        }
    }
    parts.push_back(bytes);
    return parts;
}

}  // namespace pylm
