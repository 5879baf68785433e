// A chain on points, for one instruction set. A tile is a few vectors of points, a lane each; it goes through the whole chain
// in scratch memory that fits the cache, and so does each block of columns of its Jacobians.
#include "chain.hpp"
#include "cores.hpp"
#include "tile_product.hpp"

namespace lmn::LMN_ISA {
namespace {

template <class T>
inline constexpr int kLanes = Simd<T>::kLanes;
inline constexpr int kGroups = kMaxBlockSteps;  // vectors of points in a tile
template <class T>
inline constexpr int kPoints = kGroups * kLanes<T>;

template <class T>
using Int = typename Simd<T>::Int;

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }

// ---- scratch -----------------------------------------------------------------------------------------------------------

template <class T>
struct Scratch {
    T* x;        // [input][group][lane]
    T* a;        // [unit][group][lane], a layer's values
    T* b;        // the next one's
    T* slopes;   // [unit of all layers][group][lane]
    T* columns;  // [unit][column in block][lane]
    T* next;
    T* result;   // [column][row][lane]

    Scratch(const PointChain<T>& chain, T* memory) {
        const auto take = [&](int64_t vectors) {
            T* p = memory;
            memory += vectors * kLanes<T>;
            return p;
        };
        x = take(int64_t(chain.n_in) * kGroups);
        a = take(int64_t(chain.widest) * kGroups);
        b = take(int64_t(chain.widest) * kGroups);
        slopes = take(int64_t(chain.units_in_all) * kGroups);
        columns = take(int64_t(chain.widest) * kGroups);
        next = take(int64_t(chain.widest) * kGroups);
        result = memory;
    }
};

template <class T>
int64_t scratch_values(const PointChain<T>& chain) {
    const int64_t tile = chain.n_in + 4 * int64_t(chain.widest) + chain.units_in_all;
    const int64_t result = int64_t(larger(chain.columns, kGroups)) * chain.rows, crossings = 2 * int64_t(chain.lines_in_all);
    return (tile * kGroups + (result > crossings ? result : crossings)) * kLanes<T>;
}

// ---- forward -----------------------------------------------------------------------------------------------------------

// x[point][input] to [input][group][lane]; lanes beyond the last point repeat it.
template <class T>
void load_points(const T* x, int n, int n_in, int groups, T* to) {
    for (int p = 0; p < groups * kLanes<T>; ++p) {
        const T* from = x + int64_t(smaller(p, n - 1)) * n_in;
        for (int i = 0; i < n_in; ++i) to[int64_t(i) * groups * kLanes<T> + p] = from[i];
    }
}

template <class T, int N>
void affine(const T* weights, const T* bias, int outputs, int units, const T* from, T* to) {
    product<T, N>(weights, outputs, units, from, [&](int k, const Vec<T>(&sums)[N]) {
        for (int s = 0; s < N; ++s) store(to + (int64_t(k) * N + s) * kLanes<T>, sums[s] + bias[k]);
    });
}

// z to the activation's values, in place; with slopes, also to its derivatives.
template <class T, template <class> class Core, bool Slopes>
void bend_smoothly(const ChainLayer<T>& layer, int n_columns, T* z, T* slopes) {
    const CoreParameters<T> p{layer.p0, layer.p1};
    for (int c = 0; c < layer.units; ++c) {
        const T scale = layer.scale[c], slope = layer.slope[c];
        for (int s = 0; s < n_columns; ++s, z += kLanes<T>) {
            const Vec<T> at = load(z);
            if constexpr (Slopes) {
                Vec<T> core_slope;
                store(z, scale * Core<T>::with_slope(at, p, core_slope) + slope * at);
                store(slopes, scale * core_slope + slope);
                slopes += kLanes<T>;
            } else {
                store(z, scale * Core<T>::at(at, p) + slope * at);
            }
        }
    }
}

template <class T, template <class> class Core>
void core_with_slope(T p0, T p1, const T* z, T* value, T* slope, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<T>) {
        Vec<T> d;
        store(value + i, Core<T>::with_slope(load(z + i), {p0, p1}, d));
        store(slope + i, d);
    }
}

template <class T>
struct SmoothTable {
    void (*values)(const ChainLayer<T>&, int, T*, T*);
    void (*slopes)(const ChainLayer<T>&, int, T*, T*);
    void (*core)(T, T, const T*, T*, T*, int64_t);
};

#define LMN_TABLE(Core) {bend_smoothly<T, Core, false>, bend_smoothly<T, Core, true>, core_with_slope<T, Core>},
template <class T>
constexpr SmoothTable<T> kSmooth[] = {LMN_CORES(LMN_TABLE)};

// Whether lane by lane a value is above a breakpoint, as 0 or -1.
template <class T>
inline IntVec<T> above(Vec<T> z, T breakpoint) {
    return (IntVec<T>)(z > breakpoint);
}

// The slope or offset of the piece that z is on, by whether it is above each breakpoint.
template <class T, class Above>
inline Vec<T> of_piece(const ChainLayer<T>& layer, const T* by_piece, int unit, Above is_above) {
    Vec<T> value = broadcast(by_piece[unit]);
    for (int b = 0; b < layer.n_breakpoints; ++b)
        value = is_above(b) ? broadcast(by_piece[int64_t(b + 1) * layer.units + unit]) : value;
    return value;
}

template <class T>
void bend_by_pieces(const ChainLayer<T>& layer, int n_columns, T* z, T* slopes) {
    for (int c = 0; c < layer.units; ++c)
        for (int s = 0; s < n_columns; ++s, z += kLanes<T>) {
            const Vec<T> at = load(z);
            const auto is_above = [&](int b) { return above<T>(at, layer.breakpoint[b]); };
            const Vec<T> slope = of_piece(layer, layer.piece_slope, c, is_above);
            store(z, slope * at + of_piece(layer, layer.piece_offset, c, is_above));
            if (slopes) {
                store(slopes, slope);
                slopes += kLanes<T>;
            }
        }
}

template <class T>
void bend(const ChainLayer<T>& layer, int n_columns, T* z, T* slopes) {
    if (layer.piece_slope)
        bend_by_pieces(layer, n_columns, z, slopes);
    else
        (slopes ? kSmooth<T>[layer.core].slopes : kSmooth<T>[layer.core].values)(layer, n_columns, z, slopes);
}

// A pattern's words as integers of a lane's size; words are little-endian in memory on every machine this is built for.
template <class T>
inline Int<T>* parts_of(uint64_t* words) {
    return reinterpret_cast<Int<T>*>(words);
}
template <class T>
inline constexpr int kPartBits = 8 * sizeof(T);
template <class T>
inline constexpr int kPartsAWord = 64 / kPartBits<T>;

// Bit unit * n_breakpoints + b of a layer's words: whether z is above.
template <class T>
void write_bits(const ChainLayer<T>& layer, const T* z, int n, int n_words, uint64_t* words) {
    IntVec<T> bits[kGroups]{};
    int bit = 0, part = layer.first_word * kPartsAWord<T>;
    const auto flush = [&] {
        for (int p = 0; p < n; ++p)
            parts_of<T>(words + int64_t(p) * n_words)[part] = bits[p / kLanes<T>][p % kLanes<T>];
        for (IntVec<T>& group : bits) group = IntVec<T>{};
        bit = 0;
        ++part;
    };
    for (int c = 0; c < layer.units; ++c, z += kGroups * kLanes<T>)
        for (int b = 0; b < layer.n_breakpoints; ++b) {
            const Int<T> mask = Int<T>(typename Simd<T>::Unsigned(1) << bit);
            for (int g = 0; g < kGroups; ++g) bits[g] |= above<T>(load(z + g * kLanes<T>), layer.breakpoint[b]) & mask;
            if (++bit == kPartBits<T>) flush();
        }
    if (bit) flush();
    while (part % kPartsAWord<T>) flush();
}

// The derivatives by a pattern's bits.
template <class T>
void slopes_of_bits(const ChainLayer<T>& layer, const uint64_t* words, int n, int n_words, T* slopes) {
    IntVec<T> bits[kGroups]{};
    int bit = kPartBits<T>, part = layer.first_word * kPartsAWord<T>;
    for (int c = 0; c < layer.units; ++c) {
        Vec<T> slope[kGroups];
        for (Vec<T>& group : slope) group = broadcast(layer.piece_slope[c]);
        for (int b = 0; b < layer.n_breakpoints; ++b, ++bit) {
            if (bit == kPartBits<T>) {
                for (int p = 0; p < kPoints<T>; ++p)
                    bits[p / kLanes<T>][p % kLanes<T>] =
                        parts_of<T>(const_cast<uint64_t*>(words) + int64_t(smaller(p, n - 1)) * n_words)[part];
                bit = 0;
                ++part;
            }
            const Int<T> mask = Int<T>(typename Simd<T>::Unsigned(1) << bit);
            const Vec<T> piece = broadcast(layer.piece_slope[int64_t(b + 1) * layer.units + c]);
            for (int g = 0; g < kGroups; ++g) slope[g] = (bits[g] & mask) != 0 ? piece : slope[g];
        }
        for (int g = 0; g < kGroups; ++g, slopes += kLanes<T>) store(slopes, slope[g]);
    }
}

template <class T>
void write_outputs(const T* values, int n, int n_out, T* y) {
    for (int p = 0; p < n; ++p)
        for (int k = 0; k < n_out; ++k) y[int64_t(p) * n_out + k] = values[int64_t(k) * kPoints<T> + p];
}

// A tile through the chain; slopes, y and words are written where they are not null.
template <class T>
void run(const PointChain<T>& chain, const T* x, int n, T* slopes, T* y, uint64_t* words, Scratch<T>& scratch) {
    load_points(x, n, chain.n_in, kGroups, scratch.x);
    affine<T, kGroups>(chain.first_weights, chain.first_bias, chain.layers[0].units, chain.n_in, scratch.x, scratch.a);
    for (int l = 0; l < chain.n_layers; ++l) {
        const ChainLayer<T>& layer = chain.layers[l];
        if (words) write_bits(layer, scratch.a, n, chain.n_words, words);
        const bool last = l + 1 == chain.n_layers;
        if (last && !y && !slopes) return;
        bend(layer, kGroups, scratch.a, slopes);
        if (slopes) slopes += int64_t(layer.units) * kPoints<T>;
        if (last && !y) return;
        affine<T, kGroups>(layer.weights, layer.bias, layer.outputs, layer.units, scratch.a, scratch.b);
        T* const before = scratch.a;
        scratch.a = scratch.b;
        scratch.b = before;
    }
    write_outputs(scratch.a, n, chain.n_out, y);
}

template <class T>
void forward(const PointChain<T>& chain, const T* x, int n, T* y, uint64_t* words, T* memory) {
    Scratch<T> scratch(chain, memory);
    run<T>(chain, x, n, nullptr, y, words, scratch);
}

// ---- Jacobians ---------------------------------------------------------------------------------------------------------

// M columns, each of one group of points, through the sweep; the results go to result[place][row][lane].
template <class T, int M>
void sweep(const PointChain<T>& chain, const int (&column)[M], const int (&group)[M], const int (&place)[M], Scratch<T>& scratch) {
    const auto slopes_at = [&](int layer, int j) {
        int64_t first = 0;
        for (int l = 0; l < layer; ++l) first += chain.layers[l].units;
        return scratch.slopes + (first * kGroups + group[j]) * kLanes<T>;
    };
    T *from = scratch.columns, *to = scratch.next;
    const int units = chain.layers[chain.start_layer].units;
    for (int j = 0; j < M; ++j) {
        const T *start = chain.start + int64_t(column[j]) * units, *slopes = slopes_at(chain.start_layer, j);
        for (int c = 0; c < units; ++c)
            store(from + (int64_t(c) * M + j) * kLanes<T>, start[c] * load(slopes + int64_t(c) * kPoints<T>));
    }
    for (int s = 0; s < chain.n_stages; ++s) {
        const SweepStage<T>& stage = chain.stages[s];
        if (stage.layer < 0) {
            product<T, M>(stage.weights, stage.outputs, stage.units, from, [&](int k, const Vec<T>(&sums)[M]) {
                for (int j = 0; j < M; ++j)
                    store(scratch.result + (int64_t(place[j]) * chain.rows + k) * kLanes<T>, sums[j]);
            });
        } else {
            const T* slopes[M];
            for (int j = 0; j < M; ++j) slopes[j] = slopes_at(stage.layer, j);
            product<T, M>(stage.weights, stage.outputs, stage.units, from, [&](int k, const Vec<T>(&sums)[M]) {
                for (int j = 0; j < M; ++j)
                    store(to + (int64_t(k) * M + j) * kLanes<T>, sums[j] * load(slopes[j] + int64_t(k) * kPoints<T>));
            });
            T* const before = from;
            from = to;
            to = before;
        }
    }
}

// One column's results of one group of points, to where they belong.
template <class T>
void write_column(const PointChain<T>& chain, const T* result, int group, int column, int n, const JacobianOutput<T>& out) {
    constexpr int kBlock = 16;  // rows, whose cache lines are read once
    const int first = group * kLanes<T>, count = smaller(n - first, kLanes<T>);
    for (int begin = 0; begin < chain.rows; begin += kBlock) {
        const int end = smaller(begin + kBlock, chain.rows);
        for (int lane = 0; lane < count; ++lane) {
            T* to = out.jacobian + (first + lane) * out.point + column * out.column;
            for (int r = begin; r < end; ++r) to[r * out.row] = result[int64_t(r) * kLanes<T> + lane];
        }
    }
}

// The products of all columns of one group of points.
template <class T>
void write_gram(const PointChain<T>& chain, const T* result, int group, int n, T* gram) {
    constexpr int kTogether = 4;
    const int first = group * kLanes<T>, count = smaller(n - first, kLanes<T>), k = chain.columns;
    const int64_t rows = chain.rows;
    for (int i = 0; i < k; ++i)
        for (int begin = 0; begin <= i; begin += kTogether) {
            const T* other[kTogether];
            for (int j = 0; j < kTogether; ++j) other[j] = result + smaller(begin + j, i) * rows * kLanes<T>;
            Vec<T> sums[kTogether]{};
            for (int64_t r = 0; r < rows; ++r) {
                const Vec<T> v = load(result + (i * rows + r) * kLanes<T>);
                for (int j = 0; j < kTogether; ++j) sums[j] += v * load(other[j] + r * kLanes<T>);
            }
            for (int j = begin; j <= i && j < begin + kTogether; ++j)
                for (int lane = 0; lane < count; ++lane) {
                    T* to = gram + int64_t(first + lane) * k * k;
                    to[i * k + j] = to[j * k + i] = sums[j - begin][lane];
                }
        }
}

template <class T, int M>
void sweep_block(const PointChain<T>& chain, int first_column, int first_group, int n, const JacobianOutput<T>& out,
                 Scratch<T>& scratch) {
    int column[M], group[M], place[M];
    for (int j = 0; j < M; ++j) {  // of one column the groups of points, of several those of one group
        column[j] = chain.columns == 1 ? 0 : first_column + j;
        group[j] = chain.columns == 1 ? first_group + j : first_group;
        place[j] = out.gram && chain.columns > 1 ? column[j] : j;
    }
    sweep<T, M>(chain, column, group, place, scratch);
    if (out.jacobian)
        for (int j = 0; j < M; ++j)
            write_column(chain, scratch.result + int64_t(place[j]) * chain.rows * kLanes<T>, group[j], column[j], n, out);
    if (out.gram && chain.columns == 1)
        for (int j = 0; j < M; ++j)
            write_gram(chain, scratch.result + int64_t(j) * chain.rows * kLanes<T>, group[j], n, out.gram);
}

template <class T, int M = kGroups>
void sweep_some(int count, const PointChain<T>& chain, int column, int group, int n, const JacobianOutput<T>& out,
                Scratch<T>& scratch) {
    if (count == M) {
        sweep_block<T, M>(chain, column, group, n, out, scratch);
    } else if constexpr (M > 1) {
        sweep_some<T, M - 1>(count, chain, column, group, n, out, scratch);
    }
}

// All columns of a tile whose slopes are known.
template <class T>
void sweep_tile(const PointChain<T>& chain, int n, const JacobianOutput<T>& out, Scratch<T>& scratch) {
    const int groups = (n + kLanes<T> - 1) / kLanes<T>;
    if (chain.columns == 1) return sweep_some(groups, chain, 0, 0, n, out, scratch);
    const int blocks = (chain.columns + kGroups - 1) / kGroups;
    for (int group = 0; group < groups; ++group) {
        for (int block = 0, column = 0; block < blocks; ++block) {
            const int count = chain.columns / blocks + (block < chain.columns % blocks);
            sweep_some(count, chain, column, group, n, out, scratch);
            column += count;
        }
        if (out.gram) write_gram(chain, scratch.result, group, n, out.gram);
    }
}

template <class T>
void jacobians(const PointChain<T>& chain, const T* x, int n, T* y, JacobianOutput<T> out, T* memory) {
    Scratch<T> scratch(chain, memory);
    run<T>(chain, x, n, scratch.slopes, y, nullptr, scratch);
    sweep_tile(chain, n, out, scratch);
}

template <class T>
void jacobians_of_patterns(const PointChain<T>& chain, const uint64_t* words, int n, JacobianOutput<T> out, T* memory) {
    Scratch<T> scratch(chain, memory);
    T* slopes = scratch.slopes;
    for (int l = 0; l < chain.n_layers; ++l) {
        slopes_of_bits(chain.layers[l], words, n, chain.n_words, slopes);
        slopes += int64_t(chain.layers[l].units) * kPoints<T>;
    }
    sweep_tile(chain, n, out, scratch);
}

// ---- local complexity --------------------------------------------------------------------------------------------------

// M vertices of one vector of points through the chain; all[...] and any[...] are which lanes were above in all and in any.
template <class T, int M>
void run_vertices(const PointChain<T>& chain, const T* base, const T* const (&offset)[M], const T (&sign)[M], int last_layer,
                  IntVec<T>* all, IntVec<T>* any, Scratch<T>& scratch) {
    T *z = scratch.a, *next = scratch.b;
    for (int c = 0; c < chain.layers[0].units; ++c)
        for (int j = 0; j < M; ++j)
            store(z + (int64_t(c) * M + j) * kLanes<T>, load(base + int64_t(c) * kLanes<T>) + sign[j] * offset[j][c]);
    for (int l = 0; l <= last_layer; ++l) {
        const ChainLayer<T>& layer = chain.layers[l];
        for (int c = 0; c < layer.units; ++c)
            for (int b = 0; b < layer.n_breakpoints; ++b, ++all, ++any)
                for (int j = 0; j < M; ++j) {
                    const IntVec<T> is = above<T>(load(z + (int64_t(c) * M + j) * kLanes<T>), layer.breakpoint[b]);
                    *all &= is;
                    *any |= is;
                }
        if (l == last_layer) return;
        bend<T>(layer, M, z, nullptr);
        affine<T, M>(layer.weights, layer.bias, layer.outputs, layer.units, z, next);
        T* const before = z;
        z = next;
        next = before;
    }
}

template <class T, int M = kGroups>
void run_some_vertices(int count, const PointChain<T>& chain, const T* base, const Vertices<T>& vertices, int first, int last_layer,
                       IntVec<T>* all, IntVec<T>* any, Scratch<T>& scratch) {
    if (count == M) {
        const T* offset[M];
        T sign[M];
        for (int j = 0; j < M; ++j) {
            offset[j] = vertices.offset + int64_t((first + j) / 2) * chain.layers[0].units;
            sign[j] = (first + j) % 2 ? T(-1) : T(1);
        }
        run_vertices<T, M>(chain, base, offset, sign, last_layer, all, any, scratch);
    } else if constexpr (M > 1) {
        run_some_vertices<T, M - 1>(count, chain, base, vertices, first, last_layer, all, any, scratch);
    }
}

template <class T>
void crossings(const PointChain<T>& chain, const T* x, int n, Vertices<T> vertices, int32_t* to, T* memory) {
    Scratch<T> scratch(chain, memory);
    int last_layer = 0;
    for (int l = 0; l < chain.n_layers; ++l)
        if (chain.layers[l].n_breakpoints) last_layer = l;
    const int64_t lines = chain.lines_in_all;
    load_points(x, n, chain.n_in, 1, scratch.x);
    T* base = scratch.columns;
    affine<T, 1>(chain.first_weights, chain.first_bias, chain.layers[0].units, chain.n_in, scratch.x, base);
    auto* all = reinterpret_cast<IntVec<T>*>(scratch.result);
    IntVec<T>* any = all + lines;
    for (int64_t i = 0; i < lines; ++i) {
        all[i] = ~IntVec<T>{};
        any[i] = IntVec<T>{};
    }
    for (int v = 0; v < 2 * vertices.count; v += kGroups)
        run_some_vertices(smaller(kGroups, 2 * vertices.count - v), chain, base, vertices, v, last_layer, all, any, scratch);
    for (int l = 0; l < chain.n_layers; ++l) {
        const ChainLayer<T>& layer = chain.layers[l];
        IntVec<T> count{};
        for (int c = 0; c < layer.units; ++c) {
            IntVec<T> crossed{};
            for (int b = 0; b < layer.n_breakpoints; ++b, ++all, ++any) crossed |= *any & ~*all;
            count -= crossed;  // -1 where it is
        }
        for (int p = 0; p < n; ++p) to[int64_t(p) * chain.n_layers + l] = int32_t(count[p]);
    }
}

// ---- the table ---------------------------------------------------------------------------------------------------------

template <class T>
void core(int core, T p0, T p1, const T* z, T* value, T* slope, int64_t n) {
    kSmooth<T>[core].core(p0, p1, z, value, slope, n);
}

template <class T>
constexpr ChainKernel<T> table() {
    return {kMaxBlockOutputs,   kLanes<T>,    kPoints<T>, scratch_values<T>, forward<T>, jacobians<T>, jacobians_of_patterns<T>,
            crossings<T>, core<T>};
}

}  // namespace

extern const ChainKernel<float> chain_f32;
extern const ChainKernel<double> chain_f64;
const ChainKernel<float> chain_f32 = table<float>();
const ChainKernel<double> chain_f64 = table<double>();

}  // namespace lmn::LMN_ISA
