// Instruction sets: which this library was built with, and which this machine runs.
#pragma once

#include <string>
#include <vector>

namespace lmn {

std::vector<std::string> instruction_sets();  // that this machine runs, best first

// The one of that name, or the best one for "".
std::string chosen_instruction_set(const std::string& name);

}  // namespace lmn

// Inside namespace lmn: the table that each instruction set has of some kernels (csrc/*_isa.cpp), and a function from a name to it.
#if defined(__x86_64__)
#define LMN_TABLE_OF(Table, table, function)                         \
    namespace x86_64_v4 { extern const Table table; }                \
    namespace x86_64_v3 { extern const Table table; }                \
    namespace baseline { extern const Table table; }                 \
    const Table& function(const std::string& isa) {                  \
        const std::string name = chosen_instruction_set(isa);        \
        if (name == "x86_64_v4") return x86_64_v4::table;            \
        if (name == "x86_64_v3") return x86_64_v3::table;            \
        return baseline::table;                                      \
    }
#else
#define LMN_TABLE_OF(Table, table, function)                         \
    namespace baseline { extern const Table table; }                 \
    const Table& function(const std::string& isa) {                  \
        chosen_instruction_set(isa);                                 \
        return baseline::table;                                      \
    }
#endif
