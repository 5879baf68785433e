// Scratch memory that is handed out in order and taken back in the opposite order: what a recursion works in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.hpp"

namespace lmn {

class Arena {
public:
    explicit Arena(size_t block_bytes = size_t(1) << 20) : block_bytes_(block_bytes) {}

    struct Mark {
        size_t block, used;
    };

    Mark mark() const { return {block_, used_}; }
    void release(Mark mark) {
        block_ = mark.block;
        used_ = mark.used;
    }

    // An array that stands at a cache line, and may be read up to the end of its last one.
    template <class T>
    T* take(int64_t count) {
        const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
        if (blocks_.empty() || used_ + bytes > blocks_[block_].size) next(bytes);
        T* p = reinterpret_cast<T*>(blocks_[block_].memory.get() + used_);
        used_ += bytes;
        return p;
    }

private:
    struct Block {
        size_t size;
        Aligned<char> memory;
    };

    void next(size_t bytes) {
        const size_t wanted = blocks_.empty() ? 0 : block_ + 1;
        if (wanted < blocks_.size() && blocks_[wanted].size < bytes) blocks_.resize(wanted);
        if (wanted == blocks_.size()) {
            const size_t size = std::max(bytes, block_bytes_);
            blocks_.push_back({size, aligned<char>(size)});
        }
        block_ = wanted;
        used_ = 0;
    }

    size_t block_bytes_;
    std::vector<Block> blocks_;
    size_t block_ = 0, used_ = 0;
};

}  // namespace lmn
