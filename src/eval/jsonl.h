// eval/jsonl.h: files of one JSON object a line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace polyspan {

// Calls visit(object, line number from 1) for each line that is not blank. Throws Error: kIo for what cannot be read,
// kBadFile for an empty file, a line that is no JSON object, or what `visit` says is wrong by throwing an Error: its
// message follows the file's name and the line.
void read_jsonl(const std::filesystem::path& path,
                const std::function<void(const nlohmann::json& object, int64_t line)>& visit);

// The text of a field that must be there. Throws Error (kBadInput) saying what was found.
std::string string_field(const nlohmann::json& object, const char* name);

}  // namespace polyspan
