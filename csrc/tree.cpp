// Points and grids of points sent down the tree of cuts: rows of a grid go down together, and part where a cut crosses them.
#include "tree.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.hpp"

namespace lmn {
namespace {

constexpr int64_t kPointsATask = 1 << 14;
constexpr int kRowsATask = 16;

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

// What a row's points get: the values of regions, so many bytes each.
class Values {
public:
    Values(size_t bytes, const void* value, void* out)
        : bytes_(bytes), value_(static_cast<const char*>(value)), out_(static_cast<char*>(out)) {}

    void fill(int64_t first, int64_t last, int64_t region) const {
        char* to = out_ + first * bytes_;
        const char* from = value_ + region * bytes_;
        switch (bytes_) {
            case 4: return fill_with<uint32_t>(to, from, last - first);
            case 8: return fill_with<uint64_t>(to, from, last - first);
        }
        for (int64_t i = first; i < last; ++i, to += bytes_) std::memcpy(to, from, bytes_);
    }

private:
    template <class Word>
    static void fill_with(char* to, const char* from, int64_t n) {
        Word word;
        std::memcpy(&word, from, sizeof word);
        std::fill_n(reinterpret_cast<Word*>(to), n, word);
    }

    size_t bytes_;
    const char* value_;
    char* out_;
};

// Some rows' parts on their way down: of row r the points first[r] to last[r].
struct Spans {
    int64_t node;
    int from, to;  // rows outside have none
    int32_t first[kRowsATask], last[kRowsATask];
};

// Rows whose other coordinates are fixed[axis][row]. A cut's line and the rows' points are compared by the same sums as in
// region_of; those are monotone along a row, rounding and all, so that it has one first point on the other side.
template <int D>
void fill_rows(const Tree& tree, const Raster& raster, const double (*fixed)[kRowsATask], int64_t first_row, int rows,
               std::vector<Spans>& open, const Values& values) {
    constexpr int kAlong = D - 1;
    const int64_t n = raster.count[kAlong];
    const double start = raster.first[kAlong] / raster.step[kAlong];
    open.push_back({tree.n_cuts > 0 ? 0 : ~int64_t(0), 0, rows, {}, {}});
    std::fill_n(open.back().last, rows, int32_t(n));
    while (!open.empty()) {
        Spans now = open.back();
        open.pop_back();
        while (now.node >= 0) {
            const double* cut = tree.cut + now.node * (D + 1);
            const double a = cut[kAlong], per_row = -1 / (a * raster.step[kAlong]);
            const bool rises = a > 0;  // then the points above are the later ones
            Spans later;
            later.node = tree.child[2 * now.node + !rises];
            later.from = now.to;
            later.to = now.from;
            int from = now.to, to = now.from;
            for (int r = now.from; r < now.to; ++r) {
                const int32_t first = now.first[r], last = now.last[r];
                double c = cut[D];
                for (int d = 0; d < kAlong; ++d) c += cut[d] * fixed[d][r];
                const auto is_later = [&](int32_t i) { return (c + a * raster.at(kAlong, i) > 0) == rises; };
                int32_t i = first;
                if (a == 0) {
                    i = first < last && is_later(first) ? first : last;
                } else if (first < last) {
                    // By the line's own zero, then by the signs: rounding may shift it by one.
                    const double crossing = std::ceil(per_row * c - start);
                    i = crossing >= last ? last : crossing > first ? int32_t(crossing) : first;
                    while (i > first && is_later(i - 1)) --i;
                    while (i < last && !is_later(i)) ++i;
                }
                later.first[r] = i;
                later.last[r] = last;
                now.last[r] = i;
                if (i < last) {
                    later.from = std::min(later.from, r);
                    later.to = r + 1;
                }
                if (first < i) {
                    from = std::min(from, r);
                    to = r + 1;
                }
            }
            now.node = tree.child[2 * now.node + rises];
            now.from = from;
            now.to = to;
            if (later.from < later.to) {
                if (from < to) open.push_back(later);
                else now = later;
            }
        }
        for (int r = now.from; r < now.to; ++r)
            values.fill((first_row + r) * n + now.first[r], (first_row + r) * n + now.last[r], ~now.node);
    }
}

template <int D>
void rasterise_in(const Tree& tree, const Raster& raster, int threads, const Values& values) {
    int64_t all = 1;
    for (int d = 0; d < D - 1; ++d) all *= raster.count[d];
    parallel_for(0, (all + kRowsATask - 1) / kRowsATask, threads, [&](int64_t task, int) {
        const int64_t first = task * kRowsATask;
        const int rows = int(std::min<int64_t>(all - first, kRowsATask));
        double fixed[3][kRowsATask];
        for (int r = 0; r < rows; ++r) {
            int64_t rest = first + r;
            for (int d = D - 2; d >= 0; --d) {
                fixed[d][r] = raster.at(d, rest % raster.count[d]);
                rest /= raster.count[d];
            }
        }
        std::vector<Spans> open;
        fill_rows<D>(tree, raster, fixed, first, rows, open, values);
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

void rasterise(const Tree& tree, const Raster& raster, size_t bytes, const void* value, int threads, void* out) {
    const Values values(bytes, value, out);
    switch (tree.dimension) {
        case 1: return rasterise_in<1>(tree, raster, threads, values);
        case 2: return rasterise_in<2>(tree, raster, threads, values);
        default: return rasterise_in<3>(tree, raster, threads, values);
    }
}

}  // namespace lmn
