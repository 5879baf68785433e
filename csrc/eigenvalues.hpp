// The largest eigenvalues of many small symmetric matrices, one matrix a lane.
#pragma once

#include <cstdint>
#include <string>

namespace lmn {

struct EigenKernels {
    int together;  // matrices that are taken at a time
    int64_t (*scratch_bytes)(int rows);
    // The `wanted` largest eigenvalues, descending, of count <= together matrices [matrix][row][row], of which the lower triangle
    // is read: out [matrix][wanted]. Each is right but for the rounding of the matrix's largest.
    void (*largest)(const double* matrices, int count, int rows, int wanted, double* out, void* scratch);
};

void largest_eigenvalues(const double* matrices, int64_t n, int rows, int wanted, int threads, double* out,
                         const std::string& isa);

}  // namespace lmn
