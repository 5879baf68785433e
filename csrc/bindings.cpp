// All of lmn._core's bindings. The algorithms know nothing of Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <tuple>

#include "connectivity_host.hpp"
#include "cpu.hpp"

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
                                                const Array& noise_f64, int m, double tolerance, const std::string& isa) {
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
        {n, m, n_out, data, y.data(), noise_f32.data(), noise_f64.data(), tolerance, isa},
    });
}

int64_t rows(Connectivity& self, int64_t first, int64_t last, bool single, int threads, py::array out) {
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
    return self.kernel.rows(first, last, single, threads, to);
}

template <class T>
py::array_t<T> core_values(int core, T p0, T p1, py::array_t<T, py::array::c_style | py::array::forcecast> z,
                           const std::string& isa) {
    require(core >= 0 && core < lmn::kCoreCount, "no such core");
    const int64_t n = z.size(), padded = (n + lmn::kMostLanes - 1) / lmn::kMostLanes * lmn::kMostLanes;
    auto in = lmn::aligned<T>(padded), values = lmn::aligned<T>(padded);
    for (int64_t i = 0; i < padded; ++i) in[i] = i < n ? z.data()[i] : T(0);
    const lmn::Kernel& kernel = lmn::connectivity_kernel(isa);
    if constexpr (sizeof(T) == 4)
        kernel.core_f32(core, p0, p1, in.get(), values.get(), padded);
    else
        kernel.core_f64(core, p0, p1, in.get(), values.get(), padded);
    py::array_t<T> out(n);
    std::copy(values.get(), values.get() + n, out.mutable_data());
    return out;
}

// FLOP/s of fused multiply-adds on one thread: the best of some runs of about 10 ms.
double multiply_add_rate(const std::string& isa) {
    const py::gil_scoped_release release;
    const lmn::Kernel& kernel = lmn::connectivity_kernel(isa);
    double best = 0;
    for (int repeat = 0; repeat < 8; ++repeat) {
        int64_t flop = 0;
        const auto started = std::chrono::steady_clock::now();
        volatile float keep = kernel.multiply_adds(3'000'000, &flop);
        static_cast<void>(keep);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
        best = std::max(best, double(flop) / seconds.count());
    }
    return best;
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
    module.def("multiply_add_rate", &multiply_add_rate, py::arg("isa") = "");
    py::class_<Connectivity>(module, "Connectivity")
        .def(py::init(&make_connectivity), py::arg("layers"), py::arg("y"), py::arg("noise_f32"), py::arg("noise_f64"),
             py::arg("m"), py::arg("tolerance"), py::arg("isa") = "")
        .def_property_readonly("isa", [](const Connectivity& self) { return self.kernel.isa(); })
        .def("rows", &rows, py::arg("first"), py::arg("last"), py::arg("single"), py::arg("threads"), py::arg("out"));
}
