// Matrices shared among threads.
#include "eigenvalues.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "cpu.hpp"
#include "parallel.hpp"

namespace lmn {

LMN_TABLE_OF(EigenKernels, eigen_kernels, eigen_kernels_of)

namespace {

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
