// A column that grows at its end, and is handed over without a copy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "aligned.hpp"

namespace lmn {

// Grown by realloc, which moves large blocks by their pages: memory is never held twice, as std::vector would.
template <class T>
class Grown {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    Grown() = default;
    Grown(const Grown&) = delete;
    Grown& operator=(const Grown&) = delete;

    T* data() { return values_.get(); }
    const T* data() const { return values_.get(); }
    T& operator[](int64_t i) { return values_[i]; }
    const T& operator[](int64_t i) const { return values_[i]; }

    // Room for n values.
    void reserve(int64_t n) {
        if (n > room_) {
            const int64_t room = std::max(n, room_ + room_ / 4);
            T* grown = static_cast<T*>(std::realloc(values_.get(), size_t(room) * sizeof(T)));
            if (!grown) throw std::bad_alloc();
            static_cast<void>(values_.release());
            values_.reset(grown);
            room_ = room;
        }
    }

    std::unique_ptr<T[], Free> taken() {
        room_ = 0;
        return std::move(values_);
    }

private:
    std::unique_ptr<T[], Free> values_;
    int64_t room_ = 0;
};

}  // namespace lmn
