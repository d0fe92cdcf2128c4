#include "engine/chat_session.h"

#include "core/error.h"

namespace polyspan {

ChatSession::ChatSession(Engine& engine, const SpanPlan& plan, int64_t planned_length, KvType type,
                         std::optional<std::string> system)
    : engine_(engine), system_(std::move(system)) {
  engine_.chat_format();  // throws for an unknown template before the cache is taken
  sequence_ = engine_.new_sequence(plan, planned_length, type);
}

GenerateResult ChatSession::ask(const std::string& user_text, const GenerateOptions& options,
                                const std::function<bool(std::string_view)>& on_text, Progress& progress) {
  const ChatFormat& format = engine_.chat_format();
  std::vector<TokenId> prompt;
  if (sequence_->n_tokens() == 0) {
    std::vector<ChatMessage> messages;
    if (system_) messages.push_back({"system", *system_});
    messages.push_back({"user", user_text});
    prompt = format.encode(messages, engine_.tokenizer());
  } else {
    if (unfed_) prompt.push_back(*unfed_);
    const std::vector<TokenId> turn = format.encode_next_turn({"user", user_text}, engine_.tokenizer(), ended_);
    prompt.insert(prompt.end(), turn.begin(), turn.end());
  }
  if (static_cast<int64_t>(prompt.size()) >= sequence_->room())
    throw Error::bad_input("the conversation is full: ", sequence_->n_tokens(), " of ", sequence_->cache().max_tokens(),
                           " tokens are used and this turn needs ", prompt.size(), " more and room for the answer");
  GenerateResult result;
  const int64_t n_before = sequence_->n_tokens();
  try {
    result = generate(engine_, *sequence_, prompt, options, on_text, progress);
  } catch (...) {  // on_text, or no memory: what is in the cache stays, and the next turn closes the unfinished one
    if (sequence_->n_tokens() != n_before) {
      unfed_ = std::nullopt;
      ended_ = false;
    }
    throw;
  }
  unfed_ = result.tokens.empty() ? std::nullopt : std::optional(result.tokens.back());
  ended_ = result.ended_with_token;
  return result;
}

}  // namespace polyspan
