// Instruction sets: which this library was built with, and which this machine runs.
#pragma once

#include <string>
#include <vector>

namespace lmn {

std::vector<std::string> instruction_sets();  // that this machine runs, best first

}  // namespace lmn
