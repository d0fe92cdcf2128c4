#include <array>
#include <string>

#include "core/error.h"
#include "model/model.h"

namespace polyspan {

extern const Architecture kHydraArchitecture;
extern const Architecture kLlamaArchitecture;
extern const Architecture kQwen2Architecture;

std::span<const Architecture* const> architectures() {
  static constexpr std::array<const Architecture*, 3> kAll = {&kHydraArchitecture, &kLlamaArchitecture,
                                                              &kQwen2Architecture};
  return kAll;
}

const Architecture& find_architecture(const GgufFile& file) {
  const std::string_view name = file.get_string("general.architecture");
  std::string known;
  for (const Architecture* architecture : architectures()) {
    if (architecture->name == name) return *architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture->name);
  }
  throw Error::unsupported(file.path().string(), ": architecture \"", name, "\" is not supported (known: ", known, ")");
}

ModelConfig read_config(const GgufFile& file) { return find_architecture(file).read_config(file); }

std::unique_ptr<Model> Model::load(std::unique_ptr<GgufFile> file, OpContext& context, Progress& progress) {
  const Architecture& architecture = find_architecture(*file);
  ModelConfig config = architecture.read_config(*file);
  return architecture.make(std::move(file), std::move(config), context, progress);
}

void Model::skip_paths_below(double) {
  throw Error::unsupported("a model of architecture ", config_.architecture,
                           " has no paths to skip: only those of Hydra models have multipliers");
}

}  // namespace polyspan
