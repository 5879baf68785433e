// The product of a block of outputs with a tile of columns, all sums held in registers.
#pragma once

#include "simd.hpp"

namespace lmn::LMN_ISA {

// sums[k][s] = sum over units c of weights[c][k] * columns[c][s], vectors over lanes.
template <class T, int Outputs, int Steps>
inline void tile_product(const T* __restrict weights, const T* __restrict columns, int units, Vec<T> (&sums)[Outputs][Steps]) {
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
        columns += Steps * kLanes;
    }
}

}  // namespace lmn::LMN_ISA
