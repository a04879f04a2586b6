#include "dedup/xxhash.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>

#include "text/words.hpp"

namespace pylm {
namespace {

using words::fold_multiply;

constexpr std::uint64_t kPrime32_1 = 0x9E3779B1ULL;
constexpr std::uint64_t kPrime32_2 = 0x85EBCA77ULL;
constexpr std::uint64_t kPrime32_3 = 0xC2B2AE3DULL;
constexpr std::uint64_t kPrime64_1 = 0x9E3779B185EBCA87ULL;
constexpr std::uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4FULL;
constexpr std::uint64_t kPrime64_3 = 0x165667B19E3779F9ULL;
constexpr std::uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63ULL;
constexpr std::uint64_t kPrime64_5 = 0x27D4EB2F165667C5ULL;
constexpr std::uint64_t kMix1 = 0x165667919E3779F9ULL;
constexpr std::uint64_t kMix2 = 0x9FB21C651E98DF25ULL;

constexpr std::size_t kSecretSize = 192;
using Secret = std::array<std::uint8_t, kSecretSize>;
constexpr Secret kSecret = {  // the default secret of the specification
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

template <typename T>
std::uint64_t read(const void* base, std::size_t offset) noexcept {
    T value;
    std::memcpy(&value, static_cast<const char*>(base) + offset, sizeof value);
    return value;
}
std::uint64_t read32(const void* base, std::size_t offset) noexcept {
    return read<std::uint32_t>(base, offset);
}
std::uint64_t read64(const void* base, std::size_t offset) noexcept {
    return read<std::uint64_t>(base, offset);
}

std::uint64_t swap32(std::uint64_t x) noexcept {
    return ((x & 0xFF) << 24) | ((x & 0xFF00) << 8) | ((x >> 8) & 0xFF00) | ((x >> 24) & 0xFF);
}
std::uint64_t swap64(std::uint64_t x) noexcept { return (swap32(x) << 32) | swap32(x >> 32); }

std::uint64_t avalanche64(std::uint64_t x) noexcept {
    x = (x ^ (x >> 33)) * kPrime64_2;
    x = (x ^ (x >> 29)) * kPrime64_3;
    return x ^ (x >> 32);
}

std::uint64_t avalanche3(std::uint64_t x) noexcept {
    x = (x ^ (x >> 37)) * kMix1;
    return x ^ (x >> 32);
}

std::uint64_t round64(std::uint64_t state, std::uint64_t lane) noexcept {
    return std::rotl(state + lane * kPrime64_2, 31) * kPrime64_1;
}

std::uint64_t mix16(const char* data, std::size_t secret, std::uint64_t seed) noexcept {
    return fold_multiply(read64(data, 0) ^ (read64(kSecret.data(), secret) + seed),
                         read64(data, 8) ^ (read64(kSecret.data(), secret + 8) - seed));
}

std::uint64_t up_to_16(const char* data, std::size_t size, std::uint64_t seed) noexcept {
    const std::uint8_t* secret = kSecret.data();
    if (size > 8) {
        const std::uint64_t low = ((read64(secret, 24) ^ read64(secret, 32)) + seed) ^ read64(data, 0);
        const std::uint64_t high =
            ((read64(secret, 40) ^ read64(secret, 48)) - seed) ^ read64(data, size - 8);
        return avalanche3(size + swap64(low) + high + fold_multiply(low, high));
    }
    if (size >= 4) {
        const std::uint64_t changed = seed ^ (swap32(seed & 0xFFFFFFFF) << 32);
        const std::uint64_t both = read32(data, size - 4) | (read32(data, 0) << 32);
        std::uint64_t x = ((read64(secret, 8) ^ read64(secret, 16)) - changed) ^ both;
        x ^= std::rotl(x, 49) ^ std::rotl(x, 24);
        x *= kMix2;
        x = (x ^ ((x >> 35) + size)) * kMix2;
        return x ^ (x >> 28);
    }
    if (size > 0) {
        const auto byte = [&](std::size_t i) { return std::uint64_t{static_cast<std::uint8_t>(data[i])}; };
        const std::uint64_t all = byte(size - 1) | (size << 8) | (byte(0) << 16) | (byte(size >> 1) << 24);
        return avalanche64(((read32(secret, 0) ^ read32(secret, 4)) + seed) ^ all);
    }
    return avalanche64(seed ^ read64(secret, 56) ^ read64(secret, 64));
}

std::uint64_t up_to_240(const char* data, std::size_t size, std::uint64_t seed) noexcept {
    std::uint64_t sum = size * kPrime64_1;
    if (size <= 128) {
        for (std::size_t i = ((size - 1) >> 5) + 1; i-- > 0;) {
            sum += mix16(data + 16 * i, 32 * i, seed);
            sum += mix16(data + size - 16 * i - 16, 32 * i + 16, seed);
        }
        return avalanche3(sum);
    }
    for (std::size_t i = 0; i < 8; ++i) sum += mix16(data + 16 * i, 16 * i, seed);
    sum = avalanche3(sum);
    for (std::size_t i = 8; i < size / 16; ++i) sum += mix16(data + 16 * i, 16 * (i - 8) + 3, seed);
    return avalanche3(sum + mix16(data + size - 16, 119, seed));
}

using Lanes = std::array<std::uint64_t, 8>;

void accumulate(Lanes& lanes, const char* stripe, const Secret& secret, std::size_t offset) noexcept {
    for (std::size_t i = 0; i < 8; ++i) {
        const std::uint64_t value = read64(stripe, 8 * i);
        const std::uint64_t keyed = value ^ read64(secret.data(), offset + 8 * i);
        lanes[i ^ 1] += value;
        lanes[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
    }
}

std::uint64_t over_240(const char* data, std::size_t size, std::uint64_t seed) noexcept {
    Secret secret;
    for (std::size_t i = 0; i < kSecretSize; i += 16) {
        const std::uint64_t pair[2] = {read64(kSecret.data(), i) + seed,
                                       read64(kSecret.data(), i + 8) - seed};
        std::memcpy(secret.data() + i, pair, 16);
    }
    constexpr std::size_t stripes = (kSecretSize - 64) / 8;  // a block
    Lanes lanes = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                   kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
    const std::size_t blocks = (size - 1) / (64 * stripes);
    for (std::size_t block = 0; block < blocks; ++block) {
        for (std::size_t i = 0; i < stripes; ++i)
            accumulate(lanes, data + 64 * (block * stripes + i), secret, 8 * i);
        for (std::size_t i = 0; i < 8; ++i) {
            lanes[i] =
                (lanes[i] ^ (lanes[i] >> 47) ^ read64(secret.data(), kSecretSize - 64 + 8 * i)) * kPrime32_1;
        }
    }
    const char* last = data + 64 * stripes * blocks;
    const std::size_t left = size - 64 * stripes * blocks;
    for (std::size_t i = 0; i < (left - 1) / 64; ++i) accumulate(lanes, last + 64 * i, secret, 8 * i);
    accumulate(lanes, data + size - 64, secret, kSecretSize - 71);
    std::uint64_t sum = size * kPrime64_1;
    for (std::size_t i = 0; i < 4; ++i) {
        sum += fold_multiply(lanes[2 * i] ^ read64(secret.data(), 11 + 16 * i),
                             lanes[2 * i + 1] ^ read64(secret.data(), 19 + 16 * i));
    }
    return avalanche3(sum);
}

}  // namespace

std::uint64_t xxh64(std::string_view bytes, std::uint64_t seed) noexcept {
    const char* data = bytes.data();
    std::size_t left = bytes.size();
    std::uint64_t state = seed + kPrime64_5;
    if (left >= 32) {
        std::array<std::uint64_t, 4> lanes = {seed + kPrime64_1 + kPrime64_2, seed + kPrime64_2, seed,
                                              seed - kPrime64_1};
        for (; left >= 32; data += 32, left -= 32) {
            for (std::size_t i = 0; i < 4; ++i) lanes[i] = round64(lanes[i], read64(data, 8 * i));
        }
        state = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) +
                std::rotl(lanes[3], 18);
        for (const std::uint64_t lane : lanes) state = (state ^ round64(0, lane)) * kPrime64_1 + kPrime64_4;
    }
    state += bytes.size();
    for (; left >= 8; data += 8, left -= 8) {
        state = std::rotl(state ^ round64(0, read64(data, 0)), 27) * kPrime64_1 + kPrime64_4;
    }
    if (left >= 4) {
        state = std::rotl(state ^ (read32(data, 0) * kPrime64_1), 23) * kPrime64_2 + kPrime64_3;
        data += 4;
        left -= 4;
    }
    for (; left > 0; ++data, --left) {
        state = std::rotl(state ^ (static_cast<std::uint8_t>(*data) * kPrime64_5), 11) * kPrime64_1;
    }
    return avalanche64(state);
}

std::uint64_t xxh3_64(std::string_view bytes, std::uint64_t seed) noexcept {
    if (bytes.size() <= 16) return up_to_16(bytes.data(), bytes.size(), seed);
    if (bytes.size() <= 240) return up_to_240(bytes.data(), bytes.size(), seed);
    return over_240(bytes.data(), bytes.size(), seed);
}

}  // namespace pylm
