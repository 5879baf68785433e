// Points and grids of points sent down the tree of cuts: a row of a grid goes down as one, and parts where a cut crosses it.
#include "tree.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace lmn {
namespace {

constexpr int64_t kPointsATask = 1 << 14, kRowsATask = 16;

template <int D>
int64_t region_of(const Tree& tree, const double* x) {
    int64_t node = tree.n_cuts > 0 ? 0 : ~int64_t(0);
    while (node >= 0) {
        const double* cut = tree.cut + node * (D + 1);
        double z = cut[D];
        for (int d = 0; d < D; ++d) z += cut[d] * x[d];
        node = tree.child[2 * node + !(z > 0)];
    }
    return ~node;
}

template <int D>
void locate_in(const Tree& tree, int64_t n, const double* x, int threads, int64_t* region) {
    parallel_for(0, (n + kPointsATask - 1) / kPointsATask, threads, [&](int64_t task, int) {
        const int64_t last = std::min(n, (task + 1) * kPointsATask);
        for (int64_t i = task * kPointsATask; i < last; ++i) region[i] = region_of<D>(tree, x + i * D);
    });
}

// A part of a row on its way down.
struct Span {
    int64_t node, first, last;
};

// One row: the coordinates of its other axes are fixed.
template <int D>
void fill_row(const Tree& tree, const Raster& raster, const double* fixed, std::vector<Span>& open, int32_t* region) {
    constexpr int kAlong = D - 1;
    open.push_back({tree.n_cuts > 0 ? 0 : ~int64_t(0), 0, raster.count[kAlong]});
    while (!open.empty()) {
        auto [node, first, last] = open.back();
        open.pop_back();
        while (node >= 0) {
            const double* cut = tree.cut + node * (D + 1);
            double c = cut[D];
            for (int d = 0; d < kAlong; ++d) c += cut[d] * fixed[d];
            const double a = cut[kAlong];
            const auto above = [&](int64_t i) { return c + a * raster.at(kAlong, i) > 0; };
            const bool at_first = above(first);
            const int64_t* child = tree.child + 2 * node;
            if (above(last - 1) != at_first) {
                // The first point on the other side: by the line's own zero, then by the signs, which rounding may shift by one.
                const double crossing = (-c / a - raster.first[kAlong]) / raster.step[kAlong];
                int64_t i = int64_t(std::min(std::max(std::floor(crossing), double(first)), double(last - 2))) + 1;
                while (i > first + 1 && above(i - 1) != at_first) --i;
                while (above(i) == at_first) ++i;
                open.push_back({child[at_first], i, last});
                last = i;
            }
            node = child[!at_first];
        }
        std::fill(region + first, region + last, int32_t(~node));
    }
}

template <int D>
void rasterise_in(const Tree& tree, const Raster& raster, int threads, int32_t* region) {
    int64_t rows = 1;
    for (int d = 0; d < D - 1; ++d) rows *= raster.count[d];
    parallel_for(0, (rows + kRowsATask - 1) / kRowsATask, threads, [&](int64_t task, int) {
        std::vector<Span> open;
        const int64_t last = std::min(rows, (task + 1) * kRowsATask);
        for (int64_t row = task * kRowsATask; row < last; ++row) {
            double fixed[3];
            int64_t rest = row;
            for (int d = D - 2; d >= 0; --d) {
                fixed[d] = raster.at(d, rest % raster.count[d]);
                rest /= raster.count[d];
            }
            fill_row<D>(tree, raster, fixed, open, region + row * raster.count[D - 1]);
        }
    });
}

}  // namespace

void locate(const Tree& tree, int64_t n, const double* x, int threads, int64_t* region) {
    switch (tree.dimension) {
        case 1: return locate_in<1>(tree, n, x, threads, region);
        case 2: return locate_in<2>(tree, n, x, threads, region);
        default: return locate_in<3>(tree, n, x, threads, region);
    }
}

void rasterise(const Tree& tree, const Raster& raster, int threads, int32_t* region) {
    switch (tree.dimension) {
        case 1: return rasterise_in<1>(tree, raster, threads, region);
        case 2: return rasterise_in<2>(tree, raster, threads, region);
        default: return rasterise_in<3>(tree, raster, threads, region);
    }
}

}  // namespace lmn
