#include "engine/engine.h"

#include <algorithm>

#include "core/error.h"
#include "engine/sampler.h"

namespace polyspan {
namespace {

void check_tokens(const Sequence& sequence, std::span<const TokenId> tokens, int64_t vocab_size) {
  if (tokens.empty()) throw Error::bad_input("a step without tokens: the prompt is empty");
  if (std::ssize(tokens) > sequence.room())
    throw Error::bad_input(tokens.size(), " more tokens do not fit: the sequence holds ", sequence.n_tokens(), " of ",
                           sequence.cache().max_tokens(), " tokens");
  for (const TokenId id : tokens)
    if (id < 0 || id >= vocab_size) throw Error::bad_input("token ", id, " is outside the vocabulary of ", vocab_size);
}

}  // namespace

std::unique_ptr<Engine> Engine::load(const std::filesystem::path& path, int n_threads, Progress& progress,
                                     const Device& device) {
  if (n_threads < 1 || n_threads > 1024)
    throw Error::usage("the number of threads is ", n_threads, "; it must be between 1 and 1024");
  auto file = std::make_unique<GgufFile>(GgufFile::open(path));
  find_architecture(*file);  // before the long work
  std::unique_ptr<Engine> engine(new Engine(n_threads));
  engine->tokenizer_ = Tokenizer::from_gguf(*file);
  try {
    engine->chat_format_ = ChatFormat::recognize(*file);
    if (!engine->chat_format_) engine->chat_format_problem_ = path.string() + ": the model has no chat template";
  } catch (const Error& error) {  // only a problem for those who want to chat
    engine->chat_format_problem_ = error.what();
  }
  const Device chosen = device.kind == DeviceKind::kAuto ? resolve_device(device, read_config(*file)) : device;
  engine->model_ = chosen.kind == DeviceKind::kCuda ? load_cuda_model(std::move(file), chosen.index, progress)
                                                    : Model::load(std::move(file), engine->context_, progress);
  if (engine->tokenizer_->vocab_size() > engine->config().vocab_size)
    throw Error::bad_file(path, "the tokenizer has ", engine->tokenizer_->vocab_size(), " tokens but the model only ",
                          engine->config().vocab_size, " embeddings");
  return engine;
}

const ChatFormat& Engine::chat_format() const {
  if (!chat_format_) throw Error::unsupported(chat_format_problem_);
  return *chat_format_;
}

std::unique_ptr<Sequence> Engine::new_sequence(const SpanPlan& plan, int64_t planned_length, KvType type) const {
  if (planned_length < 1) throw Error::bad_input("a context of ", planned_length, " tokens; at least 1 is needed");
  if (planned_length > config().context_length)
    throw Error::bad_input("a context of ", planned_length, " tokens is more than the ", config().context_length,
                           " that the model was trained for");
  return std::make_unique<Sequence>(model_->make_cache(KvLayout(config(), plan, planned_length, type)));
}

void Engine::step(std::span<const StepRequest> requests, Progress& progress) {
  int64_t total = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    check_tokens(*requests[i].sequence, requests[i].tokens, config().vocab_size);
    for (size_t j = 0; j < i; ++j)
      POLYSPAN_CHECK(requests[j].sequence != requests[i].sequence, "a sequence is in a step twice");
    total += std::ssize(requests[i].tokens);
  }
  progress.start("prefill", total);
  std::vector<size_t> done(requests.size(), 0);
  std::vector<TokenId> tokens;
  std::vector<BatchSequence> sequences;
  std::vector<int64_t> logit_rows;
  std::vector<size_t> logit_requests;
  for (int64_t finished = 0; finished < total;) {
    tokens.clear();
    sequences.clear();
    logit_rows.clear();
    logit_requests.clear();
    for (size_t i = 0; i < requests.size(); ++i) {
      const int64_t room = model_->max_batch_tokens() - static_cast<int64_t>(tokens.size());
      const int64_t n = std::min<int64_t>(room, static_cast<int64_t>(requests[i].tokens.size() - done[i]));
      if (n == 0) continue;
      sequences.push_back({&requests[i].sequence->cache_, static_cast<int64_t>(tokens.size()), n, requests[i].rule});
      const std::span<const TokenId> part = requests[i].tokens.subspan(done[i], static_cast<size_t>(n));
      tokens.insert(tokens.end(), part.begin(), part.end());
      done[i] += static_cast<size_t>(n);
      if (done[i] == requests[i].tokens.size() && (requests[i].logits != nullptr || requests[i].chosen != nullptr)) {
        logit_rows.push_back(static_cast<int64_t>(tokens.size()) - 1);
        logit_requests.push_back(i);
      }
    }
    model_->forward({tokens, sequences});
    // What is in the caches is in tokens_.
    for (size_t i = 0, s = 0; i < requests.size() && s < sequences.size(); ++i) {
      if (sequences[s].cache != &requests[i].sequence->cache_) continue;
      const auto begin = tokens.begin() + sequences[s].first_row;
      requests[i].sequence->tokens_.insert(requests[i].sequence->tokens_.end(), begin, begin + sequences[s].n_rows);
      ++s;
    }
    if (!logit_rows.empty()) read_results(requests, logit_requests, logit_rows);
    finished += static_cast<int64_t>(tokens.size());
    progress.update(finished);
  }
  progress.finish();
}

void Engine::read_results(std::span<const StepRequest> requests, std::span<const size_t> which,
                          std::span<const int64_t> rows) {
  const size_t vocab = static_cast<size_t>(config().vocab_size);
  const auto wants_token_only = [&](size_t i) { return requests[i].logits == nullptr; };
  if (std::all_of(which.begin(), which.end(), wants_token_only)) {
    std::vector<TokenId> chosen(rows.size());
    if (model_->chosen_tokens(rows, chosen.data())) {
      for (size_t i = 0; i < which.size(); ++i) *requests[which[i]].chosen = chosen[i];
      return;
    }
  }
  const bool direct = rows.size() == 1 && !wants_token_only(which[0]);
  if (!direct && logits_.size() < rows.size() * vocab) logits_.resize(rows.size() * vocab);
  model_->logits(rows, direct ? requests[which[0]].logits : logits_.data());
  for (size_t i = 0; i < which.size(); ++i) {
    const StepRequest& request = requests[which[i]];
    const float* const row = direct ? request.logits : logits_.data() + i * vocab;
    if (request.chosen != nullptr) *request.chosen = choose_token({row, vocab}, request.rule);
    if (!direct && request.logits != nullptr) std::copy_n(row, vocab, request.logits);
  }
}

void Engine::read(Sequence& sequence, std::span<const TokenId> tokens, LayerInputs* inputs, int64_t first_layer,
                  const std::function<void(int64_t begin, int64_t end)>& visit) {
  const int64_t n_tokens = std::ssize(tokens);
  for (int64_t begin = 0, end; begin < n_tokens; begin = end) {
    end = std::min(begin + model_->max_batch_tokens(), n_tokens);
    const BatchSequence rows{&sequence.cache_, 0, end - begin};
    const std::span<const TokenId> chunk = tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    model_->forward({chunk, {&rows, 1}, inputs, first_layer});
    sequence.tokens_.insert(sequence.tokens_.end(), chunk.begin(), chunk.end());
    visit(begin, end);
  }
}

std::vector<TargetScore> Engine::score_targets(Sequence& sequence, std::span<const TokenId> tokens,
                                               std::span<const int64_t> targets, LayerInputs* inputs,
                                               int64_t first_layer) {
  check_tokens(sequence, tokens, config().vocab_size);
  POLYSPAN_CHECK(sequence.n_tokens() == 0 && (inputs != nullptr || first_layer == 0));
  std::vector<TargetScore> scores;
  read(sequence, tokens, inputs, first_layer, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> rows;
    std::vector<TokenId> wanted;
    for (const int64_t target : targets.subspan(scores.size())) {
      if (target - 1 >= end) break;
      rows.push_back(target - 1 - begin), wanted.push_back(tokens[static_cast<size_t>(target)]);
    }
    if (rows.empty()) return;
    const std::vector<TargetScore> found = model_->scores(rows, wanted);
    scores.insert(scores.end(), found.begin(), found.end());
  });
  POLYSPAN_CHECK(scores.size() == targets.size());
  return scores;
}

void Engine::score(Sequence& sequence, std::span<const TokenId> tokens, int64_t visit_from,
                   const std::function<void(int64_t, std::span<const float>, int64_t)>& visit, Progress& progress) {
  const int64_t vocab = config().vocab_size;
  check_tokens(sequence, tokens, vocab);
  std::vector<float> logits(static_cast<size_t>(Model::kScoredRows * vocab));
  progress.start("scoring", std::ssize(tokens));
  read(sequence, tokens, nullptr, 0, [&](int64_t begin, int64_t end) {
    for (int64_t first = std::max(begin, visit_from); first < end; first += Model::kScoredRows) {
      std::vector<int64_t> wanted;
      for (int64_t i = first; i < std::min(first + Model::kScoredRows, end); ++i) wanted.push_back(i - begin);
      model_->logits(wanted, logits.data());
      visit(first, std::span(logits).first(wanted.size() * static_cast<size_t>(vocab)),
            static_cast<int64_t>(wanted.size()));
    }
    progress.update(end);
  });
  progress.finish();
}

}  // namespace polyspan
