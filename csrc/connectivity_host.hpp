#pragma once

#include <string>
#include <vector>

#include "aligned.hpp"
#include "connectivity.hpp"

namespace lmn {

const Kernel& connectivity_kernel(const std::string& isa);  // "": the best that this machine runs

struct LayerData {  // row-major; z is borrowed as long as the Connectivity lives, the others while it is made
    int64_t units, outputs;
    int core;
    double p0, p1;
    const double* z;        // (units, n_points)
    const double* scale;    // (units)
    const double* slope;    // (units)
    const double* weights;  // (outputs, units), or null
};

class Connectivity {
public:
    // y, (n_out, n_points), is borrowed like z.
    Connectivity(int64_t n_points, int m, int64_t n_out, const std::vector<LayerData>& layers, const double* y,
                 const double* noise_f32, const double* noise_f64, double constant, double tolerance, double tolerance_f64,
                 const std::string& isa);

    // Rows first <= i < last of L: the pairs (i, j) with j > i and j >= first_column, and their mirror images. Returns the number of pairs
    // that float32 could not do to the tolerance and that were done again in float64.
    int64_t rows(int64_t first, int64_t last, int64_t first_column, bool single, int threads, Output out);

    int64_t n_points() const { return chain_.n_points; }
    const char* isa() const { return kernel_.isa; }

private:
    template <class T>
    LayerArrays<T> arrays(const LayerData& data, std::vector<Aligned<T>>& keep) const;

    const Kernel& kernel_;
    std::vector<Aligned<double>> doubles_;
    std::vector<Aligned<float>> floats_;
    std::vector<Aligned<char>> scratch_;
    std::vector<Layer> layers_;
    Chain chain_;
};

}  // namespace lmn
