// The product of a packed matrix with a tile of columns, all sums of a block of outputs held in registers.
#pragma once

#include "simd.hpp"

namespace lmn::LMN_ISA {

// sums[k][s] = sum over units c of weights[c][k] * columns[c][s], vectors over lanes; a unit's row is `stride` values long.
template <class T, int Outputs, int Steps>
inline void tile_product(const T* __restrict weights, const T* __restrict columns, int units, int64_t stride,
                         Vec<T> (&sums)[Outputs][Steps]) {
    constexpr int kLanes = Simd<T>::kLanes;
    for (int k = 0; k < Outputs; ++k)
        for (int s = 0; s < Steps; ++s) sums[k][s] = Vec<T>{};
    for (int c = 0; c < units; ++c) {
        Vec<T> column[Steps];
        for (int s = 0; s < Steps; ++s) column[s] = load(columns + s * kLanes);
        for (int k = 0; k < Outputs; ++k) {
            const Vec<T> w = broadcast(weights[k]);
            for (int s = 0; s < Steps; ++s) sums[k][s] += w * column[s];
        }
        weights += Outputs;
        columns += stride;
    }
}

template <class T, int Steps, class Done, int Outputs = kMaxBlockOutputs>
inline void block_product(int outputs, const T* weights, const T* columns, int units, int64_t stride, int first, Done& done) {
    if (outputs == Outputs) {
        Vec<T> sums[Outputs][Steps];
        tile_product<T, Outputs, Steps>(weights, columns, units, stride, sums);
        for (int k = 0; k < Outputs; ++k) done(first + k, sums[k]);
    } else if constexpr (Outputs > 1) {
        block_product<T, Steps, Done, Outputs - 1>(outputs, weights, columns, units, stride, first, done);
    }
}

// done(k, sums[Steps]) for every output k of a matrix packed in blocks whose heights differ by at most one (csrc/packed.hpp).
template <class T, int Steps, class Done>
inline void product(const T* weights, int outputs, int units, const T* columns, Done done,
                    int64_t stride = Steps * Simd<T>::kLanes) {
    const int blocks = (outputs + kMaxBlockOutputs - 1) / kMaxBlockOutputs;
    const int height = outputs / blocks, taller = outputs % blocks;
    for (int b = 0, k = 0; b < blocks; ++b) {
        const int count = height + (b < taller);
        block_product<T, Steps>(count, weights, columns, units, stride, k, done);
        weights += int64_t(count) * units;
        k += count;
    }
}

}  // namespace lmn::LMN_ISA
