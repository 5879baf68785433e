// The host's side of the connectivity kernel: data laid out for it, rows shared among threads.
#include "connectivity_host.hpp"

#include "cpu.hpp"
#include "packed.hpp"
#include "parallel.hpp"

namespace lmn {

LMN_TABLE_OF(Kernel, kernel, connectivity_kernel)

Connectivity::Connectivity(int64_t n_points, int m, int64_t n_out, const std::vector<LayerData>& layers, const double* y,
                           const double* noise_f32, const double* noise_f64, double constant, double tolerance, double tolerance_f64,
                           const std::string& isa)
    : kernel_(connectivity_kernel(isa)) {
    for (const LayerData& data : layers) {
        Layer layer{};
        layer.units = int(data.units);
        layer.outputs = int(data.outputs);
        layer.core = data.core;
        layer.p0 = data.p0;
        layer.p1 = data.p1;
        layer.z = data.z;
        layer.f32 = arrays(data, floats_);
        layer.f64 = arrays(data, doubles_);
        layers_.push_back(layer);
    }
    doubles_.push_back(converted<double>(noise_f32, n_out));
    const double* noise32 = doubles_.back().get();
    doubles_.push_back(converted<double>(noise_f64, n_out));
    chain_ = {n_points, m, int(layers_.size()), layers_.data(), int(n_out), y, noise32, doubles_.back().get(), constant, tolerance, tolerance_f64};
}

template <class T>
LayerArrays<T> Connectivity::arrays(const LayerData& data, std::vector<Aligned<T>>& keep) const {
    const auto kept = [&](Aligned<T> array) { return keep.emplace_back(std::move(array)).get(); };
    return {kept(converted<T>(data.scale, data.units)), kept(converted<T>(data.slope, data.units)),
            data.weights ? kept(packed<T>(data.weights, data.outputs, data.units, kernel_.block_outputs, data.units, 1)) : nullptr};
}

int64_t Connectivity::rows(int64_t first, int64_t last, int64_t first_column, bool single, int threads, Output out) {
    const size_t bytes = size_t(kernel_.scratch_bytes(chain_)) + 64;
    while (scratch_.size() < size_t(threads)) scratch_.push_back(aligned<char>(bytes));
    std::atomic<int64_t> redone{0};
    parallel_for(first, last, threads, [&](int64_t i, int worker) {
        redone += kernel_.row(chain_, i, first_column, single, out, scratch_[worker].get());
    });
    return redone;
}

}  // namespace lmn
