// The kernel of Jacobians for one instruction set: a tile of points forward, then the Jacobian's rows, one after the other for the
// whole tile or, without the units of no slope, together for one point after the other.
#include "gram.hpp"
#include "sparse_sweep.hpp"

namespace lmn::LMN_ISA {

// csrc/crossings_isa.cpp
template <class T>
int together(int n_directions);
template <class T>
int64_t crossings_bytes(const SlopeChain<T>&, int n_directions);
template <class T>
void crossings(const SlopeChain<T>&, const T* z, int count, const T* shifts, int n_directions, int64_t* counts, void* scratch);

namespace {

// A product whose results are multiplied by slopes: one step of a sweep.
template <class T>
void sloped(const T* weights, const T* slopes, int outputs, int units, const T* columns, T* to) {
    product<T, kSteps>(weights, outputs, units, columns, [&](int k, const Vec<T>(&sums)[kSteps]) {
        const int64_t at = int64_t(k) * kTile<T>;
        for (int s = 0; s < kSteps; ++s) store(to + at + s * kLanes<T>, sums[s] * load(slopes + at + s * kLanes<T>));
    });
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
void reverse_sweep(const SlopeChain<T>& chain, int count, bool to_last, const JacobianOutput<T>& to, Scratch<T>& scratch) {
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
        const T* weights = to_last ? chain.last : chain.first_transposed;
        if (!weights)
            emit_all(to, count, row, units, scratch.a);
        else
            product<T, kSteps>(weights, to_last ? chain.n_last : chain.n_in, units, scratch.a,
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
int64_t jacobians_bytes(const SlopeChain<T>& chain) {
    return scratch_bytes(chain) + (chain.sparse ? SparseScratch<T>::bytes(chain) : 0);
}

template <class T>
void jacobians(const SlopeChain<T>& chain, const T* x, int count, bool to_last, JacobianOutput<T> to, void* memory) {
    Scratch<T> scratch(chain, memory);
    forward(chain, x, count, scratch);
    if (!chain.reverse)
        forward_sweep(chain, count, to, scratch);
    else if (chain.sparse)
        sparse_sweep(chain, count, to_last, to, scratch.slopes, scratch.end(chain));
    else
        reverse_sweep(chain, count, to_last, to, scratch);
}

// Of the matrix that a sweep leaves of each point.
template <class T>
int64_t swept_columns(const SlopeChain<T>& chain, bool to_last) {
    return to_last ? chain.n_last : chain.reverse ? chain.n_in : chain.n_out;
}

template <class T>
int64_t grams_bytes(const SlopeChain<T>& chain, bool to_last) {
    const int64_t columns = swept_columns(chain, to_last);
    const int64_t maps = int64_t(chain.n_rows) * columns * kTile<T> * int64_t(sizeof(T));
    return maps + gram_rows(chain.n_rows) * gram_width(columns) * 8 + jacobians_bytes(chain) + 3 * 64;
}

template <class T>
void grams(const SlopeChain<T>& chain, const T* x, int count, bool to_last, double* out, void* memory) {
    const int64_t columns = swept_columns(chain, to_last), size = chain.n_rows * columns;
    char* cursor = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    T* maps = take<T>(cursor, size * kTile<T>);
    double* wide = take<double>(cursor, gram_rows(chain.n_rows) * gram_width(columns));
    jacobians(chain, x, count, to_last, {maps, size, columns, 1}, cursor);
    for (int p = 0; p < count; ++p)
        gram(maps + p * size, chain.n_rows, int(columns), wide, out + int64_t(p) * chain.n_rows * chain.n_rows);
}

void core_slopes_f32(int core, float p0, float p1, float kink, const float* z, float* out, int64_t n) {
    kSlopes<float>[core].slopes({p0, p1, kink}, z, out, n);
}

void core_slopes_f64(int core, double p0, double p1, double kink, const double* z, double* out, int64_t n) {
    kSlopes<double>[core].slopes({p0, p1, kink}, z, out, n);
}

template <class T>
constexpr SlopeKernels<T> kernels_of() {
    return {kTile<T>, kLanes<T>, jacobians_bytes<T>, jacobians<T>, grams_bytes<T>, grams<T>, together<T>, crossings_bytes<T>, crossings<T>};
}

}  // namespace

extern const JacobianKernels jacobian_kernels;
const JacobianKernels jacobian_kernels = {kMaxBlockOutputs, kLeastRows, kernels_of<float>(), kernels_of<double>(), kSlopeLimits,
                                          core_slopes_f32, core_slopes_f64};

}  // namespace lmn::LMN_ISA
