// Matrices shared among threads.
#include "eigenvalues.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "cpu.hpp"
#include "parallel.hpp"

namespace lmn {

#if defined(__x86_64__)
namespace x86_64_v4 {
extern const EigenKernels eigen_kernels;
}
namespace x86_64_v3 {
extern const EigenKernels eigen_kernels;
}
#endif
namespace baseline {
extern const EigenKernels eigen_kernels;
}

namespace {

const EigenKernels& eigen_kernels_of(const std::string& isa) {
    const std::string name = chosen_instruction_set(isa);
#if defined(__x86_64__)
    if (name == "x86_64_v4") return x86_64_v4::eigen_kernels;
    if (name == "x86_64_v3") return x86_64_v3::eigen_kernels;
#endif
    return baseline::eigen_kernels;
}

constexpr double kNanosecondsARow = 1;  // of a matrix, squared, and for each eigenvalue

}  // namespace

void largest_eigenvalues(const double* matrices, int64_t n, int rows, int wanted, int threads, double* out, const std::string& isa) {
    const EigenKernels& kernels = eigen_kernels_of(isa);
    threads = workers_for(kNanosecondsARow * rows * (rows + 20.0 * wanted) * double(n), threads);
    std::vector<Aligned<char>> scratch;
    for (int worker = 0; worker < threads; ++worker) scratch.push_back(aligned<char>(size_t(kernels.scratch_bytes(rows))));
    const int64_t together = kernels.together;
    parallel_for(0, (n + together - 1) / together, threads, [&](int64_t task, int worker) {
        const int64_t first = task * together;
        kernels.largest(matrices + first * rows * rows, int(std::min(together, n - first)), rows, wanted, out + first * wanted,
                        scratch[size_t(worker)].get());
    });
}

}  // namespace lmn
