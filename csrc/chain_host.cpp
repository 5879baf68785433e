#include "chain_host.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu.hpp"
#include "packed.hpp"
#include "parallel.hpp"

namespace lmn {

#define LMN_DECLARE(isa)                       \
    namespace isa {                            \
    extern const ChainKernel<float> chain_f32; \
    extern const ChainKernel<double> chain_f64; \
    }
#if defined(__x86_64__)
LMN_DECLARE(x86_64_v4)
LMN_DECLARE(x86_64_v3)
#endif
LMN_DECLARE(baseline)

template <class T>
const ChainKernel<T>& chain_kernel(const std::string& isa) {
    const std::string name = chosen_instruction_set(isa);
    const auto of = [](const ChainKernel<float>& single, const ChainKernel<double>& twice) -> const ChainKernel<T>& {
        if constexpr (sizeof(T) == 4)
            return static_cast<void>(twice), single;
        else
            return static_cast<void>(single), twice;
    };
#if defined(__x86_64__)
    if (name == "x86_64_v4") return of(x86_64_v4::chain_f32, x86_64_v4::chain_f64);
    if (name == "x86_64_v3") return of(x86_64_v3::chain_f32, x86_64_v3::chain_f64);
#endif
    return of(baseline::chain_f32, baseline::chain_f64);
}

template const ChainKernel<float>& chain_kernel(const std::string&);
template const ChainKernel<double>& chain_kernel(const std::string&);

template <class T>
PointChains<T>::PointChains(int64_t n_in, const double* first_weights, const double* first_bias,
                            const std::vector<ChainLayerData>& layers, const SweepData& sweep, const std::string& isa)
    : kernel_(chain_kernel<T>(isa)), reverse_(sweep.reverse) {
    const int block = kernel_.block_outputs;
    const auto weights = [&](const double* from, int64_t outputs, int64_t units, bool transposed) {
        return transposed ? kept(packed<T>(from, outputs, units, 1, outputs, block))
                          : kept(packed<T>(from, outputs, units, units, 1, block));
    };
    int64_t widest = layers.back().outputs, units_in_all = 0, lines_in_all = 0, words = 0;
    for (const ChainLayerData& data : layers) {
        ChainLayer<T> layer{};
        layer.units = int(data.units);
        layer.outputs = int(data.outputs);
        layer.core = data.core;
        layer.p0 = T(data.p0);
        layer.p1 = T(data.p1);
        layer.scale = kept(converted<T>(data.scale, data.units));
        layer.slope = kept(converted<T>(data.slope, data.units));
        layer.n_breakpoints = int(data.n_breakpoints);
        layer.breakpoint = kept(converted<T>(data.breakpoints, data.n_breakpoints));
        if (data.piece_slopes) {
            layer.piece_slope = kept(converted<T>(data.piece_slopes, (data.n_breakpoints + 1) * data.units));
            layer.piece_offset = kept(converted<T>(data.piece_offsets, (data.n_breakpoints + 1) * data.units));
        }
        layer.first_word = int(words);
        layer.weights = weights(data.weights, data.outputs, data.units, false);
        layer.bias = kept(converted<T>(data.bias, data.outputs));
        layers_.push_back(layer);
        words += (data.units * data.n_breakpoints + 63) / 64;
        units_in_all += data.units;
        lines_in_all += data.units * data.n_breakpoints;
        widest = std::max(widest, data.units);
    }
    const int n = int(layers.size());
    if (sweep.reverse) {
        for (int l = n - 1; l > 0; --l)
            stages_.push_back({layers_[l].units, layers_[l - 1].units,
                               weights(layers[l - 1].weights, layers[l - 1].units, layers[l].units, true), l - 1});
        stages_.push_back({layers_[0].units, int(sweep.rows), weights(sweep.end, sweep.rows, layers[0].units, false), -1});
    } else {
        for (int l = 0; l + 1 < n; ++l) stages_.push_back({layers_[l].units, layers_[l].outputs, layers_[l].weights, l + 1});
        stages_.push_back({layers_[n - 1].units, int(sweep.rows), weights(sweep.end, sweep.rows, layers[n - 1].units, false), -1});
    }
    const int start_layer = sweep.reverse ? n - 1 : 0;
    chain_.n_in = int(n_in);
    chain_.n_out = int(layers.back().outputs);
    chain_.n_layers = n;
    chain_.n_words = int(words);
    chain_.first_weights = weights(first_weights, layers[0].units, n_in, false);
    chain_.first_bias = kept(converted<T>(first_bias, layers[0].units));
    chain_.layers = layers_.data();
    chain_.columns = int(sweep.columns);
    chain_.rows = int(sweep.rows);
    chain_.start_layer = start_layer;
    chain_.n_stages = int(stages_.size());
    chain_.start = kept(converted<T>(sweep.start, sweep.columns * layers[start_layer].units));
    chain_.stages = stages_.data();
    chain_.units_in_all = int(units_in_all);
    chain_.lines_in_all = int(lines_in_all);
    chain_.widest = int(widest);
}

template <class T>
template <class Body>
void PointChains<T>::over_tiles(int64_t n, int64_t points, int threads, Body body) {
    const int64_t values = kernel_.scratch_values(chain_);
    while (scratch_.size() < size_t(threads)) scratch_.push_back(aligned<T>(values));
    parallel_for(0, (n + points - 1) / points, threads, [&](int64_t tile, int worker) {
        body(tile * points, int(std::min(points, n - tile * points)), scratch_[worker].get());
    });
}

template <class T>
JacobianOutput<T> PointChains<T>::output(T* jacobian, T* gram, int64_t first) const {
    const int64_t columns = chain_.columns, rows = chain_.rows, size = columns * rows;
    return {jacobian ? jacobian + first * size : nullptr, size, reverse_ ? rows : 1, reverse_ ? 1 : columns,
            gram ? gram + first * columns * columns : nullptr};
}

template <class T>
void PointChains<T>::forward(const T* x, int64_t n, T* y, uint64_t* words, int threads) {
    over_tiles(n, kernel_.points, threads, [&](int64_t first, int count, T* scratch) {
        kernel_.forward(chain_, x + first * chain_.n_in, count, y ? y + first * chain_.n_out : nullptr,
                        words ? words + first * chain_.n_words : nullptr, scratch);
    });
}

template <class T>
void PointChains<T>::jacobians(const T* x, int64_t n, T* y, T* jacobian, T* gram, int threads) {
    over_tiles(n, kernel_.points, threads, [&](int64_t first, int count, T* scratch) {
        kernel_.jacobians(chain_, x + first * chain_.n_in, count, y ? y + first * chain_.n_out : nullptr,
                          output(jacobian, gram, first), scratch);
    });
}

template <class T>
void PointChains<T>::jacobians_of_patterns(const uint64_t* words, int64_t n, T* jacobian, T* gram, int threads) {
    over_tiles(n, kernel_.points, threads, [&](int64_t first, int count, T* scratch) {
        kernel_.jacobians_of_patterns(chain_, words + first * chain_.n_words, count, output(jacobian, gram, first), scratch);
    });
}

template <class T>
void PointChains<T>::crossings(const T* x, int64_t n, const double* offset, int64_t count, int32_t* crossings, int threads) {
    const auto own = converted<T>(offset, count * chain_.layers[0].units);
    over_tiles(n, kernel_.lanes, threads, [&](int64_t first, int points, T* scratch) {
        kernel_.crossings(chain_, x + first * chain_.n_in, points, {int(count), own.get()}, crossings + first * chain_.n_layers,
                          scratch);
    });
}

template class PointChains<float>;
template class PointChains<double>;

}  // namespace lmn
