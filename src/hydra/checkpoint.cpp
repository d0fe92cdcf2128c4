#include "hydra/checkpoint.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/safetensors.h"

namespace polyspan {
namespace {

// The first line in which two texts differ, for people.
std::string first_difference(const std::string& a, const std::string& b) {
  std::istringstream left(a), right(b);
  for (std::string x, y;;) {
    const bool more_x = static_cast<bool>(std::getline(left, x)), more_y = static_cast<bool>(std::getline(right, y));
    if (!more_x && !more_y) return "";
    if (!more_x) x = "nothing";
    if (!more_y) y = "nothing";
    if (x != y) return "\"" + x + "\" there, \"" + y + "\" here";
  }
}

void copy_into(const torch::Tensor& tensor, const FloatTensor& from) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor host = torch::from_blob(const_cast<float*>(from.values.data()), tensor.sizes(), torch::kFloat32);
  torch::Tensor(tensor).copy_(host);
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const TrainConfig& config, const std::string& config_text,
                     const Parameters& parameters, AdamW& optimizer, const TrainState& state) {
  std::vector<torch::Tensor> host;  // alive until the file is written
  std::vector<NamedFloatTensor> tensors;
  const auto add = [&](const std::string& name, const torch::Tensor& tensor) {
    host.push_back(tensor.detach().to(torch::kCPU).to(torch::kFloat32).contiguous());
    tensors.push_back(
        {name, {tensor.sizes().vec(), {host.back().data_ptr<float>(), static_cast<size_t>(tensor.numel())}}});
  };
  for (size_t i = 0; i < parameters.specs().size(); ++i) {
    const std::string& name = parameters.specs()[i].name;
    add(name, parameters.tensors()[i]);
    add("adam_m." + name, optimizer.first_moments()[i]);
    add("adam_v." + name, optimizer.second_moments()[i]);
  }
  write_safetensors(path,
                    {{"format", "polyspan-train 1"},
                     {"tokenizer", state.tokenizer},
                     {"step", std::to_string(state.step)},
                     {"smoothed_loss", nlohmann::json(state.smoothed_loss).dump()},
                     {"adam_counts", nlohmann::json(optimizer.counts()).dump()},
                     {"fingerprint", config.fingerprint_text()},
                     {"config", config_text}},
                    tensors);
}

TrainState load_checkpoint(const std::filesystem::path& path, const TrainConfig& config, Parameters& parameters,
                           AdamW& optimizer) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (file.get_metadata("format") != "polyspan-train 1")
    throw Error::bad_file(path, "format \"", file.get_metadata("format"), "\"; wanted polyspan-train 1");
  if (const std::string difference = first_difference(file.get_metadata("fingerprint"), config.fingerprint_text());
      !difference.empty())
    throw Error::bad_file(path, "the checkpoint is of another configuration: ", difference);
  TrainState state;
  state.tokenizer = file.get_metadata("tokenizer");
  try {
    state.step = nlohmann::json::parse(file.get_metadata("step")).get<int64_t>();
    state.smoothed_loss = nlohmann::json::parse(file.get_metadata("smoothed_loss")).get<double>();
    const auto counts = nlohmann::json::parse(file.get_metadata("adam_counts")).get<std::vector<int64_t>>();
    if (counts.size() != optimizer.counts().size())
      throw Error::bad_file(path, "adam_counts has ", counts.size(), " entries; wanted ", optimizer.counts().size());
    optimizer.counts() = counts;
  } catch (const nlohmann::json::exception& error) {
    throw Error::bad_file(path, "its metadata: ", error.what());
  }
  for (size_t i = 0; i < parameters.specs().size(); ++i) {
    const TensorSpec& spec = parameters.specs()[i];
    copy_into(parameters.tensors()[i], file.get(spec.name, spec.shape));
    copy_into(optimizer.first_moments()[i], file.get("adam_m." + spec.name, spec.shape));
    copy_into(optimizer.second_moments()[i], file.get("adam_v." + spec.name, spec.shape));
  }
  return state;
}

}  // namespace polyspan
