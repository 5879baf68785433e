// The kernel of derivatives for one instruction set: a tile of points forward, then the Jacobian's rows one after the other.
#include "jacobians.hpp"

#include "cores.hpp"
#include "tile_product.hpp"

namespace lmn::LMN_ISA {
namespace {

template <class T>
inline constexpr int kLanes = Simd<T>::kLanes;
inline constexpr int kSteps = kMaxBlockSteps;  // vectors of points that are taken together
template <class T>
inline constexpr int kTile = kSteps * kLanes<T>;

template <class T>
T* take(char*& cursor, int64_t count) {
    T* p = reinterpret_cast<T*>(cursor);
    cursor += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return p;
}

// ---- activations -------------------------------------------------------------------------------------------------

template <class T>
CoreParameters<T> parameters(const SlopeLayer<T>& layer) {
    return {layer.p0, layer.p1, layer.kink};
}

// Pre-activations z [unit][tile] in place to activations, and their slopes.
template <class T, template <class> class Core>
void activate(const SlopeLayer<T>& layer, T* __restrict z, T* __restrict slopes) {
    const CoreParameters<T> p = parameters(layer);
    for (int64_t c = 0; c < layer.units; ++c) {
        const T scale = layer.scale[c], slope = layer.slope[c];
        for (int64_t at = c * kTile<T>; at < (c + 1) * kTile<T>; at += kLanes<T>) {
            const Vec<T> x = load(z + at);
            const Sloped<T> core = Core<T>::with_slope(x, p);
            store(z + at, scale * core.value + slope * x);
            store(slopes + at, scale * core.slope + slope);
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

// ---- products ----------------------------------------------------------------------------------------------------

template <class T>
void affine(const T* weights, const T* bias, int outputs, int units, const T* columns, T* to) {
    product<T, kSteps>(weights, outputs, units, columns, [&](int k, const Vec<T>(&sums)[kSteps]) {
        for (int s = 0; s < kSteps; ++s) store(to + (int64_t(k) * kSteps + s) * kLanes<T>, sums[s] + bias[k]);
    });
}

// A product whose results are multiplied by slopes: one step of a sweep.
template <class T>
void sloped(const T* weights, const T* slopes, int outputs, int units, const T* columns, T* to) {
    product<T, kSteps>(weights, outputs, units, columns, [&](int k, const Vec<T>(&sums)[kSteps]) {
        const int64_t at = int64_t(k) * kTile<T>;
        for (int s = 0; s < kSteps; ++s) store(to + at + s * kLanes<T>, sums[s] * load(slopes + at + s * kLanes<T>));
    });
}

// ---- a tile ------------------------------------------------------------------------------------------------------

template <class T>
int64_t widest(const SlopeChain<T>& chain) {
    int64_t most = chain.n_in > chain.n_out ? chain.n_in : chain.n_out;
    for (int l = 0; l < chain.n_layers; ++l) most = most > chain.layers[l].units ? most : chain.layers[l].units;
    return most;
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

    void swap() {
        T* other = a;
        a = b;
        b = other;
    }
};

template <class T>
int64_t scratch_bytes(const SlopeChain<T>& chain) {
    int64_t units = 2 * widest(chain);
    for (int l = 0; l < chain.n_layers; ++l) units += chain.layers[l].units;
    return units * kTile<T> * int64_t(sizeof(T)) + 64;
}

// Points [point][n_in] to [n_in][tile]; beyond the last, the last.
template <class T>
void gather(const T* x, int count, int n_in, T* to) {
    for (int p = 0; p < kTile<T>; ++p) {
        const T* from = x + int64_t(p < count ? p : count - 1) * n_in;
        for (int64_t i = 0; i < n_in; ++i) to[i * kTile<T> + p] = from[i];
    }
}

template <class T>
void emit(const JacobianOutput<T>& to, int count, int row, int column, const Vec<T>* values) {
    T* out = to.out + row * to.row_stride + column * to.column_stride;
    T flat[kTile<T>] __attribute__((aligned(64)));
    for (int s = 0; s < kSteps; ++s) store(flat + s * kLanes<T>, values[s]);
    for (int p = 0; p < count; ++p) out[p * to.point_stride] = flat[p];
}

template <class T>
void emit_all(const JacobianOutput<T>& to, int count, int row, int units, const T* columns) {
    for (int k = 0; k < units; ++k) {
        Vec<T> values[kSteps];
        for (int s = 0; s < kSteps; ++s) values[s] = load(columns + (int64_t(k) * kSteps + s) * kLanes<T>);
        emit<T>(to, count, row, k, values);
    }
}

// The slopes of all layers at a tile of points.
template <class T>
void forward(const SlopeChain<T>& chain, const T* x, int count, Scratch<T>& scratch) {
    gather(x, count, chain.n_in, scratch.a);
    if (chain.first) {
        affine(chain.first, chain.first_bias, chain.layers[0].units, chain.n_in, scratch.a, scratch.b);
        scratch.swap();
    }
    T* slopes = scratch.slopes;
    for (int l = 0; l < chain.n_layers; ++l) {
        const SlopeLayer<T>& layer = chain.layers[l];
        kSlopes<T>[layer.core].activate(layer, scratch.a, slopes);
        slopes += int64_t(layer.units) * kTile<T>;
        if (l + 1 < chain.n_layers) {
            affine(layer.weights, layer.bias, layer.outputs, layer.units, scratch.a, scratch.b);
            scratch.swap();
        }
    }
}

// A row of the matrix that a sweep starts from, times the slopes of the layer next to it.
template <class T>
void start(const SlopeChain<T>& chain, int row, int units, const T* slopes, T* to) {
    for (int64_t c = 0; c < units; ++c) {
        const T w = chain.rows ? chain.rows[int64_t(row) * units + c] : T(c == row);
        for (int64_t at = c * kTile<T>; at < (c + 1) * kTile<T>; at += kLanes<T>) store(to + at, w * load(slopes + at));
    }
}

template <class T>
void reverse_sweep(const SlopeChain<T>& chain, int count, bool to_first, const JacobianOutput<T>& to, Scratch<T>& scratch) {
    const int last = chain.n_layers - 1;
    T* end = scratch.slopes;
    for (int l = 0; l < last; ++l) end += int64_t(chain.layers[l].units) * kTile<T>;
    for (int row = 0; row < chain.n_rows; ++row) {
        T* slopes = end;
        start(chain, row, chain.layers[last].units, slopes, scratch.a);
        for (int l = last - 1; l >= 0; --l) {
            const SlopeLayer<T>& layer = chain.layers[l];
            slopes -= int64_t(layer.units) * kTile<T>;
            sloped(layer.transposed, slopes, layer.units, layer.outputs, scratch.a, scratch.b);
            scratch.swap();
        }
        const int units = chain.layers[0].units;
        if (to_first || !chain.first)
            emit_all(to, count, row, units, scratch.a);
        else
            product<T, kSteps>(chain.first_transposed, chain.n_in, units, scratch.a,
                               [&](int i, const Vec<T>(&sums)[kSteps]) { emit<T>(to, count, row, i, sums); });
    }
}

template <class T>
void forward_sweep(const SlopeChain<T>& chain, int count, const JacobianOutput<T>& to, Scratch<T>& scratch) {
    for (int row = 0; row < chain.n_rows; ++row) {
        const T* slopes = scratch.slopes;
        start(chain, row, chain.layers[0].units, slopes, scratch.a);
        for (int l = 0; l + 1 < chain.n_layers; ++l) {
            const SlopeLayer<T>& layer = chain.layers[l];
            slopes += int64_t(layer.units) * kTile<T>;
            sloped(layer.weights, slopes, layer.outputs, layer.units, scratch.a, scratch.b);
            scratch.swap();
        }
        const SlopeLayer<T>& last = chain.layers[chain.n_layers - 1];
        if (!last.weights)
            emit_all(to, count, row, last.units, scratch.a);
        else
            product<T, kSteps>(last.weights, chain.n_out, last.units, scratch.a,
                               [&](int k, const Vec<T>(&sums)[kSteps]) { emit<T>(to, count, row, k, sums); });
    }
}

template <class T>
void jacobians(const SlopeChain<T>& chain, const T* x, int count, bool to_first, JacobianOutput<T> to, void* memory) {
    Scratch<T> scratch(chain, memory);
    forward(chain, x, count, scratch);
    if (chain.reverse)
        reverse_sweep(chain, count, to_first, to, scratch);
    else
        forward_sweep(chain, count, to, scratch);
}

// ---- local complexity --------------------------------------------------------------------------------------------

// Bits 2 b and 2 b + 1 of a unit: whether a pre-activation lies above breakpoint b, and whether one does not.
template <class T>
void note_sides(const SlopeLayer<T>& layer, const T* z, uint64_t* sides) {
    for (int64_t c = 0; c < layer.units; ++c) {
        Vec<T> least = load(z + c * kTile<T>), most = least;
        for (int s = 1; s < kSteps; ++s) {
            const Vec<T> x = load(z + c * kTile<T> + s * kLanes<T>);
            least = minimum(least, x);
            most = maximum(most, x);
        }
        T low = least[0], high = most[0];
        for (int lane = 1; lane < kLanes<T>; ++lane) {
            low = least[lane] < low ? least[lane] : low;
            high = most[lane] > high ? most[lane] : high;
        }
        for (int b = 0; b < layer.n_breakpoints; ++b) {
            sides[c] |= uint64_t(high > layer.breakpoints[b]) << (2 * b);
            sides[c] |= uint64_t(!(low > layer.breakpoints[b])) << (2 * b + 1);
        }
    }
}

template <class T>
void crossings(const SlopeChain<T>& chain, const T* z, const T* shifts, int n_directions, int64_t* counts, void* memory) {
    Scratch<T> scratch(chain, memory);
    const int n_vertices = 2 * n_directions, first_units = chain.layers[0].units;
    // The slopes' place is not needed here: it holds the sides, of 8 bytes a unit, which a tile's row of a unit has room for.
    uint64_t* const all = reinterpret_cast<uint64_t*>(scratch.slopes);
    int64_t n_units = 0;
    for (int l = 0; l < chain.n_layers; ++l) n_units += chain.layers[l].units;
    for (int64_t c = 0; c < n_units; ++c) all[c] = 0;
    for (int first = 0; first < n_vertices; first += kTile<T>) {
        for (int64_t c = 0; c < first_units; ++c)
            for (int p = 0; p < kTile<T>; ++p) {
                const int vertex = first + p < n_vertices ? first + p : n_vertices - 1;
                const T shift = shifts[int64_t(vertex / 2) * first_units + c];
                scratch.a[c * kTile<T> + p] = vertex % 2 ? z[c] - shift : z[c] + shift;
            }
        uint64_t* sides = all;
        for (int l = 0; l < chain.n_layers; ++l) {
            const SlopeLayer<T>& layer = chain.layers[l];
            note_sides(layer, scratch.a, sides);
            sides += layer.units;
            if (l + 1 == chain.n_layers) break;
            kSlopes<T>[layer.core].activate_only(layer, scratch.a, nullptr);
            affine(layer.weights, layer.bias, layer.outputs, layer.units, scratch.a, scratch.b);
            scratch.swap();
        }
    }
    const uint64_t* sides = all;
    for (int l = 0; l < chain.n_layers; ++l) {
        counts[l] = 0;
        for (int c = 0; c < chain.layers[l].units; ++c, ++sides) counts[l] += (*sides & (*sides >> 1) & 0x5555555555555555) != 0;
    }
}

void core_slopes_f32(int core, float p0, float p1, float kink, const float* z, float* out, int64_t n) {
    kSlopes<float>[core].slopes({p0, p1, kink}, z, out, n);
}

void core_slopes_f64(int core, double p0, double p1, double kink, const double* z, double* out, int64_t n) {
    kSlopes<double>[core].slopes({p0, p1, kink}, z, out, n);
}

template <class T>
constexpr SlopeKernels<T> kernels_of() {
    return {kTile<T>, scratch_bytes<T>, jacobians<T>, crossings<T>};
}

}  // namespace

extern const JacobianKernels jacobian_kernels;
const JacobianKernels jacobian_kernels = {kMaxBlockOutputs, kernels_of<float>(), kernels_of<double>(), core_slopes_f32,
                                          core_slopes_f64};

}  // namespace lmn::LMN_ISA
