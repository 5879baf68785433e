// All of lmn._core's bindings. The algorithms know nothing of Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <tuple>

#include "bend.hpp"
#include "cells.hpp"
#include "components.hpp"
#include "connectivity_host.hpp"
#include "cpu.hpp"
#include "eigenvalues.hpp"
#include "jacobians_host.hpp"
#include "patterns.hpp"
#include "subdivide.hpp"
#include "tree.hpp"

namespace py = pybind11;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

void require(bool condition, const char* message) {
    if (!condition) throw py::value_error(message);
}

// A layer as Python gives it: z, core, p0, p1, scale, slope, weights (None where the chain ends in this activation).
using Layer = std::tuple<Array, int, double, double, Array, Array, std::optional<Array>>;

// The kernel, and the arrays that it borrows.
struct Connectivity {
    std::vector<Array> borrowed;
    lmn::Connectivity kernel;
};

std::unique_ptr<Connectivity> make_connectivity(const std::vector<Layer>& layers, const Array& y, const Array& noise_f32,
                                                const Array& noise_f64, int m, double constant, double tolerance,
                                                double tolerance_f64, const std::string& isa) {
    require(!layers.empty(), "a chain has a layer");
    require(y.ndim() == 2 && y.shape(0) > 0 && y.shape(1) > 0 && m >= 3, "y is (n_out, n_points) and m at least 3");
    const auto n_out = y.shape(0), n = y.shape(1);
    require(noise_f32.size() == n_out && noise_f64.size() == n_out, "noise is (n_out)");
    std::vector<lmn::LayerData> data;
    std::vector<Array> borrowed{y};
    for (size_t l = 0; l < layers.size(); ++l) {
        const auto& [z, core, p0, p1, scale, slope, weights] = layers[l];
        require(z.ndim() == 2 && z.shape(1) == n, "z is (units, n_points)");
        const auto units = z.shape(0);
        const bool last = l + 1 == layers.size();
        const auto outputs = last ? n_out : std::get<0>(layers[l + 1]).shape(0);
        require(core >= 0 && core < lmn::kCoreCount, "core is an index into CORES");
        require(scale.size() == units && slope.size() == units, "scale and slope are (units)");
        if (weights)
            require(weights->ndim() == 2 && weights->shape(0) == outputs && weights->shape(1) == units,
                    "weights are (outputs, units)");
        else
            require(last && outputs == units, "only the last activation has no weights after it");
        borrowed.push_back(z);
        data.push_back({units, outputs, core, p0, p1, z.data(), scale.data(), slope.data(),
                        weights ? weights->data() : nullptr});
    }
    return std::unique_ptr<Connectivity>(new Connectivity{
        std::move(borrowed),
        {n, m, n_out, data, y.data(), noise_f32.data(), noise_f64.data(), constant, tolerance, tolerance_f64, isa},
    });
}

int64_t rows(Connectivity& self, int64_t first, int64_t last, int64_t first_column, bool single, int threads, py::array out) {
    const auto n = self.kernel.n_points();
    require(out.ndim() == 2 && out.shape(0) == n && out.shape(1) == n, "out is (n_points, n_points)");
    require((out.flags() & py::array::c_style) && out.writeable(), "out is contiguous and writeable");
    require(first >= 0 && first <= last && last <= n && threads >= 1, "rows are within the matrix");
    lmn::Output to{};
    if (py::isinstance<py::array_t<float>>(out))
        to.f32 = static_cast<float*>(out.mutable_data());
    else if (py::isinstance<py::array_t<double>>(out))
        to.f64 = static_cast<double*>(out.mutable_data());
    else
        throw py::value_error("out is float32 or float64");
    const py::gil_scoped_release release;
    return self.kernel.rows(first, last, first_column, single, threads, to);
}

// What a function of n values, a multiple of the lanes of any vector, makes of an array of any size.
template <class T, class Function>
py::array_t<T> padded(const py::array_t<T, py::array::c_style | py::array::forcecast>& z, const Function& function) {
    const int64_t n = z.size(), padded = (n + lmn::kMostLanes - 1) / lmn::kMostLanes * lmn::kMostLanes;
    auto in = lmn::aligned<T>(padded), values = lmn::aligned<T>(padded);
    for (int64_t i = 0; i < padded; ++i) in[i] = i < n ? z.data()[i] : T(0);
    function(in.get(), values.get(), padded);
    py::array_t<T> out(n);
    std::copy(values.get(), values.get() + n, out.mutable_data());
    return out;
}

template <class T>
py::array_t<T> core_values(int core, T p0, T p1, py::array_t<T, py::array::c_style | py::array::forcecast> z,
                           const std::string& isa) {
    require(core >= 0 && core < lmn::kCoreCount, "no such core");
    const lmn::Kernel& kernel = lmn::connectivity_kernel(isa);
    return padded(z, [&](const T* in, T* out, int64_t n) {
        if constexpr (sizeof(T) == 4)
            kernel.core_f32(core, p0, p1, in, out, n);
        else
            kernel.core_f64(core, p0, p1, in, out, n);
    });
}

// The least of some runs' seconds.
template <class Run>
double fastest(const Run& run) {
    double best = 1e30;
    for (int repeat = 0; repeat < 8; ++repeat) {
        const auto started = std::chrono::steady_clock::now();
        run();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
        best = std::min(best, seconds.count());
    }
    return best;
}

// FLOP/s of fused multiply-adds on one thread: runs of about 10 ms.
double multiply_add_rate(const std::string& isa) {
    const py::gil_scoped_release release;
    const lmn::Kernel& kernel = lmn::connectivity_kernel(isa);
    int64_t flop = 0;
    volatile float keep = 0;
    const double seconds = fastest([&] { keep = kernel.multiply_adds(3'000'000, &flop); });
    return double(flop) / seconds;
}

// Values/s of a core in float32 on one thread, on values that fit the first cache.
double core_rate(int core, float p0, float p1, const std::string& isa) {
    require(core >= 0 && core < lmn::kCoreCount, "no such core");
    const py::gil_scoped_release release;
    constexpr int64_t n = 2048, repeats = 2000;
    auto in = lmn::aligned<float>(n), out = lmn::aligned<float>(n);
    for (int64_t i = 0; i < n; ++i) in[i] = 6.0f * float(i) / n - 3.0f;
    const lmn::Kernel& kernel = lmn::connectivity_kernel(isa);
    return double(n * repeats) / fastest([&] {
        for (int64_t r = 0; r < repeats; ++r) kernel.core_f32(core, p0, p1, in.get(), out.get(), n);
    });
}

// ---- exact subdivision --------------------------------------------------------------------------------------------

using Indices = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

// A layer as Python gives it: unit, breakpoint, slope below, offset below, slope above, offset above of each line; weight, bias.
using PieceLayer = std::tuple<Indices, Array, Array, Array, Array, Array, Array, Array>;

// A vector as an array of the given shape, without a copy.
template <class T>
py::array_t<T> as_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(std::move(shape), kept->data(), owner);
}

// What work(poll) returns, without the GIL; Ctrl-C is heard when it polls, and raised once it has stopped.
template <class Work>
auto interruptible(const Work& work) {
    constexpr auto kBetween = std::chrono::milliseconds(20);
    bool interrupted = false;
    auto last = std::chrono::steady_clock::now();
    auto result = [&] {
        const py::gil_scoped_release release;
        return work([&] {
            const auto now = std::chrono::steady_clock::now();
            if (interrupted || now - last < kBetween) return interrupted;
            last = now;
            const py::gil_scoped_acquire acquire;
            return interrupted = PyErr_CheckSignals() != 0;
        });
    }();
    if (interrupted) throw py::error_already_set();
    return result;
}

// What is told of regions whether or not their maps were composed here; the columns are moved out.
py::dict columns_of(lmn::Subdivision& found, int dimension, bool geometry) {
    const py::ssize_t n = found.n_regions, axes = dimension;
    py::dict out;
    out["n_regions"] = n;
    out["measure"] = as_array(std::move(found.measure), {n});
    out["centre"] = as_array(std::move(found.centre), {n, axes});
    if (!geometry) return out;
    const py::ssize_t vertices = py::ssize_t(found.vertex_id.size()), facets = py::ssize_t(found.facet_id.size());
    const py::ssize_t edges = py::ssize_t(found.edge_id.size());
    out["n_vertices"] = as_array(std::move(found.n_vertices), {n});
    out["vertex"] = as_array(std::move(found.vertex), {vertices, axes});
    out["vertex_id"] = as_array(std::move(found.vertex_id), {vertices});
    out["n_facets"] = as_array(std::move(found.n_facets), {n});
    out["facet_id"] = as_array(std::move(found.facet_id), {facets});
    out["facet_line"] = as_array(std::move(found.facet_line), {facets});
    out["edge_id"] = as_array(std::move(found.edge_id), {edges});
    return out;
}

py::dict subdivide(const Array& a, const Array& c, const Array& size, const std::vector<PieceLayer>& layers,
                   double relative_tolerance, bool geometry, int64_t max_regions, int threads) {
    require(a.ndim() == 2 && a.shape(1) >= 1 && a.shape(1) <= 3, "a is (units, dimension) with 1 to 3 dimensions");
    const int dimension = int(a.shape(1));
    require(c.size() == a.shape(0) && size.size() == a.shape(0), "c and size are (units)");
    require(threads >= 1 && max_regions >= 1, "threads and max_regions are at least 1");
    lmn::PieceChain chain{dimension, a.shape(0), a.data(), c.data(), size.data(), {}, relative_tolerance};
    py::ssize_t units = a.shape(0);
    for (const auto& [unit, breakpoint, slope_below, offset_below, slope_above, offset_above, weight, bias] : layers) {
        const auto lines = unit.size();
        for (const Array* column : {&breakpoint, &slope_below, &offset_below, &slope_above, &offset_above})
            require(column->size() == lines, "a layer's columns have an entry a line");
        for (py::ssize_t i = 0; i < lines; ++i) require(unit.data()[i] >= 0 && unit.data()[i] < units, "no such unit");
        require(weight.ndim() == 2 && weight.shape(1) == units && bias.size() == weight.shape(0), "weight is (n_next, units)");
        chain.layers.push_back({units, lines, weight.shape(0), unit.data(), breakpoint.data(), slope_below.data(),
                                offset_below.data(), slope_above.data(), offset_above.data(), weight.data(), bias.data()});
        units = weight.shape(0);
    }
    lmn::Subdivision found = interruptible([&](const lmn::Poll& poll) {
        return lmn::subdivide(chain, geometry, max_regions, threads, poll);
    });
    py::dict out = columns_of(found, dimension, geometry);
    const py::ssize_t n = found.n_regions, axes = dimension;
    out["stopped"] = found.stopped;
    out["after_layer"] = found.after_layer;
    out["pattern"] = as_array(std::move(found.pattern), {n, py::ssize_t(found.n_words)});
    const py::ssize_t cuts = found.tree.size();
    out["cut"] = as_array(std::move(found.tree.cut), {cuts, axes + 1});
    out["child"] = as_array(std::move(found.tree.child), {cuts, 2});
    out["map"] = as_array(std::move(found.map), {n, py::ssize_t(found.n_out), axes + 1});
    return out;
}

lmn::Tree tree_of(const Array& cuts, const py::array_t<int64_t, py::array::c_style>& children) {
    require(cuts.ndim() == 2 && cuts.shape(1) >= 2 && cuts.shape(1) <= 4, "cuts are (cuts, dimension + 1) with 1 to 3 dimensions");
    require(children.ndim() == 2 && children.shape(0) == cuts.shape(0) && children.shape(1) == 2, "children are (cuts, 2)");
    return {int(cuts.shape(1)) - 1, int64_t(cuts.shape(0)), cuts.data(), children.data()};
}

py::array_t<int64_t> locate(const Array& cuts, const py::array_t<int64_t, py::array::c_style>& children, const Array& points,
                            int threads) {
    const lmn::Tree tree = tree_of(cuts, children);
    require(points.ndim() == 2 && points.shape(1) == tree.dimension, "points are (points, dimension)");
    py::array_t<int64_t> region(points.shape(0));
    const double* x = points.data();
    int64_t* out = region.mutable_data();
    const int64_t n = points.shape(0);
    const py::gil_scoped_release release;
    lmn::locate(tree, n, x, threads, out);
    return region;
}

py::array rasterise(const Array& cuts, const py::array_t<int64_t, py::array::c_style>& children, const py::array& values,
                    const std::vector<py::ssize_t>& shape, const std::vector<double>& first, const std::vector<double>& step,
                    int threads) {
    const lmn::Tree tree = tree_of(cuts, children);
    const size_t dimension = size_t(tree.dimension);
    require(shape.size() == dimension && first.size() == dimension && step.size() == dimension, "one count, first and step an axis");
    int64_t n_regions = 1;
    for (py::ssize_t i = 0; i < children.size(); ++i) n_regions = std::max(n_regions, -children.data()[i]);  // ~region + 1
    require(values.ndim() >= 1 && (values.flags() & py::array::c_style) && values.shape(0) >= n_regions,
            "values are contiguous, one a region");
    require(!values.dtype().attr("hasobject").cast<bool>(), "values are numbers");
    lmn::Raster raster{};
    for (size_t d = 0; d < dimension; ++d) {
        require(shape[d] >= 1 && shape[d] < (py::ssize_t(1) << 31), "a grid has points, and fewer than 2^31 an axis");
        raster.count[d] = shape[d];
        require(step[d] >= 0, "points are in ascending order");
        raster.first[d] = first[d];
        raster.step[d] = step[d];
    }
    std::vector<py::ssize_t> whole = shape;
    whole.insert(whole.end(), values.shape() + 1, values.shape() + values.ndim());
    py::array painted(values.dtype(), whole);
    const size_t bytes = size_t(values.nbytes() / values.shape(0));
    const void* value = values.data();
    void* out = painted.mutable_data();
    const py::gil_scoped_release release;
    lmn::rasterise(tree, raster, bytes, value, threads, out);
    return painted;
}

int64_t count_components(int64_t n_nodes, const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& edges) {
    require(edges.ndim() == 2 && edges.shape(1) == 2, "edges are (edges, 2)");
    for (py::ssize_t i = 0; i < edges.size(); ++i)
        require(edges.data()[i] >= 0 && edges.data()[i] < n_nodes, "no such node");
    return lmn::count_components(n_nodes, edges.shape(0), edges.data());
}

// ---- cells cut by one bend at a time -------------------------------------------------------------------------------

using Words = py::array_t<uint64_t, py::array::c_style>;
using Longs = py::array_t<int64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;  // never converted: they are large

lmn::Units units_of(const lmn::Cells& cells, const Doubles& values, const Array& size, double relative_tolerance) {
    require(values.ndim() == 3 && values.shape(0) == cells.size() && values.shape(1) == cells.dimension + 1,
            "values are (cells, dimension + 1, units)");
    require(size.size() == values.shape(2), "size is (units)");
    return {int64_t(values.shape(2)), values.data(), size.data(), relative_tolerance};
}

py::object told(lmn::CutCells&& cut) {
    if (cut.stopped) return py::int_(cut.n_found);
    const py::ssize_t n = cut.cells.size(), n_cuts = cut.tree.size(), axes = cut.cells.dimension;
    auto parent = as_array(std::move(cut.parent), {n});
    auto pattern = as_array(std::move(cut.pattern), {n, py::ssize_t(cut.n_words)});
    auto cuts = as_array(std::move(cut.tree.cut), {n_cuts, axes + 1});
    auto children = as_array(std::move(cut.tree.child), {n_cuts, 2});
    auto root = as_array(std::move(cut.root), {py::ssize_t(cut.root.size())});
    auto cells = std::make_unique<lmn::Cells>(std::move(cut.cells));
    return py::make_tuple(py::cast(std::move(cells)), parent, pattern, cuts, children, root);
}

py::object cut_by_lines(const lmn::Cells& cells, const Doubles& values, const Array& size, const Indices& unit,
                       const Array& breakpoint, int32_t first_line, double relative_tolerance, int64_t max_cells, int threads) {
    const lmn::Units units = units_of(cells, values, size, relative_tolerance);
    require(unit.size() == breakpoint.size(), "unit and breakpoint are (lines)");
    for (py::ssize_t i = 0; i < unit.size(); ++i) require(unit.data()[i] >= 0 && unit.data()[i] < units.count, "no such unit");
    const lmn::UnitLines lines{int64_t(unit.size()), unit.data(), breakpoint.data(), first_line};
    return told(interruptible([&](const lmn::Poll& poll) {
        return lmn::cut_by_lines(cells, units, lines, max_cells, threads, poll);
    }));
}

void check_members(const Longs& members, int64_t n_units) {
    require(members.ndim() == 2, "members are (windows, width)");
    for (py::ssize_t i = 0; i < members.size(); ++i)
        require(members.data()[i] >= -1 && members.data()[i] < n_units, "no such unit");
}

py::object cut_by_windows(const lmn::Cells& cells, const Doubles& values, const Array& size, const Longs& members, int sign,
                         int bits, int32_t first_line, double relative_tolerance, int64_t max_cells, int threads) {
    const lmn::Units units = units_of(cells, values, size, relative_tolerance);
    check_members(members, units.count);
    const lmn::UnitWindows windows{int64_t(members.shape(0)), int64_t(members.shape(1)), members.data(), sign, bits, first_line};
    return told(interruptible([&](const lmn::Poll& poll) {
        return lmn::cut_by_windows(cells, units, windows, max_cells, threads, poll);
    }));
}

lmn::PartValues parts_of(const Doubles& values, const Longs& parent, const Words& pattern) {
    require(values.ndim() == 3 && pattern.ndim() == 2 && pattern.shape(0) == parent.size(), "parent and pattern are of the parts");
    for (py::ssize_t i = 0; i < parent.size(); ++i)
        require(parent.data()[i] >= 0 && parent.data()[i] < values.shape(0), "no such parent");
    return {int64_t(parent.size()), int64_t(values.shape(1)), int64_t(values.shape(2)), parent.data(), values.data(),
            pattern.data(), int64_t(pattern.shape(1))};
}

Doubles bend_units(const Doubles& values, const Longs& parent, const Words& pattern, const Array& slope, const Array& offset,
                   int threads) {
    const lmn::PartValues parts = parts_of(values, parent, pattern);
    require(slope.ndim() == 2 && slope.shape(0) == parts.n_units && slope.shape(1) >= 2 && offset.size() == slope.size(),
            "slope and offset are (units, pieces)");
    const int64_t n_breakpoints = slope.shape(1) - 1;
    require(parts.n_words * 64 >= parts.n_units * n_breakpoints, "the pattern has a bit a line");
    Doubles out({parts.n_parts, parts.n_points, parts.n_units});
    double* to = out.mutable_data();
    const py::gil_scoped_release release;
    lmn::bend_units(parts, n_breakpoints, slope.data(), offset.data(), to, threads);
    return out;
}

Doubles bend_windows(const Doubles& values, const Longs& parent, const Words& pattern, const Longs& members, int bits, int threads) {
    const lmn::PartValues parts = parts_of(values, parent, pattern);
    check_members(members, parts.n_units);
    const int64_t n_windows = members.shape(0), width = members.shape(1);
    require(parts.n_words * 64 >= n_windows * bits, "the pattern has bits for each window");
    Doubles out({parts.n_parts, parts.n_points, n_windows});
    double* to = out.mutable_data();
    const int64_t* member = members.data();
    const py::gil_scoped_release release;
    lmn::bend_windows(parts, n_windows, width, member, bits, to, threads);
    return out;
}

py::dict described(const lmn::Cells& cells) {
    lmn::Subdivision found = lmn::described(cells);
    return columns_of(found, cells.dimension, true);
}

// ---- activation patterns -------------------------------------------------------------------------------------------

template <class T>
void pack_bits(const py::array_t<T, py::array::c_style>& z, const Array& breakpoints, Words& words, int64_t first_word, int threads) {
    require(z.ndim() == 2 && words.ndim() == 2 && words.shape(0) == z.shape(0), "z is (samples, units), words (samples, words)");
    const int64_t lines = z.shape(1) * breakpoints.size();
    require(first_word >= 0 && first_word + (lines + 63) / 64 <= words.shape(1), "the bits have a place in the words");
    uint64_t* to = words.mutable_data();
    const int64_t n = z.shape(0), units = z.shape(1), n_words = words.shape(1), n_breakpoints = breakpoints.size();
    const T* from = z.data();
    const double* breakpoint = breakpoints.data();
    const py::gil_scoped_release release;
    lmn::pack_bits(from, n, units, breakpoint, n_breakpoints, to, n_words, first_word, threads);
}

void insert_patterns(lmn::PatternSet& set, const Words& words, const Longs& index, const std::optional<Longs>& count, int threads,
                     std::optional<Longs>& keys) {
    require(words.ndim() == 2 && words.shape(1) == set.n_words(), "words are (patterns, n_words)");
    const int64_t n = words.shape(0);
    require(index.size() == n, "index is (patterns)");
    require((!count || count->size() == n) && (!keys || keys->size() == n), "count and keys are (patterns)");
    const uint64_t* from = words.data();
    const int64_t *first = index.data(), *counts = count ? count->data() : nullptr;
    int64_t* to = keys ? keys->mutable_data() : nullptr;
    const py::gil_scoped_release release;
    set.insert(from, n, first, counts, threads, to);
}

// A column as an array of the given shape, without a copy.
template <class T>
py::array_t<T> as_array(std::unique_ptr<T[], lmn::Free>&& values, std::vector<py::ssize_t> shape) {
    T* kept = values.release();
    if (!kept) return py::array_t<T>(std::move(shape));  // empty
    return py::array_t<T>(std::move(shape), kept, py::capsule(kept, [](void* p) { std::free(p); }));
}

py::tuple take_patterns(lmn::PatternSet& set, std::optional<Longs>& keys) {
    int64_t* key = keys ? keys->mutable_data() : nullptr;
    const int64_t n_keys = keys ? keys->size() : 0, n_rows = set.size();
    for (int64_t i = 0; i < n_keys; ++i) require(key[i] >= 0 && key[i] < n_rows, "no such key");
    lmn::PatternSet::Rows rows = [&] {
        const py::gil_scoped_release release;
        return set.take(key, n_keys);
    }();
    const py::ssize_t n = rows.size;
    auto words = as_array(std::move(rows.words), {n, py::ssize_t(set.n_words())});
    return py::make_tuple(words, as_array(std::move(rows.count), {n}), as_array(std::move(rows.first), {n}));
}

// ---- derivatives ---------------------------------------------------------------------------------------------------

// A layer as Python gives it: core, p0, p1, kink, scale, slope, breakpoints, weights (None where the chain ends in it), bias,
// whether its slope is zero on an interval.
using SlopeLayer = std::tuple<int, double, double, double, Array, Array, Array, std::optional<Array>, Array, bool>;

constexpr py::ssize_t kMostBreakpoints = 32;  // of an activation: two bits each in a word

template <class T>
std::unique_ptr<lmn::Slopes<T>> make_slopes(const std::optional<std::pair<Array, Array>>& first, const std::vector<SlopeLayer>& layers,
                                            const std::optional<Array>& last, bool reverse, const std::string& isa) {
    require(!layers.empty(), "a chain has a layer");
    std::vector<lmn::SlopeLayerData> data;
    for (size_t l = 0; l < layers.size(); ++l) {
        const auto& [core, p0, p1, kink, scale, slope, breakpoints, weights, bias, may_be_flat] = layers[l];
        const auto units = scale.size(), outputs = bias.size();
        require(core >= 0 && core < lmn::kCoreCount, "core is an index into CORES");
        require(slope.size() == units && breakpoints.size() <= kMostBreakpoints, "slope is (units), breakpoints are few");
        if (weights)
            require(weights->ndim() == 2 && weights->shape(0) == outputs && weights->shape(1) == units, "weights are (outputs, units)");
        else
            require(l + 1 == layers.size() && outputs == units, "only the last activation has no weights after it");
        require(l + 1 == layers.size() || std::get<4>(layers[l + 1]).size() == outputs, "each layer fits the one before");
        data.push_back({units, outputs, core, p0, p1, kink, scale.data(), slope.data(), weights ? weights->data() : nullptr, bias.data(),
                        breakpoints.data(), breakpoints.size(), may_be_flat});
    }
    const auto n_first = data[0].units;
    if (first)
        require(first->first.ndim() == 2 && first->first.shape(0) == n_first && first->second.size() == n_first,
                "the first map is (units, n_in) with a bias (units)");
    if (last) require(reverse && last->ndim() == 2 && last->shape(1) == n_first, "the last map is (n_last, units), of a reverse sweep");
    return std::make_unique<lmn::Slopes<T>>(first ? first->first.shape(1) : n_first, data.back().outputs,
                                            first ? first->first.data() : nullptr, first ? first->second.data() : nullptr, data,
                                            last ? last->data() : nullptr, last ? last->shape(0) : 0, reverse, isa);
}

template <class T>
using Rows = py::array_t<T, py::array::c_style>;

template <class T>
void check_points(const lmn::Slopes<T>& slopes, const Rows<T>& x, bool to_last) {
    require(x.ndim() == 2 && x.shape(1) == slopes.n_in(), "x is (n_points, n_in)");
    require(!to_last || slopes.n_last() > 0, "there is a last map");
}

template <class T>
void slopes_jacobians(lmn::Slopes<T>& self, const Rows<T>& x, bool to_last, Rows<T>& out, int threads) {
    check_points(self, x, to_last);
    const auto width = to_last ? self.n_last() : self.n_in();
    require(out.ndim() == 3 && out.shape(0) == x.shape(0) && out.shape(1) == self.n_out() && out.shape(2) == width,
            "out is (n_points, n_out, n_in)");
    T* to = out.mutable_data();
    const T* from = x.data();
    const int64_t n = x.shape(0);
    const py::gil_scoped_release release;
    self.jacobians(from, n, to_last, to, threads);
}

template <class T>
void slopes_grams(lmn::Slopes<T>& self, const Rows<T>& x, bool to_last, Doubles& out, int threads) {
    check_points(self, x, to_last);
    require(out.ndim() == 3 && out.shape(0) == x.shape(0) && out.shape(1) == self.n_rows() && out.shape(2) == self.n_rows(),
            "out is (n_points, n_rows, n_rows)");
    double* to = out.mutable_data();
    const T* from = x.data();
    const int64_t n = x.shape(0);
    const py::gil_scoped_release release;
    self.grams(from, n, to_last, to, threads);
}

template <class T>
Longs slopes_crossings(lmn::Slopes<T>& self, const Rows<T>& z, const Rows<T>& shifts, int threads) {
    require(z.ndim() == 2 && z.shape(1) == self.n_first(), "z is (n_points, units)");
    require(shifts.ndim() == 2 && shifts.shape(1) == self.n_first() && shifts.shape(0) > 0, "shifts are (n_directions, units)");
    Longs counts({py::ssize_t(z.shape(0)), py::ssize_t(self.n_layers())});
    int64_t* to = counts.mutable_data();
    const T *from = z.data(), *shift = shifts.data();
    const int64_t n = z.shape(0), n_directions = shifts.shape(0);
    const py::gil_scoped_release release;
    self.crossings(from, n, shift, n_directions, to, threads);
    return counts;
}

template <class T>
void bind_slopes(py::module_& module, const char* name) {
    py::class_<lmn::Slopes<T>>(module, name)
        .def(py::init(&make_slopes<T>), py::arg("first"), py::arg("layers"), py::arg("last"), py::arg("reverse"),
             py::arg("isa") = "")
        .def("jacobians", &slopes_jacobians<T>, py::arg("x").noconvert(), py::arg("to_last"), py::arg("out").noconvert(),
             py::arg("threads"))
        .def("grams", &slopes_grams<T>, py::arg("x").noconvert(), py::arg("to_last"), py::arg("out").noconvert(), py::arg("threads"))
        .def("crossings", &slopes_crossings<T>, py::arg("z").noconvert(), py::arg("shifts").noconvert(), py::arg("threads"));
}

Doubles largest_eigenvalues(const Doubles& matrices, int wanted, int threads, const std::string& isa) {
    require(matrices.ndim() == 3 && matrices.shape(1) == matrices.shape(2), "matrices are (n, rows, rows)");
    const int rows = int(matrices.shape(1));
    require(wanted >= 1 && wanted <= rows && threads >= 1, "wanted is at most the number of rows");
    Doubles out({matrices.shape(0), py::ssize_t(wanted)});
    double* to = out.mutable_data();
    const double* from = matrices.data();
    const int64_t n = matrices.shape(0);
    const py::gil_scoped_release release;
    lmn::largest_eigenvalues(from, n, rows, wanted, threads, to, isa);
    return out;
}

template <class T>
py::array_t<T> core_slopes(int core, T p0, T p1, T kink, py::array_t<T, py::array::c_style | py::array::forcecast> z,
                           const std::string& isa) {
    require(core >= 0 && core < lmn::kCoreCount, "no such core");
    const lmn::JacobianKernels& kernels = lmn::jacobian_kernels_of(isa);
    return padded(z, [&](const T* in, T* out, int64_t n) {
        if constexpr (sizeof(T) == 4)
            kernels.core_slopes_f32(core, p0, p1, kink, in, out, n);
        else
            kernels.core_slopes_f64(core, p0, p1, kink, in, out, n);
        for (int64_t i = 0; i < n; ++i) out[i] += T(kernels.slope_limits[core]);
    });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "The C++ core of lmn: arrays in, arrays out. See _core.pyi.";
    module.attr("__version__") = LMN_VERSION;
    module.def("instruction_sets", &lmn::instruction_sets);
    module.def("core_values_f32", &core_values<float>, py::arg("core"), py::arg("p0"), py::arg("p1"), py::arg("z"),
               py::arg("isa") = "");
    module.def("core_values_f64", &core_values<double>, py::arg("core"), py::arg("p0"), py::arg("p1"), py::arg("z"),
               py::arg("isa") = "");
    module.def("core_slopes_f32", &core_slopes<float>, py::arg("core"), py::arg("p0"), py::arg("p1"), py::arg("kink"), py::arg("z"),
               py::arg("isa") = "");
    module.def("core_slopes_f64", &core_slopes<double>, py::arg("core"), py::arg("p0"), py::arg("p1"), py::arg("kink"), py::arg("z"),
               py::arg("isa") = "");
    module.def("multiply_add_rate", &multiply_add_rate, py::arg("isa") = "");
    module.def("core_rate", &core_rate, py::arg("core"), py::arg("p0"), py::arg("p1"), py::arg("isa") = "");
    module.def("subdivide", &subdivide, py::arg("a"), py::arg("c"), py::arg("size"), py::arg("layers"),
               py::arg("relative_tolerance"), py::arg("geometry"), py::arg("max_regions"), py::arg("threads"));
    py::class_<lmn::Cells>(module, "Cells")
        .def(py::init(&lmn::cube_of), py::arg("dimension"), py::arg("first_line"))
        .def("__len__", &lmn::Cells::size)
        .def("part", &lmn::part_of, py::arg("first"), py::arg("last"))
        .def("described", &described)
        .def("cut_by_lines", &cut_by_lines, py::arg("values").noconvert(), py::arg("size"), py::arg("unit"),
             py::arg("at"), py::arg("first_line"), py::arg("relative_tolerance"), py::arg("max_cells"), py::arg("threads"))
        .def("cut_by_windows", &cut_by_windows, py::arg("values").noconvert(), py::arg("size"), py::arg("members").noconvert(),
             py::arg("sign"), py::arg("bits"), py::arg("first_line"), py::arg("relative_tolerance"), py::arg("max_cells"),
             py::arg("threads"));
    module.def("bend_units", &bend_units, py::arg("values").noconvert(), py::arg("parent").noconvert(),
               py::arg("pattern").noconvert(), py::arg("slope"), py::arg("offset"), py::arg("threads"));
    module.def("bend_windows", &bend_windows, py::arg("values").noconvert(), py::arg("parent").noconvert(),
               py::arg("pattern").noconvert(), py::arg("members").noconvert(), py::arg("bits"), py::arg("threads"));
    module.def("locate", &locate, py::arg("cuts"), py::arg("children"), py::arg("points"), py::arg("threads"));
    module.def("rasterise", &rasterise, py::arg("cuts"), py::arg("children"), py::arg("values").noconvert(),
               py::arg("shape"), py::arg("first"), py::arg("step"), py::arg("threads"));
    module.def("count_components", &count_components, py::arg("n_nodes"), py::arg("edges"));
    module.def("pack_bits_f32", &pack_bits<float>, py::arg("z").noconvert(), py::arg("breakpoints"), py::arg("words").noconvert(),
               py::arg("first_word"), py::arg("threads"));
    module.def("pack_bits_f64", &pack_bits<double>, py::arg("z").noconvert(), py::arg("breakpoints"), py::arg("words").noconvert(),
               py::arg("first_word"), py::arg("threads"));
    py::class_<lmn::PatternSet>(module, "PatternSet")
        .def(py::init<int64_t, bool>(), py::arg("n_words"), py::arg("verify"))
        .def("__len__", &lmn::PatternSet::size)
        .def_property_readonly("collisions", &lmn::PatternSet::collisions)
        .def("insert", &insert_patterns, py::arg("words").noconvert(), py::arg("index"), py::arg("count"), py::arg("threads"),
             py::arg("keys").noconvert())
        .def("take", &take_patterns, py::arg("keys").noconvert() = py::none());
    module.def("largest_eigenvalues", &largest_eigenvalues, py::arg("matrices").noconvert(), py::arg("wanted"), py::arg("threads"),
               py::arg("isa") = "");
    bind_slopes<float>(module, "SlopesF32");
    bind_slopes<double>(module, "SlopesF64");
    py::class_<Connectivity>(module, "Connectivity")
        .def(py::init(&make_connectivity), py::arg("layers"), py::arg("y"), py::arg("noise_f32"), py::arg("noise_f64"),
             py::arg("m"), py::arg("constant"), py::arg("tolerance"), py::arg("tolerance_f64"), py::arg("isa") = "")
        .def_property_readonly("isa", [](const Connectivity& self) { return self.kernel.isa(); })
        .def("rows", &rows, py::arg("first"), py::arg("last"), py::arg("first_column"), py::arg("single"), py::arg("threads"), py::arg("out"));
}
