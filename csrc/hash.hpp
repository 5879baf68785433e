// A mixing function for keys and hashes.
#pragma once

#include <cstdint>

namespace lmn {

// splitmix64 (Steele, Lea, Flood 2014): a bijection whose values look independent.
inline uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

}  // namespace lmn
