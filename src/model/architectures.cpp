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

std::vector<TargetScore> Model::scores(std::span<const int64_t> rows, std::span<const int32_t> targets) {
  constexpr auto kRows = static_cast<size_t>(kScoredRows);
  std::vector<TargetScore> scores;
  std::vector<float> values(std::min(rows.size(), kRows) * static_cast<size_t>(config_.vocab_size));
  for (size_t first = 0; first < rows.size(); first += kRows) {
    const size_t n = std::min(kRows, rows.size() - first);
    logits(rows.subspan(first, n), values.data());
    for (size_t i = 0; i < n; ++i)
      scores.push_back(score_target(values.data() + i * static_cast<size_t>(config_.vocab_size), config_.vocab_size,
                                    targets[first + i]));
  }
  return scores;
}

void Model::skip_paths_below(double) {
  throw Error::unsupported("a model of architecture ", config_.architecture,
                           " has no paths to skip: only those of Hydra models have multipliers");
}

}  // namespace polyspan
