// bench/random_model.cpp: writes a GGUF model of a known shape with random weights: for speed, where no download is
// wanted. Results of such a model say nothing; its sizes and times are those of the real one.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>

#include "core/error.h"
#include "io/random_model.h"

namespace {

polyspan::DType parse_type(const std::string& name) {
  if (const auto info = polyspan::find_dtype(name)) return info->type;
  throw polyspan::Error::usage("found type ", name, ", wanted one of ", polyspan::dtype_names());
}

}  // namespace

int main(int argc, char** argv) {
  std::string shape, type = "Q4_K", output_type, out;
  uint64_t seed = 1;
  CLI::App app("Writes a GGUF model of a known shape with random weights.");
  app.add_option("--shape", shape, "one of " + polyspan::model_shape_names())->required();
  app.add_option("--type", type, "weight type of every matrix: " + polyspan::dtype_names())->capture_default_str();
  app.add_option("--output-type", output_type,
                 "weight type of the output matrix (common Q4_K files: Q6_K) [as --type]");
  app.add_option("--seed", seed, "of the weights")->capture_default_str();
  app.add_option("-o,--output", out, "the file to write")->required();
  CLI11_PARSE(app, argc, argv);
  try {
    auto config = polyspan::find_model_shape(shape);
    if (!config) throw polyspan::Error::usage("found shape ", shape, ", wanted one of ", polyspan::model_shape_names());
    config->type = parse_type(type);
    if (!output_type.empty()) config->output_type = parse_type(output_type);
    config->seed = seed;
    polyspan::write_random_model(*config, out);
    std::cerr << out << ": " << std::filesystem::file_size(out) << " bytes\n";
  } catch (const polyspan::Error& error) {
    std::cerr << "polyspan-random-model: " << error.what() << "\n";
    return error.kind() == polyspan::ErrorKind::kUsage ? 2 : 1;
  } catch (const std::exception& error) {
    std::cerr << "polyspan-random-model: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
