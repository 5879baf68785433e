// A buffer on a cache-line boundary.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

namespace lmn {

struct Free {
    void operator()(void* p) const { std::free(p); }
};

template <class T>
using Aligned = std::unique_ptr<T[], Free>;

template <class T>
Aligned<T> aligned(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes ? bytes : 64);
    if (!p) throw std::bad_alloc();
    return Aligned<T>(static_cast<T*>(p));
}

}  // namespace lmn
