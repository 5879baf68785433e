// What the kernels of derivatives and of local complexity share: a tile of points, its activations, its affine maps.
#pragma once

#include "cores.hpp"
#include "jacobians.hpp"
#include "scratch.hpp"
#include "tile_product.hpp"

#include <limits>

namespace lmn::LMN_ISA {
namespace {

inline constexpr int kSteps = kMaxBlockSteps;  // vectors of points that are taken together
template <class T>
inline constexpr int kTile = kSteps * kLanes<T>;

// ---- activations -------------------------------------------------------------------------------------------------

template <class T>
CoreParameters<T> parameters(const SlopeLayer<T>& layer) {
    return {layer.p0, layer.p1, layer.kink};
}

// The largest number for an infinite z, of which an activation may have nothing, or a difference.
template <class T>
Vec<T> bounded(Vec<T> z) {
    constexpr T kMost = std::numeric_limits<T>::max();
    return maximum(broadcast(-kMost), minimum(broadcast(kMost), z));
}

// Pre-activations z [unit][tile] in place to activations, and their slopes.
template <class T, template <class> class Core>
void activate(const SlopeLayer<T>& layer, T* __restrict z, T* __restrict slopes) {
    const CoreParameters<T> p = parameters(layer);
    for (int64_t c = 0; c < layer.units; ++c) {
        const T scale = layer.scale[c], slope = layer.slope[c], least = layer.least_slope[c];
        for (int64_t at = c * kTile<T>; at < (c + 1) * kTile<T>; at += kLanes<T>) {
            const Vec<T> x = bounded<T>(load(z + at));
            const Sloped<T> core = Core<T>::with_slope(x, p);
            store(z + at, scale * core.value + slope * x);
            store(slopes + at, scale * core.slope + least);
        }
    }
}

template <class T, template <class> class Core>
void activate_only(const SlopeLayer<T>& layer, T* z, T*) {
    const CoreParameters<T> p = parameters(layer);
    for (int64_t c = 0; c < layer.units; ++c) {
        const T scale = layer.scale[c], slope = layer.slope[c];
        for (int64_t at = c * kTile<T>; at < (c + 1) * kTile<T>; at += kLanes<T>) {
            const Vec<T> x = load(z + at);
            store(z + at, scale * Core<T>::at(x, p) + slope * x);
        }
    }
}

template <class T, template <class> class Core>
void core_slopes(CoreParameters<T> p, const T* z, T* out, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(out + i, Core<T>::with_slope(load(z + i), p).slope);
}

template <class T>
struct SlopeTable {
    void (*activate)(const SlopeLayer<T>&, T*, T*);
    void (*activate_only)(const SlopeLayer<T>&, T*, T*);
    void (*slopes)(CoreParameters<T>, const T*, T*, int64_t);
};

#define LMN_TABLE(Core) {activate<T, Core>, activate_only<T, Core>, core_slopes<T, Core>},
template <class T>
constexpr SlopeTable<T> kSlopes[] = {LMN_CORES(LMN_TABLE)};

template <class T>
void affine(const T* weights, const T* bias, int outputs, int units, const T* columns, T* to) {
    product<T, kSteps>(weights, outputs, units, columns, [&](int k, const Vec<T>(&sums)[kSteps]) {
        for (int s = 0; s < kSteps; ++s) store(to + (int64_t(k) * kSteps + s) * kLanes<T>, sums[s] + bias[k]);
    });
}

template <class T>
int64_t widest(const SlopeChain<T>& chain) {
    int64_t most = chain.n_in > chain.n_out ? chain.n_in : chain.n_out;  // what is emitted is never stored here
    for (int l = 0; l < chain.n_layers; ++l) most = most > chain.layers[l].units ? most : chain.layers[l].units;
    return most;
}

template <class T>
int64_t units_of_all_layers(const SlopeChain<T>& chain) {
    int64_t units = 0;
    for (int l = 0; l < chain.n_layers; ++l) units += chain.layers[l].units;
    return units;
}

template <class T>
struct Scratch {
    T* a;       // [unit][tile]: what a product takes
    T* b;       // and what it gives
    T* slopes;  // [unit of all layers][tile]

    Scratch(const SlopeChain<T>& chain, void* memory) {
        char* cursor = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
        a = take<T>(cursor, widest(chain) * kTile<T>);
        b = take<T>(cursor, widest(chain) * kTile<T>);
        slopes = take<T>(cursor, 0);
    }

    // What is left of the memory.
    char* end(const SlopeChain<T>& chain) const {
        return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(slopes + units_of_all_layers(chain) * kTile<T>) + 63) / 64 * 64);
    }

    void swap() {
        T* other = a;
        a = b;
        b = other;
    }
};

template <class T>
int64_t scratch_bytes(const SlopeChain<T>& chain) {
    return (2 * widest(chain) + units_of_all_layers(chain)) * kTile<T> * int64_t(sizeof(T)) + 64;
}

}  // namespace
}  // namespace lmn::LMN_ISA
