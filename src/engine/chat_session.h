// engine/chat_session.h: a conversation that continues from its cache, turn after turn.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/generate.h"

namespace polyspan {

class ChatSession {
 public:
  // planned_length: tokens of the whole conversation; the spans are fixed by it. Throws Error (kUnsupported) when the
  // model's chat format is not known.
  ChatSession(Engine& engine, const SpanPlan& plan, int64_t planned_length, KvType type,
              std::optional<std::string> system);

  // One turn: only the new tokens are computed. Throws Error (kBadInput) when the turn does not fit any more; the
  // conversation is then as it was before.
  GenerateResult ask(const std::string& user_text, const GenerateOptions& options,
                     const std::function<bool(std::string_view)>& on_text = {}, Progress& progress = no_progress());

  const Sequence& sequence() const { return *sequence_; }

 private:
  Engine& engine_;
  std::unique_ptr<Sequence> sequence_;
  std::optional<std::string> system_;
  std::optional<TokenId> unfed_;  // the last generated token, not in the cache yet
  bool ended_ = false;            // it is an end-of-turn token
};

}  // namespace polyspan
