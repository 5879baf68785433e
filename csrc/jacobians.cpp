// The host's side of the kernel of derivatives: data laid out for it, points shared among threads.
#include "jacobians_host.hpp"

#include <algorithm>

#include "cpu.hpp"
#include "packed.hpp"
#include "parallel.hpp"

namespace lmn {

LMN_TABLE_OF(JacobianKernels, jacobian_kernels, jacobian_kernels_of)

template <class T>
const SlopeKernels<T>& Slopes<T>::kernels() const {
    if constexpr (sizeof(T) == 4)
        return kernels_.f32;
    else
        return kernels_.f64;
}

template <class T>
Slopes<T>::Slopes(int64_t n_in, int64_t n_out, const double* first, const double* first_bias,
                  const std::vector<SlopeLayerData>& layers, const double* last_map, int64_t n_last, bool reverse,
                  const std::string& isa)
    : kernels_(jacobian_kernels_of(isa)) {
    const int64_t block = kernels_.block_outputs;
    bool sparse = false;
    for (const SlopeLayerData& data : layers) sparse = sparse || data.may_be_flat;
    sparse = sparse && reverse && n_out >= kernels_.least_sparse_rows && int(layers.size()) <= kMostLayers;
    for (const SlopeLayerData& data : layers) {
        SlopeLayer<T> layer{};
        layer.units = int(data.units);
        layer.outputs = int(data.outputs);
        layer.core = data.core;
        layer.p0 = T(data.p0);
        layer.p1 = T(data.p1);
        layer.kink = T(data.kink);
        layer.scale = kept(converted<T>(data.scale, data.units));
        layer.slope = kept(converted<T>(data.slope, data.units));
        auto least = aligned<T>(data.units);
        for (int64_t c = 0; c < data.units; ++c) least[c] = T(data.scale[c] * kernels_.slope_limits[data.core] + data.slope[c]);
        layer.least_slope = kept(std::move(least));
        layer.breakpoints = kept(converted<T>(data.breakpoints, data.n_breakpoints));
        layer.n_breakpoints = int(data.n_breakpoints);
        layer.bias = kept(converted<T>(data.bias, data.outputs));
        // A sweep starts from the rows of the matrix at its own end, and goes against the direction of the other.
        const bool is_last = &data == &layers.back();
        if (data.weights && !(is_last && reverse))
            layer.weights = kept(packed<T>(data.weights, data.outputs, data.units, block, data.units, 1));
        if (data.weights && !is_last && sparse)
            layer.back = panels(data.weights, data.outputs, data.units, data.units, 1);
        else if (data.weights && !is_last && reverse)
            layer.transposed = kept(packed<T>(data.weights, data.units, data.outputs, block, 1, data.units));
        layers_.push_back(layer);
    }
    const SlopeLayerData& last = layers.back();
    const int64_t n_first = layers[0].units;
    chain_ = {};
    chain_.n_in = int(n_in);
    chain_.n_out = int(n_out);
    chain_.n_layers = int(layers_.size());
    chain_.layers = layers_.data();
    chain_.reverse = reverse;
    chain_.sparse = sparse;
    chain_.n_rows = int(reverse ? n_out : n_in);
    if (first) {
        chain_.first = kept(packed<T>(first, n_first, n_in, block, n_in, 1));
        if (sparse)
            chain_.first_back = panels(first, n_first, n_in, n_in, 1);
        else if (reverse)
            chain_.first_transposed = kept(packed<T>(first, n_in, n_first, block, 1, n_in));
        chain_.first_bias = kept(converted<T>(first_bias, n_first));
    }
    if (last_map) {
        chain_.n_last = int(n_last);
        if (sparse)
            chain_.last_back = panels(last_map, n_first, n_last, 1, n_first);
        else
            chain_.last = kept(packed<T>(last_map, n_last, n_first, block, n_first, 1));
    }
    if (sparse) {
        auto columns = aligned<T>(n_out * last.units);
        for (int64_t c = 0; c < last.units; ++c)
            for (int64_t k = 0; k < n_out; ++k)
                columns[c * n_out + k] = last.weights ? T(last.weights[k * last.units + c]) : T(c == k);
        chain_.columns = kept(std::move(columns));
    } else if (reverse && last.weights) {
        chain_.rows = kept(converted<T>(last.weights, n_out * last.units));
    } else if (!reverse && first) {
        auto rows = aligned<T>(n_in * n_first);
        for (int64_t i = 0; i < n_in; ++i)
            for (int64_t c = 0; c < n_first; ++c) rows[i * n_first + c] = T(first[c * n_in + i]);
        chain_.rows = kept(std::move(rows));
    }
}

template <class T>
Panels<T> Slopes<T>::panels(const double* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    const int64_t lanes = kernels().lanes, most = kernels().tile_points / lanes;
    std::vector<int32_t>& first_row = first_rows_.emplace_back();
    const T* panels = kept(panelled<T>(values, rows, columns, lanes, most, row_stride, column_stride, first_row));
    return {int(rows), int(columns), panels, first_row.data()};
}

template <class T>
void Slopes<T>::make_scratch(int threads, int64_t bytes) {
    if (bytes > scratch_bytes_) scratch_.clear();
    scratch_bytes_ = std::max(bytes, scratch_bytes_);
    while (scratch_.size() < size_t(threads)) scratch_.push_back(aligned<char>(size_t(scratch_bytes_) + 64));
}

namespace {
constexpr double kNanosecondsAProduct = 0.02;
}

template <class T>
int Slopes<T>::workers(int64_t n, int threads) const {
    double products = double(chain_.n_in) * double(n_first());
    for (const SlopeLayer<T>& layer : layers_) products += double(layer.units) * layer.outputs;
    return workers_for(kNanosecondsAProduct * products * (1.0 + chain_.n_rows) * double(n), threads);
}

template <class T>
void Slopes<T>::jacobians(const T* x, int64_t n, bool to_last, T* out, int threads) {
    const int64_t tile = kernels().tile_points, width = to_last ? n_last() : chain_.n_in;
    threads = workers(n, threads);
    make_scratch(threads, kernels().scratch_bytes(chain_));
    const int64_t size = chain_.n_out * width;
    const int64_t row_stride = chain_.reverse ? width : 1, column_stride = chain_.reverse ? 1 : width;
    parallel_for(0, (n + tile - 1) / tile, threads, [&](int64_t task, int worker) {
        const int64_t first = task * tile;
        kernels().jacobians(chain_, x + first * chain_.n_in, int(std::min(tile, n - first)), to_last,
                            {out + first * size, size, row_stride, column_stride}, scratch(worker));
    });
}

template <class T>
void Slopes<T>::grams(const T* x, int64_t n, bool to_last, double* out, int threads) {
    const int64_t tile = kernels().tile_points;
    threads = workers(n, threads);
    make_scratch(threads, kernels().grams_bytes(chain_, to_last));
    parallel_for(0, (n + tile - 1) / tile, threads, [&](int64_t task, int worker) {
        const int64_t first = task * tile;
        kernels().grams(chain_, x + first * chain_.n_in, int(std::min(tile, n - first)), to_last,
                        out + first * chain_.n_rows * chain_.n_rows, scratch(worker));
    });
}

template <class T>
void Slopes<T>::crossings(const T* z, int64_t n, const T* shifts, int64_t n_directions, int64_t* counts, int threads) {
    const int64_t together = kernels().together(int(n_directions));
    double products = 0;
    for (const SlopeLayer<T>& layer : layers_) products += double(layer.units) * layer.outputs;
    threads = workers_for(kNanosecondsAProduct * products * double(n_directions) * double(n), threads);
    make_scratch(threads, kernels().crossings_bytes(chain_, int(n_directions)));
    parallel_for(0, (n + together - 1) / together, threads, [&](int64_t task, int worker) {
        const int64_t first = task * together;
        kernels().crossings(chain_, z + first * n_first(), int(std::min(together, n - first)), shifts, int(n_directions),
                            counts + first * chain_.n_layers, scratch(worker));
    });
}

template class Slopes<float>;
template class Slopes<double>;

}  // namespace lmn
