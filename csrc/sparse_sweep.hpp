// A reverse sweep that leaves out the units whose slope is zero: of a ReLU network about half, and with them half the products.
//
// Which units these are differs from point to point, so a point's rows are taken by themselves: the columns of a product stand
// side by side in the lanes, and the sum goes over the point's active units. Weights are in panels of as many columns as the
// registers hold; a panel stays in the cache for some points.
#pragma once

#include "slope_tile.hpp"

namespace lmn::LMN_ISA {
namespace {

template <class T>
inline constexpr int kPointsTogether = kTile<T> % 8 == 0 ? 8 : kTile<T> % 4 == 0 ? 4 : 2;
inline constexpr int kRowsTogether = 48;
inline constexpr int kLeastRows = 4;        // for fewer, the registers hold too few sums for the multiplier to be busy

// The active units of a layer at one point, ascending.
struct Active {
    int32_t* units;
    int count;
};

template <class T>
struct SparseScratch {
    T* factors[2];  // [point][block of rows][active unit][row in block]: the rows of the Jacobian so far
    int32_t* units; // [layer][point][unit]
    int64_t factors_a_point;

    SparseScratch(const SlopeChain<T>& chain, char* cursor) {
        factors_a_point = widest(chain) * rows_together(chain);
        for (T*& each : factors) each = take<T>(cursor, factors_a_point * kPointsTogether<T>);
        units = take<int32_t>(cursor, 0);
    }

    static int64_t rows_together(const SlopeChain<T>& chain) { return chain.n_rows < kRowsTogether ? chain.n_rows : kRowsTogether; }

    static int64_t bytes(const SlopeChain<T>& chain) {
        const int64_t factors = 2 * widest(chain) * rows_together(chain) * int64_t(sizeof(T));
        return (factors + units_of_all_layers(chain) * 4) * kPointsTogether<T> + 3 * 64;
    }
};

// A block's sums [Rows][Steps lanes].
template <class T, int Rows, int Steps>
struct Sums {
    T values[Rows][Steps * kLanes<T>] __attribute__((aligned(64)));
};

// done(sums) of factors [active][Rows] times a panel's rows of the active units.
template <class T, int Rows, int Steps, class Done>
inline void panel_product(const T* panel, const int32_t* active, int n, const T* __restrict factors, Done& done) {
    Vec<T> sum[Rows][Steps];
    for (int r = 0; r < Rows; ++r)
        for (int s = 0; s < Steps; ++s) sum[r][s] = Vec<T>{};
    for (int i = 0; i < n; ++i) {
        const T* row = panel + int64_t(active[i]) * (Steps * kLanes<T>);
        Vec<T> w[Steps];
        for (int s = 0; s < Steps; ++s) w[s] = load(row + s * kLanes<T>);
        for (int r = 0; r < Rows; ++r) {
            const Vec<T> f = broadcast(factors[r]);
            for (int s = 0; s < Steps; ++s) sum[r][s] += f * w[s];
        }
        factors += Rows;
    }
    Sums<T, Rows, Steps> sums;
    for (int r = 0; r < Rows; ++r)
        for (int s = 0; s < Steps; ++s) store(sums.values[r] + s * kLanes<T>, sum[r][s]);
    done(sums);
}

template <class T, int Rows = kMaxBlockOutputs, int Steps = kSteps, class Done>
inline void any_panel_product(int rows, int steps, const T* panel, const int32_t* active, int n, const T* factors, Done& done) {
    if (steps < Steps) {
        if constexpr (Steps > 1) any_panel_product<T, Rows, Steps - 1>(rows, steps, panel, active, n, factors, done);
    } else if (rows < Rows) {
        if constexpr (Rows > 1) any_panel_product<T, Rows - 1, Steps>(rows, steps, panel, active, n, factors, done);
    } else {
        panel_product<T, Rows, Steps>(panel, active, n, factors, done);
    }
}

// Calls done(first row, rows) for each block of rows, heights differing by at most one.
template <class Done>
inline void row_blocks(int rows, Done done) {
    const int blocks = (rows + kMaxBlockOutputs - 1) / kMaxBlockOutputs;
    for (int b = 0, first = 0; b < blocks; ++b) {
        const int count = rows / blocks + (b < rows % blocks);
        done(first, count);
        first += count;
    }
}

// The product of some points' rows with a matrix in panels; done(point, first column, width, first row, sums) takes the sums of a
// block of rows, panel after panel.
template <class T, class Done>
void sparse_product(const Panels<T>& matrix, int points, int rows, const Active* active, const T* factors, int64_t factors_a_point,
                    Done done) {
    const int vectors = (matrix.columns + kLanes<T> - 1) / kLanes<T>, panels = (vectors + kSteps - 1) / kSteps;
    const T* panel = matrix.values;
    for (int j = 0, column = 0; j < panels; ++j) {
        const int steps = vectors / panels + (j < vectors % panels), stride = steps * kLanes<T>;
        const int width = stride < matrix.columns - column ? stride : matrix.columns - column;
        for (int p = 0; p < points; ++p) {
            const Active& units = active[p];
            int begin = 0;  // the panel is zero above its first row
            while (begin < units.count && units.units[begin] < matrix.first_row[j]) ++begin;
            row_blocks(rows, [&](int first, int count) {
                const T* from = factors + p * factors_a_point + int64_t(units.count) * first + int64_t(begin) * count;
                const auto take = [&](const auto& sums) { done(p, column, width, first, sums); };
                any_panel_product<T>(count, steps, panel, units.units + begin, units.count - begin, from, take);
            });
        }
        panel += int64_t(matrix.rows) * stride;
        column += stride;
    }
}

// Which units are active at some of a tile's points.
template <class T>
void find_active(const SlopeChain<T>& chain, const T* slopes, int first, int points, int32_t* room, Active* active) {
    for (int l = 0; l < chain.n_layers; ++l) {
        const int units = chain.layers[l].units;
        int32_t* list[kPointsTogether<T>];
        int count[kPointsTogether<T>] = {};
        for (int p = 0; p < kPointsTogether<T>; ++p) list[p] = room + int64_t(p) * units;
        // Of points beyond the last, whatever stands there; a tile is a multiple of the points that are taken together.
        for (int c = 0; c < units; ++c)
            for (int p = 0; p < kPointsTogether<T>; ++p) {
                list[p][count[p]] = c;
                count[p] += slopes[int64_t(c) * kTile<T> + first + p] != 0;
            }
        for (int p = 0; p < points; ++p) active[l * kPointsTogether<T> + p] = {list[p], count[p]};
        room += int64_t(kPointsTogether<T>) * units;
        slopes += int64_t(units) * kTile<T>;
    }
}

// The Jacobians of points first.. of a tile whose slopes are known, some rows of them.
template <class T>
void sparse_rows(const SlopeChain<T>& chain, const T* slopes_end, int first_point, int points, int first_row, int rows, bool to_last,
                 const Active* active, SparseScratch<T>& scratch, const JacobianOutput<T>& to) {
    const int64_t a_point = scratch.factors_a_point;
    T* now = scratch.factors[0];
    T* next = scratch.factors[1];
    const int last = chain.n_layers - 1;
    const T* slopes = slopes_end - int64_t(chain.layers[last].units) * kTile<T>;
    for (int p = 0; p < points; ++p) {
        const Active& units = active[last * kPointsTogether<T> + p];
        row_blocks(rows, [&](int first, int count) {
            T* out = now + p * a_point + int64_t(units.count) * first;
            for (int i = 0; i < units.count; ++i) {
                const int64_t c = units.units[i];
                const T slope = slopes[c * kTile<T> + first_point + p];
                const T* from = chain.columns + c * chain.n_rows + first_row + first;
                for (int r = 0; r < count; ++r) *out++ = from[r] * slope;
            }
        });
    }
    for (int l = last - 1; l >= 0; --l) {
        slopes -= int64_t(chain.layers[l].units) * kTile<T>;
        const Active* kept = active + l * kPointsTogether<T>;
        int begin[kPointsTogether<T>] = {}, end[kPointsTogether<T>] = {};  // of the active units, those in the panel
        const auto keep = [&]<int Rows, int Steps>(int p, int column, int width, int first, const Sums<T, Rows, Steps>& sums) {
            const Active& units = kept[p];
            if (first == 0) {
                begin[p] = end[p];
                while (end[p] < units.count && units.units[end[p]] < column + width) ++end[p];
            }
            T* out = next + p * a_point + int64_t(units.count) * first + int64_t(begin[p]) * Rows;
            for (int i = begin[p]; i < end[p]; ++i, out += Rows) {
                const int64_t c = units.units[i];
                const T slope = slopes[c * kTile<T> + first_point + p];
                for (int r = 0; r < Rows; ++r) out[r] = sums.values[r][c - column] * slope;
            }
        };
        sparse_product(chain.layers[l].back, points, rows, active + (l + 1) * kPointsTogether<T>, now, a_point, keep);
        T* other = now;
        now = next;
        next = other;
    }
    const auto row_of = [&](int p, int row) {
        return to.out + int64_t(first_point + p) * to.point_stride + int64_t(first_row + row) * to.row_stride;
    };
    const Panels<T>& matrix = to_last ? chain.last_back : chain.first_back;
    if (matrix.values) {
        const auto emit_rows = [&]<int Rows, int Steps>(int p, int column, int width, int first, const Sums<T, Rows, Steps>& sums) {
            for (int r = 0; r < Rows; ++r)
                __builtin_memcpy(row_of(p, first + r) + column, sums.values[r], size_t(width) * sizeof(T));
        };
        sparse_product(matrix, points, rows, active, now, a_point, emit_rows);
        return;
    }
    for (int p = 0; p < points; ++p) {
        const Active& units = active[p];
        row_blocks(rows, [&](int first, int count) {
            const T* from = now + p * a_point + int64_t(units.count) * first;
            for (int r = 0; r < count; ++r) {
                T* out = row_of(p, first + r);
                for (int c = 0; c < chain.layers[0].units; ++c) out[c] = 0;
                for (int i = 0; i < units.count; ++i) out[units.units[i]] = from[i * count + r];
            }
        });
    }
}

// The Jacobians of a tile's points, whose slopes are known.
template <class T>
void sparse_sweep(const SlopeChain<T>& chain, int count, bool to_last, const JacobianOutput<T>& to, const T* slopes, char* memory) {
    const T* slopes_end = slopes + units_of_all_layers(chain) * kTile<T>;
    SparseScratch<T> scratch(chain, memory);
    for (int first = 0; first < count; first += kPointsTogether<T>) {
        const int points = count - first < kPointsTogether<T> ? count - first : kPointsTogether<T>;
        Active active[kMostLayers * kPointsTogether<T>];
        find_active(chain, slopes, first, points, scratch.units, active);
        for (int row = 0; row < chain.n_rows; row += kRowsTogether) {
            const int rows = chain.n_rows - row < kRowsTogether ? chain.n_rows - row : kRowsTogether;
            sparse_rows(chain, slopes_end, first, points, row, rows, to_last, active, scratch, to);
        }
    }
}

}  // namespace
}  // namespace lmn::LMN_ISA
