// The connectivity kernel for one instruction set. A tile is one sample i against a vector of samples j; a few steps along
// the segment are taken together, so that a block of outputs x steps of sums stays in registers for a whole product.
#include "connectivity.hpp"
#include "cores.hpp"
#include "scratch.hpp"
#include "tile_product.hpp"

namespace lmn::LMN_ISA {
namespace {

template <class T>
const LayerArrays<T>& arrays_of(const Layer& layer) {
    if constexpr (sizeof(T) == 4)
        return layer.f32;
    else
        return layer.f64;
}

// One sample i against kLanes samples j, for one layer: end points of the segments, and of the cores along them.
template <class T>
struct Ends {
    double* exact;   // [unit] z of sample i
    T* z;            // [unit] the same, rounded
    T* core;         // [unit] core(z) of sample i
    T* dz;           // [unit][lane] z of sample j minus z of sample i
    T* dcore;        // [unit][lane]
    const T* scale;  // [unit] of the core in the activation
    const T* slope;  // [unit] of the activation's affine part
};

template <class T>
struct Scratch {
    Ends<T>* ends;  // [layer]
    T* deviation;   // [unit][step][lane] of a layer's cores: what a product takes
    T* shift;       // [unit][step][lane] of a layer's pre-activations: what a product gives
    T* sums;        // [output][3][lane] of u, of (t - 1/2) u and of u^2
    double* y;      // [output] of sample i
    T* dy;          // [output][lane]

    Scratch(const Chain& chain, char*& cursor) {
        ends = take<Ends<T>>(cursor, chain.n_layers);
        int64_t widest = 0;
        for (int l = 0; l < chain.n_layers; ++l) {
            const int64_t units = chain.layers[l].units;
            ends[l] = {take<double>(cursor, units), take<T>(cursor, units), take<T>(cursor, units), take<T>(cursor, units * kLanes<T>),
                       take<T>(cursor, units * kLanes<T>), arrays_of<T>(chain.layers[l]).scale,
                       arrays_of<T>(chain.layers[l]).slope};
            widest = widest > units ? widest : units;
        }
        deviation = take<T>(cursor, widest * kMaxBlockSteps * kLanes<T>);
        shift = take<T>(cursor, widest * kMaxBlockSteps * kLanes<T>);
        sums = take<T>(cursor, int64_t(chain.n_out) * 3 * kLanes<T>);
        y = take<double>(cursor, chain.n_out);
        dy = take<T>(cursor, int64_t(chain.n_out) * kLanes<T>);
    }
};

template <class T>
int64_t scratch_bytes_of(const Chain& chain) {
    int64_t bytes = 64 * 5 + int64_t(sizeof(double)) * chain.n_out + int64_t(sizeof(Ends<T>)) * chain.n_layers + 64, widest = 0;
    for (int l = 0; l < chain.n_layers; ++l) {
        const int64_t units = chain.layers[l].units;
        bytes += units * (int64_t(sizeof(double)) + (2 + 2 * kLanes<T>)*int64_t(sizeof(T))) + 5 * 64;
        widest = widest > units ? widest : units;
    }
    return bytes + (widest * 2 * kMaxBlockSteps + int64_t(chain.n_out) * 4) * kLanes<T> * int64_t(sizeof(T));
}

int64_t scratch_bytes(const Chain& chain) {
    return scratch_bytes_of<float>(chain) + scratch_bytes_of<double>(chain) + 64;
}

// ---- one layer's cores -------------------------------------------------------------------------------------------

template <class T>
struct Steps {
    T t[kMaxBlockSteps];        // in (0, 1)
    T centred[kMaxBlockSteps];  // t - 1/2
};

// The deviation of the activation from its chord, where its argument deviates by shift (nowhere in the first layer):
//     deviation[c][s] = scale[c] (core(z + t_s dz + shift[c][s]) - core's chord at t_s) + slope[c] shift[c][s]
template <class T, template <class> class Core, int N, bool Shifted>
void activation_deviation(CoreParameters<T> p, int units, const Ends<T>& ends, const T* __restrict shift, const Steps<T>& steps,
                          T* __restrict deviation) {
    for (int c = 0; c < units; ++c) {
        const Vec<T> z = broadcast(ends.z[c]), core = broadcast(ends.core[c]);
        const Vec<T> dz = load(ends.dz + c * kLanes<T>), dcore = load(ends.dcore + c * kLanes<T>);
        for (int s = 0; s < N; ++s) {
            Vec<T> at = z + steps.t[s] * dz, affine{};
            if constexpr (Shifted) {
                const Vec<T> u = load(shift + (c * N + s) * kLanes<T>);
                at += u;
                affine = ends.slope[c] * u;
            }
            const Vec<T> off_chord = Core<T>::at(at, p) - (core + steps.t[s] * dcore);
            store(deviation + (c * N + s) * kLanes<T>, ends.scale[c] * off_chord + affine);
        }
    }
}

// The cores at the segments' ends: of sample i once a row, of the samples j once a tile.
template <class T, template <class> class Core>
void core_at_ends(CoreParameters<T> p, int units, const Ends<T>& ends, bool of_i) {
    for (int c = 0; c < units; ++c) {
        const Vec<T> z = broadcast(ends.z[c]);
        if (of_i) {
            ends.core[c] = Core<T>::at(z, p)[0];
        } else {
            store(ends.dcore + c * kLanes<T>,
                  Core<T>::at(z + load(ends.dz + c * kLanes<T>), p) - broadcast(ends.core[c]));
        }
    }
}

template <class T, template <class> class Core>
void core_values(CoreParameters<T> p, const T* z, T* out, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(out + i, Core<T>::at(load(z + i), p));
}

template <class T>
struct CoreTable {
    void (*deviation[2][kMaxBlockSteps])(CoreParameters<T>, int, const Ends<T>&, const T*, const Steps<T>&, T*);
    void (*at_ends)(CoreParameters<T>, int, const Ends<T>&, bool);
    void (*values)(CoreParameters<T>, const T*, T*, int64_t);
};

template <class T, template <class> class Core, int N>
constexpr void fill_deviation(CoreTable<T>& table) {
    table.deviation[0][N - 1] = activation_deviation<T, Core, N, false>;
    table.deviation[1][N - 1] = activation_deviation<T, Core, N, true>;
    if constexpr (N > 1) fill_deviation<T, Core, N - 1>(table);
}

template <class T, template <class> class Core>
constexpr CoreTable<T> core_table() {
    CoreTable<T> table{};
    fill_deviation<T, Core, kMaxBlockSteps>(table);
    table.at_ends = core_at_ends<T, Core>;
    table.values = core_values<T, Core>;
    return table;
}

#define LMN_TABLE(Core) core_table<T, Core>(),
template <class T>
constexpr CoreTable<T> kCores[] = {LMN_CORES(LMN_TABLE)};

static_assert(sizeof(kCores<float>) / sizeof(kCores<float>[0]) == kCoreCount);

// ---- products ----------------------------------------------------------------------------------------------------

template <class T, int N>
inline void accumulate(const Vec<T> (&u)[N], const Steps<T>& steps, T* sums) {
    Vec<T> s1 = load(sums), s2 = load(sums + kLanes<T>), s3 = load(sums + 2 * kLanes<T>);
    for (int s = 0; s < N; ++s) {
        s1 += u[s];
        s2 += steps.centred[s] * u[s];
        s3 += u[s] * u[s];
    }
    store(sums, s1);
    store(sums + kLanes<T>, s2);
    store(sums + 2 * kLanes<T>, s3);
}

template <class T, int N>
void reduce_deviation(const T* deviation, int units, const Steps<T>& steps, T* sums) {
    for (int k = 0; k < units; ++k) {
        Vec<T> u[N];
        for (int s = 0; s < N; ++s) u[s] = load(deviation + (k * N + s) * kLanes<T>);
        accumulate<T, N>(u, steps, sums + k * 3 * kLanes<T>);
    }
}

// ---- a tile ------------------------------------------------------------------------------------------------------

template <class T>
CoreParameters<T> parameters(const Layer& layer) {
    return {T(layer.p0), T(layer.p1)};
}

// N steps along the segment through the whole chain, into the sums.
template <class T, int N>
void advance(const Chain& chain, const Steps<T>& steps, Scratch<T>& scratch) {
    for (int l = 0; l < chain.n_layers; ++l) {
        const Layer& layer = chain.layers[l];
        kCores<T>[layer.core].deviation[l > 0][N - 1](parameters<T>(layer), layer.units, scratch.ends[l], scratch.shift,
                                                      steps, scratch.deviation);
        const T* weights = arrays_of<T>(layer).weights;
        if (!weights) {
            reduce_deviation<T, N>(scratch.deviation, layer.units, steps, scratch.sums);
        } else if (l + 1 < chain.n_layers) {
            product<T, N>(weights, layer.outputs, layer.units, scratch.deviation, [&](int k, const Vec<T>(&u)[N]) {
                for (int s = 0; s < N; ++s) store(scratch.shift + (int64_t(k) * N + s) * kLanes<T>, u[s]);
            });
        } else {
            product<T, N>(weights, layer.outputs, layer.units, scratch.deviation, [&](int k, const Vec<T>(&u)[N]) {
                accumulate<T, N>(u, steps, scratch.sums + int64_t(k) * 3 * kLanes<T>);
            });
        }
    }
}

template <class T>
const double* noise_of(const Chain& chain) {
    return sizeof(T) == 4 ? chain.noise_f32 : chain.noise_f64;
}

template <class T>
void prepare_row(const Chain& chain, int64_t i, Scratch<T>& scratch) {
    for (int l = 0; l < chain.n_layers; ++l) {
        const Layer& layer = chain.layers[l];
        for (int c = 0; c < layer.units; ++c) {
            scratch.ends[l].exact[c] = layer.z[c * chain.n_points + i];
            scratch.ends[l].z[c] = T(scratch.ends[l].exact[c]);
        }
        kCores<T>[layer.core].at_ends(parameters<T>(layer), layer.units, scratch.ends[l], true);
    }
    for (int k = 0; k < chain.n_out; ++k) scratch.y[k] = chain.y[k * chain.n_points + i];
}

// difference[c][lane] = values of sample j[lane] minus of_i[c], in float64 before it is rounded
template <class T>
void gather_differences(const double* values, int count, int64_t n_points, const double* of_i, const int64_t* j, T* difference) {
    bool contiguous = true;
    for (int lane = 1; lane < kLanes<T>; ++lane) contiguous &= j[lane] == j[0] + lane;
    for (int c = 0; c < count; ++c, values += n_points) {
        if (contiguous) {
            for (int lane = 0; lane < kLanes<T>; ++lane) difference[c * kLanes<T> + lane] = T(values[j[0] + lane] - of_i[c]);
        } else {
            for (int lane = 0; lane < kLanes<T>; ++lane) difference[c * kLanes<T> + lane] = T(values[j[lane]] - of_i[c]);
        }
    }
}

// unexplained[lane] = mean over outputs of 1 - r^2 of pair (i, j[lane]), and the estimated rounding error of it.
template <class T>
void tile(const Chain& chain, const int64_t* j, Scratch<T>& scratch, double* unexplained, double* error) {
    for (int l = 0; l < chain.n_layers; ++l) {
        const Layer& layer = chain.layers[l];
        gather_differences<T>(layer.z, layer.units, chain.n_points, scratch.ends[l].exact, j, scratch.ends[l].dz);
        kCores<T>[layer.core].at_ends(parameters<T>(layer), layer.units, scratch.ends[l], false);
    }
    gather_differences<T>(chain.y, chain.n_out, chain.n_points, scratch.y, j, scratch.dy);
    for (int64_t k = 0; k < int64_t(chain.n_out) * 3; ++k) store(scratch.sums + k * kLanes<T>, Vec<T>{});

    const int interior = chain.m - 2;
    const int chunks = (interior + kMaxBlockSteps - 1) / kMaxBlockSteps;
    for (int chunk = 0, first = 1; chunk < chunks; ++chunk) {
        const int count = interior / chunks + (chunk < interior % chunks);
        Steps<T> steps;
        for (int s = 0; s < count; ++s) {
            steps.t[s] = T(double(first + s) / (chain.m - 1));
            steps.centred[s] = T(double(first + s) / (chain.m - 1) - 0.5);
        }
        switch (count) {
            case 1: advance<T, 1>(chain, steps, scratch); break;
            case 2: advance<T, 2>(chain, steps, scratch); break;
            case 3: advance<T, 3>(chain, steps, scratch); break;
            default: advance<T, kMaxBlockSteps>(chain, steps, scratch); break;
        }
        first += count;
    }

    // y(t) = y_i + t dy + u(t), so cov(y, t) m = dy sxx + sum(t' u), and what a line leaves of y it leaves of u.
    const T sxx = T(double(chain.m) * (chain.m + 1) / (12.0 * (chain.m - 1))), m = T(chain.m);
    Vec<T> total_unexplained{}, total_error{};
    for (int k = 0; k < chain.n_out; ++k) {
        const T* sums = scratch.sums + int64_t(k) * 3 * kLanes<T>;
        const Vec<T> s1 = load(sums), s2 = load(sums + kLanes<T>), s3 = load(sums + 2 * kLanes<T>);
        const Vec<T> dy = load(scratch.dy + int64_t(k) * kLanes<T>), sxy = dy * sxx + s2;
        const Vec<T> rest = maximum(Vec<T>{}, s3 - s1 * s1 / m - s2 * s2 / sxx);
        const Vec<T> total = sxy * sxy / sxx + rest;
        const T noise = T(noise_of<T>(chain)[k]), noise_total = noise * T(interior), y = T(scratch.y[k]);
        const Vec<T> cross = each_lane<T>(noise * rest, [](T x) { return T(2) * T(__builtin_sqrt(x)); });
        const Vec<T> least = T(chain.constant) * maximum(absolute<T>(y + dy), absolute<T>(broadcast(y)));
        const auto moves = total > m * least * least;
        // What does not move, for its size, is constant, and so affine: but float32 knows that only of what stands still.
        const Vec<T> unmoved = total == Vec<T>{} && dy == Vec<T>{} ? Vec<T>{} : broadcast(T(sizeof(T) == 4));
        total_error += minimum(broadcast(T(1)), moves ? (noise_total + cross) / total : unmoved + total * T(0));
        total_unexplained += moves ? rest / total : total * T(0);
    }
    for (int lane = 0; lane < kLanes<T>; ++lane) {
        unexplained[lane] = double(total_unexplained[lane]) / chain.n_out;
        error[lane] = double(total_error[lane]) / chain.n_out;
    }
}

void write(const Chain& chain, Output out, int64_t i, int64_t j, double unexplained) {
    const double r2 = 1.0 - unexplained;
    if (out.f32) out.f32[i * chain.n_points + j] = out.f32[j * chain.n_points + i] = float(r2);
    if (out.f64) out.f64[i * chain.n_points + j] = out.f64[j * chain.n_points + i] = r2;
}

// Pairs (i, j) for a list of j, in float64; NaN where that can't be done to its tolerance either.
void pairs_f64(const Chain& chain, int64_t i, const int64_t* j, int count, Scratch<double>& scratch, Output out) {
    int64_t lanes[kLanes<double>];
    double unexplained[kLanes<double>], error[kLanes<double>];
    for (int lane = 0; lane < kLanes<double>; ++lane) lanes[lane] = j[lane < count ? lane : count - 1];
    tile<double>(chain, lanes, scratch, unexplained, error);
    for (int lane = 0; lane < count; ++lane)
        write(chain, out, i, j[lane], error[lane] <= chain.tolerance_f64 ? unexplained[lane] : double(__builtin_nan("")));
}

int64_t row(const Chain& chain, int64_t i, int64_t first_column, bool single, Output out, void* memory) {
    char* cursor = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    Scratch<double> scratch_f64(chain, cursor);
    Scratch<float> scratch_f32(chain, cursor);
    int64_t again[kLanes<double>];
    int pending = 0;
    int64_t redone = 0;
    bool prepared = false;
    const auto redo = [&] {
        if (!prepared) prepare_row<double>(chain, i, scratch_f64);
        prepared = true;
        pairs_f64(chain, i, again, pending, scratch_f64, out);
        redone += pending;
        pending = 0;
    };
    if (out.f32) out.f32[i * chain.n_points + i] = 1.0f;
    if (out.f64) out.f64[i * chain.n_points + i] = 1.0;
    const int64_t from = i + 1 > first_column ? i + 1 : first_column;
    if (!single) {
        for (int64_t j = from; j < chain.n_points; ++j) {
            again[pending++] = j;
            if (pending == kLanes<double>) redo();
        }
        if (pending) redo();
        return 0;
    }
    prepare_row<float>(chain, i, scratch_f32);
    const int64_t last = chain.n_points - 1;
    for (int64_t first = from / kLanes<float> * kLanes<float>; first < chain.n_points; first += kLanes<float>) {
        int64_t j[kLanes<float>];
        double unexplained[kLanes<float>], error[kLanes<float>];
        for (int lane = 0; lane < kLanes<float>; ++lane) j[lane] = first + lane < last ? first + lane : last;
        tile<float>(chain, j, scratch_f32, unexplained, error);
        for (int lane = 0; lane < kLanes<float>; ++lane) {
            if (first + lane < from || first + lane > last) continue;
            if (error[lane] <= chain.tolerance) {
                write(chain, out, i, j[lane], unexplained[lane]);
            } else {  // a NaN comes here too
                again[pending++] = j[lane];
                if (pending == kLanes<double>) redo();
            }
        }
    }
    if (pending) redo();
    return redone;
}

void core_f32(int core, float p0, float p1, const float* z, float* out, int64_t n) {
    kCores<float>[core].values({p0, p1}, z, out, n);
}

void core_f64(int core, double p0, double p1, const double* z, double* out, int64_t n) {
    kCores<double>[core].values({p0, p1}, z, out, n);
}

// Fused multiply-adds in registers alone, enough of them at once to hide their latency: the ceiling of any float32 kernel.
float multiply_adds(int64_t count, int64_t* flop) {
    constexpr int kChains = 2 * kMaxBlockOutputs;
    Vec<float> a[kChains];
    for (int c = 0; c < kChains; ++c) a[c] = broadcast(float(c));
    const Vec<float> scale = broadcast(0.5f), shift = broadcast(1.0f);
    for (int64_t i = 0; i < count; ++i)
        for (int c = 0; c < kChains; ++c) a[c] = a[c] * scale + shift;
    Vec<float> sum{};
    for (int c = 0; c < kChains; ++c) sum += a[c];
    *flop = count * kChains * kLanes<float> * 2;
    return sum[0];
}

#define LMN_STRING_OF(x) #x
#define LMN_STRING(x) LMN_STRING_OF(x)

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {LMN_STRING(LMN_ISA), kMaxBlockOutputs, row, scratch_bytes, core_f32, core_f64, multiply_adds};

}  // namespace lmn::LMN_ISA
