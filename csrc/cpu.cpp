#include "cpu.hpp"

#include <algorithm>
#include <stdexcept>

namespace lmn {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> sets;
#if defined(__x86_64__)
    __builtin_cpu_init();
    // The levels themselves, not the features that come to mind: the compiler may use any instruction of a level.
    if (__builtin_cpu_supports("x86-64-v4")) sets.push_back("x86_64_v4");
    if (__builtin_cpu_supports("x86-64-v3")) sets.push_back("x86_64_v3");
#endif
    sets.push_back("baseline");
    return sets;
}

std::string chosen_instruction_set(const std::string& name) {
    const auto sets = instruction_sets();
    if (name.empty()) return sets.front();
    if (std::find(sets.begin(), sets.end(), name) == sets.end())
        throw std::invalid_argument("instruction set '" + name + "' is not one that this machine runs");
    return name;
}

}  // namespace lmn
