// Instruction sets: which this library was built with, and which this machine runs.
#pragma once

#include <string>
#include <vector>

namespace lmn {

std::vector<std::string> instruction_sets();  // that this machine runs, best first

// The one of that name, or the best one for "".
std::string chosen_instruction_set(const std::string& name);

}  // namespace lmn
